"""The tree as data: immutable, hashable, lossless as JSON, and free of any network code.

A tree is made of two kinds of node, `VAE` (a leaf, the expert) and `Mixture` (a gate over children), each described by
small records for its networks, its likelihood and its balance. Nothing here computes; `hmoevae.plan` compiles a tree
and `hmoevae.HMoEVAE` runs it.
"""

from hmoevae.spec.balances import Balance
from hmoevae.spec.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian, Likelihood
from hmoevae.spec.networks import MLP, Activation, Conv, ConvTranspose, Network
from hmoevae.spec.nodes import MAX_DEPTH, VAE, Mixture, Node, Tree, tree_from_json
from hmoevae.spec.record import record

__all__ = [
    "MAX_DEPTH",
    "MLP",
    "VAE",
    "Activation",
    "Balance",
    "Bernoulli",
    "ContinuousBernoulli",
    "Conv",
    "ConvTranspose",
    "Gaussian",
    "Likelihood",
    "Mixture",
    "Network",
    "Node",
    "Tree",
    "record",
    "tree_from_json",
]

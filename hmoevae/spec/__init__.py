"""The tree as data: immutable, hashable, lossless as JSON, and without torch.

A tree has two kinds of node: `VAE` (a leaf, the expert) and `Mixture` (a gate over children). Records describe their
networks, likelihoods and balances. Nothing here computes: `hmoevae.plan` compiles a tree, and `hmoevae.HMoEVAE` runs
it.
"""

from hmoevae.spec.balances import Balance
from hmoevae.spec.likelihoods import (
    Bernoulli,
    Categorical,
    Columns,
    ContinuousBernoulli,
    Gaussian,
    Likelihood,
    LogNormal,
    NegativeBinomial,
    Ordinal,
    Poisson,
    ZeroInflated,
)
from hmoevae.spec.networks import MLP, Activation, Conv, ConvTranspose, LinearPosterior, Network, PosteriorGate
from hmoevae.spec.nodes import MAX_DEPTH, VAE, Mixture, Node, Tree, tree_from_json
from hmoevae.spec.record import record

__all__ = [
    "MAX_DEPTH",
    "MLP",
    "VAE",
    "Activation",
    "Balance",
    "Bernoulli",
    "Categorical",
    "Columns",
    "ContinuousBernoulli",
    "Conv",
    "ConvTranspose",
    "Gaussian",
    "Likelihood",
    "LinearPosterior",
    "LogNormal",
    "Mixture",
    "NegativeBinomial",
    "Network",
    "Node",
    "Ordinal",
    "Poisson",
    "PosteriorGate",
    "Tree",
    "ZeroInflated",
    "record",
    "tree_from_json",
]

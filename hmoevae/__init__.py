"""Hierarchical mixtures of variational auto-encoders: kinds and sub-kinds of data, found without labels."""

from hmoevae.model import HMoEVAE, Output
from hmoevae.spec import (
    MLP,
    VAE,
    Balance,
    Bernoulli,
    ContinuousBernoulli,
    Conv,
    Gaussian,
    Mixture,
    tree_from_json,
)

"""Likelihoods p(x|z): log-density, mean and draws, from a decoder's raw outputs; a file for each sort of data."""

from hmoevae.nn.likelihoods.build import likelihood_module
from hmoevae.nn.likelihoods.codes import CategoricalModule, OrdinalModule
from hmoevae.nn.likelihoods.columns import ColumnsModule
from hmoevae.nn.likelihoods.continuous import GaussianModule, LearnedGaussianModule, LogNormalModule
from hmoevae.nn.likelihoods.counts import NegativeBinomialModule, PoissonModule, ZeroInflatedModule
from hmoevae.nn.likelihoods.module import LikelihoodModule
from hmoevae.nn.likelihoods.unit import BernoulliModule, ContinuousBernoulliModule

__all__ = [
    "BernoulliModule",
    "CategoricalModule",
    "ColumnsModule",
    "ContinuousBernoulliModule",
    "GaussianModule",
    "LearnedGaussianModule",
    "LikelihoodModule",
    "LogNormalModule",
    "NegativeBinomialModule",
    "OrdinalModule",
    "PoissonModule",
    "ZeroInflatedModule",
    "likelihood_module",
]

"""Likelihoods p(x|z): log-density, mean and draws, from a decoder's raw outputs; a file for each sort of data."""

from hmoevae.nn.likelihoods.build import likelihood_module
from hmoevae.nn.likelihoods.continuous import GaussianModule, LearnedGaussianModule
from hmoevae.nn.likelihoods.module import LikelihoodModule
from hmoevae.nn.likelihoods.unit import BernoulliModule, ContinuousBernoulliModule

__all__ = [
    "BernoulliModule",
    "ContinuousBernoulliModule",
    "GaussianModule",
    "LearnedGaussianModule",
    "LikelihoodModule",
    "likelihood_module",
]

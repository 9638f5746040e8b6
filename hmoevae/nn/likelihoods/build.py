"""From the record of a likelihood to its module."""

import functools

from hmoevae.errors import SpecError, mismatch
from hmoevae.nn.likelihoods.continuous import GaussianModule, LearnedGaussianModule
from hmoevae.nn.likelihoods.module import LikelihoodModule
from hmoevae.nn.likelihoods.unit import BernoulliModule, ContinuousBernoulliModule
from hmoevae.spec import Bernoulli, ContinuousBernoulli, Gaussian, Likelihood


def likelihood_module(record: Likelihood, n_experts: int, n_features: int) -> LikelihoodModule:
    """Make the module that computes a likelihood.

    Args:
        record: The record of the likelihood.
        n_experts: Number of experts of the group.
        n_features: Number of entries of a sample.

    >>> import torch
    >>> module = likelihood_module(Bernoulli(), 1, n_features=2)
    >>> module.log_prob(torch.zeros(1, 2, 1), torch.ones(2, 1)).exp()  # two features, each with probability 1/2
    tensor([[0.2500]])
    """
    if type(record).build is not Likelihood.build:  # also where the record's class is derived from one of ours
        return record.build(n_experts, n_features)
    return _own(record, n_experts, n_features)


@functools.singledispatch
def _own(record: Likelihood, n_experts: int, n_features: int) -> LikelihoodModule:  # noqa: ARG001
    """The module of one of our records."""
    name = type(record).__name__
    raise SpecError(mismatch(name, f"a method {name}.build, which makes the module", "none"))


@_own.register(Gaussian)
def _gaussian(record: Gaussian, n_experts: int, n_features: int) -> LikelihoodModule:
    sigmoid = record.mean == "sigmoid"
    if isinstance(record.scale, str):
        return LearnedGaussianModule(n_experts, n_features, record.floor, sigmoid=sigmoid)
    return GaussianModule(record.scale, sigmoid=sigmoid)


@_own.register(Bernoulli)
def _bernoulli(record: Bernoulli, n_experts: int, n_features: int) -> LikelihoodModule:  # noqa: ARG001
    return BernoulliModule()


@_own.register(ContinuousBernoulli)
def _continuous_bernoulli(
    record: ContinuousBernoulli,  # noqa: ARG001
    n_experts: int,  # noqa: ARG001
    n_features: int,  # noqa: ARG001
) -> LikelihoodModule:
    return ContinuousBernoulliModule()

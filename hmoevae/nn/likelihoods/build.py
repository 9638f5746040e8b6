"""From the record of a likelihood to its module."""

import functools
from dataclasses import replace

from hmoevae.errors import SpecError, mismatch
from hmoevae.nn.likelihoods.codes import CategoricalModule, OrdinalModule
from hmoevae.nn.likelihoods.columns import ColumnsModule
from hmoevae.nn.likelihoods.continuous import GaussianModule, LearnedGaussianModule, LogNormalModule
from hmoevae.nn.likelihoods.counts import CountModule, NegativeBinomialModule, PoissonModule, ZeroInflatedModule
from hmoevae.nn.likelihoods.module import LikelihoodModule
from hmoevae.nn.likelihoods.unit import BernoulliModule, ContinuousBernoulliModule
from hmoevae.spec import (
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
from hmoevae.spec.likelihoods import LEAST_SCALE


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


def _normal(
    record: Gaussian | LogNormal, n_experts: int, n_features: int, *, sigmoid: bool
) -> GaussianModule | LearnedGaussianModule:
    if isinstance(record.scale, str):
        return LearnedGaussianModule(n_experts, n_features, record.floor, sigmoid=sigmoid)
    return GaussianModule(record.scale, sigmoid=sigmoid)


@_own.register(Gaussian)
def _gaussian(record: Gaussian, n_experts: int, n_features: int) -> LikelihoodModule:
    return _normal(record, n_experts, n_features, sigmoid=record.mean == "sigmoid")


@_own.register(LogNormal)
def _log_normal(record: LogNormal, n_experts: int, n_features: int) -> LikelihoodModule:
    return LogNormalModule(_normal(record, n_experts, n_features, sigmoid=False))


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


@_own.register(Categorical)
def _categorical(record: Categorical, n_experts: int, n_features: int) -> LikelihoodModule:  # noqa: ARG001
    return CategoricalModule(record.n)


@_own.register(Ordinal)
def _ordinal(record: Ordinal, n_experts: int, n_features: int) -> LikelihoodModule:
    return OrdinalModule(n_experts, n_features, record.n)


def _counts(record: Poisson | NegativeBinomial, n_experts: int, n_features: int) -> CountModule:
    if isinstance(record, Poisson):
        return PoissonModule(record.total)
    return NegativeBinomialModule(n_experts, n_features, record.total)


_own.register(Poisson, _counts)
_own.register(NegativeBinomial, _counts)


@_own.register(ZeroInflated)
def _zero_inflated(record: ZeroInflated, n_experts: int, n_features: int) -> LikelihoodModule:
    return ZeroInflatedModule(_counts(record.count, n_experts, n_features))


@_own.register(Columns)
def _columns(record: Columns, n_experts: int, n_features: int) -> LikelihoodModule:
    if len(record.parts) != n_features:
        expected = f"a likelihood for each of the {n_features} entries of a sample"
        raise SpecError(mismatch("Columns.parts", expected, len(record.parts)))
    columns: dict[Likelihood, list[int]] = {}
    for column, part in enumerate(record.parts):
        columns.setdefault(_without_floor(part), []).append(column)
    columns = {_with_floors(part, [record.parts[i] for i in own]): own for part, own in columns.items()}
    modules = [(likelihood_module(part, n_experts, len(own)), own) for part, own in columns.items()]
    for module, own in modules:
        if not isinstance(module, LikelihoodModule):
            words = f"a LikelihoodModule from {record.parts[own[0]]}.build"
            raise SpecError(mismatch(f"Columns.parts[{own[0]}]", words, type(module).__name__))
    return ColumnsModule(modules)


def _without_floor(part: Likelihood) -> Likelihood:
    """What columns that are computed together have in common: each has a floor of its own for its learned scale."""
    return replace(part, floor=LEAST_SCALE) if isinstance(part, Gaussian | LogNormal) else part


def _with_floors(part: Likelihood, own: list[Likelihood]) -> Likelihood:
    """One likelihood for all those columns."""
    if not isinstance(part, Gaussian | LogNormal):
        return part
    floors = {each.floor for each in own if isinstance(each, Gaussian | LogNormal)}
    return replace(part, floor=floors.pop() if len(floors) == 1 else tuple(each.floor for each in own))  # type: ignore[union-attr]

"""Likelihoods of counts: Poisson, negative binomial, and either with more zeros.

Axes: as in `module.py`.

The raw outputs give the logarithm of a rate, or, where the total count of a sample is given, the logits of the shares
that the features have in it.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hmoevae.nn.kernels.precision import sum_dtype
from hmoevae.nn.likelihoods.module import (
    Constant,
    Features,
    LikelihoodModule,
    OfSample,
    Present,
    Raw,
    Sample,
    Shared,
    SharedPresent,
)
from hmoevae.nn.posteriors import NONE, LinearFeatures

LARGE_LOG_RATE = 10.0
"""A rate grows exponentially up to exp of this, and from there on linearly: float32 would overflow."""
FIRST_DISPERSION = 1.0
"""The initial value of a dispersion: the standard deviation of a large count is then its mean."""
LARGEST_LOG_DISPERSION = 15.0
"""Bound of the size of a dispersion's logarithm; smaller dispersions cannot be told from a Poisson's, which is zero."""
LEAST_RATE = 1e-6
"""The least rate that `fit_constant_` sets, for features without any count."""
LEAST_DISPERSION = 1e-2
"""The least dispersion that `fit_constant_` sets: counts of a real process vary by 10 % beside Poisson's noise."""
DISPERSION_STRENGTH = 10.0
"""Number of samples of size 1 that the pull of dispersions to the one that experts share is worth."""
NO_SHARE = -1e30
"""A logit whose share is zero, with finite gradients."""


class CountModule(LikelihoodModule):
    """What counts share: the support, the rate, and what networks see.

    Args:
        total: `None`; or the total count of a typical sample, where rates are shares of each sample's total.
    """

    support = "counts (whole numbers >= 0)"

    def __init__(self, total: float | None) -> None:
        super().__init__()
        self.total = total

    def contains(self, x: Tensor) -> bool:
        return bool(((x >= 0) & (x == x.floor())).all())

    def nearest(self, x: Tensor) -> Tensor:
        return x.round().clamp_min(0)

    def shown(self, x: Sample, present: Present | None = None) -> Tensor:
        counts = super().shown(x, present).clamp_min(0)
        if self.total is not None:
            counts = counts * (self.total / _total(counts)).to(counts.dtype)
        return counts.log1p()

    def linear_features(self) -> LinearFeatures | None:
        return NONE

    def fit_constant_(self, x: Shared, weight: OfSample, present: SharedPresent = None) -> Constant:
        rate = self._sums(x, weight, present).rate
        if self.total is not None:
            return rate.log()
        small = rate.clamp_max(math.exp(LARGE_LOG_RATE))
        return small.log() + rate / small - 1  # the inverse of `log_rate`

    def _sums(self, x: Shared, weight: OfSample, present: SharedPresent) -> "_Sums":
        """The sums over samples that closed forms need; a sample's size is its total in units of a typical one."""
        seen = torch.ones_like(x) if present is None else present.to(x.dtype)
        counts = x if present is None else torch.where(present, x, 0.0)
        sizes = seen if self.total is None else seen * (_total(counts) / self.total).to(x.dtype)
        parts = (counts, sizes, counts * sizes, counts.square(), sizes.square())
        return _Sums(*(weight @ part.T for part in parts))

    def log_prob(self, raw: Raw, x: Sample, present: Present | None = None) -> Float[Tensor, "group batch"]:
        return super().log_prob(self.observed(raw, present), x, present)

    def observed(self, raw: Raw, present: Present | None) -> Raw:
        """The raw outputs where features that were not observed have no share in the total of those that were."""
        if self.total is None or present is None:
            return raw
        return raw.to(sum_dtype(raw)).masked_fill(~present, NO_SHARE)

    def log_rate(self, raw: Raw, x: Sample | None = None) -> Features:
        """Log E[x|z], given the total of `x` where rates are shares; without `x`, given that of a typical sample."""
        raw = raw.to(sum_dtype(raw))
        if self.total is None:
            small = raw.clamp_max(LARGE_LOG_RATE)
            return small + (raw - small).log1p()
        return raw.log_softmax(1) + (math.log(self.total) if x is None else _total(x).log())

    def mean(self, raw: Raw) -> Features:
        return self.log_rate(raw).exp()


class _Sums(NamedTuple):
    """Weighted sums over samples, of counts x and sizes s."""

    x: Float[Tensor, "group feature"]
    s: Float[Tensor, "group feature"]
    xs: Float[Tensor, "group feature"]
    xx: Float[Tensor, "group feature"]
    ss: Float[Tensor, "group feature"]

    @property
    def rate(self) -> Float[Tensor, "group feature"]:
        """The mean count of a sample of size 1, with one sample of the overall mean added."""
        overall = self.x.sum(0) / self.s.sum(0).clamp_min(LEAST_RATE)
        return ((self.x + overall) / (self.s + 1)).clamp_min(LEAST_RATE)


def _total(x: Sample) -> Tensor:
    """The total count of every sample; 1 for samples without any, whose rates are then close to zero."""
    return x.to(sum_dtype(x)).sum(-2, keepdim=True).clamp_min(1)


class PoissonModule(CountModule):
    """Poisson(rate)."""

    def log_density(self, raw: Raw, x: Sample) -> Features:
        log_rate = self.log_rate(raw, x)
        return x * log_rate - log_rate.exp() - torch.lgamma(x.to(log_rate.dtype) + 1)

    def score(self, raw: Raw, x: Sample) -> Raw:
        if self.total is None:
            return (x - self.mean(raw)) / (1 + (raw - LARGE_LOG_RATE).clamp_min(0))
        return x - raw.softmax(1) * x.sum(-2, keepdim=True)

    def sample(self, raw: Raw, generator: torch.Generator | None = None) -> Features:
        return torch.poisson(self.mean(raw), generator).to(raw.dtype)


class NegativeBinomialModule(CountModule):
    """NegativeBinomial with mean m = rate and variance m + dispersion * m^2.

    Args:
        n_experts: Number of experts.
        n_features: Number of entries of a sample.
        total: As in `CountModule`.
    """

    log_dispersion: Float[nn.Parameter, "group feature"]

    def __init__(self, n_experts: int, n_features: int, total: float | None) -> None:
        super().__init__(total)
        self.log_dispersion = nn.Parameter(torch.full((n_experts, n_features), math.log(FIRST_DISPERSION)))

    @property
    def log_size(self) -> Float[Tensor, "group feature 1"]:
        """The logarithm of the number of failures r = 1 / dispersion."""
        bounded = self.log_dispersion.clamp(-LARGEST_LOG_DISPERSION, LARGEST_LOG_DISPERSION)
        return -bounded.to(sum_dtype(bounded)).unsqueeze(2)

    def log_density(self, raw: Raw, x: Sample) -> Features:
        log_size = self.log_size
        logit = self.log_rate(raw, x) - log_size
        x = x.to(logit.dtype)
        ways = _log_rising(log_size.exp(), x) - torch.lgamma(x + 1)
        return ways + x * F.logsigmoid(logit) - log_size.exp() * F.softplus(logit)

    @torch.no_grad()
    def fit_constant_(self, x: Shared, weight: OfSample, present: SharedPresent = None) -> Constant:
        """The means and, by the method of moments, the dispersions, which are pulled to what the experts share."""
        sums = self._sums(x, weight, present)
        rate = sums.rate
        # The variance of a count is s rate + dispersion (s rate)^2.
        excess = sums.xx - 2 * rate * sums.xs + rate.square() * sums.ss - rate * sums.s
        whole = rate.square() * sums.ss
        pooled = excess.sum(0) / whole.sum(0).clamp_min(LEAST_RATE)
        extra = DISPERSION_STRENGTH * rate.square()
        dispersion = (excess + extra * pooled) / (whole + extra)
        self.log_dispersion.copy_(dispersion.clamp_min(LEAST_DISPERSION).log())
        return super().fit_constant_(x, weight, present)

    def sample(self, raw: Raw, generator: torch.Generator | None = None) -> Features:
        rate = self.mean(raw)
        size = self.log_size.exp().to(rate.dtype).expand_as(rate)
        # `torch.distributions.Gamma` draws in the same way, but takes no generator.
        gamma = torch._standard_gamma(size.contiguous(), generator=generator)  # pyright: ignore[reportPrivateImportUsage]
        return torch.poisson(rate * gamma / size, generator).to(raw.dtype)


def _log_rising(size: Tensor, x: Tensor) -> Tensor:
    """Log Gamma(size + x) - log Gamma(size); for a large size by Stirling's series, as the difference would cancel."""
    whole = size + x
    large = (size - 0.5) * torch.log1p(x / size) + x * whole.log() - x + _series(whole) - _series(size)
    return torch.where(size > 32, large, torch.lgamma(whole) - torch.lgamma(size))


def _series(x: Tensor) -> Tensor:
    """Log Gamma(x) - (x - 1/2) log x + x - log(2 pi) / 2, for large x."""
    inverse = x.reciprocal()
    return inverse * (1 / 12 - inverse.square() / 360)


class ZeroInflatedModule(LikelihoodModule):
    """Zero with probability sigmoid(w), else a draw from a likelihood of counts; w is the second output of a feature.

    Args:
        count: The likelihood of counts.
    """

    outputs = 2
    support = CountModule.support

    def __init__(self, count: CountModule) -> None:
        super().__init__()
        self.count = count

    def contains(self, x: Tensor) -> bool:
        return self.count.contains(x)

    def nearest(self, x: Tensor) -> Tensor:
        return self.count.nearest(x)

    def shown(self, x: Sample, present: Present | None = None) -> Tensor:
        return self.count.shown(x, present)

    def log_prob(self, raw: Raw, x: Sample, present: Present | None = None) -> Float[Tensor, "group batch"]:
        of_count, of_zero = raw.chunk(2, 1)
        return super().log_prob(torch.cat([self.count.observed(of_count, present), of_zero], 1), x, present)

    def log_density(self, raw: Raw, x: Sample) -> Features:
        of_count, of_zero = raw.to(sum_dtype(raw)).chunk(2, 1)
        counted = F.logsigmoid(-of_zero) + self.count.log_density(of_count, x)
        return torch.where(x == 0, torch.logaddexp(F.logsigmoid(of_zero), counted), counted)

    def mean(self, raw: Raw) -> Features:
        of_count, of_zero = raw.chunk(2, 1)
        return torch.sigmoid(-of_zero.to(sum_dtype(raw))) * self.count.mean(of_count)

    def sample(self, raw: Raw, generator: torch.Generator | None = None) -> Features:
        of_count, of_zero = raw.chunk(2, 1)
        counted = torch.bernoulli(torch.sigmoid(-of_zero), generator=generator)
        return counted * self.count.sample(of_count, generator)

"""Likelihoods of counts: Poisson, negative binomial, and either with more zeros.

Axes: as in `module.py`.

The raw outputs give the logarithm of a rate, or, where the total count of a sample is given, the logits of the shares
that the features have in it.
"""

import math
from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hmoevae.nn.kernels.precision import sum_dtype
from hmoevae.nn.likelihoods.module import (
    BATCH_SIZE,
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
ENTRIES = 1 << 20
"""Number of experts times features times totals that are computed at a time, which a cache holds."""
Which = slice | Int[Tensor, " feature"]
EVERY = slice(None)
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
        counts = x if present is None else torch.where(present, x, 0.0)
        size = x.new_ones(1, x.shape[1]) if self.total is None else (_total(counts) / self.total).to(x.dtype)
        seen = torch.ones_like(size) if present is None else present.to(x.dtype)  # one row stands for all features
        sized = weight * size
        s, ss = ((own @ seen.T).expand(-1, len(x)) for own in (sized, sized * size))
        squares = zip(weight.split(BATCH_SIZE, 1), counts.split(BATCH_SIZE, 1), strict=True)
        xx = torch.stack([own @ part.square().T for own, part in squares]).sum(0)
        return _Sums(weight @ counts.T, s, sized @ counts.T, xx, ss)

    # The log-density of a count is log_ways + x * log_each + log_zero; `features` are those of the rates and counts.

    @abstractmethod
    def log_zero(self, log_rate: Features, features: Which = EVERY) -> Features:
        """The log-density of a count of zero."""

    @abstractmethod
    def log_each(self, log_rate: Features, features: Which = EVERY) -> Features:
        """What each further one adds to it, but for `log_ways`."""

    @abstractmethod
    def log_ways(self, x: Tensor, features: Which = EVERY) -> Tensor:
        """What does not depend on the rate."""

    def log_density(self, raw: Raw, x: Sample) -> Features:
        log_rate = self.log_rate(raw, x)
        x = x.to(log_rate.dtype)
        return self.log_ways(x) + x * self.log_each(log_rate) + self.log_zero(log_rate)

    def log_prob(self, raw: Raw, x: Sample, present: Present | None = None) -> Float[Tensor, "group batch"]:
        return super().log_prob(self.observed(raw, present), x, present)

    def log_prob_constant(self, raw: Constant, x: Shared, present: SharedPresent = None) -> OfSample:
        """As for all likelihoods, in a time that the counts above zero take: most words are not in a document.

        As if all counts were zero, log p(x) depends on the total only, and few samples differ in it.
        """
        if torch.compiler.is_compiling() or (present is not None and not present.all()):
            return super().log_prob_constant(raw, x, present)
        log_rate = self.log_rate(raw.unsqueeze(2))  # of the typical total
        if self.total is None:
            ratios, same = raw.new_ones(1), torch.zeros(x.shape[1], dtype=torch.long, device=x.device)
        else:
            ratios, same = (_total(x)[0].to(log_rate.dtype) / self.total).unique(return_inverse=True)
        at_once = max(1, ENTRIES // max(1, log_rate.numel()))
        rates = (log_rate + some for some in ratios.log().split(at_once))
        of_zeros = torch.cat([self.log_zero(rate).sum(1) for rate in rates], 1)[:, same]
        parts = zip(x.split(BATCH_SIZE, 1), ratios.log()[same].split(BATCH_SIZE), strict=True)
        return of_zeros + torch.cat([self._of_others(log_rate.squeeze(2), *part) for part in parts], 1)

    def _of_others(
        self, log_rate: Float[Tensor, "group feature"], x: Shared, log_ratio: Float[Tensor, " batch"]
    ) -> OfSample:
        """What counts above zero add to the log-density of zeros."""
        sample, feature = x.t().nonzero(as_tuple=True)
        count = x.t()[sample, feature]
        # Few ways differ: most counts are small, and the same word is in many documents.
        base = 1 + (int(count.max()) if len(count) else 0)
        pair, same = (feature * base + count.long()).unique(return_inverse=True)
        ways = self.log_ways((pair % base).to(log_rate.dtype).unsqueeze(1), pair // base).squeeze(-1)
        rate = log_rate[:, feature] + log_ratio[sample]
        each = self.log_each(rate.unsqueeze(2), feature).squeeze(2)
        added = torch.addcmul(ways.expand(len(log_rate), -1)[:, same], count.to(each.dtype), each)
        return added.new_zeros(len(added), x.shape[1]).scatter_add(1, sample.expand_as(added), added)

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

    def log_zero(self, log_rate: Features, features: Which = EVERY) -> Features:  # noqa: ARG002
        return -log_rate.exp()

    def log_each(self, log_rate: Features, features: Which = EVERY) -> Features:  # noqa: ARG002
        return log_rate

    def log_ways(self, x: Tensor, features: Which = EVERY) -> Tensor:  # noqa: ARG002
        return -torch.lgamma(x + 1)

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

    def log_zero(self, log_rate: Features, features: Which = EVERY) -> Features:
        log_size = self.log_size[:, features]
        return -log_size.exp() * F.softplus(log_rate - log_size)

    def log_each(self, log_rate: Features, features: Which = EVERY) -> Features:
        return F.logsigmoid(log_rate - self.log_size[:, features])

    def log_ways(self, x: Tensor, features: Which = EVERY) -> Tensor:
        return _log_rising(self.log_size[:, features].exp(), x) - torch.lgamma(x + 1)

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

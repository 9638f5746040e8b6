"""Likelihoods of values from 0 to 1: Bernoulli and continuous Bernoulli.

Axes: as in `module.py`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hmoevae.nn.kernels.precision import sum_dtype
from hmoevae.nn.likelihoods.module import (
    Constant,
    Features,
    LikelihoodModule,
    OfSample,
    Raw,
    Sample,
    Shared,
    SharedPresent,
    weighted_means,
)
from hmoevae.nn.posteriors import NONE, LinearFeatures

LEAST = 1e-6
"""The least distance from 0 and 1 of a probability that `fit_constant_` sets."""


def in_unit_interval(x: Tensor) -> bool:
    """Whether every entry of the finite tensor `x` lies in [0, 1]."""
    low, high = torch.aminmax(x)
    return bool((low >= 0) & (high <= 1))


class BernoulliModule(LikelihoodModule):
    """Bernoulli(sigmoid(raw))."""

    support = "values 0 or 1 (for grey levels in [0, 1], ContinuousBernoulli is a density)"

    def contains(self, x: Tensor) -> bool:
        return bool(((x == 0) | (x == 1)).all())

    def nearest(self, x: Tensor) -> Tensor:
        return (x > 0.5).to(x.dtype)

    def mean(self, raw: Raw) -> Features:
        return torch.sigmoid(raw)

    def linear_features(self) -> LinearFeatures | None:
        return NONE

    def fit_constant_(self, x: Shared, weight: OfSample, present: SharedPresent = None) -> Constant:
        return weighted_means(x, weight, present, extra=1.0).clamp(LEAST, 1 - LEAST).logit()

    def log_density(self, raw: Raw, x: Sample) -> Features:
        return -F.binary_cross_entropy_with_logits(raw, x.expand_as(raw), reduction="none")

    def score(self, raw: Raw, x: Sample) -> Raw:
        return x - self.mean(raw)

    def log_prob_and_score(self, raw: Raw, x: Sample, score: Raw) -> Float[Tensor, "group batch"]:
        result = self.log_prob(raw, x)
        score.copy_(x - raw.sigmoid_())
        return result

    def sample(self, raw: Raw, generator: torch.Generator | None = None) -> Features:
        return torch.bernoulli(self.mean(raw), generator=generator)


class ContinuousBernoulliModule(LikelihoodModule):
    """ContinuousBernoulli(sigmoid(raw)) (Loaiza-Ganem & Cunningham 2019), in terms of the logit l = raw.

    On [0, 1] the density is exp(l x) / A(l) with A(l) = (exp(l) - 1) / l, and the mean is the derivative of log A.
    `torch.distributions` clamps the probability, in float32 at |l| = 16. Beyond that its density and mean are wrong and
    its gradient is zero.
    """

    NEAR = 0.5
    """For smaller |l|, series in powers of l / 2 replace the formulas, whose differences would cancel."""

    support = "values in [0, 1]"

    def contains(self, x: Tensor) -> bool:
        return in_unit_interval(x)

    def nearest(self, x: Tensor) -> Tensor:
        return x.clamp(0, 1)

    def mean(self, raw: Raw) -> Features:
        raw, is_near, half, size = self._split(raw)
        square = half.square()
        near = 0.5 + half * (1 / 6 - square * (1 / 90 - square * (1 / 945 - square * (1 / 9450 - square / 93555))))
        # The mean for -|l|; that for |l| is one minus it. Neither exp(-|l|) nor its gradient overflows.
        below = size.reciprocal() + torch.exp(-size) / torch.expm1(-size)
        return torch.where(is_near, near, torch.where(raw > 0, 1 - below, below))

    def log_density(self, raw: Raw, x: Sample) -> Features:
        raw, is_near, half, size = self._split(raw)
        square = half.square()
        fourth = 1 / 37800 - square / 467775
        series = square * (1 / 6 - square * (1 / 180 - square * (1 / 2835 - square * fourth)))  # log(A) - l / 2
        far = raw * (x - (raw > 0).to(raw.dtype)) - torch.log(-torch.expm1(-size) / size)
        return torch.where(is_near, raw * (x - 0.5) - series, far)

    def score(self, raw: Raw, x: Sample) -> Raw:
        return x - self.mean(raw)

    def sample(self, raw: Raw, generator: torch.Generator | None = None) -> Features:
        raw = raw.to(sum_dtype(raw))
        u = torch.rand(raw.shape, generator=generator, device=raw.device, dtype=raw.dtype)
        size = raw.abs().clamp_min(torch.finfo(raw.dtype).tiny ** 0.5)
        below = -torch.log1p(u * torch.expm1(-size)) / size  # the inverse of the cumulative distribution for -|l|
        return torch.where(raw > 0, 1 - below, below)

    def _split(self, raw: Raw) -> tuple[Raw, Tensor, Raw, Raw]:
        """l, whether it is near zero, l / 2 for the series, |l| for the formulas; the last two are always finite."""
        raw = raw.to(sum_dtype(raw))
        is_near = raw.abs() < self.NEAR
        return raw, is_near, torch.where(is_near, raw / 2, 0.0), torch.where(is_near, 1.0, raw.abs())

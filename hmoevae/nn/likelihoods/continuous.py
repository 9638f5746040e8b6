"""Likelihoods of numbers: Gaussian and log-normal.

Axes: as in `module.py`.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hmoevae.errors import SpecError, mismatch
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
    weighted_means,
)
from hmoevae.nn.likelihoods.unit import in_unit_interval
from hmoevae.nn.posteriors import NONE, LinearFeatures

HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)
FIRST_SCALE = 0.5
"""The initial value of a learned scale: the default scale of `Gaussian`."""
LEAST_ABOVE = 1e-3
"""Part of its floor by which a scale that is set exceeds the floor, because scales are stored as what exceeds it."""
LARGEST_LOG = 80.0
"""Bound of the size of a log-normal's logarithms, whose exponential is finite and not zero in float32."""


class GaussianModule(LikelihoodModule):
    """N(link(raw), scale^2), where the link is a sigmoid or the identity."""

    def __init__(self, scale: float, *, sigmoid: bool) -> None:
        super().__init__()
        self.scale = scale
        self.score_unit = 1 / scale**2
        self.sigmoid = sigmoid
        self.support = "values in [0, 1] (for others, Gaussian(mean='identity'))" if sigmoid else "finite values"

    def contains(self, x: Tensor) -> bool:
        return in_unit_interval(x) if self.sigmoid else True

    def nearest(self, x: Tensor) -> Tensor:
        return x.clamp(0, 1) if self.sigmoid else x

    def mean(self, raw: Raw) -> Features:
        return torch.sigmoid(raw) if self.sigmoid else raw

    def log_density(self, raw: Raw, x: Sample) -> Features:
        standardised = (x - self.mean(raw)) / self.scale
        return -0.5 * standardised.square() - (math.log(self.scale) + HALF_LOG_2_PI)

    def log_prob(self, raw: Raw, x: Sample, present: Present | None = None) -> Float[Tensor, "group batch"]:
        if present is not None:
            return super().log_prob(raw, x, present)
        mean = self.mean(raw.to(sum_dtype(raw)))
        # mse_loss computes the squared difference in one pass over the widest tensor of a training step.
        squared = F.mse_loss(mean, x.expand_as(mean), reduction="none").sum(1)
        return self._log_density(squared, raw.shape[1])

    def score(self, raw: Raw, x: Sample) -> Raw:
        mean = self.mean(raw)
        apart = (x - mean) * self.score_unit
        return apart * mean * (1 - mean) if self.sigmoid else apart

    def log_prob_and_score(self, raw: Raw, x: Sample, score: Raw) -> Float[Tensor, "group batch"]:
        mean = raw.sigmoid_() if self.sigmoid else raw
        wide = score if score.dtype == raw.dtype else torch.empty_like(raw)
        apart = torch.sub(x, mean, out=wide)
        squared = torch.linalg.vector_norm(apart.mT, dim=2).square_()  # readouts are batch-first: dim 2 is contiguous
        if self.sigmoid:
            torch.ops.aten.sigmoid_backward.grad_input(apart, mean, grad_input=wide)
        if wide is not score:
            score.copy_(wide)
        return self._log_density(squared, raw.shape[1])

    def linear_features(self) -> LinearFeatures | None:
        return None if self.sigmoid else LinearFeatures(self.scale)

    def sample(self, raw: Raw, generator: torch.Generator | None = None) -> Features:
        mean = self.mean(raw)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + self.scale * noise

    def _log_density(self, squared: Float[Tensor, "group batch"], n_features: int) -> Float[Tensor, "group batch"]:
        """From the squared distances between samples and means."""
        return squared * (-0.5 / self.scale**2) - n_features * (math.log(self.scale) + HALF_LOG_2_PI)


class LearnedGaussianModule(LikelihoodModule):
    """N(link(raw), scale^2) with one learned scale per expert and feature.

    Args:
        n_experts: Number of experts.
        n_features: Number of entries of a sample.
        floor: The lower bound of the scales, in the units of the data. They start at 0.5, or at twice the floor if that
            is more.
        sigmoid: Whether the link is a sigmoid; otherwise it is the identity.
    """

    log_scale: Float[nn.Parameter, "group feature"]
    floor: Float[Tensor, "group feature"]

    def __init__(self, n_experts: int, n_features: int, floor: float | tuple[float, ...], *, sigmoid: bool) -> None:
        super().__init__()
        self.fixed = GaussianModule(1.0, sigmoid=sigmoid)
        self.support = self.fixed.support
        if isinstance(floor, tuple) and len(floor) != n_features:
            expected = f"a number, or one for each of the {n_features} entries of a sample"
            raise SpecError(mismatch("likelihood.floor", expected, f"{len(floor)} numbers"))
        floors = torch.tensor(floor, dtype=torch.get_default_dtype()).expand(n_experts, n_features).clone()
        self.register_buffer("floor", floors, persistent=False)
        self.log_scale = nn.Parameter((torch.maximum(2 * floors, torch.tensor(FIRST_SCALE)) - floors).log())

    @property
    def scale(self) -> Float[Tensor, "group feature 1"]:
        """The standard deviations. With their floor f, no feature's density exceeds 1 / (f sqrt(2 pi))."""
        dtype = sum_dtype(self.log_scale)
        return (self.floor.to(dtype) + self.log_scale.to(dtype).exp()).unsqueeze(2)

    @torch.no_grad()
    def set_scale_(self, scale: Float[Tensor, "group feature"]) -> None:
        """Set the standard deviations; those below the floor become just more than it."""
        self.log_scale.copy_(torch.maximum(scale - self.floor, LEAST_ABOVE * self.floor).log())

    def linear_floor(self) -> Float[Tensor, "group linear"]:
        return super().linear_floor() if self.fixed.sigmoid else self.floor

    def set_linear_scale_(self, scale: Float[Tensor, "group linear"]) -> None:
        if self.fixed.sigmoid:
            super().set_linear_scale_(scale)
        self.set_scale_(scale)

    def fit_constant_(self, x: Shared, weight: OfSample, present: SharedPresent = None) -> Constant:
        if self.fixed.sigmoid:
            return super().fit_constant_(x, weight, present)
        mean = weighted_means(x, weight, present)
        self.set_scale_((weighted_means(x.square(), weight, present) - mean.square()).clamp_min(0).sqrt())
        return mean

    def contains(self, x: Tensor) -> bool:
        return self.fixed.contains(x)

    def nearest(self, x: Tensor) -> Tensor:
        return self.fixed.nearest(x)

    def mean(self, raw: Raw) -> Features:
        return self.fixed.mean(raw)

    def log_density(self, raw: Raw, x: Sample) -> Features:
        scale = self.scale
        return -0.5 * ((x - self.mean(raw)) / scale).square() - (scale.log() + HALF_LOG_2_PI)

    def linear_features(self) -> LinearFeatures | None:
        return None if self.fixed.sigmoid else LinearFeatures(self.scale)

    def sample(self, raw: Raw, generator: torch.Generator | None = None) -> Features:
        mean = self.mean(raw)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + self.scale.to(mean.dtype) * noise


class LogNormalModule(LikelihoodModule):
    """The logarithm of x is N(raw, scale^2).

    Args:
        of_log: The likelihood of the logarithms.
    """

    support = "values > 0"
    example = 1.0

    def __init__(self, of_log: GaussianModule | LearnedGaussianModule) -> None:
        super().__init__()
        self.of_log = of_log
        self.score_unit = of_log.score_unit

    def contains(self, x: Tensor) -> bool:
        return bool((x > 0).all())

    def shown(self, x: Sample, present: Present | None = None) -> Tensor:
        return super().shown(x.clamp_min(torch.finfo(x.dtype).tiny).log(), present)

    def linear_features(self) -> LinearFeatures | None:
        return NONE

    def fit_constant_(self, x: Shared, weight: OfSample, present: SharedPresent = None) -> Constant:
        return self.of_log.fit_constant_(x.log(), weight, present)

    def log_density(self, raw: Raw, x: Sample) -> Features:
        log_x = x.to(sum_dtype(x)).log()
        return self.of_log.log_density(raw, log_x) - log_x

    def score(self, raw: Raw, x: Sample) -> Raw | None:
        return self.of_log.score(raw, x.log())

    def mean(self, raw: Raw) -> Features:
        raw = raw.to(sum_dtype(raw))
        return (raw + 0.5 * self.of_log.scale**2).clamp(-LARGEST_LOG, LARGEST_LOG).exp()

    def sample(self, raw: Raw, generator: torch.Generator | None = None) -> Features:
        return self.of_log.sample(raw, generator).clamp(-LARGEST_LOG, LARGEST_LOG).exp()

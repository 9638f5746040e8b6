"""Likelihoods p(x|z): log-density, mean and draws, from a decoder's raw outputs.

Axes: `group` counts experts, `raw` the outputs of a decoder, `feature` the entries of a sample; `batch` is last. All
log-densities are in nats, summed over the observed features, with their constants, and computed in the precision of the
raw outputs or in float32, whichever is higher.
"""

import functools
import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hmoevae.errors import SpecError, mismatch
from hmoevae.nn.kernels.precision import sum_dtype
from hmoevae.spec import Bernoulli, ContinuousBernoulli, Gaussian, Likelihood

Raw = Float[Tensor, "group raw batch"]
Features = Float[Tensor, "group feature batch"]
Sample = Float[Tensor, "feature batch"] | Float[Tensor, "group feature batch"]
Present = Bool[Tensor, "feature batch"] | Bool[Tensor, "group feature batch"]
HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)
FIRST_SCALE = 0.5
"""The initial value of a learned scale: the default scale of `Gaussian`."""
LEAST_SCALE = 1e-3
"""The lower bound of a learned scale, in the units of the data."""


class LikelihoodModule(nn.Module, ABC):
    """The computation of a likelihood, for all experts of a group side by side.

    A likelihood of your own defines `log_density`, `mean`, `sample`, `contains` and `support`. It may have parameters
    and buffers, with the group axis first. Its record (`hmoevae.Likelihood`) makes it.

    Attributes:
        outputs: Number of outputs that a decoder has per feature. `raw` holds the first output of all features, then
            the second output of all features, and so on.
        support: The values that data may take, in words.
        example: A value in the support.

    >>> module = likelihood_module(Gaussian(scale=1.0, mean="identity"), 1, n_features=2)
    >>> isinstance(module, LikelihoodModule), module.support, module.contains(torch.tensor([3.0]))
    (True, 'finite values', True)
    >>> likelihood_module(ContinuousBernoulli(), 1, 3).nearest(torch.tensor([-1.0, 0.5, 1.25]))
    tensor([0.0000, 0.5000, 1.0000])
    >>> raw, x = torch.zeros(1, 2, 1), torch.tensor([[1.0], [torch.nan]])
    >>> module.log_prob(raw, x, torch.tensor([[True], [False]])) == module.log_density(raw, x)[:, 0]
    tensor([[True]])

    What a decoder returns, and what networks see of a sample:

    >>> module.raw_shape((2,)), module.shown_shape((2,)), module.shown(x, x.isfinite()).flatten()
    ((2,), (2,), tensor([1., 0.]))

    The gradient where it is known, and a draw:

    >>> score = torch.empty_like(raw)
    >>> module.score(raw, torch.ones(2, 1)).flatten(), module.log_prob_and_score(raw, torch.ones(2, 1), score).shape
    (tensor([1., 1.]), torch.Size([1, 1]))
    >>> module.mean(raw).shape, module.sample(raw, torch.Generator().manual_seed(0)).shape
    (torch.Size([1, 2, 1]), torch.Size([1, 2, 1]))
    """

    outputs: int = 1
    support: str
    example: float = 0.0
    score_unit: float = 1.0
    """`log_prob_and_score` divides the score by this. The caller multiplies a narrow tensor by it instead."""

    @abstractmethod
    def contains(self, x: Tensor) -> bool:
        """Whether every entry of the finite tensor `x` lies in the support."""

    def nearest(self, x: Tensor) -> Tensor:
        """The value of the support nearest to every entry of `x`, which undoes rounding at the support's bounds."""
        return x

    @abstractmethod
    def log_density(self, raw: Raw, x: Sample) -> Features:
        """The log-density of every feature; `x` may be shared by all groups."""

    def log_prob(self, raw: Raw, x: Sample, present: Present | None = None) -> Float[Tensor, "group batch"]:
        """The log-density log p(x|z), summed over the features.

        Args:
            raw: The decoders' outputs.
            x: Samples that all groups share, or samples of each group's own.
            present: Which features were observed, in the shape of `x`. The values of the others, such as NaN, are not
                read.
        """
        raw = raw.to(sum_dtype(raw))
        if present is None:
            return self.log_density(raw, x).sum(1)
        density = self.log_density(raw, torch.where(present, x, self.example))
        return torch.where(present, density, 0.0).sum(1)

    def raw_shape(self, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a decoder's outputs for one sample: `outputs` numbers per feature, along the first axis."""
        first, *others = sample_shape
        return (self.outputs * first, *others)

    def shown_shape(self, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what networks see of one sample."""
        return sample_shape

    def shown(self, x: Sample, present: Present | None = None) -> Tensor:
        """What networks see of samples, such as one-hot codes of categories or logarithms of counts.

        Args:
            x: Samples that all groups share, `(feature, batch)`, or of each group's own, `(group, feature, batch)`.
            present: Which features were observed, in the shape of `x`; of the others, networks see zeros.

        Returns:
            `(shown, batch)` or `(group, shown, batch)`, where `shown` is the size of `shown_shape`.
        """
        return x if present is None else torch.where(present, x, 0.0)

    def score(self, raw: Raw, x: Sample) -> Raw | None:  # noqa: ARG002
        """The gradient of the log-density with respect to `raw`; `None` where only autograd knows it."""
        return None

    def log_prob_and_score(self, raw: Raw, x: Sample, score: Raw) -> Float[Tensor, "group batch"]:
        """The log-density. Its gradient with respect to `raw`, divided by `score_unit`, is written to `score`.

        This runs outside autograd. `raw` has float32 or a higher precision and may be overwritten; `score` may have a
        lower precision.
        """
        slope = self.score(raw, x)
        if slope is None:
            with torch.enable_grad():
                raw = raw.detach().requires_grad_()
                result = self.log_prob(raw, x)
                (slope,) = torch.autograd.grad(result.sum(), raw)
            result = result.detach()
        else:
            result = self.log_prob(raw, x)
        torch.div(slope, self.score_unit, out=score)
        return result

    @abstractmethod
    def mean(self, raw: Raw) -> Features:
        """E[x|z]."""

    @abstractmethod
    def sample(self, raw: Raw, generator: torch.Generator | None = None) -> Features:
        """A draw from p(x|z)."""


def in_unit_interval(x: Tensor) -> bool:
    """Whether every entry of the finite tensor `x` lies in [0, 1]."""
    low, high = torch.aminmax(x)
    return bool((low >= 0) & (high <= 1))


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
        sigmoid: Whether the link is a sigmoid; otherwise it is the identity.
    """

    log_scale: Float[nn.Parameter, "group feature"]

    def __init__(self, n_experts: int, n_features: int, *, sigmoid: bool) -> None:
        super().__init__()
        self.fixed = GaussianModule(1.0, sigmoid=sigmoid)
        self.support = self.fixed.support
        self.log_scale = nn.Parameter(torch.full((n_experts, n_features), math.log(FIRST_SCALE - LEAST_SCALE)))

    @property
    def scale(self) -> Float[Tensor, "group feature 1"]:
        """The standard deviations. Their floor keeps the density of a constant feature finite."""
        return (LEAST_SCALE + self.log_scale.to(sum_dtype(self.log_scale)).exp()).unsqueeze(2)

    def contains(self, x: Tensor) -> bool:
        return self.fixed.contains(x)

    def nearest(self, x: Tensor) -> Tensor:
        return self.fixed.nearest(x)

    def mean(self, raw: Raw) -> Features:
        return self.fixed.mean(raw)

    def log_density(self, raw: Raw, x: Sample) -> Features:
        scale = self.scale
        return -0.5 * ((x - self.mean(raw)) / scale).square() - (scale.log() + HALF_LOG_2_PI)

    def sample(self, raw: Raw, generator: torch.Generator | None = None) -> Features:
        mean = self.mean(raw)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + self.scale.to(mean.dtype) * noise


class BernoulliModule(LikelihoodModule):
    """Bernoulli(sigmoid(raw))."""

    support = "values 0 or 1 (for grey levels in [0, 1], ContinuousBernoulli is a density)"

    def contains(self, x: Tensor) -> bool:
        return bool(((x == 0) | (x == 1)).all())

    def nearest(self, x: Tensor) -> Tensor:
        return (x > 0.5).to(x.dtype)

    def mean(self, raw: Raw) -> Features:
        return torch.sigmoid(raw)

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


def likelihood_module(record: Likelihood, n_experts: int, n_features: int) -> LikelihoodModule:
    """Make the module that computes a likelihood.

    Args:
        record: The record of the likelihood.
        n_experts: Number of experts of the group.
        n_features: Number of entries of a sample.

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
        return LearnedGaussianModule(n_experts, n_features, sigmoid=sigmoid)
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

"""The base class of likelihoods p(x|z): log-density, mean and draws, from a decoder's raw outputs.

Axes: `group` counts experts, `raw` the outputs of a decoder, `feature` the entries of a sample; `batch` is last. All
log-densities are in nats, summed over the observed features, with their constants, and computed in the precision of the
raw outputs or in float32, whichever is higher.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hmoevae.errors import ArgumentError, mismatch
from hmoevae.nn.kernels.precision import sum_dtype
from hmoevae.nn.posteriors import LinearFeatures

Raw = Float[Tensor, "group raw batch"]
Features = Float[Tensor, "group feature batch"]
Sample = Float[Tensor, "feature batch"] | Float[Tensor, "group feature batch"]
Present = Bool[Tensor, "feature batch"] | Bool[Tensor, "group feature batch"]
Shared = Float[Tensor, "feature batch"]
"""Samples that all groups share, and which of their features were observed."""
SharedPresent = Bool[Tensor, "feature batch"] | None
OfSample = Float[Tensor, "group batch"]
Constant = Float[Tensor, "group raw"]
BATCH_SIZE = 1024
"""Samples computed at a time where outputs do not depend on them."""


class LikelihoodModule(nn.Module, ABC):
    """The computation of a likelihood, for all experts of a group side by side.

    A likelihood of your own defines `log_density`, `mean`, `sample`, `contains` and `support`. It may have parameters
    and buffers, with the group axis first. Its record (`hmoevae.Likelihood`) makes it.

    Attributes:
        outputs: Number of outputs that a decoder has per feature. `raw` holds the first output of all features, then
            the second output of all features, and so on. Where features differ in it, `raw_shape` says how many.
        support: The values that data may take, in words.
        example: A value in the support.

    >>> from hmoevae.nn.likelihoods import likelihood_module
    >>> from hmoevae.spec import ContinuousBernoulli, Gaussian
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
    >>> module.linear_features() == LinearFeatures(scale=1.0)
    True
    >>> bool((module.from_statistics(module.statistics(raw)) == module.mean(raw)).all())
    True
    >>> module.refused(torch.ones(1, 2))
    ('finite values', Ellipsis)
    """

    outputs: int = 1
    n_statistics: int = 1
    """Number of `statistics` per feature."""
    support: str
    example: float = 0.0
    score_unit: float = 1.0
    """`log_prob_and_score` divides the score by this. The caller multiplies a narrow tensor by it instead."""

    @abstractmethod
    def contains(self, x: Tensor) -> bool:
        """Whether every entry of the finite tensor `x`, `(batch, *sample_shape)`, lies in the support."""

    def refused(self, x: Tensor) -> tuple[str, Any]:  # noqa: ARG002
        """What is said of samples `x` that `contains` refuses: the support in words, and the index of such entries."""
        return self.support, ...

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

    def log_prob_constant(self, raw: Constant, x: Shared, present: SharedPresent = None) -> OfSample:
        """`log_prob` of outputs that do not depend on z, which are the same for all samples.

        Args:
            raw: The outputs of every expert.
            x: Samples.
            present: Which features were observed.

        >>> from hmoevae.nn.likelihoods import likelihood_module
        >>> from hmoevae.spec import NegativeBinomial
        >>> words = likelihood_module(NegativeBinomial(total=4), 2, n_features=3)
        >>> raw, x = torch.randn(2, 3), torch.tensor([[0.0, 5.0], [3.0, 0.0], [1.0, 0.0]])
        >>> one_by_one = words.log_prob(raw.unsqueeze(2).expand(-1, -1, 2), x)
        >>> words.log_prob_constant(raw, x).allclose(one_by_one, rtol=1e-4)
        True
        """
        whole = torch.compiler.is_compiling() or x.shape[1] <= BATCH_SIZE
        parts = [(x, present)] if whole else pieces(x, present)
        found = [self.log_prob(raw.unsqueeze(2).expand(-1, -1, part.shape[1]), part, seen) for part, seen in parts]
        return torch.cat(found, 1)

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

    def fit_constant_(self, x: Shared, weight: OfSample, present: SharedPresent = None) -> Constant:  # noqa: ARG002
        """Fit outcomes that do not depend on z, in closed form, as `hmoevae.fit_em` does for all but linear features.

        Args:
            x: Samples.
            weight: The weight of every sample for every expert.
            present: Which features were observed.

        Returns:
            The raw outputs of every expert. Parameters of the module, such as scales, are set.

        Raises:
            ArgumentError: There is no closed form.

        >>> from hmoevae.nn.likelihoods import likelihood_module
        >>> from hmoevae.spec import Poisson
        >>> eggs = likelihood_module(Poisson(), 1, n_features=1)
        >>> raw = eggs.fit_constant_(torch.tensor([[1.0, 3.0, 2.0]]), torch.ones(1, 3))
        >>> eggs.mean(raw.unsqueeze(2)).flatten()
        tensor([2.])
        """
        raise _no_closed_form(self, "one with a closed form for fit_em (hmoevae.fit trains all)")

    def linear_floor(self) -> Float[Tensor, "group linear"]:
        """The least scales of the linear features, for `hmoevae.fit_em`.

        Raises:
            ArgumentError: Their scales are not learned.

        >>> from hmoevae.nn.likelihoods import likelihood_module
        >>> from hmoevae.spec import Gaussian
        >>> likelihood_module(Gaussian("learned", "identity", floor=0.25), 1, n_features=1).linear_floor()
        tensor([[0.2500]])
        """
        raise _no_closed_form(self, "learned scales for fit_em")

    def set_linear_scale_(self, scale: Float[Tensor, "group linear"]) -> None:  # noqa: ARG002
        """Set the learned scales of the linear features; those below the floor end just above it.

        Args:
            scale: Standard deviations, as `linear_floor` has them.

        Raises:
            ArgumentError: They are not learned.

        >>> from hmoevae.nn.likelihoods import likelihood_module
        >>> from hmoevae.spec import Gaussian
        >>> module = likelihood_module(Gaussian("learned", "identity", floor=0.25), 1, n_features=2)
        >>> module.set_linear_scale_(torch.tensor([[0.75, 0.0]]))
        >>> [round(scale, 2) for scale in module.scale.flatten().tolist()]
        [0.75, 0.25]
        """
        raise _no_closed_form(self, "learned scales for fit_em")

    def linear_features(self) -> LinearFeatures | None:
        """The features with density N(raw, scale^2), of which linear decoders have exact posteriors; `None` if none."""
        return None

    @abstractmethod
    def mean(self, raw: Raw) -> Features:
        """E[x|z]; where a mean has no meaning, as of categories, the most probable value."""

    def statistics(self, raw: Raw) -> Float[Tensor, "group statistic batch"]:
        """Expectations given z, which may be averaged over several z: E[x|z], or the probabilities of categories."""
        return self.mean(raw)

    def from_statistics(self, statistics: Float[Tensor, "group statistic batch"]) -> Features:
        """The mean or the most probable value, as `mean` gives it, from averaged `statistics`."""
        return statistics

    @abstractmethod
    def sample(self, raw: Raw, generator: torch.Generator | None = None) -> Features:
        """A draw from p(x|z)."""


def pieces(x: Shared, present: SharedPresent) -> list[tuple[Tensor, Tensor | None]]:
    """Samples some at a time, which bounds the memory of what is computed for each expert and feature.

    >>> [len(part.T) for part, _ in pieces(torch.zeros(2, 2500), None)]
    [1024, 1024, 452]
    """
    parts = x.split(BATCH_SIZE, 1)
    seen = [None] * len(parts) if present is None else present.split(BATCH_SIZE, 1)
    return list(zip(parts, seen, strict=True))


def _no_closed_form(module: LikelihoodModule, expected: str) -> ArgumentError:
    return ArgumentError(mismatch("likelihood", expected, type(module).__name__))


def weighted_means(
    values: Float[Tensor, "value batch"],
    weight: Float[Tensor, "group batch"],
    present: Bool[Tensor, "value batch"] | None = None,
    *,
    extra: float = 0.0,
) -> Float[Tensor, "group value"]:
    """The weighted mean of observed values for every expert; of all samples, for an expert without a value.

    Args:
        values: Values of the samples.
        weight: The weight of every sample for every expert.
        present: Which values were observed.
        extra: Weight of the mean of all samples, which is added, so that an expert with values of one sort only does
            not find others impossible.

    >>> weighted_means(torch.tensor([[0.0, 1.0]]), torch.eye(2), extra=1.0)
    tensor([[0.2500],
            [0.7500]])
    """
    seen = torch.ones_like(values) if present is None else present.to(values.dtype)
    known = values if present is None else torch.where(present, values, 0.0)
    tiny = torch.finfo(values.dtype).tiny
    extra = max(extra, tiny**0.5)  # too little to be seen beside any weight
    sums, counts = weight @ known.T, weight @ seen.T
    overall = sums.sum(0) / counts.sum(0).clamp_min(tiny)
    return (sums + extra * overall) / (counts + extra)

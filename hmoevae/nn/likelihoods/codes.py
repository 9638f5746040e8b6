"""Likelihoods of codes 0, 1, ..., n - 1, which stand for categories or for grades.

Axes: as in `module.py`; `code` counts the codes.
"""

import itertools
import math
from abc import abstractmethod

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
    weighted_means,
)
from hmoevae.nn.posteriors import NONE, LinearFeatures

ByCode = Float[Tensor, "group code feature batch"]
LEAST_SHARE = 1e-6
"""The least probability of a code that `fit_constant_` sets, for codes without a sample."""
LARGEST_LOG_GAP = 20.0
"""Bound of the logarithm of a distance between two cut points, below which it differs from zero in float32."""


class CodesModule(LikelihoodModule):
    """What categories and grades share; they differ in the probabilities of the codes.

    Args:
        n: Number of codes.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.n_statistics = n
        self.support = f"codes 0 to {n - 1}"

    @abstractmethod
    def log_probabilities(self, raw: Raw) -> ByCode:
        """The log-probability of every code, in the precision of sums."""

    def contains(self, x: Tensor) -> bool:
        return bool(((x >= 0) & (x <= self.n - 1) & (x == x.floor())).all())

    def nearest(self, x: Tensor) -> Tensor:
        return x.round().clamp(0, self.n - 1)

    def linear_features(self) -> LinearFeatures | None:
        return NONE

    def log_density(self, raw: Raw, x: Sample) -> Features:
        by_code = self.log_probabilities(raw)
        code = x.long().unsqueeze(-3).expand(len(by_code), 1, *x.shape[-2:])
        return by_code.gather(1, code).squeeze(1)

    def mean(self, raw: Raw) -> Features:
        return self.log_probabilities(raw).argmax(1).to(raw.dtype)

    def statistics(self, raw: Raw) -> Float[Tensor, "group statistic batch"]:
        return self.log_probabilities(raw).exp().flatten(1, 2)

    def from_statistics(self, statistics: Float[Tensor, "group statistic batch"]) -> Features:
        return statistics.unflatten(1, (self.n, -1)).argmax(1).to(statistics.dtype)

    def sample(self, raw: Raw, generator: torch.Generator | None = None) -> Features:
        below = self.log_probabilities(raw).exp().cumsum(1)[:, :-1]
        u = torch.rand(below[:, :1].shape, generator=generator, device=below.device, dtype=below.dtype)
        return (u > below).sum(1).to(raw.dtype)


class CategoricalModule(CodesModule):
    """Categorical(softmax(raw)): one logit per code; networks see one-hot codes."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.outputs = n

    def shown_shape(self, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
        first, *others = sample_shape
        return (self.n * first, *others)

    def shown(self, x: Sample, present: Present | None = None) -> Tensor:
        codes = torch.arange(self.n, device=x.device).view(-1, 1, 1)
        hot = x.unsqueeze(-3) == codes
        if present is not None:
            hot = hot & present.unsqueeze(-3)
        return hot.to(x.dtype).flatten(-3, -2)

    def log_probabilities(self, raw: Raw) -> ByCode:
        return raw.to(sum_dtype(raw)).unflatten(1, (self.n, -1)).log_softmax(1)

    def fit_constant_(self, x: Shared, weight: OfSample, present: SharedPresent = None) -> Constant:
        repeated = None if present is None else present.repeat(self.n, 1)
        shares = weighted_means(self.shown(x, present), weight, repeated, extra=1.0)
        return shares.clamp_min(LEAST_SHARE).log()

    def score(self, raw: Raw, x: Sample) -> Raw:
        return self.shown(x).to(raw.dtype) - self.statistics(raw)


class OrdinalModule(CodesModule):
    """The cumulative logit model: p(x <= k | z) = sigmoid(c_k - raw) (McCullagh 1980).

    The cut points c_0 < c_1 < ... are learned. They start where all codes are equally probable for raw = 0. Networks
    see codes as numbers from -1 to 1.

    Args:
        n_experts: Number of experts.
        n_features: Number of entries of a sample.
        n: Number of codes.
    """

    cuts: Float[nn.Parameter, "group cut feature"]
    """The first cut point, then the logarithms of the distances between neighbours."""

    def __init__(self, n_experts: int, n_features: int, n: int) -> None:
        super().__init__(n)
        even = [math.log(k / (n - k)) for k in range(1, n)]
        gaps = [math.log(above - below) for below, above in itertools.pairwise(even)]
        start = torch.tensor([even[0], *gaps]).view(1, -1, 1)
        self.cuts = nn.Parameter(start.repeat(n_experts, 1, n_features))

    def shown(self, x: Sample, present: Present | None = None) -> Tensor:
        return super().shown(2 / (self.n - 1) * x - 1, present)

    @torch.no_grad()
    def fit_constant_(self, x: Shared, weight: OfSample, present: SharedPresent = None) -> Constant:
        codes = torch.arange(self.n, device=x.device).view(-1, 1, 1)
        seen = torch.ones_like(x, dtype=torch.bool) if present is None else present
        hot = ((x == codes) & seen).to(x.dtype).flatten(0, 1)
        shares = weighted_means(hot, weight, seen.repeat(self.n, 1), extra=1.0).unflatten(1, (self.n, -1))
        below = shares.clamp_min(LEAST_SHARE).cumsum(1)
        cuts = (below[:, :-1] / below[:, -1:]).logit()
        self.cuts.copy_(torch.cat([cuts[:, :1], cuts.diff(dim=1).log()], 1))
        return cuts.new_zeros(len(weight), len(x))

    def log_probabilities(self, raw: Raw) -> ByCode:
        raw = raw.to(sum_dtype(raw)).unsqueeze(1)
        first, log_gaps = self.cuts.to(raw.dtype).unsqueeze(3).split([1, self.n - 2], 1)
        gaps = log_gaps.clamp(-LARGEST_LOG_GAP, LARGEST_LOG_GAP).exp()
        apart = torch.cat([first, gaps], 1).cumsum(1) - raw
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), which does not cancel for a far from zero
        not_above = F.pad(F.logsigmoid(apart), (0, 0, 0, 0, 0, 1))
        not_below = F.pad(F.logsigmoid(-apart), (0, 0, 0, 0, 1, 0))
        between = F.pad((-torch.expm1(-gaps)).log(), (0, 0, 0, 0, 1, 1))
        return not_above + not_below + between

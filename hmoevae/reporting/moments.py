"""Means, spreads and histograms of every feature at every node, from sums over the leaves.

Axes: `node` as in `hmoevae.plan`, `n` counts samples, `feature` the entries of a sample, `bin` the bars of a histogram.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Num

from hmoevae.plan import Plan
from hmoevae.reporting.material import Feature
from hmoevae.reporting.routed import Routed

BINS = 16
"""Bars of a histogram; of more categories, the rarer ones share the last bar."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """The number of observed cells, the mean and the standard deviation, on the scale on which features are compared.

    >>> Moments(np.array([[2.0]]), np.array([[1.0]]), np.array([[0.5]])).mean.shape
    (1, 1)
    """

    observed: Float[np.ndarray, "node feature"]
    mean: Float[np.ndarray, "node feature"]
    std: Float[np.ndarray, "node feature"]


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """The bars of a feature's histogram: edges for numbers, categories for categories.

    >>> bins_of(Feature("eggs", "count"), np.array([0.0, 1.0, 1.0, 2.0])).edges.tolist()
    [-0.5, 0.5, 1.5, 2.5]
    """

    edges: Float[np.ndarray, " edge"]
    categories: tuple[int, ...] = ()

    @property
    def n(self) -> int:
        """The number of bars.

        >>> Bins(np.array([0.0, 1.0, 2.0])).n
        2
        """
        return len(self.categories) if self.categories else len(self.edges) - 1

    def index(self, codes: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The bar of every code; what lies beyond the ends is in the first and the last one.

        >>> Bins(np.array([0.0, 1.0, 2.0])).index(np.array([-3.0, 1.5])).tolist()
        [0, 1]
        """
        if not self.categories:
            return np.clip(np.searchsorted(self.edges, codes, "right") - 1, 0, self.n - 1)
        place = np.full(max(int(codes.max(initial=0)), *self.categories) + 1, self.n - 1)
        place[list(self.categories)] = np.arange(self.n)
        return place[codes.astype(np.int64)]


def compared(features: tuple[Feature, ...], columns: Float[np.ndarray, "n feature"]) -> Float[np.ndarray, "n feature"]:
    """Codes on the scale on which they are compared: log(1 + x) of counts, whose spread grows with their mean.

    >>> compared((Feature("eggs", "count"),), np.array([[0.0]]))
    array([[0.]])
    """
    counts = [i for i, feature in enumerate(features) if feature.kind == "count"]
    if not counts:
        return columns
    values = columns.copy()
    values[:, counts] = np.log1p(values[:, counts])
    return values


def below(plan: Plan, by_leaf: Num[np.ndarray, "leaf *rest"]) -> Num[np.ndarray, "node *rest"]:
    """Sums over the leaves below every node.

    >>> import hmoevae as hm
    >>> below(hm.HMoEVAE(hm.Mixture.of(hm.VAE(2), 2), (4,)).plan, np.array([1.0, 2.0])).tolist()
    [3.0, 1.0, 2.0]
    """
    sums = np.concatenate([np.zeros_like(by_leaf[:1]), by_leaf.cumsum(0)])
    start, stop = (np.array([getattr(node.leaves, end) for node in plan.nodes]) for end in ("start", "stop"))
    return sums[stop] - sums[start]


def moments(plan: Plan, routed: Routed, values: Float[np.ndarray, "n feature"]) -> Moments:
    """The moments of every feature at every node; of a node without an observed cell, NaN.

    Args:
        plan: The plan.
        routed: Where the samples go.
        values: The result of `compared`.

    >>> import hmoevae as hm, torch
    >>> from hmoevae.reporting.routed import route
    >>> model, x = hm.HMoEVAE(hm.VAE(2), (4,)), torch.rand(9, 4)
    >>> bool(np.allclose(moments(model.plan, route(model, x), x.numpy()).mean[0], x.mean(0)))
    True
    """
    sums = np.zeros((3, plan.n_leaves, values.shape[1]))
    some = values[:1000]  # sums of squares about a point near the mean lose fewer digits
    centre = np.nan_to_num(some).sum(0) / np.maximum((~np.isnan(some)).sum(0), 1)
    for leaf in range(plan.n_leaves):
        own = values[routed.order[routed.start[leaf] : routed.start[leaf + 1]]]
        known = ~np.isnan(own)
        shifted = np.where(known, own - centre, 0.0)
        sums[:, leaf] = known.sum(0), shifted.sum(0, dtype=np.float64), np.square(shifted).sum(0, dtype=np.float64)
    observed, total, squares = (below(plan, part) for part in sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / observed
        std = np.sqrt(np.maximum(squares / observed - mean**2, 0.0))
    return Moments(observed, mean + centre, std)


def bins_of(feature: Feature, codes: Float[np.ndarray, " n"]) -> Bins:
    """The bars of a feature: one for each category or small count, else of equal width between the outer half percents.

    Args:
        feature: The feature.
        codes: Its codes, NaN for gaps.

    >>> bins_of(Feature("island", "category", categories=("Biscoe", "Dream")), np.array([1.0, 1.0])).categories
    (0, 1)
    """
    known = codes[~np.isnan(codes)]
    if feature.kind == "category":
        counts = np.bincount(known.astype(np.int64), minlength=len(feature.categories))
        return Bins(np.empty(0), tuple(sorted(np.argsort(-counts, kind="stable")[:BINS].tolist())))
    if len(known) == 0:
        return Bins(np.array([-0.5, 0.5]))
    if feature.kind == "count":
        most = max(1.0, float(np.quantile(known, 0.995, method="higher")))
        if most < BINS:
            return Bins(np.arange(-0.5, most + 1))
        return Bins(np.unique(np.round(np.expm1(np.linspace(0, np.log1p(most), BINS + 1)))) - 0.5)
    low, high = np.quantile(known, [0.005, 0.995])
    if low == high:
        low, high = low - 0.5, high + 0.5
    return Bins(np.linspace(low, high, BINS + 1))


def histogram(plan: Plan, routed: Routed, bins: Bins, codes: Float[np.ndarray, " n"]) -> Int[np.ndarray, "node bin"]:
    """The number of samples of every node in every bar.

    Args:
        plan: The plan.
        routed: Where the samples go.
        bins: The bars.
        codes: The feature's codes, NaN for gaps.

    >>> import hmoevae as hm, torch
    >>> from hmoevae.reporting.routed import route
    >>> model, x = hm.HMoEVAE(hm.VAE(2), (1,)), torch.tensor([[0.0], [0.5], [1.5]])
    >>> histogram(model.plan, route(model, x), Bins(np.array([0.0, 1.0, 2.0])), x[:, 0].numpy()).tolist()
    [[2, 1]]
    """
    known = ~np.isnan(codes)
    cell = routed.leaf[known] * bins.n + bins.index(codes[known])
    by_leaf = np.bincount(cell, minlength=plan.n_leaves * bins.n).reshape(plan.n_leaves, bins.n)
    return below(plan, by_leaf)

"""Honest tests of what tells siblings apart, although the gates have looked at the features that are tested.

A gate splits samples by their features, so siblings differ in them by construction: a permutation test of a feature
against the leaves that were chosen with its help finds everything significant, on held-out samples too. Two tests do
not have this fault.

`without` asks whether the siblings would differ in a feature if the gates had not seen it. The feature's values are
swapped among samples, the tree routes the changed samples, and the true values are permuted against where these go.
Under the null hypothesis, the feature is independent of all others, so that true values and ways are independent
whatever the gates do; on held-out samples the test is exact. Images swap patches, wide tables groups of columns. The
permutation distributions of all features of a mixture, each divided by its standard deviation, are pooled (as in
Tusher, Tibshirani & Chu 2001), so that a few hundred permutations resolve small p-values.

`gap` asks whether a feature that no other one goes with has two modes, and the siblings are on its two sides. Under the
null hypothesis its density has one mode. Then of three intervals of one width, the middle one has at least the
probability of one of its neighbours. The intervals are chosen on one half of the samples, and a binomial test counts
the other half in them.

The p-value of a feature is twice the smaller one. Benjamini & Hochberg (1995) hold the rate of false discoveries.

Axes: `n` counts samples, `feature` the entries of a sample, `draw` permutations, `child` the children of a mixture.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from hmoevae.model import HMoEVAE
from hmoevae.plan import PlannedNode
from hmoevae.reporting.material import Feature, Material
from hmoevae.reporting.moments import compared
from hmoevae.reporting.routed import Routed, leaf_of

MOST_SAMPLES, LEAST_SAMPLES = 4000, 500
"""Samples that are swapped and routed again, for every block of features."""
MOST_WORK = 80_000_000
"""Cells that gates read in this; where all leaves are computed for a gate, each of them reads every cell, twice."""
MOST_ALONE = 64
"""Features that are swapped one after the other; of more, `N_BLOCKS` blocks are."""
N_BLOCKS = 36
"""Blocks of features: patches of six rows and six columns of images."""
LEAST_GROUP = 8
"""Least number of samples on either side of a test; with fewer there is none."""
MOST_CHILDREN = 32
"""Children of a mixture that are tested, the largest; a flat tree of a thousand leaves has a few samples for each."""
N_DRAWS = 199
"""Permutations. Each gives a value for every feature and child of a mixture, and these are pooled."""
LEAST_AGREEMENT = 0.5
"""Least correlation between the sides of a gap and the siblings."""


class Findings(NamedTuple):
    """The tests of a mixture.

    Attributes:
        children: The children that were tested, as indices of nodes.
        p: The p-value of every child and feature, before any correction; 1 where there is no test.
        q: The same, with the false discovery rate held over all of them.

    >>> Findings([1], np.ones((1, 2)), np.ones((1, 2))).q.shape
    (1, 2)
    """

    children: list[int]
    p: Float[np.ndarray, "child feature"]
    q: Float[np.ndarray, "child feature"]


def evidence(material: Material, routed: Routed, *, seed: int = 0) -> dict[int, Findings]:
    """Test every feature at every mixture: each child against its siblings.

    Args:
        material: The samples.
        routed: Where they go.
        seed: Of the samples that are tested, the swaps and the permutations.

    Returns:
        For every mixture, as an index of nodes, its tests.

    >>> import hmoevae as hm
    >>> from hmoevae.reporting.material import read
    >>> from hmoevae.reporting.routed import route
    >>> x = np.random.default_rng(0).normal(size=(200, 3)) + np.repeat([[0, 0, 0], [9, 9, 0]], 100, axis=0)
    >>> mixture = hm.VAEMixture(2, random_state=0).fit(x)
    >>> material = read(mixture.model_, x, labels=None, names=None, table=mixture.table_)
    >>> (evidence(material, route(mixture.model_, material.x))[0].q[0] <= 0.05).tolist()
    [True, True, False]
    """
    plan, columns = material.model.plan, material.columns
    mixtures = [node for node in plan.mixtures if len(node.child_edges) > 1]
    if not mixtures:
        return {}
    draw = np.random.default_rng(seed)
    values = compared(material.features, columns)
    chosen = np.sort(draw.permutation(len(columns))[: n_tested(material)])
    tasks = {node.index: _Task(node, _children(material.model, routed, node), columns.shape[1]) for node in mixtures}
    for block in _blocks(material):
        leaf = _leaf_without(material, chosen, block, draw)
        coded, owner = _coded([material.features[i] for i in block], values[chosen][:, block])
        for task in tasks.values():
            task.add(block, leaf, coded, owner, draw)
    plain = routed.leaf
    return {index: task.result(plain, columns, material.features, draw) for index, task in tasks.items()}


def n_tested(material: Material) -> int:
    """The number of samples that are swapped.

    >>> import hmoevae as hm
    >>> from hmoevae.reporting.material import read
    >>> model = hm.HMoEVAE(hm.VAE(latent_dim=2), input_shape=(4,))
    >>> n_tested(read(model, torch.rand(9, 4), labels=None, names=None, table=None))
    9
    """
    model, n_features = material.model, len(material.features)
    readers = 2 * model.plan.n_leaves if model.gates.have_posteriors else 1
    room = MOST_WORK // (min(n_features, MOST_ALONE) * n_features * readers)
    return min(len(material.x), max(LEAST_SAMPLES, min(MOST_SAMPLES, room)))


def _children(model: HMoEVAE, routed: Routed, node: PlannedNode) -> list[PlannedNode]:
    """The largest children of a mixture, in their order."""
    plan = model.plan
    children = [plan.nodes[plan.edge_child[edge]] for edge in node.child_edges]
    largest = sorted(children, key=lambda child: -len(routed.samples_of(child)))[:MOST_CHILDREN]
    return [child for child in children if child in largest]


def _blocks(material: Material) -> list[list[int]]:
    """Features that are swapped together: patches of images, otherwise every so manieth feature."""
    n = len(material.features)
    if n <= MOST_ALONE:
        return [[i] for i in range(n)]
    if material.kind != "images":
        return [list(range(i, n, N_BLOCKS)) for i in range(N_BLOCKS)]
    shape = material.model.input_shape
    height, width = shape[-2:]
    side = int(N_BLOCKS**0.5)
    rows = np.arange(height) * min(side, height) // height
    across = np.arange(width) * min(side, width) // width
    patch = np.broadcast_to(rows[:, None] * side + across, shape).ravel()
    return [np.flatnonzero(patch == i).tolist() for i in np.unique(patch)]


def _leaf_without(
    material: Material, chosen: Int[np.ndarray, " test"], block: Sequence[int], draw: np.random.Generator
) -> Int[np.ndarray, " test"]:
    """Where samples go whose features of a block are those of other samples."""
    flat = material.x.flatten(1)
    swapped = flat[chosen].clone()
    donors = torch.from_numpy(draw.permutation(len(flat))[: len(chosen)])
    swapped[:, block] = flat[donors][:, block]
    return leaf_of(material.model, swapped.unflatten(1, material.x.shape[1:]))


def _coded(
    features: Sequence[Feature], values: Float[np.ndarray, "n feature"]
) -> tuple[Float[np.ndarray, "n code"], Int[np.ndarray, " code"]]:
    """One column for each number, and one for each category; and the feature of each."""
    parts: list[np.ndarray] = []
    owner: list[int] = []
    for i, feature in enumerate(features):
        column = values[:, i]
        if feature.kind == "category":
            one_hot = (column[:, None] == np.arange(len(feature.categories))).astype(np.float32)
            one_hot[np.isnan(column)] = np.nan
            parts.append(one_hot)
        else:
            parts.append(column[:, None].astype(np.float32))
        owner += [i] * parts[-1].shape[1]
    return np.concatenate(parts, axis=1), np.array(owner)


@dataclass(slots=True, eq=False)
class _Task:
    """The tests of one mixture, block by block."""

    node: PlannedNode
    children: list[PlannedNode]
    found: Float[np.ndarray, "draw child feature"]
    """Standardised statistics, the true one first."""

    def __init__(self, node: PlannedNode, children: list[PlannedNode], n_features: int) -> None:
        self.node, self.children = node, children
        self.found = np.zeros((1 + N_DRAWS, len(children), n_features), np.float32)

    def add(
        self,
        block: Sequence[int],
        leaf: Int[np.ndarray, " test"],
        coded: Float[np.ndarray, "test code"],
        owner: Int[np.ndarray, " code"],
        draw: np.random.Generator,
    ) -> None:
        """The statistics of a block's features against where samples go without them."""
        here = (leaf >= self.node.leaves.start) & (leaf < self.node.leaves.stop)
        own = self._child_of(leaf[here])
        counts = np.bincount(own[own >= 0], minlength=len(self.children))
        usable = np.flatnonzero((counts >= LEAST_GROUP) & (len(own) - counts >= LEAST_GROUP))
        if len(usable) == 0:
            return
        orders = np.concatenate([own[None], draw.permuted(np.tile(own, (N_DRAWS, 1)), axis=1)])
        self.found[:, usable[:, None], np.array(block)] = _standardised(
            _statistics(orders, usable, coded[here], owner, len(block))
        )

    def _child_of(self, leaf: Int[np.ndarray, " own"]) -> Int[np.ndarray, " own"]:
        """The child that leaves lie below, as an index of those that are tested; -1 for the others."""
        found = np.full(len(leaf), -1)
        for i, child in enumerate(self.children):
            found[(leaf >= child.leaves.start) & (leaf < child.leaves.stop)] = i
        return found

    def result(
        self,
        leaf: Int[np.ndarray, " n"],
        columns: Float[np.ndarray, "n feature"],
        features: Sequence[Feature],
        draw: np.random.Generator,
    ) -> Findings:
        """P-values of both tests, and the rate of false discoveries."""
        from scipy.stats import false_discovery_control

        p = pooled(self.found[0], self.found[1:])
        if columns.shape[1] <= MOST_ALONE:  # of many features, one alone does not make a cluster
            here = np.flatnonzero((leaf >= self.node.leaves.start) & (leaf < self.node.leaves.stop))
            here = draw.permutation(here)[:MOST_SAMPLES]
            own = self._child_of(leaf[here])
            for j, feature in enumerate(features):
                if feature.kind != "category":
                    alone = gaps(columns[here, j], own, len(self.children), draw)
                    p[:, j] = np.minimum(1.0, 2 * np.minimum(p[:, j], alone))
        q = np.reshape(false_discovery_control(p.ravel()), p.shape)
        return Findings([child.index for child in self.children], p, q)


def _statistics(
    orders: Int[np.ndarray, "order n"],
    children: Int[np.ndarray, " child"],
    coded: Float[np.ndarray, "n code"],
    owner: Int[np.ndarray, " code"],
    n_features: int,
) -> Float[np.ndarray, "order child feature"]:
    """Absolute difference of means, or total variation, of each child against its siblings, for every order."""
    known = ~np.isnan(coded)
    filled = torch.from_numpy(np.where(known, coded, 0.0).astype(np.float32))
    complete = bool(known.all())
    seen = torch.from_numpy(known.astype(np.float32))
    ours = torch.from_numpy((orders[:, None] == children[:, None]).astype(np.float32)).flatten(0, 1)
    total, n_total = filled.sum(0), seen.sum(0)
    n_own = ours.sum(1, keepdim=True) if complete else ours @ seen
    sums = ours @ filled
    difference = (sums / n_own.clamp_min(1) - (total - sums) / (n_total - n_own).clamp_min(1)).abs()
    difference = difference.masked_fill((n_own < 1) | (n_total - n_own < 1), 0.0)
    by_feature = torch.zeros(len(difference), n_features).index_add_(1, torch.from_numpy(owner), difference)
    return by_feature.unflatten(0, (len(orders), len(children))).numpy()


def _standardised(found: Float[np.ndarray, "draw child feature"]) -> Float[np.ndarray, "draw child feature"]:
    """Divided by the root mean square under permutation; zero where nothing varies."""
    spread = np.sqrt(np.square(found[1:]).mean(0))
    return found / np.where(spread > 1e-6, spread, np.inf)


def pooled(
    true: Float[np.ndarray, "child feature"], drawn: Float[np.ndarray, "draw child feature"]
) -> Float[np.ndarray, "child feature"]:
    """The share of all permuted statistics, of every child and feature, that reach a true one.

    Args:
        true: Standardised statistics.
        drawn: The same under permutation; where none was computed, all are zero and do not count.

    >>> pooled(np.array([[3.0, 1.0]]), np.array([[[1.0, 2.0]], [[0.5, 0.1]]]))
    array([[0.2, 0.6]])
    """
    valid = drawn.any(0)
    null = np.sort(drawn[:, valid], axis=None)
    reached = len(null) - np.searchsorted(null, true * (1 - 1e-5), "left")  # ties count, in spite of rounding
    return np.where(valid, (1 + reached) / (1 + len(null)), 1.0)


def gaps(
    values: Float[np.ndarray, " n"], child: Int[np.ndarray, " n"], n_children: int, draw: np.random.Generator
) -> Float[np.ndarray, " child"]:
    """The p-values of a gap between each child and the siblings next to it, below and above.

    Args:
        values: The feature, NaN where it was not observed.
        child: The child of every sample; -1 for none that is tested.
        n_children: Number of children.
        draw: Source of the halves.

    >>> draw = np.random.default_rng(0)
    >>> child = np.arange(600) % 3
    >>> gaps(draw.normal(size=600) + 6 * child, child, 3, draw) < 1e-4
    array([ True,  True,  True])
    """
    known = ~np.isnan(values)
    values, child = values[known].astype(np.float64), child[known]
    own = [values[child == i] for i in range(n_children)]
    order = sorted((i for i in range(n_children) if len(own[i])), key=lambda i: float(np.median(own[i])))
    p = np.ones(n_children)
    for low, high in itertools.pairwise(order):
        between = gap(own[low], own[high], draw)
        for i in (low, high):
            p[i] = min(p[i], between * (1 if i in (order[0], order[-1]) else 2))  # who has two, has two chances
    return np.minimum(p, 1.0)


def gap(low: Float[np.ndarray, " low"], high: Float[np.ndarray, " high"], draw: np.random.Generator) -> float:
    """The p-value of the null hypothesis that two groups together have one mode; 1 where no gap divides the groups.

    Args:
        low: The values of the group with the smaller median.
        high: Those of the other.
        draw: Source of the halves.

    >>> draw = np.random.default_rng(0)
    >>> noise = draw.normal(size=400)
    >>> gap(noise[:200], noise[200:] + 6, draw) < 1e-6, gap(noise[:200], noise[200:], draw)
    (True, 1.0)
    >>> gap(noise[noise < 0], noise[noise >= 0], draw) > 0.05  # a cut, but no gap
    True
    """
    if min(len(low), len(high)) < 4 * LEAST_GROUP:
        return 1.0
    from scipy.stats import binom

    values = np.concatenate([low, high])
    is_high = np.arange(len(values)) >= len(low)
    values = values + draw.uniform(-0.5, 0.5, len(values)) * _step(values)  # rounded values have a mode each
    first = draw.permutation(len(values)) < len(values) // 2
    one, other = (float(np.median(values[first & own])) for own in (~is_high, is_high))
    width = (other - one) / 3
    if not width > 0:
        return 1.0

    def inside(start: float, half: Bool[np.ndarray, " n"]) -> int:
        return int(((values >= start) & (values < start + width) & half).sum())

    starts = one + width * np.linspace(0.5, 1.5, 11)
    counts = np.array([inside(start, first) for start in starts])
    start = float(np.mean(starts[counts == counts.min()]))
    if _correlation(values > start + width / 2, is_high) < LEAST_AGREEMENT:
        return 1.0
    between = inside(start, ~first)
    beside = (inside(one - width / 2, ~first), inside(other - width / 2, ~first))
    return float(max(binom.cdf(between, between + count, 0.5) for count in beside))


def _step(values: Float[np.ndarray, " n"]) -> float:
    """The usual distance between neighbouring values, where values repeat; zero where they hardly do."""
    distinct = np.unique(values)
    return float(np.median(np.diff(distinct))) if 1 < len(distinct) <= len(values) / 2 else 0.0


def _correlation(one: Bool[np.ndarray, " n"], other: Bool[np.ndarray, " n"]) -> float:
    """The correlation of two truth values; zero where one is constant."""
    if one.all() or other.all() or not (one.any() and other.any()):
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])

"""Which samples of a node are worth a look: typical, unsure and odd ones, and the nearest to new ones.

Axes: `n` counts samples, `own` those of a node, `shown` those that are chosen.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hmoevae.plan import Plan, PlannedNode
from hmoevae.reporting.material import Feature
from hmoevae.reporting.routed import Routed

SURE = 0.98
"""Of a sample whose node is so much more probable than the next one, the gates are sure."""


class Unsure(NamedTuple):
    """A sample between two nodes.

    Attributes:
        sample: Its index.
        own: The node that it goes to, as an index of nodes.
        probability: The probability of `own`.
        other: The next probable node.
        other_probability: Its probability.

    >>> Unsure(3, own=1, probability=0.5, other=2, other_probability=0.4).other
    2
    """

    sample: int
    own: int
    probability: float
    other: int
    other_probability: float


def typicality(
    routed: Routed, features: Sequence[Feature], values: Float[np.ndarray, "n feature"]
) -> Int[np.ndarray, " n"]:
    """The rank of every sample in its leaf, by its distance from the mean of the leaf's samples.

    The squared distance is the mean over the observed cells: squared differences of pixels, or of numbers in standard
    deviations; of a category, the share of the leaf's samples that have another one. Latents would not do: an encoder
    gives samples that it does not know latents near the prior's mean, as it does typical ones.

    Args:
        routed: The samples.
        features: What the features are.
        values: The features on the scale of comparison. Samples of which less than half was observed come last.

    >>> import hmoevae as hm
    >>> from hmoevae.reporting.routed import route
    >>> model, x = hm.HMoEVAE(hm.VAE(latent_dim=2), input_shape=(1,)), torch.tensor([[0.0], [1.0], [9.0]])
    >>> typicality(route(model, x), [Feature("x", "number")], x.numpy()).tolist()
    [1, 0, 2]
    """
    is_category = np.array([feature.kind == "category" for feature in features])
    distance = np.zeros(len(values))
    for leaf in range(len(routed.start) - 1):
        members = routed.order[routed.start[leaf] : routed.start[leaf + 1]]
        own = values[members]
        known = ~np.isnan(own)
        mean = np.where(known, own, 0.0).sum(0) / np.maximum(known.sum(0), 1)
        squared = np.where(known, np.square(own - mean), 0.0)
        for i in np.flatnonzero(is_category):
            codes, inverse, counts = np.unique(own[:, i], return_inverse=True, return_counts=True)
            squared[:, i] = np.where(known[:, i], 1 - counts[inverse] / len(own), 0.0) if len(codes) else 0.0
        n_known = known.sum(1)
        distance[members] = np.where(2 * n_known >= len(features), squared.sum(1) / np.maximum(n_known, 1), np.inf)
    by_leaf = np.lexsort((distance, routed.leaf))
    rank = np.empty(len(by_leaf), np.int64)
    rank[by_leaf] = np.arange(len(by_leaf)) - routed.start[routed.leaf[by_leaf]]
    return rank


def typical(routed: Routed, rank: Int[np.ndarray, " n"], node: PlannedNode, n: int) -> list[int]:
    """The most typical samples of a leaf; of a mixture, the leaves take turns, the largest first.

    Args:
        routed: The samples.
        rank: The result of `typicality`.
        node: The node.
        n: How many.

    >>> import hmoevae as hm
    >>> from hmoevae.reporting.routed import route
    >>> model = hm.HMoEVAE(hm.VAE(latent_dim=2), input_shape=(4,))
    >>> routed = route(model, torch.rand(9, 4))
    >>> typical(routed, np.arange(9)[::-1].copy(), model.plan.nodes[0], n=3)
    [8, 7, 6]
    """
    own = routed.samples_of(node)
    size = routed.counts()[routed.leaf[own]]
    return own[np.lexsort((own, -size, rank[own]))[:n]].tolist()


def odd(routed: Routed, node: PlannedNode, n: int) -> list[int]:
    """The samples of a node with the lowest density.

    Args:
        routed: The samples.
        node: The node.
        n: How many.

    >>> import hmoevae as hm
    >>> from hmoevae.reporting.routed import route
    >>> model = hm.HMoEVAE(hm.VAE(latent_dim=2), input_shape=(4,))
    >>> routed = route(model, torch.rand(9, 4))
    >>> odd(routed, model.plan.nodes[0], n=1) == [int(routed.bound.argmin())]
    True
    """
    own = routed.samples_of(node)
    return own[np.argsort(routed.bound[own], kind="stable")[:n]].tolist()


def unsure(routed: Routed, plan: Plan, node: PlannedNode, n: int) -> list[Unsure]:
    """The samples of a node of which the gates are least sure; none of which they are sure.

    Of a mixture, these are samples between two of its children; of a leaf, between the leaf and any other one.

    Args:
        routed: The samples.
        plan: The plan.
        node: The node.
        n: How many.

    >>> import hmoevae as hm
    >>> from hmoevae.reporting.routed import route
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 2), input_shape=(4,))
    >>> doubtful, = unsure(route(model, torch.rand(9, 4)), model.plan, model.plan.nodes[0], n=1)
    >>> {doubtful.own, doubtful.other}, round(doubtful.probability + doubtful.other_probability, 4)
    ({1, 2}, 1.0)
    """
    if plan.n_leaves == 1:
        return []
    own = routed.samples_of(node)
    if node.child_edges:
        first, second = routed.chosen_probability[own, node.depth], routed.other_probability[own, node.depth]
    else:
        first, second = routed.probability[own], routed.second_probability[own]
    found: list[Unsure] = []
    for i in np.argsort(first - second, kind="stable")[:n].tolist():
        if first[i] - second[i] > SURE:
            break
        sample = int(own[i])
        leaf = plan.leaves[int(routed.leaf[sample])]
        if node.child_edges:
            nodes = plan.edge_child[leaf.edges[node.depth]], int(routed.other[sample, node.depth])
        else:
            nodes = leaf.index, plan.leaves[int(routed.second[sample])].index
        found.append(Unsure(sample, nodes[0], float(first[i]), nodes[1], float(second[i])))
    return found


def nearest(drawn: Float[Tensor, "shown feature"], own: Float[Tensor, "own feature"]) -> Int[Tensor, " shown"]:
    """For each drawn sample the nearest of a node's own, over the cells that were observed.

    Samples of which less than half was observed are passed over where there are others.

    Args:
        drawn: New samples, flat.
        own: The node's samples, flat; one or more.

    >>> nearest(torch.zeros(1, 2), torch.tensor([[1.0, 1.0], [0.0, torch.nan], [torch.nan, torch.nan]]))
    tensor([1])
    """
    gaps = own.isnan()
    if not gaps.any():
        return torch.cdist(drawn, own).argmin(1)
    known, own = (~gaps).to(own.dtype), own.nan_to_num()
    squared = drawn.square() @ known.t() - 2 * drawn @ own.t() + own.square().sum(1)
    little = 2 * known.sum(1) < known.shape[1]
    distance = squared / known.sum(1).clamp_min(1)
    return (distance if little.all() else distance.masked_fill(little, torch.inf)).argmin(1)

"""What tells the children of a mixture apart: features ranked by effect size, and regions of images.

Axes: `node` as in `hmoevae.plan`, `feature` the entries of a sample.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from hmoevae.plan import Plan, PlannedNode
from hmoevae.reporting.effects import Group, of_node, overlap_lost, standardised, total_variation, without
from hmoevae.reporting.evidence import Findings
from hmoevae.reporting.material import Material
from hmoevae.reporting.moments import Moments, bins_of, histogram
from hmoevae.reporting.routed import Routed

RATE = 0.05
"""The rate of false discoveries."""
OF_LARGEST = 0.5
"""A region has at least this share of the largest difference of means."""


class Difference(NamedTuple):
    """How a node differs from its siblings in a feature.

    Attributes:
        feature: The feature's index.
        effect: The difference of means in standard deviations; of categories, their total-variation distance.
        apart: The share of either group's samples that lies outside the other, from 0 to 1.
        q: The rate of false discoveries at which the difference is one; 1 where it was not tested.

    >>> Difference(0, effect=2.0, apart=0.68, q=0.001).is_found
    True
    """

    feature: int
    effect: float
    apart: float
    q: float

    @property
    def is_found(self) -> bool:
        """Whether the test finds it.

        >>> Difference(0, effect=2.0, apart=0.68, q=0.5).is_found
        False
        """
        return self.q <= RATE


def parents(plan: Plan) -> dict[int, PlannedNode]:
    """The mixture above every node but the root.

    >>> import hmoevae as hm
    >>> parents(hm.HMoEVAE(hm.Mixture.of(hm.VAE(2), 2), (4,)).plan)[2].path
    'root'
    """
    pairs = zip(plan.edge_child, plan.edge_mixture, strict=True)
    return {child: plan.mixtures[mixture] for child, mixture in pairs}


def apart(material: Material, routed: Routed, moments: Moments) -> tuple[np.ndarray, np.ndarray]:
    """The effect and the share that lies apart, of every node and feature, against the siblings; zero at the root.

    Args:
        material: The samples.
        routed: Where they go.
        moments: The moments of their features.

    >>> import hmoevae as hm, torch
    >>> from hmoevae.reporting.material import read
    >>> from hmoevae.reporting.moments import moments
    >>> from hmoevae.reporting.routed import route
    >>> model, x = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2), 2), (4,)), torch.rand(9, 4)
    >>> material, routed = read(model, x, labels=None, names=None, table=None), route(model, x)
    >>> apart(material, routed, moments(model.plan, routed, material.columns))[1].shape
    (3, 4)
    """
    plan, columns = material.model.plan, material.columns
    effect = np.zeros((len(plan.nodes), columns.shape[1]))
    above = parents(plan)
    for child, parent in above.items():
        one = of_node(moments, child)
        effect[child] = standardised(one, without(of_node(moments, parent.index), one), floor=1e-6)
    share = overlap_lost(effect)
    for i, feature in enumerate(material.features):
        if feature.kind == "category":
            counts = histogram(plan, routed, bins_of(feature, columns[:, i]), columns[:, i])
            effect[:, i] = 0.0
            for child, parent in above.items():
                effect[child, i] = total_variation(counts[child], counts[parent.index] - counts[child])
            share[:, i] = effect[:, i]
    return effect, share


def differences(
    node: int, effect: np.ndarray, share: np.ndarray, findings: Findings | None, most: int
) -> list[Difference]:
    """The features in which a node differs most from its siblings: those that the tests find first, by size.

    Args:
        node: The node, as an index of nodes.
        effect: The first result of `apart`.
        share: The second.
        findings: The tests of the mixture above it.
        most: Number of features.

    >>> share = np.array([[0.0, 0.0], [0.2, 0.9]])
    >>> [difference.feature for difference in differences(1, share, share, None, most=2)]
    [1, 0]
    """
    q = np.ones(share.shape[1])
    if findings is not None and node in findings.children:
        q = findings.q[findings.children.index(node)]
    order = np.lexsort((-share[node], q > RATE))[:most]
    return [Difference(int(i), float(effect[node, i]), float(share[node, i]), float(q[i])) for i in order]


def region(
    one: Group, other: Group, q: Float[np.ndarray, " feature"], shape: tuple[int, ...]
) -> Bool[np.ndarray, "height width"]:
    """The pixels that tell two groups of images apart.

    The tests find them, and their means differ by half of the largest difference or more.

    Args:
        one: One group.
        other: The other.
        q: The tests.
        shape: The shape of an image; channels are averaged.

    >>> group = [Group(np.ones(4), np.array(mean), np.ones(4)) for mean in ([0.0, 0.0, 0.0, 1.0], [0.0, 0.2, 0.0, 0.0])]
    >>> region(*group, np.zeros(4), (2, 2)).tolist()
    [[False, False], [False, True]]
    """
    by_channel = (-1, *shape[-2:])
    size = np.abs(np.nan_to_num(one.mean - other.mean).reshape(by_channel).mean(0))
    found = (q <= RATE).reshape(by_channel).any(0)
    return found & (size >= OF_LARGEST * size.max()) & (size > 0)

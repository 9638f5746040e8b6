"""How sure the gates are, and whether they are right to be.

Axes: `n` counts samples, `bin` intervals of confidence.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from hmoevae.nn.posteriors import Draw
from hmoevae.plan import PlannedNode
from hmoevae.reporting.material import Material
from hmoevae.reporting.routed import AT_A_TIME, Routed

N_BINS = 10
MOST_PAIRS = 100_000
"""Pairs of samples and leaves whose densities are computed, to compare gates with experts."""


class Gate(NamedTuple):
    """How sure a gate is of the samples that arrive at it.

    Attributes:
        entropy: The mean entropy, as a share of the log of the number of children.
        confidence: The number of samples in every interval of the probability of the child they go to.
        experts: Of these intervals, the mean confidence, how often the experts chose the same child, and of how many
            samples.
        labels: The same with labels: how often the sample has the child's most frequent label.

    >>> Gate(0.1, np.zeros(10), [], None).entropy
    0.1
    """

    entropy: float
    confidence: Int[np.ndarray, " bin"]
    experts: list[tuple[float, float, int]]
    labels: list[tuple[float, float, int]] | None


def gates(material: Material, routed: Routed, *, seed: int = 0) -> dict[int, Gate]:
    """Every gate with more than one child that a sample arrives at, as an index of nodes.

    Experts choose the child below which the leaf with the largest pi_l exp(ELBO_l(x)) lies, by one draw of z, for some
    of the samples.

    Args:
        material: The samples.
        routed: Where they go.
        seed: Of the samples that are compared.

    >>> import hmoevae as hm
    >>> from hmoevae.reporting.material import read
    >>> from hmoevae.reporting.routed import route
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(4,))
    >>> material = read(model, torch.rand(9, 4), labels=None, names=None, table=None)
    >>> int(gates(material, route(model, material.x))[0].confidence.sum())
    9
    """
    plan = material.model.plan
    some = np.random.default_rng(seed).permutation(len(material.x))[: max(100, MOST_PAIRS // plan.n_leaves)]
    chosen = _chosen_by_experts(material, np.sort(some))
    found: dict[int, Gate] = {}
    for node in plan.mixtures:
        own, n_children = routed.samples_of(node), len(node.child_edges)
        if n_children < 2 or len(own) == 0:
            continue
        confidence = routed.chosen_probability[own, node.depth]
        child = _child_of(node, routed.leaf[own], material)
        best = chosen[own]
        compared = best >= 0
        agrees = _child_of(node, best[compared], material) == child[compared]
        labels = None if material.label is None else _binned(confidence, _has_usual_label(child, material.label[own]))
        entropy = float(routed.entropy[own, node.depth].mean() / np.log(n_children))
        counts = np.histogram(confidence, N_BINS, (0.0, 1.0))[0]
        found[node.index] = Gate(entropy, counts, _binned(confidence[compared], agrees), labels)
    return found


def _child_of(node: PlannedNode, leaf: Int[np.ndarray, " n"], material: Material) -> Int[np.ndarray, " n"]:
    """The child that leaves lie below; leaves elsewhere are with none, -1 or one more than there are."""
    plan = material.model.plan
    starts = [plan.nodes[plan.edge_child[edge]].leaves.start for edge in node.child_edges]
    return np.searchsorted([*starts, node.leaves.stop], leaf, "right") - 1


@torch.no_grad()
def _chosen_by_experts(material: Material, some: Int[np.ndarray, " some"]) -> Int[np.ndarray, " n"]:
    """The leaf that the experts give a sample to; -1 for samples that are not asked about."""
    model = material.model
    generator = torch.Generator(model.device).manual_seed(0)
    log_prior = model.prior.leaf_log_prob().unsqueeze(1)
    found = np.full(len(material.x), -1)
    for part in np.array_split(some, -(-len(some) // AT_A_TIME)):
        flat = model._features_first(material.x[part].to(model.device))
        elbo = model.experts.estimates(flat, model.experts.noise(flat, generator), of=Draw.elbo)
        found[part] = (elbo + log_prior).argmax(0).cpu().numpy()
    return found


def _has_usual_label(child: Int[np.ndarray, " n"], label: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Whether a sample has the most frequent label of its child."""
    table = np.zeros((child.max() + 1, label.max() + 1), np.int64)
    np.add.at(table, (child, label), 1)
    return table.argmax(1)[child] == label


def _binned(confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"]) -> list[tuple[float, float, int]]:
    """Mean confidence, share of right ones, and number, of every interval that has any."""
    index = np.minimum((confidence * N_BINS).astype(np.int64), N_BINS - 1)
    parts = [(confidence[index == i], right[index == i]) for i in np.unique(index)]
    return [(float(mine.mean()), float(ok.mean()), len(mine)) for mine, ok in parts]

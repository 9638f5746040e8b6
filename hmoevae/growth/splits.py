"""Splits of leaves: along the best cut of the graph of their samples, judged by held-out samples."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hmoevae import surgery
from hmoevae.growth.bounds import log_joint, mean_and_error
from hmoevae.kinds import Graph, best_cut
from hmoevae.model import HMoEVAE
from hmoevae.plan import PlannedNode


@dataclass(frozen=True, eq=False, slots=True)
class Split:
    """A leaf that may be split in two.

    Attributes:
        path: The leaf.
        members: Its samples, as indices.
        second: Which of them the second half gets.
        conductance: Of the cut between the halves.
        gain: By how much log p(x) of the leaf's held-out samples rises, in nats per sample.
        error: The standard error of `gain`.
        share: Share of the held-out samples that are the leaf's.
    """

    path: str
    members: Int[Tensor, " member"] = field(repr=False)
    second: Bool[Tensor, " member"] = field(repr=False)
    conductance: float
    gain: float = 0.0
    error: float = float("inf")
    share: float = 0.0


def found_splits(leaves: Sequence[PlannedNode], assigned: Int[Tensor, " n"], graph: Graph, least: int) -> list[Split]:
    """The best cut of every leaf that has enough samples.

    Args:
        leaves: The leaves that may be split.
        assigned: The leaf of every sample.
        graph: The graph of the samples' neighbours.
        least: Smallest number of samples of a half.
    """
    found = []
    for leaf in leaves:
        members = (assigned == leaf.leaves.start).nonzero().squeeze(1)
        rows = members.numpy()
        conductance, first = best_cut(graph[rows][:, rows], least)
        if first.any():
            found.append(Split(leaf.path, members, torch.from_numpy(np.logical_not(first)), conductance))
    return found


def judged(splits: Sequence[Split], alone: HMoEVAE, parted: HMoEVAE, held: Float[Tensor, "n *sample"]) -> list[Split]:
    """The splits with their gains.

    Args:
        splits: The splits.
        alone: The model without them.
        parted: The model with them, trained as long.
        held: Held-out samples.
    """
    leaf = alone.predict(held).cpu()
    before, after = log_joint(alone, held), log_joint(parted, held)
    result = []
    for split in splits:
        old, new = alone.plan.node(split.path), parted.plan.node(split.path)
        mine = leaf == old.leaves.start
        below = after[new.leaves.start : new.leaves.stop, mine].logsumexp(0)
        gain, error = mean_and_error(below - before[old.leaves.start, mine])
        result.append(replace(split, gain=gain, error=error, share=mine.float().mean().item()))
    return result


def chosen(splits: Sequence[Split], min_gain: float, most: int) -> list[Split]:
    """The splits that gain enough and, if these are too many, that gain most over all samples."""
    gaining = [split for split in splits if split.gain > max(min_gain, 2 * split.error)]
    return sorted(gaining, key=lambda split: -split.gain * split.share)[:most]


def with_splits(
    alone: HMoEVAE, parted: HMoEVAE, kept: Sequence[Split], x: Float[Tensor, "n *sample"]
) -> tuple[HMoEVAE, list[str]]:
    """The model without splits, but with those that are kept; and the paths of the new leaves.

    A leaf at the first level becomes a mixture. A leaf below is replaced by its halves, which are then its siblings.
    """
    model = alone
    for split in kept:
        model = surgery.graft(model, split.path, parted, node=split.path)
    beside = sorted((split.path for split in kept if split.path.count("/") > 1), key=_order, reverse=True)
    below = [split.path for split in kept if split.path.count("/") <= 1]
    new = [f"{path}/{i}" for path in below for i in range(2)]
    for path in beside:  # from the last to the first, so that the paths before it stay
        model = surgery.unwrap(model, path, x=x)
    for path in beside:
        above, _, i = path.rpartition("/")
        shift = sum(other.rpartition("/")[0] == above and _order(other) < _order(path) for other in beside)
        new += [f"{above}/{int(i) + shift}", f"{above}/{int(i) + shift + 1}"]
    return model, new


def after_prune(path: str, pruned: str, n_siblings: int) -> str:
    """The path that a leaf has after another one was pruned.

    Args:
        path: Its path before.
        pruned: The path of the pruned leaf.
        n_siblings: Number of children of the pruned leaf's parent before; of two, the other takes the parent's place.

    >>> after_prune("root/1/2", "root/1/0", 3), after_prune("root/1/2/0", "root/1/1", 2)
    ('root/1/1', 'root/1/0')
    """
    above, _, i = pruned.rpartition("/")
    if not path.startswith(f"{above}/"):
        return path
    child, *below = path.removeprefix(f"{above}/").split("/")
    place = [] if n_siblings == 2 else [str(int(child) - (int(child) > int(i)))]
    return "/".join([above, *place, *below])


def _order(path: str) -> tuple[int, ...]:
    return tuple(map(int, path.split("/")[1:]))

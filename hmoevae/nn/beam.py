"""Beam: runs gates from the root down, for each sample those of its most probable mixtures only.

Axes: `mixture`, `edge` and `leaf` as in `hmoevae.plan`; `slot` counts the mixtures of one level whose gates run for a
sample, `child` the children of a mixture; `met` counts all children of all slots. Both have padding. `batch` is first.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hmoevae.nn.gates import Gates
from hmoevae.nn.routes import with_explored
from hmoevae.plan import Plan, PlannedNode


class Seen(NamedTuple):
    """What gates see.

    Attributes:
        upper: What the gates with fewer than `depth` gates above them see of samples.
        lower: What the others see. A smaller batch is repeated to the size of the upper one.
        depth: A number of gates.
    """

    upper: Float[Tensor, "feature batch"]
    lower: Float[Tensor, "feature few"]
    depth: int


class Met(NamedTuple):
    """The edges below the mixtures of one level whose gates ran, for every sample.

    Attributes:
        edge: The edges; the number of the tree's edges stands for padding.
        log_gate: Log g(child | x), in nats; of padding, minus infinity.
        log_prob: Log-probability of arriving at the child, without gradient; of padding, minus infinity.
    """

    edge: Int[Tensor, "batch met"]
    log_gate: Float[Tensor, "batch met"]
    log_prob: Float[Tensor, "batch met"]


class Beam(nn.Module):
    """The tables by which gates run from the root down. They follow from the tree, and are not saved.

    On every level, the gates run of the `width` mixtures at which a sample arrives with the highest probability, among
    the children of those that ran on the level above. So a sample runs at most depth times width gates, however many
    there are. The children of mixtures whose gates ran are met. At least `width` leaves are met, or all: where a
    level leaves mixtures out, `width` subtrees without a common node go on, and each of them ends in leaves.

    Args:
        plan: The compiled tree.

    >>> from hmoevae.plan import compile_tree
    >>> from hmoevae.spec import VAE, Mixture
    >>> plan = compile_tree(Mixture.of(Mixture.of(VAE(), 4), 3))
    >>> beam, gates, x = Beam(plan), Gates(plan, (2,)), torch.rand(2, 5)
    >>> met = list(beam.follow(gates, Seen(x, x, plan.depth), width=1))
    >>> met[0].edge[0], met[1].edge.shape, beam.leaves(met, 1).shape
    (tensor([0, 1, 2]), torch.Size([5, 4]), torch.Size([1, 5]))
    >>> beam.best(met).shape, beam.edges(met).shape, beam.is_all(2), beam.is_all(3)
    (torch.Size([5]), torch.Size([15, 5]), False, True)
    """

    below: Int[Tensor, "mixture_or_none child"]
    mixture_of: Int[Tensor, " edge_or_none"]
    leaf_of: Int[Tensor, " edge_or_none"]
    above_leaf: Int[Tensor, "level leaf_or_none"]
    even: Float[Tensor, " edge_or_none"]

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.n_leaves = plan.n_leaves
        none = self.n_mixtures = len(plan.mixtures)
        self.depths = [mixture.depth for mixture in plan.mixtures]
        self.sizes = [self.depths.count(depth) for depth in range(plan.depth)]
        children = [list(mixture.child_edges) for mixture in plan.mixtures]
        most = max(map(len, children), default=0)
        mixtures = {mixture.index: i for i, mixture in enumerate(plan.mixtures)}
        leaves = {leaf.index: i for i, leaf in enumerate(plan.leaves)}
        paths = [[plan.edge_mixture[edge] for edge in leaf.edges] for leaf in plan.leaves]
        # In every table, the last index stands for no mixture, edge or leaf.
        tables = {
            "below": [[*own, *[plan.n_edges] * (most - len(own))] for own in (*children, [])],
            "mixture_of": [*(mixtures.get(child, none) for child in plan.edge_child), none],
            "leaf_of": [*(leaves.get(child, -1) for child in plan.edge_child), -1],
            "above_leaf": [[*(path[d] if d < len(path) else none for path in paths), none] for d in range(plan.depth)],
        }
        for name, table in tables.items():
            self.register_buffer(name, torch.tensor(table, dtype=torch.long), persistent=False)
        counts = torch.tensor([*(len(children[mixture]) for mixture in plan.edge_mixture), 1.0])
        self.register_buffer("even", -counts.log(), persistent=False)

    def is_all(self, width: int) -> bool:
        """Whether the gates of all mixtures run."""
        return max(self.sizes, default=0) <= width

    def follow(
        self,
        gates: Gates,
        seen: Seen,
        width: int,
        *,
        temperature: float = 1.0,
        explored: Int[Tensor, " batch"] | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[Met]:
        """Run the gates, level by level.

        Args:
            gates: The gates of the tree, all of which are networks.
            seen: What they see.
            width: Number of mixtures of a level.
            temperature: The divisor of the logits.
            explored: A leaf for every sample, -1 for none. The mixture above it takes the last slot of each level.
            start: The mixture with which to begin; all samples are at it.
            stop: The level whose nodes are not gone beyond; `None` means all levels.
        """
        first = self.depths[start]
        batch = seen.upper.shape[1]
        mixture = torch.full((batch, 1), start, device=seen.upper.device)
        reach = torch.zeros(())
        explored = None if explored is None else explored.masked_fill(explored < 0, self.n_leaves)
        for depth in range(first, len(self.sizes) if stop is None else stop):
            x = seen.upper if depth < seen.depth else seen.lower
            if depth == first:
                one, times = gates.of_mixture(x, start, temperature).t(), batch // x.shape[1]
                every = (one if times == 1 else one.repeat(times, 1)).unsqueeze(1)
                reach = every.new_zeros(batch, 1)
            else:
                every = gates.of_mixtures(x, mixture, temperature)
            edge = _at(self.below, mixture)[:, :, : every.shape[2]].flatten(1)
            log_prob = (reach.unsqueeze(2) + every.detach()).flatten(1)
            yield Met(edge, every.flatten(1), log_prob)
            if depth + 1 == len(self.sizes):
                return
            above = None if explored is None else _at(self.above_leaf[depth + 1], explored)
            place = self._places(edge, log_prob, min(width, self.sizes[depth + 1]), above)
            mixture, reach = _at(self.mixture_of, edge.gather(1, place)), log_prob.gather(1, place)
            if bool((mixture == self.n_mixtures).all()):
                return

    def _places(
        self,
        edge: Int[Tensor, "batch met"],
        log_prob: Float[Tensor, "batch met"],
        n_slots: int,
        above: Int[Tensor, " batch"] | None,
    ) -> Int[Tensor, "batch slot"]:
        """Where among the children the mixtures of the next level are: the most probable, and those in `above`."""
        mixture = _at(self.mixture_of, edge)
        score = log_prob.masked_fill(mixture == self.n_mixtures, -torch.inf)
        n_slots = min(n_slots, score.shape[1])
        best = score.argmax(1, keepdim=True) if n_slots == 1 else score.topk(n_slots, dim=1).indices
        if above is None:
            return best
        other = (mixture == above.unsqueeze(1)).int().argmax(1)
        return with_explored(best.t(), other.masked_fill(above == self.n_mixtures, -1)).t()

    def edges(self, met: Sequence[Met]) -> Float[Tensor, "edge batch"]:
        """Log g(child | x) on every edge; below mixtures whose gates did not run, even and without gradient.

        Args:
            met: All levels.
        """
        edge = torch.cat([level.edge for level in met], 1).t()
        log_gate = torch.cat([level.log_gate for level in met], 1).t()
        even = self.even.to(log_gate.dtype).unsqueeze(1).repeat(1, edge.shape[1])
        return even.scatter(0, edge, log_gate)[:-1]

    def leaves(
        self, met: Sequence[Met], n: int, explored: Int[Tensor, " batch"] | None = None
    ) -> Int[Tensor, "slot batch"]:
        """The most probable leaves that are met, best first, then the one that is explored.

        Args:
            met: All levels.
            n: Number of leaves of a sample, at most the width.
            explored: As in `follow`. It takes the last slot.
        """
        leaf = _at(self.leaf_of, torch.cat([level.edge for level in met], 1))
        log_prob = torch.cat([level.log_prob for level in met], 1).masked_fill(leaf < 0, -torch.inf)
        best = leaf.gather(1, log_prob.topk(n, dim=1).indices).t()
        return best if explored is None else with_explored(best, explored)

    def index_of(self, nodes: Sequence[PlannedNode]) -> Int[Tensor, " edge_or_none"]:
        """For each edge, the index of its child among some nodes; -1 for no such node.

        Args:
            nodes: The nodes, without the root.
        """
        index = torch.full_like(self.leaf_of, -1)
        index[[node.edges[-1] for node in nodes]] = torch.arange(len(nodes), device=index.device)
        return index

    def best(self, met: Iterable[Met], index_of: Int[Tensor, " edge_or_none"] | None = None) -> Int[Tensor, " batch"]:
        """The most probable leaf that is met, or the most probable of other nodes.

        Args:
            met: All levels.
            index_of: The index of the child of every edge that counts, as `index_of` gives it.
        """
        index_of = self.leaf_of if index_of is None else index_of
        found: list[tuple[Tensor, Tensor]] = []
        for level in met:
            index = _at(index_of, level.edge)
            log_prob, place = level.log_prob.masked_fill(index < 0, -torch.inf).max(1, keepdim=True)
            found.append((index.gather(1, place), log_prob))
        index, log_prob = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        return index.gather(1, log_prob.argmax(1, keepdim=True)).squeeze(1)


def _at(table: Tensor, index: Int[Tensor, "*axis"]) -> Tensor:
    """`table[index]`, in a fifth of the time."""
    return table.index_select(0, index.flatten()).unflatten(0, index.shape)

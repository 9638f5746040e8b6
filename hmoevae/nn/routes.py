"""Routes, which say as data which (sample, leaf) pairs a pass computes; and packing, which batches pairs by expert.

Axes: `leaf` as in `hmoevae.plan`; `slot` counts the leaves that are computed for one sample; `pair` counts (slot,
sample) pairs, in any order. A packed tensor has `row` and `column`: each row belongs to one expert, each column holds
one of its pairs or padding. `batch` is last.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hmoevae.errors import ArgumentError, ArgumentTypeError, mismatch
from hmoevae.nn.draws import Share, for_batch
from hmoevae.nn.rows import Chosen
from hmoevae.spec.record import PositiveInt, Probability, record

__all__ = [
    "ALL",
    "All",
    "Given",
    "Routes",
    "TopK",
]


def __dir__() -> list[str]:
    """What there is for users."""
    return __all__


ROW_COST = 5
"""Number of columns of a packed row that cost as much as reading the weights of its expert; measured on a CPU."""


class Routes(ABC):
    """Which leaves are computed for which samples.

    >>> isinstance(ALL, Routes), TopK(2).leaves(torch.tensor([[0.5, 0.1], [0.2, 0.1], [0.3, 0.8]]).log())
    (True, tensor([[0, 2],
            [2, 0]]))
    """

    def n_slots(self, n_leaves: int) -> int | None:  # noqa: ARG002
        """How many of `n_leaves` leaves are computed for each sample; `None` for all of them, in order."""
        return None

    def draws(
        self,
        n_leaves: int,  # noqa: ARG002
        x: Float[Tensor, "feature batch"],  # noqa: ARG002
        generator: torch.Generator | None = None,  # noqa: ARG002
        share: Share | None = None,  # noqa: ARG002
    ) -> Tensor | None:
        """Random numbers for `leaves`, with the samples last; `None` where it needs none.

        Args:
            n_leaves: Number of leaves of the tree.
            x: Samples.
            generator: Source of the numbers; torch's global one if `None`.
            share: Which samples of a global batch these are.
        """
        return None

    def beam(self) -> int | None:
        """How many gates of a level run for each sample, as in `hmoevae.nn.beam.Beam`; `None` for all.

        Where some do not run, a sample's leaves are as many of the most probable ones below those that did, with the
        one that is `explored` in the last slot; `leaves` is not asked.
        """
        return None

    def explored(
        self,
        n_leaves: int,  # noqa: ARG002
        draws: Tensor | None,  # noqa: ARG002
    ) -> Int[Tensor, " batch"] | None:
        """The leaf of every sample whose gates run however improbable it is, -1 for none; `None` for none anywhere.

        Args:
            n_leaves: Number of leaves of the tree.
            draws: The result of `draws`.
        """
        return None

    @abstractmethod
    def leaves(
        self, leaf_log_prob: Float[Tensor, "leaf batch"], draws: Tensor | None = None
    ) -> Int[Tensor, "slot batch"] | None:
        """The leaves of every sample, each leaf at most once a sample; `None` for all of them, in order.

        Args:
            leaf_log_prob: The gates' log q(leaf | x).
            draws: The result of `draws`.
        """


@record(kind="all", error=ArgumentError)
class All(Routes):
    """Every leaf for every sample.

    >>> ALL == All(), All().n_slots(5), All().leaves(torch.zeros(3, 2))
    (True, None, None)
    """

    def leaves(self, leaf_log_prob: Float[Tensor, "leaf batch"], draws: Tensor | None = None) -> None:
        """None: all, in order."""


ALL = All()


@record(kind="top_k", error=ArgumentError)
class TopK(Routes):
    """The `k` leaves to which the gates give the highest probability; with `explore`, now and then another one.

    Where a level of the tree has more than `k` mixtures, only the gates of the `k` most probable of them run for a
    sample, among the children of those that ran on the level above; the leaves are chosen below these. Training takes
    the probabilities below other mixtures as even, and their gates do not learn from that sample. In trees with a
    `PosteriorGate` all gates run.

    The gates learn from the objective how the leaves of a sample compare, so with `k=1` they learn from balance and
    agreement only. With `explore`, leaves that the gates have stopped choosing still learn. That does not bring back a
    leaf to which the gates give next to no probability; `Training(revive=True)` does.

    Args:
        k: Number of leaves a sample; a tree with no more leaves than that computes all of them.
        explore: The probability that the last of a sample's leaves is drawn evenly from all leaves instead. A draw
            that is among the sample's leaves already changes nothing. The gates on its path run in place of the last of
            each level.

    Raises:
        ArgumentError: `k` is no integer > 0, or `explore` no number from 0 to 1.

    >>> TopK(2).leaves(torch.tensor([[0.1], [0.6], [0.3]]).log()).squeeze(1), TopK(2).beam()
    (tensor([1, 2]), 2)
    >>> TopK(2).n_slots(n_leaves=3), TopK(9).n_slots(n_leaves=3)
    (2, None)
    >>> draws = torch.tensor([[0.05, 0.5], [0.0, 0.0]])  # below `explore` or not; which leaf, from 0 to 1
    >>> TopK(2, explore=0.1).leaves(torch.tensor([[0.1, 0.1], [0.6, 0.6], [0.3, 0.3]]).log(), draws)
    tensor([[1, 1],
            [0, 2]])
    >>> TopK(2, explore=0.1).explored(n_leaves=3, draws=draws)
    tensor([ 0, -1])
    """

    k: PositiveInt
    explore: Probability = 0.0

    def n_slots(self, n_leaves: int) -> int | None:
        """`k`; `None`, which means all, where there are no more than that."""
        return self.k if self.k < n_leaves else None

    def draws(
        self,
        n_leaves: int,
        x: Float[Tensor, "feature batch"],
        generator: torch.Generator | None = None,
        share: Share | None = None,
    ) -> Float[Tensor, "2 batch"] | None:
        """For each sample, a number that says whether it explores, and one that says which leaf."""
        if self.explore == 0 or self.k >= n_leaves:
            return None
        how: dict[str, Any] = {} if generator is None else {"generator": generator}
        return for_batch(lambda n: torch.rand(2, n, device=x.device, **how), x.shape[-1], share)

    def beam(self) -> int:
        """As many as leaves."""
        return self.k

    def explored(self, n_leaves: int, draws: Float[Tensor, "2 batch"] | None) -> Int[Tensor, " batch"] | None:
        """The leaf that is drawn, for samples that explore."""
        if draws is None:
            return None
        return torch.where(draws[0] < self.explore, (draws[1] * n_leaves).long().clamp_max(n_leaves - 1), -1)

    def leaves(
        self, leaf_log_prob: Float[Tensor, "leaf batch"], draws: Float[Tensor, "2 batch"] | None = None
    ) -> Int[Tensor, "slot batch"] | None:
        """The most probable leaves, best first, then those that are explored."""
        n_leaves = len(leaf_log_prob)
        if self.k >= n_leaves:
            return None
        best = leaf_log_prob.detach().topk(self.k, dim=0).indices
        other = self.explored(n_leaves, draws)
        return best if other is None else with_explored(best, other)


@dataclass(frozen=True, slots=True, eq=False)
class Given(Routes):
    """One given leaf, or several, for each sample.

    Args:
        leaf: Indices of leaves: `(batch,)` for one leaf a sample, `(slot, batch)` for several, no leaf twice a sample.

    Raises:
        ArgumentError: `leaf` has another number of axes.
        ArgumentTypeError: `leaf` does not hold integers.

    >>> Given(torch.tensor([2, 0])).leaves(torch.zeros(3, 2))
    tensor([[2, 0]])
    """

    leaf: Int[Tensor, " batch"] | Int[Tensor, "slot batch"]

    def __post_init__(self) -> None:
        if not isinstance(self.leaf, Tensor) or self.leaf.dtype != torch.long:
            got = self.leaf.dtype if isinstance(self.leaf, Tensor) else type(self.leaf).__name__
            raise ArgumentTypeError(mismatch("Given.leaf", "a tensor of integers (torch.long)", got))
        if self.leaf.ndim not in (1, 2) or len(self.leaf) == 0:
            raise ArgumentError(mismatch("Given.leaf", "(batch,) or (slot, batch)", tuple(self.leaf.shape)))

    def n_slots(self, n_leaves: int) -> int:  # noqa: ARG002
        """As many as are given."""
        return len(torch.atleast_2d(self.leaf))

    def leaves(
        self,
        leaf_log_prob: Float[Tensor, "leaf batch"],
        draws: Tensor | None = None,  # noqa: ARG002
    ) -> Int[Tensor, "slot batch"]:
        """The given leaves. They are checked on a CPU only: on a GPU the check would wait for the device."""
        leaf = torch.atleast_2d(self.leaf)
        n_leaves, batch = leaf_log_prob.shape
        if leaf.shape[1] != batch:
            raise ArgumentError(mismatch("Given.leaf", f"leaves of {batch} samples", f"of {leaf.shape[1]}"))
        if leaf.device.type == "cpu" and leaf.numel() and not 0 <= int(leaf.min()) <= int(leaf.max()) < n_leaves:
            got = f"{int(leaf.min())} to {int(leaf.max())}"
            raise ArgumentError(mismatch("Given.leaf", f"indices from 0 to {n_leaves - 1}", got))
        if leaf.device.type == "cpu" and len(leaf) > 1:
            ordered = leaf.sort(0).values
            if bool((ordered[1:] == ordered[:-1]).any()):  # it would count twice, and the result be no bound
                raise ArgumentError(mismatch("Given.leaf", "each leaf at most once a sample", "one twice"))
        return leaf


def with_explored(best: Int[Tensor, "slot batch"], other: Int[Tensor, " batch"]) -> Int[Tensor, "slot batch"]:
    """Let `other` take the last slot of a sample, unless it is -1 or has a slot already.

    >>> with_explored(torch.tensor([[0, 0, 0], [1, 1, 1]]), torch.tensor([2, 0, -1]))
    tensor([[0, 0, 0],
            [2, 1, 1]])
    """
    is_new = (other >= 0) & (best != other).all(0)
    return torch.cat([best[:-1], torch.where(is_new, other, best[-1]).unsqueeze(0)])


def restricted(
    leaf_log_prob: Float[Tensor, "leaf batch"], leaf: Int[Tensor, "slot batch"] | None
) -> Float[Tensor, "slot batch"]:
    """Log q restricted to the leaves in `leaf` and renormalised to sum to one over them; unchanged if `leaf` is `None`.

    >>> restricted(torch.tensor([[0.6], [0.1], [0.3]]).log(), torch.tensor([[0], [2]])).exp().squeeze(1)
    tensor([0.6667, 0.3333])
    """
    return leaf_log_prob if leaf is None else leaf_log_prob.gather(0, leaf).log_softmax(0)


# --- packing --------------------------------------------------------------------------------------------------------


class Packing(NamedTuple):
    """The row and column of every pair of a group in a packed tensor.

    Attributes:
        experts: The experts that run the rows; idle ones run none.
        shape: Numbers of rows and columns.
        row: Row of every pair.
        column: Column of every pair.
    """

    experts: Chosen
    shape: tuple[int, int]
    row: Int[Tensor, " pair"]
    column: Int[Tensor, " pair"]

    @property
    def cell(self) -> Int[Tensor, " pair"]:
        """Place of every pair among all cells: `index_select` is three times as fast as an index of two tensors."""
        return self.row * self.shape[1] + self.column


def packing(expert: Int[Tensor, " pair"], n_experts: int) -> Packing:
    """Assign every pair to a row of its expert, and to a column of its own in that row.

    Args:
        expert: The expert of every pair; there is at least one pair.
        n_experts: Number of experts in the group.

    >>> packed = packing(torch.tensor([2, 0, 2]), 3)
    >>> packed.shape, packed.row, packed.column, packed.experts.rows
    ((2, 2), tensor([1, 0, 1]), tensor([0, 0, 1]), tensor([0, 2]))
    """
    counts = expert.bincount(minlength=n_experts)
    order = expert.argsort(stable=True)
    place = torch.empty_like(expert)  # of a pair among those of its expert
    place[order] = torch.arange(len(expert), device=expert.device) - (counts.cumsum(0) - counts)[expert[order]]
    width = _width(counts)
    piece, column = place // width, place % width
    # First one row for each expert that has pairs, in ascending order, then the further rows of the busiest.
    rows, row = ((piece.clamp_max(1) * n_experts + expert) * len(expert) + piece).unique(return_inverse=True)
    experts = rows // len(expert) % n_experts
    return Packing(Chosen.of(experts), (len(experts), width), row, column)


def _width(counts: Int[Tensor, " expert"]) -> int:
    """The number of columns with which the rows of all experts cost least."""
    widths = counts.unique()
    widths = widths[widths > 0]
    n_rows = ((counts + widths.unsqueeze(1) - 1) // widths.unsqueeze(1)).sum(1)
    return int(widths[(n_rows * (widths + ROW_COST)).argmin()])


def pack(values: Float[Tensor, "pair inp"], packed: Packing, *, fill: float = 0.0) -> Float[Tensor, "row inp column"]:
    """Write the values of the pairs to their rows and columns, features first; the other cells are padding.

    Args:
        values: One row per pair.
        packed: The row and column of every pair.
        fill: The value of the padding.

    >>> pack(torch.tensor([[1.0], [2.0], [3.0]]), packing(torch.tensor([1, 0, 1]), 2))
    tensor([[[2., 0.]],
    <BLANKLINE>
            [[1., 3.]]])
    """
    rows, columns = packed.shape
    result = values.new_full((rows * columns, values.shape[1]), fill).index_copy(0, packed.cell, values)
    return result.unflatten(0, packed.shape).mT  # in memory as kernels.chosen computes


def unpack(
    values: Float[Tensor, "row column"] | Float[Tensor, "row out column"], packed: Packing
) -> Float[Tensor, " pair"] | Float[Tensor, "pair out"]:
    """Read the values of the pairs from their rows and columns: the inverse of `pack`.

    >>> packed = packing(torch.tensor([1, 0, 1]), 2)
    >>> unpack(pack(torch.tensor([[1.0], [2.0], [3.0]]), packed), packed).squeeze(1)
    tensor([1., 2., 3.])
    """
    by_cell = values.flatten() if values.ndim == 2 else values.mT.flatten(0, 1)
    return by_cell.index_select(0, packed.cell)

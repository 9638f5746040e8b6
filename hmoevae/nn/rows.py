"""Rows: restrict a grouped module to some members of its group, or copy one member out of it.

Axes: `group` counts equal networks; `row` counts the chosen ones, of which some may be equal; `distinct` counts those
that differ.

The gradient of a weight of which some rows are chosen is a sparse tensor of PyTorch's (`torch.sparse_coo`) with one
sparse axis, the group's: `hmoevae.RowAdam` reads it without a pass over the other rows.
"""

import copy
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

M = TypeVar("M", bound=nn.Module)

# --- chosen rows ----------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """Chosen rows that follow one another in the group too, so that slices reach all their operands.

    Attributes:
        row: The first of them among the chosen rows.
        group: The same one's row in the group.
        distinct: The same one among the distinct rows.
        length: Their number.
        is_again: Whether this is one row, which an earlier run has had, so that their gradients add up.
    """

    row: int
    group: int
    distinct: int
    length: int
    is_again: bool


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Some rows of a group.

    Args:
        rows: The rows, in any order; each may occur several times.

    >>> chosen = Chosen.of(torch.tensor([2, 3, 3, 7]))
    >>> len(chosen), chosen.distinct
    (4, tensor([2, 3, 7]))
    >>> [(run.row, run.group, run.length, run.is_again) for run in chosen.runs]
    [(0, 2, 2, False), (2, 3, 1, True), (3, 7, 1, False)]

    Attributes:
        distinct: The rows without repetition, ascending.
        of_row: The position of each row in `distinct`.
        runs: The rows in runs; a repetition is a run of its own.
    """

    rows: Int[Tensor, " row"]
    distinct: Int[Tensor, " distinct"]
    of_row: Int[Tensor, " row"]
    runs: tuple[Run, ...]

    @classmethod
    def of(cls, rows: Int[Tensor, " row"]) -> "Chosen":
        """Find the runs, which on a GPU waits for the device.

        Args:
            rows: The rows.
        """
        distinct, of_row = rows.unique(return_inverse=True)
        runs: list[Run] = []
        seen: set[int] = set()
        for i, (row, position) in enumerate(zip(rows.tolist(), of_row.tolist(), strict=True)):
            is_again = row in seen
            last = runs[-1] if runs else None
            if last is not None and not (is_again or last.is_again) and row == last.group + last.length:
                runs[-1] = last._replace(length=last.length + 1)
            else:
                runs.append(Run(i, row, position, 1, is_again))
            seen.add(row)
        return cls(rows, distinct, of_row, tuple(runs))

    def __len__(self) -> int:
        return len(self.rows)

    def within(self, start: int, stop: int) -> Iterator[Run]:
        """The parts of runs among the chosen rows from `start` to before `stop`, with rows counted from `start`."""
        for run in self.runs:
            skipped = max(start - run.row, 0)
            length = min(stop - run.row, run.length) - skipped
            if length > 0:
                first = run.row + skipped - start
                yield Run(first, run.group + skipped, run.distinct + skipped, length, run.is_again)

    def is_all(self, n: int) -> bool:
        """Whether these are all rows of a group of `n`, once each and in order."""
        return len(self.rows) == n and len(self.runs) == 1

    @property
    def is_ascending(self) -> bool:
        """Whether the rows are the distinct ones, in their order."""
        return all(one.distinct + one.length <= other.distinct for one, other in pairwise(self.runs))

    def gradient(self, values: Tensor, weight: Tensor) -> Tensor:
        """The gradient of a weight whose distinct rows have the gradients `values`; dense where these are all rows.

        That of a computed weight is dense too, as what it is computed from takes no sparse one.
        """
        if len(self.distinct) == len(weight):
            return values
        if not weight.is_leaf:
            return weight.new_zeros(weight.shape).index_copy_(0, self.distinct, values)
        how: dict[str, Any] = {"is_coalesced": True, "check_invariants": False}
        return torch.sparse_coo_tensor(self.distinct.unsqueeze(0), values, weight.shape, **how)


def taken(values: Float[Tensor, "group *axes"], chosen: Chosen) -> Float[Tensor, "row *axes"]:
    """Copy the chosen rows. The gradient of `values` is sparse if it is a parameter.

    >>> weight = torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True)
    >>> rows = taken(weight, Chosen.of(torch.tensor([0, 2, 2])))
    >>> rows.sum().backward()
    >>> rows.flatten().tolist(), weight.grad.to_dense().flatten().tolist()
    ([1.0, 3.0, 3.0], [1.0, 0.0, 2.0])
    """
    if chosen.is_all(len(values)):
        return values
    if not values.is_leaf or torch._C._are_functorch_transforms_active():
        return values.index_select(0, chosen.rows)
    return _Taken.apply(values, chosen)


class _Taken(torch.autograd.Function):
    """Rows by index, whose gradient is sparse."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, chosen: Chosen) -> Tensor:
        ctx.chosen = chosen
        ctx.save_for_backward(values)
        return values.index_select(0, chosen.rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        chosen: Chosen = ctx.chosen
        return chosen.gradient(summed(grad_outputs[0], chosen), *ctx.saved_tensors), None


def summed(by_row: Tensor, chosen: Chosen) -> Tensor:
    """The sums over equal rows, in the order of the distinct ones."""
    if chosen.is_ascending:
        return by_row.contiguous()
    none = by_row.new_zeros(len(chosen.distinct), *by_row.shape[1:])
    return none.index_add(0, chosen.of_row, by_row)


# --- modules --------------------------------------------------------------------------------------------------------


def rows_of(module: M, rows: Chosen | slice) -> M:
    """The same module restricted to some members of its group. Gradients flow back to the weights of `module`.

    Every parameter and buffer of a group has the group axis first (see `hmoevae.plan.Place`), so this works for every
    network and every likelihood. A slice gives views of the weights. Chosen rows are copied, except by modules that
    compute with chosen rows themselves: those have an attribute `chosen`.

    Args:
        module: A grouped module.
        rows: The members.

    >>> from hmoevae.nn.grouped import GroupedLinear
    >>> layer = GroupedLinear(5, 2, 3)
    >>> torch.equal(rows_of(layer, slice(1, 3)).weight, layer.weight[1:3])
    True
    """
    some = type(module).__new__(type(module))  # `copy.copy` refuses torch's parametrized modules
    some.__dict__.update(module.__dict__)
    if isinstance(rows, Chosen) and hasattr(module, "chosen"):
        some.chosen = rows  # type: ignore[assignment]  # a plain attribute
        return some
    part = partial(taken, chosen=rows) if isinstance(rows, Chosen) else operator.itemgetter(rows)
    parameters: dict[str, Any] = {name: None if p is None else part(p) for name, p in module._parameters.items()}
    some._parameters = parameters
    some._buffers = {name: None if b is None else part(b) for name, b in module._buffers.items()}
    some._modules = {name: None if m is None else rows_of(m, rows) for name, m in module._modules.items()}
    return some


@torch.no_grad()
def reorder_(module: nn.Module, index: Tensor) -> None:
    """Give row i the weights and buffers of row `index[i]`, in place.

    Args:
        module: A grouped module.
        index: A permutation of its rows.

    >>> from hmoevae.nn.grouped import GroupedLinear
    >>> layer = GroupedLinear(2, 3, 4)
    >>> first = layer.weight[0].clone()
    >>> reorder_(layer, torch.tensor([1, 0]))
    >>> torch.equal(layer.weight[1], first)
    True
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.copy_(tensor[index])


@torch.no_grad()
def alone(module: M, row: int) -> M:
    """Copy one member into a group of one that shares no memory with `module`.

    >>> from hmoevae.nn.grouped import GroupedLinear
    >>> alone(GroupedLinear(5, 2, 3), 4).weight.shape
    torch.Size([1, 3, 2])
    """
    some = rows_of(module, slice(row, row + 1))
    for part in some.modules():
        part._parameters = {
            name: None if p is None else nn.Parameter(p.clone()) for name, p in part._parameters.items()
        }
        part._buffers = {name: None if b is None else b.clone() for name, b in part._buffers.items()}
    return copy.deepcopy(some)

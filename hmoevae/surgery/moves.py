"""Moves: which rows of a new tensor are which rows of an old one."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Move(NamedTuple):
    """Some rows of a new tensor, and the rows of an old one that they come from.

    Attributes:
        new: The new parameter or buffer.
        old: The old one.
        new_rows: Rows of the new one.
        old_rows: Rows of the old one.
        change: From these old rows of the parameter, or of its moments, to the new rows; `None`: as they are. The flag
            says that they are moments.
    """

    new: Tensor
    old: Tensor
    new_rows: list[int]
    old_rows: list[int]
    change: Callable[[Tensor, bool], Tensor] | None = None

    def carry(self, values: Tensor, into: Tensor, *, moments: bool = False) -> None:
        """Carry values in the shape of `old` into a tensor in the shape of `new`."""
        rows = values[self.old_rows]
        into[self.new_rows] = (rows if self.change is None else self.change(rows, moments)).to(into)

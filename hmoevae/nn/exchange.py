"""Exchange: processes that hold different experts send each other rows of tensors, and gradients back.

Axes: `row` counts what is sent or received, grouped by the process that it goes to or comes from, in the order of
their ranks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from hmoevae.errors import ArgumentError, ProcessError, mismatch

T = TypeVar("T")


@contextmanager
def talking(count: int, index: int) -> Iterator[None]:
    """Turn errors of exchanges into `ProcessError`: they mostly mean that another process has ended."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        expected = f"all {count} to continue (see the errors of the others)"
        raise ProcessError(mismatch("processes", expected, f"in process {index}: {reason}")) from error


class Peers:
    """The processes over which the rows of every group of experts are cut, as seen by one of them.

    Rows are cut as `torch.chunk` and `torch.distributed.tensor.Shard` cut them: the first processes hold equally many,
    the last ones fewer, or none.

    Args:
        group: Their process group; `None` for all processes.

    Attributes:
        count: Their number.
        index: The rank of this process among them.
        silent: Why no exchange may take place now; `None` if it may.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.count = dist.get_world_size(group)
        self.index = dist.get_rank(group)
        self.silent: str | None = None

    def rows(self, n: int, index: int | None = None) -> slice:
        """The rows of a group of `n` that a process holds; this one, if no index is given."""
        size = -(-n // self.count)
        start = min(size * (self.index if index is None else index), n)
        return slice(start, min(start + size, n))

    def check_may_talk(self) -> None:
        """Check that the others are at the same point.

        Raises:
            ArgumentError: They may not be.
        """
        if self.silent is not None:
            expected = "one that holds all its experts, as when hm.fit has returned"
            got = f"one whose experts are cut over {self.count} processes ({self.silent})"
            raise ArgumentError(mismatch("model", expected, got))

    @contextmanager
    def silence(self, reason: str) -> Iterator[None]:
        """Inside, refuse exchanges: the processes run code that may differ."""
        before, self.silent = self.silent, reason
        try:
            yield
        finally:
            self.silent = before

    def numbers(self, device: torch.device, *own: int) -> list[list[int]]:
        """Gather a few numbers of every process."""
        mine = torch.tensor([own] * self.count, dtype=torch.long, device=device)
        ones = [1] * self.count
        return self._exchanged(mine, ones, ones).tolist()

    def objects(self, own: T) -> list[T]:
        """Gather a small object of every process."""
        self.check_may_talk()
        everyone: list[Any] = [None] * self.count
        with talking(self.count, self.index):
            dist.all_gather_object(everyone, own, group=self.group)
        return everyone

    def counts(self, device: torch.device, send: list[int]) -> list[int]:
        """How many rows come from every process, if this one sends so many to each of them."""
        ones = [1] * self.count
        return self._exchanged(torch.tensor(send, device=device), ones, ones).tolist()

    def exchange(
        self, rows: Shaped[Tensor, "row *axes"], send: list[int], receive: list[int], *, learns: bool = False
    ) -> Shaped[Tensor, "received *axes"]:
        """Send rows to every process, and receive its own.

        Args:
            rows: The rows, first those for process 0.
            send: How many go to each process.
            receive: How many come from each process.
            learns: Whether gradients go back. All processes then have to run the backward pass, which sends them,
                whether or not they sent any rows.

        Raises:
            ProcessError: Another process has ended.
        """
        if not learns:
            return self._exchanged(rows.detach(), send, receive)
        # Without rows that need a gradient, autograd would leave out the exchange that the others wait for.
        anchor = torch.zeros((), dtype=rows.dtype, device=rows.device, requires_grad=True)
        return _Exchanged.apply(rows, anchor, self, send, receive)

    def gather(self, rows: Shaped[Tensor, "row *axes"], sizes: list[int]) -> Shaped[Tensor, "all_rows *axes"]:
        """The rows of all processes, of which process p has `sizes[p]`. No gradient goes back."""
        everywhere = rows.detach().expand(self.count, *rows.shape).flatten(0, 1)
        return self._exchanged(everywhere, [len(rows)] * self.count, sizes)

    def _exchanged(self, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        self.check_may_talk()
        result = rows.new_empty(sum(receive), *rows.shape[1:])
        with talking(self.count, self.index):
            dist.all_to_all_single(result, rows.contiguous(), receive, send, group=self.group)
        return result


class _Exchanged(torch.autograd.Function):
    """`Peers.exchange`, whose gradient goes the way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, anchor: Tensor, peers: Peers, send: list[int], receive: list[int]) -> Tensor:  # noqa: ARG004
        ctx.back = peers, send, receive
        return peers._exchanged(rows, send, receive)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        peers, send, receive = ctx.back
        return peers._exchanged(grad_outputs[0], receive, send), None, None, None, None

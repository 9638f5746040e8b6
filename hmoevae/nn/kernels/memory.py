"""StepMemory: large blocks of memory that one training step after another uses.

A large tensor that is freed goes back to the operating system, and the next one of its size costs a page fault for
every 4 KiB. On a CPU that can take as long as all the arithmetic of a training step.
"""

import math
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from hmoevae.errors import ArgumentError, mismatch

GLIBC_LARGEST = (32 << 20) - (64 << 10)
"""Bytes; glibc learns from blocks that it frees up to 32 MiB (M_MMAP_THRESHOLD in the manual page mallopt(3))."""
SMALL = 1 << 18
"""Bytes; smaller tensors are left to the C library, which is quicker at finding them a place."""


class StepMemory:
    """Named blocks of CPU memory, each given out once a step and overwritten in the next.

    Inside `step` the layers of every model take their large tensors from here, in passes that record gradients. Whoever
    opens a step promises that nothing of the step before is read in it: not its activations, not its gradients, but for
    those that weights hold and that are added to. `hmoevae.fit` does; in a loop of your own::

        memory = StepMemory()
        for x in batches:
            with memory.step():
                optimizer.zero_grad()
                model(x).loss.backward()
                optimizer.step()

    A block that a step has not taken is given back to the system when the next step begins.

    >>> memory, shape = StepMemory(), (300, 300)
    >>> with memory.step():
    ...     first = memory.empty("a", shape, torch.float32)
    ...     fresh = memory.empty("a", shape, torch.float32)
    >>> with memory.step():
    ...     again = memory.empty("a", shape, torch.float32)
    >>> first.data_ptr() == again.data_ptr(), first.data_ptr() == fresh.data_ptr()
    (True, False)
    """

    def __init__(self) -> None:
        self._blocks: dict[Hashable, Tensor] = {}
        self._taken: set[Hashable] = set()
        # glibc keeps blocks instead of returning them to the system if they are smaller than the largest that it has
        # seen freed; this shows it one, whose pages are never touched.
        torch.empty(GLIBC_LARGEST, dtype=torch.uint8, device="cpu")

    @contextmanager
    def step(self) -> Iterator[None]:
        """Inside, every block may be given out again, once, to whatever runs in this thread.

        Raises:
            ArgumentError: A step of this memory is open already.
        """
        if _CURRENT.get() is self:
            raise ArgumentError(mismatch("memory.step", "no open step of the same memory", "one inside another"))
        self._blocks = {name: block for name, block in self._blocks.items() if name in self._taken}
        self._taken.clear()
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)

    def empty(self, name: Hashable, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor: the block of that name, or a fresh one if it is small or this step has had it."""
        if name in self._taken or math.prod(shape) * dtype.itemsize < SMALL:
            return torch.empty(shape, dtype=dtype, device="cpu")
        self._taken.add(name)
        block = self._blocks.get(name)
        if block is None or block.shape != shape or block.dtype != dtype:
            block = self._blocks[name] = torch.empty(shape, dtype=dtype, device="cpu")
        # A tensor of its own on the same memory: autograd would copy one that somebody else holds, and refuses views.
        return block.new_empty(0).set_(block.untyped_storage(), 0, shape, block.stride())


_CURRENT: ContextVar[StepMemory | None] = ContextVar("step memory", default=None)
"""The memory whose step is open."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Where the kernels of one tensor, such as the weight of a layer, get the memory for their results in one pass.

    Attributes:
        memory: That of the step, or `None`: then all memory is fresh.
        owner: The place of the tensor, which names its blocks. No result depends on it.
    """

    memory: StepMemory | None
    owner: int

    def empty(self, role: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor for a role, such as the output."""
        if self.memory is None:
            return torch.empty(shape, dtype=dtype, device="cpu")
        return self.memory.empty((self.owner, role), shape, dtype)

    def gradient_of(self, weight: Tensor) -> Tensor:
        """An uninitialised tensor for the gradient of a weight."""
        # The block would be overwritten under a gradient of an earlier step that this one is to be added to. A weight
        # that was computed may hand its gradient on to tensors that hold such a one.
        leaf = weight if weight._base is None else weight._base
        if leaf.is_leaf and leaf.grad is None:
            return self.empty("weight gradient", tuple(weight.shape), weight.dtype)
        return torch.empty_like(weight, memory_format=torch.contiguous_format)


def blocks_of(tensor: Tensor) -> Blocks:
    """The blocks of `tensor` in this pass: those of the open step, if there is one and the pass records gradients.

    >>> with StepMemory().step():
    ...     blocks_of(torch.ones(2)).memory is None
    False
    >>> blocks_of(torch.ones(2)).memory is None
    True
    """
    return Blocks(_CURRENT.get() if torch.is_grad_enabled() else None, tensor.data_ptr())

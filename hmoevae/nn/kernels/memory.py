"""StepMemory: large blocks of memory that every training step reuses.

The C library returns the memory of a large tensor to the operating system when the tensor is freed. The next tensor of
that size costs a page fault for every 4 KiB. On a CPU that can take as long as all the arithmetic of a training step.
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
"""Bytes. The largest block that glibc keeps when it is freed (M_MMAP_THRESHOLD in the manual page mallopt(3))."""
SMALL = 1 << 18
"""Bytes. Smaller tensors are allocated by the C library, which is faster for them."""


class StepMemory:
    """Named blocks of CPU memory, each used once per step and overwritten in the next.

    Inside `step`, all models take their large tensors from these blocks in passes that record gradients. So a step must
    not read activations or gradients of the step before it. The exception are gradients that the weights still hold and
    that the step adds to. `hmoevae.fit` uses a memory; in a loop of your own::

        memory = StepMemory()
        for x in batches:
            with memory.step():
                optimizer.zero_grad()
                model(x).loss.backward()
                optimizer.step()

    When a step begins, the blocks that the step before it did not use are freed.

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
        # glibc keeps freed blocks that are smaller than the largest block freed so far. This block is allocated and
        # freed to raise that limit; its pages are never touched.
        torch.empty(GLIBC_LARGEST, dtype=torch.uint8, device="cpu")

    @contextmanager
    def step(self) -> Iterator[None]:
        """Open a step: inside, code of this thread takes every block at most once.

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
        """An uninitialised tensor: the block of that name, or fresh memory if it is small or taken in this step."""
        if name in self._taken or math.prod(shape) * dtype.itemsize < SMALL:
            return torch.empty(shape, dtype=dtype, device="cpu")
        self._taken.add(name)
        n = math.prod(shape)
        block = self._blocks.get(name)
        if block is None or block.numel() < n or block.dtype != dtype:  # a smaller tensor takes the first part
            block = self._blocks[name] = torch.empty(n, dtype=dtype, device="cpu")
        # A new tensor on the same memory: autograd copies gradients that have other references, and refuses views.
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        return block.new_empty(0).set_(block.untyped_storage(), 0, shape, strides)


_CURRENT: ContextVar[StepMemory | None] = ContextVar("step memory", default=None)
"""The memory whose step is open."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """The memory for the results of the kernels of one tensor, such as the weight of a layer, in one pass.

    Attributes:
        memory: The memory of the open step; `None` means that all memory is fresh.
        owner: The address of the tensor, which names its blocks. No result depends on it.
    """

    memory: StepMemory | None
    owner: int

    def empty(self, role: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor for a role, such as the output."""
        if self.memory is None:
            return torch.empty(shape, dtype=dtype, device="cpu")
        return self.memory.empty((self.owner, role), shape, dtype)

    def gradient_of(self, weight: Tensor, n_rows: int | None = None) -> Tensor:
        """An uninitialised tensor for the gradient of a weight, or of `n_rows` of its rows."""
        shape = (len(weight) if n_rows is None else n_rows, *weight.shape[1:])
        # Where the weight holds a gradient of an earlier step in this block, writing to the block would overwrite the
        # gradient that this one is added to. A computed weight passes its gradient on to tensors that may hold one.
        leaf = weight if weight._base is None else weight._base
        if leaf.is_leaf and leaf.grad is None:
            return self.empty("weight gradient", shape, weight.dtype)
        return weight.new_empty(shape)


def blocks_of(tensor: Tensor) -> Blocks:
    """The blocks of `tensor` in this pass: those of the open step, if there is one and the pass records gradients.

    >>> with StepMemory().step():
    ...     blocks_of(torch.ones(2)).memory is None
    False
    >>> blocks_of(torch.ones(2)).memory is None
    True
    """
    return Blocks(_CURRENT.get() if torch.is_grad_enabled() else None, tensor.data_ptr())

"""StepMemory: large blocks of memory that one training step after another uses.

A large tensor that is freed goes back to the operating system, and the next one of its size costs a page fault for
every 4 KiB. On a CPU that can take as long as all the arithmetic of a training step.
"""

import math
from collections.abc import Hashable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

GLIBC_LARGEST = (32 << 20) - (64 << 10)
"""Bytes; glibc learns from blocks that it frees up to 32 MiB (M_MMAP_THRESHOLD in the manual page mallopt(3))."""
SMALL = 1 << 18
"""Bytes; smaller tensors are left to the C library, which is quicker at finding them a place."""


@runtime_checkable
class UsesMemory(Protocol):
    """A layer that takes its large tensors from a `StepMemory`, where there is one."""

    memory: "StepMemory | None"


class StepMemory:
    """Named blocks of CPU memory, each given out once a step and overwritten in the next.

    The layers of a module use it between `attach` and `detach`, in passes that record gradients. Whoever attaches it
    promises that nothing of one step is read in the next: not its activations, not its gradients. `hmoevae.fit` does;
    in a loop of your own::

        memory = StepMemory()
        memory.attach(model)
        for x in batches:
            optimizer.zero_grad()
            memory.next_step()
            model(x).loss.backward()
            optimizer.step()

    >>> memory, shape = StepMemory(), (300, 300)
    >>> first = memory.empty("a", shape, torch.float32)
    >>> fresh = memory.empty("a", shape, torch.float32)
    >>> memory.next_step()
    >>> again = memory.empty("a", shape, torch.float32)
    >>> first.data_ptr() == again.data_ptr(), first.data_ptr() == fresh.data_ptr()
    (True, False)
    >>> layer = nn.Linear(2, 3)
    >>> memory.attach(layer)  # of no effect on layers that don't use it, such as this one
    >>> memory.detach(layer)
    """

    def __init__(self) -> None:
        self._blocks: dict[Hashable, Tensor] = {}
        self._taken: set[Hashable] = set()
        # glibc keeps blocks instead of returning them to the system if they are smaller than the largest that it has
        # seen freed; this shows it one, whose pages are never touched.
        torch.empty(GLIBC_LARGEST, dtype=torch.uint8, device="cpu")

    def attach(self, module: nn.Module) -> None:
        """Let all layers of `module` that can do so take their large tensors from here."""
        for layer in module.modules():
            if isinstance(layer, UsesMemory):
                layer.memory = self

    @staticmethod
    def detach(module: nn.Module) -> None:
        """Undo `attach`."""
        for layer in module.modules():
            if isinstance(layer, UsesMemory):
                layer.memory = None

    def next_step(self) -> None:
        """Allow all blocks to be given out again."""
        self._taken.clear()

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

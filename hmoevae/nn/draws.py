"""Random numbers that do not depend on the number of processes, and a scope that restores the global generators.

Axes: `batch` counts samples and is last. Every process has a generator in the same state, draws random numbers for the
global batch and keeps the columns of its own samples. So a sample gets the same numbers for any number of processes.
"""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

_ONE_THREAD = threading.RLock()


@contextmanager
def borrowed_random_state(seed: int | None = None, device: torch.device | None = None) -> Iterator[None]:
    """Restore the global generators of Python, numpy and torch on leaving; on entering, seed them if `seed` is given.

    All threads share these generators, so only one thread at a time can be inside.

    Args:
        seed: An integer of at most 64 bits.
        device: If this is a GPU, its generator is seeded and restored too.

    >>> before = torch.get_rng_state()
    >>> with borrowed_random_state(seed=0):
    ...     torch.rand(1)
    tensor([0.4963])
    >>> torch.equal(torch.get_rng_state(), before)
    True
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    with _ONE_THREAD, torch.random.fork_rng(devices=devices):
        others = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002 (it is the global one that is meant)
        try:
            if seed is not None:
                torch.default_generator.manual_seed(seed)
                random.seed(seed)
                np.random.seed(seed % (1 << 32))  # noqa: NPY002
                if devices:
                    with torch.cuda.device(device):
                        torch.cuda.manual_seed(seed)
            yield
        finally:
            random.setstate(others[0])
            np.random.set_state(others[1])  # noqa: NPY002


@dataclass(frozen=True, slots=True)
class Share:
    """One process's samples of the global batch, which joins the batches of all processes in the order of their ranks.

    Attributes:
        start: Index of the process's first sample in the global batch.
        n: Number of the process's samples. A process with none runs one dummy sample of weight zero, so that all
            processes take part in every collective operation.
        total: Number of samples of the global batch.
        importance_of_all: Sums importances over all processes.

    >>> Share(start=2, n=3, total=5).rows, Share(start=2, n=3, total=5).weight
    (slice(2, 5, None), 0.6)
    """

    start: int
    n: int
    total: int
    importance_of_all: Callable[[Tensor], Tensor] | None = None

    @property
    def weight(self) -> float:
        """The fraction of the global batch that belongs to this process."""
        return self.n / self.total

    @property
    def rows(self) -> slice:
        """The columns of the global batch that belong to the samples of this process."""
        return slice(self.start, self.start + self.n) if self.n else slice(1)


def for_batch(
    draw: Callable[[int], Shaped[Tensor, "*axis batch"]], n: int, share: Share | None
) -> Shaped[Tensor, "*axis own_batch"]:
    """Draw random numbers for a batch of `n` samples; with a share, draw for the global batch and take its columns.

    Args:
        draw: From a number of samples to random numbers with the samples along the last axis.
        n: Number of samples of this process.
        share: Which samples of the global batch these are; `None` in a single process.

    >>> generator = torch.Generator()
    >>> for_batch(lambda n: torch.randn(2, n, generator=generator), 3, None).shape
    torch.Size([2, 3])
    >>> for_batch(lambda n: torch.arange(n).expand(2, -1), 3, Share(start=2, n=3, total=5))
    tensor([[2, 3, 4],
            [2, 3, 4]])
    """
    return draw(n) if share is None else draw(share.total)[..., share.rows]

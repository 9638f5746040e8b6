"""Random numbers for one process's part of a batch that several processes share; and the global generators, lent.

Axes: `batch` counts samples and is last. Every process holds a generator in the same state, draws for the batch of all
and takes its own columns, so that what a sample is given does not depend on how many processes there are.
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
    """Inside, the global generators, started from `seed` if one is given; after it, as if nobody had drawn.

    They are those of Python, numpy and torch, which all threads share: threads come in here one at a time.

    Args:
        seed: Of at most 64 bits.
        device: An accelerator whose generator is lent, too.

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
    """One process's samples of the global batch, that of all processes together in the order of the processes.

    Attributes:
        start: Place of the first of them in the global batch.
        n: How many. A process without any runs one made-up sample, which counts for nothing, so that all do the same.
        total: Samples of the global batch.
        importance_of_all: Makes the importance of the global batch of that of this process's samples.

    >>> Share(start=2, n=3, total=5).rows, Share(start=2, n=3, total=5).weight
    (slice(2, 5, None), 0.6)
    """

    start: int
    n: int
    total: int
    importance_of_all: Callable[[Tensor], Tensor] | None = None

    @property
    def weight(self) -> float:
        """The part of the global batch that this is."""
        return self.n / self.total

    @property
    def rows(self) -> slice:
        """Which draws of the global batch are for the samples that this process runs."""
        return slice(self.start, self.start + self.n) if self.n else slice(1)


def for_batch(
    draw: Callable[[int], Shaped[Tensor, "*axis batch"]], n: int, share: Share | None
) -> Shaped[Tensor, "*axis own_batch"]:
    """What `draw` gives for a batch of `n`; of a share, its columns of a draw for the global batch.

    Args:
        draw: From a number of samples to random numbers, one a sample along the last axis.
        n: Samples at hand.
        share: What they are of the global batch, in a process of several.

    >>> generator = torch.Generator()
    >>> for_batch(lambda n: torch.randn(2, n, generator=generator), 3, None).shape
    torch.Size([2, 3])
    >>> for_batch(lambda n: torch.arange(n).expand(2, -1), 3, Share(start=2, n=3, total=5))
    tensor([[2, 3, 4],
            [2, 3, 4]])
    """
    return draw(n) if share is None else draw(share.total)[..., share.rows]

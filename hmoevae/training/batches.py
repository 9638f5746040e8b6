"""Batches of samples from tensors, arrays, mapped files, data sets and loaders."""

import math
from collections.abc import Callable, Iterator, Sized
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from hmoevae.errors import ArgumentTypeError, DataError, ShapeError, mismatch
from hmoevae.model import BATCH_SIZE, ArrayLike, HMoEVAE
from hmoevae.training.processes import Batch, Processes

Data = ArrayLike | Dataset[Any] | DataLoader[Any]
WINDOW_BYTES = 1 << 28
"""How much of a memory-mapped file is in memory and shuffled at a time."""
BLOCK_BYTES = 1 << 20
"""How much of such a file is read in one piece."""


class Batches:
    """Batches of samples from any source, as often as asked for, and the samples' places in it where it is in memory.

    In several processes they are this one's part of each, and those without a part are left out. `length` is None where
    it cannot be known, `samples` where they are not in memory.
    """

    def __init__(self, length: int | None, samples: Tensor | None, iterate: Callable[[], Iterator[Batch]]) -> None:
        self.length = length
        self.samples = samples
        self.iterate = iterate

    def __len__(self) -> int:
        assert self.length is not None
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        return self.iterate()


def batches_of(
    model: HMoEVAE,
    data: Data,
    name: str,
    batch_size: int,
    order: torch.Generator | None,
    processes: Processes,
) -> Batches:
    """Make `data` a source of checked batches of `batch_size` a process, shuffled by `order`."""
    batch_size = batch_size * processes.count  # of all of them: they go through the data in one order
    if type(data) is TensorDataset:  # another class may have a __getitem__ of its own
        data = data.tensors[0]
    if isinstance(data, np.memmap) and data.ndim > 0:  # may be larger than memory
        for start in range(0, len(data), BATCH_SIZE):
            stop = min(start + BATCH_SIZE, len(data))
            model.check_input(data[start:stop], name=f"{name}[{start}:{stop}]")

        def from_file() -> Iterator[Batch]:
            for rows in _windows(len(data), max(1, data.nbytes // len(data)), batch_size, order):
                window = model.check_input(data[rows.numpy()], name=name, values=False)
                yield from _split(window, rows, batch_size, order, processes)

        return Batches(math.ceil(len(data) / batch_size), None, from_file)

    if isinstance(data, Tensor | np.ndarray):
        samples = model.check_input(data, name=name).to(model.dtype)
        everything = torch.arange(len(samples), device="cpu")
        return Batches(
            math.ceil(len(samples) / batch_size),
            samples,
            lambda: _split(samples, everything, batch_size, order, processes),
        )

    own_order = order or torch.Generator()  # without one a loader draws from the global generator
    if isinstance(data, DataLoader):
        processes.check_divided(data, name)
        loader = data
    elif isinstance(data, IterableDataset):
        loader = DataLoader(data, batch_size=batch_size, generator=own_order, collate_fn=partial(_stack, name))
    elif isinstance(data, Dataset):
        if not isinstance(data, Sized):
            expected = "a torch Dataset with __len__, or an IterableDataset"
            raise ArgumentTypeError(mismatch(name, expected, type(data).__name__))
        if len(data) == 0:
            raise DataError(mismatch(name, "at least one sample", "none"))
        sampler = SequentialSampler(data) if order is None else RandomSampler(data, generator=order)
        chosen = _OwnItems(BatchSampler(sampler, batch_size, drop_last=False), processes)
        loader = DataLoader(data, batch_sampler=chosen, generator=own_order, collate_fn=partial(_stack, name))
    else:
        expected = "a tensor, a numpy array, a torch Dataset or a DataLoader"
        raise ArgumentTypeError(mismatch(name, expected, _what_came(data)))
    whole = isinstance(data, IterableDataset)  # a stream can only be read from end to end, so each process does

    def from_loader() -> Iterator[Batch]:
        for batch in loader:
            x = model.check_input(batch[0] if isinstance(batch, tuple | list) else batch, name=name)
            own = x[processes.own(len(x))] if whole else x
            if len(own):
                yield own, None

    try:
        length = processes.longest(len(loader))
    except TypeError:
        length = None
    return Batches(length, None, from_loader)


def _what_came(data: object) -> str:
    """The type of an object, and which part of it holds the samples, if one is known to do so."""
    kind = type(data).__name__
    if isinstance(getattr(data, "x", None), Tensor):  # LabelledImages
        return f"a {kind}, whose .x is one"
    if hasattr(data, "to_numpy"):  # a data frame
        return f"a {kind}, whose .to_numpy() is one"
    return kind


def _stack(name: str, items: list[Any]) -> Any:
    """The samples of items, which stand first in those that are pairs, as one batch."""
    samples = [item[0] if isinstance(item, tuple | list) else item for item in items]
    try:
        return default_collate(samples)
    except TypeError:
        expected = "items that are tensors or begin with one (by a transform such as torchvision's ToTensor())"
        raise ArgumentTypeError(mismatch(name, expected, type(samples[0]).__name__)) from None
    except RuntimeError:
        shapes = dict.fromkeys(str(tuple(np.shape(sample))) for sample in samples)
        raise ShapeError(mismatch(name, "items of one shape", " and ".join(list(shapes)[:2]))) from None


class _OwnItems(Sampler[list[int]]):
    """This process's part of every batch of a sampler."""

    def __init__(self, batches: BatchSampler, processes: Processes) -> None:
        self.batches = batches
        self.processes = processes

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            if own := batch[self.processes.own(len(batch))]:
                yield own


def _split(
    samples: Tensor, rows: Tensor, batch_size: int, order: torch.Generator | None, processes: Processes
) -> Iterator[Batch]:
    """Batches of samples in memory with their places in the data set, `rows`, shuffled by `order`."""
    # Whole batches are gathered by index: a DataLoader would fetch and stack sample by sample.
    n = len(samples)
    index = torch.arange(n, device="cpu") if order is None else torch.randperm(n, generator=order, device="cpu")
    for batch in index.split(batch_size):
        chosen = batch[processes.own(len(batch))]
        if len(chosen):
            yield samples.index_select(0, chosen.to(samples.device)), rows[chosen]


def _windows(n: int, row_bytes: int, batch_size: int, order: torch.Generator | None) -> tuple[Tensor, ...]:
    """The rows of a file, in windows to hold in memory one after the other; all but the last are whole batches.

    A file larger than a window is cut into blocks, which `order` shuffles: single rows from all over the file would
    each cost a read of the disk.
    """
    window = batch_size * max(1, WINDOW_BYTES // row_bytes // batch_size)
    block = max(1, BLOCK_BYTES // row_bytes)
    starts = torch.arange(0, n, block, device="cpu")
    if order is not None and n > window:
        starts = starts[torch.randperm(len(starts), generator=order, device="cpu")]
    rows = (starts.unsqueeze(1) + torch.arange(block, device="cpu")).flatten()
    return rows[rows < n].split(window)

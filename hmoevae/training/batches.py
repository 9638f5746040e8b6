"""Batches of samples for training: shuffled, and divided among processes."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from hmoevae.door import Checked
from hmoevae.errors import ArgumentTypeError, DataError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.nn.sample_weights import SampleWeights
from hmoevae.samples import BATCH_SIZE, ArrayLike, Data, is_in_file, loader_of, nothing_from, opened, read
from hmoevae.tables.sparse import SparseRows
from hmoevae.training.processes import Batch, Processes

WINDOW_BYTES = 1 << 28
"""Size of the window of a memory-mapped file that is in memory, and shuffled, at a time."""
BLOCK_BYTES = 1 << 20
"""Size of the blocks in which such a file is read."""


class Batches:
    """Batches of samples from any source, which can be iterated over again and again.

    In several processes, a batch holds the samples of this process; batches without any are left out.

    Args:
        length: Number of batches; `None` where it is unknown.
        samples: All samples; `None` where they are not in memory.
        iterate: Starts a pass over the batches.
        glimpse: Some samples from all over the data. For a loader it is the first batch, once that has been read.
        weights: The weights of the samples, on the CPU; `None` means equal ones.
    """

    def __init__(
        self,
        length: int | None,
        samples: Tensor | None,
        iterate: Callable[[], Iterator[Batch]],
        glimpse: Tensor | None = None,
        weights: SampleWeights | None = None,
    ) -> None:
        self.length = length
        self.samples = samples
        self.iterate = iterate
        self.glimpse = glimpse
        self.weights = weights

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
    sample_weight: ArrayLike | None = None,
) -> Batches:
    """Make a source of checked batches from `data`, with `batch_size` samples per process, shuffled by `order`."""
    # The global batch size: all processes read the data in the same order.
    how = _How(model, name, batch_size * processes.count, order, processes, sample_weight)
    data = opened(model.door.encoded(data, name), name)
    if is_in_file(data):
        return _of_file(data, how)
    if isinstance(data, SparseRows):
        return _of_sparse(data, how)
    if isinstance(data, Tensor | np.ndarray | Checked):
        return _of_samples(model.check_input(data, name=name).to(model.dtype), how)
    return _of_items(data, how)


class _How(NamedTuple):
    """The arguments of `batches_of` for all types of sources; `batch_size` is that of the global batch."""

    model: HMoEVAE
    name: str
    batch_size: int
    order: torch.Generator | None
    processes: Processes
    sample_weight: ArrayLike | None

    def weights(self, n: int | None) -> SampleWeights | None:
        """The checked weights of `n` samples, which come with their indices; `None` if they come without."""
        if self.sample_weight is None:
            return None
        if n is None:
            expected = (
                "None for a Dataset or a DataLoader; a tensor, array, file or sparse matrix of samples may have weights"
            )
            raise ArgumentTypeError(mismatch("sample_weight", expected, type(self.sample_weight).__name__))
        return SampleWeights.of(self.sample_weight, n).like(torch.zeros((), dtype=torch.float64, device="cpu"))


def _of_file(file: Any, how: _How) -> Batches:
    model, name = how.model, how.name
    for start in range(0, max(1, len(file)), BATCH_SIZE):
        stop = min(start + BATCH_SIZE, len(file))
        model.check_input(file[start:stop], name=f"{name}[{start}:{stop}]")
    glimpse = model.check_input(file[:: _step(len(file), model)], values=False)

    def from_file() -> Iterator[Batch]:
        for rows in _windows(len(file), glimpse[0].nbytes, how.batch_size, how.order):
            window = model.check_input(file[rows.numpy()], name=name)
            yield from _split(window, rows, how)

    return Batches(math.ceil(len(file) / how.batch_size), None, from_file, glimpse, how.weights(len(file)))


def _of_sparse(rows: SparseRows, how: _How) -> Batches:
    """Batches that are made dense one by one: rows of a matrix in memory are read in any order at no cost."""
    n, model, name = len(rows), how.model, how.name
    for start in range(0, n, BATCH_SIZE):
        model.check_input(rows[start : start + BATCH_SIZE], name=f"{name}[{start}:{min(start + BATCH_SIZE, n)}]")

    def from_rows() -> Iterator[Batch]:
        for chosen in _chosen(n, how):
            x = model.check_input(rows[chosen.numpy()], name=name)
            yield x.to(model.dtype), chosen

    glimpse = model.check_input(rows[:: _step(n, model)], values=False)
    return Batches(math.ceil(n / how.batch_size), None, from_rows, glimpse, how.weights(n))


def _of_samples(samples: Tensor, how: _How) -> Batches:
    everything = torch.arange(len(samples), device="cpu")
    length, glimpse = math.ceil(len(samples) / how.batch_size), samples[:: _step(len(samples), how.model)]
    weights = how.weights(len(samples))
    return Batches(length, samples, lambda: _split(samples, everything, how), glimpse, weights)


def _of_items(data: Any, how: _How) -> Batches:
    model, name, batch_size, order, processes, _ = how
    how.weights(None)
    whole = isinstance(data, IterableDataset)  # a stream can only be read in order, so each process reads all of it
    if isinstance(data, DataLoader):
        processes.check_divided(data, name)
        loader = data
    elif whole:
        loader = loader_of(data, name, batch_size)
    else:
        sampler = SequentialSampler(data) if order is None else RandomSampler(data, generator=order)
        chosen = _OwnItems(BatchSampler(sampler, batch_size, drop_last=False), processes)
        loader = loader_of(data, name, batch_size, chosen)

    def from_loader() -> Iterator[Batch]:
        # One draw an epoch, not one a batch: a process without samples in the last batch must draw as often as the
        # others. Held-out samples have the same seed in every epoch.
        seed = 0 if order is None else int(torch.randint(1 << 62, (), generator=order, device="cpu"))
        seeds = torch.Generator().manual_seed(seed)
        for batch in read(loader, name, seeds):
            x = model.check_input(batch, name=name)
            batches.glimpse = x if batches.glimpse is None else batches.glimpse
            own = x[processes.own(len(x))] if whole else x
            if len(own):
                yield own, None

    try:
        length = processes.longest(len(loader))
    except TypeError:
        length = None
    if length == 0:
        raise DataError(mismatch(name, "at least one sample", nothing_from(loader)))
    batches = Batches(length, None, from_loader)
    return batches


def _step(n: int, model: HMoEVAE) -> int:
    """The step between the rows of the glimpse of `n` samples."""
    n_rows = max(16, min(4096, (1 << 18) // math.prod(model.input_shape)))
    return math.ceil(n / n_rows)


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


def _split(samples: Tensor, rows: Tensor, how: _How) -> Iterator[Batch]:
    """Batches of samples in memory, shuffled by `how.order`, with their indices in the data set, `rows`."""
    # A whole batch is gathered by one index_select: a DataLoader would fetch and stack sample by sample.
    for chosen in _chosen(len(samples), how):
        yield samples.index_select(0, chosen.to(samples.device)), rows[chosen]


def _chosen(n: int, how: _How) -> Iterator[Tensor]:
    """This process's part of every batch of `n` samples, as indices on the CPU, shuffled by `how.order`."""
    in_order = how.order is None
    index = torch.arange(n, device="cpu") if in_order else torch.randperm(n, generator=how.order, device="cpu")
    for batch in index.split(how.batch_size):
        chosen = batch[how.processes.own(len(batch))]
        if len(chosen):
            yield chosen


def _windows(n: int, row_bytes: int, batch_size: int, order: torch.Generator | None) -> tuple[Tensor, ...]:
    """The rows of a file in windows, which are held in memory one after the other; all but the last are whole batches.

    A file larger than a window is cut into blocks, which `order` shuffles. Shuffled single rows would each cost a read
    from the disk.
    """
    window = batch_size * max(1, WINDOW_BYTES // row_bytes // batch_size)
    block = max(1, BLOCK_BYTES // row_bytes)
    starts = torch.arange(0, n, block, device="cpu")
    if order is not None and n > window:
        starts = starts[torch.randperm(len(starts), generator=order, device="cpu")]
    rows = (starts.unsqueeze(1) + torch.arange(block, device="cpu")).flatten()
    return rows[rows < n].split(window)

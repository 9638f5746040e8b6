"""Sources of samples: arrays, files, sparse matrices, data sets and loaders, batch by batch, through a model's door.

Axes: `n` counts samples.
"""

from collections.abc import Callable, Iterator, Sized
from functools import partial
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from hmoevae.door import ArrayLike, Checked, refuse_masked
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, ShapeError, mismatch
from hmoevae.hints import remedy, what_came
from hmoevae.nn.draws import borrowed_random_state
from hmoevae.tables.frames import Frame
from hmoevae.tables.sparse import Sparse, SparseRows, is_sparse

Opened = ArrayLike | Checked | Dataset[Any] | DataLoader[Any] | SparseRows
Data = Opened | Sparse | Frame
Numbers = int | float | ArrayLike
BATCH_SIZE = 1024
"""Samples evaluated at a time by every method that takes `batch_size`."""
SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
_END = object()


class Scaled(Dataset[Tensor]):
    """Scales numbers of any type to floating point samples `(data - offset) / divisor`, one batch at a time.

    `fit`, `predict` and every other method take it in place of the data. A memory-mapped file is never in memory as a
    whole.

    Args:
        data: `(n, ...)`, a tensor, an array or a memory-mapped file of numbers or truth values.
        divisor: A number, or an array that fits a sample, such as the standard deviations of columns; not zero.
        offset: A number, or an array that fits a sample, such as the means of columns; subtracted before dividing.

    Raises:
        ArgumentTypeError: `data` are not numbers.
        ArgumentError: The divisor or the offset is not finite, or the divisor is zero.
        ShapeError: One of them does not fit a sample.

    >>> pixels = np.array([[0, 51], [255, 102]], dtype=np.uint8)
    >>> images = Scaled(pixels, 255)
    >>> images[:], len(images)
    (tensor([[0.0000, 0.2000],
            [1.0000, 0.4000]]), 2)
    >>> table = np.array([[1000.0, 0.1], [3000.0, 0.3]])
    >>> Scaled(table, table.std(0), offset=table.mean(0))[:].mean(0).abs().max() < 1e-9
    tensor(True)
    """

    def __init__(self, data: ArrayLike, divisor: Numbers, *, offset: Numbers = 0.0) -> None:
        if not isinstance(data, Tensor | np.ndarray):
            raise ArgumentTypeError(
                mismatch("data", "a tensor, a numpy array or a memory-mapped file", what_came(data))
            )
        refuse_masked(data, "data")
        is_number = data.layout == torch.strided if isinstance(data, Tensor) else data.dtype.kind in "biuf"
        if not is_number or data.ndim == 0 or (isinstance(data, Tensor) and data.is_complex()):
            got = f"{data.dtype}, {tuple(data.shape)}" + remedy(data, "data")
            raise ArgumentTypeError(mismatch("data", "rows of numbers", got))
        self.data = data
        self.divisor = _numbers(divisor, "divisor")
        self.offset = _numbers(offset, "offset")
        for argument, numbers in (("divisor", self.divisor), ("offset", self.offset)):
            sample = tuple(data.shape[1:])
            try:
                fits = torch.broadcast_shapes(numbers.shape, sample) == sample
            except RuntimeError:
                fits = False
            if not fits:
                expected = f"a number, or an array that fits a sample of {sample}"
                raise ShapeError(mismatch(argument, expected, f"an array of {tuple(numbers.shape)}"))
        if (self.divisor == 0).any():
            raise ArgumentError(mismatch("divisor", "numbers other than 0", "0 (is a column constant?)"))

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.data)

    def __repr__(self) -> str:
        """The shape and the type of the data, and whether they are in a file."""
        where = " in a file" if self.is_in_file else ""
        return f"<Scaled {self.data.dtype}, {tuple(self.data.shape)}{where}>"

    def __getitem__(self, index: Any) -> Tensor:
        """The scaled samples at an index, a slice or an array of indices."""
        rows = self.data[index]
        if isinstance(rows, Tensor):
            x = rows.to(torch.promote_types(rows.dtype, _float_for(rows.dtype.itemsize, rows.is_floating_point())))
        else:  # an array, or a scalar where a sample is a number
            rows = np.asarray(rows)
            dtype = np.float64 if _float_for(rows.itemsize, rows.dtype.kind == "f") == torch.float64 else np.float32
            x = torch.from_numpy(np.array(rows, dtype))
        return (x - self.offset.to(x)) / self.divisor.to(x)

    @property
    def is_in_file(self) -> bool:
        """Whether the data are a memory-mapped file."""
        return isinstance(self.data, np.memmap)


def _float_for(itemsize: int, is_float: bool) -> torch.dtype:
    """The type that holds the numbers exactly: float32 would round four-byte integers and eight-byte floats."""
    return torch.float64 if itemsize > (4 if is_float else 2) else torch.float32


def _numbers(given: Numbers, argument: str) -> Tensor:
    try:
        numbers = torch.as_tensor(given, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentTypeError(mismatch(argument, "a number or an array of them", type(given).__name__)) from None
    if not torch.isfinite(numbers).all():
        raise ArgumentError(mismatch(argument, "finite numbers", "NaN or infinity"))
    return numbers


# --- from any source ------------------------------------------------------------------------------------------------


def opened(data: Data, name: str) -> Opened:
    """Check the type of a source of samples; unwrap tensors and arrays from plain `TensorDataset` and `Scaled`.

    A sparse matrix becomes rows that are dense when they are read.

    Raises:
        ArgumentTypeError: It is no source of samples.
        DataError: It is an empty data set.
    """
    if type(data) is TensorDataset:  # a subclass may define its own __getitem__
        return data.tensors[0]
    if isinstance(data, Scaled) and not data.is_in_file:
        return data[:]
    if isinstance(data, SparseRows):
        return data
    if is_sparse(data):
        return SparseRows(data, name)
    if not isinstance(data, Tensor | np.ndarray | Checked | Dataset | DataLoader):
        expected = "a tensor, a numpy array, a torch Dataset, a DataLoader or a sparse matrix of scipy"
        raise ArgumentTypeError(mismatch(name, expected, what_came(data)))
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        if not isinstance(data, Sized):
            expected = "a torch Dataset with __len__, or an IterableDataset"
            raise ArgumentTypeError(mismatch(name, expected, type(data).__name__))
        if len(data) == 0:
            raise DataError(mismatch(name, "at least one sample", "none"))
    return data


def is_in_file(data: object) -> TypeGuard["np.memmap[Any, Any] | Scaled"]:
    """Whether data lie in a memory-mapped file, which may be larger than memory."""
    return (isinstance(data, np.memmap) and data.ndim > 0) or (isinstance(data, Scaled) and data.is_in_file)


def loader_of(
    data: Dataset[Any], name: str, batch_size: int, batch_sampler: Sampler[list[int]] | None = None
) -> DataLoader[Any]:
    """Make a loader that stacks the samples of a data set; of items that are tuples, it takes the first entry."""
    collate = partial(_stack, name)
    if batch_sampler is None:
        return DataLoader(data, batch_size=batch_size, collate_fn=collate)
    return DataLoader(data, batch_sampler=batch_sampler, collate_fn=collate)


def read(loader: DataLoader[Any], name: str, seeds: torch.Generator) -> Iterator[Any]:
    """Yield the samples of every batch of a loader.

    Loaders, their samplers and users' data sets draw from the global random states. While they run, these are seeded
    from `seeds`; afterwards they are restored.
    """
    iterator: Iterator[Any] | None = None
    while True:
        with borrowed_random_state(int(torch.randint(1 << 62, (), generator=seeds, device="cpu"))):
            iterator = iter(loader) if iterator is None else iterator
            batch = next(iterator, _END)
        if batch is _END:
            return
        yield _first_entry(batch, name)


def in_order(
    data: Data, name: str, check: Callable[..., Tensor], batch_size: int, *, one_answer_each: bool = True
) -> Iterator[Tensor]:
    """Yield checked batches of at most `batch_size` samples, in the order of the data.

    Args:
        data: The samples.
        name: The name of `data` in error messages.
        check: A function of an array and its `name`, such as `HMoEVAE.check_input`.
        batch_size: Samples in memory at a time, for files, sparse matrices and data sets; a DataLoader has its own.
        one_answer_each: Refuse loaders that shuffle or drop samples, whose results could not be matched to samples.
    """
    data = opened(data, name)
    if is_in_file(data) or isinstance(data, SparseRows):
        for start in range(0, max(1, len(data)), batch_size):
            stop = min(start + batch_size, len(data))
            yield check(data[start:stop], name=f"{name}[{start}:{stop}]")
    elif isinstance(data, Tensor | np.ndarray | Checked):
        yield from check(data, name=name).split(batch_size)
    else:
        loader = data if isinstance(data, DataLoader) else loader_of(data, name, batch_size)
        if one_answer_each:
            _check_order(loader, name)
        nothing = True
        for batch in read(loader, name, torch.Generator().manual_seed(0)):
            nothing = False
            yield from check(batch, name=name).split(batch_size)
        if nothing:
            raise DataError(mismatch(name, "at least one sample", nothing_from(loader)))


def nothing_from(loader: object) -> str:
    """The reason, in words, why a loader yields no batch."""
    if isinstance(loader, DataLoader) and _drops_last(loader):
        n = f"the {len(loader.dataset)} samples, " if isinstance(loader.dataset, Sized) else "what is "
        return f"none (drop_last=True leaves out {n}less than a batch)"
    return "none"


def _check_order(loader: DataLoader[Any], name: str) -> None:
    """Refuse a loader that shuffles or drops samples."""
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    expected = "a DataLoader that yields all samples in order"
    if isinstance(sampler, SHUFFLING):
        raise ArgumentError(mismatch(name, expected, "one that shuffles (use shuffle=False)"))
    size = getattr(loader.batch_sampler, "batch_size", loader.batch_size)
    whole = isinstance(sampler, Sized) and size and len(sampler) % size == 0
    if _drops_last(loader) and not whole:
        raise ArgumentError(mismatch(name, expected, "one with drop_last=True"))


def _drops_last(loader: DataLoader[Any]) -> bool:
    return bool(getattr(loader.batch_sampler, "drop_last", loader.drop_last))


def _first_entry(batch: Any, name: str) -> Any:
    """The samples of a batch: the first entry if the batch is a tuple or list."""
    first = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
    if not isinstance(first, Tensor | np.ndarray):
        expected = "batches that are tensors, or tuples that begin with one"
        raise ArgumentTypeError(mismatch(name, expected, what_came(first)))
    return first


def _stack(name: str, items: list[Any]) -> Tensor:
    """Stack the samples of items as one batch; of a tuple or list, take the first entry."""
    samples = [item[0] if isinstance(item, tuple | list) and len(item) else item for item in items]
    for sample in samples:
        refuse_masked(sample, name)
    expected = "items that are tensors, or tuples that begin with one"
    try:
        batch = default_collate(samples)
    except TypeError:
        raise ArgumentTypeError(mismatch(name, expected, what_came(samples[0]))) from None
    except RuntimeError:
        shapes = dict.fromkeys(str(tuple(np.shape(sample))) for sample in samples)
        raise ShapeError(mismatch(name, "items of one shape", " and ".join(list(shapes)[:2]))) from None
    if not isinstance(batch, Tensor):
        raise ArgumentTypeError(mismatch(name, expected, what_came(samples[0])))
    return batch

"""The door for data: turns samples in any form that users have into checked tensors, batch by batch.

Axes: `n` counts samples.
"""

import math
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.masked import MaskedTensor
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

from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, ShapeError, mismatch, warn
from hmoevae.hints import layout, remedy, reshaping, value_range, what_came
from hmoevae.nn.draws import borrowed_random_state

ArrayLike = Tensor | np.ndarray
Numbers = int | float | ArrayLike
ROUNDING = 1e-5
"""Largest distance from a support at which a value is set to the bound: scaling in float32 may overshoot that far."""
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


# --- one batch ------------------------------------------------------------------------------------------------------


def as_tensor(x: object, name: str, shape: tuple[int, ...]) -> Tensor:
    """Check the type and shape of `x`, but not its values, and return it as a tensor.

    Args:
        x: Samples, `(n, *shape)`.
        name: The name of `x` in error messages.
        shape: Shape of one sample.

    Raises:
        ArgumentTypeError: `x` is not a floating point tensor or array.
        ShapeError: `x` does not have the shape of a batch of samples.
        DataError: `x` is empty or partly masked.

    >>> as_tensor(np.zeros((2, 3)), "x", (3,)).shape
    torch.Size([2, 3])
    >>> as_tensor(np.zeros((2, 28, 28)), "x", (1, 28, 28))
    Traceback (most recent call last):
    ...
    hmoevae.errors.ShapeError: x: expected (batch, 1, 28, 28), got (2, 28, 28) (x.reshape(-1, 1, 28, 28) has that shape)
    """
    if not isinstance(x, Tensor | np.ndarray):
        raise ArgumentTypeError(mismatch(name, "a torch.Tensor or numpy array", what_came(x)))
    refuse_masked(x, name)
    if isinstance(x, Tensor) and (x.layout != torch.strided or x.is_nested or x.is_quantized):
        raise ArgumentTypeError(mismatch(name, "a dense tensor", layout(x)))
    is_floating_point = x.is_floating_point() if isinstance(x, Tensor) else np.issubdtype(x.dtype, np.floating)
    if not is_floating_point:
        got = f"{x.dtype}{value_range(x)}{remedy(x, name.partition('[')[0])}"
        raise ArgumentTypeError(mismatch(name, "floating point values", got))
    if x.shape[1:] != shape or x.ndim == 0:
        expected = f"({', '.join(['batch', *map(str, shape)])})"
        raise ShapeError(mismatch(name, expected, f"{tuple(x.shape)}{reshaping(x, name.partition('[')[0], shape)}"))
    if len(x) == 0:
        raise DataError(mismatch(name, "at least one sample", "none"))
    if isinstance(x, np.ndarray):  # torch shares memory with arrays of these types and flags; others are copied
        dtype = x.dtype.newbyteorder("=") if x.dtype.itemsize <= 8 else np.dtype(np.float64)  # from longdouble
        return torch.from_numpy(np.require(x, dtype, ["C", "W"]))
    if x.is_inference() and not torch.is_inference_mode_enabled():
        return x.clone()  # an inference tensor cannot take part in a backward pass
    return x


def refuse_masked(x: object, name: str) -> None:
    """Refuse masked values: the number under a mask is often -9999, and would count as data.

    Raises:
        DataError: A value is masked.

    >>> refuse_masked(np.ma.masked_equal([1.0, 2.0], -9999.0), "x")
    >>> refuse_masked(np.ma.masked_equal([1.0, -9999.0], -9999.0), "x")
    Traceback (most recent call last):
    ...
    hmoevae.errors.DataError: x: expected values without a mask, got 1 of 2 masked (leave ...
    """
    if isinstance(x, np.ma.MaskedArray):
        hidden, filled = int(np.ma.getmaskarray(x).sum()), "x.filled(...)"
    elif isinstance(x, MaskedTensor):
        hidden, filled = int((~x.get_mask()).sum()), "x.to_tensor(...)"
    else:
        return
    if hidden:
        remedy = f"leave such samples or columns out, or fill in a plausible value, as {filled} does"
        got = f"{hidden:,} of {np.prod(x.shape):,} masked ({remedy})"
        raise DataError(mismatch(name, "values without a mask", got))


# --- the door -------------------------------------------------------------------------------------------------------


@runtime_checkable
class Support(Protocol):
    """The members of a likelihood that the door uses."""

    support: str
    example: float

    def contains(self, x: Tensor) -> bool:
        """Whether every entry of the finite tensor `x` lies in the support."""
        ...

    def nearest(self, x: Tensor) -> Tensor:
        """The value of the support nearest to every entry of `x`."""
        ...


@dataclass(frozen=True, slots=True)
class Door:
    """Checks samples for a model. No other code looks at their values.

    Args:
        shape: Shape of one sample.
        dtype: Floating point type in which the model reads the samples.
        records: The records of the likelihoods, by which two doors are equal.
        likelihoods: The modules of the likelihoods, which know their supports.

    >>> door = Door((3,), torch.float32, (), ())
    >>> data = door.checked(torch.rand(5, 3))
    >>> data, door.checked(data) is data, torch.equal(door.check(data), data.x)
    (<Checked torch.float32, (5, 3)>, True, True)
    >>> door.seen(torch.tensor([[1.0, 2.0, torch.nan]]))
    Traceback (most recent call last):
    ...
    hmoevae.errors.DataError: x: expected finite values, got NaN or infinity in 1 samples, first 0
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    records: tuple[Any, ...]
    likelihoods: tuple[Support, ...] = field(compare=False, repr=False)

    def check(self, x: "ArrayLike | Checked", name: str = "x", *, values: bool = True, support: bool = True) -> Tensor:
        """Check a batch of samples and return it as a tensor, as `HMoEVAE.check_input` does.

        Args:
            x: Samples, `(batch, *shape)`. Samples that an equal door has checked are not checked again.
            name: The name of `x` in error messages.
            values: Check the values too.
            support: Check that the values lie in the support of every likelihood.
        """
        if isinstance(x, Checked):
            if x.passes(self, support=support):
                return x.x
            x = x.x
        tensor = as_tensor(x, name, self.shape)
        return self._looked_at(tensor, name, support=support) if values else tensor

    def seen(self, x: "ArrayLike | Checked", name: str = "x") -> Tensor:
        """Check samples for gates and encoders, which take values outside the support but have learned from inside it.

        Warns of values further than 1 from the support, such as pixels that are not divided by 255.
        """
        if isinstance(x, Checked) and x.passes(self, support=False):
            return x.x
        tensor = self.check(x, name, support=False)
        for likelihood in self.likelihoods:
            if not likelihood.contains(tensor) and (likelihood.nearest(tensor) - tensor).abs().max() > 1:
                warn(mismatch(name, f"{likelihood.support}, or close to it", _range(tensor)))
                break
        return tensor

    def checked(self, x: "ArrayLike | Checked", name: str = "x", *, support: bool = True) -> "Checked":
        """Check samples and mark them as checked by this door; without `support`, for gates and encoders only."""
        if isinstance(x, Checked) and x.passes(self, support=support):
            return x
        return Checked(self.check(x, name) if support else self.seen(x, name), self, in_support=support)

    def takes(self, x: Tensor) -> bool:
        """Whether finite values lie in the support of every likelihood."""
        return all(likelihood.contains(x) for likelihood in self.likelihoods)

    @property
    def example(self) -> float:
        """A value that samples may have."""
        values = [likelihood.example for likelihood in self.likelihoods]
        return next((value for value in values if self.takes(torch.tensor([value], device="cpu"))), 0.0)

    def _looked_at(self, x: Tensor, name: str, *, support: bool) -> Tensor:
        read = x.to(self.dtype)  # the model reads the samples in this type
        if not all(map(math.isfinite, torch.stack(read.aminmax()).tolist())):  # one pass: aminmax propagates NaN
            bad = (~torch.isfinite(read)).flatten(1).any(1)
            first = int(bad.nonzero()[0])
            count = int(bad.sum())
            raise DataError(mismatch(name, "finite values", f"NaN or infinity in {count} samples, first {first}"))
        return self._in_support(x, read, name) if support else x

    def _in_support(self, x: Tensor, read: Tensor, name: str) -> Tensor:
        """Check `x`, which the model reads as `read`, and set values just outside a support to its bound."""
        rounding = max(ROUNDING, *(4 * torch.finfo(dtype).eps for dtype in (x.dtype, read.dtype)))
        for likelihood in self.likelihoods:
            if likelihood.contains(read):
                continue
            near = likelihood.nearest(read)
            if not likelihood.contains(near) or (near - read).abs().max() > rounding:
                raise DataError(mismatch(name, likelihood.support, _range(x)))
            x, read = near.to(x.dtype), near
        return x


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Checked:
    """Samples that a door has checked. Models with an equal door do not check them again.

    `HMoEVAE.checked` makes them. `fit` and every method that takes samples take them too. Do not write to `x`.

    Args:
        x: The samples, `(n, *shape)`.
        door: The door that checked them.
        in_support: Whether they lie in the support of every likelihood; gates and encoders do not need that.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(4,))
    >>> data = model.checked(torch.rand(64, 4))
    >>> isinstance(data, Checked), len(data), data.passes(model.door)
    (True, 64, True)
    >>> len(hm.fit(model, data, hm.Training(epochs=1), progress=False)), model.predict(data).shape
    (1, torch.Size([64]))
    """

    x: Tensor
    door: Door
    in_support: bool = True

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.x)

    def __repr__(self) -> str:
        """The type and the shape."""
        return f"<{type(self).__name__} {self.x.dtype}, {tuple(self.x.shape)}>"

    def passes(self, door: Door, *, support: bool = True) -> bool:
        """Whether `door` need not check the samples again; with `support`, the experts use them too."""
        return (self.in_support or not support) and self.door == door


Data = ArrayLike | Checked | Dataset[Any] | DataLoader[Any]


def _range(x: Tensor) -> str:
    """The smallest and the largest value with all digits, because a value may miss a bound by the last digit."""
    low, high = (repr(end.item()).removesuffix(".0") for end in x.aminmax())
    return f"values from {low} to {high}"


# --- from any source ------------------------------------------------------------------------------------------------


def opened(data: Data, name: str) -> Data:
    """Check the type of a source of samples; unwrap tensors and arrays from plain `TensorDataset` and `Scaled`.

    Raises:
        ArgumentTypeError: It is no source of samples.
        DataError: It is an empty data set.
    """
    if type(data) is TensorDataset:  # a subclass may define its own __getitem__
        return data.tensors[0]
    if isinstance(data, Scaled) and not data.is_in_file:
        return data[:]
    if not isinstance(data, Tensor | np.ndarray | Checked | Dataset | DataLoader):
        expected = "a tensor, a numpy array, a torch Dataset or a DataLoader"
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
        batch_size: Samples in memory at a time, for files and data sets; a DataLoader has its own batch size.
        one_answer_each: Refuse loaders that shuffle or drop samples, whose results could not be matched to samples.
    """
    data = opened(data, name)
    if is_in_file(data):
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

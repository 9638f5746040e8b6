"""The door for one batch: turns arrays into checked tensors; no other code looks at the values of samples."""

import math
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.masked import MaskedTensor
from torch.utils.data import DataLoader, Dataset

from hmoevae.errors import ArgumentTypeError, DataError, ShapeError, mismatch, warn
from hmoevae.hints import layout, remedy, reshaping, value_range, what_came
from hmoevae.tables import Table
from hmoevae.tables.frames import Frame
from hmoevae.tables.sparse import SparseRows, is_sparse

ArrayLike = Tensor | np.ndarray
ROUNDING = 1e-5
"""Largest distance from a support at which a value is set to the bound: scaling in float32 may overshoot that far."""


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


def _without_mask(x: Any) -> Any:
    """Masked floating point values as NaN, which means the same to a model with `missing`."""
    if isinstance(x, np.ma.MaskedArray) and np.issubdtype(x.dtype, np.floating):
        return x.filled(np.nan)
    if isinstance(x, MaskedTensor) and x.dtype.is_floating_point:
        return x.to_tensor(torch.nan)
    return x


@runtime_checkable
class Support(Protocol):
    """The members of a likelihood that the door uses."""

    support: str
    example: float

    def contains(self, x: Tensor) -> bool:
        """Whether every entry of the finite tensor `x`, `(batch, *shape)`, lies in the support."""
        ...

    def refused(self, x: Tensor) -> tuple[str, Any]:
        """What is said of samples that `contains` refuses: the support in words, and the index of such entries."""
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
        missing: Whether NaN means that a cell was not observed; without it, NaN is an error. Infinity always is.
        table: The table that turns the rows of frames into samples; with one, all but tensors are frames.

    >>> door = Door((3,), torch.float32, (), ())
    >>> data = door.checked(torch.rand(5, 3))
    >>> data, door.checked(data) is data, torch.equal(door.check(data), data.x)
    (<Checked torch.float32, (5, 3)>, True, True)
    >>> door.seen(torch.tensor([[1.0, 2.0, torch.nan]]))
    Traceback (most recent call last):
    ...
    hmoevae.errors.DataError: x: expected finite values, got NaN or infinity in 1 samples, first 0 (a model made ...
    >>> Door((3,), torch.float32, (), (), missing=True).seen(torch.tensor([[1.0, 2.0, torch.nan]]))
    tensor([[1., 2., nan]])
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    records: tuple[Any, ...]
    likelihoods: tuple[Support, ...] = field(compare=False, repr=False)
    missing: bool = False
    table: Table | None = None

    def encoded(self, data: Any, name: str = "x") -> Any:
        """The samples of a frame, if this door has a table; what else there is, such as samples, as it is.

        A matrix or a memory-mapped file is left to be read in parts, which are frames themselves.
        """
        others = isinstance(data, Tensor | Checked | Dataset | DataLoader | SparseRows | np.memmap) or is_sparse(data)
        return data if self.table is None or others else self.table.encode(data, name=name)

    def check(self, x: "Samples", name: str = "x", *, values: bool = True, support: bool = True) -> Tensor:
        """Check a batch of samples and return it as a tensor, as `HMoEVAE.check_input` does.

        Args:
            x: Samples, `(batch, *shape)`, or a frame. Samples that an equal door has checked are not checked again.
            name: The name of `x` in error messages.
            values: Check the values too.
            support: Check that the values lie in the support of every likelihood.
        """
        if isinstance(x, Checked):
            if x.passes(self, support=support):
                return x.x
            x = x.x
        if self.table is not None and not isinstance(x, Tensor):
            x = self.table.encode(x, name=name)
        if self.missing:
            x = _without_mask(x)
        tensor = as_tensor(x, name, self.shape)
        return self._looked_at(tensor, name, support=support) if values else tensor

    def seen(self, x: "Samples", name: str = "x") -> Tensor:
        """Check samples for gates and encoders, which take values outside the support but have learned from inside it.

        Warns of values further than 1 from the support, such as pixels that are not divided by 255.
        """
        if isinstance(x, Checked) and x.passes(self, support=False):
            return x.x
        tensor = self.check(x, name, support=False)
        read = self._filled(tensor, self._gaps(tensor))
        for likelihood in self.likelihoods:
            if likelihood.contains(read):
                continue
            near = likelihood.nearest(read)
            if (near - read).abs().max() > 1:
                words, where = likelihood.refused(torch.where((near - read).abs() > 1, read, near))
                warn(mismatch(name, f"{words}, or close to it", _range(tensor[where])))
                break
        return tensor

    def checked(self, x: "Samples", name: str = "x", *, support: bool = True) -> "Checked":
        """Check samples and mark them as checked by this door; without `support`, for gates and encoders only."""
        if isinstance(x, Checked) and x.passes(self, support=support):
            return x
        return Checked(self.check(x, name) if support else self.seen(x, name), self, in_support=support)

    def takes(self, value: float) -> bool:
        """Whether a sample that has this value everywhere lies in the support of every likelihood."""
        sample = torch.full((1, *self.shape), value, device="cpu")
        return all(likelihood.contains(sample) for likelihood in self.likelihoods)

    @property
    def example(self) -> float:
        """A value that samples may have."""
        values = [likelihood.example for likelihood in self.likelihoods]
        return next((value for value in values if self.takes(value)), 0.0)

    def _looked_at(self, x: Tensor, name: str, *, support: bool) -> Tensor:
        read = x.to(self.dtype)  # the model reads the samples in this type
        gaps = None
        if not all(map(math.isfinite, torch.stack(read.aminmax()).tolist())):  # one pass: aminmax propagates NaN
            gaps = self._gaps(read)
            self._refuse_infinity(read, name)
        return self._in_support(x, read, name, gaps) if support else x

    def _refuse_infinity(self, x: Tensor, name: str) -> None:
        """Refuse infinite values and, where no cell can be missing, NaN."""
        bad = (torch.isinf(x) if self.missing else ~torch.isfinite(x)).flatten(1).any(1)
        if not bad.any():
            return
        where = f"in {int(bad.sum())} samples, first {int(bad.nonzero()[0])}"
        if self.missing:
            raise DataError(mismatch(name, "finite values, or NaN for missing cells", f"infinity {where}"))
        remedy = "" if torch.isinf(x).any() else " (a model made with missing=True takes NaN as not observed)"
        raise DataError(mismatch(name, "finite values", f"NaN or infinity {where}{remedy}"))

    def _gaps(self, x: Tensor) -> Tensor | None:
        """The cells that are missing; `None` where none can be."""
        return x.isnan() if self.missing else None

    def _filled(self, x: Tensor, gaps: Tensor | None) -> Tensor:
        """Samples with a finite value in their gaps: the least of the column, which is in the support if others are."""
        if gaps is None:
            return x
        least = x.masked_fill(gaps, torch.inf).amin(0)
        return torch.where(gaps, torch.where(least.isinf(), self.example, least), x)

    def _in_support(self, x: Tensor, read: Tensor, name: str, gaps: Tensor | None) -> Tensor:
        """Check `x`, which the model reads as `read`, and set values just outside a support to its bound."""
        read = self._filled(read, gaps)
        rounding = max(ROUNDING, *(4 * torch.finfo(dtype).eps for dtype in (x.dtype, read.dtype)))
        for likelihood in self.likelihoods:
            if likelihood.contains(read):
                continue
            near = likelihood.nearest(read)
            if not likelihood.contains(near) or (near - read).abs().max() > rounding:
                words, where = likelihood.refused(torch.where((near - read).abs() > rounding, read, near))
                raise DataError(mismatch(name, words, _range(x[where]) + _among(x[where], near[where])))
            x, read = near.to(x.dtype) if gaps is None else near.to(x.dtype).masked_fill(gaps, torch.nan), near
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


Samples = ArrayLike | Checked | Frame
"""What one batch of samples may come as."""


def _range(x: Tensor) -> str:
    """The least and the largest observed value with all digits, because a value may miss a bound by the last digit."""
    x = x[~x.isnan()]
    low, high = (repr(end.item()).removesuffix(".0") for end in x.aminmax())
    return f"values from {low} to {high}"


def _among(x: Tensor, near: Tensor) -> str:
    """The first value outside the support, where it lies inside the range of all."""
    outside, known = x[~x.isnan() & (near.to(x.dtype) != x)], x[~x.isnan()]
    if len(outside) == 0 or outside[0] in (known.min(), known.max()):
        return ""
    return f", {outside[0].item()!r} among them"

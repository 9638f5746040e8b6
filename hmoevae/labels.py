"""Labels as an array, one a sample, or an error that says which sample has none."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped
from torch import Tensor

from hmoevae.errors import DataError, ShapeError, mismatch

Labels = Tensor | np.ndarray | Sequence[Any]
"""Labels or clusters, one a sample, of any one kind that can be told apart and sorted."""


def read_labels(name: str, labels: Labels) -> Shaped[np.ndarray, " n"]:
    """The labels, none of them missing.

    Args:
        name: What the caller calls them.
        labels: `(n,)` numbers, strings or other values of one kind.

    Raises:
        ShapeError: They are no vector.
        DataError: There are none, or one is None, NaN, infinite or masked, or they are of several kinds.

    >>> read_labels("labels", ["a", "b", "a"]).tolist()
    ['a', 'b', 'a']
    >>> read_labels("labels", [0.0, 1.0, math.nan])
    Traceback (most recent call last):
    ...
    hmoevae.errors.DataError: labels: expected one for every sample (leave out samples without), got nan for sample 2
    """
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
        array = (labels.double() if labels.is_floating_point() else labels).numpy()  # numpy knows no bfloat16
    elif isinstance(labels, list | tuple):
        array = np.array(
            labels, dtype=object
        )  # of its own accord numpy would make the string "nan" of a NaN among some
    else:
        array = np.asarray(labels)
    if array.ndim != 1:
        raise ShapeError(mismatch(name, "(n,)", array.shape))
    if len(array) == 0:
        raise DataError(mismatch(name, "at least one", "none"))
    masked = np.ma.getmaskarray(labels) if isinstance(labels, np.ma.MaskedArray) else np.zeros(len(array), dtype=bool)
    missing = (masked | _is_missing(array)).nonzero()[0]
    if len(missing):
        first = missing[0]
        got = f"{'a masked one' if masked[first] else array[first]} for sample {first}"
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(mismatch(name, "one for every sample (leave out samples without)", got + more))
    return _of_one_kind(name, array) if array.dtype == object else array


def _is_missing(array: Shaped[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    if array.dtype.kind in "fc":
        return ~np.isfinite(array)
    if array.dtype.kind in "mM":
        return np.isnat(array)
    if array.dtype.kind in "OT":
        return np.array([not _is_value(value) for value in array])
    return np.zeros(len(array), dtype=bool)


def _is_value(value: Any) -> bool:
    """Whether it is something that equals itself, as NaN and its like do not, and not infinite."""
    try:
        return value is not None and bool(value == value) and not (isinstance(value, float) and math.isinf(value))
    except (TypeError, ValueError):  # pandas' missing value says neither yes nor no, nor does an array
        return False


def _of_one_kind(name: str, array: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
    """An array of objects as one of numbers or strings, where that is what they are."""
    try:
        np.unique(array)  # sorts them
        plain = np.array(array.tolist())
    except (TypeError, ValueError):
        kinds = ", ".join(sorted({type(value).__name__ for value in array}))
        raise DataError(mismatch(name, "labels of one kind", kinds)) from None
    return plain if plain.ndim == 1 else array

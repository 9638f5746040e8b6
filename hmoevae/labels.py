"""Labels as an array with one label per sample, or an error that names the sample without one."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped
from torch import Tensor

from hmoevae.errors import DataError, ShapeError, mismatch

Labels = Tensor | np.ndarray | Sequence[Any]
"""Labels or clusters, one per sample, of one type that can be compared and sorted."""


def read_labels(name: str, labels: Labels) -> Shaped[np.ndarray, " n"]:
    """Check that no label is missing, and return the labels as an array.

    Args:
        name: Their name in error messages.
        labels: `(n,)` numbers, strings or other values of one type.

    Raises:
        ShapeError: They are not a vector.
        DataError: There are none, or a label is None, NaN, infinite or masked, or they have several types.

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
        array = np.array(labels, dtype=object)  # without dtype=object, numpy turns a NaN among strings into "nan"
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
    """Whether a label is a value: it equals itself, unlike NaN, and is not infinite."""
    try:
        return value is not None and bool(value == value) and not (isinstance(value, float) and math.isinf(value))
    except (TypeError, ValueError):  # comparing pandas' missing value, or an array, gives no bool
        return False


def _of_one_kind(name: str, array: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
    """Convert an array of objects to one of numbers or strings, if they are all of that type."""
    try:
        np.unique(array)  # sorts them
        plain = np.array(array.tolist())
    except (TypeError, ValueError):
        kinds = ", ".join(sorted({type(value).__name__ for value in array}))
        raise DataError(mismatch(name, "labels of one kind", kinds)) from None
    return plain if plain.ndim == 1 else array

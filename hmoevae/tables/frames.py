"""Frames of any library as named columns of cells, and columns as a frame. No frame library is imported here."""

import datetime as dt
import decimal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from hmoevae.errors import ArgumentTypeError, DataError, MissingExtraError, ShapeError, mismatch

Library = Literal["pandas", "polars", "pyarrow", "numpy", "dict"]
"""What a frame is of: a library, an array of two axes, or a dict of columns."""


@runtime_checkable
class ArrowFrame(Protocol):
    """A frame that hands its columns over by Arrow's protocol, as those of pandas, polars and pyarrow do.

    >>> isinstance({}, ArrowFrame)
    False
    """

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Hand the columns over."""
        ...


Frame = Mapping[str, Any] | ArrowFrame
"""What has columns with names; an array has columns without."""
Sort = Literal["numbers", "truth values", "text", "dates", "others", "nothing"]
_DATES = (dt.date, dt.time, dt.timedelta, np.datetime64, np.timedelta64)
_ACCEPTED = "a data frame (pandas, polars, ...), a dict of columns or a numpy array (rows, columns)"


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """The cells of a column, as they came.

    Args:
        path: The column in error messages, such as `frame['island']`.
        values: The cells, `(n,)`: an array of numbers or truth values, or of objects.
        gaps: Which cells are missing: None, NaN, the library's own null, or masked.
        sort: What the cells that are not missing are.
        categories: The categories that the column's type declares, in order.
        weight: How many cells each cell counts for; `None` means one.

    >>> cells = Cells("x", np.array([1.0, np.nan]), np.array([False, True]), "numbers")
    >>> cells.observed
    [1.0]
    """

    path: str
    values: np.ndarray
    gaps: Bool[np.ndarray, " n"]
    sort: Sort
    categories: tuple[Any, ...] | None = None
    weight: Float[np.ndarray, " n"] | None = None

    @property
    def counts(self) -> Float[np.ndarray, " observed"]:
        """The weights of the cells that are not missing; ones where all are zero."""
        seen = np.ones(len(self.values)) if self.weight is None else self.weight
        return seen[~self.gaps] if seen[~self.gaps].any() else np.ones(int((~self.gaps).sum()))

    @property
    def observed(self) -> list[Any]:
        """The cells that are not missing, as Python's own objects."""
        return self.values[~self.gaps].tolist()

    def refuse(self, wrong: Bool[np.ndarray, " n"], expected: str, remedy: str = "") -> None:
        """Raise an error that names the first wrong cell, if there is one.

        Raises:
            DataError: There is one.
        """
        if wrong.any():
            first = int(wrong.argmax())
            value = self.values[first : first + 1].tolist()[0]
            got = f"{value!r:.80} in {int(wrong.sum()):,} of {len(wrong):,} rows, first {first}{remedy}"
            raise DataError(mismatch(self.path, expected, got))


def cells_of(path: str, values: Any, declares: object = None) -> Cells:
    """Make cells of a sequence of numbers, truth values, strings, or other objects.

    Args:
        path: The column in error messages.
        values: The cells.
        declares: The column whose type may declare categories; `values` by default.

    Raises:
        ShapeError: The values are not a sequence.

    >>> cells = cells_of("frame['a']", ["x", None, "y"])
    >>> cells.sort, cells.observed, cells.gaps.tolist()
    ('text', ['x', 'y'], [False, True, False])
    >>> cells_of("frame['b']", np.ma.masked_equal([1, -9], -9)).gaps.tolist()
    [False, True]
    """
    if isinstance(values, str | bytes) or not (hasattr(values, "__iter__") or hasattr(values, "__array__")):
        raise ShapeError(mismatch(path, "a column: a sequence of cells", f"{values!r:.80}"))
    gaps = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
    array = np.ma.getdata(values) if gaps is not None else _array(values)
    if array.ndim != 1:
        raise ShapeError(mismatch(path, "a column: one axis", f"{array.ndim} axes"))
    gaps = np.zeros(len(array), bool) if gaps is None else gaps
    if array.dtype.kind == "f":
        gaps = gaps | np.isnan(array)
    elif array.dtype.kind == "O":
        gaps = gaps | np.fromiter(map(_is_gap, array.tolist()), bool, len(array))
    dtype = getattr(values if declares is None else declares, "dtype", None)
    categories = getattr(dtype, "categories", None)
    declared = None if categories is None else tuple(categories)
    return Cells(path, array, gaps, _sort(array, gaps), declared)


def _array(values: Any) -> np.ndarray:
    """An array of numbers or truth values, or of the objects themselves."""
    if not isinstance(values, np.ndarray) and hasattr(values, "__array__"):  # a tensor, a column of pandas
        values = np.asarray(values)
    if not isinstance(values, np.ndarray):
        objects = list(values)
        try:
            array = np.asarray(objects)
        except ValueError:  # items of different lengths
            array = np.empty(0, object)
        if array.ndim == 1 and array.dtype.kind in "biuf" and len({type(value) for value in objects}) == 1:
            return array
        values = np.empty(len(objects), object)
        values[:] = objects
    return values if values.dtype.kind in "biufmM" else values.astype(object)


def _is_gap(value: Any) -> bool:
    return (
        value is None
        or (isinstance(value, float | np.floating | decimal.Decimal) and value != value)
        or type(value).__name__ in ("NAType", "NaTType")
    )


def _sort(values: np.ndarray, gaps: Bool[np.ndarray, " n"]) -> Sort:
    if gaps.all():
        return "nothing"
    if values.dtype.kind == "b":
        return "truth values"
    if values.dtype.kind != "O":
        return "dates" if values.dtype.kind in "mM" else "numbers"
    kinds: set[Sort] = {_kind_of(type(value)) for value in values[~gaps].tolist()}
    return kinds.pop() if len(kinds) == 1 else "others"


def _kind_of(cls: type) -> Sort:
    if issubclass(cls, bool | np.bool_):
        return "truth values"
    if issubclass(cls, int | float | np.integer | np.floating | decimal.Decimal):
        return "numbers"
    if issubclass(cls, str):
        return "text"
    return "dates" if issubclass(cls, _DATES) else "others"


def read(frame: object, name: str, names: Sequence[str] = ()) -> tuple[dict[str, Cells], Library]:
    """Read the columns of a frame.

    Args:
        frame: A frame of pandas, polars, pyarrow or another library that narwhals knows, a dict of columns, or an
            array `(n, column)`.
        name: The name of `frame` in error messages.
        names: The names of an array's columns; x0, x1, ... by default.

    Returns:
        The columns by name, and what the frame is of.

    Raises:
        ArgumentTypeError: It is no frame, or a name is no string.
        DataError: It has no rows or no columns, or two columns have the same name.
        ShapeError: The columns have different lengths, or an array has another number of columns than names.

    >>> columns, library = read({"a": [1.0, 2.0], "b": ["x", "y"]}, "frame")
    >>> list(columns), library, columns["b"].path
    (['a', 'b'], 'dict', "frame['b']")
    """
    library: Library = "dict"
    if isinstance(frame, np.ndarray) and frame.dtype.names is None:
        pairs, library = _of_array(frame, name, names), "numpy"
    elif isinstance(frame, np.ndarray):
        pairs = [(field, cells_of(_path(name, field), frame[field])) for field in frame.dtype.names or ()]
    elif isinstance(frame, Mapping):
        pairs = [(_string(key, name), cells_of(_path(name, key), column)) for key, column in frame.items()]
    else:
        pairs, library = _of_library(frame, name)
    _refuse_twice([column for column, _ in pairs], name)
    columns = dict(pairs)
    lengths = {len(cells.values): column for column, cells in columns.items()}
    if len(lengths) > 1:
        got = " and ".join(f"{n} in {column!r}" for n, column in list(lengths.items())[:2])
        raise ShapeError(mismatch(name, "columns of one length", got))
    if not columns or 0 in lengths:
        raise DataError(mismatch(name, "at least one row and one column", "none"))
    return columns, library


def _refuse_twice(columns: Sequence[Any], name: str) -> None:
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise DataError(mismatch(name, "column names that differ", f"{twice!r} {columns.count(twice)} times"))


def _path(name: str, column: object) -> str:
    return f"{name}[{column!r}]"


def _string(key: object, name: str) -> str:
    """The name of a column; pandas numbers columns that have none."""
    if isinstance(key, int | np.integer):
        return str(key)
    if not isinstance(key, str):
        raise ArgumentTypeError(mismatch(f"{name}.columns", "names that are strings", f"{key!r:.80}"))
    return key


def _of_array(array: np.ndarray, name: str, names: Sequence[str]) -> list[tuple[str, Cells]]:
    if array.ndim != 2 or (names and array.shape[1] != len(names)):
        raise ShapeError(mismatch(name, f"(rows, {len(names) or 'columns'})", array.shape))
    names = names or [f"x{i}" for i in range(array.shape[1])]
    return [(column, cells_of(_path(name, column), array[:, i])) for i, column in enumerate(names)]


def _of_library(frame: Any, name: str) -> tuple[list[tuple[str, Cells]], Library]:
    import narwhals.stable.v2 as nw
    from narwhals.exceptions import DuplicateError

    if hasattr(frame, "collect") and hasattr(frame, "lazy"):
        raise ArgumentTypeError(mismatch(name, _ACCEPTED, f"a lazy frame ({name}.collect() makes one)"))
    try:
        table = nw.from_native(frame, eager_only=True)
        columns = table.columns
    except DuplicateError:
        _refuse_twice(list(getattr(frame, "column_names", frame.columns)), name)
        raise
    except TypeError:
        return _of_others(frame, name)
    series = [table.get_column(column) for column in columns]
    pairs = [
        (_string(column, name), _of_series(s, _path(name, column))) for column, s in zip(columns, series, strict=True)
    ]
    library = str(table.implementation)
    return pairs, library if library in ("pandas", "polars", "pyarrow") else "dict"  # type: ignore[return-value]


def _of_others(frame: Any, name: str) -> tuple[list[tuple[str, Cells]], Library]:
    """Read a frame that hands its columns over by one of the two protocols of exchange."""
    if hasattr(frame, "__arrow_c_stream__"):
        module = next((library for library in ("pyarrow", "polars") if _is_there(library)), None)
        if module is None:
            raise MissingExtraError(
                mismatch(name, "pyarrow or polars, to read an Arrow stream", "neither is installed")
            )
        library = import_module(module)
        return _of_library(library.table(frame) if module == "pyarrow" else library.DataFrame(frame), name)[0], "dict"
    if hasattr(frame, "__dataframe__"):
        return _of_library(import_module("pandas").api.interchange.from_dataframe(frame), name)[0], "dict"
    remedy = f" ({name}.to_frame() makes one)" if hasattr(frame, "to_frame") else ""
    raise ArgumentTypeError(mismatch(name, _ACCEPTED, f"a {type(frame).__name__}{remedy}"))


def _is_there(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def _of_series(series: Any, path: str) -> Cells:
    native = series.to_native()
    is_coded = hasattr(getattr(native, "dtype", None), "categories")
    if not is_coded and (series.dtype.is_integer() or series.dtype.is_float()):
        return cells_of(path, np.asarray(series.to_numpy()))  # NaN for the library's null
    return cells_of(path, series.to_list(), native)


def write(columns: Mapping[str, np.ndarray], library: Library) -> Any:
    """Make a frame of columns.

    Args:
        columns: The columns by name, each `(n,)`; None or NaN is a gap.
        library: What the frame is of.

    Raises:
        MissingExtraError: The library is not installed.

    >>> write({"a": np.array([1.0]), "b": np.array([2.0])}, "numpy")
    array([[1., 2.]])
    """
    if library == "dict":
        return dict(columns)
    if library == "numpy":
        return np.stack(list(columns.values()), axis=1)
    if not _is_there(library):
        got = f"it is not installed (pip install {library}), and the table was made of a frame of it"
        raise MissingExtraError(mismatch("decode", library, got))
    import narwhals.stable.v2 as nw

    as_lists = {name: values.tolist() if values.dtype == object else values for name, values in columns.items()}
    return nw.from_dict(as_lists, backend=library).to_native()

"""Table: the schema of a frame as data. It turns rows into samples, and samples into rows."""

import difflib
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, cast

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BeforeValidator
from torch import Tensor

from hmoevae.checks import check_choice
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, ShapeError, SpecError, mismatch
from hmoevae.spec import Columns
from hmoevae.spec.record import expected, read_json, record, write
from hmoevae.tables import frames
from hmoevae.tables.columns import Binary, Category, Column, Count, Number
from hmoevae.tables.frames import Cells, Library
from hmoevae.tables.inference import inferred

KINDS: Mapping[str, Callable[..., Any]] = {
    "number": Number.of,
    "linear": functools.partial(Number.of, log=False),
    "log": functools.partial(Number.of, log=True),
    "category": Category.of,
    "binary": Binary.of,
    "count": Count.of,
}
"""What `kinds` of `Table.of` can say of a column."""


def _columns(value: Any) -> Any:
    if not (isinstance(value, tuple | list) and value and all(isinstance(part, Column) for part in value)):
        raise expected("a tuple of columns, such as (Number('mass'), Count('eggs'))")
    names = [column.name for column in value]
    if len(set(names)) < len(names):
        raise expected("columns whose names differ")
    return tuple(value)


@record(kind="table")
class Table:
    """The schema of a frame: its columns by name, what their cells are, and how they become numbers.

    A sample is a row: one number for each column. Numbers are standardised, a category is its index, counts stay as
    they are, and NaN stands for a gap. `Table.of` makes the table of a frame.

    Args:
        columns: The columns, in order, as `hmoevae.tables.Number`, `Category`, `Binary` and `Count`.
        library: What `decode` makes: a frame of `"pandas"`, `"polars"` or `"pyarrow"`, a `"dict"` of arrays, or a
            `"numpy"` array of two axes.

    Raises:
        SpecError: A field is not valid.

    >>> frame = {"mass": [3800.0, 3700.0, None, 5700.0], "island": ["Dream", "Dream", "Biscoe", "Biscoe"]}
    >>> frame |= {"eggs": [2, 0, 1, 2]}
    >>> table = Table.of(frame, kinds={"eggs": "count"})
    >>> print(table)
    mass    number, 4400 ± 920, may be missing
    island  category, Biscoe, Dream
    eggs    count
    >>> x = table.encode(frame)
    >>> x.shape, x[:, 1].tolist(), table.names, table.missing
    (torch.Size([4, 3]), [1.0, 1.0, 0.0, 0.0], ['mass', 'island', 'eggs'], True)
    >>> table.decode(x)["island"].tolist()
    ['Dream', 'Dream', 'Biscoe', 'Biscoe']
    >>> table_from_json(table.to_json()) == table
    True
    >>> table.encode({"mass": [4000.0], "island": ["Torgersen"], "eggs": [2]})
    Traceback (most recent call last):
    ...
    hmoevae.errors.DataError: frame['island']: expected one of the 2 categories 'Biscoe', 'Dream', got 'Torgersen'...
    """

    columns: Annotated[tuple[Column, ...], BeforeValidator(_columns)]
    library: Library = "dict"

    @classmethod
    def of(
        cls,
        frame: Any,
        *,
        kinds: Mapping[str, str | Column] | None = None,
        missing: bool | None = None,
        sample_weight: Float[np.ndarray, " n"] | None = None,
        name: str = "frame",
    ) -> "Table":
        """The table of a frame.

        Truth values, and numbers that are all 0 or 1, make a binary column, other numbers a column of numbers; text,
        and columns whose type declares categories, make categories. What cannot be told is an error that says what to
        do. A column whose numbers are all equal has the standard deviation 1.

        Args:
            frame: A frame of pandas, polars, pyarrow or another library that narwhals knows, or that exchanges its
                columns by Arrow's or the data frame protocol; a dict of columns; or an array `(rows, columns)`. None,
                NaN and masked cells are gaps.
            kinds: What columns are where that is not what is inferred: by name, `"number"`, `"category"`, `"binary"`,
                `"count"`, or a column such as `hmoevae.tables.Category("size", ("S", "M", "L"))`. The logarithm of a
                number is taken where a log-normal density fits better; for `"log"` it always is, for `"linear"` never.
            missing: Whether cells of later frames may be missing; `None` lets them be in the columns that have gaps
                here.
            sample_weight: How many rows each row counts for, in means and standard deviations; `None` means one.
            name: The name of `frame` in error messages.

        Raises:
            DataError: A column cannot be used: it has no cell that is not missing, infinite values, dates, mixed types,
                nearly as many categories as rows, or cells that its kind cannot hold; or two have one name.
            ArgumentError: `kinds` names a column or a kind that there is not, or weights are not numbers >= 0.
            ArgumentTypeError: `frame` is no frame, or `kinds` no mapping.

        >>> Table.of(np.array([[1.0, 0.0], [5.0, 1.0]])).columns
        (Number(name='x0', mean=3.0, std=2.0), Binary(name='x1', categories=(0.0, 1.0)))
        """
        cells, library = frames.read(frame, name)
        kinds = checked_kinds(kinds)
        for key in kinds:
            if key not in cells:
                raise ArgumentError(mismatch("kinds", f"names of columns{_closest(key, cells)}", repr(key)))
        if sample_weight is not None:
            weight = _weights(sample_weight, len(next(iter(cells.values())).values))
            cells = {key: replace(part, weight=weight) for key, part in cells.items()}
        return cls(tuple(_column(key, part, kinds.get(key), missing) for key, part in cells.items()), library)

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return [column.name for column in self.columns]

    @property
    def missing(self) -> bool:
        """Whether cells of a column may be missing."""
        return any(column.missing for column in self.columns)

    def encode(self, frame: Any, *, name: str = "frame") -> Float[Tensor, "n column"]:
        """The rows of a frame as samples.

        Columns are found by name, in any order, and others are ignored. The columns of an array have no names, so it
        has to have those of the table in their order.

        Args:
            frame: A frame of any library, a dict of columns, or an array, as for `Table.of`.
            name: The name of `frame` in error messages.

        Raises:
            DataError: A column is missing, or it has cells that it cannot hold, such as a category that is not in the
                table. The message names the column and the first row.
        """
        given, _ = frames.read(frame, name, self.names)
        for column in self.columns:
            if column.name not in given:
                others = {other for other in given if other not in self.names}
                raise DataError(mismatch(name, f"a column {column.name!r}", f"none{_closest(column.name, others)}"))
        return torch.from_numpy(np.stack([column.encode(given[column.name]) for column in self.columns], axis=1))

    def decode(self, x: Tensor) -> Any:
        """Samples as rows: what `encode` was given, but for the types of the columns, which are plain ones.

        Codes of categories are rounded to the nearest.

        Args:
            x: Samples, `(n, column)`, as `encode`, `HMoEVAE.sample` and `HMoEVAE.reconstruct` return them.

        Returns:
            A frame of the library that the table was made of, a dict of arrays, or an array. Gaps stay gaps.

        Raises:
            ShapeError: `x` does not have the table's columns.
            DataError: A code is none of its column's.
            MissingExtraError: The library is not installed.
        """
        codes = self._checked(x).detach().cpu().double().numpy()
        columns = {
            column.name: column.decode(codes[:, i], f"x[:, {i}] ({column.name!r})")
            for i, column in enumerate(self.columns)
        }
        return frames.write(columns, self.library)

    def log_jacobian(self, x: Tensor) -> Float[Tensor, " n"]:
        """What to add to the log-density of samples for that of their rows, in the units of the columns.

        Standardising divides by the standard deviation, so that log p(row) = log p(sample) - log std, summed over the
        columns of numbers. Gaps are left out.

        Args:
            x: Samples, `(n, column)`, as `encode` returns them.

        Raises:
            ShapeError: `x` does not have the table's columns.

        >>> table = Table.of({"mass": [3000.0, 5000.0]})
        >>> table.log_jacobian(torch.zeros(1, 1)).exp()  # a standard deviation is 1000
        tensor([0.0010])
        """
        x = self._checked(x)
        zero = torch.zeros_like(x[:, 0])
        parts = [(x[:, i], column) for i, column in enumerate(self.columns)]
        return sum(
            ((zero + column.log_jacobian(codes)).masked_fill(codes.isnan(), 0.0) for codes, column in parts), zero
        )

    def likelihood(self) -> Columns:
        """The likelihood of the samples: one for each column.

        >>> print(Table.of({"mass": [1.0, 2.0], "island": ["a", "b"]}).likelihood())
        Columns(Gaussian(learned, identity), Categorical(2))
        """
        return Columns.of(*(column.likelihood() for column in self.columns))

    def misfit(self, contains: Callable[[Tensor], bool]) -> str | None:
        """The name of the first column whose codes a likelihood's support is not made for; `None` if it fits all.

        Args:
            contains: Whether a support contains samples `(n, column)`, as `LikelihoodModule.contains`.

        >>> Table.of({"mass": [1.0, 2.0], "eggs": [0, 1]}).misfit(lambda x: True)  # half an egg too
        'eggs'
        """
        usual = torch.tensor([column.codes[0][0] for column in self.columns], device="cpu")

        def takes(i: int, code: float) -> bool:
            sample = usual.clone()
            sample[i] = code
            return contains(sample.unsqueeze(0))

        for i, column in enumerate(self.columns):
            inside, outside = column.codes
            if not all(takes(i, code) for code in inside) or any(takes(i, code) for code in outside):
                return column.name
        return None

    def to_json(self) -> str:
        """The table as a JSON text, which `table_from_json` reads."""
        return json.dumps(write(self))

    def __str__(self) -> str:
        width = max(map(len, self.names))
        lines = [
            f"{column.name:{width}}  {column.describe()}{', may be missing' if column.missing else ''}"
            for column in self.columns
        ]
        return "\n".join(lines)

    def _checked(self, x: Any) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise ArgumentTypeError(mismatch("x", "a floating point tensor (rows, columns)", got))
        if x.ndim != 2 or x.shape[1] != len(self.columns):
            raise ShapeError(mismatch("x", f"(rows, {len(self.columns)})", tuple(x.shape)))
        return x


def checked_kinds(kinds: object) -> Mapping[str, str | Column]:
    """What `kinds` says of columns: nothing, where it is `None`.

    Raises:
        ArgumentTypeError: It is no mapping.

    >>> checked_kinds(None)
    {}
    """
    if kinds is not None and not isinstance(kinds, Mapping):
        raise ArgumentTypeError(mismatch("kinds", "a mapping such as {'visits': 'count'}", f"{kinds!r:.80}"))
    return {} if kinds is None else kinds


def _weights(given: Any, n: int) -> Float[np.ndarray, " n"]:
    is_array = isinstance(given, np.ndarray) and given.shape == (n,) and given.dtype.kind in "biuf"
    if not is_array or not (np.isfinite(given) & (given >= 0)).all():
        raise ArgumentError(mismatch("sample_weight", f"an array of {n} finite numbers >= 0", f"{given!r:.80}"))
    return given.astype(float)


def table_from_json(text: str | bytes) -> Table:
    """Read a table from the JSON text that `Table.to_json` wrote.

    Raises:
        SpecError: The text is not JSON or not a table, or a field is not valid.

    >>> table_from_json('{"kind": "table", "columns": [{"kind": "count", "name": "eggs"}]}')
    Table(columns=(Count(name='eggs'),))
    """
    table = read_json(text, "table")
    if not isinstance(table, Table):
        raise SpecError(mismatch("table", "a Table", f"{table!r:.200}"))
    return table


def _column(name: str, cells: Cells, kind: str | Column | None, missing: bool | None) -> Column:
    missing = bool(cells.gaps.any()) if missing is None else missing
    if cells.sort == "nothing":
        raise DataError(mismatch(cells.path, "a cell that is not missing (leave the column out)", "gaps only"))
    if isinstance(kind, Column):
        if kind.name != name:
            raise ArgumentError(mismatch(f"kinds[{name!r}]", "a column of that name", repr(kind.name)))
        kind.encode(cells)
        return kind
    if kind is None:
        return inferred(name, cells, missing=missing)
    check_choice(f"kinds[{name!r}]", kind, KINDS)
    return cast("Column", KINDS[kind](name, cells, missing=missing))


def _closest(name: str, names: Any) -> str:
    """The closest of some names, in brackets."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (is it {close[0]!r}?)" if close else ""

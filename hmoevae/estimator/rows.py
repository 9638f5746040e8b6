"""Rows: how what an estimator is given as X becomes samples, and how samples become rows of the same sort."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hmoevae.tables import Column, Number, Table, frames
from hmoevae.tables.sparse import is_sparse

ATTRIBUTES = ("columns", "column_names", "__dataframe__", "__arrow_c_stream__")
"""What the class of a frame has at least one of."""


def is_frame(X: object) -> bool:
    """Whether X has named columns: a frame of any library, a dict of columns, or an array with named fields.

    >>> is_frame({"a": [1.0, 2.0]}), is_frame(np.zeros((2, 1)))
    (True, False)
    """
    if isinstance(X, np.ndarray):
        return X.dtype.names is not None
    named = isinstance(X, Mapping) or any(hasattr(type(X), name) for name in ATTRIBUTES)
    return named and not is_sparse(X)  # some sparse matrices are mappings


def table_of(
    X: Any, kinds: Mapping[str, str | Column] | None, weight: Float[np.ndarray, " n_samples"] | None = None
) -> Table:
    """The table of X.

    Args:
        X: A frame, or an array of numbers `(n_samples, n_features)`, whose columns are called x0, x1, ...
        kinds: As in `Table.of`. The columns of an array are numbers unless this says otherwise.
        weight: How many rows each row counts for.

    >>> x = np.array([[1.0, 0.0], [5.0, np.nan]])
    >>> print(table_of(x, {"x1": "count"}))
    x0  number, 3 ± 2
    x1  count, may be missing
    >>> print(as_they_are(table_of(x, None)))
    x0  number, 0 ± 1
    x1  number, 0 ± 1, may be missing
    """
    if isinstance(X, np.ndarray) and X.dtype.names is None:
        kinds = {f"x{i}": "number" for i in range(X.shape[1])} | dict(kinds or {})
    return Table.of(X, kinds=kinds, weight=weight, name="X")


def as_they_are(table: Table) -> Table:
    """The table whose numbers are not standardised."""
    plain = {"mean": 0.0, "std": 1.0, "log": False, "ties": 0.0}
    columns = (replace(c, **plain) if isinstance(c, Number) else c for c in table.columns)
    return Table(tuple(columns), table.library)  # type: ignore[type-var]


def n_rows(X: Any) -> int:
    """Number of rows of a frame or an array.

    >>> n_rows({"a": [1.0, 2.0]}), n_rows(np.zeros((2, 1)))
    (2, 2)
    """
    return len(X) if isinstance(X, np.ndarray) else len(next(iter(frames.read(X, "X")[0].values())).values)


def with_gaps(table: Table) -> Table:
    """The table whose cells may all be missing, for models that are exact with gaps.

    >>> with_gaps(Table((Number("mass"),))).missing
    True
    """
    return Table(tuple(replace(column, missing=True) for column in table.columns), table.library)  # type: ignore[type-var]


def decoded(table: Table, x: Float[Tensor, "n column"], like: Any = None) -> Any:
    """Samples as rows.

    Args:
        table: The table.
        x: Samples. Rows of a `"numpy"` table are of their type.
        like: A frame of as many rows, whose index the rows of a pandas frame take.
    """
    rows: Any = table.decode(x)
    if isinstance(rows, np.ndarray):
        return rows.astype(torch.empty(0, dtype=x.dtype).numpy().dtype, copy=False)
    if like is not None and table.library == "pandas":
        rows.index = like.index
    return rows


def filled(table: Table, X: Any, x: Float[Tensor, "n column"]) -> Any:
    """The rows of X with values in their gaps, and all other cells as they are.

    Args:
        table: The table.
        X: Rows, with gaps.
        x: The same rows as samples, without gaps.

    >>> X = {"a": [0.1, None], "b": ["u", "v"]}
    >>> table = Table.of(X)
    >>> {name: cells.tolist() for name, cells in filled(table, X, torch.tensor([[7.0, 0.0], [0.0, 1.0]])).items()}
    {'a': [0.1, 0.1], 'b': ['u', 'v']}
    """
    given, _ = frames.read(X, "X", table.names)
    codes = x.detach().cpu().double().numpy()
    columns: dict[str, np.ndarray] = {}
    for i, column in enumerate(table.columns):
        cells, values = given[column.name], column.decode(codes[:, i], f"x[:, {i}]").copy()
        values[~cells.gaps] = cells.values[~cells.gaps]
        columns[column.name] = values
    rows: Any = frames.write(columns, table.library)
    if isinstance(rows, np.ndarray) and isinstance(X, np.ndarray):
        return rows.astype(X.dtype, copy=False)
    if table.library == "pandas" and hasattr(X, "index"):
        rows.index = X.index  # type: ignore[union-attr]
    return rows

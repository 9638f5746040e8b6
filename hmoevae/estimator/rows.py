"""Rows: how what an estimator is given as X becomes samples, and how samples become rows of the same sort."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hmoevae.door import Checked
from hmoevae.tables import Column, Count, Number, Table, frames
from hmoevae.tables.sparse import SparseRows, is_sparse
from hmoevae.tables.table import checked_kinds

ATTRIBUTES = ("columns", "column_names", "__dataframe__", "__arrow_c_stream__")
"""What the class of a frame has at least one of."""
FLOATS = (np.float64, np.float32)
"""The types in which arrays are read; others are converted to the first."""
Samples = Checked | SparseRows
"""Samples that have been checked, or rows of a sparse matrix, which are checked when they are read."""
BLOCK_ENTRIES = 1 << 24
"""Number of entries of a sparse matrix that are dense at a time where its columns are described."""


def is_frame(X: object) -> bool:
    """Whether X has named columns: a frame of any library, a dict of columns, or an array with named fields.

    >>> is_frame({"a": [1.0, 2.0]}), is_frame(np.zeros((2, 1)))
    (True, False)
    """
    if isinstance(X, np.ndarray):
        return X.dtype.names is not None
    named = isinstance(X, Mapping) or any(hasattr(type(X), name) for name in ATTRIBUTES)
    return named and not is_sparse(X)  # some sparse matrices are mappings


def is_narrow(X: object) -> bool:
    """Whether X is an array or a matrix of float32.

    >>> is_narrow(np.zeros((2, 1), np.float32)), is_narrow({"a": [1.0]})
    (True, False)
    """
    return getattr(X, "dtype", None) == np.float32


def table_of(
    X: Any, kinds: Mapping[str, str | Column] | None, weight: Float[np.ndarray, " n_samples"] | None = None
) -> Table:
    """The table of X.

    Args:
        X: A frame, or an array or a sparse matrix of numbers `(n_samples, n_features)`, whose columns are called x0,
            x1, ...
        kinds: As in `Table.of`. Columns without names are numbers unless this says otherwise.
        weight: How many rows each row counts for.

    >>> x = np.array([[1.0, 0.0], [5.0, np.nan]])
    >>> print(table_of(x, {"x1": "count"}))
    x0  number, 3 ± 2
    x1  count, may be missing
    >>> print(as_they_are(table_of(x, None)))
    x0  number, 0 ± 1
    x1  number, 0 ± 1, may be missing
    """
    kinds = checked_kinds(kinds)
    if is_sparse(X):
        return _table_of_sparse(X, kinds, weight)
    if isinstance(X, np.ndarray) and X.dtype.names is None:
        kinds = {f"x{i}": "number" for i in range(X.shape[1])} | dict(kinds)
    return Table.of(X, kinds=kinds, sample_weight=weight, name="X")


def _table_of_sparse(
    X: Any, kinds: Mapping[str, str | Column], weight: Float[np.ndarray, " n_samples"] | None
) -> Table:
    """The table of a sparse matrix, of which some columns are dense at a time."""
    n, by_column = X.shape[1], X.tocsc()
    n_at_once = max(1, BLOCK_ENTRIES // X.shape[0])
    named = kinds.keys() - {f"x{i}" for i in range(n)}  # an error, which the first block raises
    columns: list[Column] = []
    for start in range(0, n, n_at_once):
        block = by_column[:, start : start + n_at_once].toarray()
        names = [f"x{start + i}" for i in range(block.shape[1])]
        known = {name: kinds.get(name, "number") for name in names} | {name: kinds[name] for name in named}
        cells = dict(zip(names, block.T, strict=True))
        columns.extend(Table.of(cells, kinds=known, sample_weight=weight, name="X").columns)
    return Table(tuple(columns), "numpy")  # type: ignore[arg-type]


def as_they_are(table: Table) -> Table:
    """The table whose numbers are not standardised."""
    plain = {"mean": 0.0, "std": 1.0, "log": False, "ties": 0.0}
    columns = (replace(c, **plain) if isinstance(c, Number) else c for c in table.columns)
    return Table(tuple(columns), table.library)  # type: ignore[type-var]


def n_rows(X: Any) -> int:
    """Number of rows of a frame, an array or a sparse matrix.

    >>> n_rows({"a": [1.0, 2.0]}), n_rows(np.zeros((2, 1)))
    (2, 2)
    """
    if is_sparse(X):
        return X.shape[0]
    return len(X) if isinstance(X, np.ndarray) else len(next(iter(frames.read(X, "X")[0].values())).values)


def samples_of(table: Table, X: Any, *, whole: bool = False, coded: bool = False) -> Tensor | SparseRows:
    """The samples that a table makes of rows. Those of a sparse matrix become dense when they are read.

    Args:
        table: The table.
        X: Rows.
        whole: Make all rows of a sparse matrix dense.
        coded: Whether the model encodes rows by this table, and not only takes samples.

    >>> import scipy.sparse
    >>> table, X = Table((Count("a"), Count("b"))), scipy.sparse.csr_array([[0.0, 3.0]])
    >>> samples_of(table, X), samples_of(table, X, whole=True)
    (<SparseRows float64, (1, 2), 1 stored>, tensor([[0., 3.]], dtype=torch.float64))
    """
    if not is_sparse(X):
        return table.encode(X, name="X")
    cells_are_codes = all(isinstance(c, Count) or c == Number(c.name, missing=c.missing) for c in table.columns)
    if not whole and (coded or cells_are_codes):
        return SparseRows(X, "X")
    return table.encode(X.toarray(), name="X")


def totals_of(table: Table, X: Any) -> Float[np.ndarray, " n_samples"]:
    """The total of every row; gaps count as zero.

    >>> totals_of(Table((Count("a"), Count("b"))), np.array([[1.0, 3.0], [0.0, 5.0]])).tolist()
    [4.0, 5.0]
    """
    if is_sparse(X):
        filled = X.tocsr().astype(np.float64)  # a copy
        filled.data = np.nan_to_num(filled.data, copy=False)
        return np.asarray(filled.sum(axis=1)).ravel()
    return table.encode(X, name="X").nansum(1).numpy()


def with_gaps(table: Table) -> Table:
    """The table whose cells may all be missing, for models that are exact with gaps.

    >>> with_gaps(Table((Number("mass"),))).missing
    True
    """
    return Table(tuple(replace(column, missing=True) for column in table.columns), table.library)  # type: ignore[type-var]


def decoded(table: Table, x: Float[Tensor, "n column"]) -> Any:
    """Samples as rows; those of a `"numpy"` table have the type of the samples.

    >>> decoded(Table((Number("a", mean=1.0), Number("b")), "numpy"), torch.zeros(1, 2))
    array([[1., 0.]], dtype=float32)
    """
    rows: Any = table.decode(x)
    if isinstance(rows, np.ndarray):
        return rows.astype(torch.empty(0, dtype=x.dtype, device="cpu").numpy().dtype, copy=False)
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
    X = X.toarray() if is_sparse(X) else X
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

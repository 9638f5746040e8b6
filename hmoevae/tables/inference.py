"""What kind of column cells look like."""

import math
from typing import Any

import numpy as np

from hmoevae.errors import DataError, mismatch, warn
from hmoevae.tables.columns import MARKERS, Binary, Category, Column, Number, marker_hint, types_of
from hmoevae.tables.frames import Cells

FEW = 20
"""A column of text with more categories than this, and than half of its rows, is taken for names, not for kinds."""


def inferred(name: str, cells: Cells, *, missing: bool) -> Column:
    """The column that cells look like.

    Truth values and numbers that are all 0 or 1 make a `Binary`, other numbers a `Number`; text and columns whose type
    declares categories a `Category`.

    Raises:
        DataError: It cannot be told; the message says what to do.

    >>> from hmoevae.tables.frames import cells_of
    >>> inferred("x", cells_of("x", [0, 1, 1]), missing=False)
    Binary(name='x', categories=(0, 1))
    >>> inferred("x", cells_of("x", [0, 1, 2]), missing=False).kind
    'number'
    """
    if cells.categories is not None:
        return _category(name, cells, missing=missing)
    match cells.sort:
        case "truth values":
            return Binary(name, (False, True), missing)
        case "numbers":
            values = set(cells.observed)
            return (
                Binary.of(name, cells, missing=missing) if values == {0, 1} else Number.of(name, cells, missing=missing)
            )
        case "text":
            return _category(name, cells, missing=missing)
        case "dates":
            remedy = "numbers or text in place of dates, such as the days since the first"
            raise DataError(mismatch(cells.path, remedy, f"{cells.observed[0]!r:.80}"))
    raise DataError(mismatch(cells.path, "numbers, truth values or text, and None or NaN for gaps", types_of(cells)))


def _category(name: str, cells: Cells, *, missing: bool) -> Column:
    column = Category.of(name, cells, missing=missing)
    n_rows, n_categories = len(cells.observed), len(column.categories)
    if cells.sort == "text":
        is_number = {category: _reads_as_number(category) for category in column.categories}
        if sum(is_number.values()) > n_categories / 2:
            odd = next((category for category, reads in is_number.items() if not reads), None)
            got = f"text such as {column.categories[-1]!r}" + ("" if odd is None else f", and {odd!r}")
            remedy = (
                f"(astype(float) makes numbers, once gaps are None or NaN; kinds={{{name!r}: 'category'}} keeps text)"
            )
            raise DataError(mismatch(cells.path, "numbers, or text that does not read as numbers", f"{got} {remedy}"))
    if n_categories > max(FEW, n_rows / 2):
        got = f"{n_categories:,} categories in {n_rows:,} rows"
        remedy = f"(leave the column out, join rare categories, or say kinds={{{name!r}: 'category'}})"
        raise DataError(mismatch(cells.path, "a category for two rows or more", f"{got} {remedy}"))
    for marker in column.categories:
        if isinstance(marker, str) and marker.strip().lower() in MARKERS:
            hint = marker_hint(cells, np.array([value == marker for value in cells.values.tolist()]))
            warn(mismatch(cells.path, "None or NaN for gaps", f"the category {marker!r}{hint}"))
    return column


def _reads_as_number(text: Any) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False

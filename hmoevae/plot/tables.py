"""The plot of a table's clusters, in the table's columns and units.

Axes: `n` counts rows, `cluster` clusters and `column` columns.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from hmoevae.checks import check_integer
from hmoevae.door import ArrayLike
from hmoevae.errors import DataError, ShapeError, mismatch
from hmoevae.plot.arguments import clusters_of, floats, labels_of
from hmoevae.plot.canvas import GAP, LABEL, LINE, SIDE, TITLE, canvas, label_columns, make_room, text_width


def means(
    x: ArrayLike,
    clusters: ArrayLike,
    *,
    columns: Iterable[object] | None = None,
    cluster_names: Iterable[object] | None = None,
    title: str | None = "Mean of every column by cluster",
    n: int = 40,
) -> Figure:
    """Plot the mean of every column in every cluster of a table's rows, in the units of `x`.

    Colours are the difference from the mean of all rows in standard deviations of the column: red above, blue below.

    Args:
        x: The table, `(n, column)`, in its own units rather than standardised.
        clusters: Cluster of every row, `(n,)`, such as `model.predict(standardised)`.
        columns: A name for every column; by default their numbers.
        cluster_names: A name for every cluster, from `0` on, such as `model.plan.level_names(None)`; by default the
            numbers that occur.
        title: Title of the plot.
        n: Largest number of columns to plot; if there are more, those whose variance the clusters explain best.

    Raises:
        ShapeError: `x` is no table, the numbers of rows and `clusters` differ, or there are too few names.
        DataError: There are no rows, `clusters` are not integers >= 0, or `x` is not finite.
        ArgumentError: `n` is not an integer > 0.
        ArgumentTypeError: `x` are no numbers, or `columns` or `cluster_names` no sequences.

    >>> figure = means(np.array([[1.0, 20.0], [3.0, 30.0], [5.0, 70.0]]), np.array([0, 0, 1]), columns=["a", "b"])
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['2.0', '5.0', '3.0', '25', '70', '40']
    """
    check_integer("n", n)
    table = floats(x, "x").double().numpy()
    if table.ndim != 2 or table.shape[1] == 0:
        raise ShapeError(mismatch("x", "a table, (n, column)", table.shape))
    if np.shape(clusters) != table.shape[:1]:
        raise ShapeError(mismatch("clusters", f"one per row, ({len(table)},)", np.shape(clusters)))
    cluster, names = clusters_of(clusters, cluster_names)
    if not np.isfinite(table).all():
        raise DataError(mismatch("x", "finite values", "NaN or infinity"))
    of_columns = [str(i) for i in range(table.shape[1])] if columns is None else labels_of(columns, "columns")
    if len(of_columns) != table.shape[1]:
        raise ShapeError(mismatch("columns", f"{table.shape[1]} names, one per column", len(of_columns)))

    n_rows = np.bincount(cluster, minlength=len(names))
    mean = np.zeros((len(names), table.shape[1]))
    np.add.at(mean, cluster, table)
    mean /= np.maximum(n_rows, 1)[:, None]
    overall, deviation = table.mean(0), table.std(0)
    apart = (mean - overall) / np.where(deviation > 0, deviation, np.inf)
    explained = (n_rows[:, None] * apart**2).sum(0)
    shown = np.sort(np.argsort(-explained, kind="stable")[:n])
    cells = [[*_in_units(mean[:, i], deviation[i]), *_in_units(overall[i : i + 1], deviation[i])] for i in shown]
    sizes = [f"{count:,} row{'' if count == 1 else 's'}" for count in (*n_rows, len(table))]
    heads = [f"{name}\n{size}" for name, size in zip((*names, "all"), sizes, strict=True)]

    wide = max(SIDE, *(text_width(text) + 2 * GAP for row in (sizes, *cells) for text in row))
    tall = LINE + 10
    fig, ax = canvas(wide * len(heads), tall * len(shown))
    colours = np.pad(np.where(n_rows[:, None] > 0, apart, 0.0)[:, shown].T, ((0, 0), (0, 1)))  # none for all rows
    extent = (0, wide * len(heads), tall * len(shown), 0)
    ax.imshow(colours, cmap="RdBu_r", vmin=-3, vmax=3, extent=extent, aspect="auto", interpolation="nearest")
    for row, texts in enumerate(cells):
        for column, text in enumerate(texts):
            if column < len(names) and n_rows[column] == 0:
                continue
            colour = "white" if abs(colours[row, column]) > 1.8 else "#222222"
            at = (column + 0.5) * wide, (row + 0.5) * tall
            ax.text(*at, text, ha="center", va="center", **{**LABEL, "color": colour})
    ax.set_yticks(tall * (np.arange(len(shown)) + 0.5), [of_columns[i] for i in shown], **LABEL)
    label_columns(ax, wide * (np.arange(len(heads)) + 0.5), heads, wide)
    note = "red: above the mean of all rows; blue: below"
    if len(shown) < table.shape[1]:
        note = f"the {len(shown)} of {table.shape[1]} columns that separate the clusters best\n{note}"
    ax.set_xlabel(note, **LABEL)
    if title is not None:
        ax.set_title(title, **TITLE)
    return make_room(fig, ax)


def _in_units(values: Float[np.ndarray, " cluster"], deviation: float) -> list[str]:
    """Format numbers of one column, to two digits of its standard deviation."""
    digits = 0 if deviation == 0 else max(0, 1 - int(np.floor(np.log10(deviation))))
    return [f"{v:z,.{digits}f}" if digits < 7 and abs(v) < 1e9 else f"{v:.3g}" for v in values.tolist()]

"""Plots of clusters against labels.

Axes: `n` counts samples, `label` labels and `cluster` clusters.
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Int
from matplotlib.figure import Figure
from torch import Tensor

from hmoevae.checks import check_integer
from hmoevae.door import ArrayLike
from hmoevae.errors import MissingExtraError, ShapeError, from_extra, mismatch
from hmoevae.labels import read_labels
from hmoevae.plot.arguments import clusters_of, floats
from hmoevae.plot.canvas import LABEL, SIDE, TITLE, canvas, label_columns, make_room
from hmoevae.plot.grids import captioned, evenly, pictures_of


def contingency(
    labels: ArrayLike,
    clusters: ArrayLike,
    *,
    cluster_names: Iterable[object] | None = None,
    title: str | None = None,
    keep_order: bool = False,
) -> Figure:
    """Plot the contingency table of labels and clusters: a row for each label, a column for each cluster.

    Colours are fractions of the label. Cells hold counts or, with more than 12 clusters, percentages of the label;
    cells that round to 0 are empty.

    Args:
        labels: Label of every sample, `(n,)`.
        clusters: Cluster of every sample, `(n,)`, such as `model.predict(x)`.
        cluster_names: A name for every cluster, from `0` on, with the empty ones; by default the numbers that occur.
        title: Title of the plot.
        keep_order: Keep the order of the clusters (the tree's). Otherwise the order puts the largest cells on the
            diagonal (Kuhn 1955); further clusters follow the first one of their most frequent label, and empty ones are
            last.

    Raises:
        ShapeError: `labels` and `clusters` differ in length, or there are too few names.
        DataError: There are no samples, or `clusters` are not integers >= 0.
        ArgumentTypeError: `cluster_names` is no sequence.
        MissingExtraError: scipy is not installed (and `keep_order` is not set).

    >>> figure = contingency(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 1]))
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['2', '1', '1']
    """
    values, rows, columns, names = _labelled(labels, clusters, cluster_names)
    counts = _counts(rows, columns, len(values), len(names))
    order = list(range(len(names))) if keep_order else _diagonal(counts)
    counts = counts[:, order]
    share = counts / counts.sum(1, keepdims=True)
    in_percent = len(names) > 12
    cells = (100 * share).round().astype(int) if in_percent else counts

    side = 34.0 if in_percent else SIDE
    fig, ax = canvas(side * len(names), side * len(values))
    extent = (0, side * len(names), side * len(values), 0)
    ax.imshow(share, cmap="Blues", vmin=0, extent=extent, aspect="auto", interpolation="nearest")
    for row, column in np.argwhere(cells > 0):
        colour = "white" if share[row, column] > 0.6 * share.max() else "#222222"
        at = (column + 0.5) * side, (row + 0.5) * side
        ax.text(*at, str(cells[row, column]), ha="center", va="center", **{**LABEL, "color": colour})
    ax.set_yticks(side * (np.arange(len(values)) + 0.5), [str(v) for v in values], **LABEL)
    names = [names[i] for i in order]
    label_columns(ax, side * (np.arange(len(names)) + 0.5), names, side)
    ax.set_ylabel("label", **LABEL)
    ax.set_xlabel(f"cluster (cells: {'percent of the label' if in_percent else 'number of samples'})", **LABEL)
    if title is not None:
        ax.set_title(title, **TITLE)
    return make_room(fig, ax)


def misrouted(
    x: ArrayLike,
    labels: ArrayLike,
    clusters: ArrayLike,
    *,
    cluster_names: Iterable[object] | None = None,
    n: int = 160,
) -> Figure:
    """Plot the samples whose cluster mostly holds another label, sorted by their label and then by the other one.

    The caption of a sample is its label, the most frequent label of its cluster, and the cluster: "4 → 9, in 2" is a 4
    in cluster 2, most of whose samples are 9s.

    Args:
        x: Samples, `(n, *input_shape)`.
        labels: Label of every sample, `(n,)`.
        clusters: Cluster of every sample, `(n,)`, such as `model.predict(x)`.
        cluster_names: A name for every cluster, from `0` on; by default their numbers.
        n: Largest number of samples to plot; if there are more, they are evenly chosen.

    Raises:
        ShapeError: The lengths differ, or there are too few names.
        DataError: There are no samples, `clusters` are not integers >= 0, or samples to show are not finite.
        ArgumentError: `n` is not an integer > 0.
        ArgumentTypeError: `cluster_names` is no sequence.

    >>> x = torch.rand(4, 1, 8, 8)
    >>> figure = misrouted(x, np.array([4, 9, 9, 9]), np.array([2, 2, 2, 0]))
    >>> [text.get_text().split() for text in figure.axes[0].texts]
    [['4', '→', '9', 'in', '2']]
    """
    check_integer("n", n)
    values, y, cluster, names = _labelled(labels, clusters, cluster_names)
    if len(x) != len(y):
        raise ShapeError(mismatch("x", f"{len(y)} samples, one per label", len(x)))
    holds = _counts(y, cluster, len(values), len(names)).argmax(0)[cluster]
    wrong = (holds != y).nonzero()[0]
    title = f"{len(wrong):,} of {len(y):,} samples are in a cluster that mostly holds another label"
    if len(wrong) == 0:
        fig, ax = canvas(1.0, 1.0)
        ax.set_title(title, **TITLE)
        return make_room(fig, ax)
    wrong = wrong[np.lexsort((cluster[wrong], holds[wrong], y[wrong]))]
    shown = wrong[evenly(n, len(wrong))]
    if len(shown) < len(wrong):
        title += f"; {len(shown)} of them"
    captions = [f"{values[y[i]]} → {values[holds[i]]}\nin {names[cluster[i]]}" for i in shown]
    picked = x[torch.from_numpy(shown)] if isinstance(x, Tensor) else np.asarray(x)[shown]
    pictures = pictures_of(floats(picked, "x").unsqueeze(0), "x")
    fig, ax = captioned(pictures, captions, [""], n_columns=20)
    ax.set_title(title, **TITLE)
    return make_room(fig, ax)


def _labelled(
    labels: ArrayLike, clusters: ArrayLike, cluster_names: Iterable[object] | None
) -> tuple[np.ndarray, Int[np.ndarray, " n"], Int[np.ndarray, " n"], list[str]]:
    """The distinct labels, every sample's label as an index into them, its cluster, and the clusters' names."""
    rows = read_labels("labels", labels)
    if np.shape(clusters) != rows.shape:
        raise ShapeError(mismatch("labels, clusters", "(n,) and (n,)", f"{rows.shape} and {np.shape(clusters)}"))
    columns, names = clusters_of(clusters, cluster_names)
    values, rows = np.unique(rows, return_inverse=True)
    return values, rows, columns, names


def _counts(
    label: Int[np.ndarray, " n"], cluster: Int[np.ndarray, " n"], n_labels: int, n_clusters: int
) -> Int[np.ndarray, "label cluster"]:
    counts = np.zeros((n_labels, n_clusters), dtype=int)
    np.add.at(counts, (label, cluster), 1)
    return counts


def _diagonal(counts: Int[np.ndarray, "label cluster"]) -> list[int]:
    """The order of the clusters that maximises the diagonal; with more clusters than labels it is a staircase."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as missing:
        expected = f"keep_order=True, or {from_extra('scipy', 'sklearn')}"
        raise MissingExtraError(mismatch("hmoevae.plot.contingency", expected, missing)) from None
    matches = zip(*linear_sum_assignment(counts, maximize=True), strict=True)
    label_of = {cluster: label for label, cluster in matches if counts[label, cluster] > 0}
    largest = counts.max(0)
    commonest = np.where(largest > 0, counts.argmax(0), len(counts))  # empty clusters go last
    return sorted(range(counts.shape[1]), key=lambda c: (label_of.get(c, commonest[c]), c not in label_of, -largest[c]))

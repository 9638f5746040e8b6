"""The plot of a hierarchy: a dendrogram over the leaves of a model, with a picture and a share at every leaf.

Axes: `leaf` as in `hmoevae.plan`, `cluster` the groups of leaves that are drawn. Lengths are in pixels of the figure.
"""

import math
import textwrap
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from hmoevae.checks import check_integer
from hmoevae.door import Samples
from hmoevae.hierarchies import Hierarchy
from hmoevae.plot.arguments import check
from hmoevae.plot.canvas import (
    FAINT,
    GAP,
    GREY,
    LABEL,
    SIDE,
    TITLE,
    Picture,
    canvas,
    fit,
    imshow,
    make_room,
    no_sample,
    text_width,
    write_below,
)
from hmoevae.plot.grids import pictures_of, zoom_of
from hmoevae.plot.portraits import images_of, shares_of

TALL = 240.0
"""The height of the tree above the pictures."""
ROOT = 12.0
"""The length of the line above the last merge."""
TITLE_WIDTH = 400.0
"""Largest width of a title's line above a narrow tree."""


class _Shown(NamedTuple):
    """The clusters that are drawn, from left to right, and the merges of them."""

    leaves: list[list[int]]
    merges: list[tuple[int, int, float]]
    """The two nodes that are joined, the clusters first, then what earlier merges made; and the height."""


def dendrogram(hierarchy: Hierarchy, x: Samples | None = None, *, most: int = 60) -> Figure:
    """Plot a hierarchy as a dendrogram, with a picture and a share at every leaf.

    The scale says how much the groups that a line joins overlap, see `hmoevae.hierarchy`: 0.01 means that they are
    drawn for one sample a hundredth as often as by chance.

    With samples, a leaf's picture is the mean of the samples whose most probable leaf it is, and its number is their
    share; a leaf without samples has an empty frame. Without samples, the picture is the decoded z = 0, and the number
    is the leaf's prior. The leaves of a model with a table have no pictures.

    Args:
        hierarchy: The hierarchy.
        x: Samples, `(batch, *input_shape)`, such as the test split; or a frame, if the model has a table.
        most: Largest number of leaves to draw. Of more leaves, so many clusters are drawn, as of
            `hierarchy.cut(most)`, each with the number of its leaves and, without samples, the picture of its largest.

    Raises:
        ArgumentTypeError: `hierarchy` is no `Hierarchy`, or `x` are no samples.
        ShapeError: `x` does not have the shape of a batch of samples.
        DataError: `x` is empty or not finite.
        ArgumentError: `most` is no integer > 1.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(1, 8, 8))
    >>> x = torch.rand(20, 1, 8, 8)
    >>> figure = dendrogram(hm.hierarchy(model, x))
    >>> sorted(text.get_text().split()[0] for text in figure.axes[0].texts)
    ['0', '1', '2']
    """
    check(isinstance(hierarchy, Hierarchy), "hierarchy", "a Hierarchy, such as hmoevae.hierarchy returns", hierarchy)
    check_integer("most", most, least=2)
    model = hierarchy.model
    x = None if x is None else model.check_input(x, support=False).cpu()
    leaf = None if x is None else model.predict(x).cpu()
    by_leaf, of_share = shares_of(model, None, leaf)
    shown = _shown(hierarchy, min(int(most), hierarchy.n_leaves))
    share = torch.stack([by_leaf[own].sum() for own in shown.leaves]) / by_leaf.sum()
    what = f"{' and ' if model.table is not None else ''}{of_share}"
    pictures, is_empty = None, np.zeros(len(shown.leaves), dtype=bool)
    what = f" and {of_share.replace('of them', 'of the samples')}"
    if model.table is None:
        images, no_samples, which = images_of(model, x, leaf, None, None)
        images = torch.stack([_portrait(images[own], by_leaf[own], mean=x is not None) for own in shown.leaves])
        pictures = pictures_of(images.unsqueeze(0), "images")[0]
        is_empty = np.array([no_samples[own].all() for own in shown.leaves])
        what = f"{which} {of_share}"
    fig, ax = _drawn(shown, pictures, is_empty, _names(hierarchy, shown), share)
    n = len(shown.leaves)
    every = "Every leaf" if n == hierarchy.n_leaves else f"Each of {n:,} groups of the {hierarchy.n_leaves:,} leaves"
    title = f"{every}{what}"
    room = max(TITLE_WIDTH, ax.get_xlim()[1]) / text_width("0")
    ax.set_title("\n".join(textwrap.wrap(title, int(room))), pad=GAP, **TITLE)
    return make_room(fig, ax)


def _shown(hierarchy: Hierarchy, n: int) -> _Shown:
    """The `n` clusters from left to right, without crossings, and the merges of them."""
    cluster, order = hierarchy.cut(n), hierarchy.merges[-1].leaves
    place = {c: i for i, c in enumerate(dict.fromkeys(cluster[list(order)].tolist()))}
    leaves: list[list[int]] = [[] for _ in place]
    node_of = [0] * hierarchy.n_leaves
    for leaf in order:
        node_of[leaf] = place[int(cluster[leaf])]
        leaves[node_of[leaf]].append(leaf)
    merges = []
    for merge in hierarchy.merges[hierarchy.n_leaves - n :]:
        merges.append((node_of[merge.left[0]], node_of[merge.right[0]], merge.height))
        for leaf in merge.leaves:
            node_of[leaf] = n + len(merges) - 1
    return _Shown(leaves, merges)


def _portrait(
    images: Float[Tensor, "own *shape"], share: Float[Tensor, " own"], *, mean: bool
) -> Float[Tensor, "*shape"]:
    """The picture of a cluster: the mean of its samples, or the picture of its leaf of the largest share."""
    if mean:
        return torch.tensordot(share / share.sum().clamp_min(1e-12), images, 1)
    return images[share.argmax()]


def _names(hierarchy: Hierarchy, shown: _Shown) -> list[str]:
    """The name of every leaf that is drawn; of clusters, the number of their leaves."""
    names = hierarchy.names
    return [names[own[0]] if len(own) == 1 else f"{len(own):,} leaves" for own in shown.leaves]


def _drawn(
    shown: _Shown,
    pictures: Float[np.ndarray, "cluster height width rgb"] | None,
    is_empty: Bool[np.ndarray, " cluster"],
    names: list[str],
    share: Float[Tensor, " cluster"],
) -> tuple[Picture, Axes]:
    """The lines, and below them pictures and captions."""
    zoom = 1.0 if pictures is None else zoom_of(pictures)
    tall, wide = (0.0, SIDE) if pictures is None else (zoom * pictures.shape[1], zoom * pictures.shape[2])
    step = max(wide + 2 * GAP, text_width("100.0%") + GAP)
    left = step * np.arange(len(names)) + (step - wide) / 2
    fig, ax = canvas(step * len(names), TALL + tall)
    _draw_lines(ax, shown, (left + wide / 2).tolist())
    for i, (name, angle) in enumerate(fit(names, step - GAP)):
        if pictures is not None and is_empty[i]:
            no_sample(ax, left[i], TALL, wide, tall)
        elif pictures is not None:
            imshow(ax, pictures[i], (left[i], left[i] + wide, TALL + tall, TALL), zoom)
        write_below(ax, left[i] + wide / 2, TALL + tall, (f"{name}\n{100 * float(share[i]):.1f}%", angle))
    ax.set(xlim=(0, step * len(names)), ylim=(TALL + tall, 0))  # imshow may have changed them
    return fig, ax


def _draw_lines(ax: Axes, shown: _Shown, across: list[float]) -> None:
    """Plot every merge as a bracket, with the logarithm of the overlap as the scale on the left."""
    levels = [math.log(math.expm1(max(height, 1e-12))) for *_, height in shown.merges]  # -log(overlap)
    low, high = levels[0], levels[-1]
    low -= 0.15 * (high - low) if high > low else 1.0

    def y_of(level: float) -> float:
        return ROOT + (TALL - ROOT) * (high - level) / (high - low)

    marks = _marks(low, high)
    ax.set_yticks([y_of(-math.log(mark)) for mark in marks], [f"{mark:,g}" for mark in marks], **LABEL)
    ax.set_ylabel("overlap (chance: 1)", **LABEL)
    ax.grid(axis="y", color=FAINT, lw=0.3)
    bottom = [TALL - GAP] * len(across)
    for (a, b, _), level in zip(shown.merges, levels, strict=True):
        y = y_of(level)
        points = [(across[a], bottom[a]), (across[a], y), (across[b], y), (across[b], bottom[b])]
        ax.plot(*zip(*points, strict=True), color=GREY, lw=1.0, solid_joinstyle="round")
        across.append((across[a] + across[b]) / 2)
        bottom.append(y)
    ax.plot([across[-1]] * 2, [bottom[-1], 0], color=GREY, lw=1.0)


def _marks(low: float, high: float) -> list[float]:
    """Overlaps to mark, whose -log is between two levels: powers of ten, and where these are few 2 and 5 times them."""
    tens = [10.0**power for power in range(math.ceil(-high / math.log(10)) - 1, math.floor(-low / math.log(10)) + 1)]
    every = max(1, len(tens) // 6)
    marks = [digit * ten for ten in tens[::every] for digit in ((1, 2, 5) if len(tens) < 4 else (1,))]
    return [mark for mark in marks if low <= -math.log(mark) <= high]

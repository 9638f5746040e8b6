"""The plot of the tree: from the root down, with a picture at every leaf and edges as wide as their usage.

Axes: `leaf` as in `hmoevae.plan`. Lengths are in pixels of the figure.
"""

import itertools
import textwrap
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve
from matplotlib.patheffects import withStroke
from torch import Tensor

from hmoevae.checks import check_integer
from hmoevae.door import ArrayLike
from hmoevae.model import HMoEVAE
from hmoevae.plan import Plan, PlannedNode
from hmoevae.plot.arguments import check_model
from hmoevae.plot.canvas import (
    DPI,
    GAP,
    LABEL,
    LINE,
    PALE,
    SIDE,
    TITLE,
    canvas,
    fit,
    height_of,
    imshow,
    make_room,
    no_sample,
    text_width,
)
from hmoevae.plot.grids import pictures_of, zoom_of
from hmoevae.plot.portraits import images_of, shares_of
from hmoevae.spec import VAE

HALF, PAD = 8.0, 3.0
"""Half the height of a node's frame, and its padding."""
TITLE_WIDTH = 400.0
"""Largest width of a title's line above a narrow tree."""


class _Shown(NamedTuple):
    """The part of a tree that is drawn. The `leaves` of its nodes count the drawn leaves only."""

    nodes: list[PlannedNode]
    edges: list[tuple[PlannedNode, PlannedNode]]
    """Mixture and child."""
    kept: list[int]
    """Indices of the drawn leaves in the plan."""
    rest: dict[str, str]
    """For each mixture with leaves that are not drawn, their number and their share."""

    @property
    def leaves(self) -> list[PlannedNode]:
        return [node for node in self.nodes if isinstance(node.spec, VAE)]

    @property
    def mixtures(self) -> list[PlannedNode]:
        return [node for node in self.nodes if not isinstance(node.spec, VAE)]


def tree(
    model: HMoEVAE,
    x: ArrayLike | None = None,
    *,
    usage: Float[ArrayLike, " leaf"] | None = None,
    images: Float[ArrayLike, "leaf *input_shape"] | None = None,
    generator: torch.Generator | None = None,
    most: int | None = None,
) -> Figure:
    """Plot the tree from the root down, with a picture at every leaf and edges as wide as their usage.

    With samples, a leaf's picture is the mean of the samples whose most probable leaf it is, and its number is their
    share; a leaf without samples has an empty frame. Without samples, the picture is the decoded z = 0, and the number
    is the leaf's prior.

    Args:
        model: The model.
        x: Samples, `(batch, *input_shape)`, such as the test split.
        usage: Usage of every leaf, which replaces these numbers; it is divided by its sum. In
            `model.predict_proba(x).mean(0)`, a leaf that is no sample's most probable leaf has a share too.
        images: One picture per leaf, which replace these pictures.
        generator: Source, on the CPU, of draws of z from the prior, which replace z = 0.
        most: Largest number of leaves to draw: those with the largest numbers, with the mixtures above them. The title
            and these mixtures say how many other leaves there are, and what they have together. `None` draws all.

    Raises:
        ShapeError: `x` does not have the shape of a batch of samples, or `usage` or `images` not one entry per leaf.
        DataError: `usage` has negative or non-finite entries or only zeros, or `images` are not finite; `x` is empty,
            not finite, or outside the support of a leaf's likelihood.
        ArgumentError: `most` is no integer > 0.
        ArgumentTypeError: `model` is no `HMoEVAE`, or `x`, `usage` or `images` are no numbers.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(1, 8, 8))
    >>> figure = tree(model, torch.rand(20, 1, 8, 8))
    >>> figure.axes[0].texts[0].get_text()
    'root'
    >>> figure = tree(model, usage=torch.tensor([0.5, 0.2, 0.3]), most=2)
    >>> [text.get_text().split() for text in figure.axes[0].texts]
    [['root'], ['0', '50.0%'], ['2', '30.0%']]
    """
    check_model(model)
    if most is not None:
        check_integer("most", most)
    x = None if x is None else model.check_input(x, support=False).cpu()
    leaf = None if x is None else model.predict(x).cpu()
    share, of_share = shares_of(model, usage, leaf)
    images, is_empty, which = images_of(model, x, leaf, images, generator)
    plan, share = model.plan, share / share.sum()
    shown = _shown(plan, share, most)
    pictures = pictures_of(images[shown.kept].unsqueeze(0), "images")[0]
    zoom = zoom_of(pictures)
    tall, wide = zoom * pictures.shape[1], zoom * pictures.shape[2]

    below = {n.path: float(share[n.leaves.start : n.leaves.stop].sum()) for n in plan.nodes}
    trunk = min(SIDE, wide)  # width of all edges of the root together, so that none is wider than a picture
    labels = _labels(plan, shown, below)
    frames = {path: max(trunk * below[path], text_width(label)) + 2 * PAD for path, label in labels.items()}
    half = max(map(_half, labels.values()), default=HALF)
    every = plan.level_names(None)
    captions = fit([every[i] for i in shown.kept], wide + GAP)
    reach = tall + height_of(captions) + LINE + 1.5 * HALF  # a picture and its caption
    left = _without_overlaps(shown, wide, reach, frames, half)
    across, down = {n.path: _middle(n, left, wide) for n in shown.nodes}, _tops(shown, left, wide)

    fig, ax = canvas(left[-1] + wide, down[-1] + tall)
    _draw_edges(ax, shown, across, down, {path: trunk * part for path, part in below.items()})
    for node in shown.nodes:
        middle, top = across[node.path], down[node.depth]
        if node.path in labels:
            _draw_frame(ax, middle, top, frames[node.path], labels[node.path])
            continue
        i = node.leaves.start
        if is_empty[shown.kept[i]]:
            no_sample(ax, left[i], top, wide, tall)
        else:
            imshow(ax, pictures[i], (left[i], left[i] + wide, top + tall, top), zoom)
        caption, angle = captions[i]
        caption += f"\n{100 * below[node.path]:.1f}%"
        ax.text(middle, top + tall + 4, caption, ha="center", va="top", rotation=angle, **LABEL)
    title = _title(plan, shown, f"{which} {of_share}")
    room = max(TITLE_WIDTH, left[-1] + wide) / text_width("0")  # for smaller letters, but "0" is a wide one
    ax.set_title("\n".join(textwrap.wrap(title, int(room))), pad=HALF + PAD, **TITLE)
    return make_room(fig, ax)


def _labels(plan: Plan, shown: _Shown, below: Mapping[str, float]) -> dict[str, str]:
    """The label of every mixture; what is left out of the root is in the title."""
    names, labels = plan.names, {}
    for node in shown.mixtures:
        lines = [f"{names[node.path]}: {100 * below[node.path]:.1f}%", *shown.rest.get(node.path, "").splitlines()]
        labels[node.path] = "\n".join(lines) if node.depth else "root"
    return labels


def _title(plan: Plan, shown: _Shown, what: str) -> str:
    """What is drawn, and what is not."""
    root = plan.nodes[0].path
    if root not in shown.rest:
        return f"Every leaf{what}"
    return f"The {len(shown.kept):,} largest of {plan.n_leaves:,} leaves{what}; {shown.rest[root]}"


def _shown(plan: Plan, share: Float[Tensor, " leaf"], most: int | None) -> _Shown:
    """The leaves with the largest shares, and the mixtures above them."""
    kept = sorted(share.sort(descending=True, stable=True).indices[:most].tolist())
    nodes: dict[str, PlannedNode] = {}
    rest: dict[str, str] = {}
    for node in plan.nodes:
        drawn = range(bisect_left(kept, node.leaves.start), bisect_left(kept, node.leaves.stop))
        n_others = len(node.leaves) - len(drawn)
        if drawn:
            nodes[node.path] = replace(node, leaves=drawn)
        if drawn and n_others:
            others = share[node.leaves.start : node.leaves.stop].sum() - share[kept[drawn.start : drawn.stop]].sum()
            rest[node.path] = f"{n_others:,} {'others' if n_others > 1 else 'other'}: {100 * abs(float(others)):.1f}%"
    ends = zip(plan.edge_mixture, plan.edge_child, strict=True)
    edges = [(plan.mixtures[m].path, plan.nodes[c].path) for m, c in ends]
    return _Shown([*nodes.values()], [(nodes[a], nodes[b]) for a, b in edges if b in nodes], kept, rest)


def _draw_edges(
    ax: Axes, shown: _Shown, across: Mapping[str, float], down: np.ndarray, widths: Mapping[str, float]
) -> None:
    """Plot every edge as a curve of its width; the edges of a mixture start side by side."""
    drawn = dict.fromkeys((n.path for n in shown.mixtures), 0.0)
    for parent, child in shown.edges:
        drawn[parent.path] += widths[child.path]
    start = {n.path: across[n.path] - drawn[n.path] / 2 for n in shown.mixtures}
    for parent, child in shown.edges:
        width = widths[child.path]
        x0, y0, x1, y1 = start[parent.path] + width / 2, down[parent.depth], across[child.path], down[child.depth]
        start[parent.path] += width
        y2, y3, y4 = y0 + HALF, (y0 + y1) / 2, y1 - HALF
        points = [(x0, y0), (x0, y2), (x0, y3), (x1, y3), (x1, y4), (x1, y1)]
        curve = Curve(points, [Curve.MOVETO, Curve.LINETO, *[Curve.CURVE4] * 3, Curve.LINETO])
        lw = max(0.5, width * 72 / DPI)
        seam = [withStroke(linewidth=lw + 1, foreground="white")]  # separates edges that are close together
        edge = PathPatch(curve, fill=False, ec=PALE, lw=lw, capstyle="butt", path_effects=seam, gid=child.path)
        ax.add_patch(edge)


def _draw_frame(ax: Axes, middle: float, y: float, frame: float, label: str) -> None:
    """Plot the frame of a mixture with its label."""
    half = _half(label)
    box = f"round,pad={PAD}"
    corner = (middle - frame / 2 + PAD, y - half)
    ax.add_patch(FancyBboxPatch(corner, frame - 2 * PAD, 2 * half, box, fc="white", ec=PALE, clip_on=False))
    ax.text(middle, y, label, ha="center", va="center", **LABEL)


def _half(label: str) -> float:
    """Half the height of the frame of a label."""
    return HALF + LINE / 2 * label.count("\n")


def _middle(node: PlannedNode, left: np.ndarray, wide: float) -> float:
    """The horizontal position of a node's middle, from the left sides of the leaves."""
    return float(left[node.leaves.start] + left[node.leaves.stop - 1] + wide) / 2


def _tops(shown: _Shown, left: np.ndarray, wide: float) -> np.ndarray:
    """The vertical position of every depth. The widest fan of edges sets a level's height, so that no edge is flat."""
    fans = [0.0] * max(n.depth for n in shown.nodes)
    for a, b in shown.edges:
        fans[a.depth] = max(fans[a.depth], abs(_middle(b, left, wide) - _middle(a, left, wide)))
    return np.cumsum([0.0, *(round(SIDE + fan / 5) for fan in fans)])


def _without_overlaps(shown: _Shown, wide: float, reach: float, frames: Mapping[str, float], half: float) -> np.ndarray:
    """The left sides of all leaves, far enough apart for pictures and for the mixtures' frames of widths `frames`.

    A picture with its caption has the height `reach`, a frame at most twice `half`.
    """
    parents = [leaf.path.rpartition("/")[0] for leaf in shown.leaves]
    steps = [wide + GAP * (1 if a == b else 5) for a, b in itertools.pairwise(parents)]
    left = np.cumsum([0.0, *steps])
    y = _tops(shown, left, wide)

    def are_beside(a: PlannedNode, b: PlannedNode) -> bool:
        upper, lower = (a, b) if a.depth <= b.depth else (b, a)
        return bool(y[lower.depth] - half - PAD < y[upper.depth] + (half + PAD if upper.path in frames else reach))

    framed = [node for node in shown.mixtures if node.depth]
    pairs = [(a, b) for a in shown.nodes for b in framed] + [(a, b) for a in framed for b in shown.leaves]
    # Each pair once, from the left, because a pair moves only leaves to its right.
    for a, b in sorted(pairs, key=lambda pair: pair[1].leaves.start):
        if a.leaves.stop <= b.leaves.start and are_beside(a, b):
            needed = (frames.get(a.path, wide) + frames.get(b.path, wide)) / 2 + GAP
            left[b.leaves.start :] += max(0.0, needed - (_middle(b, left, wide) - _middle(a, left, wide)))
    return left

"""The pictures: a training's curves, and what a model has found, as matplotlib figures for the caller to save or show.

Axes: `leaf` as in `hmoevae.plan`; `row` and `column` of a grid of pictures, `height`, `width` and `rgb` of one picture.
Samples of shape `(h, w)`, `(1, h, w)` or `(3, h, w)` are shown as images, low and narrow ones stretched until a label
fits beside them; others as bars on a thin line of zero, one an entry, or 50 means over neighbours where there are more
entries. Lengths are in pixels of the figure. pyplot is never touched: nothing outside the returned figure changes.
"""

import itertools
import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from hmoevae.errors import (
    ArgumentError,
    ArgumentTypeError,
    DataError,
    MissingExtraError,
    ShapeError,
    check_integer,
    from_extra,
    is_integer,
    mismatch,
)
from hmoevae.history import History
from hmoevae.model import ArrayLike, HMoEVAE
from hmoevae.plan import Plan, PlannedNode
from hmoevae.spec import VAE

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
    from matplotlib.path import Path as Curve
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator
except ImportError as missing:
    raise MissingExtraError(mismatch("hmoevae.plot", from_extra("matplotlib", "plot"), missing)) from None

Pictures = Float[np.ndarray, "row column height width rgb"]

DPI = 150
SIDE, LARGE = 56.0, 80.0
"""The longer side of a picture, among many or few; rounded to a whole multiple of what it is in its own pixels."""
LEAST = 24.0
"""What the shorter side of a picture is stretched to, about."""
GAP = 4.0
"""Between pictures, about; more where a child of the root or a leaf begins."""
LINE = 14.0
"""The height of a line of a label."""
HALF, PAD = 8.0, 3.0
"""Half the height of a node's frame, and what is around it."""
BLUE, ORANGE, PALE, GREY, FAINT = "#0072b2", "#d55e00", "#9ecae1", "#555555", "#aaaaaa"
"""Colours that colour-blind readers can tell apart (Okabe & Ito 2008)."""
LABEL: Mapping[str, Any] = MappingProxyType({"fontsize": 7, "color": GREY, "parse_math": False})
TITLE: Mapping[str, Any] = MappingProxyType({"fontsize": 8.5, "loc": "left", "parse_math": False})


# --- the training ---------------------------------------------------------------------------------------------------


def losses(history: History) -> Figure:
    """The loss and each of its terms over the epochs, a panel each: their scales have nothing in common.

    The loss's curve breaks where its terms become others, as they do when experts join the gates. A term that is 0 in
    all epochs, such as the balance of a lone VAE, has no panel.

    Args:
        history: What `fit` returned. A column `val_<term>` joins the panel of its term.

    Raises:
        ArgumentError: `history` has no epoch.
        ArgumentTypeError: `history` is no `History`.

    >>> history = History([{"epoch": 1, "loss": 3.0, "elbo": 3.0}, {"epoch": 2, "loss": 2.0, "elbo": 2.0}])
    >>> [ax.get_title(loc="left") for ax in losses(history).axes]
    ['loss (the sum of the terms below)', 'elbo']
    """
    epochs = _epochs(history)
    others = ("epoch", "loss", "seconds", "val_", "usage/", "information/", "revived")
    terms = (column for column in history.columns if not column.startswith(others))
    names = ["loss", *(term for term in terms if np.nan_to_num(history[term]).any())]
    in_force = np.isfinite(np.array([history[name] for name in names[1:]]).reshape(len(names) - 1, len(epochs)))
    breaks = 1 + np.flatnonzero((in_force[:, 1:] != in_force[:, :-1]).any(0))
    fig = Figure(figsize=(5.5, 0.5 + 1.3 * len(names)), dpi=DPI, facecolor="white", layout="constrained")
    panels = fig.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for ax, name in zip(panels, names, strict=True):
        for label, column, colour, line in (("training", name, BLUE, "-"), ("validation", f"val_{name}", ORANGE, "--")):
            if column in history.columns:
                values = np.asarray(history[column])
                known = np.isfinite(values)  # validation may come every few epochs; its points are still one curve
                x, y = epochs[known], values[known]
                if name == "loss":
                    x, y = np.insert(x, breaks, np.nan), np.insert(y, breaks, np.nan)
                ax.plot(x, y, line, color=colour, label=label, marker=".", markersize=4, lw=1.3)
        ax.set_title("loss (the sum of the terms below)" if name == "loss" else name, **TITLE)
        ax.grid(axis="y", color="#e5e5e5", linewidth=0.6)
        _against_epochs(ax, last=ax is panels[-1])
        if len(ax.lines) > 1:
            ax.legend(frameon=False, fontsize=LABEL["fontsize"])
    fig.supylabel("nats", **LABEL)
    return fig


def usage(history: History, *, plan: Plan | None = None) -> Figure:
    """Fraction of the samples that goes to every leaf over the epochs, as stacked areas in the order of the leaves.

    Leaves below one child of the root share a colour. A leaf that is hardly used in the last epoch goes without a name,
    and so does one that would be written over a larger one.

    Args:
        history: What `fit` returned.
        plan: The model's plan; with it, leaves are called by their names, otherwise by their paths.

    Raises:
        ArgumentError: `history` has no epoch, or no column `usage/...`, or `plan` has other leaves.
        ArgumentTypeError: `history` is no `History`, or `plan` no `Plan`.

    >>> history = History([{"epoch": 1, "usage/root/0": 0.5, "usage/root/1": 0.5}])
    >>> [text.get_text().strip() for text in usage(history).axes[0].texts]
    ['0', '1']
    """
    epochs = _epochs(history)
    names = [c.removeprefix("usage/") for c in history.columns if c.startswith("usage/")]
    if not names:
        raise ArgumentError(mismatch("history", "columns 'usage/<path of a leaf>'", ", ".join(history.columns)))
    labels = [name.removeprefix("root/") for name in names]
    if plan is not None:
        _check(isinstance(plan, Plan), "plan", "a Plan, such as model.plan", plan)
        if [leaf.path for leaf in plan.leaves] != names:
            raise ArgumentError(mismatch("plan", f"one with the leaves {', '.join(names)}", "one with other leaves"))
        labels = _leaf_names(plan)
    values = np.nan_to_num(np.array([history[f"usage/{name}"] for name in names]))
    top = values.cumsum(0)
    edges = np.append(epochs - 0.5, epochs[-1] + 0.5)
    branches = [name.split("/")[1] if "/" in name else name for name in names]
    order = list(dict.fromkeys(branches))
    fig = Figure(figsize=(6.5, 4.8), dpi=DPI, facecolor="white", layout="constrained")
    ax = fig.subplots()
    for i in range(len(names)):
        colour = colormaps["viridis"](0.1 + 0.78 * order.index(branches[i]) / max(1, len(order) - 1))
        colour = colour if branches[:i].count(branches[i]) % 2 == 0 else (*(0.65 + 0.35 * c for c in colour[:3]), 1)
        ax.stairs(top[i], edges, baseline=top[i] - values[i], fill=True, facecolor=colour, edgecolor="white", lw=0.6)
    middle = top[:, -1] - values[:, -1] / 2
    for i in _with_room(middle, values[:, -1]):
        ax.text(edges[-1], middle[i], f" {labels[i]}", va="center", **LABEL)
    ax.set(xlim=(edges[0], edges[-1]), ylim=(0, max(1.0, float(top.max()))))
    ax.set_title("Usage of every leaf, as a fraction of the samples", **TITLE)
    _against_epochs(ax)
    return fig


def sample_grid(
    frames: Float[ArrayLike, "epoch leaf *input_shape"],
    epochs: Sequence[int],
    titles: Iterable[object] | None = None,
    *,
    plan: Plan | None = None,
) -> Figure:
    """What every leaf draws as the training goes on: a row for each epoch, a column for each leaf.

    Args:
        frames: The samples.
        epochs: The number of every row.
        titles: A label for every column; by default the leaves' names in `plan`, or their numbers.
        plan: The model's plan; with it, the children of the root stand a little apart.

    Raises:
        ShapeError: The lengths do not go together.
        DataError: `frames` are empty or not finite.
        ArgumentTypeError: `frames` are no numbers, `epochs` or `titles` no sequence, or `plan` is no `Plan`.

    >>> figure = sample_grid(torch.rand(2, 3, 1, 8, 8), epochs=[1, 20])
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['1', '20']
    """
    if plan is not None:
        _check(isinstance(plan, Plan), "plan", "a Plan, such as model.plan", plan)
    frames, labels = _floats(frames, "frames"), _labels(epochs, "epochs")
    pictures = _pictures(frames, "frames")
    n_rows, n_columns = pictures.shape[:2]
    if len(labels) != n_rows:
        raise ShapeError(mismatch("epochs", f"{n_rows} numbers, one a row of frames", len(labels)))
    if plan is not None and plan.n_leaves != n_columns:
        raise ShapeError(mismatch("frames", f"(epoch, {plan.n_leaves}, ...), one column a leaf", tuple(frames.shape)))
    if titles is None:
        names = [str(i) for i in range(n_columns)] if plan is None else _leaf_names(plan)
    else:
        names = _labels(titles, "titles")
    if len(names) != n_columns:
        raise ShapeError(mismatch("titles", f"{n_columns} labels, one a column of frames", len(names)))
    fig, ax = _show(pictures, labels, names, columns_apart=_branches(plan))
    ax.set_ylabel("epoch", **LABEL)
    return _make_room(fig, ax)


# --- the model ------------------------------------------------------------------------------------------------------


def tree(
    model: HMoEVAE,
    *,
    usage: Float[ArrayLike, " leaf"] | None = None,
    images: Float[ArrayLike, "leaf *input_shape"] | None = None,
    generator: torch.Generator | None = None,
) -> Figure:
    """The tree from the root down, with a picture at every leaf and edges as wide as they are used.

    Args:
        model: The model.
        usage: How much every leaf is used, such as `model.predict_proba(x).mean(0)`; shown as fractions of the sum. By
            default the prior.
        images: What to show at the leaves; by default what each makes of z = 0, the prior's mean.
        generator: Source, on the CPU, of draws from the prior that take the place of z = 0.

    Raises:
        ShapeError: `usage` or `images` do not have one entry a leaf.
        DataError: `usage` has negative or non-finite entries or only zeros, or `images` are not finite.
        ArgumentTypeError: `model` is no `HMoEVAE`, or `usage` or `images` are no numbers.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(1, 8, 8))
    >>> figure = tree(model, usage=model.predict_proba(torch.rand(20, 1, 8, 8)).mean(0))
    >>> figure.axes[0].texts[0].get_text()
    'root'
    """
    _check_model(model)
    plan = model.plan
    share = model.paths.leaf_log_prior().detach().exp() if usage is None else _floats(usage, "usage")
    if share.shape != (plan.n_leaves,):
        raise ShapeError(mismatch("usage", f"({plan.n_leaves},), one number a leaf", tuple(share.shape)))
    if not (torch.isfinite(share).all() and share.min() >= 0 and share.sum() > 0):
        raise DataError(mismatch("usage", "finite numbers >= 0, not all of them 0", share.tolist()))
    if images is None:
        size = (plan.n_leaves, model.experts.latent_dim)
        z = torch.zeros(size) if generator is None else torch.randn(size, generator=generator)
        images = model.decode(z, torch.arange(plan.n_leaves))
    images = _floats(images, "images")
    if images.shape != (plan.n_leaves, *model.input_shape):
        raise ShapeError(mismatch("images", f"{(plan.n_leaves, *model.input_shape)}", tuple(images.shape)))
    pictures = _pictures(images.unsqueeze(0), "images")[0]
    zoom = _zoom(pictures)
    tall, wide = zoom * pictures.shape[1], zoom * pictures.shape[2]

    below = {n.path: float(share[n.leaves.start : n.leaves.stop].sum() / share.sum()) for n in plan.nodes}
    trunk = min(SIDE, wide)  # all edges of the root together, lest one be wider than the picture that it leads to
    names = _names(plan)
    labels = {
        n.path: f"{names[n.path]}: {100 * below[n.path]:.1f}%" if n.depth else names["root"] for n in plan.mixtures
    }
    frames = {path: max(trunk * below[path], _text_width(label)) + 2 * PAD for path, label in labels.items()}
    captions = _fit(_leaf_names(plan), wide + GAP)
    reach = tall + _height(captions) + LINE + 1.5 * HALF  # a picture and what is written below it
    left = _without_overlaps(plan, wide, reach, frames)
    x, y = {n.path: _middle(n, left, wide) for n in plan.nodes}, _tops(plan, left, wide)

    fig, ax = _canvas(left[-1] + wide, y[-1] + tall)
    start = {n.path: x[n.path] - trunk * below[n.path] / 2 for n in plan.mixtures}
    for parent, child in _edges(plan):
        width = trunk * below[child.path]
        x0, y0, x1, y1 = start[parent.path] + width / 2, y[parent.depth], x[child.path], y[child.depth]
        start[parent.path] += width
        y2, y3, y4 = y0 + HALF, (y0 + y1) / 2, y1 - HALF
        points = [(x0, y0), (x0, y2), (x0, y3), (x1, y3), (x1, y4), (x1, y1)]
        curve = Curve(points, [Curve.MOVETO, Curve.LINETO, *[Curve.CURVE4] * 3, Curve.LINETO])
        lw = max(0.5, width * 72 / DPI)
        seam = [withStroke(linewidth=lw + 1, foreground="white")]  # tells apart edges that lie close together
        edge = PathPatch(curve, fill=False, ec=PALE, lw=lw, capstyle="butt", path_effects=seam, gid=child.path)
        ax.add_patch(edge)
    for node in plan.nodes:
        middle, top = x[node.path], y[node.depth]
        if isinstance(node.spec, VAE):
            at = left[node.leaves.start]
            _imshow(ax, pictures[node.leaves.start], (at, at + wide, top + tall, top), zoom)
            caption, angle = captions[node.leaves.start]
            caption += f"\n{100 * below[node.path]:.1f}%"
            ax.text(middle, top + tall + 4, caption, ha="center", va="top", rotation=angle, **LABEL)
        else:
            width = frames[node.path] - 2 * PAD
            corner = (middle - width / 2, top - HALF)
            box = f"round,pad={PAD}"
            ax.add_patch(FancyBboxPatch(corner, width, 2 * HALF, box, fc="white", ec=PALE, clip_on=False))
            ax.text(middle, top, labels[node.path], ha="center", va="center", **LABEL)
    return _make_room(fig, ax)


def _edges(plan: Plan) -> list[tuple[PlannedNode, PlannedNode]]:
    """Every edge as the mixture that it leaves and the node that it leads to."""
    return [(plan.mixtures[m], plan.nodes[c]) for m, c in zip(plan.edge_mixture, plan.edge_child, strict=True)]


def _middle(node: PlannedNode, left: np.ndarray, wide: float) -> float:
    """Where a node is across, from the left sides of the leaves."""
    return float(left[node.leaves.start] + left[node.leaves.stop - 1] + wide) / 2


def _tops(plan: Plan, left: np.ndarray, wide: float) -> np.ndarray:
    """How far down every depth is: a level is as high as its widest fan asks for, lest its edges run flat."""
    fans = [0.0] * plan.depth
    for a, b in _edges(plan):
        fans[a.depth] = max(fans[a.depth], abs(_middle(b, left, wide) - _middle(a, left, wide)))
    return np.cumsum([0.0, *(round(SIDE + fan / 5) for fan in fans)])


def _without_overlaps(plan: Plan, wide: float, reach: float, frames: Mapping[str, float]) -> np.ndarray:
    """The left sides of all leaves, as far apart as pictures and the mixtures' `frames` (widths) ask for.

    Pictures reach `reach` down with what is written below them.
    """
    parents = [leaf.path.rpartition("/")[0] for leaf in plan.leaves]
    steps = [wide + GAP * (1 if a == b else 5) for a, b in itertools.pairwise(parents)]
    left = np.cumsum([0.0, *steps])
    y = _tops(plan, left, wide)

    def are_beside(a: PlannedNode, b: PlannedNode) -> bool:
        upper, lower = (a, b) if a.depth <= b.depth else (b, a)
        return bool(y[lower.depth] - HALF - PAD < y[upper.depth] + (HALF + PAD if upper.path in frames else reach))

    framed = [node for node in plan.mixtures if node.depth]
    pairs = [(a, b) for a in plan.nodes for b in framed] + [(a, b) for a in framed for b in plan.leaves]
    # From the left each pair once, for all that moves is to the right of it.
    for a, b in sorted(pairs, key=lambda pair: pair[1].leaves.start):
        if a.leaves.stop <= b.leaves.start and are_beside(a, b):
            needed = (frames.get(a.path, wide) + frames.get(b.path, wide)) / 2 + GAP
            left[b.leaves.start :] += max(0.0, needed - (_middle(b, left, wide) - _middle(a, left, wide)))
    return left


def samples(model: HMoEVAE, n: int = 10, *, generator: torch.Generator | None = None) -> Figure:
    """New samples from every leaf: a column for each leaf, z drawn from the prior N(0, I).

    Args:
        model: The model.
        n: How many of each leaf.
        generator: Source of the draws, on the CPU.

    Raises:
        ArgumentError: `n` is not an integer > 0.
        ArgumentTypeError: `model` is no `HMoEVAE`.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(1, 8, 8))
    >>> figure = samples(model, n=4)
    >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
    ['0', '1', '2']
    """
    _check_model(model)
    check_integer("n", n)
    n_leaves = model.plan.n_leaves
    z = torch.randn(n * n_leaves, model.experts.latent_dim, generator=generator)
    drawn = model.decode(z, torch.arange(n_leaves).repeat(n)).unflatten(0, (n, n_leaves))
    fig, ax = _show(_pictures(drawn, "samples"), [], _leaf_names(model.plan), columns_apart=_branches(model.plan))
    ax.set_title("Samples of every leaf", **TITLE)
    return _make_room(fig, ax)


def nearest(model: HMoEVAE, x: ArrayLike, n: int = 5, *, generator: torch.Generator | None = None) -> Figure:
    """Samples of every leaf, and below each the nearest of the given ones that are routed to the leaf.

    A pair of rows for each child of the root, the leaves below it side by side, with their names. A leaf that takes
    none of the samples has an empty frame in the lower row.

    Args:
        model: The model.
        x: Samples to look among, `(batch, *input_shape)`, such as the test split.
        n: How many of each leaf, z drawn from the prior N(0, I).
        generator: Source of the draws, on the CPU.

    Raises:
        ArgumentError: `n` is not an integer > 0.
        ArgumentTypeError: `model` is no `HMoEVAE`, or `x` is not a floating point tensor or array.
        ShapeError: `x` does not have the shape of a batch of samples.
        DataError: `x` is empty, not finite, or outside the support of a leaf's likelihood.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(1, 8, 8))
    >>> figure = nearest(model, torch.rand(20, 1, 8, 8), n=2)
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['0', 'nearest', '1', 'nearest', '2', 'nearest']
    """
    _check_model(model)
    check_integer("n", n)
    x = model.check_input(x).cpu()
    plan, leaf = model.plan, model.predict(x).cpu()
    z = torch.randn(n * plan.n_leaves, model.experts.latent_dim, generator=generator)
    drawn = model.decode(z, torch.arange(plan.n_leaves).repeat_interleave(n)).cpu().unflatten(0, (plan.n_leaves, n))
    found = torch.zeros_like(drawn)
    for i in leaf.unique().tolist():
        own = x[leaf == i].to(drawn.dtype)
        found[i] = own[torch.cdist(drawn[i].flatten(1), own.flatten(1)).argmin(1)]
    pictures = _pictures(torch.cat([drawn, found]), "samples")
    is_empty = leaf.bincount(minlength=plan.n_leaves).numpy() == 0
    pictures[plan.n_leaves :][is_empty] = 1.0

    branches = plan.level(1) if plan.depth else plan.leaves
    n_columns = n * max(len(branch.leaves) for branch in branches)
    grid = np.ones((2 * len(branches), n_columns, *pictures.shape[2:]), dtype=pictures.dtype)
    for row, branch in enumerate(branches):
        for half in (0, 1):
            own = np.concatenate([pictures[half * plan.n_leaves + i] for i in branch.leaves])
            grid[2 * row + half, : len(own)] = own
    names, zoom = _names(plan), _zoom(grid)
    tall, wide = zoom * pictures.shape[2], zoom * pictures.shape[3]
    # A child of the root is named beside its rows.
    captions = _fit([names[node.path] if node.depth > 1 else "" for node in plan.leaves], n * wide)
    gap = 2 * GAP + (GAP + _height(captions) if plan.depth > 1 else 0)
    labels = [label for branch in branches for label in (names[branch.path], "nearest")]
    pairs, leaves = range(2, len(grid), 2), range(n, n_columns, n)
    fig, ax = _show(grid, labels, [], rows_apart=pairs, row_gap=gap, columns_apart=leaves)
    x, y = ax.get_xticks(), ax.get_yticks()
    for row, branch in enumerate(branches):
        for column, i in enumerate(branch.leaves):
            left, right = x[n * column] - wide / 2, x[n * column + n - 1] + wide / 2
            bottom = y[2 * row + 1] + tall / 2
            if plan.leaves[i].depth > 1:
                _caption(ax, (left + right) / 2, bottom, captions[i])
            if is_empty[i]:
                _empty_frame(ax, left, bottom - tall, right - left, tall)
    ax.set_title("Samples of every leaf, and the nearest of those routed to it", **TITLE)
    return _make_room(fig, ax)


def _empty_frame(ax: Axes, left: float, top: float, width: float, height: float) -> None:
    ax.add_patch(Rectangle((left, top), width - 1, height, fill=False, ec=FAINT, lw=0.5, clip_on=False))
    ((note, angle),) = _fit(["no sample"], width)
    ax.text(left + width / 2, top + height / 2, note, ha="center", va="center", rotation=angle, **LABEL)


def reconstructions(model: HMoEVAE, x: ArrayLike) -> Figure:
    """Samples above their reconstructions, and below each pair the leaf that it was routed to.

    Args:
        model: The model.
        x: Samples, `(batch, *input_shape)`, a few dozen at most; twelve make a row.

    Raises:
        ArgumentTypeError: `model` is no `HMoEVAE`, or `x` is not a floating point tensor or array.
        ShapeError: `x` does not have the shape of a batch of samples.
        DataError: `x` is empty, not finite, or outside the support of a leaf's likelihood.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(1, 8, 8))
    >>> figure = reconstructions(model, torch.rand(5, 1, 8, 8))
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['original', 'reconstruction']
    """
    _check_model(model)
    x = model.check_input(x)
    names = _leaf_names(model.plan)
    leaves = [names[leaf] for leaf in model.predict(x).tolist()]
    pictures = _pictures(torch.stack([x, model.reconstruct(x).to(x.dtype)]), "x")
    fig, ax = _captioned(pictures, leaves, ["original", "reconstruction"], n_columns=12)
    ax.set_title("Samples, their reconstructions, and the leaf of each", **TITLE)
    return _make_room(fig, ax)


def traversals(model: HMoEVAE, node: str, *, n_steps: int = 9, dims: Iterable[int] | None = None) -> Figure:
    """What a leaf's latent dimensions stand for: each goes from -3 to 3 in its row while the others are 0.

    Args:
        model: The model.
        node: Path of the leaf, such as `"root/3"`.
        n_steps: Pictures in a row.
        dims: The latent dimensions to show; all by default.

    Raises:
        ArgumentError: There is no leaf at `node`, `n_steps` is not an integer > 1, or `dims` are none of the leaf's.
        ArgumentTypeError: `model` is no `HMoEVAE`.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(1, 8, 8))
    >>> figure = traversals(model, "root/1", n_steps=3)
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['z[0]', 'z[1]']
    """
    _check_model(model)
    found = model.plan.node(node)
    if not isinstance(found.spec, VAE):
        got = f"{node!r}, a mixture of {len(found.spec.children)} (try {model.plan.leaves[found.leaves.start].path!r})"
        raise ArgumentError(mismatch("node", "the path of a leaf", got))
    check_integer("n_steps", n_steps, least=2)
    latent_dim = found.spec.latent_dim
    shown = list(dims if isinstance(dims, Iterable) else range(latent_dim) if dims is None else ())
    if not shown or not all(is_integer(d, least=0) and d < latent_dim for d in shown):
        raise ArgumentError(mismatch("dims", f"a sequence of integers from 0 to {latent_dim - 1}", repr(dims)))
    steps = torch.linspace(-3, 3, n_steps)
    z = torch.zeros(len(shown), n_steps, model.experts.latent_dim)
    z[torch.arange(len(shown)), :, shown] = steps
    leaf = torch.full((len(shown) * n_steps,), found.leaves.start)
    drawn = model.decode(z.flatten(0, 1), leaf).unflatten(0, (len(shown), n_steps))
    fig, ax = _show(_pictures(drawn, "traversals"), [f"z[{d}]" for d in shown], [f"{s:.3g}" for s in steps.tolist()])
    ax.set_title(f"Leaf {_names(model.plan)[found.path]}: one latent at a time, in standard deviations", **TITLE)
    return _make_room(fig, ax)


# --- clusters against labels ----------------------------------------------------------------------------------------


def contingency(
    labels: ArrayLike,
    clusters: ArrayLike,
    *,
    cluster_names: Iterable[object] | None = None,
    title: str | None = None,
    keep_order: bool = False,
) -> Figure:
    """How the samples of every label are spread over the clusters: a row for each label, a column for each cluster.

    Colours are fractions of the label. Cells hold counts, or with more than 12 clusters percentages of the label; cells
    that would read 0 stay empty.

    Args:
        labels: Label of every sample, `(n,)`.
        clusters: Cluster of every sample, `(n,)`, such as `model.predict(x)`.
        cluster_names: A name for every cluster, `0` first, the empty ones' too; by default the numbers of those that
            occur.
        title: What to write on top.
        keep_order: Leave the clusters in their order (the tree's) instead of one that puts the largest cells onto the
            diagonal (Kuhn 1955); clusters that are left over follow the first of their commonest label, empty
            ones go last.

    Raises:
        ShapeError: `labels` and `clusters` are not of one length, or there are too few names.
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
    fig, ax = _canvas(side * len(names), side * len(values))
    extent = (0, side * len(names), side * len(values), 0)
    ax.imshow(share, cmap="Blues", vmin=0, extent=extent, aspect="auto", interpolation="nearest")
    for row, column in np.argwhere(cells > 0):
        colour = "white" if share[row, column] > 0.6 * share.max() else "#222222"
        at = (column + 0.5) * side, (row + 0.5) * side
        ax.text(*at, str(cells[row, column]), ha="center", va="center", **{**LABEL, "color": colour})
    ax.set_yticks(side * (np.arange(len(values)) + 0.5), [str(v) for v in values], **LABEL)
    names = [names[i] for i in order]
    _label_columns(ax, side * (np.arange(len(names)) + 0.5), names, side)
    ax.set_ylabel("label", **LABEL)
    ax.set_xlabel(f"cluster (cells: {'percent of the label' if in_percent else 'number of samples'})", **LABEL)
    if title is not None:
        ax.set_title(title, **TITLE)
    return _make_room(fig, ax)


def misrouted(
    x: ArrayLike,
    labels: ArrayLike,
    clusters: ArrayLike,
    *,
    cluster_names: Iterable[object] | None = None,
    n: int = 160,
) -> Figure:
    """The samples in clusters that mostly hold another label, in the order of their labels and then of those.

    Below every sample stands its label, what its cluster mostly holds, and the cluster: "4 → 9, in 2" is a 4 in cluster
    2, most of whose samples are 9s.

    Args:
        x: Samples, `(n, *input_shape)`.
        labels: Label of every sample, `(n,)`.
        clusters: Cluster of every sample, `(n,)`, such as `model.predict(x)`.
        cluster_names: A name for every cluster, `0` first; their numbers by default.
        n: The most samples to show; of more, some from all over.

    Raises:
        ShapeError: The lengths do not go together, or there are too few names.
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
        raise ShapeError(mismatch("x", f"{len(y)} samples, one a label", len(x)))
    holds = _counts(y, cluster, len(values), len(names)).argmax(0)[cluster]
    wrong = (holds != y).nonzero()[0]
    title = f"{len(wrong):,} of {len(y):,} samples are in a cluster that mostly holds another label"
    if len(wrong) == 0:
        fig, ax = _canvas(1.0, 1.0)
        ax.set_title(title, **TITLE)
        return _make_room(fig, ax)
    wrong = wrong[np.lexsort((cluster[wrong], holds[wrong], y[wrong]))]
    shown = wrong[np.linspace(0, len(wrong) - 1, min(n, len(wrong))).round().astype(int)]
    if len(shown) < len(wrong):
        title += f"; {len(shown)} of them"
    captions = [f"{values[y[i]]} → {values[holds[i]]}\nin {names[cluster[i]]}" for i in shown]
    picked = x[torch.from_numpy(shown)] if isinstance(x, Tensor) else np.asarray(x)[shown]
    pictures = _pictures(_floats(picked, "x").unsqueeze(0), "x")
    fig, ax = _captioned(pictures, captions, [""], n_columns=20)
    ax.set_title(title, **TITLE)
    return _make_room(fig, ax)


def _labelled(
    labels: ArrayLike, clusters: ArrayLike, cluster_names: Iterable[object] | None
) -> tuple[np.ndarray, Int[np.ndarray, " n"], Int[np.ndarray, " n"], list[str]]:
    """The labels that there are, every sample's as an index into them, its cluster, and the clusters' names."""
    rows, columns = (np.asarray(v.cpu() if isinstance(v, Tensor) else v) for v in (labels, clusters))
    if rows.ndim != 1 or columns.shape != rows.shape:
        raise ShapeError(mismatch("labels, clusters", "(n,) and (n,)", f"{rows.shape} and {columns.shape}"))
    if not np.issubdtype(columns.dtype, np.integer) or len(columns) == 0 or columns.min() < 0:
        raise DataError(mismatch("clusters", "at least one integer, all >= 0", f"{columns.dtype} {columns[:8]}"))
    if cluster_names is None:
        found, columns = np.unique(columns, return_inverse=True)
        names = [str(i) for i in found]
    else:
        names = _labels(cluster_names, "cluster_names")
        n_clusters = int(columns.max()) + 1
        if len(names) < n_clusters:
            raise ShapeError(mismatch("cluster_names", f"at least {n_clusters} names", len(names)))
    values, rows = np.unique(rows, return_inverse=True)
    return values, rows, columns, names


def _counts(
    label: Int[np.ndarray, " n"], cluster: Int[np.ndarray, " n"], n_labels: int, n_clusters: int
) -> Int[np.ndarray, "label cluster"]:
    counts = np.zeros((n_labels, n_clusters), dtype=int)
    np.add.at(counts, (label, cluster), 1)
    return counts


def _diagonal(counts: Int[np.ndarray, "label cluster"]) -> list[int]:
    """The order of the clusters that makes the diagonal strongest; more clusters than labels make a staircase."""
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


# --- helpers --------------------------------------------------------------------------------------------------------


def _check(fits: bool, argument: str, expected: str, got: object) -> None:
    if not fits:
        raise ArgumentTypeError(mismatch(argument, expected, type(got).__name__))


def _check_model(model: HMoEVAE) -> None:
    """By its plan, which a model has too that `torch.compile` has wrapped."""
    expected = "an HMoEVAE, such as the estimator's model_" if hasattr(model, "model_") else "an HMoEVAE"
    _check(isinstance(getattr(model, "plan", None), Plan), "model", expected, model)


def _epochs(history: History) -> Float[np.ndarray, " epoch"]:
    """The numbers of the epochs; at least one."""
    _check(isinstance(history, History), "history", "a History, such as fit returns", history)
    if len(history) == 0:
        raise ArgumentError(mismatch("history", "at least one epoch", "none"))
    return np.asarray(history["epoch"])


def _labels(names: Iterable[object], argument: str) -> list[str]:
    _check(isinstance(names, Iterable), argument, "a sequence", names)
    return [str(name) for name in names]


def _floats(values: ArrayLike, argument: str) -> Float[Tensor, "..."]:
    """Numbers of any kind in single precision, on the CPU."""
    if isinstance(values, Tensor):
        return values.detach().float().cpu()
    try:
        return torch.from_numpy(np.array(values, dtype=np.float32))
    except (TypeError, ValueError):
        expected = "a torch.Tensor or numpy array of numbers"
        raise ArgumentTypeError(mismatch(argument, expected, type(values).__name__)) from None


def _pictures(values: Float[Tensor, "row column *input_shape"], name: str) -> Pictures:
    """Samples as pictures in [0, 1]: images as they are, their range stretched if it is another, vectors as bars.

    Low and narrow images become as high and wide as a label, lest labels be printed over each other.
    """
    if values.ndim < 3 or values.numel() == 0:
        raise ShapeError(mismatch(name, "(row, column, *input_shape), none of them 0", tuple(values.shape)))
    if not torch.isfinite(values).all():
        raise DataError(mismatch(name, "finite values", "NaN or infinity"))
    shape = values.shape[2:]
    if len(shape) == 2:
        values, shape = values.unsqueeze(2), (1, *shape)
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape[1:]) == 1:
        return _bars(values.flatten(2))
    low, high = (v.item() for v in values.aminmax())
    if low < 0 or high > 1:
        values = (values - low) / max(high - low, 1e-12)
    scale = SIDE / max(shape[1:])
    for axis in (3, 4):
        values = values.repeat_interleave(math.ceil(LEAST / (scale * values.shape[axis])), axis)
    values = values.expand(-1, -1, 3, -1, -1)
    return rearrange(values.numpy(), "row column rgb height width -> row column height width rgb")


def _bars(values: Float[Tensor, "row column entry"]) -> Pictures:
    """Bar charts of one scale, zero where it belongs, as pictures: drawn by axes they would take seconds."""
    inside = int(SIDE) - 6
    if values.shape[2] > inside:
        values = F.adaptive_avg_pool1d(values, inside)
    low, high = min(0.0, values.min().item()), max(0.0, values.max().item())
    levels = torch.linspace(high, low, inside).unsqueeze(1)
    entry = torch.arange(inside) * values.shape[2] // inside
    height = values[:, :, None, :]
    ink = (((levels > 0) & (levels <= height)) | ((levels < 0) & (levels >= height)))[..., entry]
    if values.shape[2] <= inside // 4:  # room for a pixel between two bars
        ink[..., :-1] &= entry[1:] == entry[:-1]
    is_zero = (torch.arange(inside) == levels.abs().argmin()).unsqueeze(1)
    kind = F.pad(torch.where(ink, 2, is_zero.long()), (3, 3, 3, 3))
    colours = np.array([to_rgb("white"), to_rgb(FAINT), to_rgb(BLUE)])
    return colours[kind.numpy()]


def _tile(
    pictures: Pictures, row_gaps: Int[np.ndarray, " row"], column_gaps: Int[np.ndarray, " column"]
) -> tuple[Float[np.ndarray, "tall wide rgb"], Float[np.ndarray, " row"], Float[np.ndarray, " column"]]:
    """One image of all pictures, so much white before each row and column; and the middle of every row and column."""
    height, width = pictures.shape[2:4]
    row, column = np.arange(len(row_gaps)), np.arange(len(column_gaps))
    tiled = rearrange(pictures, "row column height width rgb -> (row height) (column width) rgb")
    tiled = np.insert(tiled, np.repeat(row * height, row_gaps), 1.0, axis=0)
    tiled = np.insert(tiled, np.repeat(column * width, column_gaps), 1.0, axis=1)
    return tiled, (row + 0.5) * height + row_gaps.cumsum(), (column + 0.5) * width + column_gaps.cumsum()


def _show(
    pictures: Pictures,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    rows_apart: Sequence[int] = (),
    row_gap: float = 2 * GAP,
    columns_apart: Sequence[int] = (),
) -> tuple[Figure, Axes]:
    """A figure of one tiled image with labels for its rows and columns; `_make_room` is left to the caller.

    Between all pictures is some white, lest they grow together; more above `rows_apart` and left of `columns_apart`.
    """
    zoom = _zoom(pictures)
    between = max(1, round(max(pictures.shape[2:4]) / 14))
    row_gaps, column_gaps = (np.array([0, *[between] * (n - 1)]) for n in pictures.shape[:2])
    for gaps, apart, more in ((row_gaps, rows_apart, row_gap), (column_gaps, columns_apart, 2 * GAP)):
        gaps[list(apart)] += max(1, round(more / zoom))
    tiled, y, x = _tile(pictures, row_gaps, column_gaps)
    height, width = zoom * tiled.shape[0], zoom * tiled.shape[1]
    fig, ax = _canvas(width, height)
    _imshow(ax, tiled, (0.0, width, height, 0.0), zoom)
    ax.set_yticks(zoom * y, rows or [""] * len(y), **LABEL)
    _label_columns(ax, zoom * x, columns or [""] * len(x), zoom * (pictures.shape[3] + between))
    return fig, ax


def _label_columns(ax: Axes, x: Float[np.ndarray, " column"], names: Sequence[str], room: float) -> None:
    fitted = _fit(names, room)
    ax.set_xticks(x, [text for text, _ in fitted], **LABEL)
    for tick, (_, angle) in zip(ax.get_xticklabels(), fitted, strict=True):
        tick.set_rotation(angle)


def _captioned(
    pictures: Float[np.ndarray, "line picture height width rgb"],
    captions: Sequence[str],
    labels: Sequence[str],
    *,
    n_columns: int,
) -> tuple[Figure, Axes]:
    """Pictures side by side, so many at most, in one or more lines that belong together, and a caption below them."""
    lines, n = pictures.shape[:2]
    n_columns = min(n, n_columns)
    blanks = -n % n_columns
    pictures = np.pad(pictures, [(0, 0), (0, blanks), (0, 0), (0, 0), (0, 0)], constant_values=1.0)
    pictures = rearrange(pictures, "line (row column) ... -> (row line) column ...", column=n_columns)
    zoom = _zoom(pictures)
    fitted = _fit(captions, zoom * pictures.shape[3])
    apart, gap = range(lines, len(pictures), lines), 2 * GAP + _height(fitted)
    fig, ax = _show(pictures, [*labels] * (len(pictures) // lines), [], rows_apart=apart, row_gap=gap)
    x, y = ax.get_xticks(), ax.get_yticks()
    for i, caption in enumerate(fitted):
        row, column = divmod(i, n_columns)
        _caption(ax, x[column], y[lines * (row + 1) - 1] + zoom * pictures.shape[2] / 2, caption)
    return fig, ax


def _caption(ax: Axes, x: float, bottom: float, fitted: tuple[str, int]) -> None:
    """Write a label of `_fit` below a picture that ends at `bottom`."""
    ax.text(x, bottom + 4, fitted[0], ha="center", va="top", rotation=fitted[1], linespacing=1.0, **LABEL)


def _zoom(pictures: Float[np.ndarray, "... height width rgb"]) -> float:
    """What one pixel of a picture measures: a whole number wherever it can be, so that pictures stay crisp."""
    longest = max(pictures.shape[-3:-1])
    side = LARGE if max(pictures.shape[:-3]) <= 12 else SIDE
    return float(round(side / longest)) or side / longest


def _imshow(ax: Axes, image: np.ndarray, extent: tuple[float, float, float, float], zoom: float) -> None:
    ax.imshow(image, extent=extent, aspect="auto", interpolation="nearest" if zoom >= 1 else "antialiased")


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure whose data coordinates are its own pixels, y downwards."""
    fig = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    ax = fig.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    ax.tick_params(length=0)
    ax.tick_params(axis="x", labeltop=True, labelbottom=False)
    return fig, ax


def _fit(labels: Sequence[str], room: float) -> list[tuple[str, int]]:
    """Labels that stand side by side, so many pixels each, and their angles.

    Those that are too wide are broken into lines: between words, or behind slashes where a word is too wide. If that
    does not help they are turned by 90, in one piece; where these are more than half of all, all are.
    """
    broken = ["\n".join(_lines(label, room)) for label in labels]
    is_turned = [_text_width(text) > room for text in broken]
    if 2 * sum(is_turned) > len(labels):
        is_turned = [True] * len(labels)
    return [(label, 90) if turned else (text, 0) for label, text, turned in zip(labels, broken, is_turned, strict=True)]


def _lines(label: str, room: float) -> list[str]:
    """The lines of a label, at most so many pixels wide unless a word is wider."""
    width = max(1, int(room / _text_width("0")))
    lines: list[str] = []
    for line in label.split("\n"):
        words = line if max(map(len, line.split()), default=0) <= width else line.replace("/", "/ ")
        broken = textwrap.wrap(words, width, break_long_words=False) if len(line) > width else [line]
        lines += [part.replace("/ ", "/") for part in broken]
    return lines


def _height(fitted: Sequence[tuple[str, int]]) -> float:
    """How high the highest of the labels of `_fit` is."""
    return max(_text_width(text) if angle else LINE * (text.count("\n") + 1) for text, angle in fitted)


def _text_width(text: str) -> float:
    """About how many pixels wide a label is."""
    return 0.6 * max(map(len, text.split("\n"))) * LABEL["fontsize"] * DPI / 72


def _with_room(middle: Float[np.ndarray, " leaf"], share: Float[np.ndarray, " leaf"]) -> list[int]:
    """The leaves whose names can be written at `middle`, from 0 to 1, without touching the name of a larger one."""
    named: list[int] = []
    for i in np.argsort(-share, kind="stable"):
        if share[i] > 0.005 and all(abs(middle[i] - middle[j]) > 0.03 for j in named):  # the height of the letters
            named.append(int(i))
    return sorted(named)


def _make_room(fig: Figure, ax: Axes) -> Figure:
    """Grow the figure by what the labels around `ax` need; `ax` keeps its size, on whole pixels, to stay crisp."""
    width, height = fig.get_size_inches() * DPI
    box = fig.get_tightbbox().padded(0.08)
    left, bottom = math.ceil(-box.x0 * DPI), math.ceil(-box.y0 * DPI)
    full_width, full_height = left + math.ceil(box.x1 * DPI), bottom + math.ceil(box.y1 * DPI)
    fig.set_size_inches(full_width / DPI, full_height / DPI)
    ax.set_position((left / full_width, bottom / full_height, width / full_width, height / full_height))
    return fig


def _against_epochs(ax: Axes, *, last: bool = True) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=LABEL["fontsize"], color=GREY, labelcolor=GREY)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if last:
        ax.set_xlabel("epoch", **LABEL)


def _names(plan: Plan) -> dict[str, str]:
    """What to call every node in a picture, by its path: its name, or its path without the root that all paths share.

    A name that several nodes carry is followed by the path.
    """
    paths = {node.path: node.path.removeprefix("root/") for node in plan.nodes}
    names = {node.path: node.spec.name or paths[node.path] for node in plan.nodes}
    count = Counter(names.values())
    return {
        path: name if count[name] == 1 or name == paths[path] else f"{name} ({paths[path]})"
        for path, name in names.items()
    }


def _leaf_names(plan: Plan) -> list[str]:
    names = _names(plan)
    return [names[leaf.path] for leaf in plan.leaves]


def _branches(plan: Plan | None) -> list[int]:
    """The leaves that a new child of the root starts with, the first aside; none in a flat tree."""
    return [node.leaves.start for node in plan.level(1)[1:]] if plan is not None and plan.depth > 1 else []

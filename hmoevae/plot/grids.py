"""Samples as pictures, and grids of pictures as one image with labels.

Axes: `row` and `column` of a grid of pictures, `height`, `width` and `rgb` of one picture.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from torch import Tensor

from hmoevae.errors import DataError, ShapeError, mismatch
from hmoevae.plan import Plan
from hmoevae.plot.canvas import (
    BLUE,
    FAINT,
    GAP,
    LABEL,
    LARGE,
    PALE,
    SIDE,
    Picture,
    canvas,
    fit,
    height_of,
    imshow,
    label_columns,
    write_below,
)

Pictures = Float[np.ndarray, "row column height width rgb"]
LEAST = 24.0
"""Approximate smallest size of a picture's shorter side, in pixels of the figure."""


def pictures_of(values: Float[Tensor, "row column *input_shape"], name: str, *, missing: bool = False) -> Pictures:
    """Turn samples into pictures in [0, 1]: images, scaled to [0, 1] if they exceed it, and vectors as bars.

    Small images are enlarged to the size of a label, so that labels do not overlap. With `missing`, cells that are NaN
    are pale blue.
    """
    if values.ndim < 3 or values.numel() == 0:
        raise ShapeError(mismatch(name, "(row, column, *input_shape), none of them 0", tuple(values.shape)))
    if not (torch.isfinite(values) | (values.isnan() & missing)).all():
        raise DataError(mismatch(name, "finite values", "NaN or infinity"))
    shape = values.shape[2:]
    if len(shape) == 2:
        values, shape = values.unsqueeze(2), (1, *shape)
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape[1:]) == 1:
        return _bars(values.flatten(2))
    gaps = values.isnan().any(2, keepdim=True)
    known = values[~values.isnan()]
    low, high = (v.item() for v in known.aminmax()) if len(known) else (0.0, 1.0)
    if low < 0 or high > 1:
        values = (values - low) / max(high - low, 1e-12)
    scale = SIDE / max(shape[1:])
    for axis in (3, 4):
        times = math.ceil(LEAST / (scale * values.shape[axis]))
        values, gaps = values.repeat_interleave(times, axis), gaps.repeat_interleave(times, axis)
    values = torch.where(gaps, torch.tensor(to_rgb(PALE)).reshape(3, 1, 1), values)
    return rearrange(values.numpy(), "row column rgb height width -> row column height width rgb")


def _bars(values: Float[Tensor, "row column entry"]) -> Pictures:
    """Bar charts with a common scale, as pictures: matplotlib's axes would take seconds for them."""
    inside = int(SIDE) - 6
    if values.shape[2] > inside:
        values = F.adaptive_avg_pool1d(values, inside)
    low, high = min(0.0, values.nan_to_num().min().item()), max(0.0, values.nan_to_num().max().item())
    levels = torch.linspace(high, low, inside).unsqueeze(1)
    entry = torch.arange(inside) * values.shape[2] // inside
    height = values[:, :, None, :]
    ink = (((levels > 0) & (levels <= height)) | ((levels < 0) & (levels >= height)))[..., entry]
    if values.shape[2] <= inside // 4:  # room for a pixel between two bars
        ink[..., :-1] &= entry[1:] == entry[:-1]
    is_zero = (torch.arange(inside) == levels.abs().argmin()).unsqueeze(1)
    kind = torch.where(ink, 2, is_zero.long()).masked_fill(height[..., entry].isnan(), 3)
    kind = F.pad(kind, (3, 3, 3, 3))
    colours = np.array([to_rgb("white"), to_rgb(FAINT), to_rgb(BLUE), to_rgb(PALE)])
    return colours[kind.numpy()]


def _tile(
    pictures: Pictures, row_gaps: Int[np.ndarray, " row"], column_gaps: Int[np.ndarray, " column"]
) -> tuple[Float[np.ndarray, "tall wide rgb"], Float[np.ndarray, " row"], Float[np.ndarray, " column"]]:
    """One image of all pictures with white gaps before rows and columns, and the middles of rows and columns."""
    height, width = pictures.shape[2:4]
    row, column = np.arange(len(row_gaps)), np.arange(len(column_gaps))
    tiled = rearrange(pictures, "row column height width rgb -> (row height) (column width) rgb")
    tiled = np.insert(tiled, np.repeat(row * height, row_gaps), 1.0, axis=0)
    tiled = np.insert(tiled, np.repeat(column * width, column_gaps), 1.0, axis=1)
    return tiled, (row + 0.5) * height + row_gaps.cumsum(), (column + 0.5) * width + column_gaps.cumsum()


def show(
    pictures: Pictures,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    rows_apart: Sequence[int] = (),
    row_gap: float = 2 * GAP,
    columns_apart: Sequence[int] = (),
) -> tuple[Picture, Axes]:
    """Plot a grid of pictures with labels for its rows and columns; the caller calls `make_room`.

    White gaps separate the pictures; they are larger above `rows_apart` and left of `columns_apart`.
    """
    zoom = zoom_of(pictures)
    between = max(1, round(max(pictures.shape[2:4]) / 14))
    row_gaps, column_gaps = (np.array([0, *[between] * (n - 1)]) for n in pictures.shape[:2])
    for gaps, apart, more in ((row_gaps, rows_apart, row_gap), (column_gaps, columns_apart, 2 * GAP)):
        gaps[list(apart)] += max(1, round(more / zoom))
    tiled, y, x = _tile(pictures, row_gaps, column_gaps)
    height, width = zoom * tiled.shape[0], zoom * tiled.shape[1]
    fig, ax = canvas(width, height)
    imshow(ax, tiled, (0.0, width, height, 0.0), zoom)
    ax.set_yticks(zoom * y, rows or [""] * len(y), **LABEL)
    label_columns(ax, zoom * x, columns or [""] * len(x), zoom * (pictures.shape[3] + between))
    return fig, ax


def captioned(
    pictures: Float[np.ndarray, "line picture height width rgb"],
    captions: Sequence[str],
    labels: Sequence[str],
    *,
    n_columns: int,
) -> tuple[Picture, Axes]:
    """Plot pictures side by side, at most `n_columns` in a row, with a caption below each column of lines."""
    lines, n = pictures.shape[:2]
    n_columns = min(n, n_columns)
    blanks = -n % n_columns
    pictures = np.pad(pictures, [(0, 0), (0, blanks), (0, 0), (0, 0), (0, 0)], constant_values=1.0)
    pictures = rearrange(pictures, "line (row column) ... -> (row line) column ...", column=n_columns)
    zoom = zoom_of(pictures)
    fitted = fit(captions, zoom * pictures.shape[3])
    apart, gap = range(lines, len(pictures), lines), 2 * GAP + height_of(fitted)
    fig, ax = show(pictures, [*labels] * (len(pictures) // lines), [], rows_apart=apart, row_gap=gap)
    x, y = ax.get_xticks(), ax.get_yticks()
    for i, caption in enumerate(fitted):
        row, column = divmod(i, n_columns)
        write_below(ax, x[column], y[lines * (row + 1) - 1] + zoom * pictures.shape[2] / 2, caption)
    return fig, ax


def zoom_of(pictures: Float[np.ndarray, "... height width rgb"]) -> float:
    """Pixels of the figure per pixel of a picture: a whole number where possible, so that pictures are crisp."""
    longest = max(pictures.shape[-3:-1])
    side = LARGE if max(pictures.shape[:-3]) <= 12 else SIDE
    return float(round(side / longest)) or side / longest


def evenly(n: int, of: int) -> Int[np.ndarray, " shown"]:
    """Evenly spaced indices of `n`, or of all, of `of` things: the middles of equal parts."""
    n = min(n, of)
    return ((2 * np.arange(n) + 1) * of - 1) // (2 * n)


def spread(group: Int[np.ndarray, " batch"], n: int) -> Int[np.ndarray, " shown"]:
    """Indices of `n` samples: equal numbers of every group where possible, evenly spaced in it; or of all samples."""
    if len(group) <= n:
        return np.arange(len(group))
    members = [np.flatnonzero(group == i) for i in np.unique(group)]
    quota = np.zeros(len(members), dtype=int)
    while (missing := n - int(quota.sum())) > 0:
        room = np.flatnonzero(quota < [len(own) for own in members])
        quota[room[evenly(missing, len(room))]] += 1
    return np.concatenate([own[evenly(k, len(own))] for own, k in zip(members, quota.tolist(), strict=True)])


def branches_of(plan: Plan | None) -> list[int]:
    """The first leaf of every child of the root except the first child; none in a flat tree."""
    return [node.leaves.start for node in plan.level(1)[1:]] if plan is not None and plan.depth > 1 else []

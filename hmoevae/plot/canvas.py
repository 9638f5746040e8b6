"""The figure of a plot: its sizes and colours, and labels that fit.

Lengths are in pixels of the figure.
"""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

DPI = 150
SIDE, LARGE = 56.0, 80.0
"""The longer side of a picture, among many or few pictures; rounded to a whole multiple of the picture's own pixels."""
GAP = 4.0
"""Approximate gap between pictures; it is larger before a child of the root or a leaf."""
LINE = 14.0
"""The height of a line of a label."""
BLUE, ORANGE, PALE, GREY, FAINT = "#0072b2", "#d55e00", "#9ecae1", "#555555", "#aaaaaa"
"""Colours that colour-blind readers can tell apart (Okabe & Ito 2008)."""
LABEL: Mapping[str, Any] = MappingProxyType({"fontsize": 7, "color": GREY, "parse_math": False})
TITLE: Mapping[str, Any] = MappingProxyType({"fontsize": 8.5, "loc": "left", "parse_math": False})


class Picture(Figure):
    """A matplotlib figure that notebooks show without pyplot."""

    def _repr_png_(self) -> bytes:
        """PNG for notebooks; `%matplotlib inline` replaces this method by its own."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def panels(width: float, height: float) -> Picture:
    """An empty figure, in inches, for plots with axes."""
    return Picture(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")


def canvas(width: float, height: float) -> tuple[Picture, Axes]:
    """An empty figure whose data coordinates are its own pixels, y downwards."""
    fig = Picture(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    ax = fig.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    ax.tick_params(length=0)
    ax.tick_params(axis="x", labeltop=True, labelbottom=False)
    return fig, ax


def make_room(fig: Picture, ax: Axes) -> Picture:
    """Enlarge the figure to fit the labels around `ax`; `ax` keeps its size and stays on whole pixels, to be crisp."""
    width, height = fig.get_size_inches() * DPI
    box = fig.get_tightbbox().padded(0.08)
    left, bottom = math.ceil(-box.x0 * DPI), math.ceil(-box.y0 * DPI)
    full_width, full_height = left + math.ceil(box.x1 * DPI), bottom + math.ceil(box.y1 * DPI)
    fig.set_size_inches(full_width / DPI, full_height / DPI)
    ax.set_position((left / full_width, bottom / full_height, width / full_width, height / full_height))
    return fig


def imshow(ax: Axes, image: np.ndarray, extent: tuple[float, float, float, float], zoom: float) -> None:
    """Plot an image with `zoom` pixels of the figure for each of its own."""
    ax.imshow(image, extent=extent, aspect="auto", interpolation="nearest" if zoom >= 1 else "antialiased")


def no_sample(ax: Axes, left: float, top: float, width: float, height: float) -> None:
    """Plot the empty frame of a leaf that is no sample's most probable leaf."""
    ax.add_patch(Rectangle((left, top), width - 1, height, fill=False, ec=FAINT, lw=0.5, clip_on=False))
    ((note, angle),) = fit(["no sample"], width - 2 * GAP)
    if angle and text_width(note) > height - 2 * GAP:  # rotated, it would not fit into the frame
        note, angle = "none", 0
    ax.text(left + width / 2, top + height / 2, note, ha="center", va="center", rotation=angle, **LABEL)


# --- labels ---------------------------------------------------------------------------------------------------------


def fit(labels: Sequence[str], room: float) -> list[tuple[str, int]]:
    """Fit labels that are side by side into `room` pixels each; returns their texts and angles.

    Labels that are too wide are broken into lines between words, or after slashes where a word is too wide. A label
    that is still too wide is rotated by 90 degrees, on one line. If more than half of them are, all are rotated.
    """
    broken = ["\n".join(lines(label, room)) for label in labels]
    is_turned = [text_width(text) > room for text in broken]
    if 2 * sum(is_turned) > len(labels):
        is_turned = [True] * len(labels)
    return [(label, 90) if turned else (text, 0) for label, text, turned in zip(labels, broken, is_turned, strict=True)]


def lines(label: str, room: float) -> list[str]:
    """Break a label into lines of at most `room` pixels, unless a word is wider."""
    width = max(1, int(room / text_width("0")))
    found: list[str] = []
    for line in label.split("\n"):
        words = line if max(map(len, line.split()), default=0) <= width else line.replace("/", "/ ")
        broken = textwrap.wrap(words, width, break_long_words=False) if len(line) > width else [line]
        found += [part.replace("/ ", "/") for part in broken]
    return found


def height_of(fitted: Sequence[tuple[str, int]]) -> float:
    """The height of the highest label of `fit`."""
    return max(text_width(text) if angle else LINE * (text.count("\n") + 1) for text, angle in fitted)


def text_width(text: str) -> float:
    """The approximate width of a label in pixels."""
    return 0.6 * max(map(len, text.split("\n"))) * LABEL["fontsize"] * DPI / 72


def write_below(ax: Axes, x: float, bottom: float, fitted: tuple[str, int]) -> None:
    """Write a label of `fit` below a picture that ends at `bottom`."""
    ax.text(x, bottom + 4, fitted[0], ha="center", va="top", rotation=fitted[1], linespacing=1.0, **LABEL)


def label_columns(ax: Axes, x: Float[np.ndarray, " column"], names: Sequence[str], room: float) -> None:
    """Write names above columns, with `room` pixels each."""
    fitted = fit(names, room)
    ax.set_xticks(x, [text for text, _ in fitted], **LABEL)
    for tick, (_, angle) in zip(ax.get_xticklabels(), fitted, strict=True):
        tick.set_rotation(angle)

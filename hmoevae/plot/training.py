"""Plots of a training over its epochs: the loss and its terms, the usage of the leaves, and their samples."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hmoevae.door import ArrayLike
from hmoevae.errors import ArgumentError, ShapeError, mismatch
from hmoevae.history import NODES, History
from hmoevae.plan import Plan
from hmoevae.plot.arguments import check_plan, epochs_of, floats, labels_of
from hmoevae.plot.canvas import BLUE, GREY, LABEL, ORANGE, TITLE, make_room, panels
from hmoevae.plot.grids import branches_of, pictures_of, show

TITLES = {"loss": "loss (the sum of the terms below)", "elbo": "elbo (as a loss: the negative of the bound)"}


def losses(history: History) -> Figure:
    """Plot the loss and each of its terms over the epochs, in a panel each because their scales differ.

    The curve of the loss is interrupted where its terms change, as when the experts join the gates. A term that is 0 in
    all epochs, such as the balance of a single VAE, has no panel.

    Args:
        history: The history that `fit` returned. A column `val_<term>` is in the panel of its term.

    Raises:
        ArgumentError: `history` has no epoch.
        ArgumentTypeError: `history` is no `History`.

    >>> history = History([{"epoch": 1, "loss": 3.0, "elbo": 3.0}, {"epoch": 2, "loss": 2.0, "elbo": 2.0}])
    >>> [ax.get_title(loc="left") for ax in losses(history).axes]
    ['loss (the sum of the terms below)', 'elbo (as a loss: the negative of the bound)']
    """
    epochs = epochs_of(history)
    others = ("epoch", "loss", "seconds", "val_", "revived", *NODES)
    terms = (column for column in history.columns if not column.startswith(others))
    names = ["loss", *(term for term in terms if np.nan_to_num(history[term]).any())]
    in_force = np.isfinite(np.array([history[name] for name in names[1:]]).reshape(len(names) - 1, len(epochs)))
    breaks = 1 + np.flatnonzero((in_force[:, 1:] != in_force[:, :-1]).any(0))
    fig = panels(5.5, 0.5 + 1.3 * len(names))
    axes = fig.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for ax, name in zip(axes, names, strict=True):
        for label, column, colour, line in (("training", name, BLUE, "-"), ("validation", f"val_{name}", ORANGE, "--")):
            if column in history.columns:
                values = np.asarray(history[column])
                known = np.isfinite(values)  # not every epoch may have a validation value; the others make one curve
                x, y = epochs[known], values[known]
                if name == "loss":
                    x, y = np.insert(x, breaks, np.nan), np.insert(y, breaks, np.nan)
                ax.plot(x, y, line, color=colour, label=label, marker=".", markersize=4, lw=1.3)
        ax.set_title(TITLES.get(name, name), **TITLE)
        ax.grid(axis="y", color="#e5e5e5", linewidth=0.6)
        _against_epochs(ax, last=ax is axes[-1])
        if len(ax.lines) > 1:
            ax.legend(frameon=False, fontsize=LABEL["fontsize"])
    fig.supylabel("nats", **LABEL)
    return fig


def usage(history: History, *, plan: Plan | None = None) -> Figure:
    """Plot the usage of every leaf over the epochs, as stacked areas in the order of the leaves.

    The usage of a leaf is the mean of its probability, which is above 0 even for a leaf that is no sample's most
    probable leaf.

    Leaves below the same child of the root share a colour. A leaf with next to no usage in the last epoch has no name,
    nor has one whose name would overlap that of a larger leaf.

    Args:
        history: The history that `fit` returned.
        plan: The model's plan; with it, leaves have their names, otherwise their paths.

    Raises:
        ArgumentError: `history` has no epoch, or no column `usage/...`, or `plan` has other leaves.
        ArgumentTypeError: `history` is no `History`, or `plan` no `Plan`.

    >>> history = History([{"epoch": 1, "usage/root/0": 0.5, "usage/root/1": 0.5}])
    >>> [text.get_text().strip() for text in usage(history).axes[0].texts]
    ['0', '1']
    """
    epochs = epochs_of(history)
    names = [c.removeprefix("usage/") for c in history.columns if c.startswith("usage/")]
    if not names:
        raise ArgumentError(mismatch("history", "columns 'usage/<path of a leaf>'", ", ".join(history.columns)))
    labels = [name.removeprefix("root/") for name in names]
    check_plan(plan)
    if plan is not None:
        if [leaf.path for leaf in plan.leaves] != names:
            raise ArgumentError(mismatch("plan", f"one with the leaves {', '.join(names)}", "one with other leaves"))
        labels = plan.level_names(None)
    values = np.nan_to_num(np.array([history[f"usage/{name}"] for name in names]))
    top = values.cumsum(0)
    edges = np.append(epochs - 0.5, epochs[-1] + 0.5)
    branches = [name.split("/")[1] if "/" in name else name for name in names]
    order = list(dict.fromkeys(branches))
    fig = panels(6.5, 4.8)
    ax = fig.subplots()
    for i in range(len(names)):
        colour = colormaps["viridis"](0.1 + 0.78 * order.index(branches[i]) / max(1, len(order) - 1))
        colour = colour if branches[:i].count(branches[i]) % 2 == 0 else (*(0.65 + 0.35 * c for c in colour[:3]), 1)
        ax.stairs(top[i], edges, baseline=top[i] - values[i], fill=True, facecolor=colour, edgecolor="white", lw=0.6)
    middle = top[:, -1] - values[:, -1] / 2
    for i in _with_room(middle, values[:, -1]):
        ax.text(edges[-1], middle[i], f" {labels[i]}", va="center", **LABEL)
    ax.set(xlim=(edges[0], edges[-1]), ylim=(0, max(1.0, float(top.max()))))
    ax.set_title("Usage of every leaf: its mean probability", **TITLE)
    _against_epochs(ax)
    return fig


def sample_grid(
    frames: Float[ArrayLike, "epoch leaf *input_shape"],
    epochs: Sequence[int],
    titles: Iterable[object] | None = None,
    *,
    plan: Plan | None = None,
) -> Figure:
    """Plot samples of every leaf during the training: a row for each epoch, a column for each leaf.

    Args:
        frames: The samples, such as `SampleRecorder.frames`.
        epochs: The epoch of every row.
        titles: A label for every column; by default the leaves' names in `plan`, or their numbers.
        plan: The model's plan; with it, a gap separates the children of the root.

    Raises:
        ShapeError: The lengths do not fit.
        DataError: `frames` are empty or not finite.
        ArgumentTypeError: `frames` are no numbers, `epochs` or `titles` no sequence, or `plan` is no `Plan`.

    >>> figure = sample_grid(np.zeros((2, 3, 1, 8, 8)), epochs=[1, 20])
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['1', '20']
    """
    check_plan(plan)
    frames, labels = floats(frames, "frames"), labels_of(epochs, "epochs")
    pictures = pictures_of(frames, "frames")
    n_rows, n_columns = pictures.shape[:2]
    if len(labels) != n_rows:
        raise ShapeError(mismatch("epochs", f"{n_rows} numbers, one per row of frames", len(labels)))
    if plan is not None and plan.n_leaves != n_columns:
        raise ShapeError(mismatch("frames", f"(epoch, {plan.n_leaves}, ...), one column per leaf", tuple(frames.shape)))
    if titles is None:
        names = [str(i) for i in range(n_columns)] if plan is None else plan.level_names(None)
    else:
        names = labels_of(titles, "titles")
    if len(names) != n_columns:
        raise ShapeError(mismatch("titles", f"{n_columns} labels, one per column of frames", len(names)))
    fig, ax = show(pictures, labels, names, columns_apart=branches_of(plan))
    ax.set_ylabel("epoch", **LABEL)
    return make_room(fig, ax)


def _with_room(middle: Float[np.ndarray, " leaf"], share: Float[np.ndarray, " leaf"]) -> list[int]:
    """The leaves whose names fit at `middle`, from 0 to 1, without overlapping the name of a larger leaf."""
    named: list[int] = []
    for i in np.argsort(-share, kind="stable"):
        if share[i] > 0.005 and all(abs(middle[i] - middle[j]) > 0.03 for j in named):  # the height of the letters
            named.append(int(i))
    return sorted(named)


def _against_epochs(ax: Axes, *, last: bool = True) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=LABEL["fontsize"], color=GREY, labelcolor=GREY)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if last:
        ax.set_xlabel("epoch", **LABEL)

"""The plot of a growth: its decisions from top to bottom, what they were taken by, and the number of leaves."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hmoevae.growth.record import Decision, Grown
from hmoevae.plot.arguments import check
from hmoevae.plot.canvas import BLUE, GREY, LABEL, ORANGE, TITLE, panels

ROW = 0.14
"""Height of a row in inches."""
MARKERS = {"cut": "o", "split": "o", "merge": "s", "prune": "X"}


def growth(grown: Grown) -> Figure:
    """Plot the decisions of a growth, a row for each, from top to bottom.

    The panels show what a decision was taken by: the conductance of a cut, beside the largest one that is accepted, and
    the gain of a split on held-out samples, with two standard errors on either side. What was done is blue, what was
    refused orange. A set that is too small to be cut has no point. A merge is a square at its loss, with a minus sign;
    a pruned leaf, to which no sample goes, is a cross without a gain. The last panel shows the number of leaves after
    each decision.

    Args:
        grown: What `hmoevae.grow` returned.

    Raises:
        ArgumentTypeError: `grown` is no `Grown`.

    >>> import hmoevae as hm
    >>> cut = hm.Decision(0, "cut", "root", False, 90, conductance=0.2)
    >>> split = hm.Decision(1, "split", "root", True, 90, gain=2.5, error=0.3, conductance=0.2, n_leaves=2)
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 2), input_shape=(4,))
    >>> figure = hm.plot.growth(hm.Grown(model, [cut, split], []))
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['cut root · 90', 'split root · 90']
    """
    check(isinstance(grown, Grown), "grown", "a Grown, such as grow returns", grown)
    rows = [decision for decision in grown.decisions if decision.action != "stop"]
    fig = panels(7.5, 1.0 + ROW * max(3, len(rows)))
    conductance, gain, leaves = fig.subplots(1, 3, sharey=True, width_ratios=(3, 4, 2))
    _conductances(conductance, rows, grown.growth.max_conductance)
    _gains(gain, rows, grown.growth.min_gain)
    _leaves(leaves, rows)
    conductance.set_ylim(len(rows) - 0.4, -0.6)
    conductance.set_yticks(range(len(rows)), [_name(decision) for decision in rows], **LABEL)
    for ax in (conductance, gain, leaves):
        for i in range(1, len(rows)):
            if rows[i].round != rows[i - 1].round:
                ax.axhline(i - 0.5, color="#dddddd", lw=0.6, zorder=0)
        ax.tick_params(labelsize=LABEL["fontsize"], color=GREY, labelcolor=GREY)
        ax.tick_params(axis="y", length=0)
        ax.spines[["top", "right", "left"]].set_visible(False)
    return fig


def _name(decision: Decision) -> str:
    return f"{decision.action} {decision.path} · {decision.n_samples:,}"


def _conductances(ax: Axes, rows: Sequence[Decision], largest: float) -> None:
    """Of cuts, and, paler, of the cuts along which leaves were split: these may be as large as they are."""
    for i, decision in enumerate(rows):
        if decision.conductance is not None and decision.conductance < 1:  # 1: no cut is possible
            alpha = 1.0 if decision.action == "cut" else 0.3
            ax.plot(decision.conductance, i, "o", color=_colour(decision), ms=4, alpha=alpha, mew=0)
    ax.axvline(largest, color=GREY, lw=0.8, ls="--")
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_title("conductance of the cut", **TITLE)
    ax.set_xlabel("a cut into kinds: left of the line", **LABEL)


def _gains(ax: Axes, rows: Sequence[Decision], smallest: float) -> None:
    found = [decision.gain for decision in rows if decision.gain is not None]
    for i, decision in enumerate(rows):
        if decision.action == "cut":
            continue
        colour, value = _colour(decision), decision.gain or 0.0
        if decision.error is not None and np.isfinite(decision.error):
            ax.plot([value - 2 * decision.error, value + 2 * decision.error], [i, i], color=colour, lw=1.2, alpha=0.5)
        ax.plot(value, i, MARKERS[decision.action], color=colour, ms=4, mew=0)
    ax.axvline(0, color="#dddddd", lw=0.8, zorder=0)
    ax.axvline(smallest, color=GREY, lw=0.8, ls="--")
    if found:
        low, high = min(0.0, *found), max(smallest, *found)
        room = 0.15 * (high - low) + 0.05  # longer bars leave the panel: a gain that is so uncertain has no scale
        ax.set_xlim(low - room, high + room)
    ax.set_title("gain, nats a sample, ± 2 standard errors", **TITLE)
    ax.set_xlabel("a split: right of the line, and its bar right of 0", **LABEL)


def _leaves(ax: Axes, rows: Sequence[Decision]) -> None:
    numbers = [decision.n_leaves for decision in rows]
    ax.plot(numbers, range(len(rows)), drawstyle="steps-pre", color=BLUE, lw=1.3)
    ax.set_xlim(0, max(numbers, default=1) * 1.15 + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set_title(f"leaves: {numbers[-1]}" if rows else "leaves: 1", **TITLE)
    ax.set_xlabel("after the decision", **LABEL)


def _colour(decision: Decision) -> str:
    return BLUE if decision.accepted else ORANGE

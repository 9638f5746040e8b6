"""The picture of a throughput run: how the cost of a leaf scales, and how far each row is from the machine's limit."""

import itertools
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

Rows = list[dict[str, Any]]
STYLES = {"fp32": "-", "bf16": "--"}
FILLS = {"fp32": "full", "bf16": "none"}
MARKERS = "osD^v"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Those of `hmoevae.plot` and their kin, which colour-blind readers can tell apart (Okabe & Ito 2008)."""
GREY = "#555555"


def save_figure(report: dict[str, Any], file: Path) -> None:
    """Draw the report of `throughput.py`, two panels an op, and write it to `file` in the format of its ending."""
    ops = list(dict.fromkeys(row["op"] for row in report["rows"]))
    colours = dict(zip(dict.fromkeys(row["what"] for row in report["rows"]), itertools.cycle(COLOURS), strict=False))
    figure = Figure(figsize=(12, 1 + 4 * len(ops)), facecolor="white", layout="constrained")
    for op, part in zip(ops, figure.subfigures(len(ops), squeeze=False)[:, 0], strict=True):
        scaling, roofline = part.subplots(1, 2)
        rows = [row for row in report["rows"] if row["op"] == op]
        for label, line in _lines(rows).items():
            what, precision, depth = line[0]["what"], line[0]["precision"], line[-1]["depth"]
            how = {"color": colours[what], "marker": MARKERS[depth % len(MARKERS) - 1], "fillstyle": FILLS[precision]}
            leaves = [row["leaves"] for row in line]
            cost = [row["ms"] / row["leaves"] for row in line]
            scaling.loglog(leaves, cost, label=label, linestyle=STYLES[precision], **how)
            reached = [row["gflop_per_s"] for row in line]
            roofline.loglog([row["gflop"] / row["gbytes"] for row in line], reached, linestyle="none", **how)
        _roof(roofline, rows, report["copy_gbytes_per_s"])
        labels = {
            scaling: (f"{op}: cost of a leaf", "leaves", "ms a step and leaf"),
            roofline: (f"{op}: distance from the limit", "FLOP a byte of least memory traffic", "GFLOP/s"),
        }
        scaling.set_xticks(sorted({row["leaves"] for row in rows}))
        roofline.set_xscale("log", base=2)  # it spans little more than a decade
        for axes in (scaling, roofline):
            title, across, up = labels[axes]
            axes.set_title(title, loc="left", fontsize="medium")
            axes.set_xlabel(across, color=GREY, fontsize="small")
            axes.set_ylabel(up, color=GREY, fontsize="small")
            axes.grid(visible=True, which="major", color="#e5e5e5", linewidth=0.6)
            axes.tick_params(which="both", labelsize="x-small", labelcolor=GREY, color="#aaaaaa")
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color("#aaaaaa")
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
        part.legend(loc="outside right upper", fontsize="x-small", frameon=False, labelcolor=GREY)
    machine = report["hardware"]
    about = f"{machine['gpu'] or machine['cpu']}, threads: {machine['threads']}, {report['date'][:10]}"
    figure.suptitle(about, fontsize="small", color=GREY)
    figure.savefig(file, dpi=150)


def _lines(rows: Rows) -> dict[str, Rows]:
    """The rows that differ in the number of leaves only, in its order, by a label that says what they share."""
    several_batches = len({row["batch"] for row in rows}) > 1
    lines: dict[str, Rows] = {}
    for row in sorted(rows, key=lambda row: row["leaves"]):
        depth = f", depth {row['depth']}" if row["depth"] > 1 else ""
        batch = f", batch {row['batch']}" if several_batches else ""
        lines.setdefault(f"{row['what']}{depth}{batch}, {row['precision']}", []).append(row)
    return lines


def _roof(axes: Axes, rows: Rows, bandwidth: float) -> None:
    """The most that memory (the slope) and arithmetic (the level) allow, for each precision."""
    intensities = [row["gflop"] / row["gbytes"] for row in rows]
    for precision in dict.fromkeys(row["precision"] for row in rows):
        ceiling = max(row["ceiling_gflop_per_s"] for row in rows if row["precision"] == precision)
        ridge = ceiling / bandwidth
        ends = [min(*intensities, ridge) / 2, ridge, max(*intensities, ridge) * 2]
        roof = [min(ceiling, bandwidth * at) for at in ends]
        axes.loglog(ends, roof, color=GREY, linestyle=STYLES[precision], label=f"copy, square GEMM, {precision}")

"""The picture of a clustering run: every seed's accuracy by method, next to what others report."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def save_figure(report: dict[str, Any], file: Path) -> None:
    """Draw the report of `clustering.py` and write it to `file` in the format of its ending."""
    rows = report["rows"]
    others = [other for other in report["published"] if other["accuracy"] is not None]
    names = [" ".join(filter(None, (row["what"], row["recipe"], row["tree"]))) for row in rows]
    names += [other["what"] for other in others]
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        accuracies = [100 * run["accuracy"] for run in row["runs"]]
        axes.plot(accuracies, [place] * len(accuracies), "o", color="C0", alpha=0.4, label="a seed", markeredgewidth=0)
        axes.plot(100 * row["mean"]["accuracy"], place, "|", color="C0", markersize=14, label="mean of the seeds")
    for place, other in enumerate(others, start=len(rows)):
        accuracy, sd = 100 * other["accuracy"], 100 * (other["accuracy_sd"] or 0)
        axes.plot(accuracy, place, "D", color="C1", fillstyle="none", label="published, in its own protocol")
        axes.plot([accuracy - sd, accuracy + sd], [place, place], color="C1", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("accuracy under the best one-to-one match, percent")
    axes.grid(visible=True, axis="x", alpha=0.3)
    lines = {label: line for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    axes.legend(lines.values(), lines.keys(), fontsize="x-small")
    images, machine = report["images"], report["hardware"]
    axes.set_title(
        f"{report['argv']['dataset']}, {images['test']:,} test images, {report['argv']['seeds']} seeds; "
        f"{machine['gpu'] or machine['cpu']}, {report['date'][:10]}",
        fontsize="small",
    )
    figure.savefig(file, dpi=150)

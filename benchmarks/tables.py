"""The documentation's tables of results: from the raw results in `results/` and from `published.py`, never typed.

    python benchmarks/tables.py               write the tables of README.md and docs/ anew
    python benchmarks/tables.py --check       say whether they are up to date

A page asks for a table with the comment `<!-- table: NAME -->`, where NAME is one of `TABLES`; what follows up to
`<!-- end -->` is replaced. A new file in `results/` turns up by itself: a `.jsonl` has a run of an example in every
line (its metrics.json), a `.json` is the report of a benchmark, told apart by the fields of its rows.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from published import PUBLISHED

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
MARK = re.compile(r"<!-- table: ([\w-]+) -->\n(?:(?:(?!<!-- table).)*?<!-- end -->)?", re.DOTALL)
LAYOUTS = {1: "flat", 2: "two levels"}

Row = dict[str, Any]


def pages() -> list[Path]:
    """README.md and the pages of docs/ that ask for a table."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if MARK.search(page.read_text(encoding="utf-8"))]


def fill(page: str) -> str:
    """The page with every table that it asks for, as new.

    Raises:
        KeyError: There is no table of a name that the page asks for.
    """

    def filled(mark: re.Match[str]) -> str:
        new_line = "" if mark[0].endswith("-->") else "\n"  # the first time, it is the marker's own that was matched
        return f"<!-- table: {mark[1]} -->\n\n{TABLES[mark[1]]()}\n\n<!-- end -->{new_line}"

    return MARK.sub(filled, page)


# --- the raw results ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of one example that differ in their seeds only.

    Attributes:
        file: Where they are.
        runs: The examples' metrics, one mapping a seed.
    """

    file: str
    runs: tuple[Row, ...]

    def __getitem__(self, field: str) -> Any:
        """What all runs have in common."""
        return self.runs[0].get(field)

    @property
    def recipe(self) -> str:
        """Of the training; the first results were made when there was only one."""
        return self["recipe"] or "article"

    @property
    def depth(self) -> int:
        """Levels of gates, as far as they were measured."""
        levels = {int(found[1]) for field in self.runs[0] if (found := re.search(r"_level(\d+)$", field))}
        return 1 + max(levels, default=0)

    @property
    def title(self) -> str:
        """Recipe, tree and precision in words."""
        layout = LAYOUTS.get(self.depth, f"{self.depth} levels")
        return f"{self.recipe}, {layout}, {self['leaves']} leaves, {self['precision']}"

    def values(self, field: str) -> list[float]:
        """One number of every run that has it."""
        return [run[field] for run in self.runs if run.get(field) is not None]


def runs_of_examples() -> list[Runs]:
    """Every group of runs, the most accurate recipe of a data set first."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for file in sorted(RESULTS.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            run = json.loads(line)
            if "elbo_loss" in run:  # the first results have the bound itself, as the tables do
                run["elbo"] = -run["elbo_loss"]
            shared = ("dataset", "recipe", "epochs", "leaves", "precision")
            found.setdefault((file.name, *(run.get(field) for field in shared)), []).append(run)
    groups = [Runs(str(key[0]), tuple(runs)) for key, runs in found.items()]
    return sorted(groups, key=lambda g: (g["dataset"], g.depth, -statistics.fmean(g.values("accuracy"))))


SORTS = (
    ("op", "speedup"),
    ("what", "levels", "runs"),
    ("bf16_off_percent",),
    ("data", "x_cpu"),
    ("how", "runs"),
    ("fault", "survived"),
    ("cut", "bytes", "held"),
    ("what", "elbo", "used"),
    ("log_likelihood",),
    ("what", "n_seeds", "runs"),
    ("kind", "found", "purity"),
    ("level", "what", "runs"),
    ("table", "form", "method", "runs"),
    ("cells", "method", "runs"),
    ("table", "missing", "method", "runs"),
    ("what", "ordered", "train"),
    ("task", "seed", "seconds"),
    ("planted", "held_out", "training"),
    ("setting", "seed", "scores"),
    ("digit", "among", "errors"),
)
"""The fields by which the reports that have a table of their own are told."""


def reports(*fields: str) -> dict[str, Row]:
    """The reports whose rows have all of `fields`, by the name of their files."""
    found = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("*.json"))}
    return {name: report for name, report in found.items() if report["rows"] and set(fields) <= set(report["rows"][0])}


# --- cells ----------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, columns of numbers to the right."""
    rows = list(rows)
    numeric = [all(re.match(r"[-+\d`]|$", row[i]) for row in rows) for i in range(len(head))]
    lines = [head, ["---:" if right and i else "---" for i, right in enumerate(numeric)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Sequence[float], digits: int, factor: float = 1.0) -> str:
    """Mean and, of several values, standard deviation."""
    if not values:
        return ""
    mean = f"{factor * statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {factor * statistics.stdev(values):.{digits}f}"


def percent(values: Sequence[float]) -> str:
    """Fractions in percent."""
    return spread(values, 1 if len(values) < 2 or statistics.stdev(values) >= 0.005 else 2, 100)


def known(value: float | None, sd: float | None = None) -> str:
    """A published fraction in percent, with no more digits than it came with."""
    if value is None:
        return ""
    return f"{100 * value:.4g}" + ("" if sd is None else f" ± {100 * sd:.3g}")


def milliseconds(value: float) -> str:
    """Three digits."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def where(report: Row) -> str:
    """The machine and the day, in words; of a report that has them in every row, those of the last."""
    made = report if "hardware" in report else report["rows"][-1]
    return f"{machine(made['hardware'])}, {made['date'][:10]}"


def with_seeds(report: Row) -> str:
    """How many seeds, and where."""
    return f"{len(report['rows'][0]['runs'])} seeds, {where(report)}"


def with_epochs(report: Row) -> str:
    """How long was trained in place of the recipe's epochs, on how much, and where."""
    length = f"{report['epochs']} epochs in place of {report['recipe_epochs']}"
    return f"{length}, {report['images']['train']:,} images, {where(report)}"


def machine(hardware: Row) -> str:
    """In words: many processors that differ in their instructions have one name."""
    cpu = f"{hardware['cpu']} ({hardware['cpu_capability']}), {hardware['threads']} of {hardware['cores']} cores"
    return hardware["gpu"] or cpu


def each(
    fields: Sequence[str],
    head: Sequence[str],
    cells: Callable[[Row], Sequence[str]],
    *,
    about: Callable[[Row], str] = where,
    lines: Callable[[Row], list[Row]] = lambda report: report["rows"],
    chosen: Callable[[Row], bool] = lambda _: True,
) -> str:
    """A table for every report, if it is `chosen`, whose rows have all of `fields`, under its name and what is said.

    `about` says it of a report; `cells` makes a line of each of a report's `lines`.
    """
    parts = []
    for name, report in reports(*fields).items():
        if not chosen(report):
            continue
        made = table(head, [cells(line) for line in lines(report)])
        parts.append(f"`{name}`: {about(report)}\n\n{made}")
    return "\n\n".join(parts)


# --- clustering, likelihood, reliability ----------------------------------------------------------------------------

SCORES = ("accuracy", "nmi", "ari", "leaf_purity", "dendrogram_purity")


def clustering(dataset: str = "mnist") -> str:
    """Trees, baselines run here, and published figures, by the test images' labels."""
    head = ("method", "seeds", "epochs", "accuracy", "NMI", "ARI", "purity", "dendrogram purity")
    rows = [
        (g.title, str(len(g.runs)), str(g["epochs"]), *(percent(g.values(s)) for s in SCORES))
        for g in runs_of_examples()
        if g["dataset"] == dataset
    ]
    for report in reports("what", "levels", "runs").values():
        if report["argv"]["dataset"] != dataset:
            continue
        for row in report["rows"]:
            name = ", ".join(filter(None, (row["recipe"] or row["what"], row["tree"])))
            scores = [percent([run[s] for run in row["runs"] if s in run]) for s in SCORES]
            epochs = {run["epochs"] for run in row["runs"] if "epochs" in run}
            rows.append((name, str(len(row["runs"])), ", ".join(map(str, epochs)), *scores))
    return table(head, rows)


def published(dataset: str = "mnist") -> str:
    """What others report."""
    head = ("method", "accuracy", "NMI", "dendrogram purity", "read in", "to be known")
    rows = [
        (p.what, known(p.accuracy, p.accuracy_sd), known(p.nmi), known(p.dendrogram_purity), p.source, p.note)
        for p in PUBLISHED
        if p.dataset == dataset
    ]
    return table(head, rows)


def levels() -> str:
    """The first level of the deeper trees."""
    head = ("recipe, tree", "seeds", "accuracy, level 1", "NMI, level 1", "purity, leaves", "dendrogram purity")
    fields = ("accuracy_level1", "nmi_level1", "leaf_purity", "dendrogram_purity")
    deep = [group for group in runs_of_examples() if group.depth > 1]
    rows = [(f"{g['dataset']}, {g.title}", str(len(g.runs)), *(percent(g.values(f)) for f in fields)) for g in deep]
    return table(head, rows)


def ablation(recipe: str) -> str:
    """A recipe without each of its ingredients."""
    return each(
        ("what", "n_seeds", "runs"),
        ("what", "seeds", "accuracy", "NMI", "ELBO, nats"),
        lambda row: (
            row["what"],
            str(row["n_seeds"]),
            *(percent([run[score] for run in row["runs"]]) for score in ("accuracy", "nmi")),
            spread([run["elbo"] for run in row["runs"]], 1),
        ),
        about=with_epochs,
        chosen=lambda report: report.get("recipe", "styles") == recipe,  # the first reports were of no other
    )


def barred() -> str:
    """Strokes through sevens, found by the second level."""
    head = (
        "seeds",
        "epochs",
        "strokes found, of those in the kind",
        "purity",
        "in the sevens' kind",
        "real sevens in that leaf",
    )

    def cells(report: Row) -> Sequence[str]:
        rows = report["rows"]
        scores = (percent([row[score] for row in rows]) for score in ("found", "purity", "kind", "real"))
        return (str(len(rows)), str(rows[0]["epochs"]), *scores)

    return each(("kind", "found", "purity"), head, cells, lines=lambda report: [report])


def likelihood() -> str:
    """Held-out losses of the examples' runs, in nats an image."""
    head = ("recipe, tree", "epochs", "seeds", "expected loss", "ELBO")
    rows = [
        (
            f"{g['dataset']}, {g.title}",
            str(g["epochs"]),
            str(len(g.runs)),
            spread(g.values("expected_loss"), 1),
            spread(g.values("elbo"), 1),
        )
        for g in runs_of_examples()
    ]
    return table(head, rows)


def binarised() -> str:
    """The log-likelihood of held-out binarised images."""
    head = ("leaves", "hidden units", "latents", "epochs", "seeds", "importance samples", "log p(x), at least", "ELBO")

    def cells(report: Row) -> Sequence[str]:
        argv, rows = report["argv"], report["rows"]
        tree = (str(argv["leaves"]), "-".join(map(str, argv["hidden"])), str(argv["latent_dim"]), str(argv["epochs"]))
        scores = [spread([row[score] for row in rows], 2) for score in ("log_likelihood", "elbo")]
        return (*tree, str(len(rows)), str(argv["importance"]), *scores)

    return each(("log_likelihood",), head, cells, lines=lambda report: [report])


def faults() -> str:
    """What was done to runs and models, and how many of them took it."""
    return each(
        ("fault", "survived"),
        ("fault", "tries", "survived", "what the user sees"),
        lambda row: (row["fault"], str(row["tries"]), str(row["survived"]), row["user_sees"]),
    )


def expert_parallel() -> str:
    """What processes send and hold, with experts whole and cut over them."""
    head = ("leaves", "of a sample", "experts", "sent by a process in a step", "held in a process", "step")
    parts = []
    for name, report in reports("cut", "bytes", "held").items():
        rows = [
            (
                f"{row['leaves']:,}",
                str(row["k"] or "all"),
                "whole" if row["cut"] == 1 else f"cut over {row['cut']}",
                f"{row['bytes'] / 1e6:,.2f} MB",
                f"{row['held'] / 1e6:,.0f} MB",
                f"{row['ms']:,.0f} ms",
            )
            for row in report["rows"]
        ]
        parts.append(f"`{name}`: {where(report)}\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def reliability() -> str:
    """How far apart the seeds are."""
    head = ("recipe, tree", "epochs", "seeds", "worst", "median", "best", "least used leaf, of an even share")
    rows = []
    for group in runs_of_examples():
        accuracy = group.values("accuracy" if group.depth == 1 else "accuracy_level1")
        least = min(min(run["usage"]) * run["leaves"] for run in group.runs)
        ends = (min(accuracy), statistics.median(accuracy), max(accuracy))
        name = f"{group['dataset']}, {group.title}"
        rows.append((name, str(group["epochs"]), str(len(accuracy)), *(known(end) for end in ends), f"{least:.2f}"))
    return table(head, rows)


def headline() -> str:
    """The flat trees on MNIST, for the README."""
    head = ("MNIST, ten leaves", "precision", "epochs", "seeds", "accuracy", "NMI", "ELBO, nats")
    flat = [g for g in runs_of_examples() if g["dataset"] == "mnist" and g.depth == 1]
    rows = [
        (
            f"`{g.recipe}`",
            g["precision"],
            str(g["epochs"]),
            str(len(g.runs)),
            f"{percent(g.values('accuracy'))} %",
            f"{percent(g.values('nmi'))} %",
            spread(g.values("elbo"), 1),
        )
        for g in flat
    ]
    return table(head, rows)


# --- what goes wrong, and how it can be seen -------------------------------------------------------------------------


def errors() -> str:
    """The most frequent errors of trained models, by pair of digits."""
    return each(
        ("digit", "among", "errors"),
        ("digit, among others of a digit", "a model", "all models", "the gate trained with labels"),
        lambda row: (
            row["name"],
            spread(row["errors"], 1),
            str(row["errors_of_all"]),
            str(row["errors_with_labels"]),
        ),
        about=lambda report: (
            f"{len(report['errors'])} models, {report['images']['test']:,} test images, {where(report)}"
        ),
        lines=_by_pair,
    )


def _by_pair(report: Row, n: int = 12) -> list[Row]:
    """The lines of the first pairs, of the other ones together, and of all."""
    rows = report["rows"]

    def together(name: str, some: list[Row]) -> Row:
        return {
            "name": name,
            "errors": [sum(counts) for counts in zip(*(row["errors"] for row in some), strict=True)],
            **{field: sum(row[field] for row in some) for field in ("errors_of_all", "errors_with_labels")},
        }

    first = [{"name": f"{row['digit']} among {row['among']}", **row} for row in rows[:n]]
    return [*first, together(f"{len(rows[n:])} other pairs", rows[n:]), together("all", rows)]


def errors_neighbours() -> str:
    """How many neighbours of images are of another digit."""
    head = (
        "images",
        "how many",
        "neighbours of another digit",
        "mutual ones",
        "of these, of another digit",
        "with none of another digit",
        "half",
        "most of them",
        "no mutual ones",
    )
    return each(
        ("digit", "among", "errors"),
        head,
        lambda line: (
            line["name"],
            f"{line['images']:,}",
            *(f"{100 * line[share]:.1f} %" for share in ("other_digit", "mutual", "mutual_other_digit")),
            *(f"{line[count]:,}" for count in ("none_other", "half_other", "mostly_other", "no_mutual")),
        ),
        lines=lambda report: [{"name": name, **line} for name, line in report["neighbours"].items()],
    )


def score() -> str:
    """How well scores without labels rank runs, and what the run that each chooses is worth."""

    def cells(candidate: Row) -> Sequence[str]:
        fields = ("correlation", "correlation_better_half", "correlation_held_out")
        ranks = [*(candidate[field] for field in fields), *candidate["of_seeds"].values()]
        chosen = [candidate["chosen"], *candidate["chosen_of_seeds"].values()]
        figures = ["" if rank is None else f"{rank:+.2f}" for rank in ranks]
        return (candidate["score"], *figures, *(f"{100 * accuracy:.2f}" for accuracy in chosen))

    parts = []
    for name, report in reports("setting", "seed", "scores").items():
        settings = [*report["candidates"][0]["of_seeds"]]
        n = len(report["rows"])
        head = ["score", f"all {n} runs", f"the better {n // 2}", "all, by held-out labels"]
        head += [f"seeds of `{setting}`" for setting in settings]
        head += ["accuracy of the chosen run", *(f"of `{setting}`" for setting in settings)]
        by_rank = sorted(report["candidates"], key=lambda candidate: -(candidate["correlation"] or 0))
        parts.append(f"`{name}`: {where(report)}\n\n{table(head, [cells(each) for each in by_rank])}")
    return "\n\n".join(parts)


def score_settings() -> str:
    """What the runs are whose scores are compared."""
    return each(
        ("setting", "seed", "scores"),
        ("setting", "runs", "accuracy, mean", "worst", "best"),
        lambda row: (
            row["setting"],
            str(row["runs"]),
            *(f"{100 * row[field]:.2f}" for field in ("mean", "worst", "best")),
        ),
        about=lambda report: f"{report['epochs']} epochs, {report['images']['train']:,} images, {where(report)}",
        lines=lambda report: [*report["settings"], _all_runs(report)],
    )


def _all_runs(report: Row) -> Row:
    """The line of all runs together."""
    accuracy = [row["accuracy"] for row in report["rows"]]
    ends = {"mean": statistics.fmean(accuracy), "worst": min(accuracy), "best": max(accuracy)}
    return {"setting": "all", "runs": len(accuracy), **ends}


# --- speed ----------------------------------------------------------------------------------------------------------


def steps() -> str:
    """Training steps against the loop over experts: on every machine, of every cell the newest report."""
    head = ("experts, batch, precision", "hmoevae", "loop over experts", "faster")
    pairs: dict[str, dict[tuple[Any, ...], tuple[Row, Row, Row]]] = {}
    for report in reports("op", "speedup").values():
        loops = {_cell(row): row for row in report["rows"] if row["what"] == "loop"}
        for row in report["rows"]:
            cell = _cell(row)
            if row["op"] != "train" or row["what"] != "hmoevae" or cell not in loops:
                continue
            here = pairs.setdefault(machine(report["hardware"]), {})
            if cell not in here or report["date"] > here[cell][2]["date"]:
                here[cell] = (row, loops[cell], report)
    parts = []
    for here in sorted(pairs.values(), key=len, reverse=True):
        rows = [
            (
                f"{ours['leaves']}, {ours['batch']}, {ours['precision']}",
                f"{milliseconds(ours['ms'])} ms",
                f"{milliseconds(loop['ms'])} ms",
                f"{ours['speedup']:.1f} x",
            )
            for ours, loop, _ in (here[cell] for cell in sorted(here))
        ]
        made = dict.fromkeys(where(report) for *_, report in here.values())
        parts.append(f"{'; '.join(made)}:\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def throughput() -> str:
    """Every report of `throughput.py`."""
    return each(
        ("op", "speedup"),
        ("operation", "leaves", "depth", "batch", "precision", "what", "ms", "GFLOP/s", "of the ceiling", "against"),
        lambda row: (
            row["op"],
            *(str(row[field]) for field in ("leaves", "depth", "batch", "precision", "what")),
            milliseconds(row["ms"]),
            f"{row['gflop_per_s']:.0f}",
            f"{row['ceiling_fraction']:.0%}",
            "" if row["speedup"] is None else f"{row['speedup']:.2f} x {row['baseline']}",
        ),
    )


def routed_steps() -> str:
    """Routed training steps against the step over all leaves and the loop over experts, in the same run."""
    rows = []
    for report in reports("route", "speedup").values():
        whole = {_cell(row): row for row in report["rows"] if row["what"] == "hmoevae"}
        loops = {_cell(row): row for row in report["rows"] if row["what"] == "loop"}
        for row in report["rows"]:
            if row["route"] is None or row["what"] == "GEMMs alone":
                continue
            ours, loop = whole.get(_cell(row)), loops.get(_cell(row))
            rows.append(
                (
                    f"{row['leaves']}, {row['batch']}",
                    row["what"],
                    f"{milliseconds(row['ms'])} ms",
                    "" if ours is None else f"{milliseconds(ours['ms'])} ms",
                    "" if loop is None else f"{milliseconds(loop['ms'])} ms",
                    "" if ours is None else f"{ours['ms'] / row['ms']:.1f} x",
                    machine(report["hardware"]),
                )
            )
    head = ("leaves, batch", "leaves a sample", "step", "all leaves", "loop over experts", "faster than all", "machine")
    return table(head, rows)


def routing() -> str:
    """Held-out bounds of dense and routed trainings."""
    rows = []
    for report in reports("elbo", "used").values():
        for what in dict.fromkeys((row["what"], row["k"]) for row in report["rows"]):
            runs = [row for row in report["rows"] if (row["what"], row["k"]) == what]
            name = {"dense": "all leaves", "routed": "as many epochs", "as long": "as much CPU time"}[what[0]]
            rows.append(
                (
                    name if what[1] is None else f"{what[1]} leaves a sample, {name}",
                    f"{runs[0]['epochs']}" if len({row["epochs"] for row in runs}) == 1 else "as fit",
                    spread([row["elbo"] for row in runs], 2),
                    f"{statistics.mean(row['used'] for row in runs):.0f}",
                    f"{statistics.mean(row['cpu_seconds'] for row in runs):.0f}",
                )
            )
    return table(("training", "epochs", "ELBO of test images, nats", "leaves used", "CPU seconds"), rows)


def precision() -> str:
    """Losses in both precisions."""
    return each(
        ("bf16_off_percent",),
        ("seed", "fp32, nats", "bf16, nats", "bf16 off by"),
        lambda row: (str(row["seed"]), f"{row['fp32']:.2f}", f"{row['bf16']:.2f}", f"{row['bf16_off_percent']:+.4f} %"),
    )


def streaming() -> str:
    """Epochs from memory, from a file and from a stream; the row `cold` of older reports is left out, as it was not."""
    return each(
        ("data", "x_cpu"),
        ("data", "seconds an epoch, median", "CPU seconds against memory"),
        lambda row: (row["data"], f"{statistics.median(row['seconds']):.2f}", f"{row['x_cpu']:.3f} x"),
        lines=lambda report: [row for row in report["rows"] if row["data"] != "cold"],
    )


def _cell(row: Row) -> tuple[object, ...]:
    """What the rows of one comparison share."""
    return tuple(row[field] for field in ("op", "leaves", "depth", "batch", "precision"))


# --- unequal kinds --------------------------------------------------------------------------------------------------


def unequal() -> str:
    """What the balance does to kinds that are not equally common."""
    return each(
        ("how", "runs"),
        ("how", "ARI", "accuracy", "largest leaf", "rarest kind found"),
        lambda row: (
            row["how"],
            *(percent([run[field] for run in row["runs"]]) for field in ("ari", "accuracy", "largest")),
            f"{sum(run['rarest_found'] for run in row['runs'])} of {len(row['runs'])}",
        ),
    )


# --- tables of data -------------------------------------------------------------------------------------------------


def against_sklearn() -> str:
    """Clusters and densities of real tables, beside scikit-learn's."""
    return each(
        ("table", "form", "method", "runs"),
        ("table", "form", "method", "ARI, %", "held out, nats a row", "largest", "CPU seconds", "memory, MB"),
        lambda row: (
            row["table"],
            row["form"],
            row["method"],
            percent([run["ari"] for run in row["runs"] if run["ari"] is not None]),
            *(mean_of(row, field, digits) for field, digits in (("held_out", 2), ("largest", 3))),
            *(mean_of(row, field, digits) for field, digits in (("cpu_seconds", 3), ("peak_mb", 1))),
        ),
        about=with_seeds,
    )


def how_many() -> str:
    """The number of kinds, found by held-out samples and by BIC."""

    def against_a_fit(row: Row) -> str:
        fits = [run["fit_cpu_seconds"] for run in row["runs"] if run["fit_cpu_seconds"] is not None]
        return f"{row['mean']['cpu_seconds'] / statistics.fmean(fits):.1f}" if fits else ""

    return each(
        ("table", "method", "k", "found"),
        ("table", "kinds", "method", "found, by seed", "off by", "ARI, %", "CPU seconds", "x a fit"),
        lambda row: (
            row["table"],
            str(row["k"]),
            row["method"],
            ", ".join(map(str, row["found"])),
            mean_of(row, "off", 1),
            percent([run["ari"] for run in row["runs"]]),
            mean_of(row, "cpu_seconds", 2),
            against_a_fit(row),
        ),
        about=with_seeds,
    )


def counts() -> str:
    """Kinds of cells, found by mixtures of counts and by what is usual."""
    return each(
        ("cells", "method", "runs"),
        ("cells", "cells x genes", "method", "ARI, %", "of the upper level", "CPU seconds"),
        lambda row: (
            row["cells"],
            f"{row['rows']:,} x {row['genes']:,}, {row['k']} kinds",
            row["method"],
            percent([run["ari"] for run in row["runs"]]),
            percent([run["ari_upper"] for run in row["runs"]]) if "ari_upper" in row["mean"] else "",
            mean_of(row, "cpu_seconds", 2),
        ),
        about=with_seeds,
    )


GROWTH: dict[str, tuple[str, ...]] = {
    "kinds": ("accuracy", "nmi"),
    "unequal": ("accuracy", "ari", "rarest"),
    "rare": ("share", "accuracy"),
    "styles": ("accuracy", "by_hand_accuracy"),
    "barred": ("purity", "found"),
    "new": ("taken", "of_others", "kept"),
}
"""The fractions that the table of each task of `growth.py` shows."""


def growth() -> str:
    """What trees found that grew from one leaf, by task."""
    parts = []
    for name, report in reports("task", "seed", "seconds").items():
        lines = []
        for task in dict.fromkeys(row["task"] for row in report["rows"]):
            runs = [row for row in report["rows"] if row["task"] == task]
            numbers = ", ".join(str(row["kinds"]) for row in runs)
            scores = [f"{score.replace('_', ' ')} {percent([row[score] for row in runs])}" for score in GROWTH[task]]
            if "found" in runs[0] and isinstance(runs[0]["found"], bool):
                scores.append(f"found by {sum(row['found'] for row in runs)} of {len(runs)}")
            if "elbo" in runs[0]:
                scores += [f"{words} {spread([row[key] for row in runs], 2)}" for key, words in BOUNDS.items()]
            seconds = spread([row["seconds"] for row in runs], 0)
            lines.append((task, str(len(runs)), numbers, "; ".join(scores), seconds))
        made = table(("task", "seeds", "kinds, by seed", "percent of the test images, or nats", "CPU seconds"), lines)
        parts.append(f"`{name}`: {where(report)}\n\n{made}")
    return "\n\n".join(parts)


BOUNDS = {"elbo": "ELBO grown", "by_hand_elbo": "by hand"}


def hierarchy() -> str:
    """Dendrogram purity of trees over the leaves of flat models, over the seeds."""
    rows = []
    for report in reports("what", "ordered", "train").values():
        for dataset, what in dict.fromkeys((row["dataset"], row["what"]) for row in report["rows"]):
            runs = [row for row in report["rows"] if (row["dataset"], row["what"]) == (dataset, what)]
            figures = (percent([row[field] for row in runs]) for field in ("purity", "ordered", "train", "accuracy"))
            rows.append((dataset, what, str(len(runs)), *figures))
    head = ("images", "tree", "seeds", "purity", "purity, leaves ordered", "purity, training images", "accuracy")
    return table(head, rows)


def other_data() -> str:
    """One recipe on other data than those it was chosen on, beside the baselines, over the seeds."""
    scores = ("accuracy", "nmi", "ari", "leaf_purity", "dendrogram")
    rows = []
    for report in reports("data", "what", "leaf_purity").values():
        for name, what in dict.fromkeys((row["data"], row["what"]) for row in report["rows"]):
            runs = [row for row in report["rows"] if (row["data"], row["what"]) == (name, what)]
            figures = (percent([row[score] for row in runs]) if score in runs[0] else "" for score in scores)
            rows.append((name, what, str(len(runs)), *figures, spread([row["cpu_seconds"] for row in runs], 0)))
    rows.sort(key=lambda row: row[0])  # reports beside each other that are of the same data
    head = ("data", "method", "seeds", "accuracy", "NMI", "ARI", "leaf purity", "dendrogram purity", "CPU seconds")
    return table(head, rows)


def imputation() -> str:
    """Cells taken out and filled again, beside scikit-learn's imputers."""
    scores = (("numbers", 3), ("categories", 3), ("cpu_seconds", 2))
    return each(
        ("table", "missing", "method", "runs"),
        ("table", "missing", "method", "error", "numbers, RMSE", "categories, error rate", "CPU seconds"),
        lambda row: (
            row["table"],
            f"{row['missing']} %",
            row["method"],
            spread([run["error"] for run in row["runs"]], 3),
            *(mean_of(row, field, digits) for field, digits in scores),
        ),
        about=with_seeds,
    )


def report_drivers() -> str:
    """Columns that drive a split, and what a report says of them and of noise."""
    scores = ("first", "holds", "false", "noise", "plain")
    return each(
        ("planted", "held_out", "training"),
        ("planted", "rows of the report", "trees", "first", "holds", "false", "noise", "plain: false"),
        lambda line: (
            line["planted"],
            line["rows"],
            str(line["trees"]),
            *("" if line[score] is None else f"{100 * line[score]:.1f} %" for score in scores),
        ),
        lines=_of_drivers,
    )


def _of_drivers(report: Row) -> list[Row]:
    rows = report["rows"]
    return [
        {"planted": planted, "rows": where.replace("_", " "), "trees": len(own)} | report["mean"][f"{name}/{where}"]
        for name, planted in (
            ("alone", "a driver alone"),
            ("followed", "a driver and two others"),
            ("nothing", "nothing"),
        )
        for where in ("held_out", "training")
        for own in [[row for row in rows if row["planted"] == name]]
    ]


def mean_of(row: Row, field: str, digits: int) -> str:
    """The mean that a row tells, or nothing."""
    return "" if row["mean"][field] is None else f"{row['mean'][field]:.{digits}f}"


# --- all others -----------------------------------------------------------------------------------------------------


def shapes() -> str:
    """Kinds and styles of drawn colour images, beside what a user would try first."""
    return each(
        ("level", "what", "runs"),
        ("level", "found by", "seeds", "accuracy", "NMI"),
        lambda row: (
            row["level"],
            row["what"],
            str(len(row["runs"])),
            *(percent([run[field] for run in row["runs"]]) for field in ("accuracy", "nmi")),
        ),
    )


def others() -> str:
    """Every report that has no table of its own: what its rows hold, fields of several values left out."""
    own = {name for fields in SORTS for name in reports(*fields)}
    parts = []
    for name, report in reports().items():
        if name in own:
            continue
        plain = [
            field
            for field in report["rows"][0]
            if all(isinstance(row.get(field), str | int | float | None) for row in report["rows"])
        ]
        rows = [[_plain(row.get(field)) for field in plain] for row in report["rows"]]
        parts.append(f"`{name}`: {where(report)}\n\n{table(plain, rows)}")
    return "\n\n".join(parts) or "There are none."


def _plain(value: str | float | None) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


# --- the files ------------------------------------------------------------------------------------------------------


def files() -> str:
    """Every raw result."""
    rows = []
    for file in sorted(RESULTS.iterdir()):
        if file.suffix == ".jsonl":
            n = len(file.read_text(encoding="utf-8").splitlines())
            rows.append((f"`{file.name}`", "a run of an example" if n == 1 else f"{n} runs of an example", ""))
        elif file.suffix == ".json":
            report = json.loads(file.read_text(encoding="utf-8"))
            n = len(report["rows"])
            rows.append((f"`{file.name}`", "1 row" if n == 1 else f"{n} rows", where(report)))
    return table(("file in `benchmarks/results`", "what is in it", "where and when"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "clustering": clustering,
    "clustering-mnist5k": lambda: clustering("mnist5k"),
    "published": published,
    "published-fashion": lambda: published("fashion"),
    "levels": levels,
    "ablation": lambda: ablation("styles"),
    "ablation-best": lambda: ablation("best"),
    "errors": errors,
    "errors-neighbours": errors_neighbours,
    "score": score,
    "score-settings": score_settings,
    "barred": barred,
    "likelihood": likelihood,
    "binarised": binarised,
    "faults": faults,
    "expert-parallel": expert_parallel,
    "reliability": reliability,
    "headline": headline,
    "steps": steps,
    "routed_steps": routed_steps,
    "routing": routing,
    "throughput": throughput,
    "precision": precision,
    "streaming": streaming,
    "unequal": unequal,
    "shapes": shapes,
    "against-sklearn": against_sklearn,
    "how-many": how_many,
    "growth": growth,
    "counts": counts,
    "hierarchy": hierarchy,
    "other_data": other_data,
    "imputation": imputation,
    "report-drivers": report_drivers,
    "others": others,
    "files": files,
}


def main(argv: list[str] | None = None) -> None:
    """Write the tables into their pages, or check them."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a table is out of date")
    args = parser.parse_args(argv)
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = fill(before)
        if after == before:
            continue
        if args.check:
            name = page.relative_to(ROOT)
            sys.exit(f"{name}: its tables are not those of benchmarks/results; run python benchmarks/tables.py")
        page.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()

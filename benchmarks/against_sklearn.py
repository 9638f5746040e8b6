"""What does a user of scikit-learn get from `VAEMixture(k)` on the tables that are tried first?

    python benchmarks/against_sklearn.py --quick                              a look, under a minute
    python benchmarks/against_sklearn.py --json against_sklearn.json          the targets, five seeds
    python benchmarks/against_sklearn.py --tables vehicle segment --forms raw for choices: development tables

Every method has its defaults and the number of labels as the number of clusters; labels are seen by the scores only.

    form        raw: the table as it comes. standardised: mean 0, variance 1 a column. shifted: standardised, plus 20.
                gaps: standardised, 30 % of the cells missing at random, others for each seed.
    ARI         adjusted Rand index of labels and clusters, percent, over all rows, which are those of the fit.
    held out    log-likelihood of a row, nats, in the units of the form: fitted to three quarters of the rows, which
                also give mean and scale of the standardising, scored on the others. The split is always the same.
    largest     weight of the largest cluster.
    CPU s       seconds of all cores, of the fit to all rows and its labels.
    MB          by which that grew the peak of held memory.

KMeans and GaussianMixture refuse gaps and categories: before them, gaps take the column's mean or its most frequent
category, and categories are one-hot. The last line is the whole report as one JSON object.
"""

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import command
import machine
import numpy as np
import pandas as pd
import torch
from clustering import versions
from real_tables import LOADERS, TARGETS, RealTable, available
from sklearn.cluster import KMeans
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

import hmoevae as hm

GAPS = 0.3
"""Share of the cells that the form `gaps` lacks."""
FORMS = ("raw", "standardised", "shifted", "gaps")
GAPPED = ("wine", "digits")
"""Tables that are also measured with gaps."""
HELD_OUT_FORMS = ("raw", "standardised")
QUICK = {"tables": ["iris", "two_gaussians"], "forms": ["raw", "standardised"], "seeds": 1}
DEFAULTS = {"tables": list(TARGETS), "forms": list(FORMS), "seeds": 5}

Method = Callable[[int, int], Any]
"""From the number of clusters and a seed to an estimator."""


def methods(device: str) -> dict[str, Method]:
    """What is compared."""
    return {
        "VAEMixture": lambda k, seed: hm.VAEMixture(k, random_state=seed, device=device),
        "KMeans": lambda k, seed: KMeans(k, random_state=seed),
        "GaussianMixture": lambda k, seed: GaussianMixture(k, random_state=seed),
    }


def filled(estimator: object) -> Pipeline:
    """What scikit-learn takes in place of a table with gaps and categories, and then `estimator`."""
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    categories = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore"))
    columns = make_column_transformer(
        (numbers, make_column_selector(dtype_include="number")),
        (categories, make_column_selector(dtype_exclude="number")),
        sparse_threshold=0,
    )
    return make_pipeline(FunctionTransformer(pd.DataFrame), columns, estimator)


# --- forms of a table -----------------------------------------------------------------------------------------------


def in_form(table: RealTable, form: str, seed: int, fitted: np.ndarray | None = None) -> pd.DataFrame | np.ndarray:
    """The table in a form; mean and scale are those of the rows `fitted`, all where none are given."""
    if form == "raw":
        return table.frame if table.kind == "mixed" else table.X
    scaler = StandardScaler().fit(table.X if fitted is None else table.X[fitted])
    x = np.asarray(scaler.transform(table.X))
    if form == "shifted":
        x = x + 20
    if form == "gaps":
        x[with_gaps(x.shape, GAPS, seed)] = np.nan
    return x


def with_gaps(shape: tuple[int, ...], share: float, seed: int) -> np.ndarray:
    """Which cells are missing, at random; a row or column that would be without any keeps one."""
    rng = np.random.default_rng(seed)
    missing = rng.random(shape) < share
    for row in np.flatnonzero(missing.all(axis=1)):
        missing[row, rng.integers(shape[1])] = False
    for column in np.flatnonzero(missing.all(axis=0)):
        missing[rng.integers(shape[0]), column] = False
    return missing


# --- what is measured -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Job:
    """A row in the making: a table in a form, and a method."""

    table: RealTable
    form: str
    method: str

    @property
    def is_filled(self) -> bool:
        """Whether gaps are filled and categories made numbers before the method."""
        return self.method != "VAEMixture" and (self.form == "gaps" or self.table.kind == "mixed")


def jobs_of(args: argparse.Namespace, tables: list[RealTable]) -> Iterator[Job]:
    """Every row that was asked for."""
    for table in tables:
        for form in args.forms:
            is_asked = form == "raw" if table.kind == "mixed" else form != "gaps" or table.name in GAPPED
            if not is_asked:
                continue
            for method in methods(args.device):
                yield Job(table, form, method)


def run_job(job: Job, make: Method, seed: int) -> dict[str, Any]:
    """Fit to all rows, score the labels, and measure what it took; then the likelihood of rows held out."""
    table = job.table
    estimator = prepared(job, make, seed)
    x = in_form(table, job.form, seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        labels, seconds, peak = cost(lambda: estimator.fit_predict(x))
        held_out = None
        if job.form in HELD_OUT_FORMS and job.method != "KMeans" and table.kind == "numeric":
            held_out = held_out_score(job, prepared(job, make, seed), seed)
    return {
        "seed": seed,
        "ari": None if table.labels is None else float(adjusted_rand_score(table.labels, labels)),
        "held_out": held_out,
        "largest": largest_weight(estimator, labels),
        "clusters": len(np.unique(labels)),
        "cpu_seconds": seconds,
        "peak_mb": None if peak is None else peak / 2**20,
        "warnings": sorted({warning.category.__name__ for warning in caught}),
    }


def prepared(job: Job, make: Method, seed: int) -> Any:
    """A fresh estimator for the job."""
    estimator = make(job.table.k, seed)
    return filled(estimator) if job.is_filled else estimator


def held_out_score(job: Job, estimator: Any, seed: int) -> float:
    """Mean log-likelihood of the rows that `estimator` is not fitted to."""
    fitted, held = job.table.split()
    x = np.asarray(in_form(job.table, job.form, seed, fitted))
    return float(estimator.fit(x[fitted]).score(x[held]))


def largest_weight(estimator: Any, labels: np.ndarray) -> float:
    """Of a mixture its own, of others the share of the rows."""
    last = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    weights = getattr(last, "weights_", np.bincount(labels) / len(labels))
    return float(np.max(weights))


def cost(run: Callable[[], Any]) -> tuple[Any, float, int | None]:
    """The result of `run`, CPU seconds of all threads and children, and bytes beyond those held before."""
    results: list[Any] = []
    seconds: list[float] = []

    def timed() -> None:
        began = cpu_seconds()
        results.append(run())
        seconds.append(cpu_seconds() - began)

    peak = machine.peak_memory(timed, torch.device("cpu"))
    return results[0], seconds[0], peak


def cpu_seconds() -> float:
    """Of this process and those that it started and that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def measure(job: Job, make: Method, n_seeds: int) -> dict[str, Any]:
    """One row: every seed's run and their means."""
    runs = [run_job(job, make, seed) for seed in range(n_seeds)]
    return {
        "table": job.table.name,
        "form": job.form,
        "method": job.method,
        "filled": job.is_filled,
        "rows": len(job.table.frame),
        "columns": job.table.frame.shape[1],
        "k": job.table.k,
        "mean": {name: mean(runs, name) for name in SCORES},
        "runs": runs,
    }


SCORES = ("ari", "held_out", "largest", "cpu_seconds", "peak_mb")


def mean(runs: list[dict[str, Any]], name: str) -> float | None:
    """Of those runs that have it."""
    found = [run[name] for run in runs if run[name] is not None]
    return statistics.fmean(found) if found else None


def warm_up(made: dict[str, Method]) -> None:
    """Fit each method once, so that no row pays for imports."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(30, 2)), rng.normal(size=(30, 2)) + 9])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for make in made.values():
            make(2, 0).fit_predict(x)


# --- the table ------------------------------------------------------------------------------------------------------

HEADS = ("table", "form", "method", "ARI", "held out", "largest", "CPU s", "MB")
WIDTHS = (-16, -14, -18, 13, 10, 8, 8, 7)


def line(row: dict[str, Any]) -> str:
    """A row in words."""
    means = row["mean"]
    aris = [run["ari"] for run in row["runs"] if run["ari"] is not None]
    cells = (
        row["table"],
        row["form"],
        row["method"],
        spread(aris),
        shown(means["held_out"], 2),
        shown(means["largest"], 3),
        shown(means["cpu_seconds"], 3),
        shown(means["peak_mb"], 1),
    )
    return aligned(cells)


def spread(values: list[float]) -> str:
    """`"90.4 +- 0.2"`, or nothing."""
    if not values:
        return ""
    deviation = f" +- {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{deviation}"


def shown(value: float | None, digits: int) -> str:
    """A number, or nothing."""
    return "" if value is None else f"{value:.{digits}f}"


def aligned(cells: tuple[str, ...], widths: tuple[int, ...] = WIDTHS) -> str:
    """Cells under their columns' heads, numbers to the right."""
    padded = (cell.ljust(-w) if w < 0 else cell.rjust(w) for cell, w in zip(cells, widths, strict=True))
    return "  ".join(padded).rstrip()


# --- the command ----------------------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, defaults filled in."""
    parser = command.parser(__doc__, has_data_root=False)
    parser.add_argument("--tables", nargs="+", choices=list(LOADERS), metavar="TABLE", help="see real_tables.py")
    parser.add_argument("--forms", nargs="+", choices=FORMS)
    parser.add_argument("--seeds", type=int, help="runs of every row")
    parser.add_argument("--json", type=Path, help="write the report to this file too, anew after every row")
    parser.add_argument("--quick", action="store_true", help="two small tables, two forms, one seed")
    args = parser.parse_args(argv)
    command.fill_in(args, QUICK if args.quick else DEFAULTS)
    command.check(parser, args, "seeds")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its report; what a user can mend ends with one line, not with a traceback."""
    args = parse(argv)
    with command.at_work("against_sklearn.py", args.threads), threadpool_limits(args.threads):
        run(args)


def begin(args: argparse.Namespace) -> tuple[dict[str, Any], list[RealTable]]:
    """A report without rows, and those of the tables asked for that are here; the others are named."""
    tables, absent = available(tuple(args.tables))
    for name, reason in absent.items():
        print(f"{name} is left out: {reason}", file=sys.stderr)
    about = machine.about(hm.training.resolve_device(args.device), args.threads)
    return about | {"argv": command.given(args), "versions": versions(), "absent": absent, "rows": []}, tables


def run(args: argparse.Namespace) -> None:
    """Measure every row and report."""
    report, tables = begin(args)
    made = methods(args.device)
    warm_up(made)
    print(aligned(HEADS))
    measured = (measure(job, made[job.method], args.seeds) for job in jobs_of(args, tables))
    command.collect(report, measured, line, args.json)
    print(json.dumps(report))


if __name__ == "__main__":
    main()

"""How many kinds does `VAEMixture("auto")` find in tables whose kinds are known?

    python benchmarks/how_many.py --quick                       a look, under a minute
    python benchmarks/how_many.py --json how_many.json          the targets, five seeds
    python benchmarks/how_many.py --tables thyroid satimage     for choices: development tables

Labels are seen by the scores only. Beside it is the usual choice with scikit-learn: `GaussianMixture` with each number
of components, and the one with the smallest Bayesian information criterion (BIC), on the table as it comes and with
mean 0 and variance 1 in every column. Both try 1 to 20, and one for ten rows at most.

    separated        seven Gaussians of equal weight in five columns, far apart; 700 rows
    overlapping      four Gaussians of weights 0.5, 0.3, 0.15 and 0.05 in eight columns, with full covariances that
                     differ, at least 4 of their standard deviations apart; 1,000 rows
    many             twelve Gaussians in two columns, 100 rows each, at least 6 standard deviations apart

Rows of planted tables are drawn anew for each seed.

    found       number of components, of every seed.
    off         how far the number is from that of the labels, mean over seeds.
    ARI         adjusted Rand index of labels and clusters, percent.
    CPU s       seconds of all cores, of the choice and the fit.
    x a fit     how many times that takes as long as a fit with the number given.

The last line is the whole report as one JSON object.
"""

import argparse
import json
import statistics
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import command
import numpy as np
from against_sklearn import SCORES, aligned, begin, cpu_seconds, shown, spread
from real_tables import LOADERS, RealTable
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import hmoevae as hm

TABLES = ("iris", "wine", "penguins", "breast_cancer", "digits")
MOST = 20
QUICK = {"tables": ["iris"], "planted": ["many"], "seeds": 1}


class Sample(NamedTuple):
    """Rows and what they are."""

    x: np.ndarray
    labels: np.ndarray


# --- planted tables -------------------------------------------------------------------------------------------------


def separated(seed: int) -> Sample:
    """Seven kinds, far apart."""
    return gaussians(np.full(7, 1 / 7), n_columns=5, n=700, apart=8.0, seed=seed)


def overlapping(seed: int) -> Sample:
    """Four kinds of unequal weights."""
    return gaussians(np.array([0.5, 0.3, 0.15, 0.05]), n_columns=8, n=1000, apart=4.0, seed=seed)


def many(seed: int) -> Sample:
    """Twelve kinds in the plane."""
    return gaussians(np.full(12, 1 / 12), n_columns=2, n=1200, apart=6.0, seed=seed)


PLANTED: dict[str, Callable[[int], Sample]] = {"separated": separated, "overlapping": overlapping, "many": many}


def gaussians(weights: np.ndarray, *, n_columns: int, n: int, apart: float, seed: int) -> Sample:
    """Gaussians of full covariances, any two of which are at least `apart`.

    That is the Mahalanobis distance under the mean of their covariances. Means are drawn one by one from a cloud that
    widens until there is room.
    """
    rng, k = np.random.default_rng(seed), len(weights)
    roots = np.stack([np.linalg.qr(rng.normal(size=(n_columns, n_columns)))[0] for _ in range(k)])
    roots *= np.exp(rng.normal(0, 0.3, (k, 1, n_columns)))
    covariances = roots @ roots.transpose(0, 2, 1)
    means: list[np.ndarray] = []
    width = apart / 2
    while len(means) < k:
        mean, new = rng.normal(0, width, n_columns), covariances[len(means)]
        gaps = [(mean - old, (new + other) / 2) for old, other in zip(means, covariances, strict=False)]
        if all(gap @ np.linalg.solve(covariance, gap) >= apart**2 for gap, covariance in gaps):
            means.append(mean)
        width *= 1.01
    labels = np.repeat(np.arange(k), np.round(n * weights).astype(int))
    noise = np.einsum("nij,nj->ni", roots[labels], rng.normal(size=(len(labels), n_columns)))
    return Sample(np.stack(means)[labels] + noise, labels)


# --- what is compared -----------------------------------------------------------------------------------------------


class ByBIC:
    """The Gaussian mixture with the smallest BIC.

    Args:
        standardises: Whether columns get mean 0 and variance 1 before.
        seed: Seed of every mixture.
    """

    def __init__(self, *, standardises: bool, seed: int) -> None:
        self.standardises = standardises
        self.seed = seed

    def fit_predict(self, X: np.ndarray, y: object = None) -> np.ndarray:  # noqa: ARG002, N803
        """Fit every number, and label the rows by the best."""
        x = StandardScaler().fit_transform(X) if self.standardises else X
        most = max(1, min(MOST, len(x) // 10))
        tried = [GaussianMixture(k, random_state=self.seed).fit(x) for k in range(1, most + 1)]
        best = min(tried, key=lambda mixture: mixture.bic(x))
        self.n_components_ = best.n_components
        return best.predict(x)


def methods(device: str) -> dict[str, Callable[[int], Any]]:
    """What is compared, from a seed."""
    return {
        "VAEMixture": lambda seed: hm.VAEMixture("auto", random_state=seed, device=device),
        "GaussianMixture, BIC": lambda seed: ByBIC(standardises=False, seed=seed),
        "standardised, BIC": lambda seed: ByBIC(standardises=True, seed=seed),
    }


# --- what is measured -----------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """A row in the making: rows from a seed, and a method."""

    name: str
    sample: Callable[[int], Sample]
    method: str


def jobs_of(args: argparse.Namespace, tables: list[RealTable]) -> Iterator[Job]:
    """Every row that was asked for."""
    samples: dict[str, Callable[[int], Sample]] = {}
    for table in tables:
        if table.labels is not None:
            samples[table.name] = lambda _, x=table.X, labels=table.labels: Sample(x, labels)
    samples |= {name: PLANTED[name] for name in args.planted}
    for name, sample in samples.items():
        for method in methods(args.device):
            yield Job(name, sample, method)


def run_job(job: Job, seed: int, device: str) -> dict[str, Any]:
    """Choose and fit, score the labels, and measure what it took."""
    x, labels = job.sample(seed)
    estimator = methods(device)[job.method](seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        began = cpu_seconds()
        clusters = estimator.fit_predict(x)
        seconds = cpu_seconds() - began
        fit_seconds = None
        if isinstance(estimator, hm.VAEMixture):
            given = hm.VAEMixture(estimator.n_components_, random_state=seed, device=device)
            began = cpu_seconds()
            given.fit_predict(x)
            fit_seconds = cpu_seconds() - began
    return {
        "seed": seed,
        "found": int(estimator.n_components_),
        "ari": float(adjusted_rand_score(labels, clusters)),
        "cpu_seconds": seconds,
        "fit_cpu_seconds": fit_seconds,
        "selection": getattr(estimator, "selection_", None),
    }


def measure(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """One row: every seed's run and their means."""
    runs = [run_job(job, seed, args.device) for seed in range(args.seeds)]
    x, labels = job.sample(0)
    k = len(np.unique(labels))
    found = [run["found"] for run in runs]
    means = {name: statistics.fmean(run[name] for run in runs) for name in SCORES if name in runs[0]}
    return {
        "table": job.name,
        "method": job.method,
        "rows": len(x),
        "columns": x.shape[1],
        "k": k,
        "found": found,
        "mean": means | {"off": statistics.fmean(abs(number - k) for number in found)},
        "runs": runs,
    }


HEADS = ("table", "kinds", "method", "found", "off", "ARI", "CPU s", "x a fit")
WIDTHS = (-14, 5, -20, -18, 5, 13, 8, 8)


def line(row: dict[str, Any]) -> str:
    """A row in words."""
    fits = [run["fit_cpu_seconds"] for run in row["runs"] if run["fit_cpu_seconds"]]
    cells = (
        row["table"],
        str(row["k"]),
        row["method"],
        " ".join(map(str, row["found"])),
        shown(row["mean"]["off"], 1),
        spread([run["ari"] for run in row["runs"]]),
        shown(row["mean"]["cpu_seconds"], 2),
        shown(row["mean"]["cpu_seconds"] / statistics.fmean(fits) if fits else None, 1),
    )
    return aligned(cells, WIDTHS)


# --- the command ----------------------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, defaults filled in."""
    parser = command.parser(__doc__, has_data_root=False)
    parser.add_argument("--tables", nargs="*", choices=list(LOADERS), metavar="TABLE", help="see real_tables.py")
    parser.add_argument("--planted", nargs="*", choices=list(PLANTED))
    parser.add_argument("--seeds", type=int, help="runs of every row")
    parser.add_argument("--json", type=Path, help="write the report to this file too, anew after every row")
    parser.add_argument("--quick", action="store_true", help="one table, one planted, one seed")
    args = parser.parse_args(argv)
    planted = [] if args.tables else list(PLANTED)
    defaults = {"tables": [] if args.planted else list(TABLES), "planted": planted, "seeds": 5}
    command.fill_in(args, QUICK if args.quick else defaults)
    command.check(parser, args, "seeds")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its report; what a user can mend ends with one line, not with a traceback."""
    args = parse(argv)
    with command.at_work("how_many.py", args.threads), threadpool_limits(args.threads):
        report, tables = begin(args)
        print(aligned(HEADS, WIDTHS))
        measured = (measure(job, args) for job in jobs_of(args, tables))
        command.collect(report, measured, line, args.json)
        print(json.dumps(report))


if __name__ == "__main__":
    main()

"""Does a mixture of count models find kinds of cells better than what is usual, a Gaussian mixture of log counts?

    python benchmarks/counts.py --quick                      counts drawn here, under a minute
    python benchmarks/counts.py --json counts.json           the cells in DATA_ROOT/cells, five seeds

    VAEMixture  VAEMixture(k, likelihood="counts"): negative binomial counts given each cell's total, by EM. Of
                `zeisel_subtypes` a tree of two levels, as many kinds as there are and as many parts of each.
    gradients   leaves with a linear decoder and the same counts, started from k-means; of the `--starts` (log counts;
                scaled to equal variance) the fit with the smallest loss is kept.
    pca-gmm     log(1 + counts scaled to the median total), so many principal components, a full Gaussian mixture.
    pca-kmeans  the same with k-means.
    ARI         adjusted Rand index of labels and clusters, percent, of all cells, which are those of the fit.

No label chooses anything. `DATA_SETS` names the files below DATA_ROOT/cells: a sparse matrix of scipy, cells by genes,
and labels, a cell a row. The last line is the whole report as one JSON object.
"""

import argparse
import json
import os
import statistics
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
from against_sklearn import cost, spread
from clustering import versions
from scipy.sparse import csr_array, load_npz
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

import hmoevae as hm
from hmoevae.errors import DataError, mismatch

DATA_SETS = {
    "zeisel": ("zeisel/counts_3005x200.npz", "zeisel/annot_3005.csv", "level1class"),
    "zeisel_subtypes": ("zeisel/counts_3005x200.npz", "zeisel/annot_3005.csv", "level2class"),
    "zeisel_3_kinds": ("zeisel/counts_1464x1000.npz", "zeisel/annot_1464.csv", "level1class"),
    "pbmc": ("pbmc68k_700/counts.npz", "pbmc68k_700/annot.csv", "bulk_label"),
}
"""Files of counts and labels below `cells`, and the column of labels."""
N_COMPONENTS = (10, 20)
"""Principal components of the baselines."""
START_COMPONENTS = 15
LATENTS, EPOCHS, BATCH, RATE = 4, 20, 128, 1e-2
"""Of `gradients`, chosen by the log-likelihood of held-out cells."""
SCORES = ("ari", "ari_upper", "cpu_seconds")
UPPER = {"zeisel_subtypes": "level1class"}
"""The column of the labels of the upper level, for data sets of two."""
METHODS = ("VAEMixture", "gradients", *(f"pca-{how}, {n}" for n in N_COMPONENTS for how in ("gmm", "kmeans")))


@dataclass(frozen=True, slots=True)
class Cells:
    """Counts with labels.

    Attributes:
        name: As in `DATA_SETS`.
        counts: `(cells, genes)`.
        labels: `(cells,)`.
        upper: Labels of the upper level, `(cells,)`, where there are two levels.
    """

    name: str
    counts: np.ndarray
    labels: np.ndarray
    upper: np.ndarray | None = None

    @property
    def k(self) -> int:
        """Number of kinds."""
        return len(np.unique(self.labels))

    @property
    def total(self) -> float:
        """Median of the total counts."""
        return float(np.median(self.counts.sum(1)))

    def log_counts(self, scaled: bool = False) -> np.ndarray:
        """Log(1 + counts of a cell of the median total); `scaled` gives genes equal variance."""
        logs = np.log1p(self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1) * self.total)
        return (logs - logs.mean(0)) / np.maximum(logs.std(0), 1e-9) if scaled else logs


def read(name: str, root: Path) -> Cells:
    """The cells called `name`."""
    counts, labels, column = DATA_SETS[name]
    about = pd.read_csv(root / "cells" / labels)
    kinds, upper = about[column].to_numpy(str), about[UPPER[name]].to_numpy(str) if name in UPPER else None
    return Cells(name, load_npz(root / "cells" / counts).toarray().astype(np.float64), kinds, upper)


def drawn() -> Cells:
    """300 cells of three kinds of unequal size and 40 genes, negative binomial, with totals that differ tenfold."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [180, 80, 40])
    shares = rng.dirichlet(np.full(40, 0.5), 3)[labels]
    rates = shares * rng.uniform(50, 500, (300, 1))
    return Cells("drawn", rng.negative_binomial(2, 2 / (2 + rates)).astype(np.float64), labels.astype(str))


# --- what is compared -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """Clusters of cells, `(cells,)`; `upper` are those of the upper level of a tree."""

    clusters: np.ndarray
    upper: np.ndarray | None = None


def by_em(cells: Cells, seed: int, device: str) -> Found:
    """The package's estimator."""
    x = csr_array(cells.counts)
    if cells.upper is None:
        mixture = hm.VAEMixture(cells.k, likelihood="counts", random_state=seed, device=device)
        return Found(mixture.fit(x).labels_)
    n_kinds = len(np.unique(cells.upper))
    leaf = hm.VAE(1, hm.LinearPosterior(), hm.MLP(()), hm.NegativeBinomial(total=cells.total))

    def of(child: hm.VAE | hm.Mixture, n: int) -> hm.Mixture:
        return hm.Mixture.of(child, n, gate=hm.PosteriorGate(), balance=None, prior="learned")

    tree = of(of(leaf, round(cells.k / n_kinds)), n_kinds)
    mixture = hm.VAEMixture(tree=tree, random_state=seed, device=device).fit(x)
    return Found(mixture.labels_, mixture.predict(x, level=1))


def by_gradients(cells: Cells, seed: int, starts: list[str], epochs: int, device: str) -> np.ndarray:
    """The package's model: clusters of the start whose fit is the likeliest."""
    leaf = hm.VAE(LATENTS, hm.MLP((32,)), hm.MLP(()), hm.NegativeBinomial(total=cells.total))
    tree = hm.Mixture.of(leaf, cells.k, gate=hm.MLP((32,)), prior="learned", balance=hm.Balance("kl", 0.0))
    x = torch.tensor(cells.counts, dtype=torch.float32)
    found = []
    for start in starts:
        logs = PCA(START_COMPONENTS, random_state=seed).fit_transform(cells.log_counts(start == "scaled"))
        first = KMeans(cells.k, n_init=10, random_state=seed).fit_predict(logs).astype(np.int64)  # pyright: ignore[reportArgumentType]
        torch.manual_seed(seed)
        model = hm.HMoEVAE(tree, (x.shape[1],), objective="marginal")
        training = hm.Training(
            epochs=epochs,
            batch_size=BATCH,
            lr=RATE,
            lr_schedule="cosine",
            init=first,
            init_epochs=max(1, epochs // 10),
            seed=seed,
            device=device,
        )
        command.whole(hm.fit(model, x, training, progress=False))
        loss = model.evaluate(x, generator=torch.Generator(model.device).manual_seed(0))["marginal"]
        found.append((loss, model.predict(x).cpu().numpy()))
    return min(found, key=lambda pair: pair[0])[1]


def pca_gmm(cells: Cells, seed: int, n: int) -> np.ndarray:
    """What is usual."""
    return GaussianMixture(cells.k, random_state=seed).fit_predict(components(cells, seed, n))


def pca_kmeans(cells: Cells, seed: int, n: int) -> np.ndarray:
    """The same with k-means."""
    return KMeans(cells.k, random_state=seed).fit_predict(components(cells, seed, n))


def components(cells: Cells, seed: int, n: int) -> np.ndarray:
    """The leading principal components of the log counts."""
    return PCA(n, random_state=seed).fit_transform(cells.log_counts())


def methods(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[Cells, int], Found]]]:
    """Names, and from cells and a seed to clusters."""
    yield "VAEMixture", lambda cells, seed: by_em(cells, seed, args.device)
    yield "gradients", lambda cells, seed: Found(by_gradients(cells, seed, args.starts, args.epochs, args.device))
    for n in N_COMPONENTS:
        yield f"pca-gmm, {n}", lambda cells, seed, n=n: Found(pca_gmm(cells, seed, n))
        yield f"pca-kmeans, {n}", lambda cells, seed, n=n: Found(pca_kmeans(cells, seed, n))


def measure(cells: Cells, name: str, method: Callable[[Cells, int], Found], n_seeds: int) -> dict[str, Any]:
    """One row: every seed's run and their means."""
    runs: list[dict[str, Any]] = []
    for seed in range(n_seeds):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found, seconds, _ = cost(lambda seed=seed: method(cells, seed))
        run = {
            "seed": seed,
            "ari": float(adjusted_rand_score(cells.labels, found.clusters)),
            "cpu_seconds": seconds,
            "warnings": sorted({warning.category.__name__ for warning in caught}),
        }
        if cells.upper is not None and found.upper is not None:
            run["ari_upper"] = float(adjusted_rand_score(cells.upper, found.upper))
        runs.append(run)
    return {
        "cells": cells.name,
        "method": name,
        "rows": len(cells.counts),
        "genes": cells.counts.shape[1],
        "k": cells.k,
        "mean": {score: statistics.fmean(run[score] for run in runs) for score in runs[0] if score in SCORES},
        "runs": runs,
    }


# --- the command ----------------------------------------------------------------------------------------------------

LINE = "{:<16} {:<16} {:>14} {:>9}"


def line(row: dict[str, Any]) -> str:
    """A row in words."""
    aris = spread([run["ari"] for run in row["runs"]])
    return LINE.format(row["cells"], row["method"], aris, f"{row['mean']['cpu_seconds']:.2f}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command.parser(__doc__, has_data_root=False)
    parser.add_argument("--data-root", help="folder with cells/ in it (default: HMOEVAE_DATA)")
    parser.add_argument("--cells", nargs="+", choices=list(DATA_SETS), default=list(DATA_SETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--starts", nargs="+", choices=("log", "scaled"), default=["log", "scaled"])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seeds", type=int, default=5, help="runs of every row")
    parser.add_argument("--json", type=Path, help="write the report to this file too, anew after every row")
    parser.add_argument("--quick", action="store_true", help="drawn counts, one seed")
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds = 1
    command.check(parser, args, "seeds", "epochs")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its report; what a user can mend ends with one line, not with a traceback."""
    args = parse(argv)
    with command.at_work("counts.py", args.threads), threadpool_limits(args.threads):
        run(args)


def every(args: argparse.Namespace) -> Iterator[Cells]:
    """The data that were asked for.

    Raises:
        DataError: Nobody says where they are.
    """
    if args.quick:
        yield drawn()
        return
    root = args.data_root or os.environ.get("HMOEVAE_DATA")
    if root is None:
        raise DataError(mismatch("--data-root", "a folder with cells/ in it, or HMOEVAE_DATA set to one", "neither"))
    for name in args.cells:
        yield read(name, Path(root))


def run(args: argparse.Namespace) -> None:
    """Measure every row and report."""
    report: dict[str, Any] = {
        **machine.about(hm.training.resolve_device(args.device), args.threads),
        "argv": command.given(args),
        "versions": versions(),
        "rows": [],
    }
    print(LINE.format("cells", "method", "ARI", "CPU s"))
    asked = [pair for pair in methods(args) if pair[0] in args.methods]
    measured = (measure(cells, *pair, args.seeds) for cells in every(args) for pair in asked)
    command.collect(report, measured, line, args.json)
    print(json.dumps(report))


if __name__ == "__main__":
    main()

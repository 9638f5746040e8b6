"""How well do the leaves of a tree match labels that training never saw, against common and published clustering?

    python benchmarks/clustering.py --quick                                a look, under a minute
    python benchmarks/clustering.py --dataset mnist --seeds 5              the best flat tree and all baselines
    python benchmarks/clustering.py --tree flat two-level binary --against --seeds 3 --json all.json --plot all.png

Every row is fitted to the training split without labels, once for each seed from 0 on, and scored on the test split
(`hm.metrics.report`; the trees by their gates alone). What has no tree, or no probabilities, leaves columns empty.
Recipes are those of `recipes.py`, baselines those of `baselines.py`, run in the same process.

    level       clusters are the nodes so many gates below the root; empty for the leaves.
    accuracy    by the best one-to-one match of clusters and labels, as NMI, ARI and purity mean and standard deviation
                over the seeds, percent. More clusters than labels cost accuracy, whatever they hold.
    dendrogram  dendrogram purity of the whole tree.
    ECE         expected calibration error of the gates.
    usage       entropy of the mean usage, as a share of the largest possible.
    seconds     of fitting and, for the baselines, assigning the test images.

Published numbers follow where we have read them in a public source; splits and protocols differ, and the notes say how.
The last line is the whole report as one JSON object.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import command
import machine
import torch
from baselines import BASELINES, import_umap
from published import PUBLISHED
from recipes import RECIPES, Layout
from threadpoolctl import threadpool_limits

import hmoevae as hm
from hmoevae.datasets import LabelledImages
from hmoevae.training import resolve_device

Splits = tuple[LabelledImages, LabelledImages]
DATASETS: dict[str, Callable[[str | None], Splits]] = {
    "mnist": hm.datasets.mnist,
    "fashion": hm.datasets.fashion_mnist,
    "digits": lambda _: hm.datasets.digits(),
}
DEFAULTS = {"dataset": "mnist", "seeds": 3, "against": list(BASELINES)}
QUICK = {"dataset": "digits", "seeds": 2, "epochs": 5, "against": ["k-means", "pca-gmm"]}
PACKAGES = ("numpy", "scikit-learn", "umap-learn")


# --- what is measured -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Method:
    """A row in the making.

    Attributes:
        what: `"hmoevae"`, or the baseline's name.
        recipe: Of the tree's training; `None` for a baseline.
        tree: The tree's layout; `None` for a baseline.
        levels: Levels of the tree between its root and its leaves.
        run: From a seed to scores and seconds.
    """

    what: str
    recipe: str | None
    tree: Layout | None
    levels: int
    run: Callable[[int], dict[str, float]]


def methods_of(args: argparse.Namespace, train: LabelledImages, test: LabelledImages) -> Iterator[Method]:
    """Every row that was asked for."""
    for recipe in args.recipe:
        for layout in args.tree:
            levels = RECIPES[recipe].tree(layout).depth - 1
            run = functools.partial(run_tree, args, recipe, layout, train, test)
            yield Method("hmoevae", recipe, layout, levels, run)
    for name in args.against:
        yield Method(name, None, None, 0, functools.partial(run_baseline, name, train, test))


def run_tree(
    args: argparse.Namespace, recipe: str, layout: Layout, train: LabelledImages, test: LabelledImages, seed: int
) -> dict[str, float]:
    """Train a tree by a recipe and score its gates."""
    usual = RECIPES[recipe].training(len(train))
    epochs = args.epochs or usual.epochs
    training = dataclasses.replace(usual, epochs=epochs, seed=seed, device=args.device, precision=args.precision)
    start = time.perf_counter()
    model, history = RECIPES[recipe].run(layout, train.x, training, sys.stderr.isatty())
    seconds = time.perf_counter() - start
    if args.models:
        model.save_pretrained(args.models / f"{recipe}-{layout}-{seed}")
    terms = model.evaluate(test.x, generator=torch.Generator(model.device).manual_seed(0))
    return hm.metrics.report(model, test.x, test.y) | {
        "expected_loss": terms["expected"],
        "elbo": -terms["elbo"],
        "epochs": len(history),
        "seconds": seconds,
    }


def run_baseline(name: str, train: LabelledImages, test: LabelledImages, seed: int) -> dict[str, float]:
    """Fit a baseline with as many clusters as there are labels."""
    start = time.perf_counter()
    pixels = [split.x.flatten(1).numpy() for split in (train, test)]
    clusters = BASELINES[name](pixels[0], pixels[1], len(test.y.unique()), seed)
    seconds = time.perf_counter() - start
    return hm.metrics.clustering_scores(test.y, clusters) | {"seconds": seconds}


def measure(method: Method, n_seeds: int) -> dict[str, Any]:
    """One row: every seed's run, their means and standard deviations."""
    runs = []
    for seed in range(n_seeds):
        runs.append({"seed": seed, **method.run(seed)})
        print(f"    {method.what}, seed {seed}: accuracy {percent(runs[-1]['accuracy'], None)}", file=sys.stderr)
    scores = [name for name in runs[0] if name != "seed"]
    return {
        "what": method.what,
        "recipe": method.recipe,
        "tree": method.tree,
        "levels": method.levels,
        "mean": {name: statistics.fmean(run[name] for run in runs) for name in scores},
        "sd": {name: statistics.stdev(run[name] for run in runs) if n_seeds > 1 else None for name in scores},
        "runs": runs,
    }


# --- the table ------------------------------------------------------------------------------------------------------

SCORES = (
    ("accuracy", "accuracy"),
    ("NMI", "nmi"),
    ("ARI", "ari"),
    ("purity", "leaf_purity"),
    ("dendrogram", "dendrogram_purity"),
    ("ECE", "calibration_error"),
    ("usage", "usage_entropy"),
)
WIDTHS = (-24, 5, *[12] * len(SCORES), 9)
HEADS = ("", "level", *(head for head, _ in SCORES), "seconds")


def table_lines(row: dict[str, Any]) -> Iterator[str]:
    """A line for the leaves, and one for each level above them."""
    mean, sd = row["mean"], row["sd"]
    for level in (None, *range(1, row["levels"] + 1)):
        suffix = "" if level is None else f"_level{level}"
        cells = [percent(mean.get(name + suffix), sd.get(name + suffix)) for _, name in SCORES]
        if level is None:
            name = " ".join(filter(None, (row["what"], row["recipe"], row["tree"])))
            yield aligned((name, "", *cells, f"{mean['seconds']:.1f}"))
        else:
            yield aligned(("", str(level), *cells, ""))


def percent(mean: float | None, sd: float | None) -> str:
    """`"97.9 +- 0.2"`, or nothing."""
    if mean is None:
        return ""
    return f"{100 * mean:.1f}" + ("" if sd is None else f" +- {100 * sd:.1f}")


def aligned(cells: tuple[str, ...]) -> str:
    """Cells under their columns' heads, numbers to the right."""
    padded = (cell.ljust(-w) if w < 0 else cell.rjust(w) for cell, w in zip(cells, WIDTHS, strict=True))
    return "  ".join(padded).rstrip()


def published_lines(published: list[dict[str, Any]]) -> Iterator[str]:
    """What others report, with the sources."""
    for other in published:
        cells = [percent(other.get(name), other.get(f"{name}_sd")) for _, name in SCORES]
        yield (aligned((other["what"], "", *cells, "")) + f"    {other['source']}; {other['note']}")


# --- the command ----------------------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, defaults filled in."""
    parser = command.parser(__doc__)
    parser.add_argument("--dataset", choices=DATASETS)
    parser.add_argument("--recipe", nargs="*", choices=list(RECIPES), default=["best"], help="none: baselines only")
    parser.add_argument("--tree", nargs="+", choices=get_args(Layout), default=["flat"])
    parser.add_argument("--against", nargs="*", choices=list(BASELINES), help="baselines; none: trees only")
    parser.add_argument("--seeds", type=int, help="runs of every row")
    parser.add_argument("--epochs", type=int, help="passes over the training images, in place of the recipe's")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of the networks in training")
    parser.add_argument("--json", type=Path, help="write the report to this file too, anew after every row")
    parser.add_argument("--plot", type=Path, help="draw it, in the format that the file's ending names")
    parser.add_argument("--models", type=Path, help="folder for the trained trees, each named by recipe, tree and seed")
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, 5 epochs, 2 seeds, no UMAP")
    args = parser.parse_args(argv)
    command.fill_in(args, DEFAULTS | (QUICK if args.quick else {}))
    command.check(parser, args, "seeds", "epochs")
    return args


def versions() -> dict[str, str]:
    """What the figures were made with; packages that are not installed are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return machine.versions() | found


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its report; what a user can mend ends with one line, not with a traceback."""
    args = parse(argv)
    with command.at_work("clustering.py", args.threads), threadpool_limits(args.threads):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Measure every row and report."""
    if "umap-gmm" in args.against:
        import_umap()  # find out now that it is missing, not after an hour
    device = resolve_device(args.device)
    train, test = DATASETS[args.dataset](args.data_root)
    published = [dataclasses.asdict(other) for other in PUBLISHED if other.dataset == args.dataset]
    report = {
        **machine.about(device, args.threads),
        "argv": command.given(args),
        "versions": versions(),
        "images": {"train": len(train), "test": len(test)},
        "published": published,
        "rows": [],
    }
    print(f"{train.name}: {len(train):,} training and {len(test):,} test images, {args.seeds} seeds")
    print(aligned(HEADS))
    measured = (measure(method, args.seeds) for method in methods_of(args, train, test))
    command.collect(report, measured, lambda row: "\n".join(table_lines(row)), args.json)
    if published:
        print("\npublished, each in its own protocol:", *published_lines(published), "", sep="\n")
    if args.plot:
        from clustering_figure import save_figure  # matplotlib only where a picture is asked for

        save_figure(report, args.plot)
    print(json.dumps(report))


if __name__ == "__main__":
    main()

"""Which test images does the flat example sort wrongly, and why?

    python benchmarks/errors.py --models runs/0/model runs/1/model --json errors.json
    python benchmarks/errors.py --quick                                     two short trainings of scikit-learn's digits

The models are trained ones of the flat example, from several seeds. Reported are their errors by pair of digits, those
that all models share, how many of these the same gate gets wrong if it is trained with the labels, and how many come
with neighbours of another digit. Neighbours are those of the example's training, found among training and test images.
Labels serve the counts, and the gate that is trained with them. The last line is the whole report as one JSON object.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import command
import machine
import numpy as np
import torch
from recipes import mnist_flat, train
from scipy.optimize import linear_sum_assignment
from sklearn.metrics.cluster import contingency_matrix
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

import hmoevae as hm
from hmoevae.datasets import LabelledImages

K = 10
"""Neighbours of an image, as in the flat example."""


def digits_of(model: hm.HMoEVAE, images: LabelledImages) -> np.ndarray:
    """The digit of every image by the leaf that it is sent to, under the best match of leaves and digits."""
    leaf, y = model.predict(images.x).cpu().numpy(), images.y.numpy()
    digits, leaves = linear_sum_assignment(contingency_matrix(y, leaf), maximize=True)
    names, place = np.unique(leaf, return_inverse=True)
    digit_of = np.full(len(names), -1)  # a leaf without a digit sorts none of its images rightly
    digit_of[leaves] = np.unique(y)[digits]
    return digit_of[place]


def with_labels(images: LabelledImages, test: LabelledImages, args: argparse.Namespace) -> tuple[np.ndarray, float]:
    """The digit of every test image by the example's gate, trained with labels; and the seconds of the training."""
    usual = mnist_flat.make_training(len(images))
    training = replace(usual, epochs=args.epochs, init=images.y, init_epochs=args.epochs, agreement=None)
    start = time.process_time()
    model, _ = train(mnist_flat.make_tree(), images.x, replace(training, device=args.device), progress=False)
    return model.predict(test.x).cpu().numpy(), time.process_time() - start


def trained(images: LabelledImages, args: argparse.Namespace) -> list[hm.HMoEVAE]:
    """The models that were named, or two short trainings."""
    if not args.quick:
        return [hm.HMoEVAE.from_pretrained(folder) for folder in args.models]
    training = replace(mnist_flat.make_training(len(images)), epochs=args.epochs, device=args.device)
    seeds = (replace(training, seed=seed) for seed in range(2))
    return [train(mnist_flat.make_tree(), images.x, each, progress=False)[0] for each in seeds]


# --- neighbours -------------------------------------------------------------------------------------------------------


def mutual_neighbours(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The K nearest images of every image by strokes, `(n, K)`, and which of them have the image among their own."""
    features = hm.features.principal_components(hm.features.oriented_gradients(x), 50)
    table = NearestNeighbors(n_neighbors=K).fit(features).kneighbors(return_distance=False)
    own = np.arange(len(table))[:, None]
    return table, np.isin(table * len(table) + own, own * len(table) + table)


def of_neighbours(table: np.ndarray, mutual: np.ndarray, y: np.ndarray, some: np.ndarray) -> dict[str, float]:
    """Of some images: the share of neighbours of another digit, and how many images have mostly or no such ones."""
    other = y[table[some]] != y[some][:, None]
    n, n_other = mutual[some].sum(1), (other & mutual[some]).sum(1)
    return {
        "images": len(some),
        "other_digit": float(other.mean()),
        "mutual": float(mutual[some].mean()),
        "mutual_other_digit": float(n_other.sum() / max(1, n.sum())),
        "no_mutual": int((n == 0).sum()),
        "mostly_other": int((2 * n_other > n).sum()),
        "half_other": int(((2 * n_other == n) & (n > 0)).sum()),
        "none_other": int(((n_other == 0) & (n > 0)).sum()),
    }


# --- the report -------------------------------------------------------------------------------------------------------


def pairs_of(y: np.ndarray, found: list[np.ndarray], shared: np.ndarray, floor: np.ndarray) -> list[dict[str, Any]]:
    """A row for every pair of digits, the most frequent error first."""
    counts = [
        Counter(zip(y[wrong].tolist(), digit[wrong].tolist(), strict=True)) for digit in found for wrong in [digit != y]
    ]
    both = Counter(zip(y[shared].tolist(), found[0][shared].tolist(), strict=True))
    learnt = Counter(zip(y[floor != y].tolist(), floor[floor != y].tolist(), strict=True))
    rows = [
        {
            "digit": digit,
            "among": among,
            "errors": [count[digit, among] for count in counts],
            "errors_of_all": both[digit, among],
            "errors_with_labels": learnt[digit, among],
        }
        for digit, among in set().union(*counts, learnt)
    ]
    return sorted(rows, key=lambda row: (-statistics.fmean(row["errors"]), row["digit"], row["among"]))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Count, and report."""
    images, test = hm.datasets.digits() if args.quick else hm.datasets.mnist(args.data_root)
    y = test.y.numpy()
    found = [digits_of(model, test) for model in trained(images, args)]
    floor, seconds = with_labels(images, test, args)
    wrong = np.stack([digit != y for digit in found])
    shared = np.all(wrong, axis=0)
    table, mutual = mutual_neighbours(torch.cat([images.x, test.x]))
    labels = np.concatenate([images.y.numpy(), y])
    groups = {
        "all test images": np.arange(len(y)),
        "errors of any model": np.flatnonzero(wrong.any(0)),
        "errors of all models": np.flatnonzero(shared),
        "errors with labels": np.flatnonzero(floor != y),
    }
    return {
        **machine.about(torch.device("cpu"), args.threads),
        "dataset": images.name,
        "images": {"train": len(images), "test": len(test)},
        "errors": wrong.sum(1).tolist(),
        "errors_of_any": int(wrong.any(0).sum()),
        "errors_of_all": int(shared.sum()),
        "with_labels": {
            "epochs": args.epochs,
            "accuracy": float((floor == y).mean()),
            "errors": int((floor != y).sum()),
            "errors_of_all": int((shared & (floor != y)).sum()),
            "errors_of_any": int((wrong.any(0) & (floor != y)).sum()),
            "cpu_seconds": seconds,
        },
        "neighbours": {
            name: of_neighbours(table, mutual, labels, len(images) + some) for name, some in groups.items() if len(some)
        },
        "rows": pairs_of(y, found, shared, floor),
    }


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its report."""
    parser = command.parser(__doc__)
    parser.add_argument("--models", nargs="+", type=Path, help="folders of trained models of the flat example")
    parser.add_argument("--epochs", type=int, help="of the training with labels (default: 10)")
    parser.add_argument("--json", type=Path, help="write the report to this file too")
    parser.add_argument("--quick", action="store_true", help="two short trainings of scikit-learn's digits")
    args = parser.parse_args(argv)
    command.fill_in(args, {"epochs": 3 if args.quick else 10})
    command.check(parser, args, "epochs")
    if not args.quick and not args.models:
        parser.error("--models: expected folders of trained models, got none")
    with command.at_work("errors.py", args.threads), threadpool_limits(args.threads):
        report = run(args)
        command.write(report, args.json)
        print(json.dumps(report))


if __name__ == "__main__":
    main()

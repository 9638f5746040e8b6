"""Which tree over the leaves of a flat model, made without training, puts side by side what looks alike?

    python benchmarks/hierarchy.py --quick                        digits, one seed, half a minute
    python benchmarks/hierarchy.py --json hierarchy.json          digits, MNIST and Fashion-MNIST
    python benchmarks/hierarchy.py --datasets mnist --models runs/mnist_flat/model

    flat             the model's own tree, all leaves below one root.
    random           the mean of 100 binary trees drawn at random.
    gate, density    `hm.hierarchy(model, x, by=...)` from training images.
    mean images      Ward's linkage of the mean image of every leaf.
    mean gradients   the same of the means of `hm.features.oriented_gradients`.
    with labels      a yardstick, no method: the two groups are joined whose pairs of one label become purest.

Purity is the dendrogram purity of test images, and `train` that of the training images that the tree was made from.
`ordered` has the samples of every leaf in the order of the gates' confidence (`confidence=` of
`hm.metrics.dendrogram_purity`). Labels are read for these figures only. The last line is the whole report as one JSON
object.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import command
import machine
import numpy as np
import torch
from scipy.cluster.hierarchy import linkage

import hmoevae as hm
from hmoevae.datasets import LabelledImages
from hmoevae.spec import Tree

LAYER = hm.MLP((128,))
READ = {"digits": lambda _: hm.datasets.digits(), "mnist": hm.datasets.mnist, "fashion": hm.datasets.fashion_mnist}
DEFAULTS: dict[str, Any] = {"datasets": list(READ), "seeds": [0, 1, 2], "samples": 8000, "steps": 2400}
QUICK: dict[str, Any] = {"datasets": ["digits"], "seeds": [0], "samples": 1000, "steps": 300}
N_RANDOM = 100


def trained(train: LabelledImages, seed: int, steps: int, device: str) -> hm.HMoEVAE:
    """A flat model of ten leaves by the short recipe of the flat example; small images have no affine views."""
    batch_size, large = 125, train.x.shape[-1] >= 28
    tree = hm.Mixture.of(
        hm.VAE(10, LAYER, LAYER, hm.Gaussian(0.5, "sigmoid")),
        10,
        gate=hm.Conv() if large else hm.MLP((128,)),
        balance=hm.Balance("kl", weight=20.0),
    )
    training = hm.Training(
        epochs=max(2, round(steps * batch_size / len(train.x))),
        batch_size=batch_size,
        lr=2e-3,
        lr_schedule="cosine",
        view=hm.views.RandomAffine() if large else None,
        agreement=hm.Agreement(partner=hm.views.Neighbour(), alone=0.5),
        seed=seed,
        device=device,
    )
    torch.manual_seed(seed)
    model = hm.HMoEVAE(tree, tuple(train.x.shape[1:]), objective="elbo")
    command.whole(hm.fit(model, train.x, training, progress=False))
    return model


def hierarchy_of(model: hm.HMoEVAE, pairs: np.ndarray) -> hm.Hierarchy:
    """The hierarchy that joins two nodes at a time, numbered as scipy does."""
    groups = [(leaf,) for leaf in range(model.plan.n_leaves)]
    merges = []
    for height, (a, b) in enumerate(pairs.astype(int).tolist(), 1):
        merges.append(hm.Merge(groups[a], groups[b], float(height)))
        groups.append(merges[-1].leaves)
    return hm.Hierarchy(model, tuple(merges))


def of_means(model: hm.HMoEVAE, features: torch.Tensor, leaf: torch.Tensor) -> hm.Hierarchy:
    """Ward's linkage of the leaves' means."""
    total = torch.zeros(model.plan.n_leaves, features.shape[1]).index_add_(0, leaf, features)
    means = total / leaf.bincount(minlength=model.plan.n_leaves).clamp_min(1).unsqueeze(1)
    return hierarchy_of(model, linkage(means.numpy(), "ward")[:, :2])


def at_random(model: hm.HMoEVAE, rng: np.random.Generator) -> hm.Hierarchy:
    """A binary tree made by joining two nodes that are drawn evenly."""
    n = model.plan.n_leaves
    left, pairs = list(range(n)), []
    for step in range(n - 1):
        pairs.append([left.pop(rng.integers(len(left))) for _ in range(2)])
        left.append(n + step)
    return hierarchy_of(model, np.array(pairs))


def by_labels(model: hm.HMoEVAE, y: torch.Tensor, leaf: torch.Tensor) -> hm.Hierarchy:
    """Join the two groups first of which a pair of one label, one from each, is purest in expectation."""
    n, kinds = model.plan.n_leaves, y.unique(return_inverse=True)[1]
    counts = dict(enumerate(np.zeros((n, int(kinds.max()) + 1))))
    for c, kind in zip(leaf.tolist(), kinds.tolist(), strict=True):
        counts[c][kind] += 1
    pairs = []
    for step in range(n - 1):
        gain = {
            (a, b): (p * q * (p + q)).sum() / max((p + q).sum() * p.sum() * q.sum(), 1)
            for a, p in counts.items()
            for b, q in counts.items()
            if a < b
        }
        a, b = max(gain, key=lambda pair: gain[pair])
        pairs.append((a, b))
        counts[n + step] = counts.pop(a) + counts.pop(b)
    return hierarchy_of(model, np.array(pairs))


def rows_of(
    model: hm.HMoEVAE, train: LabelledImages, test: LabelledImages, about: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """One row for every tree."""
    sides = {"train": train, "test": test}
    proba = {name: model.predict_proba(side.x) for name, side in sides.items()}
    leaf = {name: p.argmax(1) for name, p in proba.items()}
    accuracy = hm.metrics.accuracy(test.y, leaf["test"])

    def purity(tree: Tree | hm.Hierarchy, name: str, *, ordered: bool = False) -> float:
        sure = proba[name].amax(1) if ordered else None
        return hm.metrics.dendrogram_purity(sides[name].y, leaf[name], tree, confidence=sure)

    def row(what: str, *trees: Tree | hm.Hierarchy, seconds: float | None = None) -> dict[str, Any]:
        mean = {name: float(np.mean([purity(tree, name) for tree in trees])) for name in sides}
        ordered = float(np.mean([purity(tree, "test", ordered=True) for tree in trees]))
        figures = {"purity": mean["test"], "ordered": ordered, "train": mean["train"], "cpu_seconds": seconds}
        return {**about, "what": what, "accuracy": accuracy, **figures}

    yield row("flat", model.tree)
    rng = np.random.default_rng(0)
    yield row("random", *(at_random(model, rng) for _ in range(N_RANDOM)))
    for by in ("gate", "density"):
        start = time.process_time()
        tree = hm.hierarchy(model, train.x, by=by)
        yield row(by, tree, seconds=time.process_time() - start)
    yield row("mean images", of_means(model, train.x.flatten(1), leaf["train"]))
    yield row("mean gradients", of_means(model, hm.features.oriented_gradients(train.x), leaf["train"]))
    yield row("with labels", by_labels(model, train.y, leaf["train"]))


def measured(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of all data sets and seeds."""
    for name in args.datasets:
        train, test = READ[name](args.data_root)
        step = max(1, len(train.x) // args.samples)
        train = LabelledImages(train.name, train.x[::step], train.y[::step])
        for seed in args.seeds:
            if args.models is None:
                model = trained(train, seed, args.steps, args.device)
            else:
                model = hm.HMoEVAE.from_pretrained(args.models[args.seeds.index(seed)])
            yield from rows_of(model, train, test, {"dataset": name, "seed": seed, "images": len(train.x)})


def shown(row: dict[str, Any]) -> str:
    """One line."""
    figures = (f"{name} {100 * row[name]:.2f} %" for name in ("purity", "ordered", "train", "accuracy"))
    seconds = "" if row["cpu_seconds"] is None else f"   {row['cpu_seconds']:.2f} CPU s"
    return f"{row['dataset']:8} seed {row['seed']}   {row['what']:14} {'   '.join(figures)}{seconds}"


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its report."""
    parser = command.parser(__doc__)
    parser.add_argument("--datasets", choices=list(READ), nargs="+")
    about = "folders of trained flat models of one data set, one for every seed, in place of trainings"
    parser.add_argument("--models", type=Path, nargs="+", help=about)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--samples", type=int, help="training images")
    parser.add_argument("--steps", type=int, help="steps of the training")
    parser.add_argument("--json", type=Path, help="write the report to this file too")
    parser.add_argument("--quick", action="store_true", help="digits, one seed, a short training")
    args = parser.parse_args(argv)
    command.fill_in(args, DEFAULTS | (QUICK if args.quick else {}))
    command.check(parser, args, "samples", "steps")
    if args.models is not None and (len(args.models) != len(args.seeds) or len(args.datasets) != 1):
        parser.error("--models: expected one data set, and one model for every seed")
    with command.at_work("hierarchy.py", args.threads):
        report: dict[str, Any] = {**machine.about(torch.device("cpu"), args.threads), "argv": command.given(args)}
        report["rows"] = []
        command.collect(report, measured(args), shown, args.json)
        print(json.dumps(report))


if __name__ == "__main__":
    main()

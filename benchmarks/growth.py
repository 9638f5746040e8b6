"""Does a tree find itself? Kinds and their number, rare kinds, styles and new kinds on MNIST, from one leaf.

    python benchmarks/growth.py --quick                                   a few thousand images, some minutes
    python benchmarks/growth.py --tasks kinds --json growth_kinds.json    MNIST, five seeds

    kinds      number of kinds at the first level, accuracy and NMI of the test images by kind (Hungarian match).
    unequal    MNIST's 0, 1 and 2 as 60, 30 and 10 %: the same, and whether one kind holds most of the rarest digit and
               little else.
    rare       one digit, another for each seed, thinned to 1 % of all images: whether a kind holds most of it and
               little else, among test images with the same shares.
    styles     a tree grown to 30 leaves against ten kinds of three styles given by hand: held-out ELBO.
    barred     a stroke through half of the sevens (`barred_sevens.py`): share of the test sevens whose leaf holds more
               of their own sort, stroke drawn or not, than of the other.
    new        nine digits are known, the tenth comes later: share of its test images that the new leaf of
               `hm.add_leaf` takes, and share of the others that it takes.

No label is read by training. The last line is the whole report as one JSON object.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command
import machine
import numpy as np
import torch
from barred_sevens import DRAWING_SEED, SEVEN, with_bars
from torch import Tensor
from unequal import SHARES, unequal

import hmoevae as hm
from hmoevae.datasets import LabelledImages
from hmoevae.errors import CollapseWarning

LAYER = hm.MLP((128,))
LEAF = hm.VAE(latent_dim=10, encoder=LAYER, decoder=LAYER, likelihood=hm.Gaussian(scale=0.5, mean="sigmoid"))
N_DIGITS = 10
NEW_STEPS = 1000
"""Steps of each training of a new leaf."""
DEFAULTS: dict[str, Any] = {
    "tasks": ["kinds", "unequal", "rare", "styles", "barred", "new"],
    "seeds": [0, 1, 2, 3, 4],
    "samples": 60_000,
    "steps": 2160,
}
QUICK: dict[str, Any] = {"tasks": ["kinds", "unequal", "barred"], "seeds": [0], "samples": 4000, "steps": 300}
Split = tuple[Tensor, Tensor]


def training_of(args: argparse.Namespace, n: int, seed: int) -> hm.Training:
    """The training of the kinds: the start, agreement of views and neighbours, then gates and experts together."""
    batch = 250 if n >= 20_000 else 125
    return hm.Training(
        epochs=max(4, round(args.steps / (n / batch))),
        batch_size=batch,
        lr=1e-3,
        lr_schedule="cosine",
        view=hm.views.RandomAffine(),
        agreement=hm.Agreement(partner=hm.views.Neighbour(features=hm.features.oriented_gradients), alone=0.3),
        precision="bf16",
        seed=seed,
        device=args.device,
    )


def grown(args: argparse.Namespace, x: Tensor, seed: int, max_rounds: int | None = 0) -> hm.Grown:
    """A tree, grown from one leaf; without rounds of splits, its kinds."""
    growth = hm.Growth(max_leaves=30, max_rounds=max_rounds, gate=hm.Conv(), style_gate=LAYER, round_epochs=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        warnings.filterwarnings("ignore", "precision=")  # fp32 where there is no bfloat16
        return hm.grow(LEAF, x, growth, training_of(args, len(x), seed), progress=False)


def shuffled(x: Tensor, y: Tensor, n: int, seed: int) -> Split:
    """Some samples, in another order for every seed."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:n]
    return x[order], y[order]


def holds(y: Tensor, cluster: Tensor, kind: int) -> tuple[float, bool]:
    """Share of a kind's samples in the cluster that holds most of them; and whether that is most, and little else."""
    of_kind = cluster[y == kind].bincount(minlength=int(cluster.max()) + 1)
    best = int(of_kind.argmax())
    n, own = int(of_kind.sum()), int(of_kind[best])
    return own / n, own > n / 2 and own > int((cluster == best).sum()) / 2


def kinds(args: argparse.Namespace, train: LabelledImages, test: LabelledImages, seed: int) -> dict[str, Any]:
    """The number of kinds of all of MNIST, and how well they match."""
    x, _ = shuffled(train.x, train.y, args.samples, seed)
    result = grown(args, x, seed)
    level = min(1, result.model.plan.depth)
    scores = hm.metrics.clustering_scores(test.y, result.model.predict(test.x, level=level))
    return {"kinds": len(result.model.plan.level(level)), "leaves": result.model.plan.n_leaves, **scores}


def unequal_kinds(args: argparse.Namespace, train: LabelledImages, test: LabelledImages, seed: int) -> dict[str, Any]:
    """Kinds of 60, 30 and 10 %."""
    x, y = shuffled(*unequal(train, 5000), 5000, seed)
    del y
    x_test, y_test = unequal(test, 1000)
    model = grown(args, x, seed).model
    cluster = model.predict(x_test, level=min(1, model.plan.depth))
    share, found = holds(y_test, cluster, len(SHARES) - 1)
    n_kinds = len(model.plan.level(min(1, model.plan.depth)))
    return {"kinds": n_kinds, "rarest": share, "found": found, **hm.metrics.clustering_scores(y_test, cluster)}


def rare(args: argparse.Namespace, train: LabelledImages, test: LabelledImages, seed: int) -> dict[str, Any]:
    """A kind of one per cent."""
    kind = (2 * seed + 1) % N_DIGITS
    x, y = shuffled(*thinned(train, kind), args.samples, seed)
    x_test, y_test = thinned(test, kind)
    model = grown(args, x, seed).model
    cluster = model.predict(x_test, level=min(1, model.plan.depth))
    share, found = holds(y_test, cluster, kind)
    rest = hm.metrics.clustering_scores(y_test, cluster)
    n_rare = int((y == kind).sum())
    return {"kind": kind, "n_rare": n_rare, "kinds": len(model.plan.level(1)), "share": share, "found": found, **rest}


def thinned(split: LabelledImages, kind: int) -> Split:
    """All samples, but of one kind only as many as are one per cent of the result."""
    others = (split.y != kind).nonzero().squeeze(1)
    some = (split.y == kind).nonzero().squeeze(1)[: round(len(others) / 99)]
    rows = torch.cat([others, some])
    return split.x[rows], split.y[rows]


def styles(args: argparse.Namespace, train: LabelledImages, test: LabelledImages, seed: int) -> dict[str, Any]:
    """A grown tree against one given by hand, with as many leaves and as long a training."""
    x, _ = shuffled(train.x, train.y, args.samples, seed)
    start = time.process_time()
    result = grown(args, x, seed, max_rounds=None)
    seconds = time.process_time() - start
    n_epochs = sum(len(history) for history in result.histories)
    kind = hm.Mixture.of(LEAF, 3, gate=LAYER, balance=hm.Balance("kl", 2.0))
    tree = hm.Mixture.of(kind, N_DIGITS, gate=hm.Conv(), balance=hm.Balance("kl", 20.0))
    torch.manual_seed(seed)
    by_hand = hm.HMoEVAE(tree, tuple(x.shape[1:]), objective="elbo")
    epochs = training_of(args, len(x), seed).epochs
    options = {"epochs": n_epochs} if args.as_long else {"epochs": epochs + (n_epochs - epochs) // 2}
    training = hm.Training(**{**vars(training_of(args, len(x), seed)), **options})
    start = time.process_time()
    command.whole(hm.fit(by_hand, x, training, progress=False))
    hand_seconds = time.process_time() - start
    row: dict[str, Any] = {"leaves": result.model.plan.n_leaves, "kinds": len(result.model.plan.level(1))}
    row |= {"cpu_seconds": seconds, "by_hand_cpu_seconds": hand_seconds, "by_hand_epochs": training.epochs}
    for name, model in (("", result.model), ("by_hand_", by_hand)):
        row[f"{name}elbo"] = -model.evaluate(test.x)["elbo"]
        row[f"{name}log_p"] = model.score_samples(test.x, n_importance=16).mean().item()
        row[f"{name}accuracy"] = hm.metrics.clustering_scores(test.y, model.predict(test.x, level=1))["accuracy"]
    return row


def barred(args: argparse.Namespace, train: LabelledImages, test: LabelledImages, seed: int) -> dict[str, Any]:
    """Sevens with a stroke and without one."""
    draw = np.random.default_rng(DRAWING_SEED)
    (changed, _), (changed_test, drawn) = (with_bars(split, draw) for split in (train, test))
    x, _ = shuffled(changed.x, changed.y, args.samples, seed)
    model = grown(args, x, seed, max_rounds=None).model
    sevens = changed_test.y == SEVEN
    leaf, drawn = model.predict(changed_test.x[sevens]), drawn[sevens]
    counts = torch.zeros(model.plan.n_leaves, 2, dtype=torch.long)
    counts.index_put_((leaf, drawn.long()), torch.ones_like(leaf), accumulate=True)
    with_stroke = counts[:, 1] > counts[:, 0]
    return {
        "leaves": model.plan.n_leaves,
        "kinds": len(model.plan.level(1)),
        "purity": (with_stroke[leaf] == drawn).float().mean().item(),
        "found": with_stroke[leaf][drawn].float().mean().item(),
        "leaves_of_sevens": {model.plan.leaves[i].path: counts[i].tolist() for i in counts.sum(1).nonzero()[:, 0]},
    }


def new(args: argparse.Namespace, train: LabelledImages, test: LabelledImages, seed: int) -> dict[str, Any]:
    """Nine digits, and then a tenth."""
    kind = (3 * seed + 2) % N_DIGITS
    x, y = shuffled(train.x, train.y, args.samples, seed)
    model = grown(args, x[y != kind], seed).model
    before = model.predict(test.x)
    epochs = max(1, round(NEW_STEPS * 125 / (0.05 * len(x))))
    training = hm.Training(epochs=epochs, batch_size=125, lr=1e-3, seed=seed, device=args.device)
    more = hm.add_leaf(model, x, training, progress=False)
    taken = more.predict(test.x) == more.plan.n_leaves - 1
    others = test.y != kind
    kept = (more.predict(test.x) == before)[others].float().mean().item()
    share, wrong = (taken[rows].float().mean().item() for rows in (~others, others))
    return {"kind": kind, "kinds": model.plan.n_leaves, "taken": share, "of_others": wrong, "kept": kept}


TASKS: dict[str, Callable[[argparse.Namespace, LabelledImages, LabelledImages, int], dict[str, Any]]] = {
    "kinds": kinds,
    "unequal": unequal_kinds,
    "rare": rare,
    "styles": styles,
    "barred": barred,
    "new": new,
}


def run(args: argparse.Namespace) -> None:
    """Grow, score and report."""
    train, test = hm.datasets.mnist(args.data_root)
    report = {**machine.about(torch.device("cpu"), args.threads), "argv": command.given(args)}
    rows: list[dict[str, Any]] = []
    for name in args.tasks:
        for seed in args.seeds:
            start = time.process_time()
            row = TASKS[name](args, train, test, seed)
            rows.append({"task": name, "seed": seed, **row, "seconds": time.process_time() - start})
            print(", ".join(f"{key} {shown(value)}" for key, value in rows[-1].items()), flush=True)
            command.write(report | {"rows": rows}, args.json)
        numbers = [key for key, value in rows[-1].items() if isinstance(value, bool | int | float) and key != "seed"]
        own = [row for row in rows if row["task"] == name]
        means = ", ".join(f"{key} {statistics.mean(row[key] for row in own):.4g}" for key in numbers)
        print(f"{name}, mean of {len(own)}: {means}", flush=True)
    report |= {"load_average_after": machine.load_average(), "rows": rows}
    command.write(report, args.json)
    print(json.dumps(report))


def shown(value: Any) -> str:
    """A value in a line of results."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its report."""
    parser = command.parser(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS))
    parser.add_argument("--samples", type=int, help="training images")
    parser.add_argument("--steps", type=int, help="steps of the training of the kinds")
    parser.add_argument("--as-long", action="store_true", help="as many epochs by hand as all rounds together have")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--json", type=Path, help="write the report to this file too")
    parser.add_argument("--quick", action="store_true", help="4,000 images, few steps, one seed, three tasks")
    args = parser.parse_args(argv)
    command.fill_in(args, DEFAULTS | (QUICK if args.quick else {}))
    command.check(parser, args, "samples", "steps")
    with command.at_work("growth.py", args.threads):
        run(args)


if __name__ == "__main__":
    main()

"""Which score that needs no labels finds the best of several trainings?

    python benchmarks/score.py --json score.json                  every setting, about half an hour of one core
    python benchmarks/score.py --json score.json --minutes 10     some of it; what the file has is not run again
    python benchmarks/score.py --quick                            scikit-learn's digits, two epochs, few settings

Each run trains the flat example on 10,000 of MNIST's training images, with one setting changed, on a short schedule.
The scores are of 5,000 other training images, without their labels, and of pairs of them, which are the same for every
run: two changed copies of an image, or an image and a neighbour. The accuracy is that of the test split. Reported are,
of each score, Spearman's rank correlation with the accuracy over all runs and over the seeds of one setting, and the
accuracy of the run that it chooses. The last line is the whole report as one JSON object.
"""

import argparse
import functools
import itertools
import json
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import command
import machine
import numpy as np
import torch
from recipes import STRONG, mnist_flat, train
from scipy.stats import spearmanr
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits
from torch import Tensor

import hmoevae as hm
from hmoevae.datasets import LabelledImages
from hmoevae.errors import CollapseWarning
from hmoevae.views import ViewLike

MANY, FEW = 5, 2
"""Seeds of the settings whose seeds are compared with each other, and of the others."""
N_KEPT = 2000
"""Of so many held-out images the leaf is kept in the report, to compare runs with each other."""
LIKE_THE_OTHERS, WITH_LABELS = "like the other runs", "for comparison: accuracy of the held-out images"
STROKES = hm.views.Neighbour(k=10, features=hm.features.oriented_gradients, mutual=True)
PIXELS = hm.views.Neighbour(k=10, mutual=True)
CHANGE = hm.views.RandomAffine()


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a user may choose; the defaults are those of the flat example.

    Attributes:
        n_seeds: Runs, from seed 0 on.
        starts_from_kinds: Start from `hm.find_kinds`, else from random weights.
        partner: What makes an image's partner.
        view: What the gate sees.
        alone: Share of the epochs in which the gate learns alone.
        balance: Weight of the balance.
        gate: The gate's network; `None` is the example's.
        length: Factor of the number of epochs.
    """

    n_seeds: int = FEW
    starts_from_kinds: bool = True
    partner: ViewLike | None = STROKES
    view: ViewLike | None = CHANGE
    alone: float = 1 / 3
    balance: float = 20.0
    gate: hm.Conv | None = None
    length: float = 1.0


SETTINGS = {
    "as the example": Setting(n_seeds=MANY),
    "random start": Setting(n_seeds=MANY, starts_from_kinds=False),
    "random start, neighbours by pixels": Setting(starts_from_kinds=False, partner=PIXELS),
    "random start, plain gate": Setting(starts_from_kinds=False, gate=hm.Conv()),
    "random start, balance 5": Setting(starts_from_kinds=False, balance=5.0),
    "balance 5": Setting(balance=5.0),
    "balance 60": Setting(balance=60.0),
    "3 neighbours": Setting(partner=replace(STROKES, k=3)),
    "30 neighbours, not mutual": Setting(partner=replace(STROKES, k=30, mutual=False)),
    "no neighbours": Setting(partner=None),
    "no changes": Setting(view=None),
    "stronger changes": Setting(view=STRONG),
    "gate never alone": Setting(alone=0.0),
    "gate always alone": Setting(alone=1.0),
    "a quarter of the epochs": Setting(length=0.25),
}
QUICK = ("as the example", "random start")


# --- the runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Data:
    """Images to train on, others to score without labels, and the test split."""

    train: LabelledImages
    held_out: LabelledImages
    test: LabelledImages


def load(args: argparse.Namespace) -> Data:
    """The training images in a random order: the first to train on, the next held out."""
    images, test = hm.datasets.digits() if args.quick else hm.datasets.mnist(args.data_root)
    n, n_held_out = (800, 400) if args.quick else (10_000, 5000)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    rows = order[:n], order[n : n + n_held_out]
    first, second = (LabelledImages(images.name, images.x[part], images.y[part]) for part in rows)
    return Data(first, second, test)


@functools.lru_cache(1)
def kinds_of(x: Tensor, seed: int) -> Tensor:
    """The start, which the settings of a seed share."""
    return hm.find_kinds(x, max_kinds=10, seed=seed).labels


def run_one(setting: Setting, x: Tensor, seed: int, args: argparse.Namespace) -> hm.HMoEVAE:
    """Train as a setting says."""
    tree = mnist_flat.make_tree()
    tree = replace(tree, balance=hm.Balance("kl", setting.balance), gate=setting.gate or tree.gate)
    training = replace(
        mnist_flat.make_training(len(x)),
        epochs=max(1, round(args.epochs * setting.length)),
        view=setting.view,
        agreement=hm.Agreement(partner=setting.partner, alone=setting.alone),
        seed=seed,
        device=args.device,
    )
    training = replace(training, init=kinds_of(x, seed) if setting.starts_from_kinds else "random")
    model, _ = train(tree, x, training, progress=False)
    return model


# --- the scores -------------------------------------------------------------------------------------------------------


Pairs = dict[str, tuple[Tensor, Tensor]]


def pairs_of(x: Tensor) -> Pairs:
    """By name, two images for every image: the same for all runs, whatever they were trained with."""
    generator, rows = torch.Generator().manual_seed(0), torch.arange(len(x))

    def changed(images: Tensor) -> Tensor:
        return CHANGE(images, generator=generator)

    neighbour = STROKES.prepare(x)(x, index=rows, generator=generator)
    return {
        "copies": (changed(x), changed(x)),
        "neighbours": (x, neighbour),
        "changed neighbours": (changed(x), changed(neighbour)),
    }


def kappa(p: np.ndarray, q: np.ndarray) -> float:
    """Share of pairs in one leaf, corrected for chance as by Scott (1955): 0 by chance, also in one leaf for all."""
    first, second = p.argmax(1), q.argmax(1)
    share = np.bincount(np.concatenate([first, second]), minlength=p.shape[1]) / (2 * len(p))
    chance = (share**2).sum()
    return 0.0 if chance == 1 else float(((first == second).mean() - chance) / (1 - chance))


def leaf_information(p: np.ndarray, q: np.ndarray) -> float:
    """Mutual information of the most probable leaves of a pair, as a share of the log of their number."""
    joint = np.zeros((p.shape[1], p.shape[1]))
    np.add.at(joint, (p.argmax(1), q.argmax(1)), 0.5 / len(p))
    joint += joint.T
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    used = joint > 0
    return float((joint[used] * np.log(joint[used] / apart[used])).sum() / np.log(p.shape[1]))


def objective(p: np.ndarray, q: np.ndarray) -> float:
    """What training makes large, but for its sign: agreement by 10 and the even use of leaves by 20."""
    use = (p.mean(0) + q.mean(0)) / 2
    uneven = np.log(len(use)) + (use * np.log(np.maximum(use, 1e-30))).sum()
    return float(10 * np.log(np.maximum((p * q).sum(1), 1e-30)).mean() - 20 * uneven)


def partner_in(partners: Tensor) -> ViewLike:
    """What makes these the partners of samples."""
    return lambda _: partners


def scores_of(model: hm.HMoEVAE, x: Tensor, pairs: Pairs) -> dict[str, float]:
    """Every score of one run that needs no other run."""
    found: dict[str, float] = {}
    for name, pair in pairs.items():
        p, q = (model.predict_proba(images).double().cpu().numpy() for images in pair)
        found[f"kappa, {name}"] = kappa(p, q)
        found[f"information, {name}"] = hm.metrics.agreement_score(model, pair[0], partner=partner_in(pair[1]))
        found[f"leaf information, {name}"] = leaf_information(p, q)
        found[f"objective, {name}"] = objective(p, q)
    share = model.predict_proba(x)
    found["confidence"] = float(share.amax(1).mean())
    found["usage entropy"] = hm.metrics.usage_entropy(share)
    generator = torch.Generator(model.device).manual_seed(0)
    found["bound"] = -model.evaluate(x, generator=generator)["elbo"]
    return found


def rows_of(data: Data, args: argparse.Namespace, made: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """A row for every run that was not made before, all settings with one seed before any with the next."""
    pairs, start = pairs_of(data.held_out.x), time.monotonic()
    runs = [(seed, name) for seed in range(MANY) for name in args.settings]
    for seed, name in runs:
        if seed >= min(SETTINGS[name].n_seeds, args.seeds) or (name, seed) in made:
            continue
        if args.minutes is not None and time.monotonic() - start > 60 * args.minutes:
            return
        before = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CollapseWarning)  # some settings are meant to fail
            model = run_one(SETTINGS[name], data.train.x, seed, args)
        leaf = model.predict(data.held_out.x).cpu()
        yield {
            "setting": name,
            "seed": seed,
            **hm.metrics.clustering_scores(data.test.y, model.predict(data.test.x)),
            "accuracy_held_out": hm.metrics.accuracy(data.held_out.y, leaf),
            "scores": scores_of(model, data.held_out.x, pairs),
            "leaves": "".join(map(str, leaf[:N_KEPT].tolist())),
            "cpu_seconds": time.process_time() - before,
        }


# --- the report -------------------------------------------------------------------------------------------------------


def like_the_others(rows: list[dict[str, Any]]) -> list[float]:
    """Of each run, the mean adjusted Rand index with all others: what is stable is likely right."""
    leaves = [np.array([*map(int, row["leaves"])]) for row in rows]
    alike = np.eye(len(rows))
    for i, j in itertools.combinations(range(len(rows)), 2):
        alike[i, j] = alike[j, i] = adjusted_rand_score(leaves[i], leaves[j])
    return ((alike.sum(1) - 1) / (len(rows) - 1)).tolist()


def ranks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How well each score ranks the runs, by the accuracy of the test split and by that of the held-out images.

    The better half of the runs differs little; what the labels of the held-out images make of it is the most to expect.
    """
    if len(rows) < 3:
        return []

    def scored(some: list[dict[str, Any]]) -> dict[str, list[float]]:
        found = {name: [row["scores"][name] for row in some] for name in some[0]["scores"]}
        found[LIKE_THE_OTHERS] = like_the_others(some)
        return found | {WITH_LABELS: [row["accuracy_held_out"] for row in some]}

    def correlation(values: list[float], some: list[dict[str, Any]], by: str) -> float | None:
        accuracy = [row[by] for row in some]
        if min(len(set(values)), len(set(accuracy))) < 2:  # not defined
            return None
        found: Any = spearmanr(values, accuracy)
        return float(found.statistic)

    better = sorted(range(len(rows)), key=lambda i: -rows[i]["accuracy"])[: max(3, len(rows) // 2)]
    seeds = {name: [row for row in rows if row["setting"] == name] for name in SETTINGS}
    of_seeds = {name: (some, scored(some)) for name, some in seeds.items() if len(some) == MANY}
    return [
        {
            "score": name,
            "correlation": correlation(values, rows, "accuracy"),
            "correlation_held_out": correlation(values, rows, "accuracy_held_out"),
            "correlation_better_half": correlation([values[i] for i in better], [rows[i] for i in better], "accuracy"),
            "of_seeds": {
                setting: correlation(scores[name], some, "accuracy") for setting, (some, scores) in of_seeds.items()
            },
            "chosen": rows[int(np.argmax(values))]["accuracy"],
            "chosen_setting": rows[int(np.argmax(values))]["setting"],
            "chosen_of_seeds": {
                setting: some[int(np.argmax(scores[name]))]["accuracy"] for setting, (some, scores) in of_seeds.items()
            },
        }
        for name, values in scored(rows).items()
    ]


def of_settings(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The accuracy of each setting."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["setting"], []).append(row["accuracy"])
    return [
        {"setting": name, "runs": len(some), "mean": statistics.fmean(some), "worst": min(some), "best": max(some)}
        for name, some in found.items()
    ]


def shown(row: dict[str, Any]) -> str:
    """One line."""
    figures = "   ".join(f"{name} {value:.4g}" for name, value in row["scores"].items())
    where = f"{row['setting']}, seed {row['seed']}"
    return f"{where:42} accuracy {100 * row['accuracy']:.2f}   {figures}   {row['cpu_seconds']:.0f} CPU s"


def rows_before(file: Path | None, report: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of the same data and schedule that `file` has.

    Raises:
        OSError: It has others.
    """
    if file is None or not file.exists():
        return []
    found = json.loads(file.read_text(encoding="utf-8"))
    if any(found[name] != report[name] for name in ("dataset", "images", "epochs")):
        raise OSError(f"--json: expected no file, or one of the same data and epochs, got {file}")
    return found["rows"]


def run(args: argparse.Namespace) -> None:
    """Train what is missing, and report."""
    data = load(args)
    report: dict[str, Any] = {
        **machine.about(torch.device("cpu"), args.threads),
        "dataset": data.train.name,
        "images": {"train": len(data.train), "held_out": len(data.held_out), "test": len(data.test)},
        "epochs": args.epochs,
    }
    rows = rows_before(args.json, report)

    def collected(new: Iterator[dict[str, Any]]) -> None:
        for row in new:
            print(shown(row), flush=True)
            rows.append(row)
            report["load_average_after"] = machine.load_average()
            report["rows"] = rows
            command.write(report, args.json)

    collected(rows_of(data, args, {(row["setting"], row["seed"]) for row in rows}))
    report.update(candidates=ranks(rows), settings=of_settings(rows), rows=rows)
    command.write(report, args.json)
    print(json.dumps(report))


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its report."""
    parser = command.parser(__doc__)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), metavar="SETTING", help="; ".join(SETTINGS))
    parser.add_argument("--seeds", type=int, default=MANY, help="of each setting, at most")
    parser.add_argument("--epochs", type=int, help="of every run")
    parser.add_argument("--minutes", type=float, help="begin no run after so many")
    parser.add_argument("--json", type=Path, help="write the report to this file too, anew after every run")
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, two epochs, few settings")
    args = parser.parse_args(argv)
    command.fill_in(args, {"settings": list(QUICK if args.quick else SETTINGS), "epochs": 2 if args.quick else 10})
    command.check(parser, args, "seeds", "epochs", "minutes")
    with command.at_work("score.py", args.threads), threadpool_limits(args.threads):
        run(args)


if __name__ == "__main__":
    main()

"""What does the balance do to kinds that are not equally common, and what helps? MNIST's 0, 1 and 2 as 60, 30 and 10 %.

    python benchmarks/unequal.py --seeds 5 --json unequal.json

Three experts, three kinds: a perfect answer has leaves of 60, 30 and 10 %. A balance that pulls towards a third each
has to split the common kind and to merge the rare one. Every row is a way to train, scored on test images of the same
shares; the largest leaf of a perfect answer is 0.6, and the rarest kind counts as found where one leaf holds
most of it and little else. The last line is the whole report as one JSON object.
"""

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import command
import machine
import torch
from torch import Tensor

import hmoevae as hm
from hmoevae.datasets import LabelledImages
from hmoevae.errors import CollapseWarning
from hmoevae.training import resolve_device

KINDS = (0, 1, 2)
SHARES = (0.6, 0.3, 0.1)
TRAIN, TEST = 5000, 1000
LAYER = hm.MLP((128,))
EXPERT = hm.VAE(latent_dim=10, encoder=LAYER, decoder=LAYER)


@dataclass(frozen=True, slots=True)
class Way:
    """A way to train.

    Attributes:
        balance: Of the only gate.
        prior: Of the same.
        objective: What is minimised.
        gate: The network of the gate.
        fit: Further arguments of `hm.fit`.
    """

    balance: hm.Balance
    prior: Literal["uniform", "learned"] = "uniform"
    objective: str = "elbo"
    gate: hm.MLP | hm.Conv = LAYER
    fit: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


AGREEING = MappingProxyType({"view": hm.views.RandomAffine(), "agreement": hm.Agreement(alone=1 / 3)})
FROM_KMEANS = MappingProxyType({"init": "kmeans", "init_epochs": 3})
WAYS = {
    "variance 0.1, `expected` (the defaults)": Way(hm.Balance("variance", 0.1), objective="expected"),
    "none, `expected`": Way(hm.Balance("kl", 0.0), objective="expected"),
    "kl 20, `elbo`": Way(hm.Balance("kl", 20.0)),
    "kl 20, `elbo`, learned prior": Way(hm.Balance("kl", 20.0), "learned"),
    "kl 1, `elbo`": Way(hm.Balance("kl", 1.0)),
    "kl 1, `elbo`, learned prior": Way(hm.Balance("kl", 1.0), "learned"),
    "none, `elbo`": Way(hm.Balance("kl", 0.0)),
    "kl 1, `elbo`, k-means start": Way(hm.Balance("kl", 1.0), fit=FROM_KMEANS),
    "none, `elbo`, k-means start": Way(hm.Balance("kl", 0.0), fit=FROM_KMEANS),
    "agreement 10, kl 20, `elbo`": Way(hm.Balance("kl", 20.0), gate=hm.Conv(), fit=AGREEING),
    "agreement 10, kl 10, `elbo`": Way(hm.Balance("kl", 10.0), gate=hm.Conv(), fit=AGREEING),
}


def unequal(split: LabelledImages, n: int) -> tuple[Tensor, Tensor]:
    """The first images of every kind, in their shares of `n`."""
    counts = [round(n * share) for share in SHARES]
    rows = [(split.y == kind).nonzero()[:count, 0] for kind, count in zip(KINDS, counts, strict=True)]
    return split.x[torch.cat(rows)], split.y[torch.cat(rows)]


def one_run(way: Way, x: Tensor, x_test: Tensor, y_test: Tensor, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train one way and score the gate."""
    torch.manual_seed(seed)
    tree = hm.Mixture.of(EXPERT, len(KINDS), gate=way.gate, balance=way.balance, prior=way.prior)
    model = hm.HMoEVAE(tree, input_shape=tuple(x.shape[1:]), objective=way.objective)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)  # it is what we count
        training = hm.Training(epochs=args.epochs, batch_size=100, seed=seed, device=args.device, **way.fit)
        command.whole(hm.fit(model, x, training, progress=False))
    leaf = model.predict(x_test)
    counts = torch.zeros(len(KINDS), tree.n_leaves, dtype=torch.long)
    counts.index_put_((y_test, leaf), torch.ones_like(leaf), accumulate=True)
    rare = counts[-1]
    alone = (rare > rare.sum() / 2) & (rare > counts.sum(0) / 2)
    return {
        "seed": seed,
        **hm.metrics.clustering_scores(y_test, leaf),
        "largest": counts.sum(0).max().item() / len(leaf),
        "rarest_found": bool(alone.any()),
        "counts": counts.tolist(),
    }


def main(argv: list[str] | None = None) -> None:
    """Run every way and print the report."""
    parser = command.parser(__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--json", type=Path, help="write the report to this file too")
    args = parser.parse_args(argv)
    command.check(parser, args, "epochs", "seeds")
    with command.at_work("unequal.py", args.threads):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Measure and report."""
    train, test = hm.datasets.mnist(args.data_root)
    x, _ = unequal(train, TRAIN)
    x_test, y_test = unequal(test, TEST)
    report: dict[str, Any] = {
        **machine.about(resolve_device(args.device), args.threads),
        "argv": command.given(args),
        "rows": [],
    }
    for how, way in WAYS.items():
        runs = [one_run(way, x, x_test, y_test, args, seed) for seed in range(args.seeds)]
        report["rows"].append({"how": how, "runs": runs})
        scores = ", ".join(f"{name} {statistics.fmean(r[name] for r in runs):.3f}" for name in ("ari", "largest"))
        print(f"{how}: {scores}, {runs[0]['counts']}", file=sys.stderr, flush=True)
        command.write(report, args.json)
    print(json.dumps(report))


if __name__ == "__main__":
    main()

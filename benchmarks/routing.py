"""What does routed training cost in quality? Dense and routed trainings of many leaves on MNIST, by epochs and by time.

    python benchmarks/routing.py --quick                       a few thousand images, two minutes
    python benchmarks/routing.py --json routing.json           100 leaves, three seeds, MNIST

    dense       every leaf for every sample.
    k of n      `hm.Training(route=hm.TopK(k))`, as many epochs as dense.
    as long     the same, for as many epochs as take the CPU time of dense.

All start alike: the gate from k-means, the experts from one that has learnt from all samples for an epoch
(`init_shared=True`). The tree is flat, with experts 784-128-10-128-784. No label is read.

    ELBO        of the test images in nats, with all leaves.
    used        leaves that are the most probable one for a thousandth of an even share of test images or more.
    CPU s       of the training, with its start.

The last line is the whole report as one JSON object.
"""

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import command
import machine
import torch

import hmoevae as hm
from hmoevae.errors import CollapseWarning

LAYER = hm.MLP((128,))
EXPERT = hm.VAE(10, LAYER, LAYER)
DEFAULTS: dict[str, Any] = {"leaves": 100, "route": [2], "epochs": 3, "samples": 60_000, "seeds": [0, 1, 2]}
QUICK: dict[str, Any] = {"leaves": 20, "epochs": 1, "samples": 3000, "seeds": [0]}


def trained(
    args: argparse.Namespace, x: torch.Tensor, seed: int, epochs: int, k: int | None
) -> tuple[hm.HMoEVAE, float]:
    """A trained model, and the CPU seconds of its training."""
    torch.manual_seed(seed)
    tree = hm.Mixture.of(EXPERT, args.leaves, gate=hm.MLP((256,)), balance=hm.Balance("kl", 1.0))
    model = hm.HMoEVAE(tree, tuple(x.shape[1:]), objective="elbo")
    training = hm.Training(
        epochs=1 + epochs,
        init="kmeans",
        init_shared=True,
        route=hm.routes.ALL if k is None else hm.TopK(k),
        seed=seed,
        device=args.device,
    )
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)  # that leaves are unused is a column here
        command.whole(hm.fit(model, x, training, progress=False))
    return model, time.process_time() - start


def row_of(model: hm.HMoEVAE, x: torch.Tensor, **more: Any) -> dict[str, Any]:
    """The scores of a model on test images."""
    counts = model.predict(x).bincount(minlength=model.plan.n_leaves)
    used = int((counts >= len(x) / model.plan.n_leaves / 1000).sum())
    return {**more, "elbo": -model.evaluate(x)["elbo"], "used": used}


def run(args: argparse.Namespace) -> None:
    """Train, score and report."""
    train, test = hm.datasets.mnist(args.data_root)
    x, held_out = train.x[: args.samples], test.x[: max(1000, args.samples // 6)]
    report = {**machine.about(torch.device("cpu"), args.threads), "argv": command.given(args)}
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        model, dense = trained(args, x, seed, args.epochs, None)
        rows.append(row_of(model, held_out, what="dense", k=None, seed=seed, epochs=args.epochs, cpu_seconds=dense))
        show(rows[-1])
        for k in args.route:
            model, seconds = trained(args, x, seed, args.epochs, k)
            about = {"k": k, "seed": seed}
            rows.append(row_of(model, held_out, what="routed", epochs=args.epochs, cpu_seconds=seconds, **about))
            show(rows[-1])
            longer = max(args.epochs, int(args.epochs * dense / seconds))
            model, seconds = trained(args, x, seed, longer, k)
            rows.append(row_of(model, held_out, what="as long", epochs=longer, cpu_seconds=seconds, **about))
            show(rows[-1])
    for what in dict.fromkeys(row["what"] for row in rows):
        elbos = [row["elbo"] for row in rows if row["what"] == what]
        spread = statistics.stdev(elbos) if len(elbos) > 1 else 0.0
        print(f"{what:8} ELBO {statistics.mean(elbos):.2f} +- {spread:.2f} over {len(elbos)} runs")
    report |= {"load_average_after": machine.load_average(), "rows": rows}
    command.write(report, args.json)
    print(json.dumps(report))


def show(row: dict[str, Any]) -> None:
    """Print one line."""
    what = row["what"] if row["k"] is None else f"{row['what']}, k={row['k']}"
    figures = f"ELBO {row['elbo']:8.2f}   used {row['used']:4}   {row['cpu_seconds']:7.1f} CPU s"
    print(f"seed {row['seed']}   {what:14} {row['epochs']:3} epochs   {figures}", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its report."""
    parser = command.parser(__doc__)
    parser.add_argument("--leaves", type=int, help="leaves of the flat tree")
    parser.add_argument("--route", type=int, nargs="+", help="numbers of leaves that a sample is computed with")
    parser.add_argument("--epochs", type=int, help="epochs after the start, of dense and routed alike")
    parser.add_argument("--samples", type=int, help="training images")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--json", type=Path, help="write the report to this file too")
    parser.add_argument("--quick", action="store_true", help="20 leaves, 3,000 images, one epoch, one seed")
    args = parser.parse_args(argv)
    command.fill_in(args, DEFAULTS | (QUICK if args.quick else {}))
    command.check(parser, args, "leaves", "route", "epochs", "samples")
    with command.at_work("routing.py", args.threads):
        run(args)


if __name__ == "__main__":
    main()

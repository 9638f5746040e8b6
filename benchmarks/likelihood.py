"""How likely does a tree find images that it has never seen? Binarised MNIST, the figure that VAEs are compared by.

    python benchmarks/likelihood.py --epochs 10 --held-out 10000          how settings are chosen
    python benchmarks/likelihood.py --json likelihood.json                the result: the test split

Grey levels are probabilities of a white pixel (Salakhutdinov & Murray 2008). Test images are drawn once, with a fixed
seed, so every run scores the same ones; training images are drawn anew in every epoch. The score is the mean over the
images of `HMoEVAE.score_samples`, in nats: the importance-weighted lower bound on log p(x) from so many draws of z in
every leaf (Burda et al. 2016). The leaves start from k-means. With `--held-out N` the last N training images are left
out of training and scored in place of the test split. The last line is the whole report as one JSON object.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import command
import machine
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

import hmoevae as hm
from hmoevae.training import resolve_device

DRAW_SEED = 0
"""Of the draw that makes the scored images; part of what is measured, so no option."""


class Redrawn(IterableDataset[Tensor]):
    """Shuffled batches of images, binarised anew each time round.

    Args:
        grey: Probabilities of a white pixel.
        batch_size: Images a batch.
        seed: Fixes order and draws.
    """

    def __init__(self, grey: Float[Tensor, "n channel height width"], batch_size: int, seed: int) -> None:
        self.grey = grey
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.grey) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        for chosen in torch.randperm(len(self.grey), generator=self.generator).split(self.batch_size):
            yield torch.bernoulli(self.grey[chosen], generator=self.generator)


def make_tree(args: argparse.Namespace) -> hm.spec.Tree:
    """Equal experts with Bernoulli pixels; one alone has no gate."""
    network = hm.MLP(tuple(args.hidden), args.activation)
    expert = hm.VAE(args.latent_dim, network, network, hm.Bernoulli())
    if args.leaves == 1:
        return expert
    return hm.Mixture.of(expert, args.leaves, gate=hm.MLP((128,)), balance=hm.Balance("kl", args.balance))


def measure(
    args: argparse.Namespace, train: Float[Tensor, "n channel height width"], scored: Tensor, seed: int
) -> dict[str, Any]:
    """Train on grey images with one seed, and score binarised ones."""
    torch.manual_seed(seed)
    model = hm.HMoEVAE(make_tree(args), tuple(train.shape[1:]), objective="elbo")
    training = hm.Training(
        epochs=args.epochs,
        lr=args.lr,
        lr_schedule="cosine",
        device=args.device,
        precision=args.precision,
        seed=seed,
    )
    is_seen = sys.stderr.isatty()
    began = time.perf_counter()
    if args.leaves > 1:
        start = replace(training, epochs=1, batch_size=args.batch_size, lr_schedule="constant", init="kmeans")
        first = torch.bernoulli(train, generator=torch.Generator().manual_seed(seed))
        command.whole(hm.fit(model, first, start, progress=is_seen))
    batches = DataLoader(Redrawn(train, args.batch_size, seed), batch_size=None)
    history = command.whole(hm.fit(model, batches, training, progress=is_seen))
    seconds = time.perf_counter() - began
    generator = torch.Generator(model.device).manual_seed(0)
    terms = model.evaluate(scored, generator=generator)
    score = model.score_samples(scored, n_importance=args.importance, generator=generator).double()
    return {
        "seed": seed,
        "log_likelihood": score.mean().item(),
        "standard_error": (score.std() / len(score) ** 0.5).item(),
        "elbo": -terms["elbo"],
        "train_elbo": -history["elbo"][-1],
        "usage": [round(share, 4) for share in model.predict_proba(scored).mean(0).tolist()],
        "epochs": len(history),
        "seconds": seconds,
        "score_seconds": time.perf_counter() - began - seconds,
    }


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--epochs", type=int, default=90, help="behind the one that learns the start")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 on")
    parser.add_argument("--leaves", type=int, default=2)
    parser.add_argument("--hidden", type=int, nargs="+", default=[500, 500], help="of encoders and decoders")
    parser.add_argument("--activation", default="silu", help="of the experts")
    parser.add_argument("--latent-dim", type=int, default=50)
    parser.add_argument("--balance", type=float, default=1.0, help="weight of the gate's, of kind kl")
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--lr", type=float, default=2e-3, help="falls to zero along half a cosine")
    parser.add_argument("--importance", type=int, default=200, help="draws of z in every leaf behind a score")
    parser.add_argument("--held-out", type=int, help="training images to score in place of the test split")
    parser.add_argument("--dataset", choices=("mnist", "mnist5k"), default="mnist")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="of the networks in training")
    parser.add_argument("--json", type=Path, help="write the report to this file too, anew after every seed")
    args = parser.parse_args(argv)
    command.check(parser, args, "epochs", "seeds", "leaves", "latent_dim", "batch_size", "importance", "held_out")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its report; what a user can mend ends with one line, not with a traceback."""
    args = parse(argv)
    with command.at_work("likelihood.py", args.threads):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Measure every seed and report."""
    device = resolve_device(args.device)
    train, test = hm.datasets.mnist(args.data_root) if args.dataset == "mnist" else hm.datasets.mnist5k()
    grey = test.x if args.held_out is None else train.x[-args.held_out :]
    seen = train.x if args.held_out is None else train.x[: -args.held_out]
    scored = torch.bernoulli(grey, generator=torch.Generator().manual_seed(DRAW_SEED))
    report: dict[str, Any] = {
        **machine.about(device, args.threads),
        "argv": command.given(args),
        "tree": str(make_tree(args)),
        "scored": {"split": "test" if args.held_out is None else "train, held out", "images": len(scored)},
        "rows": [],
    }
    for seed in range(args.seeds):
        row = measure(args, seen, scored, seed)
        report["rows"].append(row)
        scores = [row["log_likelihood"] for row in report["rows"]]
        report["log_likelihood"] = statistics.fmean(scores)
        report["log_likelihood_sd"] = statistics.stdev(scores) if len(scores) > 1 else None
        figures = f"log p(x) >= {row['log_likelihood']:.2f} +- {row['standard_error']:.2f}, ELBO {row['elbo']:.2f} nats"
        print(f"seed {seed}: {figures}, {row['seconds']:.0f} s", flush=True)
        report["load_average_after"] = machine.load_average()
        command.write(report, args.json)
    print(json.dumps(report))


if __name__ == "__main__":
    main()

"""Does bfloat16 train as well as float32? The article's flat tree on MNIST, both precisions from the same seeds.

    python benchmarks/precision.py --epochs 5 --seeds 3

Prints the expected loss on the test split, in nats, for every seed and precision, and by how much bfloat16 is off. Both
are evaluated in float32, with the same draws of z. The last line is the whole report as one JSON object.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import command
import machine
import torch
from recipes import RECIPES

import hmoevae as hm
from hmoevae.errors import ArgumentError, mismatch
from hmoevae.training import Precision, has_bfloat16, resolve_device


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its report."""
    parser = command.parser(__doc__)
    parser.add_argument("--dataset", choices=("mnist", "digits"), default="mnist")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--json", type=Path, help="write the report to this file too")
    args = parser.parse_args(argv)
    command.check(parser, args, "epochs", "seeds")
    with command.at_work("precision.py", args.threads):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Measure and report."""
    device = resolve_device(args.device)
    if not has_bfloat16(device):
        raise ArgumentError(mismatch("--device", "one with bfloat16 instructions", f"{device} without"))
    train, test = hm.datasets.mnist(args.data_root) if args.dataset == "mnist" else hm.datasets.digits()
    recipe = RECIPES["article"]
    report: dict[str, Any] = {
        **machine.about(device, args.threads),
        "argv": command.given(args),
        "rows": [],
    }
    for seed in range(args.seeds):
        losses: dict[Precision, float] = {}
        for precision in get_args(Precision):
            training = replace(
                recipe.training(len(train)),
                epochs=args.epochs,
                seed=seed,
                device=args.device,
                precision=precision,
            )
            model, history = recipe.run("flat", train.x, training, False)
            terms = model.evaluate(test.x, generator=torch.Generator(model.device).manual_seed(0))
            losses[precision] = terms["expected"]
            seconds = history["seconds"][-1] / len(history)
            print(f"seed {seed}  {precision}  {terms['expected']:.3f} nats  {seconds:.1f} s an epoch", flush=True)
        off = 100 * (losses["bf16"] / losses["fp32"] - 1)
        report["rows"].append({"seed": seed, **losses, "bf16_off_percent": off})
    apart = [row["bf16_off_percent"] for row in report["rows"]]
    worst = max(map(abs, apart))
    print(f"bf16 against fp32: {statistics.mean(apart):+.3f} % on average, {worst:.3f} % at worst")
    text = json.dumps(report)
    command.write(report, args.json)
    print(text)


if __name__ == "__main__":
    main()

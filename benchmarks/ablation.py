"""What is each ingredient of the flat recipe worth? Each one removed, and some alone, on MNIST.

    python benchmarks/ablation.py --json ablation.json                     every row, three seeds
    python benchmarks/ablation.py --rows full "no agreement" --seeds 1     some of them
    python benchmarks/ablation.py --recipe best --images 20000 --epochs 12 the new parts of the flat example
    python benchmarks/ablation.py --quick                                  scikit-learn's digits, two epochs

Each row trains the recipe `styles` of `recipes.py`, which learns fast from a random start, or `best`, with one thing
changed, all on the same short schedule (the recipe's own takes four times as long, and scores higher), without labels,
once for each seed from 0 on. Scored are the gates alone on the test split, as in `clustering.py`. Where a file given to
`--json` has rows of the same schedule already, they are kept and only what is missing is run, so that a run can go on
where another stopped. The last line is the whole report as one JSON object.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import command
import machine
import torch
from recipes import RECIPES, STROKES, STRONG, Trained, train
from torch import Tensor

import hmoevae as hm
from hmoevae.datasets import LabelledImages
from hmoevae.training import Schedule, resolve_device
from hmoevae.views import ViewLike

EPOCHS = 9
"""Of every row, a quarter of the recipe's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredients:
    """What the recipe is made of; the defaults are the recipe's own.

    Attributes:
        agreement: Gates agree on a sample and its partner.
        alone: Share of the epochs in which gates learn without experts.
        partner: What makes a sample's partner.
        view: What the gates see.
        gate: The gate's network; `None` is the recipe's.
        balance: Weight of the balance, of kind kl; `None` is the recipe's.
        objective: Of the experts.
        lr_schedule: Of the learning rate.
        init: The start.
    """

    agreement: bool = True
    alone: float = 1 / 3
    partner: ViewLike | None = STROKES
    view: ViewLike | None = STRONG
    gate: hm.MLP | hm.Conv | None = None
    balance: float | None = None
    objective: str = "elbo"
    lr_schedule: Schedule = "cosine"
    init: Literal["random", "graph"] = "random"


ROWS: dict[str, Ingredients] = {
    "full": Ingredients(),
    "no agreement": Ingredients(agreement=False),
    "no neighbours": Ingredients(partner=None),
    "no affine views": Ingredients(view=None),
    "neighbours by pixels": Ingredients(partner=hm.views.Neighbour()),
    "lighter affine views": Ingredients(view=hm.views.RandomAffine()),
    "both, as `random-start` has them": Ingredients(partner=hm.views.Neighbour(), view=hm.views.RandomAffine()),
    "no phase of gates alone": Ingredients(alone=0.0),
    "gates alone, no experts": Ingredients(alone=1.0),
    "dense gate": Ingredients(gate=hm.MLP((256,))),
    "balance 5": Ingredients(balance=5.0),
    "constant rate": Ingredients(lr_schedule="constant"),
    "expected loss": Ingredients(objective="expected"),
}
"""By name, the most telling first; beside them `"article"`, that recipe as it stands, in as many epochs."""
ARTICLE = "article"
BEST = Ingredients(
    partner=hm.views.Neighbour(k=10, features=hm.features.oriented_gradients, mutual=True),
    view=hm.views.RandomAffine(),
    init="graph",
)
PARTS_OF_BEST: dict[str, Ingredients] = {
    "full": BEST,
    "no normalisation in the gate": replace(BEST, gate=hm.Conv((32, 64, 128), kernel_size=3)),
    "neighbours that need not be mutual": replace(
        BEST, partner=hm.views.Neighbour(k=10, features=hm.features.oriented_gradients)
    ),
    "neighbours by pixels": replace(BEST, partner=hm.views.Neighbour(k=10, mutual=True)),
    "from random weights": replace(BEST, init="random"),
}
"""What `best` has and `random-start` has not, each taken away."""
ROWS_OF = {"styles": [*ROWS, ARTICLE], "best": [*PARTS_OF_BEST]}


def run_row(name: str, x: Tensor, training: hm.Training, progress: bool = False, *, recipe: str = "styles") -> Trained:
    """Train as a row says."""
    if name == ARTICLE:
        article = RECIPES[ARTICLE]
        own = {"epochs": training.epochs, "seed": training.seed, "device": training.device}
        return article.run("flat", x, replace(article.training(len(x)), **own), progress)
    row = (ROWS if recipe == "styles" else PARTS_OF_BEST)[name]
    tree = RECIPES[recipe].tree("flat")
    if row.gate is not None:
        tree = replace(tree, gate=row.gate)
    if row.balance is not None:
        tree = replace(tree, balance=hm.Balance("kl", row.balance))
    agreement = hm.Agreement(partner=row.partner, alone=row.alone) if row.agreement else None
    how = {"lr_schedule": row.lr_schedule, "init": row.init, "view": row.view, "agreement": agreement}
    training = replace(training, **how)
    return train(tree, x, training, progress, objective=row.objective)


def measure(
    name: str, images: LabelledImages, test: LabelledImages, training: hm.Training, recipe: str
) -> dict[str, Any]:
    """One row with one seed."""
    start = time.perf_counter()
    model, _ = run_row(name, images.x, training, sys.stderr.isatty(), recipe=recipe)
    seconds = time.perf_counter() - start
    terms = model.evaluate(test.x, generator=torch.Generator(model.device).manual_seed(0))
    scores = hm.metrics.report(model, test.x, test.y)
    return {"seed": training.seed, **scores, "elbo": -terms["elbo"], "seconds": seconds}


def row_of(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the report: every seed's run, their means and standard deviations."""
    scores = [score for score in runs[0] if score != "seed"]
    sd = {score: statistics.stdev(run[score] for run in runs) if len(runs) > 1 else None for score in scores}
    return {
        "what": name,
        "n_seeds": len(runs),
        "mean": {score: statistics.fmean(run[score] for run in runs) for score in scores},
        "sd": sd,
        "runs": runs,
    }


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--recipe", choices=list(ROWS_OF), default="styles", help="whose ingredients")
    about = "; ".join(f"of {recipe}: {', '.join(names)}" for recipe, names in ROWS_OF.items())
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"the rows to run ({about})")
    parser.add_argument("--images", type=int, help="so many of the training images, the first ones")
    parser.add_argument("--seeds", type=int, default=3, help="runs of every row")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of every run, those of gates alone among them")
    parser.add_argument("--json", type=Path, help="write the report to this file too, anew after every run")
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits and two epochs")
    args = parser.parse_args(argv)
    if args.quick:
        args.epochs = 2
    names = ROWS_OF[args.recipe]
    args.rows = args.rows or names
    for name in args.rows:
        if name not in names:
            parser.error(f"--rows: expected some of {'; '.join(names)}, got {name}")
    command.check(parser, args, "seeds", "epochs", "images")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its report; what a user can mend ends with one line, not with a traceback."""
    args = parse(argv)
    with command.at_work("ablation.py", args.threads):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Measure every row and report."""
    device = resolve_device(args.device)
    images, test = hm.datasets.digits() if args.quick else hm.datasets.mnist(args.data_root)
    images = LabelledImages(images.name, images.x[: args.images], images.y[: args.images])
    usual = RECIPES[args.recipe].training(len(images))
    training = replace(usual, epochs=args.epochs, device=args.device)
    report: dict[str, Any] = {
        **machine.about(device, args.threads),
        "dataset": images.name,
        "images": {"train": len(images), "test": len(test)},
        "epochs": args.epochs,
        "recipe": args.recipe,
        "recipe_epochs": usual.epochs,
        "rows": [],
    }
    runs = runs_of(args.json, report)
    for seed in range(args.seeds):  # all rows with one seed before any with the next
        for name in args.rows:
            if all(made["seed"] != seed for made in runs.setdefault(name, [])):
                runs[name].append(measure(name, images, test, replace(training, seed=seed), args.recipe))
                print(f"{name}, seed {seed}: accuracy {100 * runs[name][-1]['accuracy']:.2f} %", flush=True)
            report["rows"] = [row_of(other, made) for other, made in runs.items() if made]
            report["load_average_after"] = machine.load_average()
            command.write(report, args.json)
    print(json.dumps(report))


def runs_of(file: Path | None, report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """By row, the runs of the same data and schedule that `file` has."""
    if file is None or not file.exists():
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    found.setdefault("recipe", "styles")  # the first reports were of no other
    if any(found[name] != report[name] for name in ("dataset", "recipe", "images", "epochs")):
        raise OSError(f"--json: expected no file, or one of the same data, recipe and epochs, got {file}")
    return {row["what"]: row["runs"] for row in found["rows"]}


if __name__ == "__main__":
    main()

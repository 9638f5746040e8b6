"""Which tree, and how many leaves? Several of them on scikit-learn's digits, compared by their held-out score.

    python examples/choose_tree.py

The score is the importance-weighted bound on log p(x) of images that training did not see; no label is needed for it.
The labels tell at the very end what the chosen tree has found.
"""

import argparse
import statistics
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.cluster import KMeans
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import CollapseWarning

LAYER = hm.MLP((64,))
LEAF = hm.VAE(latent_dim=5, encoder=LAYER, decoder=LAYER, likelihood=hm.Gaussian(scale=0.2))


def mixture(child: hm.VAE | hm.Mixture, n: int, balance: float = 20.0) -> hm.Mixture:
    """What all candidates share: the gate, a balance as agreement asks for, and priors that follow the data."""
    return hm.Mixture.of(child, n, gate=LAYER, balance=hm.Balance("kl", balance), prior="learned")


CANDIDATES: dict[str, hm.VAE | hm.Mixture] = {
    "1 leaf": LEAF,
    "3": mixture(LEAF, 3),
    "10": mixture(LEAF, 10),
    "30": mixture(LEAF, 30),
    "5 x 2": mixture(mixture(LEAF, 2, balance=4.0), 5),
    "10 x 3": mixture(mixture(LEAF, 3, balance=2.0), 10),
}


def train(tree: hm.VAE | hm.Mixture, x: Tensor, *, epochs: int, seed: int) -> hm.HMoEVAE:
    """A model of `tree`, the same way for every candidate."""
    torch.manual_seed(seed)
    model = hm.HMoEVAE(tree, input_shape=tuple(x.shape[1:]), objective="elbo")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)  # too many leaves is one of the answers that we look for
        training = hm.Training(epochs=epochs, batch_size=64, lr=3e-3, lr_schedule="cosine", seed=seed)
        if tree.children:
            start = {"init": "kmeans", "init_epochs": max(1, epochs // 10)}
            training = replace(training, agreement=hm.Agreement(alone=0.2), **start)
        history = hm.fit(model, x, training, progress=False)
    if history.interrupted:  # fit ends quietly on Ctrl-C; half a training is not to be compared
        raise KeyboardInterrupt
    return model


def score(model: hm.HMoEVAE, x: Tensor) -> float:
    """Mean bound on log p(x) in nats, the same draws for every model."""
    generator = torch.Generator(model.device).manual_seed(0)
    return model.score_samples(x, n_importance=64, generator=generator).mean().item()


def main() -> None:
    """Score every candidate on held-out images, take the best one, and look at it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=100, help="passes over the training images")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of every candidate")
    parser.add_argument("--out", type=Path, default=Path("runs/choose_tree"), help="folder for the results")
    parser.add_argument("--smoke", action="store_true", help="three trees, two epochs, one seed, to see that all works")
    args = parser.parse_args()
    for name in ("epochs", "seeds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: expected an integer > 0, got {getattr(args, name)}")
    epochs, seeds, names = args.epochs, args.seeds, tuple(CANDIDATES)
    if args.smoke:
        epochs, seeds, names = 2, 1, ("1 leaf", "3", "5 x 2")
    args.out.mkdir(parents=True, exist_ok=True)

    rest, test = hm.datasets.digits()
    held_out = torch.arange(len(rest)) % 4 == 3
    x, x_held_out = rest.x[~held_out], rest.x[held_out]
    print(f"{len(x)} images to train on, {len(x_held_out)} to choose by, {len(test)} to look at in the end\n")

    scores: dict[str, list[float]] = {}
    for name in names:
        start = time.perf_counter()
        models = (train(CANDIDATES[name], x, epochs=epochs, seed=seed) for seed in range(seeds))
        scores[name] = [score(model, x_held_out) for model in models]
        each = ", ".join(f"{value:.2f}" for value in scores[name])
        print(f"{name:>7}  {statistics.fmean(scores[name]):7.2f} nats  ({each})  {time.perf_counter() - start:.0f} s")

    chosen = max(scores, key=lambda name: statistics.fmean(scores[name]))
    print(f"\nchosen: {chosen}; trained on all {len(rest)} images:")
    model = train(CANDIDATES[chosen], rest.x, epochs=epochs, seed=0)
    model.save_pretrained(args.out / "model")
    print(f"{score(model, test.x):.2f} nats on the test images")
    draw(scores).savefig(args.out / "scores.png")
    print(f"model and scores.png are in {args.out}\n")

    n_leaves = model.plan.n_leaves
    kmeans = KMeans(n_leaves, n_init=10, random_state=0)  # type: ignore[arg-type]  # or "auto"
    clusters_of_kmeans = kmeans.fit(rest.x.flatten(1).numpy()).predict(test.x.flatten(1).numpy())
    found = {"leaves": model.predict(test.x), "clusters of k-means": clusters_of_kmeans}
    for name, clusters in found.items():
        match = hm.metrics.clustering_scores(test.y, clusters)
        print(f"labels against {n_leaves} {name}: NMI {match['nmi']:.3f}, purity {match['leaf_purity']:.3f}")
    if args.smoke:
        print("two epochs only show that everything works: trees and labels are compared without --smoke")


def draw(scores: dict[str, list[float]]) -> Figure:
    """Every training's score by candidate, and the candidates' means."""
    figure = Figure(figsize=(5.5, 3.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    for place, values in enumerate(scores.values()):
        axes.plot([place] * len(values), values, "o", color="#0072b2", alpha=0.5, markeredgewidth=0)
        axes.plot(place, statistics.fmean(values), "_", color="#0072b2", markersize=18)
    axes.set_xticks(range(len(scores)), list(scores))
    axes.set(xlabel="tree", ylabel="held-out score, nats an image")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()

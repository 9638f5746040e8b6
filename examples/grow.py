"""How many kinds are there? The number is found and the tree grown on scikit-learn's digits, without labels.

    python examples/grow.py

The images are cut into kinds, which a mixture learns; its leaves are split where held-out images gain from it. The
labels tell at the very end what the leaves have found, beside k-means with as many clusters.
"""

import argparse
from pathlib import Path

import torch
from sklearn.cluster import KMeans
from torch import Tensor

import hmoevae as hm

LAYER = hm.MLP((64,))
LEAF = hm.VAE(latent_dim=5, encoder=LAYER, decoder=LAYER, likelihood=hm.Gaussian(scale=0.2))
MEASURES = {"NMI": "nmi", "ARI": "ari", "purity": "leaf_purity"}


def grown(x: Tensor, *, epochs: int, round_epochs: int, seed: int) -> hm.Grown:
    """From one leaf to the tree that the images ask for."""
    growth = hm.Growth(gate=LAYER, style_gate=LAYER, round_epochs=round_epochs)
    how = {"lr": 3e-3, "lr_schedule": "cosine", "init_epochs": max(1, epochs // 10)}
    return hm.grow(LEAF, x, growth, hm.Training(epochs=epochs, batch_size=64, seed=seed, **how))


def tell(decisions: list[hm.Decision]) -> None:
    """A line for every decision."""
    for each in decisions:
        if each.error is not None:
            number = f"{each.gain:.2f} ± {each.error:.2f}"
        else:
            value = each.conductance if each.action == "cut" else each.gain
            number = "" if value is None else f"{value:.3f}"
        done = "yes" if each.accepted else "no "
        print(f"{each.round}  {each.action:5}  {done}  {each.path:22}  {each.n_samples:5}  {number:12}  {each.reason}")


def main() -> None:
    """Grow a tree, say what was decided, and compare its leaves with clusters of k-means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60, help="passes over the images in which the kinds are learned")
    parser.add_argument("--round-epochs", type=int, default=10, help="passes in which splits are tried")
    parser.add_argument("--seed", type=int, default=0, help="fixes weights, order and draws")
    parser.add_argument("--out", type=Path, default=Path("runs/grow"), help="folder for the results")
    parser.add_argument("--smoke", action="store_true", help="two epochs, to see that everything works")
    args = parser.parse_args()
    for name in ("epochs", "round_epochs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected an integer > 0, got {getattr(args, name)}")
    epochs, round_epochs = (2, 1) if args.smoke else (args.epochs, args.round_epochs)
    args.out.mkdir(parents=True, exist_ok=True)

    data, test = hm.datasets.digits()
    found = hm.find_kinds(data.x)
    print(f"{found.n_kinds} kinds among {len(data)} images, before any training\n")

    result = grown(data.x, epochs=epochs, round_epochs=round_epochs, seed=args.seed)
    tell(result.decisions)
    model = result.model
    model.save_pretrained(args.out / "model")
    hm.plot.growth(result).savefig(args.out / "growth.png")
    hm.plot.tree(model, test.x).savefig(args.out / "tree.png")
    print(f"\nthe model, growth.png and tree.png are in {args.out}\n")

    n_leaves = model.plan.n_leaves
    kmeans = KMeans(n_leaves, n_init=10, random_state=0)  # type: ignore[arg-type]  # or "auto"
    clusters_of_kmeans = torch.from_numpy(kmeans.fit(data.x.flatten(1).numpy()).predict(test.x.flatten(1).numpy()))
    for name, clusters in (("leaves", model.predict(test.x)), ("clusters of k-means", clusters_of_kmeans)):
        match = hm.metrics.clustering_scores(test.y, clusters)
        scores = ", ".join(f"{measure} {match[key]:.3f}" for measure, key in MEASURES.items())
        print(f"test labels against {n_leaves} {name}: {scores}")
    if args.smoke:
        print("A smoke run: it only shows that everything works. For results, leave out --smoke.")


if __name__ == "__main__":
    main()

"""A thousand kinds of clothes: Fashion-MNIST in 20 groups of 50 leaves, each image trained with two leaves of its own.

    python examples/thousand_kinds.py

Routing keeps the work of a step near that of the leaves that its images meet, not of all 1,000. No label is used in
training; at the end the labels tell what the leaves have found. It takes a few minutes of two cores.
"""

import argparse
import time
from pathlib import Path

import _run
import torch

import hmoevae as hm
from hmoevae.checks import check_integer

LAYER = hm.MLP((64,))
LEAF = hm.VAE(latent_dim=8, encoder=LAYER, decoder=LAYER, likelihood=hm.Gaussian(scale=0.2))


def make_tree(n_groups: int, n_each: int) -> hm.Mixture:
    """Equal groups of equal leaves; a balance keeps many of them in use."""
    group = hm.Mixture.of(LEAF, n_each, gate=LAYER, balance=hm.Balance("kl", weight=5.0))
    return hm.Mixture.of(group, n_groups, gate=hm.MLP((256,)), balance=hm.Balance("kl", weight=20.0))


def make_training(epochs: int, seed: int) -> hm.Training:
    """The first half teaches the gates k-means' clusters, and one leaf in place of all; then each image has two leaves.

    An epoch of the first half is cheap. The gates need several of them to tell a thousand leaves apart.
    """
    return hm.Training(
        epochs=epochs,
        batch_size=500,
        lr=2e-3,
        lr_schedule="cosine",
        init="kmeans",
        init_epochs=(epochs + 1) // 2,
        init_shared=True,
        route=hm.TopK(2),
        seed=seed,
    )


def main() -> None:
    """Data, tree, training, fit; then what the leaves are, in numbers and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=7, help="passes over the images, half of them for the start")
    parser.add_argument("--seed", type=int, default=0, help="fixes weights, order and draws")
    parser.add_argument(
        "--data-root", help="folder with FashionMNIST/raw/ in it (default: HMOEVAE_DATA, or a download)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/thousand_kinds"), help="folder for the results")
    parser.add_argument("--smoke", action="store_true", help="20 leaves, few images: to see that everything works")
    args = parser.parse_args()
    check_integer("--epochs", args.epochs)
    _run.make_writable(args.out)
    images, test = _run.or_mnist5k(hm.datasets.fashion_mnist, "Fashion-MNIST", args.data_root)
    n_groups, n_each, epochs = 20, 50, args.epochs
    if args.smoke:
        images, test = (_run.thinned(split, 1000) for split in (images, test))
        n_groups, n_each, epochs = 4, 5, 2

    torch.manual_seed(args.seed)  # for the weights
    model = hm.HMoEVAE(make_tree(n_groups, n_each), input_shape=(1, 28, 28), objective="elbo")
    start = time.process_time()
    history = hm.fit(model, images.x, make_training(epochs, args.seed))
    seconds = time.process_time() - start
    model.save_pretrained(args.out / "model")
    history.to_csv(args.out / "history.csv")

    report(model, test)
    print(f"{len(history)} epochs of {len(images):,} images: {seconds:.0f} CPU seconds")
    hm.plot.tree(model, test.x, most=30).savefig(args.out / "tree.png")
    groups = model.predict(test.x, level=1)
    title = f"{test.name} test images by group"
    table = hm.plot.contingency(test.y, groups, cluster_names=model.plan.level_names(1), title=title, keep_order=True)
    table.savefig(args.out / "groups.png")
    hm.report(model, test.x, args.out / "report.html", labels=test.y, history=history)
    print(f"model, history.csv, report.html, tree.png and groups.png are in {args.out}")
    if args.smoke:
        print("A smoke run: it only shows that everything works. For a thousand leaves, leave out --smoke.")


def report(model: hm.HMoEVAE, test: hm.datasets.LabelledImages) -> None:
    """Shares of the leaves among the test images, and how well leaves and groups match the labels."""
    leaf, n_leaves = model.predict(test.x), model.plan.n_leaves
    share = (leaf.bincount(minlength=n_leaves) / len(leaf)).sort(descending=True).values
    in_use = int((share > 0).sum())
    print(f"\n{in_use:,} of {n_leaves:,} leaves are the most probable one of some test image")
    for n in (10, 30, 100, 300):
        if n < n_leaves:
            print(f"the {n:3} largest leaves have {share[:n].sum():4.0%} of the test images")
    for name, found in (("groups", model.predict(test.x, level=1)), ("leaves", leaf)):
        match = hm.metrics.clustering_scores(test.y, found)
        print(f"labels against {name}: purity {match['leaf_purity']:.3f}, NMI {match['nmi']:.3f}")


if __name__ == "__main__":
    _run.run(main)

"""A tree of your own, on scikit-learn's 8 x 8 digits: leaves and mixtures side by side, experts of unequal size.

    python examples/custom_tree.py

Change `make_tree` and run it again: any depth, any mix of leaves and mixtures, other networks and likelihoods in each.
The last lines compare the leaves with as many clusters of k-means, by the labels of images that neither has seen.
"""

import argparse
import json
from pathlib import Path

import torch
from sklearn.cluster import KMeans
from torch import Tensor

import hmoevae as hm

VIEW = hm.views.RandomAffine(degrees=10, translate=(0.1, 0.1), shear=10)
"""Changes that leave a digit what it is; of an image of 8 x 8, a shift by a tenth is not quite a pixel."""


def make_tree() -> hm.Mixture:
    """Six leaves, a mixture of two beside them, and one of three whose first leaf is larger than the others."""
    network, pixels = hm.MLP((64,)), hm.Gaussian(scale=0.2)
    small = hm.VAE(latent_dim=5, encoder=network, decoder=network, likelihood=pixels)
    large = hm.VAE(latent_dim=8, encoder=hm.MLP((128, 64)), decoder=hm.MLP((64, 128)), likelihood=pixels)
    inner = {"gate": network, "balance": hm.Balance("kl", weight=4.0)}
    return hm.Mixture(
        children=(
            *[small] * 6,
            hm.Mixture.of(small, 2, name="two styles", **inner),
            hm.Mixture(children=(large, small, small), name="three styles", **inner),
        ),
        gate=hm.Conv(channels=(16, 32), kernel_size=3, hidden=(64,)),
        balance=hm.Balance("kl", weight=20.0),
        prior="leaves",  # a child is due as many images as it has leaves
    )


def train(x: Tensor, epochs: int, seed: int, device: str) -> tuple[hm.HMoEVAE, hm.History]:
    """From clusters; then gates learn that neighbours among the images are of one kind; then all learn together."""
    torch.manual_seed(seed)
    model = hm.HMoEVAE(make_tree(), input_shape=tuple(x.shape[1:]), objective="elbo")
    history = hm.fit(
        model,
        x,
        hm.Training(
            epochs=epochs,
            lr=3e-3,
            init="kmeans",
            init_epochs=max(1, epochs // 12),
            view=VIEW,
            agreement=hm.Agreement(alone=0.4),
            seed=seed,
            device=device,
        ),
    )
    return model, history


def main() -> None:
    """Train, compare and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60, help="passes over the training images (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, of the order, and of k-means (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/custom_tree"), help="folder for the results")
    parser.add_argument("--smoke", action="store_true", help="two epochs, to see that everything works")
    where = "cpu, cuda, mps or auto, which takes an accelerator if there is one (default: auto)"
    parser.add_argument("--device", default="auto", help=where)
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"--epochs: expected an integer > 0, got {args.epochs}")
    args.out.mkdir(parents=True, exist_ok=True)

    images, test = hm.datasets.digits()
    print(f"{len(images):,} images to train on, without labels\n\n{make_tree()}\n")
    model, history = train(images.x, 2 if args.smoke else args.epochs, args.seed, args.device)
    model.save_pretrained(args.out / "model")
    history.to_csv(args.out / "history.csv")
    if history.interrupted:
        print(f"stopped by Ctrl-C after {len(history)} epochs; the results are those of this model")

    leaf, n_leaves = model.predict(test.x), model.plan.n_leaves
    names = model.plan.level_names(None)
    hm.plot.tree(model, test.x).savefig(args.out / "tree.png")
    hm.plot.samples(model, generator=torch.Generator().manual_seed(0)).savefig(args.out / "samples.png")
    hm.plot.contingency(test.y, leaf, cluster_names=names, keep_order=True).savefig(args.out / "contingency.png")

    hm.report(model, test.x, args.out / "report.html", labels=test.y, history=history)

    kmeans = KMeans(n_leaves, n_init=10, random_state=args.seed)  # type: ignore[arg-type]  # or "auto"
    clusters_of_kmeans = kmeans.fit(images.x.flatten(1).numpy()).predict(test.x.flatten(1).numpy())
    ours = hm.metrics.report(model, test.x, test.y)
    theirs = hm.metrics.clustering_scores(test.y, clusters_of_kmeans)
    about = {"dataset": images.name, "epochs": len(history), "seed": args.seed, "leaves": n_leaves}
    result = json.dumps(about | ours | {f"kmeans_{name}": value for name, value in theirs.items()})
    (args.out / "metrics.json").write_text(result + "\n", encoding="utf-8")

    print(f"\nmodel, history.csv, metrics.json, report.html and the pictures are in {args.out}")
    print(f"\n{len(test)} test images     NMI  purity")
    for name, scores in ((f"{n_leaves} leaves", ours), (f"k-means, {n_leaves} clusters", theirs)):
        print(f"{name:<22}{scores['nmi']:.3f}   {scores['leaf_purity']:.3f}")
    if args.smoke:
        print("(two epochs only show that everything works; leave --smoke out to see what it learns)")
    print(result)


if __name__ == "__main__":
    main()

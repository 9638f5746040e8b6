"""Outliers: which samples are unlike everything that the model was trained on?

    python examples/outliers.py

A model of scikit-learn's digits scores new ones, half of which are spoilt: their right half is that of another digit.
A sample that is improbable under every expert gets a low score. A limit is set by held-out digits, of which one in
twenty may be called an outlier.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import roc_auc_score
from torch import Tensor

import hmoevae as hm

FALSE_ALARMS = 0.05
"""Share of the good samples that may be called outliers."""


def spoilt(x: Tensor) -> Tensor:
    """The left half of every image beside the right half of the one before it."""
    half = x.shape[-1] // 2
    return torch.cat([x[..., :half], x.roll(1, 0)[..., half:]], -1)


def train(x: Tensor, epochs: int) -> hm.HMoEVAE:
    """Ten experts from a start by k-means, so that every training begins no worse than that."""
    layer = hm.MLP((64,))
    leaf = hm.VAE(latent_dim=5, encoder=layer, decoder=layer, likelihood=hm.Gaussian(scale=0.2))
    tree = hm.Mixture.of(leaf, 10, gate=layer, balance=hm.Balance("kl", 1.0))
    torch.manual_seed(0)
    model = hm.HMoEVAE(tree, input_shape=(1, 8, 8), objective="elbo")
    how = {"init": "kmeans", "init_epochs": max(1, epochs // 10), "lr_schedule": "cosine"}
    hm.fit(model, x, hm.Training(epochs=epochs, batch_size=64, lr=3e-3, **how))
    return model


def scores(model: hm.HMoEVAE, x: Tensor) -> np.ndarray:
    """Lower bound on log p(x) of every sample, in nats."""
    return model.score_samples(x).cpu().numpy()


def report(name: str, held_out: np.ndarray, good: np.ndarray, bad: np.ndarray) -> None:
    """How well a score (the higher, the more usual) tells the spoilt images from the others."""
    limit = np.quantile(held_out, FALSE_ALARMS)
    area = roc_auc_score(np.repeat([1, 0], [len(good), len(bad)]), np.concatenate([good, bad]))
    print(f"{name:>8}: AUROC {area:.3f}, {(bad < limit).mean():.0%} of the spoilt found", end=" ")
    print(f"and {(good < limit).mean():.0%} of the others, limit {limit:.1f}")


def main() -> None:
    """Train on good images, set the limit by others, score the rest; the same by the distance from k-means' centres."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/outliers"), help="folder for the model and the picture")
    parser.add_argument("--smoke", action="store_true", help="two epochs, to see that everything works")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    data, test = hm.datasets.digits()
    for_limit = torch.arange(len(data)) % 5 == 4
    x, held_out, bad = data.x[~for_limit], data.x[for_limit], spoilt(test.x)
    model = train(x, epochs=2 if args.smoke else 40)
    model.save_pretrained(args.out / "model")

    clusters = KMeans(10, n_init=10, random_state=0).fit(x.flatten(1).numpy())  # type: ignore[arg-type]  # or "auto"
    nearness = [-clusters.transform(part.flatten(1).numpy()).min(1) for part in (held_out, test.x, bad)]
    report("k-means", *nearness)
    report("hmoevae", *(scores(model, part) for part in (held_out, test.x, bad)))

    everything = torch.cat([test.x, bad])
    strangest = everything[scores(model, everything).argsort()[:20].copy()]
    hm.plot.reconstructions(model, strangest).savefig(args.out / "strangest.png")
    print(f"the model and strangest.png, the images of the lowest score, are in {args.out}")
    if args.smoke:
        print("A smoke run: it only shows that everything works. For results, leave out --smoke.")


if __name__ == "__main__":
    main()

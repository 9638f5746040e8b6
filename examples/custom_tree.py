"""A tree of your own, on scikit-learn's 8 x 8 digits: leaves and mixtures side by side, experts of unequal size.

Change `tree` and run it again: any depth, any mix of leaves and mixtures, other networks and likelihoods in each.
"""

import _run
import numpy as np
import torch
from sklearn.datasets import load_digits

import hmoevae as hm
from hmoevae.datasets import LabelledImages

network = hm.MLP((64,))
pixels = hm.Gaussian(scale=0.25)
small = hm.VAE(latent_dim=3, encoder=network, decoder=network, likelihood=pixels)
large = hm.VAE(latent_dim=8, encoder=hm.MLP((128, 64)), decoder=hm.MLP((64, 128)), likelihood=pixels)

tree = hm.Mixture(
    children=(
        *[small] * 6,
        hm.Mixture.of(small, 2, gate=network, name="two styles"),
        hm.Mixture(children=(large, small, small), gate=network, name="three styles"),
    ),
    gate=hm.Conv(channels=(8, 16), kernel_size=3, hidden=(64,)),
    balance=hm.Balance("kl", weight=5.0),
)


def load(_: str | None) -> _run.Splits:
    """The 1,797 digits, every fifth one held out."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(np.asarray(pixels) / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.as_tensor(np.asarray(labels), dtype=torch.long)
    test = torch.arange(len(y)) % 5 == 4
    return LabelledImages("digits", x[~test], y[~test]), LabelledImages("digits", x[test], y[test])


if __name__ == "__main__":
    _run.main(tree, "A tree of your own on scikit-learn's digits, without labels.", load=load, objective="elbo")

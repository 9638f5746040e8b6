"""A tree of your own, on scikit-learn's 8 x 8 digits: leaves and mixtures side by side, experts of unequal size.

Change `tree` and run it again: any depth, any mix of leaves and mixtures, other networks and likelihoods in each.
"""

import _run
from _recipes import Layout, Recipe, Trained, Training, train
from torch import Tensor

import hmoevae as hm

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
    """The digits, which come with scikit-learn."""
    return hm.datasets.digits()


def run(_: Layout, x: Tensor, training: Training) -> Trained:
    """Train the tree above on its variational bound."""
    return train(tree, x, training, objective="elbo")


if __name__ == "__main__":
    own = {
        "own": Recipe("trains the tree on its variational bound", lambda _: tree, run, lambda _: Training(epochs=100))
    }
    about = "A tree of your own on scikit-learn's digits, without labels."
    _run.main("flat", own, about, load=load, has_data_root=False)

"""Two levels on MNIST: ten kinds, each with three styles of its own, no labels.

The experts and the recipes are those of `mnist_flat.py`; each of its ten experts becomes a gated mixture of three.
"""

import _run
from _recipes import RECIPES

if __name__ == "__main__":
    _run.main(
        "two-level", RECIPES, "Ten gated mixtures of three VAE experts on MNIST, without labels.", load=_run.load_mnist
    )

"""Two levels on MNIST: ten kinds, each with three styles of its own, no labels.

The expert and the gates are those of `mnist_flat.py`; each of its ten experts becomes a gated mixture of three.
"""

import _recipes
import _run

tree = _recipes.article_tree("two-level")

if __name__ == "__main__":
    _run.main(tree, "Ten gated mixtures of three VAE experts on MNIST, without labels.", load=_run.load_mnist)

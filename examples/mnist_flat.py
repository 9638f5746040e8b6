"""The flat mixture on MNIST: ten experts, one gate, no labels.

The recipe is that of the article "Mixture of Variational Autoencoders - a Fusion Between MoE and VAE"
(anotherdatum.com/vae-moe.html), as `_recipes.py` has it: sigmoid layers of 128, ten latents, a Gaussian of standard
deviation 0.5 on the pixels.
"""

import _recipes
import _run

tree = _recipes.article_tree("flat")

if __name__ == "__main__":
    _run.main(tree, "Ten VAE experts and one gate on MNIST, without labels.", load=_run.load_mnist)

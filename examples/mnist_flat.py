"""The flat mixture on MNIST: ten experts, one gate, no labels.

The default recipe is the best we know: gates first learn to agree on views of an image and of one of its neighbours.
`--recipe article` is that of the article "Mixture of Variational Autoencoders - a Fusion Between MoE and VAE"
(anotherdatum.com/vae-moe.html): sigmoid layers of 128, ten latents, a Gaussian of standard deviation 0.5 on the pixels.
`--recipe styles` looks for finer differences, `--recipe no-augmentation` changes no image (extra `umap`).
"""

import _run
from _recipes import RECIPES

if __name__ == "__main__":
    _run.main("flat", RECIPES, "Ten VAE experts and one gate on MNIST, without labels.", load=_run.load_mnist)

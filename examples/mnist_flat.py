"""The flat mixture on MNIST: ten experts, one gate, no labels.

The recipe is that of the article "Mixture of Variational Autoencoders - a Fusion Between MoE and VAE"
(anotherdatum.com/vae-moe.html): sigmoid layers of 128, ten latents, a Gaussian of standard deviation 0.5 on the pixels.
"""

import _run

import hmoevae as hm

layer = hm.MLP((128,), activation="sigmoid")
expert = hm.VAE(latent_dim=10, encoder=layer, decoder=layer, likelihood=hm.Gaussian(scale=0.5, mean="sigmoid"))
tree = hm.Mixture.of(expert, 10, gate=layer, balance=hm.Balance("variance", weight=0.1))

if __name__ == "__main__":
    _run.main(tree, "Ten VAE experts and one gate on MNIST, without labels.", load=_run.load_mnist)

"""Two levels on MNIST: ten kinds, each with three styles of its own, no labels.

The expert and the gates are those of `mnist_flat.py`; each of its ten experts becomes a gated mixture of three.
"""

import _run

import hmoevae as hm

layer = hm.MLP((128,), activation="sigmoid")
expert = hm.VAE(latent_dim=10, encoder=layer, decoder=layer, likelihood=hm.Gaussian(scale=0.5, mean="sigmoid"))
kind = hm.Mixture.of(expert, 3, gate=layer)
tree = hm.Mixture.of(kind, 10, gate=layer, balance=hm.Balance("variance", weight=0.1))

if __name__ == "__main__":
    _run.main(tree, "Ten gated mixtures of three VAE experts on MNIST, without labels.", load=_run.load_mnist)

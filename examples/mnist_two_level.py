"""Two levels on MNIST: ten kinds, each with three styles of its own, no labels.

The graph of nearest neighbours is cut into ten parts, and each of them into three, which gates and experts learn for
one epoch. Then the gates learn
alone: to send an image and one of its neighbours, both randomly rotated, shifted and sheared, to the same node at
either level. Then gates and experts learn together.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import _run
import torch
from torch import nn

import hmoevae as hm


def make_tree() -> hm.Mixture:
    """Ten mixtures of three equal VAEs below a convolutional gate; the usage of every gate is held near even.

    The gates of the kinds are dense: ten convolutional ones would cost as much as all experts together. A tenth of the
    samples reaches each, so that its agreement weighs a tenth, and its balance has to match.
    """
    layer = hm.MLP((128,))
    expert = hm.VAE(latent_dim=10, encoder=layer, decoder=layer, likelihood=hm.Gaussian(scale=0.5, mean="sigmoid"))
    kind = hm.Mixture.of(expert, 3, gate=layer, balance=hm.Balance("kl", weight=2.0))
    gate = hm.Conv((32, 64, 128), kernel_size=3, norm_groups=16)
    return hm.Mixture.of(kind, 10, gate=gate, balance=hm.Balance("kl", weight=20.0))


def make_training(n_images: int) -> hm.Training:
    """The training for so many images; a few thousand take smaller and faster steps, half as many."""
    many = n_images >= 20_000
    steps, batch_size = (8640, 250) if many else (4320, 125)
    partner = hm.views.Neighbour(k=10, features=hm.features.oriented_gradients, mutual=True)
    return hm.Training(
        epochs=_run.epochs_of(steps, n_images, batch_size),  # 36 of all of MNIST
        batch_size=batch_size,
        lr=1e-3 if many else 2e-3,
        lr_schedule="cosine",
        init="graph",
        view=hm.views.RandomAffine(),
        agreement=hm.Agreement(partner=partner, alone=1 / 3),
        precision="bf16",
    )


def adam_faster_for_experts(
    model: hm.HMoEVAE, lr: float, factor: float
) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    """Adam with a higher learning rate for the experts: the more there are, the fewer samples each of them sees."""

    def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        experts = list(model.experts.parameters())
        own = set(experts)
        others = [parameter for parameter in parameters if parameter not in own]
        groups = [{"params": others}, {"params": experts, "lr": factor * lr}]
        return torch.optim.Adam(groups, lr=lr, fused=True)

    return adam


def main() -> None:
    """Data, tree, training, fit; then the pictures and a line of JSON."""
    args = _run.arguments(__doc__)
    images, test = _run.load(args)
    tree = make_tree()
    print(tree)
    training = _run.chosen(make_training(len(images)), args, len(images))

    torch.manual_seed(args.seed)  # for the weights
    model = hm.HMoEVAE(tree, input_shape=(1, 28, 28), objective="elbo")
    training = replace(training, optimizer=adam_faster_for_experts(model, training.lr, factor=3.0))
    recorder = hm.SampleRecorder(n_frames=20)
    history = hm.fit(
        model, images.x, training, callbacks=[recorder], checkpoint_dir=args.checkpoints, resume=args.resume
    )

    _run.leave(model, history, recorder, (images, test), args)


if __name__ == "__main__":
    _run.run(main)

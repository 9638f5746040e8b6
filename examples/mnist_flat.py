"""The flat mixture on MNIST: ten experts, one gate, no labels.

The graph of nearest neighbours is cut into ten parts, which gate and experts learn for one epoch. Then the gate learns
alone: to send an image and one of its neighbours, both randomly rotated, shifted and sheared, to the same leaf. Then
gate and experts learn together.
"""

import _run
import torch

import hmoevae as hm


def make_tree() -> hm.Mixture:
    """Ten equal VAEs below a convolutional gate, whose usage is held near even."""
    layer = hm.MLP((128,))
    expert = hm.VAE(latent_dim=10, encoder=layer, decoder=layer, likelihood=hm.Gaussian(scale=0.5, mean="sigmoid"))
    gate = hm.Conv((32, 64, 128), kernel_size=3, norm_groups=16)
    return hm.Mixture.of(expert, 10, gate=gate, balance=hm.Balance("kl", weight=20.0))


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


def main() -> None:
    """Data, tree, training, fit; then the pictures and a line of JSON."""
    args = _run.arguments(__doc__)
    images, test = _run.load(args)
    tree = make_tree()
    print(tree)
    training = _run.chosen(make_training(len(images)), args, len(images))

    torch.manual_seed(args.seed)  # for the weights
    model = hm.HMoEVAE(tree, input_shape=(1, 28, 28), objective="elbo")
    recorder = hm.SampleRecorder(n_frames=20)
    history = hm.fit(
        model, images.x, training, callbacks=[recorder], checkpoint_dir=args.checkpoints, resume=args.resume
    )

    _run.leave(model, history, recorder, (images, test), args)


if __name__ == "__main__":
    _run.run(main)

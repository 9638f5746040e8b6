"""Recipes: which tree, and how it is trained; the one place that the examples and `benchmarks/clustering.py` read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

import hmoevae as hm
from hmoevae.nn.objectives import ObjectiveName
from hmoevae.training import Callback, Precision, Schedule
from hmoevae.views import ViewLike

Layout = Literal["flat", "two-level", "binary"]
Trained = tuple[hm.HMoEVAE, hm.History]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What a run may choose, whatever the recipe.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images a step.
        lr: Learning rate of Adam.
        seed: Fixes weights, order and draws.
        device: Where to train.
        precision: Of the networks in training.
        callbacks: As of `hm.fit`.
        progress: Show a progress bar.
    """

    epochs: int = 100
    batch_size: int = 100
    lr: float = 1e-3
    seed: int = 0
    device: str = "auto"
    precision: Precision = "fp32"
    callbacks: Sequence[Callback] = ()
    progress: bool = True


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way from images to a trained model.

    Attributes:
        tree: The tree of a layout.
        run: Builds the model of a layout and trains it on images `(n, channel, height, width)`.
        training: What the recipe was made for; a run may change any of it.
    """

    tree: Callable[[Layout], hm.Mixture]
    run: Callable[[Layout, Tensor, Training], Trained]
    training: Training


def train(
    tree: hm.Mixture,
    x: Tensor,
    training: Training,
    *,
    objective: ObjectiveName = "expected",
    lr_schedule: Schedule = "constant",
    view: ViewLike | None = None,
    agreement: hm.Agreement | None = None,
) -> Trained:
    """A model of `tree`, trained on `x` in one go."""
    torch.manual_seed(training.seed)
    model = hm.HMoEVAE(tree, input_shape=tuple(x.shape[1:]), objective=objective)
    history = hm.fit(
        model,
        x,
        epochs=training.epochs,
        batch_size=training.batch_size,
        lr=training.lr,
        lr_schedule=lr_schedule,
        view=view,
        agreement=agreement,
        seed=training.seed,
        device=training.device,
        precision=training.precision,
        callbacks=training.callbacks,
        progress=training.progress,
    )
    return model, history


# --- layouts ---------------------------------------------------------------------------------------------------------

N_KINDS, N_STYLES = 10, 3


def laid_out(
    layout: Layout,
    expert: hm.VAE,
    *,
    gate: hm.MLP | hm.Conv,
    balance: hm.Balance,
    style_gate: hm.MLP | hm.Conv,
    style_balance: hm.Balance | None = None,
) -> hm.Mixture:
    """A tree of equal experts.

    Args:
        layout: `"flat"` is one gate over ten experts, `"two-level"` ten gated mixtures of three, `"binary"` ten experts
            below gates of two, as evenly as their number allows.
        expert: Every leaf.
        gate: Of all mixtures but the ten of the two-level tree.
        balance: Of the root, and where nothing else is said of all below it.
        style_gate: Of the ten mixtures of the two-level tree.
        style_balance: Of the same; `None` inherits that of the root.
    """
    match layout:
        case "flat":
            return hm.Mixture.of(expert, N_KINDS, gate=gate, balance=balance)
        case "two-level":
            kind = hm.Mixture.of(expert, N_STYLES, gate=style_gate, balance=style_balance)
            return hm.Mixture.of(kind, N_KINDS, gate=gate, balance=balance)
        case "binary":
            left, right = (binary(expert, n, gate=gate) for n in halves(N_KINDS))
            return hm.Mixture(children=(left, right), gate=gate, balance=balance)


def binary(leaf: hm.VAE, n: int, *, gate: hm.MLP | hm.Conv) -> hm.VAE | hm.Mixture:
    """A tree of `n` leaves in which every gate has two children, with as many leaves below one as below the other."""
    if n == 1:
        return leaf
    left, right = (binary(leaf, below, gate=gate) for below in halves(n))
    return hm.Mixture(children=(left, right), gate=gate)


def halves(n: int) -> tuple[int, int]:
    """Two whole numbers that sum to `n`, the first at most one larger than the second."""
    return n - n // 2, n // 2


# --- the article: "Mixture of Variational Autoencoders - a Fusion Between MoE and VAE" (anotherdatum.com/vae-moe.html)


def article_tree(layout: Layout) -> hm.Mixture:
    """The article's expert, gate and balance: sigmoid layers of 128, ten latents, a standard deviation of 0.5."""
    layer = hm.MLP((128,), activation="sigmoid")
    expert = hm.VAE(latent_dim=10, encoder=layer, decoder=layer, likelihood=hm.Gaussian(scale=0.5, mean="sigmoid"))
    return laid_out(layout, expert, gate=layer, balance=hm.Balance("variance", weight=0.1), style_gate=layer)


def article(layout: Layout, x: Tensor, training: Training) -> Trained:
    """The article's recipe as it stands: the expected loss of the experts, from a random start."""
    return train(article_tree(layout), x, training)


# --- the best we know: gates that agree on a sample and its neighbour, from a random start ---------------------------


def best_tree(layout: Layout) -> hm.Mixture:
    """A convolutional gate whose usage is held near even, over experts with ReLU layers.

    Styles are told apart by dense gates: ten convolutional ones would cost as much as all experts together. A kind sees
    a tenth of the samples, so its agreement weighs a tenth, and its balance has to match.
    """
    layer = hm.MLP((128,))
    expert = hm.VAE(latent_dim=10, encoder=layer, decoder=layer, likelihood=hm.Gaussian(scale=0.5, mean="sigmoid"))
    return laid_out(
        layout,
        expert,
        gate=hm.Conv(),
        balance=hm.Balance("kl", weight=20.0),
        style_gate=layer,
        style_balance=hm.Balance("kl", weight=2.0),
    )


def best(layout: Layout, x: Tensor, training: Training) -> Trained:
    """Agreement alone, then with the experts' bound beside it."""
    return train(
        best_tree(layout),
        x,
        training,
        objective="elbo",
        lr_schedule="cosine",
        view=hm.views.RandomAffine(),
        agreement=hm.Agreement(alone=1 / 3),
    )


RECIPES = {
    "best": Recipe(best_tree, best, Training(epochs=36, batch_size=250, precision="bf16")),
    "article": Recipe(article_tree, article, Training()),
}

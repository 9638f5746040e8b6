"""Recipes: which tree, and how it is trained; the one place that the examples and `benchmarks/clustering.py` read."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

import hmoevae as hm
from hmoevae.plan import compile_tree
from hmoevae.starts import Start, first_leaves
from hmoevae.training import Callback, Precision, Schedule
from hmoevae.views import ViewLike

Layout = Literal["flat", "two-level", "binary"]
MOST_CHECKPOINTS = 36
"""About as many are written in a run, if it has as many epochs."""
Trained = tuple[hm.HMoEVAE, hm.History]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What a run may choose, whatever the recipe.

    Attributes:
        steps: Steps of the optimiser, whatever the number of images; what counts is how often the weights were changed.
        epochs: Passes over the training images; `None` for as many as come nearest to `steps`.
        batch_size: Images a step.
        alone: Where gates agree, the share of the epochs in which they learn without the experts.
        lr: Learning rate of Adam.
        seed: Fixes weights, order and draws.
        device: Where to train.
        precision: Of the networks in training.
        compile: Whether steps run as compiled code, as of `hm.fit`.
        callbacks: As of `hm.fit`.
        progress: Show a progress bar.
        checkpoint_dir: Where checkpoints are kept while it runs; `None` for a run without.
        resume: Whether it goes on from the last of them, as of `hm.fit`.
    """

    steps: int = 60_000
    epochs: int | None = None
    batch_size: int = 100
    alone: float = 1 / 3
    lr: float = 1e-3
    seed: int = 0
    device: str = "auto"
    precision: Precision = "fp32"
    compile: bool = False
    callbacks: Sequence[Callback] = ()
    progress: bool = True
    checkpoint_dir: Path | None = None
    resume: Literal["auto", "never"] = "auto"

    def epochs_of(self, n_images: int) -> int:
        """Passes over so many images.

        >>> Training(steps=8640, batch_size=250).epochs_of(60_000)
        36
        """
        if self.epochs is not None:
            return self.epochs
        return max(1, round(self.steps / math.ceil(n_images / self.batch_size)))


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way from images to a trained model.

    Attributes:
        about: What it does, in a line.
        tree: The tree of a layout.
        run: Builds the model of a layout and trains it on images `(n, channel, height, width)`.
        training: What suits so many training images; a run may change any of it.
    """

    about: str
    tree: Callable[[Layout], hm.Mixture]
    run: Callable[[Layout, Tensor, Training], Trained]
    training: Callable[[int], Training]


def train(
    tree: hm.Mixture,
    x: Tensor,
    training: Training,
    *,
    objective: str = "expected",
    lr_schedule: Schedule = "constant",
    view: ViewLike | None = None,
    agreement: hm.Agreement | None = None,
    expert_lr_factor: float = 1.0,
    init: Start = "random",
) -> Trained:
    """A model of `tree`, trained on `x` in one go; the experts learn by a multiple of the gates' rate."""
    torch.manual_seed(training.seed)
    model = hm.HMoEVAE(tree, input_shape=tuple(x.shape[1:]), objective=objective)

    def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        experts = list(model.experts.parameters())
        own = {id(parameter) for parameter in experts}
        others = [parameter for parameter in parameters if id(parameter) not in own]
        groups = [{"params": others}, {"params": experts, "lr": expert_lr_factor * training.lr}]
        return torch.optim.Adam(groups, lr=training.lr, fused=True)

    epochs = training.epochs_of(len(x))
    history = hm.fit(
        model,
        x,
        hm.Training(
            epochs=epochs,
            batch_size=training.batch_size,
            lr=training.lr,
            lr_schedule=lr_schedule,
            optimizer=adam,
            view=view,
            agreement=agreement,
            init=init,
            seed=training.seed,
            device=training.device,
            precision=training.precision,
            compile=training.compile,
            checkpoint_every=max(1, epochs // MOST_CHECKPOINTS),
        ),
        callbacks=training.callbacks,
        progress=training.progress,
        checkpoint_dir=training.checkpoint_dir,
        resume=training.resume,
    )
    return model, history


# --- layouts ---------------------------------------------------------------------------------------------------------

N_KINDS, N_STYLES = 10, 3


def laid_out(
    layout: Layout,
    expert: hm.VAE,
    *,
    gate: hm.MLP | hm.Conv,
    inner_gate: hm.MLP | hm.Conv,
    balance: hm.Balance,
    inner_balance: Callable[[float], hm.Balance | None],
    n_styles: int = N_STYLES,
) -> hm.Mixture:
    """A tree of equal experts.

    Args:
        layout: `"flat"` is one gate over ten experts, `"two-level"` ten gated mixtures of a few, `"binary"` ten experts
            below gates of two, as evenly as their number allows.
        expert: Every leaf.
        gate: Of the root.
        inner_gate: Of all mixtures below it.
        balance: Of the root.
        inner_balance: Of a mixture below it, from its share of the leaves; `None` inherits that of the root.
        n_styles: Experts in each mixture of the two-level tree.
    """

    def binary_part(n: int) -> hm.VAE | hm.Mixture:
        if n == 1:
            return expert
        left, right = (binary_part(below) for below in halves(n))
        return hm.Mixture((left, right), inner_gate, inner_balance(n / N_KINDS), prior="leaves")

    match layout:
        case "flat":
            return hm.Mixture.of(expert, N_KINDS, gate=gate, balance=balance)
        case "two-level":
            kind = hm.Mixture.of(expert, n_styles, gate=inner_gate, balance=inner_balance(1 / N_KINDS))
            return hm.Mixture.of(kind, N_KINDS, gate=gate, balance=balance)
        case "binary":
            left, right = (binary_part(n) for n in halves(N_KINDS))
            return hm.Mixture((left, right), gate, balance, prior="leaves")


def halves(n: int) -> tuple[int, int]:
    """Two whole numbers that sum to `n`, the first at most one larger than the second."""
    return n - n // 2, n // 2


# --- the article: "Mixture of Variational Autoencoders - a Fusion Between MoE and VAE" (anotherdatum.com/vae-moe.html)


def article_tree(layout: Layout) -> hm.Mixture:
    """The article's expert, gate and balance: sigmoid layers of 128, ten latents, a standard deviation of 0.5."""
    layer = hm.MLP((128,), activation="sigmoid")
    expert = hm.VAE(latent_dim=10, encoder=layer, decoder=layer, likelihood=hm.Gaussian(scale=0.5, mean="sigmoid"))
    balance = hm.Balance("variance", weight=0.1)
    return laid_out(layout, expert, gate=layer, inner_gate=layer, balance=balance, inner_balance=lambda _: None)


def article(layout: Layout, x: Tensor, training: Training) -> Trained:
    """The article's recipe as it stands: the expected loss of the experts, from a random start."""
    return train(article_tree(layout), x, training)


# --- the best we know: gates that agree on a sample and its neighbour, from a random start ---------------------------


@dataclass(frozen=True, slots=True)
class Shown:
    """What gates that agree are shown.

    Attributes:
        view: A change of every sample.
        partner: What makes a sample's partner.
    """

    view: ViewLike
    partner: ViewLike


KINDS = Shown(hm.views.RandomAffine(), hm.views.Neighbour())
STYLES = Shown(
    hm.views.RandomAffine(degrees=25.0, translate=(0.1, 0.1), scale=(0.8, 1.2), shear=25.0),
    hm.views.Neighbour(features=hm.features.oriented_gradients),
)
"""Slant and width are taken away, and neighbours are alike in their strokes: what is left is how a digit is drawn.

Of the 5 nearest by strokes 97.5 % are of the same digit, by pixels 96.6 %; where every second seven has a bar, 91.5 %
of a seven's are like it in that, and by pixels 85.1 % (MNIST, training images).
"""


def best_tree(layout: Layout, n_styles: int = N_STYLES) -> hm.Mixture:
    """A convolutional gate whose usage is held near even, over experts with ReLU layers.

    Gates below the root are dense: ten convolutional ones would cost as much as all experts together. The samples that
    reach them are a share of all, so their agreement weighs as much less, and their balance has to match.
    """
    layer = hm.MLP((128,))
    expert = hm.VAE(latent_dim=10, encoder=layer, decoder=layer, likelihood=hm.Gaussian(scale=0.5, mean="sigmoid"))

    def balance(share: float) -> hm.Balance:
        return hm.Balance("kl", weight=20.0 * share)

    return laid_out(
        layout,
        expert,
        gate=hm.Conv(),
        inner_gate=layer,
        balance=balance(1.0),
        inner_balance=balance,
        n_styles=n_styles,
    )


def best(layout: Layout, x: Tensor, training: Training, n_styles: int = N_STYLES, shown: Shown = KINDS) -> Trained:
    """Agreement alone, then with the experts' bound beside it.

    The more experts there are, the fewer samples each of them sees, and the larger are its steps.
    """
    tree = best_tree(layout, n_styles)
    init: Start = "random"
    agreement = hm.Agreement(partner=shown.partner, alone=training.alone)
    if layout == "binary":  # whose root would otherwise cut through kinds before there are any
        epochs = training.epochs_of(len(x))
        alone = max(1, round(agreement.alone * epochs))
        folder = training.checkpoint_dir and training.checkpoint_dir / "kinds"
        flat = kinds_alone(x, replace(training, epochs=alone, checkpoint_dir=folder), shown)
        init = leaves_by_likeness(flat.predict_proba(x))
        training = replace(training, epochs=max(1, epochs - alone))
        # Its inner nodes stand for nothing in particular: all gates on the way to a leaf agree together.
        agreement = replace(agreement, alone=0.0, levels=(tree.depth,))
    return train(
        tree,
        x,
        training,
        objective="elbo",
        lr_schedule="cosine",
        view=shown.view,
        agreement=agreement,
        expert_lr_factor=tree.n_leaves / N_KINDS,
        init=init,
    )


def kinds_alone(x: Tensor, training: Training, shown: Shown) -> hm.HMoEVAE:
    """A flat mixture of which only the gate has been trained, by agreement."""
    agreement = hm.Agreement(partner=shown.partner, alone=1.0)
    model, history = train(best_tree("flat"), x, training, view=shown.view, agreement=agreement, objective="elbo")
    if history.interrupted:  # fit ends quietly; there is nothing yet to go on with
        raise KeyboardInterrupt
    return model


def leaves_by_likeness(share: Tensor) -> Tensor:
    """The leaf of the binary tree where every image starts, a leaf for each kind of a flat mixture.

    At every gate, from the root on, the two sides are those that the flat gate confuses least.

    Args:
        share: Probability of every kind, `(n, kind)`.
    """
    confused = share.T @ share

    def order(kinds: tuple[int, ...]) -> list[int]:
        if len(kinds) == 1:
            return [*kinds]

        def rest(left: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(kind for kind in kinds if kind not in left)

        sides = itertools.combinations(kinds, halves(len(kinds))[0])
        left = min(sides, key=lambda left: confused[list(left)][:, list(rest(left))].sum().item())
        return order(left) + order(rest(left))

    leaf_of = torch.tensor(order(tuple(range(share.shape[1])))).argsort()
    return leaf_of[share.argmax(1)]


# --- without a change of any image, for data whose kinds no such change would leave alone ----------------------------


def no_augmentation(layout: Layout, x: Tensor, training: Training) -> Trained:
    """A start from clusters of strokes, then agreement of neighbours and nothing else."""
    tree = best_tree(layout)
    init = first_leaves(compile_tree(tree), hm.features.oriented_gradients(x), "umap", training.seed)
    return train(
        tree,
        x,
        training,
        objective="elbo",
        lr_schedule="cosine",
        agreement=hm.Agreement(partner=STYLES.partner, alone=1 / 4),
        expert_lr_factor=tree.n_leaves / N_KINDS,
        init=init,
    )


FEW_IMAGES = 20_000


def long(n_images: int, *, steps: int = 8640) -> Training:
    """As many steps as 36 epochs of MNIST have; for a few thousand images half as many, smaller and faster.

    From few images gates learn as much with smaller batches, in half the time; and experts, which soon know them by
    heart, need fewer steps. Chosen on the training images of mnist5k, with their labels.
    """
    if n_images >= FEW_IMAGES:
        return Training(steps=steps, batch_size=250, precision="bf16")
    return Training(steps=steps // 2, batch_size=125, alone=1 / 2, lr=2e-3, precision="bf16")


RECIPES = {
    "best": Recipe(
        "gates first learn to agree on changed images and their neighbours, then gates and experts learn together",
        best_tree,
        best,
        long,
    ),
    "styles": Recipe(
        "the same with stronger changes and neighbours alike in their strokes, for a second level of styles",
        best_tree,
        functools.partial(best, shown=STYLES),
        long,
    ),
    "no-augmentation": Recipe(
        "changes no image: starts from clusters of strokes in a UMAP embedding (extra umap), then neighbours agree",
        best_tree,
        no_augmentation,
        functools.partial(long, steps=3360),
    ),
    "article": Recipe(
        "the recipe of the article: every expert's loss weighed by the gate, from a random start",
        article_tree,
        article,
        lambda _: Training(),
    ),
}

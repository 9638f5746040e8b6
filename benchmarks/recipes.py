"""Recipes: which tree, and how it is trained; the one place that the benchmarks read.

`best` is what `examples/mnist_flat.py` and `examples/mnist_two_level.py` do; the others stand beside it for comparison.
"""

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from command import whole
from torch import Tensor

import hmoevae as hm

sys.path.append(str(Path(__file__).parent.parent / "examples"))
import mnist_flat
from _run import epochs_of
from mnist_two_level import adam_faster_for_experts

Layout = Literal["flat", "two-level", "binary"]
Trained = tuple[hm.HMoEVAE, hm.History]
N_KINDS, N_STYLES = 10, 3


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way from images to a trained model.

    Attributes:
        about: What it does, in a line.
        tree: The tree of a layout.
        training: What suits so many training images; a run may change any of it.
        run: Trains the tree of a layout on images `(n, channel, height, width)`, with or without a progress bar.
    """

    about: str
    tree: Callable[[Layout], hm.Mixture]
    training: Callable[[int], hm.Training]
    run: Callable[[Layout, Tensor, hm.Training, bool], Trained]


def train(
    tree: hm.Mixture,
    x: Tensor,
    training: hm.Training,
    progress: bool,
    *,
    objective: str = "elbo",
    expert_lr_factor: float = 1.0,
) -> Trained:
    """A model of `tree`, trained on `x`; the experts learn by a multiple of the gates' rate.

    Raises:
        KeyboardInterrupt: Training was ended by Ctrl-C.
    """
    torch.manual_seed(0 if training.seed is None else training.seed)
    model = hm.HMoEVAE(tree, input_shape=tuple(x.shape[1:]), objective=objective)
    training = replace(training, optimizer=adam_faster_for_experts(model, training.lr, expert_lr_factor))
    return model, whole(hm.fit(model, x, training, progress=progress))


# --- layouts ---------------------------------------------------------------------------------------------------------


def laid_out(
    layout: Layout, flat: hm.Mixture, inner_gate: hm.MLP, *, n_styles: int = N_STYLES, has_shares: bool = True
) -> hm.Mixture:
    """A tree of the experts of a flat one, below its gate.

    Args:
        layout: `"flat"` is one gate over ten experts, `"two-level"` ten gated mixtures of a few, `"binary"` ten experts
            below gates of two, as evenly as their number allows.
        flat: The flat tree, of a gate and VAEs.
        inner_gate: Of all mixtures below the root.
        n_styles: Experts in each mixture of the two-level tree.
        has_shares: Whether the balance of a mixture below the root weighs by its share of the leaves; else it inherits
            that of the root.
    """
    expert, balance = flat.children[0], flat.balance
    assert isinstance(expert, hm.VAE)
    assert balance is not None

    def balance_of(share: float) -> hm.Balance | None:
        return replace(balance, weight=balance.weight * share) if has_shares else None

    def binary_part(n: int) -> hm.VAE | hm.Mixture:
        if n == 1:
            return expert
        left, right = map(binary_part, halves(n))
        return hm.Mixture((left, right), inner_gate, balance_of(n / N_KINDS), prior="leaves")

    match layout:
        case "flat":
            return flat
        case "two-level":
            kind = hm.Mixture.of(expert, n_styles, gate=inner_gate, balance=balance_of(1 / N_KINDS))
            return hm.Mixture.of(kind, N_KINDS, gate=flat.gate, balance=balance)
        case "binary":
            left, right = map(binary_part, halves(N_KINDS))
            return hm.Mixture((left, right), flat.gate, balance, prior="leaves")


def halves(n: int) -> tuple[int, int]:
    """Two whole numbers that sum to `n`, the first at most one larger than the second."""
    return n - n // 2, n // 2


# --- the article: "Mixture of Variational Autoencoders - a Fusion Between MoE and VAE" (anotherdatum.com/vae-moe.html)


def article_tree(layout: Layout) -> hm.Mixture:
    """The article's expert, gate and balance: sigmoid layers of 128, ten latents, a standard deviation of 0.5."""
    layer = hm.MLP((128,), activation="sigmoid")
    expert = hm.VAE(latent_dim=10, encoder=layer, decoder=layer, likelihood=hm.Gaussian(scale=0.5, mean="sigmoid"))
    flat = hm.Mixture.of(expert, N_KINDS, gate=layer, balance=hm.Balance("variance", weight=0.1))
    return laid_out(layout, flat, layer, has_shares=False)


def article_training(n_images: int) -> hm.Training:
    """100 epochs of MNIST, or as many steps."""
    return hm.Training(epochs=epochs_of(60_000, n_images, 100), batch_size=100)


def article(layout: Layout, x: Tensor, training: hm.Training, progress: bool = True) -> Trained:
    """The article's recipe as it stands: the expected loss of the experts, from a random start."""
    return train(article_tree(layout), x, training, progress, objective="expected")


# --- the best we know: gates that agree on a sample and its neighbour, from kinds of the graph of neighbours ---------


def best_tree(layout: Layout, n_styles: int = N_STYLES) -> hm.Mixture:
    """The examples' trees, and a binary one of the same parts."""
    return laid_out(layout, mnist_flat.make_tree(), hm.MLP((128,)), n_styles=n_styles)


def best(
    layout: Layout, x: Tensor, training: hm.Training, progress: bool = True, *, n_styles: int = N_STYLES
) -> Trained:
    """An epoch of the start, agreement alone, then with the experts' bound beside it."""
    return agreed(layout, lambda layout: best_tree(layout, n_styles), x, training, progress)


def agreed(
    layout: Layout,
    tree_of: Callable[[Layout], hm.Mixture],
    x: Tensor,
    training: hm.Training,
    progress: bool,
) -> Trained:
    """The start, agreement alone, then with the experts' bound beside it.

    Args:
        layout: Of the tree.
        tree_of: The tree of a layout.
        x: Images.
        training: Options of all of it.
        progress: Show a progress bar.
    """
    tree, agreement = tree_of(layout), training.agreement
    assert agreement is not None
    if layout == "binary":  # whose root would otherwise cut through kinds before there are any
        alone = max(1, round(agreement.alone * training.epochs))
        first = replace(training, epochs=alone, lr_schedule="constant", agreement=replace(agreement, alone=1.0))
        flat, _ = train(tree_of("flat"), x, first, progress)
        # Its inner nodes stand for nothing in particular: all gates on the way to a leaf agree together.
        training = replace(
            training,
            epochs=max(1, training.epochs - alone),
            init=leaves_by_likeness(flat.predict_proba(x)),
            agreement=replace(agreement, alone=0.0, levels=(tree.depth,)),
        )
    return train(tree, x, training, progress, expert_lr_factor=tree.n_leaves / N_KINDS)


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


# --- the same from a random start, with a plain gate, and with other views --------------------------------------------


def plain_tree(layout: Layout, n_styles: int = N_STYLES) -> hm.Mixture:
    """Two convolutions without normalisation."""
    flat = replace(mnist_flat.make_tree(), gate=hm.Conv())
    return laid_out(layout, flat, hm.MLP((128,)), n_styles=n_styles)


def random_start_training(n_images: int) -> hm.Training:
    """Neighbours are alike in their pixels."""
    alone = 1 / 3 if n_images >= 20_000 else 1 / 2
    agreement = hm.Agreement(partner=hm.views.Neighbour(), alone=alone)
    return replace(mnist_flat.make_training(n_images), init="random", agreement=agreement)


def random_start(
    layout: Layout, x: Tensor, training: hm.Training, progress: bool = True, *, n_styles: int = N_STYLES
) -> Trained:
    """Agreement alone, then with the experts' bound beside it."""
    return agreed(layout, lambda layout: plain_tree(layout, n_styles), x, training, progress)


STROKES = hm.views.Neighbour(features=hm.features.oriented_gradients)
"""Neighbours alike in their strokes.

Of the 5 nearest 97.5 % are of the same digit, by pixels 96.6 %; where every second seven has a bar, 91.5 % of a seven's
are like it in that, and by pixels 85.1 % (MNIST, training images).
"""
STRONG = hm.views.RandomAffine(degrees=25.0, translate=(0.1, 0.1), scale=(0.8, 1.2), shear=25.0)


def styles_training(n_images: int) -> hm.Training:
    """Slant and width are taken away, and neighbours are alike in their strokes: left is how a digit is drawn."""
    usual = random_start_training(n_images)
    assert usual.agreement is not None
    return replace(usual, view=STRONG, agreement=replace(usual.agreement, partner=STROKES))


def no_augmentation_training(n_images: int) -> hm.Training:
    """No image is changed, so that neighbours alone agree; a shorter time suffices."""
    usual = mnist_flat.make_training(n_images)
    assert usual.agreement is not None
    epochs = max(1, round(usual.epochs * 3360 / 8640))
    return replace(usual, epochs=epochs, view=None, agreement=replace(usual.agreement, alone=1 / 4))


MUTUAL = hm.views.Neighbour(k=24, features=hm.features.oriented_gradients, mutual=True)
"""The neighbours whose graph is cut where no image is changed.

Ten parts of it are 95.4 % right (MNIST, training images); with neighbours of one side, the training ends at 85 %.
"""


def no_augmentation(layout: Layout, x: Tensor, training: hm.Training, progress: bool = True) -> Trained:
    """A start from the graph of mutual neighbours without changed copies, then agreement of neighbours alone."""
    kind = hm.find_kinds(x, neighbour=MUTUAL, changes=None, max_kinds=N_KINDS).labels
    leaf = kind * N_STYLES + torch.arange(len(x)) % N_STYLES if layout == "two-level" else kind
    return best(layout, x, replace(training, init=leaf), progress)


RECIPES = {
    "best": Recipe(
        "starts from kinds of a graph of neighbours; gates learn to agree on changed images and their neighbours, then "
        "gates and experts learn together",
        best_tree,
        mnist_flat.make_training,
        best,
    ),
    "random-start": Recipe(
        "agreement from random weights, with a plain gate and neighbours by pixels",
        plain_tree,
        random_start_training,
        random_start,
    ),
    "styles": Recipe(
        "the same with stronger changes and neighbours alike in their strokes, for a second level of styles",
        plain_tree,
        styles_training,
        random_start,
    ),
    "no-augmentation": Recipe(
        "changes no image: starts from kinds of a graph of mutual neighbours, then neighbours agree",
        best_tree,
        no_augmentation_training,
        no_augmentation,
    ),
    "article": Recipe(
        "the recipe of the article: every expert's loss weighed by the gate, from a random start",
        article_tree,
        article_training,
        article,
    ),
}

"""Plots of what the leaves have learned: samples, their nearest neighbours, reconstructions and traversals.

Axes: `batch` counts samples, `leaf` as in `hmoevae.plan`.
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from hmoevae.checks import check_integer, is_integer
from hmoevae.door import ArrayLike
from hmoevae.errors import ArgumentError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.plot.arguments import check_model
from hmoevae.plot.canvas import GAP, TITLE, fit, height_of, make_room, no_sample, write_below
from hmoevae.plot.grids import branches_of, captioned, pictures_of, show, spread, zoom_of
from hmoevae.spec import VAE


def samples(model: HMoEVAE, n: int = 10, *, generator: torch.Generator | None = None) -> Figure:
    """Plot new samples from every leaf: a column for each leaf, z drawn from the prior N(0, I).

    Args:
        model: The model.
        n: Number of samples of each leaf.
        generator: Source of the draws, on the CPU.

    Raises:
        ArgumentError: `n` is not an integer > 0.
        ArgumentTypeError: `model` is no `HMoEVAE`.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(1, 8, 8))
    >>> figure = samples(model, n=4)
    >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
    ['0', '1', '2']
    """
    check_model(model)
    check_integer("n", n)
    n_leaves = model.plan.n_leaves
    z = torch.randn(n * n_leaves, model.experts.latent_dim, generator=generator)
    drawn = model.decode(z, torch.arange(n_leaves).repeat(n)).unflatten(0, (n, n_leaves))
    fig, ax = show(
        pictures_of(drawn, "samples"), [], model.plan.level_names(None), columns_apart=branches_of(model.plan)
    )
    ax.set_title("Samples of every leaf", **TITLE)
    return make_room(fig, ax)


def nearest(model: HMoEVAE, x: ArrayLike, n: int = 5, *, generator: torch.Generator | None = None) -> Figure:
    """Plot new samples of every leaf, and below each the nearest of the given samples whose most probable leaf it is.

    Each child of the root has a pair of rows with its leaves side by side and their names. A leaf that is no given
    sample's most probable leaf has an empty frame in the lower row.

    Args:
        model: The model.
        x: Samples to search, `(batch, *input_shape)`, such as the test split.
        n: Number of new samples of each leaf, with z drawn from the prior N(0, I).
        generator: Source of the draws, on the CPU.

    Raises:
        ArgumentError: `n` is not an integer > 0.
        ArgumentTypeError: `model` is no `HMoEVAE`, or `x` is not a floating point tensor or array.
        ShapeError: `x` does not have the shape of a batch of samples.
        DataError: `x` is empty, not finite, or outside the support of a leaf's likelihood.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(1, 8, 8))
    >>> figure = nearest(model, torch.rand(20, 1, 8, 8), n=2)
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['0', 'nearest', '1', 'nearest', '2', 'nearest']
    """
    check_model(model)
    check_integer("n", n)
    x = model.check_input(x, support=False).cpu()
    plan, leaf = model.plan, model.predict(x).cpu()
    z = torch.randn(n * plan.n_leaves, model.experts.latent_dim, generator=generator)
    drawn = model.decode(z, torch.arange(plan.n_leaves).repeat_interleave(n)).cpu().unflatten(0, (plan.n_leaves, n))
    found = torch.zeros_like(drawn)
    for i in leaf.unique().tolist():
        own = x[leaf == i].to(drawn.dtype)
        found[i] = own[_distances(drawn[i].flatten(1), own.flatten(1)).argmin(1)]
    pictures = pictures_of(torch.cat([drawn, found]), "samples", missing=model.missing)
    is_empty = leaf.bincount(minlength=plan.n_leaves).numpy() == 0
    pictures[plan.n_leaves :][is_empty] = 1.0

    branches = plan.level(1) if plan.depth else plan.leaves
    n_columns = n * max(len(branch.leaves) for branch in branches)
    grid = np.ones((2 * len(branches), n_columns, *pictures.shape[2:]), dtype=pictures.dtype)
    for row, branch in enumerate(branches):
        for half in (0, 1):
            own = np.concatenate([pictures[half * plan.n_leaves + i] for i in branch.leaves])
            grid[2 * row + half, : len(own)] = own
    names, zoom = plan.names, zoom_of(grid)
    tall, wide = zoom * pictures.shape[2], zoom * pictures.shape[3]
    # The name of a child of the root is beside its rows.
    captions = fit([names[node.path] if node.depth > 1 else "" for node in plan.leaves], n * wide)
    gap = 2 * GAP + (GAP + height_of(captions) if plan.depth > 1 else 0)
    labels = [label for branch in branches for label in (names[branch.path], "nearest")]
    pairs, leaves = range(2, len(grid), 2), range(n, n_columns, n)
    fig, ax = show(grid, labels, [], rows_apart=pairs, row_gap=gap, columns_apart=leaves)
    x, y = ax.get_xticks(), ax.get_yticks()
    for row, branch in enumerate(branches):
        for column, i in enumerate(branch.leaves):
            left, right = x[n * column] - wide / 2, x[n * column + n - 1] + wide / 2
            bottom = y[2 * row + 1] + tall / 2
            if plan.leaves[i].depth > 1:
                write_below(ax, (left + right) / 2, bottom, captions[i])
            if is_empty[i]:
                no_sample(ax, left, bottom - tall, right - left, tall)
    ax.set_title("Samples of every leaf, and the nearest of its own", **TITLE)
    return make_room(fig, ax)


def _distances(drawn: Float[Tensor, "n feature"], x: Float[Tensor, "batch feature"]) -> Float[Tensor, "n batch"]:
    """Distances between drawn and given samples; of a sample with gaps, over its observed cells, as if all were so."""
    gaps = x.isnan()
    if not gaps.any():
        return torch.cdist(drawn, x)
    known, x = (~gaps).to(x.dtype), x.nan_to_num()
    squared = drawn.square() @ known.t() - 2 * drawn @ x.t() + x.square().sum(1)
    return torch.where(known.sum(1) > 0, squared / known.sum(1).clamp_min(1), torch.inf)


def reconstructions(model: HMoEVAE, x: ArrayLike, n: int = 24) -> Figure:
    """Plot samples above their reconstructions, with the name of each sample's most probable leaf below.

    Of more than `n` samples, about equal numbers of each leaf are plotted, evenly spaced among the leaf's samples,
    because data sets may be sorted.

    Args:
        model: The model.
        x: Samples, `(batch, *input_shape)`, such as the test split.
        n: Largest number of samples to plot; twelve make a row.

    Raises:
        ArgumentError: `n` is not an integer > 0.
        ArgumentTypeError: `model` is no `HMoEVAE`, or `x` is not a floating point tensor or array.
        ShapeError: `x` does not have the shape of a batch of samples.
        DataError: `x` is empty, not finite, or outside the support of a leaf's likelihood.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(1, 8, 8))
    >>> figure = reconstructions(model, torch.rand(50, 1, 8, 8), n=5)
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['original', 'reconstruction']
    """
    check_model(model)
    check_integer("n", n)
    x = model.check_input(x, support=False).cpu()
    leaf = model.predict(x).cpu().numpy()
    shown = spread(leaf, n)
    x, names = x[torch.from_numpy(shown)], model.plan.level_names(None)
    pictures = pictures_of(torch.stack([x, model.reconstruct(x).to(x)]), "x", missing=model.missing)
    captions = [names[i] for i in leaf[shown]]
    fig, ax = captioned(pictures, captions, ["original", "reconstruction"], n_columns=12)
    ax.set_title("Samples, their reconstructions, and the leaf of each", **TITLE)
    return make_room(fig, ax)


def traversals(model: HMoEVAE, node: str, *, n_steps: int = 9, dims: Iterable[int] | None = None) -> Figure:
    """Plot what a leaf's latent dimensions change: in each row, one goes from -3 to 3 while the others are 0.

    Args:
        model: The model.
        node: Path of the leaf, such as `"root/3"`.
        n_steps: Number of pictures in a row.
        dims: The latent dimensions to plot; all by default.

    Raises:
        ArgumentError: There is no leaf at `node`, `n_steps` is not an integer > 1, or the leaf has no such `dims`.
        ArgumentTypeError: `model` is no `HMoEVAE`.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(1, 8, 8))
    >>> figure = traversals(model, "root/1", n_steps=3)
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['z[0]', 'z[1]']
    """
    check_model(model)
    found = model.plan.node(node)
    if not isinstance(found.spec, VAE):
        got = f"{node!r}, a mixture of {len(found.spec.children)} (try {model.plan.leaves[found.leaves.start].path!r})"
        raise ArgumentError(mismatch("node", "the path of a leaf", got))
    check_integer("n_steps", n_steps, least=2)
    latent_dim = found.spec.latent_dim
    shown = list(dims if isinstance(dims, Iterable) else range(latent_dim) if dims is None else ())
    if not shown or not all(is_integer(d, least=0) and d < latent_dim for d in shown):
        raise ArgumentError(mismatch("dims", f"a sequence of integers from 0 to {latent_dim - 1}", repr(dims)))
    steps = torch.linspace(-3, 3, n_steps)
    z = torch.zeros(len(shown), n_steps, model.experts.latent_dim)
    z[torch.arange(len(shown)), :, shown] = steps
    leaf = torch.full((len(shown) * n_steps,), found.leaves.start)
    drawn = model.decode(z.flatten(0, 1), leaf).unflatten(0, (len(shown), n_steps))
    fig, ax = show(pictures_of(drawn, "traversals"), [f"z[{d}]" for d in shown], [f"{s:.3g}" for s in steps.tolist()])
    ax.set_title(f"Leaf {model.plan.names[found.path]}: one latent at a time, in standard deviations", **TITLE)
    return make_room(fig, ax)

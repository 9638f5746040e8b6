"""Missing cells of samples, filled by a model: with their conditional mean, or with draws given the observed cells."""

import torch
from torch import Tensor

from hmoevae.nn.conditional import conditional_latents, conditional_mean
from hmoevae.samples import BATCH_SIZE
from hmoevae.tree_module import TreeModule


def filled(
    model: TreeModule, x: Tensor, n_importance: int, generator: torch.Generator, *, shared_noise: bool
) -> Tensor:
    """Samples with their missing cells filled with the conditional mean.

    Args:
        model: The model.
        x: Checked samples, `(batch, *input_shape)`, in which missing cells are NaN.
        n_importance: Number of draws of z from every leaf.
        generator: Source of the draws, on the model's device.
        shared_noise: Use the same noise for all samples, so that a sample's result does not depend on the others.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.VAE(latent_dim=2), input_shape=(2,), missing=True)
    >>> x = torch.tensor([[0.5, torch.nan]])
    >>> filled(model, x, 8, torch.Generator(), shared_noise=True).isfinite()
    tensor([[True, True]])
    """
    rows = x.flatten(1).isnan().any(1)
    if not rows.any():
        return x
    model.experts.check_whole()
    flat = _features_first(model, x[rows])
    how = n_importance, generator
    mean = conditional_mean(
        model.experts, model.plan, flat, model.prior.leaf_log_prob(), *how, shared_noise=shared_noise
    )
    result = x.clone()
    result[rows] = _completed(x[rows], mean.t().unflatten(1, model.input_shape))
    return result


def drawn_given(
    model: TreeModule,
    x: Tensor,
    n: int,
    leaves: range,
    n_importance: int,
    *,
    observe: bool,
    generator: torch.Generator | None,
) -> Tensor:
    """Samples with their missing cells drawn given the observed ones, `(n, batch, *input_shape)`.

    Args:
        model: The model.
        x: Checked samples, `(batch, *input_shape)`, in which missing cells are NaN.
        n: Number of draws for every sample.
        leaves: The leaves to draw from.
        n_importance: Number of importance samples from every leaf.
        observe: Draw from p(x|z); otherwise the mean of p(x|z) at the draw of z.
        generator: Source of the draws, on the model's device.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.VAE(latent_dim=2), input_shape=(2,), missing=True)
    >>> x = torch.tensor([[0.5, torch.nan]])
    >>> drawn_given(model, x, 3, range(1), 8, observe=True, generator=None)[:, 0, 0].tolist()
    [0.5, 0.5, 0.5]
    """
    model.experts.check_whole()
    flat = _features_first(model, x)
    log_prior = model.prior.leaf_log_prob()
    leaf, z = conditional_latents(model.experts, model.plan, flat, log_prior, leaves, n, n_importance, generator)
    pieces = zip(z.to(model.dtype).flatten(0, 1).split(BATCH_SIZE), leaf.flatten().split(BATCH_SIZE), strict=True)
    drawn = torch.cat([model.experts.decode(*piece, observe=observe, generator=generator) for piece in pieces])
    return _completed(x, drawn.unflatten(1, model.input_shape).unflatten(0, leaf.shape))


def _features_first(model: TreeModule, x: Tensor) -> Tensor:
    return x.to(model.device, model.dtype).flatten(1).t()


def _completed(x: Tensor, filling: Tensor) -> Tensor:
    """The observed cells of samples, and the filling in place of the others."""
    return torch.where(x.isnan(), filling.to(x), x)

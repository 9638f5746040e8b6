"""The picture and the number of every leaf, in plots of trees.

Axes: `leaf` as in `hmoevae.plan`, `batch` counts samples.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hmoevae.door import ArrayLike
from hmoevae.errors import DataError, ShapeError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.plot.arguments import floats


def shares_of(model: HMoEVAE, usage: ArrayLike | None, leaf: Tensor | None) -> tuple[Tensor, str]:
    """The number of every leaf, and what it is."""
    n_leaves = model.plan.n_leaves
    if usage is not None:
        share, of_share = floats(usage, "usage"), "its usage"
    elif leaf is not None:
        share, of_share = leaf.bincount(minlength=n_leaves).float(), "its share of them"
    else:
        share, of_share = model.prior.leaf_log_prob().detach().exp().float().cpu(), "its prior"
    if share.shape != (n_leaves,):
        raise ShapeError(mismatch("usage", f"({n_leaves},), one number per leaf", tuple(share.shape)))
    if not (torch.isfinite(share).all() and share.min() >= 0 and share.sum() > 0):
        raise DataError(mismatch("usage", "finite numbers >= 0, not all of them 0", share.tolist()))
    return share, of_share


def images_of(
    model: HMoEVAE, x: Tensor | None, leaf: Tensor | None, given: ArrayLike | None, generator: torch.Generator | None
) -> tuple[Tensor, np.ndarray, str]:
    """The picture of every leaf, which leaves have none, and what the pictures are."""
    n_leaves = model.plan.n_leaves
    is_empty = np.zeros(n_leaves, dtype=bool)
    images, which = given, " and"
    if given is None and generator is None and x is not None and leaf is not None:
        images, is_empty = means_of(x, leaf, n_leaves)
        which = ": the mean of its samples, and"
    elif images is None:
        size = (n_leaves, model.experts.latent_dim)
        z = torch.zeros(size) if generator is None else torch.randn(size, generator=generator)
        images = model.decode(z, torch.arange(n_leaves))
        which = f": {'the decoded z = 0' if generator is None else 'a sample'}, and"
    images = floats(images, "images")
    if images.shape != (n_leaves, *model.input_shape):
        raise ShapeError(mismatch("images", f"{(n_leaves, *model.input_shape)}", tuple(images.shape)))
    return images, is_empty, which


def means_of(
    x: Float[Tensor, "batch *input_shape"], leaf: Int[Tensor, " batch"], n_leaves: int
) -> tuple[Float[Tensor, "leaf *input_shape"], np.ndarray]:
    """The mean of the samples of every leaf, and which leaves have none."""
    count = leaf.bincount(minlength=n_leaves)
    total = torch.zeros(n_leaves, x[0].numel()).index_add_(0, leaf, x.flatten(1).float())
    return (total / count.clamp_min(1).unsqueeze(1)).unflatten(1, x.shape[1:]), (count == 0).numpy()

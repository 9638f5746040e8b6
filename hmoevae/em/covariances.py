"""Covariances of leaves: pulled towards what the leaves have in common, and split into loadings and noise.

Axes: `leaf` counts leaves, `feature` and `column` the Gaussian features, `latent` the factors.
"""

import torch
from jaxtyping import Float
from torch import Tensor

ROUNDS = 3
"""Number of updates of loadings and noise for each covariance."""


def pulled(
    covariances: Float[Tensor, "leaf feature column"], weights: Float[Tensor, " leaf"], strength: float
) -> Float[Tensor, "leaf feature column"]:
    """Pull every leaf's covariance towards the mean covariance within leaves.

    This is the mode of the posterior under an inverse Wishart prior that is worth `strength` samples, whose centre is
    the mean within-leaf covariance (Fraley & Raftery 2007, Bayesian regularization for normal mixtures).

    >>> one, weights = torch.ones(1, 1), torch.tensor([10.0, 30.0])
    >>> pulled(torch.stack([2 * one, 6 * one]), weights, 10.0).flatten()  # the mean is 5
    tensor([3.5000, 5.7500])
    """
    weights = weights.view(-1, 1, 1)
    total = weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    within = (weights * covariances).sum(0) / total
    return (weights * covariances + strength * within) / (weights + max(strength, torch.finfo(weights.dtype).tiny))


def first_factors(
    covariances: Float[Tensor, "leaf feature column"], n_latents: int, floor: Float[Tensor, "leaf feature"]
) -> tuple[Float[Tensor, "leaf feature latent"], Float[Tensor, "leaf feature"]]:
    """Loadings and noise by probabilistic principal components (Tipping & Bishop 1999, equation 7).

    Args:
        covariances: The covariance of every leaf.
        n_latents: Number of factors; those that the features cannot have are zero.
        floor: The least variance of the noise.

    >>> loadings, noise = first_factors(torch.diag(torch.tensor([5.0, 1.0])).unsqueeze(0), 1, torch.full((1, 2), 0.01))
    >>> loadings.abs().flatten(), noise.flatten()
    (tensor([2., 0.]), tensor([1., 1.]))
    """
    n_features = covariances.shape[1]
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(covariances))
    n_used = min(n_latents, n_features - 1)  # one more would leave no noise, from which EM is slow
    rest = values[:, n_used:].mean(1, keepdim=True)
    lengths = (values[:, :n_used] - rest).clamp_min(0).sqrt()
    loadings = covariances.new_zeros(len(covariances), n_features, n_latents)
    loadings[:, :, :n_used] = vectors[:, :, :n_used] * lengths.unsqueeze(1)
    left = covariances.diagonal(dim1=1, dim2=2) - loadings.square().sum(2)
    return loadings, torch.maximum(left, floor)


def next_factors(
    covariances: Float[Tensor, "leaf feature column"],
    loadings: Float[Tensor, "leaf feature latent"],
    noise: Float[Tensor, "leaf feature"],
    floor: Float[Tensor, "leaf feature"],
) -> tuple[Float[Tensor, "leaf feature latent"], Float[Tensor, "leaf feature"]]:
    """Improve loadings and noise for given covariances by EM (Rubin & Thayer 1982; Ghahramani & Hinton 1996).

    Args:
        covariances: The covariance of every leaf.
        loadings: Loadings so far.
        noise: Variances of the noise so far.
        floor: The least variance of the noise.
    """
    identity = torch.eye(loadings.shape[2], dtype=loadings.dtype, device=loadings.device)
    for _ in range(ROUNDS):
        scaled = loadings / noise.unsqueeze(2)
        to_latent = torch.linalg.solve(identity + loadings.mT @ scaled, scaled.mT)  # E[z|x] = to_latent (x - mean)
        crossed = to_latent @ covariances
        latent = identity - to_latent @ loadings + crossed @ to_latent.mT  # the mean of E[zz'|x]
        loadings = torch.linalg.solve(latent, crossed).mT
        left = covariances.diagonal(dim1=1, dim2=2) - (loadings * crossed.mT).sum(2)
        noise = torch.maximum(left, floor)
    return loadings, noise

"""The number of latents of linear leaves: chosen by the density of held-out samples."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hmoevae.door import Checked
from hmoevae.em import EM, fit_em
from hmoevae.estimator.solvers import Weights
from hmoevae.estimator.trees import MOST_LATENTS
from hmoevae.model import HMoEVAE

MOST_ROWS = 2000
"""Number of samples that are enough for the choice."""
MOST_ITERATIONS = 50
"""Number of iterations that are enough for it."""
QUARTERS = 4
"""Held-out samples are a quarter of all; the quarters take turns until `ENOUGH` samples have been held out."""
ENOUGH = 500
LEAST_GAIN = 0.02
"""By how many nats per cell more latents have to raise the density of held-out samples."""


def chosen_latents(make: Callable[[int], HMoEVAE], data: Checked, weights: Weights, em: EM, n_columns: int) -> int:
    """The first of 8, 16, 32, ... latents that the next number does not improve on, less than the number of columns.

    Where samples have gaps, it is 8.

    Args:
        make: From a number of latents to a model that `fit_em` can fit.
        data: The samples.
        weights: Their weights.
        em: The options of the fit.
        n_columns: Number of columns that depend on the latents.

    >>> from hmoevae.spec import MLP, VAE, Gaussian, LinearPosterior
    >>> def make(latent_dim):
    ...     return HMoEVAE(VAE(latent_dim, LinearPosterior(), MLP(()), Gaussian("learned", "identity")), (12,))
    >>> chosen_latents(make, make(1).checked(torch.randn(200, 12)), None, EM(), n_columns=12)
    8
    """
    best, most = max(1, min(MOST_LATENTS, n_columns - 1)), n_columns - 1
    if best >= most or data.x.isnan().any():  # with gaps each row has a matrix of its own: many latents are slow
        return best
    x, counts = distinct(data.x, weights)
    order = np.random.default_rng(0).permutation(len(x))[:MOST_ROWS]
    quarters = np.array_split(order, QUARTERS)
    if len(order) - len(quarters[0]) < make(best).plan.n_leaves or not len(quarters[-1]):
        return best
    n_held = 1 + np.searchsorted(np.cumsum([len(quarter) for quarter in quarters[:-1]]), ENOUGH)
    few = replace(em, max_iter=min(em.max_iter, MOST_ITERATIONS), n_init=1)

    def density(latent_dim: int) -> float:
        scores = []
        for held in quarters[:n_held]:
            fitted, model = np.setdiff1d(order, held), make(latent_dim)
            fit_em(model, replace(data, x=x[fitted]), few, sample_weight=counts[fitted])
            scores.append(model.score_samples(replace(data, x=x[held])).cpu().numpy())
        weights = np.concatenate([counts[held] for held in quarters[:n_held]])
        return float(np.average(np.concatenate(scores), weights=weights))

    reached = density(best)
    while best < most:
        more = min(2 * best, most)
        found = density(more)
        if not found > reached + LEAST_GAIN * n_columns:
            break
        best, reached = more, found
    return best


def distinct(
    x: Float[Tensor, "n column"], weights: Weights
) -> tuple[Float[Tensor, "row column"], Float[np.ndarray, " row"]]:
    """The different samples and how often each occurs, so that a weight is worth the same as equal rows.

    >>> distinct(torch.tensor([[3.0], [1.0], [3.0]]), None)
    (tensor([[1.],
            [3.]]), array([1., 2.]))
    """
    rows, of_sample = torch.unique(x, dim=0, return_inverse=True)
    counts = np.bincount(of_sample.numpy(), weights, minlength=len(rows)).astype(float)
    return rows[counts > 0], counts[counts > 0]

"""The number of latents of linear leaves: chosen by the density of held-out samples."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from hmoevae.door import Checked
from hmoevae.em import EM, fit_em
from hmoevae.estimator.solvers import Weights
from hmoevae.estimator.trees import MOST_LATENTS
from hmoevae.model import HMoEVAE

MOST_ROWS = 2000
"""Number of samples that are enough for the choice."""
MOST_ITERATIONS = 50
"""Number of iterations that are enough for it."""
HELD_OUT = 4
"""One of this many samples is held out."""
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
    order = np.random.default_rng(0).permutation(len(data))[:MOST_ROWS]
    held, fitted = np.split(order, [len(order) // HELD_OUT])
    best, most = min(MOST_LATENTS, n_columns - 1), n_columns - 1
    few = replace(em, max_iter=min(em.max_iter, MOST_ITERATIONS), n_init=1)
    if (
        data.x.isnan().any()
    ):  # every row has a matrix of its own then: many latents are slow, and gaps hide what they show
        return max(best, 1)
    if best == most or len(fitted) < make(best).plan.n_leaves or not len(held):
        return max(best, 1)

    def density(latent_dim: int) -> float:
        model = make(latent_dim)
        own = None if weights is None else weights[fitted]
        fit_em(model, replace(data, x=data.x[torch.from_numpy(fitted)]), few, sample_weight=own)
        scores = model.score_samples(replace(data, x=data.x[torch.from_numpy(held)])).cpu().numpy()
        return float(np.average(scores, weights=None if weights is None else weights[held]))

    reached = density(best)
    while best < most:
        more = min(2 * best, most)
        found = density(more)
        if not found > reached + LEAST_GAIN * n_columns:
            break
        best, reached = more, found
    return best

"""Solvers: how an estimator fits a model to samples."""

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from hmoevae import training
from hmoevae.em import EM, fit_em
from hmoevae.em.leaves import groups_of
from hmoevae.errors import ArgumentError, DataError, SpecError, mismatch
from hmoevae.estimator.rows import Samples
from hmoevae.history import History
from hmoevae.model import HMoEVAE
from hmoevae.tables.sparse import SparseRows
from hmoevae.training.fitting import fit_quietly

SolverName = Literal["auto", "em", "sgd"]
Weights = Float[np.ndarray, " n_samples"] | None
DENSE_COPIES = 10
"""How many times EM and starts hold the samples in float64, at most."""
HELD_OUT = 10
"""One of this many samples is held out to end a training by gradients."""
LEAST_HELD_OUT = 20
"""Tables that would hold out fewer samples hold out none: the loss on all samples ends the training."""
PATIENCE = 10
"""Number of epochs without a new best one that ends a training by gradients."""


class Fit(NamedTuple):
    """A model that has been fitted.

    Attributes:
        model: The model.
        history: The history of the run that was kept.
        loss: Its loss on all samples, in nats per sample.
        converged: Whether the loss had stopped falling.
    """

    model: HMoEVAE
    history: History
    loss: float
    converged: bool


def has_closed_form(model: HMoEVAE) -> bool:
    """Whether `fit_em` can fit a model.

    >>> from hmoevae.spec import MLP, VAE, Gaussian, LinearPosterior
    >>> noise = Gaussian("learned", "identity")
    >>> models = [HMoEVAE(VAE(2, encoder, MLP(()), noise), (4,)) for encoder in (LinearPosterior(), MLP(()))]
    >>> [has_closed_form(model) for model in models]
    [True, False]
    """
    try:
        groups_of(model)
    except (SpecError, ArgumentError):
        return False
    return True


def check_fits_in_memory(shape: tuple[int, ...]) -> None:
    """Check that a fit can hold a matrix dense, as EM and starts do.

    Raises:
        DataError: It would take more than the memory of this machine, where that is known.

    >>> check_fits_in_memory((1000, 100))
    >>> check_fits_in_memory((10**9, 10**6))
    Traceback (most recent call last):
    ...
    hmoevae.errors.DataError: X: expected a matrix that can be held dense, got (1000000000, 1000000), which takes ...
    """
    if not hasattr(os, "sysconf"):  # Windows
        return
    needed, there = math.prod(shape) * 8 * DENSE_COPIES, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        remedy = "choose fewer columns, or solver='sgd' and init='random', which need batches only"
        got = f"{shape}, which takes {needed / 2**30:,.0f} GiB of {there / 2**30:,.0f} GiB ({remedy})"
        raise DataError(mismatch("X", "a matrix that can be held dense", got))


@dataclass(frozen=True, slots=True)
class ClosedForm:
    """Expectation maximisation, for models that have a closed form.

    Attributes:
        em: Its options.
    """

    em: EM

    def fit(self, make: Callable[[int], HMoEVAE], data: Samples, weights: Weights) -> Fit:
        """Fit a model."""
        model = make(self.em.seed)
        history = fit_em(model, data, self.em, sample_weight=weights)
        return Fit(model, history, history["loss"][-1], bool(history.converged))


@dataclass(frozen=True, slots=True)
class Gradients:
    """Stochastic gradient descent, which ends when the objective of held-out samples has stopped falling.

    Attributes:
        training: The options of a run.
        seeds: A seed for each run; the one with the smallest loss on all samples is kept.
        tol: By how much a new best epoch has to be better, in nats per sample.
        progress: Whether to show a progress bar.
    """

    training: training.Training
    seeds: Iterable[int]
    tol: float
    progress: bool

    def fit(self, make: Callable[[int], HMoEVAE], data: Samples, weights: Weights) -> Fit:
        """Fit a model for each seed and keep the best.

        Samples of weight zero are left out; other weights play no part in what ends a run and in its loss.
        """
        if weights is not None and not weights.all():
            data, weights = _some(data, np.flatnonzero(weights)), weights[weights > 0]
        stops = self.training.start_epochs < self.training.epochs
        rule = training.EarlyStopping(patience=PATIENCE, min_delta=self.tol) if stops else None

        def train(seed: int) -> tuple[HMoEVAE, History]:
            model, options = make(seed), replace(self.training, seed=seed, early_stopping=rule)
            fitted, held = _split(len(data), seed)
            own = None if weights is None else weights[fitted]
            history = fit_quietly(
                model,
                _some(data, fitted),
                options,
                sample_weight=own,
                validation_data=_some(data, held) if stops else None,
                progress=self.progress,
            )
            return model, history

        best = training.best_of(train, data, seeds=self.seeds)
        history = best.history
        converged = stops and not history.interrupted and len(history) < self.training.epochs
        return Fit(best.model, history, best.losses[best.seed], converged)


Solver = ClosedForm | Gradients


def _split(n: int, seed: int) -> tuple[Int[np.ndarray, " fitted"], Int[np.ndarray, " held"]]:
    """Indices of samples to fit to and of samples held out; all of them twice, where there are few."""
    everything = np.arange(n)
    if n < HELD_OUT * LEAST_HELD_OUT:
        return everything, everything
    held = np.sort(np.random.default_rng(seed).permutation(n)[: n // HELD_OUT])
    return np.delete(everything, held), held


def _some(data: Samples, index: Int[np.ndarray, " some"]) -> Samples:
    if isinstance(data, SparseRows):
        return SparseRows(data.matrix[index])
    return data if len(index) == len(data) else replace(data, x=data.x[torch.from_numpy(index)])

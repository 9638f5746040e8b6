"""Solvers: how an estimator fits a model to samples."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from hmoevae import training
from hmoevae.door import Checked
from hmoevae.history import History
from hmoevae.model import HMoEVAE
from hmoevae.training.fitting import fit_quietly


class Fit(NamedTuple):
    """A model that has been fitted.

    Attributes:
        model: The model.
        history: The history of the run that was kept.
        loss: Its loss on all samples, in nats per sample.
    """

    model: HMoEVAE
    history: History
    loss: float


@dataclass(frozen=True, slots=True)
class Gradients:
    """Stochastic gradient descent, which ends when the objective of held-out samples has stopped falling.

    Attributes:
        training: The options of a run.
        seeds: A seed for each run; the one with the smallest loss on all samples is kept.
        tol: By how much a new best epoch has to be better, in nats per sample.
        patience: Number of epochs to wait for one.
        progress: Whether to show a progress bar.
    """

    training: training.Training
    seeds: Iterable[int]
    progress: bool

    def fit(self, make: Callable[[int], HMoEVAE], data: Checked) -> Fit:
        """Fit a model for each seed and keep the best."""

        def train(seed: int) -> tuple[HMoEVAE, History]:
            model = make(seed)
            return model, fit_quietly(model, data, replace(self.training, seed=seed), progress=self.progress)

        best = training.best_of(train, data, seeds=self.seeds)
        return Fit(best.model, best.history, best.losses[best.seed])

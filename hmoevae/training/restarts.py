"""Restarts: train from several seeds and keep the best model."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hmoevae.errors import ArgumentError, ArgumentTypeError, NonFiniteError, mismatch
from hmoevae.history import History
from hmoevae.model import HMoEVAE
from hmoevae.samples import BATCH_SIZE
from hmoevae.training.batches import Data, batches_of
from hmoevae.training.loop import evaluate
from hmoevae.training.processes import Processes


@dataclass(frozen=True, slots=True)
class Best:
    """The best of several trainings.

    Attributes:
        model: Its model.
        history: Its history.
        seed: Its seed.
        losses: The loss of every training by seed, in nats; the best training has the smallest.
        interrupted: Whether Ctrl-C ended the last of the trainings.

    >>> from hmoevae import VAE
    >>> best = Best(HMoEVAE(VAE(latent_dim=2), (4,)), History(), seed=1, losses={0: 3.5, 1: 3.0}, interrupted=False)
    >>> best.losses[best.seed]
    3.0
    """

    model: HMoEVAE
    history: History
    seed: int
    losses: dict[int, float]
    interrupted: bool


def best_of(
    train: Callable[[int], tuple[HMoEVAE, History]], validation_data: Data, *, seeds: Iterable[int] = range(4)
) -> Best:
    """Train from several seeds and keep the model with the smallest objective on held-out data.

    Models are compared by their own objective, without balance and agreement, and with the same draws of z. Labels play
    no part. After a training that Ctrl-C ended, no other begins.

    Args:
        train: A function of a seed that makes and trains a model, and returns it with its history.
        validation_data: Samples that `train` does not see, in any form that `fit` takes.
        seeds: The seeds to call `train` with.

    Raises:
        ArgumentError: There are no seeds.
        ArgumentTypeError: `train` does not return a model and its history, or `seeds` is a single number.
        NonFiniteError: The objective of a trained model is NaN or infinite.

    >>> import torch
    >>> from hmoevae import VAE, Mixture, Training, fit
    >>> def train(seed):
    ...     torch.manual_seed(seed)
    ...     model = HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,))
    ...     return model, fit(model, x[:48], Training(epochs=2, seed=seed), progress=False)
    >>> x = torch.rand(64, 4)
    >>> best = best_of(train, x[48:], seeds=range(3))
    >>> best.losses[best.seed] == min(best.losses.values()), len(best.losses)
    (True, 3)
    """
    if not isinstance(seeds, Iterable):
        raise ArgumentTypeError(mismatch("seeds", "seeds, such as range(4)", repr(seeds)))
    best: tuple[HMoEVAE, History, int] | None = None
    losses: dict[int, float] = {}
    interrupted = False
    for seed in seeds:
        match trained := train(seed):
            case HMoEVAE() as model, History() as history:
                pass
            case _:
                expected = "a function that returns a model and its history"
                raise ArgumentTypeError(mismatch("train", expected, f"{type(trained).__name__} from it"))
        processes = Processes.here(model.device)
        batches = batches_of(model, validation_data, "validation_data", BATCH_SIZE, None, processes)
        loss = evaluate(model, batches, 0, processes)[model.objective]
        if not math.isfinite(loss):
            raise NonFiniteError(mismatch("loss", "a finite loss after the last step", loss))
        if best is None or loss < min(losses.values()):
            best = model, history, seed
        losses[seed] = loss
        interrupted = history.interrupted
        if interrupted:
            break
    if best is None:
        raise ArgumentError(mismatch("seeds", "at least one", "none"))
    return Best(*best, losses, interrupted)

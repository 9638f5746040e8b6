"""Epochs of a run: each with all that is done after its steps, and what callbacks are given in the end of it."""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hmoevae.history import History
from hmoevae.model import HMoEVAE
from hmoevae.training.batches import Batches
from hmoevae.training.checkpoints import Checkpoints
from hmoevae.training.course import Course, Lesson
from hmoevae.training.loop import evaluate
from hmoevae.training.record import Training
from hmoevae.training.resume import TrainingState
from hmoevae.training.scales import warn_of_scales


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """What a callback is given when an epoch is done.

    Attributes:
        model: The model in training.
        history: Everything measured so far; the last row is this epoch's.
        epoch: The epoch just finished, from 1.
        epochs: How many were asked for.
        is_main: Whether this is the one process, or of several the one that writes and shows things.

    >>> from hmoevae import VAE, Mixture, Training, fit
    >>> def enough(end: EpochEnd) -> bool:
    ...     return end.epoch == 2
    >>> model = HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,))
    >>> len(fit(model, torch.rand(64, 4), Training(epochs=5), callbacks=[enough], progress=False))
    2
    """

    model: HMoEVAE
    history: History
    epoch: int
    epochs: int
    is_main: bool = True


Callback = Callable[[EpochEnd], object]


@dataclass(slots=True)
class Epochs:
    """The epochs of a run, of which some may be done already.

    Attributes:
        training: The options.
        course: What is done in each epoch.
        state: What changes with them.
        source: The samples.
        held_out: Those that are only measured.
        checkpoints: Where the state is kept.
        arguments: What a checkpoint tells of the run, in words.
        seed: Of held-out samples' draws.
        stopped: Whether training has ended by itself already.
    """

    training: Training
    state: TrainingState
    source: Batches
    held_out: Batches | None
    checkpoints: Checkpoints
    arguments: dict[str, Any]
    seed: int
    stopped: bool = False
    course: Course = field(init=False)
    started: float = field(init=False)
    has_looked: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        """Start the clock, where an earlier run left it."""
        self.course = self.training.course
        rows = self.state.history.rows
        self.started = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)

    def run(self, *, progress: bool) -> None:
        """All that are left, with their bar; callbacks are closed in the end."""
        total = None if self.source.length is None else self.training.epochs * len(self.source)
        processes = self.state.run.processes
        self._look_at_scales()
        with (
            closing(_bar(total, done=self.state.run.steps, show=progress and processes.is_main)) as bar,
            processes.ending_together(),
            torch.enable_grad(),
            ExitStack() as ends,
        ):
            for callback in self.state.callbacks:
                ends.callback(getattr(callback, "close", lambda: None))
            for epoch in range(len(self.state.history) + 1, 1 if self.stopped else self.training.epochs + 1):
                stops = self._epoch(epoch, bar)
                self._look_at_scales()
                if stops:
                    break

    def _look_at_scales(self) -> None:
        """Warn, once, of data far from the scale of the likelihoods; those of a loader are known after an epoch."""
        if not self.has_looked and self.source.glimpse is not None:
            self.has_looked = True
            if self.state.run.processes.is_main:
                warn_of_scales(self.state.run.model.plan, self.source.glimpse)

    def _epoch(self, epoch: int, bar: "tqdm[Any]") -> bool:
        """Train, record, call the callbacks and write what is due; returns whether training ends with it."""
        run, history = self.state.run, self.state.history
        lesson = self.course.lesson(epoch)
        run.model.train()
        row = run.epoch(self.source, lesson, f"epoch {epoch}/{self.training.epochs}", bar)
        if self.training.revive and lesson.phase == "joint" and epoch < self.training.epochs:
            row["revived"] = len(run.revive(row))
        run.model.eval()  # no dropout in what is measured, nor in what callbacks look at
        if self.held_out is not None:
            terms = evaluate(run.model, self.held_out, self.seed, run.processes)
            row |= {f"val_{name}": value for name, value in terms.items()}
        history.rows.append({"epoch": epoch, "seconds": time.perf_counter() - self.started, **row})
        waited_enough = self._compare(epoch, lesson, row)
        end = EpochEnd(run.model, history, epoch, self.training.epochs, run.processes.is_main)
        stops = [_is_true(callback(end)) for callback in self.state.callbacks]
        stopped = run.processes.any(any(stops)) or waited_enough
        if self.checkpoints.due(epoch, last=stopped or epoch == self.training.epochs):
            self._write(epoch, row, stopped=stopped)
        return stopped

    def _compare(self, epoch: int, lesson: Lesson, row: dict[str, float]) -> bool:
        """Compare an epoch with the best so far, where one is kept; returns whether that is too long ago."""
        best, run = self.state.best, self.state.run
        if best is None or not lesson.is_full:
            return False
        waited_enough = best.see(run.model, epoch, row[f"val_{run.model.objective}"], run.chosen)
        self.state.history.best_epoch = best.epoch
        return waited_enough

    def _write(self, epoch: int, row: dict[str, float], *, stopped: bool) -> None:
        run = self.state.run
        run.guard.check_weights(run.steps)  # callbacks may have changed them
        start = run.start if epoch < self.course.started_by else None  # for as long as it is needed
        whole = {"training": self.state.state_dict(), "seed": self.seed, "start": start, "stopped": stopped}
        loss = row.get(f"val_{run.model.objective}")
        self.checkpoints.write(run.model, epoch, loss, self.training.to_json(), self.arguments, whole)


def _is_true(answer: object) -> bool:
    """Whether a callback has said `True`, as Python, numpy or PyTorch say it."""
    is_truth_value = isinstance(answer, bool | np.bool_)
    if isinstance(answer, Tensor):
        is_truth_value = answer.dtype == torch.bool and answer.ndim == 0
    return is_truth_value and bool(answer)


def _bar(total: int | None, *, done: int, show: bool) -> "tqdm[Any]":
    bar = tqdm(total=total, initial=done, disable=not show, unit="step", dynamic_ncols=True)
    is_notebook = type(sys.stderr).__module__.startswith("ipykernel")  # it says of itself that it is no terminal
    if not (show and (is_notebook or getattr(bar.fp, "isatty", lambda: False)())):
        bar.mininterval = bar.maxinterval = 30.0  # a log file wants a line now and then, not ten a second
    return bar

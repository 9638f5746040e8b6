"""The epochs of a run: after an epoch's steps come validation, history, callbacks and the checkpoint."""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hmoevae.history import History
from hmoevae.model import HMoEVAE
from hmoevae.nn.exchange import Peers
from hmoevae.saving import files, sharded
from hmoevae.training.batches import Batches
from hmoevae.training.checkpoints import Checkpoints
from hmoevae.training.course import Course, Lesson
from hmoevae.training.cut_state import split
from hmoevae.training.loop import evaluate
from hmoevae.training.record import Training
from hmoevae.training.resume import TrainingState
from hmoevae.training.scales import warn_of_scales


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """The argument of a callback, which is called after every epoch.

    Attributes:
        model: The model in training.
        history: Everything measured so far; the last row is this epoch's.
        epoch: The epoch just finished, from 1.
        epochs: Number of epochs of the training.
        is_main: Whether this is the main process, which writes files and prints; true for a single process.

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
    """The epochs of a run; a resumed run has done some of them already.

    Attributes:
        training: The options.
        course: The plan of each epoch.
        state: Everything that changes from epoch to epoch.
        source: The training samples.
        held_out: The validation samples.
        checkpoints: The checkpoints of the run.
        arguments: The description of the run for its checkpoints, in words.
        seed: The seed of the draws for held-out samples.
        stopped: Whether the run was ended early before it was resumed.
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
        """Start the clock; a resumed run goes on from the seconds of the earlier one."""
        self.course = self.training.course
        rows = self.state.history.rows
        self.started = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)

    def run(self, *, progress: bool) -> None:
        """Run the remaining epochs with a progress bar, and close the callbacks."""
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
        """Warn once of data far from the scale of the likelihoods; a loader's data are known after one epoch."""
        if not self.has_looked and self.source.glimpse is not None:
            self.has_looked = True
            if self.state.run.processes.is_main:
                warn_of_scales(self.state.run.model.plan, self.source.glimpse)

    def _epoch(self, epoch: int, bar: "tqdm[Any]") -> bool:
        """Train one epoch, record it, call the callbacks, write a checkpoint; returns whether training ends."""
        run, history = self.state.run, self.state.history
        lesson = self.course.lesson(epoch)
        run.model.train()
        row = run.epoch(self.source, lesson, f"epoch {epoch}/{self.training.epochs}", bar)
        if self.training.init_shared and epoch == self.course.started_by:
            run.share_start()
        if self.training.revive and lesson.phase == "joint" and epoch < self.training.epochs:
            row["revived"] = len(run.revive(row))
        run.model.eval()  # no dropout in what is measured, nor in what callbacks look at
        if self.held_out is not None:
            terms = evaluate(run.model, self.held_out, self.seed, run.processes)
            row |= {f"val_{name}": value for name, value in terms.items()}
        history.rows.append({"epoch": epoch, "seconds": time.perf_counter() - self.started, **row})
        waited_enough = self._compare(epoch, lesson, row)
        end = EpochEnd(run.model, history, epoch, self.training.epochs, run.processes.is_main)
        with run.processes.silence():
            stops = [_is_true(callback(end)) for callback in self.state.callbacks]
        stopped = run.processes.any(any(stops)) or waited_enough
        due = self.checkpoints.due(epoch, last=stopped or epoch == self.training.epochs)
        if run.processes.peers is None and due:
            self._write(epoch, row, stopped=stopped)
        elif run.processes.peers is not None and run.processes.any(due):
            self._write_cut(run.processes.peers, epoch, row, stopped=stopped)
        return stopped

    def _compare(self, epoch: int, lesson: Lesson, row: dict[str, float]) -> bool:
        """Compare an epoch with the best so far; returns whether early stopping has waited long enough."""
        best, run = self.state.best, self.state.run
        if best is None or not lesson.is_full:
            return False
        waited_enough = best.see(run.model, epoch, row[f"val_{run.model.objective}"], run.chosen)
        self.state.history.best_epoch = best.epoch
        return waited_enough

    def _write(self, epoch: int, row: dict[str, float], *, stopped: bool) -> None:
        run = self.state.run
        run.guard.check_weights(run.steps)  # callbacks may have changed them
        self._write_files(epoch, row, self.state.state_dict(), stopped=stopped)

    def _write_cut(self, peers: Peers, epoch: int, row: dict[str, float], *, stopped: bool) -> None:
        """As `_write`, in all processes, each of which writes the rows of experts that it holds."""
        run, state = self.state.run, self.state.state_dict()
        run.guard.check_weights(run.steps)
        weights = dict(run.model.state_dict())
        rows = split(state, weights, run.model, run.optimizer, peers)
        mesh = run.processes.mesh
        assert mesh is not None

        def write_rows(folder: Path | None) -> None:
            everywhere = run.processes.from_main(lambda: folder)
            assert everywhere is not None
            sharded.write(everywhere, rows, peers, mesh)

        def write_model(folder: Path) -> None:
            files.write_model(folder, run.model._config(), weights)
            (folder / sharded.FOLDER).mkdir()
            write_rows(folder / sharded.FOLDER)

        if run.processes.is_main:
            self._write_files(epoch, row, state, stopped=stopped, write_model=write_model)
        else:
            write_rows(None)

    def _write_files(
        self,
        epoch: int,
        row: dict[str, float],
        state: dict[str, Any],
        *,
        stopped: bool,
        write_model: Callable[[Path], None] | None = None,
    ) -> None:
        run = self.state.run
        start = run.start if epoch < self.course.started_by else None  # no later epoch needs it
        whole = {"training": state, "seed": self.seed, "start": start, "stopped": stopped}
        loss = row.get(f"val_{run.model.objective}")
        self.checkpoints.write(run.model, epoch, loss, self.training, self.arguments, whole, write_model)


def _is_true(answer: object) -> bool:
    """Whether a callback returned `True`, as a bool of Python, numpy or PyTorch."""
    is_truth_value = isinstance(answer, bool | np.bool_)
    if isinstance(answer, Tensor):
        is_truth_value = answer.dtype == torch.bool and answer.ndim == 0
    return is_truth_value and bool(answer)


def _bar(total: int | None, *, done: int, show: bool) -> "tqdm[Any]":
    bar = tqdm(total=total, initial=done, disable=not show, unit="step", dynamic_ncols=True)
    is_notebook = type(sys.stderr).__module__.startswith("ipykernel")  # its stream reports that it is no terminal
    if not (show and (is_notebook or getattr(bar.fp, "isatty", lambda: False)())):
        bar.mininterval = bar.maxinterval = 30.0  # in a log file, one line every 30 seconds instead of ten a second
    return bar

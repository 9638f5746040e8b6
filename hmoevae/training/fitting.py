"""fit: trains a model on tensors, arrays, data sets or loaders, and returns the history."""

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from hmoevae.errors import ArgumentError, ArgumentTypeError, NonFiniteError, mismatch
from hmoevae.history import History
from hmoevae.model import HMoEVAE
from hmoevae.samples import ArrayLike
from hmoevae.starts import comparable, first_leaves
from hmoevae.training.batches import Batches, Data, batches_of
from hmoevae.training.best import BestSoFar
from hmoevae.training.checkpoints import Checkpoint, Checkpoints, Resume
from hmoevae.training.compiled import CompiledPass
from hmoevae.training.device import autocast, resolve_device
from hmoevae.training.epochs import Callback, Epochs
from hmoevae.training.gate_views import GateViews
from hmoevae.training.loop import Run
from hmoevae.training.processes import Processes
from hmoevae.training.record import Training
from hmoevae.training.resume import (
    TrainingState,
    described_data,
    described_model,
    described_training,
    described_weights,
)
from hmoevae.training.row_adam import RowAdam
from hmoevae.training.usage import warn_after_fit, warn_of_start
from hmoevae.training.words import options_in

USUAL = Training()


@options_in("training", Training)
def fit(
    model: HMoEVAE,
    data: Data,
    training: Training = USUAL,
    *,
    sample_weight: ArrayLike | None = None,
    validation_data: Data | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    resume: Resume = "auto",
) -> History:
    """Train `model` in place by stochastic gradient descent on its objective.

    Warnings name what collapsed, as of the last epoch: a leaf whose share is below a hundredth of an even share, or
    that is the most probable leaf of no sample although no gate above it is constant (`DeadLeafWarning`); and a gate
    whose information is below a hundredth of the possible (`ConstantGateWarning`). A `ScaleWarning` names columns of a
    table whose scale is far from that of the Gaussian likelihood. Ctrl-C ends training and returns the history so far,
    with `history.interrupted` set. `fit` restores the global random states, except for what callbacks draw, and the
    number of threads, which it sets to one for small steps on a CPU.

    Several processes, started by `torchrun` or `accelerate launch`, train one model. They begin with the main process's
    weights and seed, and compute what one process would compute with the joint batches. All return the same history and
    weights. The main process shows the progress and gives the warnings.

    Args:
        model: The model. After training it is on the training's device, or with `expert_parallel` in host memory, and
            in evaluation mode.
        data: Samples `(n, *input_shape)` as a tensor or array, or a Dataset or DataLoader of them. If the items are
            tuples, such as (image, label), only the first entry is read. A memory-mapped array (`np.memmap`, as from
            `np.load(file, mmap_mode="r")`) is copied into memory 256 MiB at a time. A larger one is shuffled in blocks
            of 1 MiB, and then sample by sample within these 256 MiB. `hm.datasets.Scaled(data, 255)` scales an array or
            such a file of pixels. An IterableDataset has its own order.
        training: All options of the training, such as `hm.Training(epochs=5, init="kmeans")`.
        sample_weight: How many samples each sample counts for: `(n,)` numbers >= 0, for data in memory or in a file.
            Integers train as repeated samples do, exactly so where a batch holds all samples. All that the history
            records of the training data is weighted too. A balance of kind `"variance"` grows with the square of the
            weights, `"cv2"` and `"kl"` do not. Of the starts, `"kmeans"` uses them.
        validation_data: Held-out samples, which the gates see without a view and which have no weights. Their terms are
            recorded after every epoch. Only `training.early_stopping` uses them.
        callbacks: Called with an `EpochEnd` after every epoch, in every process. A callback that returns `True` ends
            training in all processes. One with `state_dict` and `load_state_dict` is saved in checkpoints and restored
            on resuming. One with `close` is closed when training ends or fails.
        progress: Show a progress bar.
        checkpoint_dir: A folder for checkpoints. An interrupted training resumes from it with the same result, to the
            bit, as without the interruption. `HMoEVAE.from_pretrained` reads the model in each checkpoint.
        resume: `"auto"` resumes from the newest whole checkpoint in `checkpoint_dir`, if there is one. `"never"` starts
            anew and refuses a folder that has checkpoints. A path resumes from that checkpoint. Data and training must
            be the same as before. The random states of Python, numpy and torch are set to those of the checkpoint.
            `checkpoint_every` and `checkpoint_keep` may change; `epochs` may change with a constant learning rate,
            without agreement and without revival.

    Returns:
        The history, with one row per epoch and the training.

    Raises:
        ArgumentError: An argument cannot be used; `DataError` and `ShapeError` for data.
        ArgumentTypeError: An argument has a wrong type, such as integers for data.
        ProcessError: Another process has ended.
        NonFiniteError: The loss became NaN or infinite. The model has the weights before that step or, where those are
            not finite, the weights after the last good epoch. No checkpoint of that step is written. On a GPU the
            losses are looked at every 50 steps and after each epoch.
        CheckpointError: A checkpoint cannot be written, for example because the disk is full (earlier checkpoints are
            kept), or the checkpoint that `resume` names is damaged. Damaged checkpoints in `checkpoint_dir` are skipped
            with a `CheckpointWarning`.

    >>> from hmoevae import VAE, Mixture
    >>> model = HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,))
    >>> history = fit(model, torch.rand(64, 4), Training(epochs=2), progress=False)
    >>> len(history), [c for c in history.columns if c.startswith("usage")]
    (2, ['usage/root/0', 'usage/root/1', 'usage/root/2'])
    """
    held_out = validation_data
    job, history = _trained(model, data, training, sample_weight, held_out, callbacks, progress, checkpoint_dir, resume)
    job.warn(history)
    return history


def fit_quietly(
    model: HMoEVAE,
    data: Data,
    training: Training,
    *,
    sample_weight: ArrayLike | None = None,
    validation_data: Data | None = None,
    progress: bool,
) -> History:
    """`fit` without its warnings of collapse, for a caller that warns of the one training that it keeps."""
    return _trained(model, data, training, sample_weight, validation_data, (), progress, None, "auto")[1]


def _trained(
    model: HMoEVAE,
    data: Data,
    training: Training,
    sample_weight: ArrayLike | None,
    validation_data: Data | None,
    callbacks: Sequence[Callback],
    progress: bool,
    checkpoint_dir: str | os.PathLike[str] | None,
    resume: Resume,
) -> "tuple[_Job, History]":
    _check(model, training, validation_data, callbacks, checkpoint_dir)
    where = resolve_device(training.device)
    processes = Processes.here(where)
    if training.compile and processes.count > 1:
        raise ArgumentError(mismatch("Training.compile", "False in several processes", training.compile))
    options = described_training(training, None, where, processes)  # without the seed, which the main process decides
    options["Training.expert_parallel"] = str(training.expert_parallel)
    options["Training.epochs"] = str(training.epochs)  # processes with different numbers of epochs would deadlock
    processes.check_equal(**described_model(model), **options)
    processes.check_cut(training.expert_parallel)
    folder = checkpoint_dir if processes.is_main else None
    with Checkpoints(folder, training.checkpoint_every, training.checkpoint_keep) as checkpoints:
        checkpoint = processes.from_main(lambda: checkpoints.find(resume))
        seed = processes.from_main(partial(_seed, training.seed, checkpoint))
        order = torch.Generator().manual_seed(seed)
        opened = partial(batches_of, model, batch_size=training.batch_size, processes=processes)
        source = opened(data, "data", order=order, sample_weight=sample_weight)
        processes.check_equal(sample_weight=described_weights(source.weights))
        held_out = None if validation_data is None else opened(validation_data, "validation_data", order=None)
        job = _Job(model, training, where, processes, seed, order, source, held_out, (data, validation_data), callbacks)
        if checkpoint is not None:
            job.check_goes_on(checkpoint)
        history = History(training=training)
        try:
            job.train(history, checkpoints, checkpoint, progress=progress)
        except KeyboardInterrupt:
            history.interrupted = True
        except NonFiniteError as error:  # in all processes
            processes.make_whole(model)
            if checkpoints.last is None:
                raise
            raise NonFiniteError(f"{error}; the last checkpoint is {checkpoints.last}") from None
        except BaseException:  # whatever ends the training ends the exchange of samples too
            processes.part()
            raise
        job.finish()
        return job, history


def _check(
    model: HMoEVAE, training: Training, validation_data: Data | None, callbacks: Sequence[Callback], folder: object
) -> None:
    """Check everything that can be checked without data and device."""
    if torch.is_inference_mode_enabled():  # its tensors cannot have gradients
        raise ArgumentError(mismatch("fit", "a call outside torch.inference_mode", "a call inside"))
    if not isinstance(model, HMoEVAE):
        raise ArgumentTypeError(mismatch("model", "an HMoEVAE", type(model).__name__))
    if not isinstance(training, Training):
        raise ArgumentTypeError(mismatch("training", "a Training(...)", type(training).__name__))
    if not isinstance(callbacks, Sequence):
        raise ArgumentTypeError(mismatch("callbacks", "a sequence of callables", type(callbacks).__name__))
    for callback in callbacks:
        if not callable(callback):
            raise ArgumentTypeError(mismatch("callbacks", "a sequence of callables", f"{callback!r} in it"))
        if isinstance(callback, type):
            raise ArgumentTypeError(mismatch("callbacks", f"{callback.__name__}(...)", "the class itself"))
    if folder is not None and not isinstance(folder, str | os.PathLike):
        raise ArgumentTypeError(mismatch("checkpoint_dir", "None or a path", repr(folder)))
    if training.early_stopping is not None and validation_data is None:
        expected = "held-out samples, for Training.early_stopping"
        raise ArgumentError(mismatch("validation_data", expected, None))
    _check_model(model, training, saves=folder is not None)


def _check_model(model: HMoEVAE, training: Training, *, saves: bool) -> None:
    kinds = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
    if kinds not in (["float32"], ["float64"]):  # in half precision, an optimiser's steps are rounded to zero
        expected = "float32 or float64 parameters (call model.float(); for speed use Training(precision='bf16'))"
        raise ArgumentError(mismatch("model", expected, " and ".join(kinds)))
    model.check_can_learn()
    model.experts.check_whole()
    if saves:
        model.check_rebuilds()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ArgumentError(mismatch("model", "a parameter that requires a gradient", "none"))
    if training.agreement is not None and not model.plan.mixtures:
        raise ArgumentError(mismatch("Training.agreement", "None for a tree without a gate", training.agreement))
    levels = None if training.agreement is None else training.agreement.levels
    if levels is not None and max(levels) > model.plan.depth:
        expected = f"levels from 1 to the tree's depth {model.plan.depth}"
        raise ArgumentError(mismatch("Training.agreement.levels", expected, levels))


class _Job:
    """One call of `fit`, after its arguments have been checked."""

    def __init__(
        self,
        model: HMoEVAE,
        training: Training,
        device: torch.device,
        processes: Processes,
        seed: int,
        order: torch.Generator,
        source: Batches,
        held_out: Batches | None,
        data: tuple[Data, Data | None],
        callbacks: Sequence[Callback],
    ) -> None:
        if training.lr_schedule == "cosine" and source.length is None:
            expected = "'constant' for data of unknown length"
            raise ArgumentError(mismatch("Training.lr_schedule", expected, repr(training.lr_schedule)))
        self.model = model
        self.training = training
        self.device = device
        self.processes = processes
        self.seed = seed
        self.order = order
        self.source = source
        self.held_out = held_out
        self.data = data
        self.callbacks = callbacks
        self.best = None if training.early_stopping is None else BestSoFar(training.early_stopping)
        self.chosen: list[float] = []
        self.arguments = {
            **described_model(model),
            "data": described_data(model, data[0], source),
            "sample_weight": described_weights(source.weights),
            "validation_data": described_data(model, data[1], held_out),
            **described_training(training, None if training.seed is None else seed, device, processes),
        }

    def check_goes_on(self, checkpoint: Checkpoint) -> None:
        """Check that a checkpoint is of the same run, and that the run does not end before it."""
        checkpoint.require(self.arguments, json.loads(self.model.tree.to_json()))
        if checkpoint.epoch > self.training.epochs:
            expected = f"at least {checkpoint.epoch}, as in the checkpoint {checkpoint.path}"
            raise ArgumentError(mismatch("Training.epochs", expected, self.training.epochs))

    def train(
        self, history: History, checkpoints: Checkpoints, checkpoint: Checkpoint | None, *, progress: bool
    ) -> None:
        """Run the remaining epochs; in the end, or on an error, set evaluation mode and free the gradients."""
        views = GateViews(self.training.view, self.training.agreement, self.source.samples)
        start = self.processes.from_main(self._start) if checkpoint is None else checkpoint.state["start"]
        self.processes.share_weights(self.model)
        self.processes.cut(self.model, self.training.expert_parallel)
        self.model.to(self.device)
        with ExitStack() as afterwards:
            afterwards.callback(self.model.eval)
            run = self._run(views, start)
            afterwards.callback(run.close)
            state = TrainingState(run, history, self.order, self.data, self.callbacks, self.best)
            stopped = False
            if checkpoint is not None:
                state.restore(checkpoint)
                stopped = bool(checkpoint.state["stopped"])
            run.guard.keep_weights()
            epochs = Epochs(
                self.training, state, self.source, self.held_out, checkpoints, self.arguments, self.seed, stopped
            )
            try:
                epochs.run(progress=progress)
            finally:
                self.chosen = run.chosen

    def finish(self) -> None:
        """Leave the model whole, and with its best weights, where they are kept."""
        if self.best is not None and self.best.epoch is not None:
            self.best.put_back(self.model)
        self.processes.make_whole(self.model)

    def warn(self, history: History) -> None:
        """Warn of a start that was not learned, and of leaves and gates that do nothing in the end.

        The end is the epoch whose weights the model has.
        """
        row, chosen = history.rows[-1] if len(history) else None, self.chosen
        if self.best is not None and self.best.epoch is not None:
            row, chosen = history.rows[self.best.epoch - 1], self.best.chosen
        if row is not None and self.processes.is_main:
            if 0 < self.training.start_epochs <= len(history):
                warn_of_start(self.model.plan, history.rows[self.training.start_epochs - 1])
            warn_after_fit(self.model.plan, row, chosen)

    def _start(self) -> Int[Tensor, " n"] | None:
        """The leaf of every sample for the start phase; `None` for a random start."""
        if self.training.start_epochs == 0:
            return None
        if self.source.samples is None:
            expected = "a tensor or array in memory, for a start"
            raise ArgumentTypeError(mismatch("data", expected, "another source of samples"))
        weight = None if self.source.weights is None else self.source.weights.counts
        compared = comparable(self.model, self.source.samples)
        return first_leaves(self.model.plan, compared, self.training.init, self.seed, weight)

    def _run(self, views: GateViews, start: Tensor | None) -> Run:
        training = self.training
        optimizer = _optimizer(self.model, training)
        cosine = None
        if training.lr_schedule == "cosine":
            cosine = CosineAnnealingLR(optimizer, training.course.falling_epochs * len(self.source))
        return Run(
            self.model,
            optimizer,
            cosine,
            views,
            start,
            torch.Generator(self.device).manual_seed(self.seed),
            autocast(self.device, training.precision),
            self.processes,
            compiled=CompiledPass(self.model, kl_weight=training.kl_weight) if training.compile else None,
            max_grad_norm=training.max_grad_norm,
            shared_start=training.init_shared,
        )


def _optimizer(model: HMoEVAE, training: Training) -> Optimizer:
    """Make the optimiser; a user's callable is checked."""
    if training.optimizer is None:
        return RowAdam(model.parameters(), lr=training.lr)
    made = training.optimizer(model.parameters())
    if not isinstance(made, Optimizer):
        expected = "a callable that returns a torch Optimizer"
        raise ArgumentTypeError(mismatch("Training.optimizer", expected, type(made).__name__))
    if isinstance(made, torch.optim.LBFGS):
        raise ArgumentError(mismatch("Training.optimizer", "an optimiser that steps without a closure", "LBFGS"))
    return made


def _seed(given: int | None, checkpoint: Checkpoint | None) -> int:
    if given is not None:
        return given
    return torch.Generator().seed() if checkpoint is None else int(checkpoint.state["seed"])

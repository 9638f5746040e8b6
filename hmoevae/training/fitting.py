"""fit: trains a model on tensors, arrays, data sets or loaders, and records what happens."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm.auto import tqdm

from hmoevae.checks import check_integer, check_number, is_integer
from hmoevae.errors import ArgumentError, ArgumentTypeError, NonFiniteError, mismatch
from hmoevae.history import History
from hmoevae.model import HMoEVAE
from hmoevae.nn.draws import Draws
from hmoevae.starts import Start, first_leaves
from hmoevae.training.agreement import Agreement, GateViews
from hmoevae.training.batches import Batches, Data, batches_of
from hmoevae.training.checkpoints import Checkpoint, Checkpoints, Resume
from hmoevae.training.compiled import CompiledPass
from hmoevae.training.course import Course
from hmoevae.training.device import Precision, autocast, resolve_device
from hmoevae.training.loop import Run, evaluate
from hmoevae.training.processes import Processes
from hmoevae.training.resume import TrainingState, described, described_data, described_model
from hmoevae.training.scales import warn_of_scales
from hmoevae.training.usage import warn_after_fit
from hmoevae.training.warmup import Warmup
from hmoevae.views import ViewLike

Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """What a callback is given when an epoch is done.

    Attributes:
        model: The model in training.
        history: Everything measured so far; the last row is this epoch's.
        epoch: The epoch just finished, from 1.
        epochs: How many were asked for.
        is_main: Whether this is the one process, or of several the one that writes and shows things.

    >>> from hmoevae import VAE, Mixture
    >>> def enough(end: EpochEnd) -> bool:
    ...     return end.epoch == 2
    >>> model = HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,))
    >>> len(fit(model, torch.rand(64, 4), epochs=5, callbacks=[enough], progress=False))
    2
    """

    model: HMoEVAE
    history: History
    epoch: int
    epochs: int
    is_main: bool = True


Callback = Callable[[EpochEnd], object]


def fit(
    model: HMoEVAE,
    data: Data,
    *,
    epochs: int = 20,
    batch_size: int = 128,
    lr: float = 1e-3,
    lr_schedule: Schedule = "constant",
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    view: ViewLike | None = None,
    agreement: Agreement | None = None,
    init: Start = "random",
    init_epochs: int = 1,
    warmup: Warmup | None = None,
    revive: bool = False,
    validation_data: Data | None = None,
    seed: int | None = 0,
    device: str | torch.device = "auto",
    precision: Precision = "fp32",
    compile: bool = False,  # noqa: A002  # as it is called everywhere
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
    checkpoint_keep: int = 3,
    resume: Resume = "auto",
) -> History:
    """Train `model` in place by stochastic gradient descent on its objective.

    What is of no use in the last epoch is named in a warning: a leaf that took less than a hundredth of an even share,
    or was the most probable one of no sample though no gate above it is constant (`DeadLeafWarning`), a gate whose
    answer tells less than a hundredth of what it could (`ConstantGateWarning`). Data of a table far from the scale of a
    Gaussian likelihood are named in a `ScaleWarning` when training begins. Ctrl-C ends training and returns what there
    is, with `history.interrupted` set. The global random states stay as they are, but for what callbacks draw, and so
    does the number of threads: a CPU computes small steps in one.

    Several processes, as `torchrun` or `accelerate launch` start them, train one model: from the main one's weights and
    seed, and as one process would with their batches together. All return the same history and weights; the main one
    shows the progress and gives the warnings.

    Args:
        model: The model; it ends on `device` and in evaluation mode.
        data: Samples `(n, *input_shape)` as a tensor or array, or a Dataset or DataLoader of them. Of items that are
            tuples, such as (image, label), only the first entry is read. A memory-mapped array (`np.memmap`, as
            `np.load(file, mmap_mode="r")` gives) is copied into memory 256 MiB at a time: a larger one is shuffled in
            blocks of 1 MiB, and then sample by sample within what is in memory. `hm.datasets.Scaled(data, 255)` stands
            for such a file, or an array, of pixels. An IterableDataset brings its own order.
        epochs: Passes over the data.
        batch_size: Samples a step, in each process; a DataLoader brings its own.
        lr: Learning rate of Adam; an `optimizer` brings its own, and then it is only told from that of a checkpoint.
        lr_schedule: `"cosine"` lets the learning rate fall to zero along half a cosine, over all epochs or, with
            `agreement`, over those in which gates and experts learn together.
        optimizer: Builds another optimiser from the parameters, such as `functools.partial(torch.optim.SGD, lr=0.1)`.
        view: A random change of the samples for the gates to look at, while the experts model the samples themselves:
            a view of `hmoevae.views`, or any callable from samples to samples.
        agreement: Teach the gates that a sample and its partner are of one kind, at first without the experts.
        init: Where training begins: `"random"`; `"kmeans"` or `"umap"` (a Gaussian mixture in a UMAP embedding),
            clusters and within them clusters, level by level; a leaf index for every sample; or a callable that
            clusters, from an array of features (n, feature), a number of clusters and a seed to the clusters (n,).
        init_epochs: The first epochs, in which gates and experts learn the start; not read for a random one.
        warmup: Let the KL weigh less and the gates be softer in the first epochs in which the experts learn.
        revive: Give a child of a mixture that took less than a hundredth of an even share in an epoch a copy of its
            most used sibling, with half of the samples; after every epoch in which gates and experts learn together,
            but for the last one. The column `revived` of the history counts them.
        validation_data: Held-out samples, seen without a view; their terms are recorded after every epoch and change
            nothing.
        seed: Fixes the order of the data, the draws of z, and what loaders, data sets and views draw from the global
            random states of Python, numpy and torch, which are lent to them: the same seed gives the same result on a
            CPU with the same number of threads. A loader with a generator of its own draws from that. `None` takes a
            fresh one. The weights are drawn when the model is made, by torch's global
            generator: call `torch.manual_seed` before that.
        device: Where to train; `"auto"` takes an accelerator if there is one.
        precision: `"bf16"` runs the networks under bfloat16 autocast; parameters, sums and the optimiser stay float32.
            On a CPU without bfloat16 instructions it warns and trains in `"fp32"`.
        compile: Make code for the steps in which gates and experts learn together (`torch.compile`, from PyTorch 2.7
            on; on a CPU it needs a C++ compiler). The first of them takes some 6 to 20 seconds, those that follow are
            faster where there are few leaves; see the documentation on performance. Not for several processes.
        callbacks: Called with an `EpochEnd` after every epoch, in every process; a callback that returns `True` ends
            training, in all of them. One that has `state_dict` and `load_state_dict` goes on where it was when training
            does; one that has `close` is closed in the end, however that comes.
        progress: Show a progress bar.
        checkpoint_dir: A folder for checkpoints, from which training that was cut short goes on as if nothing had
            happened. `HMoEVAE.from_pretrained` reads the model in each.
        checkpoint_every: Epochs from one checkpoint to the next; the last epoch has one in any case.
        checkpoint_keep: How many of the last checkpoints are kept, and with validation data beside them the one with
            the smallest validation loss, that of the model's objective.
        resume: `"auto"` goes on from the newest whole checkpoint in `checkpoint_dir`, where there is one; `"never"`
            starts anew and refuses a folder that has checkpoints; the path of a checkpoint goes on from that one. The
            arguments have to be those of before, and the random states of Python, numpy and torch become those of the
            checkpoint. `epochs` may be another number with a constant learning rate, without agreement and revival.

    Returns:
        The history, one row an epoch.

    Raises:
        ArgumentError: An argument cannot be used; `DataError` and `ShapeError` for data.
        ArgumentTypeError: One is of a type that cannot be used, such as integers for data.
        ProcessError: Another process has gone.
        NonFiniteError: The loss became NaN or infinite. The model is left as it was before that step, or
            where its weights are spoilt already, as it was after the last good epoch. No checkpoint is written of it.
        CheckpointError: A checkpoint cannot be written, as on a full disk, and the ones before are kept; or the one
            that `resume` names is damaged. In a `checkpoint_dir` damaged ones are passed over with a
            `CheckpointWarning`.

    >>> from hmoevae import VAE, Mixture
    >>> model = HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,))
    >>> history = fit(model, torch.rand(64, 4), epochs=2, progress=False)
    >>> len(history), [c for c in history.columns if c.startswith("usage")]
    (2, ['usage/root/0', 'usage/root/1', 'usage/root/2'])
    """
    if torch.is_inference_mode_enabled():  # whose tensors no gradient can go through
        raise ArgumentError(mismatch("fit", "a call outside torch.inference_mode", "one inside"))
    if not isinstance(model, HMoEVAE):
        raise ArgumentTypeError(mismatch("model", "an HMoEVAE", type(model).__name__))
    kinds = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
    if kinds not in (["float32"], ["float64"]):  # the steps of an optimiser get lost in half precision
        expected = "float32 or float64 parameters (model.float(); for speed, fit(precision='bf16') keeps them so)"
        raise ArgumentError(mismatch("model", expected, " and ".join(kinds)))
    counts = {"epochs": epochs, "batch_size": batch_size, "init_epochs": init_epochs}
    counts |= {"checkpoint_every": checkpoint_every, "checkpoint_keep": checkpoint_keep}
    for name, number in counts.items():
        check_integer(name, number)
    check_number("lr", lr, positive=True)
    if lr_schedule not in get_args(Schedule):
        raise ArgumentError(mismatch("lr_schedule", "'constant' or 'cosine'", repr(lr_schedule)))
    if precision not in get_args(Precision):
        raise ArgumentError(mismatch("precision", "'fp32' or 'bf16'", repr(precision)))
    if seed is not None and not (is_integer(seed) and -(1 << 63) <= seed < 1 << 64):
        raise ArgumentError(mismatch("seed", "None or an integer of at most 64 bits", repr(seed)))
    if optimizer is not None and not callable(optimizer):
        expected = "None or a callable that makes one from the parameters"
        raise ArgumentTypeError(mismatch("optimizer", expected, type(optimizer).__name__))
    if not isinstance(callbacks, Sequence):
        raise ArgumentTypeError(mismatch("callbacks", "a sequence of callables", type(callbacks).__name__))
    for callback in callbacks:
        if not callable(callback):
            raise ArgumentTypeError(mismatch("callbacks", "a sequence of callables", f"{callback!r} in it"))
        if isinstance(callback, type):
            raise ArgumentTypeError(mismatch("callbacks", f"{callback.__name__}(...)", "the class itself"))
    for name, flag in {"compile": compile, "revive": revive}.items():
        if not isinstance(flag, bool):
            raise ArgumentTypeError(mismatch(name, "True or False", repr(flag)))
    for name, record, kind in (("agreement", agreement, Agreement), ("warmup", warmup, Warmup)):
        if record is not None and not isinstance(record, kind):
            raise ArgumentTypeError(mismatch(name, f"None or {kind.__name__}(...)", repr(record)))
    if checkpoint_dir is not None and not isinstance(checkpoint_dir, str | os.PathLike):
        raise ArgumentTypeError(mismatch("checkpoint_dir", "None or a path", repr(checkpoint_dir)))
    model.check_can_learn()
    if checkpoint_dir is not None:
        model.check_rebuilds()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ArgumentError(mismatch("model", "a parameter that asks for a gradient", "none"))
    if agreement is not None and not model.plan.mixtures:
        raise ArgumentError(mismatch("agreement", "None for a tree without a gate", agreement))
    epochs, batch_size, init_epochs = int(epochs), int(batch_size), 0 if _is_random(init) else int(init_epochs)
    course = Course(epochs, init_epochs, agreement, warmup)
    where = resolve_device(device)
    processes = Processes.here(where)
    if compile and processes.count > 1:
        raise ArgumentError(mismatch("compile", "False in several processes", compile))
    about_model = described_model(model)
    processes.check_equal(**about_model, epochs=epochs, batch_size=batch_size, precision=precision)
    with Checkpoints(checkpoint_dir if processes.is_main else None, checkpoint_every, checkpoint_keep) as checkpoints:
        checkpoint = processes.from_main(lambda: checkpoints.find(resume))
        given_seed = seed
        seed = processes.from_main(partial(_seed, given_seed, checkpoint))
        order = torch.Generator().manual_seed(seed)
        source = batches_of(model, data, "data", batch_size, order, processes)
        held_out = None
        if validation_data is not None:
            held_out = batches_of(model, validation_data, "validation_data", batch_size, None, processes)
        if lr_schedule == "cosine" and source.length is None:
            raise ArgumentError(mismatch("lr_schedule", "'constant' for data of unknown length", repr(lr_schedule)))
        arguments = about_model | {
            "data": described_data(model, data, source),
            "validation_data": described_data(model, validation_data, held_out),
            "batch_size": batch_size * processes.count,
            "lr": float(lr),
            "lr_schedule": lr_schedule,
            "optimizer": described(optimizer),
            "view": described(view),
            "agreement": described(agreement),
            "init": described(init),
            "warmup": described(warmup),
            "revive": revive,
            "init_epochs": init_epochs,
            "seed": None if given_seed is None else int(seed),
            "device": where.type,
            "precision": precision,
            "compile": compile,
            # With these, the number of epochs says what is done in each of them.
            "epochs": epochs if lr_schedule != "constant" or agreement is not None or revive else None,
        }
        # The main process has the last word on the seed; of their data the processes see parts.
        processes.check_equal(**{k: v for k, v in arguments.items() if k not in ("seed", "data", "validation_data")})
        if checkpoint is not None:
            checkpoint.require(arguments, json.loads(model.tree.to_json()))
            if checkpoint.epoch > epochs:
                expected = f"at least {checkpoint.epoch}, as many as are done in the checkpoint {checkpoint.path}"
                raise ArgumentError(mismatch("epochs", expected, epochs))
        views = GateViews(view, agreement, source.samples)
        if checkpoint is None:
            start = processes.from_main(partial(_start, model, init, source.samples, seed))
        else:
            start = checkpoint.state["start"]

        total = epochs * len(source) if source.length is not None else None
        history, run = History(), None
        model.to(where).train()
        afterwards = ExitStack()
        afterwards.callback(model.eval)
        try:
            solver = _optimizer(model, optimizer, lr)
            cosine = None
            if lr_schedule == "cosine":
                cosine = torch.optim.lr_scheduler.CosineAnnealingLR(solver, course.falling_epochs * len(source))
            noise = Draws(where)
            noise.manual_seed(seed)
            compiled = CompiledPass(model) if compile else None
            run = Run(model, solver, cosine, views, start, noise, autocast(where, precision), processes, compiled)
            afterwards.callback(run.close)
            state = TrainingState(run, history, order, (data, validation_data), callbacks)
            stopped = False
            if checkpoint is not None:
                state.restore(checkpoint)
                stopped = bool(checkpoint.state["stopped"])
            processes.share_weights(model)
            run.keep_weights()
            training = _Training(state, source, held_out, course, epochs, seed, revive, checkpoints, arguments)
            training.look_at_scales()
            shown = progress and processes.is_main
            with (
                closing(_bar(total, done=run.steps, show=shown)) as bar,
                processes.ending_together(),
                torch.enable_grad(),
                ExitStack() as ends,
            ):
                for callback in callbacks:
                    ends.callback(getattr(callback, "close", lambda: None))
                for epoch in range(len(history) + 1, 1 if stopped else epochs + 1):
                    stops = training.epoch(epoch, bar)
                    training.look_at_scales()
                    if stops:
                        break
        except KeyboardInterrupt:
            history.interrupted = True
        except NonFiniteError as error:
            if checkpoints.last is None:
                raise
            raise NonFiniteError(f"{error}; the last checkpoint is {checkpoints.last}") from None
        finally:
            afterwards.close()
        if len(history) and processes.is_main:
            warn_after_fit(model.plan, history.rows[-1], [] if run is None else run.chosen)
        return history


@dataclass(slots=True)
class _Training:
    """The epochs of a run, each with all that is done after its steps."""

    state: TrainingState
    source: Batches
    held_out: Batches | None
    course: Course
    epochs: int
    seed: int
    revive: bool
    checkpoints: Checkpoints
    arguments: dict[str, Any]
    started: float = field(init=False)
    has_looked: bool = False

    def __post_init__(self) -> None:
        """Start the clock, where an earlier run left it."""
        rows = self.state.history.rows
        self.started = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)

    def look_at_scales(self) -> None:
        """Warn, once, of data far from the scale of the likelihoods; those of a loader are known after an epoch."""
        if not self.has_looked and self.source.glimpse is not None:
            self.has_looked = True
            if self.state.run.processes.is_main:
                warn_of_scales(self.state.run.model.plan, self.source.glimpse)

    def epoch(self, epoch: int, bar: "tqdm[Any]") -> bool:
        """Train, record, call the callbacks and write what is due; returns whether a callback ends training."""
        run, history = self.state.run, self.state.history
        model, processes = run.model, run.processes
        lesson = self.course.lesson(epoch)
        row = run.epoch(self.source, lesson, f"epoch {epoch}/{self.epochs}", bar)
        if self.revive and lesson.phase == "joint" and epoch < self.epochs:
            row["revived"] = len(run.revive(row))
        if self.held_out is not None:
            terms = evaluate(model, self.held_out, self.seed, processes)
            row |= {f"val_{name}": value for name, value in terms.items()}
        history.rows.append({"epoch": epoch, "seconds": time.perf_counter() - self.started, **row})
        end = EpochEnd(model, history, epoch, self.epochs, processes.is_main)
        stops = [_is_true(callback(end)) for callback in self.state.callbacks]
        stopped = processes.any(any(stops))
        if self.checkpoints.due(epoch, last=stopped or epoch == self.epochs):
            run.check_weights()  # callbacks may have changed them
            start = run.start if epoch < self.course.started_by else None  # for as long as it is needed
            whole = {"training": self.state.state_dict(), "seed": self.seed, "start": start, "stopped": stopped}
            loss = row.get(f"val_{model.objective}")
            self.checkpoints.write(model, epoch, loss, self.arguments, whole)
        return stopped


def _optimizer(model: HMoEVAE, given: Callable[[Iterable[nn.Parameter]], Optimizer] | None, lr: float) -> Optimizer:
    """The optimiser of the model's parameters, those of a caller's own kind made sure of."""
    if given is None:
        return torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    made = given(model.parameters())
    if not isinstance(made, Optimizer):
        raise ArgumentTypeError(mismatch("optimizer", "a callable that returns a torch Optimizer", type(made).__name__))
    if isinstance(made, torch.optim.LBFGS):
        raise ArgumentError(mismatch("optimizer", "one that steps without a closure", "LBFGS"))
    return made


def _seed(given: int | None, checkpoint: Checkpoint | None) -> int:
    if given is not None:
        return int(given)
    return torch.Generator().seed() if checkpoint is None else int(checkpoint.state["seed"])


def _is_true(answer: object) -> bool:
    """Whether a callback has said `True`, as Python, numpy or PyTorch say it."""
    is_truth_value = isinstance(answer, bool | np.bool_)
    if isinstance(answer, Tensor):
        is_truth_value = answer.dtype == torch.bool and answer.ndim == 0
    return is_truth_value and bool(answer)


def _is_random(init: Start) -> bool:
    return isinstance(init, str) and init == "random"


def _start(model: HMoEVAE, init: Start, samples: Tensor | None, seed: int) -> Int[Tensor, " n"] | None:
    """The leaf that every sample starts in; `None` for a random start."""
    if _is_random(init):
        return None
    if samples is None:
        expected = "a tensor or array in memory, for a start"
        raise ArgumentTypeError(mismatch("data", expected, "another source of samples"))
    return first_leaves(model.plan, samples, init, seed)


def _bar(total: int | None, *, done: int, show: bool) -> "tqdm[Any]":
    bar = tqdm(total=total, initial=done, disable=not show, unit="step", dynamic_ncols=True)
    is_notebook = type(sys.stderr).__module__.startswith("ipykernel")  # it says of itself that it is no terminal
    if not (show and (is_notebook or getattr(bar.fp, "isatty", lambda: False)())):
        bar.mininterval = bar.maxinterval = 30.0  # a log file wants a line now and then, not ten a second
    return bar

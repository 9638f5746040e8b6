"""fit: trains a model on tensors, arrays, data sets or loaders, and records what happens."""

import copy
import math
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from tqdm.auto import tqdm

from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, DeadLeafWarning, NonFiniteError, mismatch
from hmoevae.history import History
from hmoevae.model import BATCH_SIZE, ArrayLike, HMoEVAE, Output, Routing
from hmoevae.nn.memory import StepMemory
from hmoevae.starts import Start, first_leaves
from hmoevae.views import Compose, Neighbour, View, ViewLike, as_view

Data = ArrayLike | Dataset[Any] | DataLoader[Any]
Precision = Literal["fp32", "bf16"]
Schedule = Literal["constant", "cosine"]
Phase = Literal["start", "alone", "joint"]
WINDOW_BYTES = 1 << 28
"""How much of a memory-mapped file is in memory and shuffled at a time."""
BLOCK_BYTES = 1 << 20
"""How much of such a file is read in one piece."""


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """What a callback is given when an epoch is done.

    Attributes:
        model: The model in training.
        history: Everything measured so far; the last row is this epoch's.
        epoch: The epoch just finished, from 1.
        epochs: How many were asked for.
    """

    model: HMoEVAE
    history: History
    epoch: int
    epochs: int


Callback = Callable[[EpochEnd], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Gates learn that a sample and its partner are of one kind; the term is `hmoevae.nn.objectives.agreement`.

    It finds kinds from a random start without any expert, so the gates may have the first epochs to themselves, which
    the idle experts make cheap. A balance has to hold the usage: give the tree `Balance("kl", weight=20)`, twice
    `weight`. One that weighs less than the agreement does not hold, for then it pays to merge two kinds. A mixture
    below the root is reached by a share of the samples only, so its own balance may weigh as much less.

    Args:
        partner: What makes a sample's partner before the view of `fit` changes both; `None`: the sample itself.
        alone: Share of the epochs, from the first on, in which gates learn from agreement and balance alone.
        weight: Factor in front of the term.
    """

    partner: ViewLike | None = field(default_factory=Neighbour)
    alone: float = 0.5
    weight: float = 10.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.alone <= 1:
            raise ArgumentError(mismatch("Agreement.alone", "a number from 0 to 1", repr(self.alone)))
        if not 0 <= self.weight < math.inf:
            raise ArgumentError(mismatch("Agreement.weight", "a finite number >= 0", repr(self.weight)))


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
    validation_data: Data | None = None,
    seed: int | None = 0,
    device: str | torch.device = "auto",
    precision: Precision = "fp32",
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> History:
    """Train `model` in place by stochastic gradient descent on its objective.

    A leaf that in the last epoch took less than a hundredth of an even share is named in a warning, `DeadLeafWarning`.
    Ctrl-C ends training and returns what there is, with `history.interrupted` set. The global random state stays as
    it is.

    Args:
        model: The model; it ends on `device` and in evaluation mode.
        data: Samples `(n, *input_shape)` as a tensor or array, or a Dataset or DataLoader of them. Of items that are
            tuples, such as (image, label), only the first entry is read. A memory-mapped array (`np.memmap`, as
            `np.load(file, mmap_mode="r")` gives) is copied into memory 256 MiB at a time: a larger one is shuffled in
            blocks of 1 MiB, and then sample by sample within what is in memory. An IterableDataset brings its own
            order.
        epochs: Passes over the data.
        batch_size: Samples a step; a DataLoader brings its own.
        lr: Learning rate of Adam; not read if `optimizer` is given.
        lr_schedule: `"cosine"` lets the learning rate fall to zero along half a cosine, over all epochs or, with
            `agreement`, over those in which the experts learn too.
        optimizer: Builds another optimiser from the parameters, such as `functools.partial(torch.optim.SGD, lr=0.1)`.
        view: A random change of the samples for the gates to look at, while the experts model the samples themselves:
            a view of `hmoevae.views`, or any callable from samples to samples.
        agreement: Teach the gates that a sample and its partner are of one kind, at first without the experts.
        init: Where training begins: `"random"`; `"kmeans"` or `"umap"` (a Gaussian mixture in a UMAP embedding),
            clusters and within them clusters, level by level; a leaf index for every sample; or a callable that
            clusters, from an array of features (n, feature), a number of clusters and a seed to the clusters (n,).
        init_epochs: The first epochs, in which gates and experts learn the start; not read for a random one.
        validation_data: Held-out samples, seen without a view; their terms are recorded after every epoch and change
            nothing.
        seed: Fixes the order of the data and the draws of z: the same seed gives the same result on a CPU with the same
            number of threads. `None` takes a fresh one.
        device: Where to train; `"auto"` takes an accelerator if there is one.
        precision: `"bf16"` runs the networks under bfloat16 autocast; parameters, sums and the optimiser stay float32.
            On a CPU without bfloat16 instructions it warns and trains in `"fp32"`.
        callbacks: Called with an `EpochEnd` after every epoch; a callback that returns `True` ends training.
        progress: Show a progress bar.

    Returns:
        The history, one row an epoch.

    Raises:
        ArgumentError: An argument cannot be used; `DataError` and `ShapeError` for data.
        NonFiniteError: The loss became NaN or infinite. The model is left as it was before that step, or
            where its weights are spoilt already, as it was after the last good epoch.

    >>> from hmoevae import VAE, Mixture
    >>> model = HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,))
    >>> history = fit(model, torch.rand(64, 4), epochs=2, progress=False)
    >>> len(history), [c for c in history.columns if c.startswith("usage")]
    (2, ['usage/root/0', 'usage/root/1', 'usage/root/2'])
    """
    if not isinstance(model, HMoEVAE):
        raise ArgumentTypeError(mismatch("model", "an HMoEVAE", type(model).__name__))
    for name, number in (("epochs", epochs), ("batch_size", batch_size), ("init_epochs", init_epochs)):
        if not isinstance(number, int | np.integer) or isinstance(number, bool) or number < 1:
            raise ArgumentError(mismatch(name, "an integer > 0", repr(number)))
    if not 0 < lr < math.inf:
        raise ArgumentError(mismatch("lr", "a finite number > 0", repr(lr)))
    if lr_schedule not in get_args(Schedule):
        raise ArgumentError(mismatch("lr_schedule", "'constant' or 'cosine'", repr(lr_schedule)))
    if precision not in get_args(Precision):
        raise ArgumentError(mismatch("precision", "'fp32' or 'bf16'", repr(precision)))
    if agreement is not None and not model.plan.mixtures:
        raise ArgumentError(mismatch("agreement", "None for a tree without a gate", agreement))
    where = resolve_device(device)
    epochs, batch_size = int(epochs), int(batch_size)
    seed = torch.Generator().seed() if seed is None else seed
    order = torch.Generator().manual_seed(seed)
    source = _batches(model, data, "data", batch_size, order)
    held_out = (
        None if validation_data is None else _batches(model, validation_data, "validation_data", batch_size, None)
    )
    if lr_schedule == "cosine" and source.length is None:
        raise ArgumentError(mismatch("lr_schedule", "'constant' for data of unknown length", repr(lr_schedule)))
    views = _Views(view, agreement, source.samples)
    start = _start(model, init, source.samples, seed)
    started_by = 0 if start is None else init_epochs
    alone_by = started_by + (0 if agreement is None else round(epochs * agreement.alone))

    model.to(where).train()
    noise = torch.Generator(where).manual_seed(seed)
    make = optimizer or (lambda parameters: torch.optim.Adam(parameters, lr=lr, fused=True))
    total = epochs * len(source) if source.length is not None else None
    solver = make(model.parameters())
    falls_after = alone_by if agreement is not None and alone_by < epochs else 0
    cosine = None
    if lr_schedule == "cosine":
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(solver, (epochs - falls_after) * len(source))
    run = _Run(model, solver, cosine, views, start, noise, _autocast(where, precision))
    history = History()
    started = time.perf_counter()
    try:
        with closing(_bar(total, show=progress)) as bar:
            for epoch in range(1, epochs + 1):
                run.phase = "start" if epoch <= started_by else "alone" if epoch <= alone_by else "joint"
                run.rate_falls = epoch > falls_after
                row = run.epoch(source, f"epoch {epoch}/{epochs}", bar)
                if held_out is not None:
                    row |= {f"val_{name}": value for name, value in _evaluate(model, held_out, seed).items()}
                history.rows.append({"epoch": epoch, "seconds": time.perf_counter() - started, **row})
                stops = [callback(EpochEnd(model, history, epoch, epochs)) is True for callback in callbacks]
                if any(stops):
                    break
    except KeyboardInterrupt:
        history.interrupted = True
    finally:
        run.close()
        model.eval()
    if len(history):
        _warn_of_dead_leaves(model, history)
    return history


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that `device` names, made sure of; `"auto"` is the process's own accelerator, or the CPU.

    Raises:
        ArgumentError: There is no such device here.
    """
    if device == "auto":
        from accelerate import PartialState  # not at the top: it sets a warning filter when imported

        state = PartialState()
        if state.num_processes > 1:
            raise ArgumentError(mismatch("fit", "to run in one process", f"{state.num_processes} processes"))
        return torch.device(state.device or "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(
            mismatch("device", "'auto', 'cpu' or an accelerator that is here", f"{device!r}: {reason}")
        ) from None
    return resolved


def _autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context for a forward pass; on a CPU without bfloat16 instructions, float32 and a warning."""
    wanted = precision == "bf16"
    if wanted and device.type == "cpu" and not _cpu_has_bf16():
        wanted = False
        message = (
            "precision='bf16': this CPU has no bfloat16 instructions and would be slower with it; training in fp32"
        )
        warnings.warn(message, stacklevel=3)
    return torch.autocast(device.type, torch.bfloat16, wanted)


def _cpu_has_bf16() -> bool:
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


# --- data -----------------------------------------------------------------------------------------------------------


class _Batches:
    """Batches of samples from any source, as often as asked for, and the samples' places in it where it is in memory.

    `length` is None where it cannot be known, `samples` where they are not in memory.
    """

    def __init__(
        self, length: int | None, samples: Tensor | None, iterate: Callable[[], Iterator[tuple[Tensor, Tensor | None]]]
    ) -> None:
        self.length = length
        self.samples = samples
        self.iterate = iterate

    def __len__(self) -> int:
        assert self.length is not None
        return self.length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        return self.iterate()


def _batches(model: HMoEVAE, data: Data, name: str, batch_size: int, order: torch.Generator | None) -> _Batches:
    """Make `data` a source of checked batches, shuffled by `order`."""
    if isinstance(data, TensorDataset):
        data = data.tensors[0]
    if isinstance(data, np.memmap) and data.ndim > 0:  # may be larger than memory
        for start in range(0, len(data), BATCH_SIZE):
            stop = min(start + BATCH_SIZE, len(data))
            model.check_input(data[start:stop], name=f"{name}[{start}:{stop}]")

        def from_file() -> Iterator[tuple[Tensor, Tensor | None]]:
            for rows in _windows(len(data), max(1, data.nbytes // len(data)), batch_size, order):
                window = model.check_input(data[rows.numpy()], name=name, values=False)
                yield from _split(window, rows, batch_size, order)

        return _Batches(math.ceil(len(data) / batch_size), None, from_file)

    if isinstance(data, Tensor | np.ndarray):
        samples = model.check_input(data, name=name).to(model.dtype)
        everything = torch.arange(len(samples))
        return _Batches(
            math.ceil(len(samples) / batch_size), samples, lambda: _split(samples, everything, batch_size, order)
        )

    if isinstance(data, DataLoader):
        loader = data
    elif isinstance(data, Dataset):
        shuffle = order is not None and not isinstance(data, IterableDataset)
        loader = DataLoader(data, batch_size=batch_size, shuffle=shuffle, generator=order)
    else:
        expected = "a tensor, a numpy array, a torch Dataset or a DataLoader"
        raise ArgumentTypeError(mismatch(name, expected, type(data).__name__))

    def from_loader() -> Iterator[tuple[Tensor, Tensor | None]]:
        for batch in loader:
            yield model.check_input(batch[0] if isinstance(batch, tuple | list) else batch, name=name), None

    try:
        length = len(loader)
    except TypeError:
        length = None
    return _Batches(length, None, from_loader)


def _split(
    samples: Tensor, rows: Tensor, batch_size: int, order: torch.Generator | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of samples in memory with their places in the data set, `rows`, shuffled by `order`."""
    # Whole batches are gathered by index: a DataLoader would fetch and stack sample by sample.
    index = torch.arange(len(samples)) if order is None else torch.randperm(len(samples), generator=order)
    for chosen in index.split(batch_size):
        yield samples.index_select(0, chosen.to(samples.device)), rows[chosen]


def _windows(n: int, row_bytes: int, batch_size: int, order: torch.Generator | None) -> tuple[Tensor, ...]:
    """The rows of a file, in windows to hold in memory one after the other; all but the last are whole batches.

    A file larger than a window is cut into blocks, which `order` shuffles: single rows from all over the file would
    each cost a read of the disk.
    """
    window = batch_size * max(1, WINDOW_BYTES // row_bytes // batch_size)
    block = max(1, BLOCK_BYTES // row_bytes)
    starts = torch.arange(0, n, block)
    if order is not None and n > window:
        starts = starts[torch.randperm(len(starts), generator=order)]
    rows = (starts.unsqueeze(1) + torch.arange(block)).flatten()
    return rows[rows < n].split(window)


def _evaluate(model: HMoEVAE, batches: _Batches, seed: int) -> dict[str, float]:
    """Mean terms over all batches, always with the same draws of z, so that epochs can be compared."""
    generator = torch.Generator(model.device).manual_seed(seed)
    n_samples = 0
    sums: dict[str, float] = {}
    for x, _ in batches:
        n_samples += len(x)
        for name, value in model.evaluate(x, generator=generator).items():
            sums[name] = sums.get(name, 0.0) + len(x) * value
    if n_samples == 0:
        raise DataError(mismatch("validation_data", "at least one sample", "none"))
    return {name: value / n_samples for name, value in sums.items()}


# --- views ----------------------------------------------------------------------------------------------------------


class _Views:
    """What the gates are shown of a batch: one view of every sample, and where they are to agree another one."""

    def __init__(self, view: ViewLike | None, agreement: Agreement | None, samples: Tensor | None) -> None:
        self.weight = 1.0 if agreement is None else agreement.weight
        seen = None if view is None else as_view(view)
        partner = None if agreement is None or agreement.partner is None else as_view(agreement.partner)
        if agreement is not None and seen is None and partner is None:
            raise ArgumentError(mismatch("view", "a view, for agreement of a sample with itself", view))
        other = None
        if agreement is not None:
            other = Compose([part for part in (partner, seen) if part is not None]).prepare(samples)
        self.view: View | None = None if seen is None else seen.prepare(samples)
        self.other: View | None = other

    @torch.no_grad()
    def __call__(
        self, x: Tensor, index: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor | None, Tensor | None]:
        view = None if self.view is None else self.view(x, index=index, generator=generator)
        other = None if self.other is None else self.other(x, index=index, generator=generator)
        return view, other


# --- the loop -------------------------------------------------------------------------------------------------------


class _Run:
    """The state of one training run between steps."""

    def __init__(
        self,
        model: HMoEVAE,
        optimizer: Optimizer,
        schedule: LRScheduler | None,
        views: _Views,
        start: Tensor | None,
        noise: torch.Generator,
        autocast: torch.autocast,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.views = views
        self.start = start
        self.phase: Phase = "joint"
        self.rate_falls = True
        self.noise = noise
        self.autocast = autocast
        self.steps = 0
        self.sum_dtype = torch.float32 if noise.device.type == "mps" else torch.float64  # MPS has no float64
        self.good = copy.deepcopy(model.state_dict())
        self.memory = StepMemory()
        self.memory.attach(model)

    def close(self) -> None:
        """Let go of the memory that the steps shared, the last gradients among it."""
        self.optimizer.zero_grad(set_to_none=True)
        self.memory.detach(self.model)

    def epoch(self, batches: _Batches, title: str, bar: "tqdm[Any]") -> dict[str, float]:
        """One pass over the data; returns the means of the loss, its terms and every leaf's usage."""
        n_samples = 0
        names: list[str] = []
        sums: Tensor | None = None
        shown = 0.0
        bar.set_description(title, refresh=False)
        for x, index in batches:
            out = self.step(x.to(self.noise.device, self.model.dtype, non_blocking=True), index)
            n_samples += len(x)
            with torch.no_grad():
                names = ["loss", *out.terms]
                means = torch.stack([out.loss, *out.terms.values()])
                added = torch.cat([means * len(x), out.leaf_log_prob.exp().sum(0)]).to(self.sum_dtype)
                sums = added if sums is None else sums.add_(added)
            bar.update()
            if time.perf_counter() - shown > bar.mininterval:  # reading a number waits for the device
                shown = time.perf_counter()
                values = (sums[: len(names)] / n_samples).tolist()
                bar.set_postfix(dict(zip(names, (f"{v:.4g}" for v in values), strict=True)), refresh=False)
        if sums is None:
            raise DataError(mismatch("data", "at least one sample", "none"))
        self.good = copy.deepcopy(self.model.state_dict())
        usage = [f"usage/{leaf.path}" for leaf in self.model.plan.leaves]
        return dict(zip([*names, *usage], (sums / n_samples).tolist(), strict=True))

    def step(self, x: Tensor, index: Tensor | None) -> Routing:
        """One step of the optimiser."""
        self.steps += 1
        self.optimizer.zero_grad(set_to_none=True)  # before their memory is given out again
        self.memory.next_step()
        view, other = self.views(x, index, self.noise)
        with self.autocast:
            if self.phase == "alone" and other is not None:
                out = self.model.agree(
                    x if view is None else view, other, agreement_weight=self.views.weight, validate=False
                )
            elif self.phase == "start" and self.start is not None and index is not None:
                out = self.model(x, view=view, generator=self.noise, validate=False)
                out = _towards(out, self.start[index.cpu()].to(x.device))
            else:
                weight = self.views.weight
                out = self.model(
                    x, view=view, other_view=other, agreement_weight=weight, generator=self.noise, validate=False
                )
        if not math.isfinite(out.loss.item()):
            raise self._non_finite(out)
        out.loss.backward()
        self.optimizer.step()
        if self.schedule is not None and self.rate_falls:
            self.schedule.step()
        return out

    def _non_finite(self, out: Routing) -> NonFiniteError:
        """Say which term and which node, and put the last good weights back if the present ones are spoilt."""
        terms = {name: value.item() for name, value in out.terms.items()}
        term = next((f"{name!r} = {value}" for name, value in terms.items() if not math.isfinite(value)), "their sum")
        plan = self.model.plan
        bad_edges = (~torch.isfinite(out.edge_log_prob)).any(0).nonzero().flatten().tolist()
        bad_leaves: list[int] = []
        if isinstance(out, Output):
            bad_leaves = (~torch.isfinite(out.leaf_elbo)).any(0).nonzero().flatten().tolist()
        places = [f"the expert {plan.leaves[i].path}" for i in bad_leaves]
        places += dict.fromkeys(f"the gate of {plan.mixtures[plan.edge_mixture[i]].path}" for i in bad_edges)
        where = ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
        kept = "the model is as it was before this step"
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            self.model.load_state_dict(self.good)
            kept = "the model is back at the end of the last good epoch"
        expected = f"a finite loss at step {self.steps}"
        return NonFiniteError(mismatch("loss", expected, f"{term} from {where or 'the objective'}; {kept}"))


def _start(model: HMoEVAE, init: Start, samples: Tensor | None, seed: int) -> Int[Tensor, " n"] | None:
    """The leaf that every sample starts in; `None` for a random start."""
    if isinstance(init, str) and init == "random":
        return None
    if samples is None:
        raise ArgumentTypeError(mismatch("data", "a tensor or array, for a start", "another source of samples"))
    return first_leaves(model.plan, samples, init, seed)


def _towards(out: Output, leaf: Int[Tensor, " batch"]) -> Output:
    """The output with the loss that fits gates and experts to given leaves: the log-likelihood of sample and leaf."""
    own = leaf.unsqueeze(1)
    terms = {
        "start_gate": -out.leaf_log_prob.gather(1, own).mean(),
        "start_expert": -out.leaf_elbo.gather(1, own).mean(),
    }
    return replace(out, loss=terms["start_gate"] + terms["start_expert"], terms=terms)


def _warn_of_dead_leaves(model: HMoEVAE, history: History) -> None:
    least = 0.01 / model.plan.n_leaves
    usage = {leaf.path: history.rows[-1][f"usage/{leaf.path}"] for leaf in model.plan.leaves}
    dead = [f"{path} ({share:.1e})" for path, share in usage.items() if share < least]
    if dead:
        expected = f"a share of at least {least:.1e} of the samples for every leaf in the last epoch"
        warnings.warn(mismatch("usage", expected, f"less for {', '.join(dead)}"), DeadLeafWarning, stacklevel=3)


def _bar(total: int | None, *, show: bool) -> "tqdm[Any]":
    bar = tqdm(total=total, disable=not show, unit="step", dynamic_ncols=True)
    if not getattr(bar.fp if show else None, "isatty", lambda: False)():
        bar.mininterval = bar.maxinterval = 30.0  # a log file wants a line now and then, not ten a second
    return bar

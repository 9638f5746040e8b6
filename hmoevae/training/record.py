"""Training: all options of a training run in one record, which checks itself and is written to and read from JSON."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hmoevae.checks import check_integer, check_number, is_integer
from hmoevae.errors import ArgumentError, ArgumentTypeError, mismatch
from hmoevae.nn.routes import ALL, Given, Routes
from hmoevae.starts import Start, check_start
from hmoevae.training.agreement import Agreement
from hmoevae.training.course import Course
from hmoevae.training.device import Precision
from hmoevae.training.early import EarlyStopping
from hmoevae.training.warmup import Warmup
from hmoevae.training.words import described, from_data, named_fields, refuse_unknown, to_data
from hmoevae.views import ViewLike, as_view

Schedule = Literal["constant", "cosine"]
INTEGERS = "epochs", "batch_size", "init_epochs", "expert_parallel", "checkpoint_every", "checkpoint_keep"
"""The options that are integers > 0."""


@named_fields
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Training:
    """All options of a training run. `hmoevae.fit` takes the model, the data, callbacks and folders beside it.

    A record is immutable and may be shared. `dataclasses.replace(training, seed=1)` makes another. Two records are
    equal if all their options are.

    Args:
        epochs: Number of passes over the data.
        batch_size: Samples per step and process; a DataLoader has its own batch size.
        lr: Learning rate of Adam. With an `optimizer`, which has its own, it is not used.
        lr_schedule: `"cosine"` lowers the learning rate to zero along half a cosine, over all epochs or, with
            `agreement`, over those in which gates and experts learn together.
        optimizer: Makes another optimiser from the parameters, such as `functools.partial(torch.optim.SGD, lr=0.1)`.
        view: A random change of the samples that the gates see; the experts model the unchanged samples. A view of
            `hmoevae.views`, or any callable from samples to samples.
        agreement: Teach the gates to send a sample and its partner to the same node, in the first epochs without the
            experts.
        init: The start: `"random"`; `"kmeans"` or `"umap"` (a Gaussian mixture in a UMAP embedding), which cluster the
            samples, and the samples of each cluster, level by level; `"graph"`, which so cuts their graph of
            neighbours (`hmoevae.find_kinds`); a leaf index for every sample; or a callable that clusters: it takes an
            array of features (n, feature), a number of clusters and a seed, and returns the clusters (n,).
        init_epochs: Number of first epochs in which gates and experts learn the start; not used for a random start. It
            takes some hundreds of steps, so more than one epoch of few samples; a `StartWarning` says if they lack it.
        init_shared: In these epochs, let equal experts learn as one, from the samples of all of them. Then all of them
            go on from its weights (sparse upcycling, Komatsuzaki et al. 2023). It suits trees of many leaves, each of
            which would learn the start from few samples.
        warmup: Lower the weight of the KL and soften the gates in the first epochs in which the experts learn.
        revive: After every epoch in which gates and experts learn together, except the last, revive each child of a
            mixture whose share was below a hundredth of an even share: the child gets a copy of its most used sibling
            and half of that sibling's samples. The column `revived` of the history counts revived children.
        kl_weight: A constant factor of KL(q(z|x) || p(z)), the beta of a beta-VAE (Higgins et al. 2017). It multiplies
            the weight of a warm-up. The loss is a bound at 1 only; validation data are measured at 1.
        route: Which leaves each sample is computed with, where gates and experts learn together: `hm.routes.ALL`, or
            `hm.TopK(k)`, with which a step costs as much as the leaves that its samples meet. `RowAdam` changes only
            these leaves and the gates that run for a sample. An `optimizer` of one's own gets dense gradients, which
            cost as much as all leaves.
        max_grad_norm: Clip the gradient to this Euclidean norm over all parameters (`torch.nn.utils.clip_grad_norm_`);
            `None` does not clip.
        early_stopping: End when the objective on the validation data has stopped falling, with the best weights.
        seed: Fixes the order of the data, the draws of z, and what loaders, data sets and views draw from the global
            random states of Python, numpy and torch, which are restored afterwards. The same seed gives the same result
            on a CPU with the same number of threads. A loader with a generator of its own draws from that. `None` takes
            a fresh seed. The weights are drawn when the model is made, by torch's global generator: call
            `torch.manual_seed` before that.
        device: The device to train on; `"auto"` takes an accelerator if there is one.
        precision: `"bf16"` runs the networks under bfloat16 autocast; parameters, sums and the optimiser stay float32.
            On a CPU without bfloat16 instructions it warns and trains in `"fp32"`.
        compile: Compile the steps in which gates and experts learn together (`torch.compile`, from PyTorch 2.7 on; on a
            CPU it needs a C++ compiler). The first of these steps takes some 6 to 20 seconds. The others are faster
            where there are few leaves; see the documentation on performance. Not for several processes.
        expert_parallel: Number of processes over which the experts are cut: while `fit` runs, each holds its part of
            their weights, gradients and moments, and samples go to the processes that hold their experts. It has to
            divide the number of processes; each set of so many processes holds all experts once. 1 keeps all experts in
            every process. Callbacks cannot use the experts.
        checkpoint_every: Number of epochs between checkpoints. The last epoch always writes one.
        checkpoint_keep: Number of newest checkpoints to keep. With validation data, the checkpoint with the smallest
            validation loss, measured by the model's objective, is kept beside them.

    Raises:
        ArgumentError: An option cannot be used, or not together with the others.
        ArgumentTypeError: An option has a wrong type, or there is no such option.

    >>> training = Training(epochs=5, init="kmeans", early_stopping=EarlyStopping(patience=2))
    >>> training
    Training(epochs=5, init='kmeans', early_stopping=EarlyStopping(patience=2, min_delta=0.0))
    >>> training_from_json(training.to_json()) == training, training.start_epochs, training.course.lesson(1).phase
    (True, 1, 'start')
    >>> Training(lr=-1)
    Traceback (most recent call last):
    ...
    hmoevae.errors.ArgumentError: Training.lr: expected a finite number > 0, got -1
    """

    epochs: int = 20
    batch_size: int = 128
    lr: float = 1e-3
    lr_schedule: Schedule = "constant"
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None
    view: ViewLike | None = None
    agreement: Agreement | None = None
    init: Start = "random"
    init_epochs: int = 1
    init_shared: bool = False
    warmup: Warmup | None = None
    revive: bool = False
    kl_weight: float = 1.0
    route: Routes = ALL
    max_grad_norm: float | None = None
    early_stopping: EarlyStopping | None = None
    seed: int | None = 0
    device: str | torch.device = "auto"
    precision: Precision = "fp32"
    compile: bool = False
    expert_parallel: int = 1
    checkpoint_every: int = 1
    checkpoint_keep: int = 3

    def __post_init__(self) -> None:
        """Check every option, and turn numpy's numbers into Python's, which JSON reads back equal."""
        for name in INTEGERS:
            check_integer(f"Training.{name}", getattr(self, name))
            object.__setattr__(self, name, int(getattr(self, name)))
        for name, positive in (("lr", True), ("kl_weight", False), ("max_grad_norm", True)):
            value: Any = vars(self)[name]
            if value is None and name == "max_grad_norm":
                continue
            check_number(f"Training.{name}", value, positive=positive)
            object.__setattr__(self, name, float(getattr(self, name)))
        for name, choices in (("lr_schedule", get_args(Schedule)), ("precision", get_args(Precision))):
            if getattr(self, name) not in choices:
                self._refuse(name, " or ".join(map(repr, choices)))
        for name in ("init_shared", "revive", "compile"):
            if not isinstance(getattr(self, name), bool):
                self._refuse(name, "True or False", ArgumentTypeError)
        records: dict[str, type] = {"agreement": Agreement, "warmup": Warmup, "early_stopping": EarlyStopping}
        for name, record in records.items():
            if not isinstance(getattr(self, name), record | None):
                self._refuse(name, f"None or {record.__name__}(...)", ArgumentTypeError)
        if self.init_shared and self.start_epochs == 0:
            self._refuse("init_shared", "False where the start is random")
        if not isinstance(self.route, Routes) or isinstance(self.route, Given):
            self._refuse("route", "hm.routes.ALL or hm.TopK(...)", ArgumentTypeError)
        if self.compile and self.route != ALL:
            self._refuse("compile", f"False with the route {self.route}, whose shapes differ from step to step")
        if self.seed is not None:
            if not (is_integer(self.seed) and -(1 << 63) <= self.seed < 1 << 64):
                self._refuse("seed", "None or an integer of at most 64 bits")
            object.__setattr__(self, "seed", int(self.seed))
        self._check_callables()
        if isinstance(self.device, torch.device):
            object.__setattr__(self, "device", str(self.device))
        full_from = self.course.full_from  # `course` raises an error if the warm-up would not end
        if self.early_stopping is not None and full_from > self.epochs:
            expected = "None where gates and experts never learn together at full weight"
            self._refuse("early_stopping", expected)

    def _check_callables(self) -> None:
        """Check the options that may be code of the user's own."""
        if self.optimizer is not None and not callable(self.optimizer):
            expected = "None or a callable that makes one from the parameters"
            raise ArgumentTypeError(mismatch("Training.optimizer", expected, type(self.optimizer).__name__))
        if self.view is not None:
            as_view(self.view, "Training.view")
        check_start(self.init, "Training.init")

    def _refuse(self, name: str, expected: str, error: type[ArgumentError | ArgumentTypeError] = ArgumentError) -> None:
        raise error(mismatch(f"Training.{name}", expected, repr(getattr(self, name))))

    @property
    def start_epochs(self) -> int:
        """Number of epochs that teach the start: 0 for a random start."""
        return 0 if isinstance(self.init, str) and self.init == "random" else self.init_epochs

    @property
    def course(self) -> Course:
        """The plan of each epoch."""
        return Course(self.epochs, self.start_epochs, self.agreement, self.warmup, self.kl_weight, self.route)

    def described(self) -> dict[str, str]:
        """Every option in words, which are the same in every process.

        >>> from functools import partial
        >>> Training(optimizer=partial(torch.optim.SGD, lr=0.1)).described()["optimizer"]
        'SGD(lr=0.1)'
        """
        return {field.name: described(getattr(self, field.name)) for field in fields(self)}

    def to_json(self, *, indent: int | None = 2) -> str:
        """Write JSON, which `training_from_json` reads back.

        Records and views of the package are written with all their fields. A callable of the user's own or an array is
        only described, for people: `{"described": "SGD(lr=0.1)"}`.
        """
        content = {field.name: to_data(getattr(self, field.name)) for field in fields(self)}
        return json.dumps({"kind": "training"} | content, indent=indent)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Training):
            return NotImplemented
        return all(_are_equal(getattr(self, field.name), getattr(other, field.name)) for field in fields(self))

    def __hash__(self) -> int:
        return hash(tuple(self.described().values()))

    def __repr__(self) -> str:
        """The call that makes the record, without options at their defaults; arrays are described."""
        given = [field for field in fields(self) if not _are_equal(getattr(self, field.name), field.default)]
        return f"Training({', '.join(f'{field.name}={described(getattr(self, field.name))}' for field in given)})"


def training_from_json(text: str, **options: Any) -> Training:
    """Read the JSON that `Training.to_json` wrote.

    No code runs from a file. Callables of the user's own and arrays have to be given again, as `options`.

    Args:
        text: The JSON.
        options: Options of `Training` that replace those in the text.

    Raises:
        ArgumentError: The text is not JSON of a training, an option cannot be used, or an option is only described in
            the text and not given.
        ArgumentTypeError: There is no such option, or an option has a wrong type.
        SpecError: A kind of record in the text is not registered; the message says what to import.

    >>> own = Training(optimizer=torch.optim.SGD, seed=7)
    >>> training_from_json(own.to_json(), optimizer=torch.optim.SGD) == own
    True
    >>> training_from_json(own.to_json())
    Traceback (most recent call last):
    ...
    hmoevae.errors.ArgumentError: Training.optimizer: expected training_from_json(text, optimizer=...) with the value, \
because no code runs from a file, got SGD, in words
    """
    try:
        data = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(mismatch("Training", f"valid JSON ({error})", f"{text!r:.200}")) from None
    if not isinstance(data, dict) or data.get("kind") != "training":
        raise ArgumentError(mismatch("Training", "a record of kind 'training'", f"{data!r:.200}"))
    kept = {name: value for name, value in data.items() if name not in options and name != "kind"}
    refuse_unknown(Training, kept, "Training")
    return Training(**{name: from_data(value, f"Training.{name}") for name, value in kept.items()}, **options)


def _are_equal(one: Any, other: Any) -> bool:
    arrays = [isinstance(value, Tensor | np.ndarray) for value in (one, other)]
    return described(one) == described(other) if any(arrays) else bool(one == other)

"""Training: every option of a training run as one record, which checks and describes itself and is lossless as JSON."""

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
from hmoevae.starts import Start, check_start
from hmoevae.training.agreement import Agreement
from hmoevae.training.course import Course
from hmoevae.training.device import Precision
from hmoevae.training.early import EarlyStopping
from hmoevae.training.warmup import Warmup
from hmoevae.training.words import Codec, described, named_fields
from hmoevae.views import Compose, Neighbour, RandomAffine, ViewLike, as_view

Schedule = Literal["constant", "cosine"]


@named_fields
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Training:
    """Every option of a training run; `hmoevae.fit` reads nothing else but the model, the data and who is watching.

    A record is immutable and may be shared: `dataclasses.replace(training, seed=1)` makes another. Two are equal if
    all their options are.

    Args:
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
        kl_weight: A constant factor in front of KL(q(z|x) || p(z)), the beta of a beta-VAE (Higgins et al. 2017), which
            multiplies that of a warm-up. Only at 1 is the loss a bound; validation data are measured at 1.
        max_grad_norm: Before each step the gradient is shortened to this Euclidean norm, over all parameters, where it
            is longer (`torch.nn.utils.clip_grad_norm_`); `None` leaves it as it is.
        early_stopping: End when the objective on the validation data has stopped falling, with the best weights.
        seed: Fixes the order of the data, the draws of z, and what loaders, data sets and views draw from the global
            random states of Python, numpy and torch, which are lent to them: the same seed gives the same result on a
            CPU with the same number of threads. A loader with a generator of its own draws from that. `None` takes a
            fresh one. The weights are drawn when the model is made, by torch's global generator: call
            `torch.manual_seed` before that.
        device: Where to train; `"auto"` takes an accelerator if there is one.
        precision: `"bf16"` runs the networks under bfloat16 autocast; parameters, sums and the optimiser stay float32.
            On a CPU without bfloat16 instructions it warns and trains in `"fp32"`.
        compile: Make code for the steps in which gates and experts learn together (`torch.compile`, from PyTorch 2.7
            on; on a CPU it needs a C++ compiler). The first of them takes some 6 to 20 seconds, those that follow are
            faster where there are few leaves; see the documentation on performance. Not for several processes.
        checkpoint_every: Epochs from one checkpoint to the next; the last epoch has one in any case.
        checkpoint_keep: How many of the last checkpoints are kept, and with validation data beside them the one with
            the smallest validation loss, that of the model's objective.

    Raises:
        ArgumentError: An option cannot be used, or not with the others.
        ArgumentTypeError: One is of a type that cannot be used, or there is no such option.

    >>> training = Training(epochs=5, init="kmeans", early_stopping=EarlyStopping(patience=2))
    >>> training
    Training(epochs=5, init='kmeans', early_stopping=EarlyStopping(patience=2, min_delta=0.0))
    >>> training_from_json(training.to_json()) == training
    True
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
    warmup: Warmup | None = None
    revive: bool = False
    kl_weight: float = 1.0
    max_grad_norm: float | None = None
    early_stopping: EarlyStopping | None = None
    seed: int | None = 0
    device: str | torch.device = "auto"
    precision: Precision = "fp32"
    compile: bool = False
    checkpoint_every: int = 1
    checkpoint_keep: int = 3

    def __post_init__(self) -> None:
        """Check every option, and turn numbers into Python's own, as JSON gives them back."""
        for name in ("epochs", "batch_size", "init_epochs", "checkpoint_every", "checkpoint_keep"):
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
        for name in ("revive", "compile"):
            if not isinstance(getattr(self, name), bool):
                self._refuse(name, "True or False", ArgumentTypeError)
        records: dict[str, type] = {"agreement": Agreement, "warmup": Warmup, "early_stopping": EarlyStopping}
        for name, record in records.items():
            if not isinstance(getattr(self, name), record | None):
                self._refuse(name, f"None or {record.__name__}(...)", ArgumentTypeError)
        if self.seed is not None:
            if not (is_integer(self.seed) and -(1 << 63) <= self.seed < 1 << 64):
                self._refuse("seed", "None or an integer of at most 64 bits")
            object.__setattr__(self, "seed", int(self.seed))
        self._check_callables()
        if isinstance(self.device, torch.device):
            object.__setattr__(self, "device", str(self.device))
        full_from = self.course.full_from  # which a course without an end does not have
        if self.early_stopping is not None and full_from > self.epochs:
            expected = "None where gates and experts never learn together at full weight"
            self._refuse("early_stopping", expected)

    def _check_callables(self) -> None:
        """Check what may be code of the user's own."""
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
        """The number of epochs that teach a start: none where it is random."""
        return 0 if isinstance(self.init, str) and self.init == "random" else self.init_epochs

    @property
    def course(self) -> Course:
        """What is done in each epoch."""
        return Course(self.epochs, self.start_epochs, self.agreement, self.warmup, self.kl_weight)

    def described(self) -> dict[str, str]:
        """Every option in words that are the same in another process.

        >>> from functools import partial
        >>> Training(optimizer=partial(torch.optim.SGD, lr=0.1)).described()["optimizer"]
        'SGD(lr=0.1)'
        """
        return {field.name: described(getattr(self, field.name)) for field in fields(self)}

    def to_json(self, *, indent: int | None = 2) -> str:
        """JSON, which `training_from_json` reads back.

        Records and views of the package are written as such. A callable of one's own or an array is described in words,
        for people: `{"described": "SGD(lr=0.1)"}`.
        """
        return json.dumps(_CODEC.to_data(self), indent=indent)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Training):
            return NotImplemented
        return all(_are_equal(getattr(self, field.name), getattr(other, field.name)) for field in fields(self))

    def __hash__(self) -> int:
        return hash(tuple(self.described().values()))

    def __repr__(self) -> str:
        """The call that makes it; options at their defaults are left out, and arrays are described."""
        given = [field for field in fields(self) if not _are_equal(getattr(self, field.name), field.default)]
        return f"Training({', '.join(f'{field.name}={described(getattr(self, field.name))}' for field in given)})"


def training_from_json(text: str, **options: Any) -> Training:
    """Read what `Training.to_json` wrote.

    No code runs from a file. What was given as a callable of one's own or as an array has to be given again.

    Args:
        text: The JSON.
        options: Options of `Training` in place of those in the text.

    Raises:
        ArgumentError: The text is not such JSON, an option cannot be used, or one is described in words and not given.
        ArgumentTypeError: There is no such option, or one has a type that cannot be used.

    >>> own = Training(optimizer=torch.optim.SGD, seed=7)
    >>> training_from_json(own.to_json(), optimizer=torch.optim.SGD) == own
    True
    >>> training_from_json(own.to_json())
    Traceback (most recent call last):
    ...
    hmoevae.errors.ArgumentError: Training.optimizer: expected training_from_json(text, optimizer=...) to give it in \
code, since none runs from a file, got SGD, in words
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(mismatch("Training", f"valid JSON ({error})", f"{text!r:.200}")) from None
    if not isinstance(data, dict) or data.get("kind") != "training":
        raise ArgumentError(mismatch("Training", "a record of kind 'training'", f"{data!r:.200}"))
    kept = {name: value for name, value in data.items() if name not in options and name != "kind"}
    return _CODEC.made(Training, kept, "Training", options)


def _are_equal(one: Any, other: Any) -> bool:
    arrays = [isinstance(value, Tensor | np.ndarray) for value in (one, other)]
    return described(one) == described(other) if any(arrays) else bool(one == other)


_CODEC = Codec(
    {
        "training": Training,
        "agreement": Agreement,
        "warmup": Warmup,
        "early_stopping": EarlyStopping,
        "compose": Compose,
        "neighbour": Neighbour,
        "random_affine": RandomAffine,
    }
)

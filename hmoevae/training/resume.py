"""What a run needs to go on where it was: its state, and the arguments that it has to be given again."""

import functools
import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from hmoevae.errors import CheckpointError, mismatch
from hmoevae.history import History
from hmoevae.model import HMoEVAE
from hmoevae.samples import Checked
from hmoevae.training.batches import Batches, Data
from hmoevae.training.checkpoints import Checkpoint
from hmoevae.training.loop import Run
from hmoevae.training.states import Stateful

DIGESTED_ROWS = 64
"""About how many samples of a data set are looked at to recognise it."""


@dataclass(frozen=True, slots=True)
class TrainingState:
    """Everything that changes as a run goes on, but the weights.

    Attributes:
        run: Optimiser, schedule and the draws of z.
        history: What was measured.
        order: The order of the data.
        loaders: Sources of data that may have generators of their own.
        callbacks: Of which those are kept that are `Stateful`.
    """

    run: Run
    history: History
    order: torch.Generator
    loaders: Sequence[Data | None]
    callbacks: Sequence[Callable[..., object]]

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {
            "run": self.run.state_dict(),
            "rows": self.history.rows,
            "order": self.order.get_state(),
            "loaders": [generator.get_state() for generator in _generators(self.loaders)],
            "random": _random_states(self.run.noise.device),
            "callbacks": {name: callback.state_dict() for name, callback in _by_name(self.callbacks).items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; a callback that it does not know starts anew."""
        self.run.load_state_dict(state["run"])
        self.history.rows[:] = state["rows"]
        self.order.set_state(state["order"])
        for generator, saved in zip(_generators(self.loaders), state["loaders"], strict=True):
            generator.set_state(saved)
        for name, callback in _by_name(self.callbacks).items():
            if name in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][name])
        _set_random_states(state["random"], self.run.noise.device)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, weights and all.

        Raises:
            CheckpointError: It is not one of such a run; the weights are as they were.
        """
        try:
            self.load_state_dict(checkpoint.state["training"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, LookupError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise CheckpointError(mismatch(str(checkpoint.path), "the state of this run", reason)) from error
        self.run.model.load_state_dict(checkpoint.weights)


def _generators(loaders: Sequence[Data | None]) -> list[torch.Generator]:
    """The generators that users gave to their loaders and samplers; others draw from torch's global one."""
    found: dict[int, torch.Generator] = {}
    for loader in loaders:
        if isinstance(loader, DataLoader):
            for part in (loader, loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
                generator = getattr(part, "generator", None)
                if isinstance(generator, torch.Generator):
                    found[id(generator)] = generator
    return list(found.values())


def _by_name(callbacks: Sequence[object]) -> dict[str, Stateful]:
    """Those that have a state, by class and place among their class."""
    found: dict[str, Stateful] = {}
    for callback in callbacks:
        if isinstance(callback, Stateful):
            name = type(callback).__name__
            found[f"{name}.{sum(other.startswith(f'{name}.') for other in found)}"] = callback
    return found


def _random_states(device: torch.device) -> dict[str, Any]:
    """The global ones, which callables, data sets and loaders of the user may draw from."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002 (it is the global one that is meant)
    states = {"python": random.getstate(), "numpy": numpy, "cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def _set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states["mps"])


def described_model(model: HMoEVAE) -> dict[str, str]:
    """What was given to a model's constructor, in words."""
    tree = hashlib.sha256(model.tree.to_json().encode()).hexdigest()[:12]
    return {
        "tree": f"{model.plan.n_leaves} leaves with sha256 {tree}",
        "input_shape": repr(model.input_shape),
        "objective": repr(model.objective),
        "dtype": str(model.dtype),
    }


def described_data(model: HMoEVAE, data: Data | None, batches: Batches | None) -> str | None:
    """A data set in words: what it is made of, its length, and where there is one the digest of some samples."""
    if type(data) is TensorDataset:
        data = data.tensors[0]
    if isinstance(data, Checked):
        data = data.x
    if isinstance(data, Tensor | np.ndarray):
        rows = data[:: max(1, len(data) // DIGESTED_ROWS)]
        some = model.check_input(rows, values=False).to("cpu", model.dtype)
        return f"{len(data)} samples with {_digest(some)}"
    if data is None or batches is None:
        return None
    return f"{type(data).__name__} with {batches.length} batches"


def described(value: object) -> str:
    """An argument in words that are the same in another process.

    >>> from hmoevae.views import Compose, RandomAffine
    >>> described(Compose([RandomAffine(shear=0.0), torch.nn.functional.relu]))
    'Compose(views=(RandomAffine(degrees=15.0, translate=(0.15, 0.15), scale=(0.85, 1.15), shear=0.0), relu))'
    >>> described(functools.partial(torch.optim.SGD, lr=0.1))
    'SGD(lr=0.1)'
    """
    match value:
        case Tensor() | np.ndarray():
            return f"{type(value).__name__}{tuple(value.shape)} with {_digest(value)}"
        case list() | tuple():
            return f"({', '.join(map(described, value))})"
        case functools.partial():
            given = [described(part) for part in value.args]
            given += [f"{name}={described(part)}" for name, part in value.keywords.items()]
            return f"{described(value.func)}({', '.join(given)})"
        case None | bool() | int() | float() | str():
            return repr(value)
        case _ if is_dataclass(value) and not isinstance(value, type):
            given = [f"{field.name}={described(getattr(value, field.name))}" for field in fields(value)]
            return f"{type(value).__name__}({', '.join(given)})"
        case _:
            return getattr(value, "__qualname__", None) or re.sub(" at 0x[0-9a-fA-F]+", "", repr(value))


def _digest(values: Tensor | np.ndarray) -> str:
    if isinstance(values, Tensor):  # by its bytes, for numpy knows no bfloat16
        values = values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    raw = values.tobytes()
    return f"sha256 {hashlib.sha256(raw).hexdigest()[:12]}"

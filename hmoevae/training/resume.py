"""Resuming: the state of a run for its checkpoints, and the description that has to be the same when it resumes."""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from hmoevae.door import Checked
from hmoevae.errors import CheckpointError, mismatch
from hmoevae.history import History
from hmoevae.model import HMoEVAE
from hmoevae.nn.sample_weights import SampleWeights
from hmoevae.saving import sharded
from hmoevae.tables.sparse import SparseRows, is_sparse
from hmoevae.training.batches import Batches, Data
from hmoevae.training.best import BestSoFar
from hmoevae.training.checkpoints import Checkpoint
from hmoevae.training.cut_state import cut, joined
from hmoevae.training.loop import Run
from hmoevae.training.processes import Processes
from hmoevae.training.record import Training
from hmoevae.training.states import Stateful
from hmoevae.training.words import described, digest

DIGESTED_ROWS = 64
"""Approximate number of samples whose digest identifies a data set."""
NOT_COMPARED = {
    "expert_parallel": "says where weights are, not what they are",
    "checkpoint_every": "says when checkpoints are written, not what is in them",
    "checkpoint_keep": "says which checkpoints stay, not what is in them",
}
"""The options that may change when a training resumes, with the reason."""


@dataclass(frozen=True, slots=True)
class TrainingState:
    """Everything that changes during a run, except the weights.

    Attributes:
        run: Optimiser, learning-rate schedule and the generator of z.
        history: The history.
        order: The generator of the order of the data.
        loaders: Sources of data, which may have generators of their own.
        callbacks: The callbacks; the state of those that are `Stateful` is saved.
        best: The best epoch so far, with early stopping.
    """

    run: Run
    history: History
    order: torch.Generator
    loaders: Sequence[Data | None]
    callbacks: Sequence[Callable[..., object]]
    best: BestSoFar | None

    def state_dict(self) -> dict[str, Any]:
        """The state, for a checkpoint."""
        return {
            "run": self.run.state_dict(),
            "rows": self.history.rows,
            "order": self.order.get_state(),
            "loaders": [generator.get_state() for generator in _generators(self.loaders)],
            "random": _random_states(self.run.noise.device),
            "callbacks": {name: callback.state_dict() for name, callback in _by_name(self.callbacks).items()},
            "best": None if self.best is None else self.best.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned; a callback without a saved state starts anew."""
        self.run.load_state_dict(state["run"])
        self.history.rows[:] = state["rows"]
        self.order.set_state(state["order"])
        for generator, saved in zip(_generators(self.loaders), state["loaders"], strict=True):
            generator.set_state(saved)
        for name, callback in _by_name(self.callbacks).items():
            if name in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][name])
        if self.best is not None:
            self.best.load_state_dict(state["best"])
            self.history.best_epoch = self.best.epoch
        _set_random_states(state["random"], self.run.noise.device)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state and the weights of a checkpoint.

        Raises:
            CheckpointError: The checkpoint's state does not fit the run. The weights are unchanged.
        """
        state, weights, processes = checkpoint.state["training"], dict(checkpoint.weights), self.run.processes
        if checkpoint.experts is not None:
            joined(state, weights, sharded.read(checkpoint.experts, processes.peers, processes.mesh))
        elif processes.peers is not None:
            cut(state, weights, self.run.model, self.run.optimizer)
        try:
            self.load_state_dict(state)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, LookupError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise CheckpointError(mismatch(str(checkpoint.path), "the state of this run", reason)) from error
        self.run.model.load_state_dict(weights)


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
    """The callbacks that have a state, by class name and index among the callbacks of that class."""
    found: dict[str, Stateful] = {}
    for callback in callbacks:
        if isinstance(callback, Stateful):
            name = type(callback).__name__
            found[f"{name}.{sum(other.startswith(f'{name}.') for other in found)}"] = callback
    return found


def _random_states(device: torch.device) -> dict[str, Any]:
    """The global random states, from which callables, data sets and loaders of the user may draw."""
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
    """The arguments of a model's constructor, in words."""
    tree = hashlib.sha256(model.tree.to_json().encode()).hexdigest()[:12]
    return {
        "tree": f"{model.plan.n_leaves} leaves with sha256 {tree}",
        "input_shape": repr(model.input_shape),
        "objective": repr(model.objective),
        "dtype": str(model.dtype),
    } | ({"missing": "True"} if model.missing else {})  # checkpoints of older versions do not have it


def described_training(
    training: Training, seed: int | None, device: torch.device, processes: Processes
) -> dict[str, str]:
    """The options that have to be the same when a training resumes, in words: all but `NOT_COMPARED`.

    Args:
        training: The record.
        seed: The main process's seed; `None` if it is a fresh one.
        device: The device of this process.
        processes: The processes of the training.
    """
    # With these options, the plan of an epoch depends on the number of epochs.
    is_planned = training.lr_schedule != "constant" or training.agreement is not None or training.revive
    as_run = {
        "batch_size": training.batch_size * processes.count,
        "device": device.type,
        "epochs": training.epochs if is_planned else None,
        "init_epochs": training.start_epochs,
        "seed": seed,
    }
    words = training.described() | {name: described(value) for name, value in as_run.items()}
    words["epochs"] = words.pop("epochs")  # last: if they differ because another option does, that one is named
    return {f"Training.{name}": value for name, value in words.items() if name not in NOT_COMPARED}


def described_weights(weights: SampleWeights | None) -> str | None:
    """The weights of samples in words: their number and a digest."""
    return None if weights is None else f"{len(weights.counts)} weights with {digest(weights.counts)}"


def described_data(model: HMoEVAE, data: Data | None, batches: Batches | None) -> str | None:
    """A data set in words: its length and a digest of some samples or, for loaders, its class and number of batches."""
    data = data if data is None else model.door.encoded(data, "data")
    if type(data) is TensorDataset:
        data = data.tensors[0]
    if isinstance(data, Checked):
        data = data.x
    if is_sparse(data):
        data = SparseRows(data)
    if isinstance(data, Tensor | np.ndarray | SparseRows):
        rows = data[:: max(1, len(data) // DIGESTED_ROWS)]
        some = model.check_input(rows, values=False).to("cpu", model.dtype)
        return f"{len(data)} samples with {digest(some)}"
    if data is None or batches is None:
        return None
    return f"{type(data).__name__} with {batches.length} batches"

"""An estimator as files: parameters, table and history as JSON, arrays and weights as safetensors, no pickle."""

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hmoevae.checks import is_integer
from hmoevae.errors import ArgumentError, CheckpointError, HMoEVAEError, mismatch
from hmoevae.history import History
from hmoevae.model import HMoEVAE
from hmoevae.saving import files
from hmoevae.spec.record import read, write
from hmoevae.tables import Table
from hmoevae.version import __version__

FORMAT = 1
ESTIMATOR, ARRAYS, HISTORY = "estimator.json", "estimator.safetensors", "history.json"
PLAIN = (
    "loss_",
    "converged_",
    "n_iter_",
    "n_steps_",
    "n_samples_seen_",
    "n_features_in_",
    "n_components_",
    "selection_",
)
"""Attributes of a fitted estimator that JSON holds."""


def save(estimator: Any, folder: Path) -> None:
    """Write a fitted estimator.

    Args:
        estimator: A `VAEMixture`.
        folder: The folder.

    Raises:
        ArgumentError: A parameter cannot be written, or the folder cannot.
    """
    parameters = {name: _written(name, value) for name, value in estimator.get_params(deep=False).items()}
    about: dict[str, Any] = {"format": "hmoevae estimator", "format_version": FORMAT, "version": __version__}
    about |= {"parameters": parameters, "table": write(estimator.table_)}
    about |= {"fitted": {name: getattr(estimator, name) for name in PLAIN}}
    about["selection"] = estimator.selection_
    about["has_names"] = hasattr(estimator, "feature_names_in_")
    estimator.model_.save_pretrained(folder)
    about["model"] = _digest(folder / files.WEIGHTS_NAME)
    arrays = {
        name: torch.from_numpy(np.ascontiguousarray(getattr(estimator, name))) for name in ("labels_", "weights_")
    }
    with files.replacing_files_of(folder) as beside:
        estimator.history_.to_json(beside / HISTORY)
        save_file(arrays, beside / ARRAYS)
        files.write_text(beside / ESTIMATOR, json.dumps(about, indent=1) + "\n")


def load(cls: type, folder: Path) -> Any:
    """Read an estimator.

    Args:
        cls: `VAEMixture` or a class derived from it.
        folder: The folder.

    Raises:
        CheckpointError: A file is missing, damaged, or of a newer version, or the files do not belong together.
    """
    file = folder / ESTIMATOR
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        if about["format_version"] > FORMAT:
            expected = f"an estimator of format {FORMAT} or older"
            raise CheckpointError(mismatch(str(file), expected, f"one of hmoevae {about['version']}; update hmoevae"))
        known = set(inspect.signature(cls).parameters)
        unknown = sorted(set(about["parameters"]) - known)
        if unknown:
            raise ValueError(f"no parameter {unknown[0]}")
        parameters = {name: _read(value, name) for name, value in about["parameters"].items()}
        table, fitted = read(about["table"], "table"), {name: about["fitted"][name] for name in PLAIN}
        arrays = {name: array.numpy() for name, array in load_file(folder / ARRAYS).items()}
        labels, weights = arrays["labels_"], arrays["weights_"]
        selection = about.get("selection", {})  # earlier estimators did not choose their number of components
        digest = _digest(folder / files.WEIGHTS_NAME)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, HMoEVAEError) as error:
        got = f"no {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(mismatch(str(folder), "an estimator that save_pretrained wrote", got)) from None
    if not isinstance(table, Table) or digest != about["model"]:
        raise CheckpointError(mismatch(str(folder), f"the model that was saved with {ESTIMATOR}", "another one"))
    estimator = cls(**parameters)
    estimator.model_, estimator.history_ = HMoEVAE.from_pretrained(folder), History.from_json(folder / HISTORY)
    vars(estimator).update(fitted, table_=table, labels_=labels, weights_=weights)
    vars(estimator).update(n_components_=estimator.model_.plan.n_leaves, selection_=selection)
    if about["has_names"]:
        estimator.feature_names_in_ = np.array(table.names, dtype=object)
    return estimator


def _written(name: str, value: Any) -> Any:
    """A parameter as data; mappings are told from records by the lack of a kind."""

    def other(value: object) -> Any:
        if is_integer(value):
            return int(value)  # type: ignore[call-overload]  # numpy's
        if isinstance(value, float | np.floating):
            return float(value)
        if isinstance(value, torch.device):
            return str(value)
        if isinstance(value, dict):
            return {"mapping": {key: write(part, None, name) for key, part in value.items()}}
        raise ArgumentError(mismatch(name, "a value that JSON can hold, such as an integer", f"{value!r:.80}"))

    return write(value, other, name)


def _read(data: Any, name: str) -> Any:
    def other(data: dict[str, Any], path: str) -> Any:
        return {key: read(part, path) for key, part in data["mapping"].items()}

    return read(data, name, other)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

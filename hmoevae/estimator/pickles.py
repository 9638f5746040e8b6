"""Pickles of estimators: what they hold, and what those of older versions lack."""

import copy
import inspect
from typing import Any

from hmoevae.errors import VersionWarning, mismatch, warn
from hmoevae.model import HMoEVAE
from hmoevae.spec import tree_from_json
from hmoevae.tables import Number, Table
from hmoevae.version import __version__


def written(state: dict[str, Any]) -> dict[str, Any]:
    """What a pickle holds: the state of an estimator, with the version and the model on the CPU.

    Machines without this accelerator have to be able to load it.

    >>> written({"lr": 0.1}).keys()
    dict_keys(['lr', '_hmoevae_version'])
    """
    moved = {"model_": copy.deepcopy(state["model_"]).cpu()} if "model_" in state else {}
    return state | moved | {"_hmoevae_version": __version__}


def read(cls: type, pickled: dict[str, Any]) -> dict[str, Any]:
    """The state of an estimator from a pickle, which may be from another version.

    Parameters that it lacks take their defaults. A `VersionWarning` says what was added.

    Args:
        cls: The class of the estimator.
        pickled: What the pickle holds.

    >>> from hmoevae import VAEMixture
    >>> read(VAEMixture, written(VAEMixture(3).get_params()))["n_components"]
    3
    """
    parameters = inspect.signature(cls).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty and p.name not in pickled}
    state = {name: value for name, value in pickled.items() if name != "_hmoevae_version"} | defaults
    if "model_" in state and "table_" not in state:  # before estimators had tables, numbers stayed as they were
        names = state.get("feature_names_in_", [f"x{i}" for i in range(state["n_features_in_"])])
        library: Any = "pandas" if "feature_names_in_" in state else "numpy"
        state["table_"] = Table(tuple(Number(name) for name in names), library)
        state["model_"] = _rebuilt(state["model_"])
    if "model_" in state and "selection_" not in state:  # before estimators chose their number of components
        state["n_components_"], state["selection_"] = state["model_"].plan.n_leaves, {}
    version = pickled.get("_hmoevae_version", "an unknown version")
    if version != __version__ or defaults:
        added = f", with the defaults of {', '.join(defaults)}" if defaults else ""
        made_by = version if version != __version__ else f"an earlier {version}"
        remedy = "fit again, or save models with model_.save_pretrained, which all versions read"
        got = f"one of {made_by}{added}; {remedy}"
        warn(mismatch(cls.__name__, f"a pickle of hmoevae {__version__}", got), VersionWarning)
    return state


def _rebuilt(model: HMoEVAE) -> HMoEVAE:
    """The model of an older pickle, whose modules lack attributes of today: made anew, with its weights."""
    tree = tree_from_json(model.tree.to_json())
    fresh = HMoEVAE(tree, model.input_shape, objective=model.objective).to(model.dtype)
    fresh.load_state_dict(model.state_dict())
    return fresh

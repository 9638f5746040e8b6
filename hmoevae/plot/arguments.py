"""Checks of the arguments of plots."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hmoevae.door import ArrayLike
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, ShapeError, mismatch
from hmoevae.history import History
from hmoevae.model import HMoEVAE
from hmoevae.plan import Plan


def check(fits: bool, argument: str, expected: str, got: object) -> None:
    """Raise an error if the type of an argument does not fit."""
    if not fits:
        raise ArgumentTypeError(mismatch(argument, expected, type(got).__name__))


def check_model(model: HMoEVAE) -> None:
    """Check that `model` is a model, by its plan: a model that `torch.compile` has wrapped has one too."""
    expected = "an HMoEVAE, such as the estimator's model_" if hasattr(model, "model_") else "an HMoEVAE"
    check(isinstance(getattr(model, "plan", None), Plan), "model", expected, model)


def check_plan(plan: Plan | None) -> None:
    """Check that `plan` is a plan or `None`."""
    check(plan is None or isinstance(plan, Plan), "plan", "a Plan, such as model.plan", plan)


def epochs_of(history: History) -> Float[np.ndarray, " epoch"]:
    """The numbers of the epochs; at least one."""
    check(isinstance(history, History), "history", "a History, such as fit returns", history)
    if len(history) == 0:
        raise ArgumentError(mismatch("history", "at least one epoch", "none"))
    return np.asarray(history["epoch"])


def labels_of(names: Iterable[object], argument: str) -> list[str]:
    """Labels as text."""
    check(isinstance(names, Iterable), argument, "a sequence", names)
    return [str(name) for name in names]


def floats(values: ArrayLike, argument: str) -> Float[Tensor, "..."]:
    """Convert numbers of any type to float32, on the CPU."""
    if isinstance(values, Tensor):
        return values.detach().float().cpu()
    try:
        return torch.from_numpy(np.array(values, dtype=np.float32))
    except (TypeError, ValueError):
        expected = "a torch.Tensor or numpy array of numbers"
        raise ArgumentTypeError(mismatch(argument, expected, type(values).__name__)) from None


def clusters_of(clusters: ArrayLike, cluster_names: Iterable[object] | None) -> tuple[Int[np.ndarray, " n"], list[str]]:
    """The cluster of every sample as an index into names, and the names; by default the numbers that occur."""
    found = np.asarray(clusters.cpu() if isinstance(clusters, Tensor) else clusters)
    if not np.issubdtype(found.dtype, np.integer) or len(found) == 0 or found.min() < 0:
        raise DataError(mismatch("clusters", "at least one integer, all >= 0", f"{found.dtype} {found[:8]}"))
    if cluster_names is None:
        numbers, index = np.unique(found, return_inverse=True)
        return index, [str(i) for i in numbers]
    names = labels_of(cluster_names, "cluster_names")
    n_clusters = int(found.max()) + 1
    if len(names) < n_clusters:
        raise ShapeError(mismatch("cluster_names", f"at least {n_clusters} names", len(names)))
    return found, names

"""Hierarchical mixtures of variational auto-encoders: clusters and sub-clusters of data, found without labels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hmoevae import features, photographs, tables, views
from hmoevae.callbacks import SampleRecorder
from hmoevae.cells import annotate
from hmoevae.em import EM, fit_em
from hmoevae.growth import Decision, Grown, Growth, add_leaf, grow
from hmoevae.hierarchies import Hierarchy, Merge, hierarchy
from hmoevae.history import History
from hmoevae.kinds import Cut, Kinds, find_kinds
from hmoevae.model import HMoEVAE
from hmoevae.nn import routes
from hmoevae.nn.balance import balance
from hmoevae.nn.kernels.memory import StepMemory
from hmoevae.nn.likelihoods import LikelihoodModule
from hmoevae.nn.objectives import objective
from hmoevae.nn.routes import TopK
from hmoevae.nn.settings import StepSettings
from hmoevae.output import Output, Routing
from hmoevae.saving.card import CardInfo
from hmoevae.spec import (
    MLP,
    VAE,
    Balance,
    Bernoulli,
    Categorical,
    Columns,
    ContinuousBernoulli,
    Conv,
    ConvTranspose,
    Gaussian,
    Likelihood,
    LinearPosterior,
    LogNormal,
    Mixture,
    NegativeBinomial,
    Network,
    Ordinal,
    Poisson,
    PosteriorGate,
    ZeroInflated,
    record,
    tree_from_json,
)
from hmoevae.tables import Table, table_from_json
from hmoevae.trackers import Tracking
from hmoevae.training import (
    Agreement,
    Best,
    EarlyStopping,
    EpochEnd,
    RowAdam,
    Training,
    Warmup,
    best_of,
    fit,
    frozen,
    training_from_json,
)
from hmoevae.version import __version__ as __version__

if TYPE_CHECKING:
    from hmoevae import datasets, export, metrics, plot, surgery
    from hmoevae.estimator import VAEMixture
    from hmoevae.reporting import report

__all__ = [
    "EM",
    "MLP",
    "VAE",
    "Agreement",
    "Balance",
    "Bernoulli",
    "Best",
    "CardInfo",
    "Categorical",
    "Columns",
    "ContinuousBernoulli",
    "Conv",
    "ConvTranspose",
    "Cut",
    "Decision",
    "EarlyStopping",
    "EpochEnd",
    "Gaussian",
    "Grown",
    "Growth",
    "HMoEVAE",
    "Hierarchy",
    "History",
    "Kinds",
    "Likelihood",
    "LikelihoodModule",
    "LinearPosterior",
    "LogNormal",
    "Merge",
    "Mixture",
    "NegativeBinomial",
    "Network",
    "Ordinal",
    "Output",
    "Poisson",
    "PosteriorGate",
    "Routing",
    "RowAdam",
    "SampleRecorder",
    "StepMemory",
    "StepSettings",
    "Table",
    "TopK",
    "Tracking",
    "Training",
    "VAEMixture",
    "Warmup",
    "ZeroInflated",
    "add_leaf",
    "annotate",
    "balance",
    "best_of",
    "datasets",
    "export",
    "features",
    "find_kinds",
    "fit",
    "fit_em",
    "frozen",
    "grow",
    "hierarchy",
    "metrics",
    "objective",
    "photographs",
    "plot",
    "record",
    "report",
    "routes",
    "surgery",
    "table_from_json",
    "tables",
    "training_from_json",
    "tree_from_json",
    "views",
]


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted([*__all__, "__version__"])


def __getattr__(name: str) -> Any:
    """Load modules that not every user needs on first use, such as `hmoevae.plot`."""
    if name in ("datasets", "export", "metrics", "plot", "surgery"):
        return import_module(f"hmoevae.{name}")
    if name == "VAEMixture":
        return import_module("hmoevae.estimator").VAEMixture
    if name == "report":
        return import_module("hmoevae.reporting").report
    raise AttributeError(f"module 'hmoevae' has no attribute {name!r}")

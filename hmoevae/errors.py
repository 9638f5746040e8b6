"""The errors of the package: each names the argument, what was expected and what came."""

import shlex
import sys
import warnings

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "CheckpointError",
    "CheckpointWarning",
    "CollapseWarning",
    "ConstantGateWarning",
    "DataError",
    "DeadLeafWarning",
    "HMoEVAEError",
    "MissingExtraError",
    "NonFiniteError",
    "ProcessError",
    "ScaleWarning",
    "ShapeError",
    "SpecError",
    "VersionWarning",
    "mismatch",
]


def __dir__() -> list[str]:
    """What there is for users."""
    return __all__


class HMoEVAEError(Exception):
    """Base class of every error that this package raises on purpose."""


class SpecError(HMoEVAEError, ValueError):
    """A tree that does not make sense; the message starts with the path of the bad field."""


class ArgumentError(HMoEVAEError, ValueError):
    """An argument with a value that cannot be used."""


class ArgumentTypeError(HMoEVAEError, TypeError):
    """An argument of a type that cannot be used."""


class ShapeError(ArgumentError):
    """A tensor whose shape is not the one the model was built for."""


class DataError(ArgumentError):
    """Data that cannot be modelled: empty, not finite, or outside a likelihood's support."""


class CheckpointError(HMoEVAEError, ValueError):
    """A saved model or a checkpoint that is missing, damaged, belongs to another tree, or cannot be written."""


class NonFiniteError(HMoEVAEError, ArithmeticError):
    """A loss that became NaN or infinite in training; names the step, the term and the node."""


class ProcessError(HMoEVAEError, RuntimeError):
    """Another process of the same training run has ended, or cannot be reached any more."""


class MissingExtraError(HMoEVAEError, ImportError):
    """A feature whose optional dependency is not installed; names the extra that brings it."""


class CollapseWarning(UserWarning):
    """Part of a tree that does nothing when training ends; base class of the warnings that say which part."""


class DeadLeafWarning(CollapseWarning):
    """A leaf that training left without samples, in probability or in fact; names the leaf."""


class ScaleWarning(UserWarning):
    """Data whose columns are far from the scale of the likelihood; says which, and that they want standardising."""


class CheckpointWarning(UserWarning):
    """A checkpoint that is passed over because it is damaged or not ours; names it."""


class VersionWarning(UserWarning):
    """A pickled estimator that another version of this package has made; names the version."""


class ConstantGateWarning(CollapseWarning):
    """A gate that gives all samples the same answer; names the mixture."""


def mismatch(argument: str, expected: str, got: object) -> str:
    """Word an error in the one form that the package uses.

    >>> mismatch("latent_dim", "an integer > 0", 0)
    'latent_dim: expected an integer > 0, got 0'
    """
    return f"{argument}: expected {expected}, got {got}"


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn of what a user has called, in whose line, however deep in this package the reason was found.

    >>> import warnings
    >>> with warnings.catch_warnings(record=True, action="always") as caught:
    ...     warn("all is not well")
    >>> caught[0].message, caught[0].filename == __file__
    (UserWarning('all is not well'), False)
    """
    level, frame = 2, sys._getframe(1)
    while frame is not None and _is_on_the_way(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _is_on_the_way(module: str) -> bool:
    """Whether calls from there are made on behalf of somebody else, who is to be told."""
    return module.partition(".")[0] in {"hmoevae", "beartype", "contextlib", "jaxtyping", "joblib", "pickle", "sklearn"}


def from_extra(package: str, extra: str) -> str:
    """Words for a package that an extra brings, with what installs it where this project was cloned, and anywhere.

    >>> from_extra("umap-learn", "umap")
    "umap-learn (in a clone: pip install -e '.[umap]'; elsewhere: pip install umap-learn)"
    """
    return f"{package} (in a clone: pip install -e '.[{extra}]'; elsewhere: pip install {shlex.quote(package)})"

"""The errors of the package: each names the argument, what was expected and what came."""

import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "CheckpointError",
    "CheckpointWarning",
    "CollapseWarning",
    "ConstantGateWarning",
    "ConvergenceWarning",
    "DataError",
    "DeadLeafWarning",
    "HMoEVAEError",
    "MissingExtraError",
    "NonFiniteError",
    "ProcessError",
    "ScaleWarning",
    "ShapeError",
    "SpecError",
    "StartWarning",
    "VersionWarning",
    "mismatch",
]


def __dir__() -> list[str]:
    """The public names."""
    return __all__


class HMoEVAEError(Exception):
    """Base class of every error that this package raises on purpose."""


class SpecError(HMoEVAEError, ValueError):
    """A tree that is not valid; the message starts with the path of the bad field."""


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
    """A feature whose optional dependency is not installed; names the extra that installs it."""


class CollapseWarning(UserWarning):
    """Part of a tree that is unused at the end of training; base class of the warnings that name the part."""


class DeadLeafWarning(CollapseWarning):
    """A leaf with next to no probability, or that is no sample's most probable leaf; names the leaf."""


class ScaleWarning(UserWarning):
    """Data whose columns are far from the scale of the likelihood; names the column and says how to standardise."""


class StartWarning(UserWarning):
    """A start that gates had hardly learned when its epochs were over, so that it was lost; says how many they were."""


class CheckpointWarning(UserWarning):
    """A checkpoint that is skipped because it is damaged or not one of this package; names it."""


class VersionWarning(UserWarning):
    """A pickled estimator from another version of this package; names the version."""


class ConstantGateWarning(CollapseWarning):
    """A gate that gives all samples nearly the same probabilities; names the mixture."""


class ConvergenceWarning(UserWarning):
    """A fit that the largest number of iterations ended before the loss had stopped falling."""


def mismatch(argument: str, expected: str, got: object) -> str:
    """The text of an error, in the package's form.

    >>> mismatch("latent_dim", "an integer > 0", 0)
    'latent_dim: expected an integer > 0, got 0'
    """
    return f"{argument}: expected {expected}, got {got}"


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Give a warning that points at the line of the user's code that called this package.

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


@contextmanager
def unwarned(message: str) -> Iterator[None]:
    """Inside, give no warnings that begin with a message: those of a library about what this package does on purpose.

    >>> with unwarned("all is not"):
    ...     warnings.warn("all is not well", stacklevel=1)
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", re.escape(message))
        yield


def _is_on_the_way(module: str) -> bool:
    """Whether a module lies between the user's code and the reason of a warning."""
    return module.partition(".")[0] in {"hmoevae", "beartype", "contextlib", "jaxtyping", "joblib", "pickle", "sklearn"}


def from_extra(package: str, extra: str) -> str:
    """A package that an extra installs, with the command that installs it in a clone and the one for elsewhere.

    >>> from_extra("umap-learn", "umap")
    "umap-learn (in a clone: pip install -e '.[umap]'; elsewhere: pip install umap-learn)"
    """
    return f"{package} (in a clone: pip install -e '.[{extra}]'; elsewhere: pip install {shlex.quote(package)})"

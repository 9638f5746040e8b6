"""The type checks of the tests: every call of the package, by beartype, with sizes of axes that agree within a call.

`--jaxtyping-packages` in `pyproject.toml` has `jaxtyping.jaxtyped` decorate all that the package defines. It binds the
arguments of every call and checks them twice, for the sake of its messages: a third of the time of tests that train.
`jaxtyped`, below, takes its place.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype

# Modules of beartype are among those behind which warnings look for the user's line (`hmoevae.errors.warn`).
__name__ = "beartype.checker"

slow = jaxtyping.jaxtyped


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, unless a test switches jaxtyping off; where shapes are annotated, in a scope of their axes' names."""
    hints = inspect.get_annotations(function).values()
    quoted = any(isinstance(hint, str) for hint in hints)  # some cannot be evaluated, which jaxtyping leaves out
    if quoted or inspect.isgeneratorfunction(function):  # beartype checks these when they run, outside of the scope
        return slow(function, typechecker=beartype)
    with_checks, config = beartype(function), jaxtyping.config

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        return (function if config.jaxtyping_disable else with_checks)(*args, **kwargs)

    @functools.wraps(function)
    def scoped(*args: Any, **kwargs: Any) -> Any:
        if config.jaxtyping_disable:
            return function(*args, **kwargs)
        with slow("context"):
            return with_checks(*args, **kwargs)

    return scoped if any("jaxtyping" in str(hint) for hint in hints) else plain


def jaxtyped(*, typechecker: object) -> Callable[[Any], Any]:
    """In place of jaxtyping's decorator; functions within functions are left alone, being made anew at every call."""

    def decorate(thing: Any) -> Any:
        if isinstance(thing, type):
            if dataclasses.is_dataclass(thing) and "__init__" in vars(thing):
                thing.__init__ = checked(thing.__init__)
            return thing
        return thing if "<locals>" in thing.__qualname__ else checked(thing)

    return decorate


jaxtyping.jaxtyped = jaxtyped

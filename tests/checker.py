"""The type checker of the tests, by which `pyproject.toml` has jaxtyping check every call of the package."""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, but for functions within functions: checks of those would be compiled anew at every call.

    That took half of the time of all tests.
    """
    return function if "<locals>" in function.__qualname__ else beartype(function)

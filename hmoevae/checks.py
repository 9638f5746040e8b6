"""Checks of arguments: numbers, integers and choices, with errors in the package's form."""

import math
from collections.abc import Iterable
from numbers import Integral, Real

from hmoevae.errors import ArgumentError, mismatch


def is_integer(value: object, least: int | None = None) -> bool:
    """Whether an argument is an integer of Python or numpy, not a bool, and at least `least`.

    >>> is_integer(1), is_integer(1.0), is_integer(True), is_integer(0, least=1)
    (True, False, False, False)
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        return False
    return least is None or int(value) >= least


def is_number(value: object, *, positive: bool = False) -> bool:
    """Whether an argument is a finite number of Python or numpy, not a bool, and >= 0 or, if `positive`, > 0.

    >>> is_number(0), is_number(0.5, positive=True), is_number(0, positive=True), is_number(-1), is_number("1")
    (True, True, False, False, False)
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    number = float(value)
    return 0 < number < math.inf or (number == 0 and not positive)


def check_number(argument: str, value: object, *, positive: bool = False) -> None:
    """Check that an argument is a number, as `is_number` defines it.

    Raises:
        ArgumentError: It is not.

    >>> check_number("lr", 0.1, positive=True)
    """
    if not is_number(value, positive=positive):
        raise ArgumentError(mismatch(argument, f"a finite number {'>' if positive else '>='} 0", repr(value)))


def check_integer(argument: str, value: object, *, least: int = 1) -> None:
    """Check that an argument is an integer, as `is_integer` defines it.

    Raises:
        ArgumentError: It is not.

    >>> check_integer("epochs", 5)
    """
    if not is_integer(value, least):
        raise ArgumentError(mismatch(argument, f"an integer > {least - 1}", repr(value)))


def check_choice(argument: str, value: object, choices: Iterable[str]) -> None:
    """Check that an argument is one of a few names.

    Args:
        argument: The name of the argument.
        value: Its value.
        choices: The allowed values.

    Raises:
        ArgumentError: The value is none of them.

    >>> check_choice("objective", "elbo", ("elbo", "marginal"))
    >>> check_choice("objective", "loss", ("elbo", "marginal"))
    Traceback (most recent call last):
    ...
    hmoevae.errors.ArgumentError: objective: expected one of 'elbo', 'marginal', got 'loss'
    """
    names = list(choices)
    if not isinstance(value, str) or value not in names:
        raise ArgumentError(mismatch(argument, f"one of {', '.join(map(repr, names))}", repr(value)))

"""Options described in words, which are the same in every process, and as JSON, from which no code runs."""

import functools
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from hmoevae import features
from hmoevae.errors import ArgumentError, ArgumentTypeError, mismatch
from hmoevae.spec.record import read, write

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def described(value: object) -> str:
    """Describe an option in words, which are the same in every process.

    >>> from hmoevae.views import Compose, RandomAffine
    >>> described(Compose([RandomAffine(shear=0.0), torch.nn.functional.relu]))
    'Compose(views=(RandomAffine(degrees=15.0, translate=(0.15, 0.15), scale=(0.85, 1.15), shear=0.0), relu))'
    >>> described(functools.partial(torch.optim.SGD, lr=0.1))
    'SGD(lr=0.1)'
    """
    match value:
        case Tensor() | np.ndarray():
            return f"{type(value).__name__}{tuple(value.shape)} with {digest(value)}"
        case list() | tuple():
            return f"({', '.join(map(described, value))})"
        case functools.partial():
            given = [described(part) for part in value.args]
            given += [f"{name}={described(part)}" for name, part in value.keywords.items()]
            return f"{described(value.func)}({', '.join(given)})"
        case np.generic():  # numpy's float64 is a float of Python's too, with words of its own
            return described(value.item())
        case None | bool() | int() | float() | str():
            return repr(value)
        case _ if is_dataclass(value) and not isinstance(value, type):
            given = [f"{field.name}={described(getattr(value, field.name))}" for field in fields(value)]
            return f"{type(value).__name__}({', '.join(given)})"
        case _:
            return getattr(value, "__qualname__", None) or re.sub(" at 0x[0-9a-fA-F]+", "", repr(value))


def digest(values: Tensor | np.ndarray) -> str:
    """The first digits of the sha256 of an array's bytes."""
    if isinstance(values, Tensor):  # viewed as bytes, because numpy has no bfloat16
        values = values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return f"sha256 {hashlib.sha256(values.tobytes()).hexdigest()[:12]}"


def named_fields(cls: type[T]) -> type[T]:
    """Make the constructor of a dataclass raise an error that lists the fields when it gets an unknown one.

    >>> from dataclasses import dataclass
    >>> @named_fields
    ... @dataclass(frozen=True, kw_only=True)
    ... class Point:
    ...     x: int = 0
    ...     y: int = 0
    >>> Point(z=1)
    Traceback (most recent call last):
    ...
    hmoevae.errors.ArgumentTypeError: Point.z: expected no such field (there are x, y), got 1
    """
    construct: Callable[..., None] = cls.__init__

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **given: Any) -> None:  # noqa: N807
        refuse_unknown(cls, given, cls.__name__)
        construct(self, *args, **given)

    cls.__init__ = __init__
    return cls


def options_in(argument: str, cls: type) -> Callable[[F], F]:
    """Make a function that gets an option of a record as an argument of its own raise an error that names the record.

    >>> from hmoevae.training.warmup import Warmup
    >>> @options_in("warmup", Warmup)
    ... def wait(warmup):
    ...     return warmup
    >>> wait(Warmup(3)), wait(epochs=3)
    Traceback (most recent call last):
    ...
    hmoevae.errors.ArgumentTypeError: epochs: expected this option in the argument warmup: Warmup(epochs=...), got 3
    """

    def decorate(function: F) -> F:
        names = {field.name for field in fields(cls)}

        @functools.wraps(function)
        def checked(*args: Any, **given: Any) -> Any:
            for name in given:
                if name in names:
                    expected = f"this option in the argument {argument}: {cls.__name__}({name}=...)"
                    raise ArgumentTypeError(mismatch(name, expected, f"{given[name]!r:.200}"))
            return function(*args, **given)

        return checked  # type: ignore[return-value]

    return decorate


def refuse_unknown(cls: type, given: Mapping[str, object], place: str) -> None:
    """Check that a dataclass has the given fields.

    Raises:
        ArgumentTypeError: It lacks one of them.
    """
    names = [field.name for field in fields(cls)]
    for name in given:
        if name not in names:
            expected = f"no such field (there are {', '.join(names)})"
            raise ArgumentTypeError(mismatch(f"{place}.{name}", expected, repr(given[name])))


def to_data(value: Any) -> Any:
    """Turn an option into data that `json.dumps` can write.

    A record becomes an object with its `kind` and its fields. A feature function of the package becomes
    `{"feature": "oriented_gradients"}`. Another value that JSON cannot hold becomes `{"described": "SGD(lr=0.1)"}`,
    which is for people.

    >>> from hmoevae.training.warmup import Warmup
    >>> to_data(Warmup(3))
    {'kind': 'warmup', 'epochs': 3, 'kl': 0.0, 'temperature': 1.0}
    >>> from_data(to_data(Warmup(3)), "Training.warmup") == Warmup(3)
    True
    """
    return write(value, _without_form)


def _without_form(value: Any) -> Any:
    """The data for a value that JSON has no form for."""
    if isinstance(value, np.generic):
        return value.item()
    name = getattr(value, "__name__", "")
    if name in features.__all__ and getattr(features, name) is value:
        return {"feature": name}
    return {"described": described(value)}


def from_data(data: Any, place: str) -> Any:
    """Turn data back into the value that `to_data` took; lists become tuples.

    Args:
        data: Data that `json.loads` has read.
        place: The path of the value, for errors.

    Raises:
        ArgumentError: A value is only described, or a field of a record cannot be used or is missing. A record of a
            user's own may have another type of error.
        SpecError: A kind is not registered; the message says what to import.
    """
    return read(data, place, _from_form)


def _from_form(data: dict[str, Any], place: str) -> Callable[[Tensor], Tensor]:
    """The value that `_without_form` took, if code of the package can make it."""
    if "described" in data:
        field = place.split(".")[1].split("[")[0]
        expected = f"training_from_json(text, {field}=...) with the value, because no code runs from a file"
        raise ArgumentError(mismatch(place, expected, f"{data['described']}, in words"))
    if "feature" not in data:
        raise ArgumentError(mismatch(place, "a record with a known kind", f"{data!r:.200}"))
    if data["feature"] not in features.__all__:
        expected = f"a feature among {', '.join(map(repr, features.__all__))}"
        raise ArgumentError(mismatch(place, expected, repr(data["feature"])))
    return getattr(features, data["feature"])

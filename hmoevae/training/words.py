"""Options described in words, which are the same in every process, and as JSON, from which no code runs."""

import functools
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from hmoevae import features
from hmoevae.errors import ArgumentError, ArgumentTypeError, mismatch
from hmoevae.spec.record import REGISTER, write

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
NOTHING: Mapping[str, Any] = MappingProxyType({})


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


class Codec:
    """Records of known kinds as JSON, and back.

    A record becomes an object with its `kind` and its fields. A record of the user's own, such as a view with the
    decorator `hmoevae.record`, is found by its kind once its class has been defined. A feature function of the package
    becomes `{"feature": "oriented_gradients"}`. A value that JSON cannot hold becomes `{"described": "SGD(lr=0.1)"}`,
    which is for people.

    Args:
        kinds: The classes of records by kind, all of them dataclasses.

    >>> from hmoevae.training.warmup import Warmup
    >>> codec = Codec({"warmup": Warmup})
    >>> codec.to_data(Warmup(3))
    {'kind': 'warmup', 'epochs': 3, 'kl': 0.0, 'temperature': 1.0}
    >>> codec.from_data(codec.to_data(Warmup(3)), "Training.warmup") == Warmup(3)
    True
    """

    def __init__(self, kinds: Mapping[str, type]) -> None:
        self.kinds = dict(kinds)
        self.names = {kind: name for name, kind in kinds.items()}

    def to_data(self, value: Any) -> Any:
        """Turn a value into data that `json.dumps` can write."""
        if type(value) in self.names:
            content = {field.name: self.to_data(getattr(value, field.name)) for field in fields(value)}
            return {"kind": self.names[type(value)], **content}
        if REGISTER.has(getattr(value, "kind", None), object) and hasattr(value, "__pydantic_fields__"):
            return write(value, self.to_data)
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, tuple | list):
            return [self.to_data(part) for part in value]
        name = getattr(value, "__name__", "")
        if name in features.__all__ and getattr(features, name) is value:
            return {"feature": name}
        return {"described": described(value)}

    def from_data(self, data: Any, place: str) -> Any:
        """Turn data back into the value that `to_data` took; lists become tuples.

        Args:
            data: Data that `json.loads` has read.
            place: The path of the value, for errors.

        Raises:
            ArgumentError: A value is only described, or a field is missing.
            ArgumentTypeError: A record has no such field.
            SpecError: A kind is not registered; the message says what to import.
        """
        if isinstance(data, list):
            return tuple(self.from_data(part, f"{place}[{i}]") for i, part in enumerate(data))
        if not isinstance(data, dict):
            return data
        if "described" in data:
            field = place.split(".")[1].split("[")[0]
            expected = f"training_from_json(text, {field}=...) with the value, because no code runs from a file"
            raise ArgumentError(mismatch(place, expected, f"{data['described']}, in words"))
        if "feature" in data:
            return self._feature(data["feature"], place)
        given = {name: value for name, value in data.items() if name != "kind"}
        kind = data.get("kind")
        if isinstance(kind, str) and kind in self.kinds:
            return self.made(self.kinds[kind], given, place)
        make = REGISTER.find(kind, place, data).make
        return make(**{name: self.from_data(value, f"{place}.{name}") for name, value in given.items()})

    def made(
        self, cls: type, data: Mapping[str, Any], place: str, given: Mapping[str, Any] = MappingProxyType({})
    ) -> Any:
        """Make a record from `data`, its fields as JSON, and `given`, its fields as values; others take defaults."""
        together = {**data, **given}
        refuse_unknown(cls, together, place)
        for field in fields(cls):
            if field.name not in together and field.default is MISSING and field.default_factory is MISSING:
                raise ArgumentError(mismatch(f"{place}.{field.name}", "a value", "nothing"))
        read = {name: self.from_data(value, f"{place}.{name}") for name, value in data.items()}
        return cls(**read, **given)

    @staticmethod
    def _feature(name: object, place: str) -> Callable[[Tensor], Tensor]:
        if name not in features.__all__:
            expected = f"a feature among {', '.join(map(repr, features.__all__))}"
            raise ArgumentError(mismatch(place, expected, repr(name)))
        return getattr(features, str(name))

"""Records: frozen, validated data with a `kind`, lossless as JSON, and the register that finds a record by its kind.

A model is described by records: nodes, networks, likelihoods, balances; so are views and options of training.
`@record(kind="...")` makes a class a record and registers it, for the package's records and for a user's.
"""

import dataclasses
import functools
import json
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from hmoevae.checks import is_number
from hmoevae.errors import ArgumentTypeError, HMoEVAEError, SpecError, mismatch

T = TypeVar("T")

# --- fields ---------------------------------------------------------------------------------------------------------


def expected(words: str) -> PydanticCustomError:
    """The error that a validator of a field raises; `record` adds the record, the field and the value to its message.

    >>> expected("an even number").message()
    'an even number'
    """
    return PydanticCustomError("expected", words)  # type: ignore[arg-type]  # a LiteralString


def _positive_int(value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise expected("an integer > 0")
    return number


def _finite_float(value: Any, *, positive: bool) -> float:
    if not is_number(value, positive=positive):
        raise expected("a finite number > 0" if positive else "a finite number >= 0")
    return float(value)


def _probability(value: Any) -> float:
    if not is_number(value) or value > 1:
        raise expected("a number from 0 to 1")
    return float(value)


PositiveInt = Annotated[int, BeforeValidator(_positive_int)]
PositiveFloat = Annotated[float, BeforeValidator(functools.partial(_finite_float, positive=True))]
NonNegativeFloat = Annotated[float, BeforeValidator(functools.partial(_finite_float, positive=False))]
Probability = Annotated[float, BeforeValidator(_probability)]

# --- the register ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Registered:
    """The entry of a kind in the register.

    Attributes:
        family: The base class of its records, such as `Network`.
        make: Makes a record from its fields.
        call: The call that makes a record, such as `MLP(...)`, for messages.
        origin: Module and name of the class or function that the kind stands for.
    """

    family: type
    make: Callable[..., Any]
    call: str
    origin: tuple[str, str]


class Register:
    """The kinds, by which files name records, and the functions that make the records.

    >>> class Colour:
    ...     pass
    >>> register = Register()
    >>> register.add("red", Registered(Colour, Colour, "Red()", origin_of(Colour)))
    >>> register.kinds(Colour), register.calls(Colour)
    (['red'], ['Red()'])
    >>> register.module("red") == __name__
    True
    """

    def __init__(self) -> None:
        self._known: dict[str, Registered] = {}

    def add(self, kind: str, registered: Registered) -> None:
        """Register a kind. A module that is executed again, as in a notebook, replaces its earlier entry.

        Raises:
            SpecError: Another class has that kind.
        """
        before = self._known.get(kind)
        if before is not None and (before.origin, before.family) != (registered.origin, registered.family):
            there = ".".join(before.origin)
            raise SpecError(mismatch("kind", f"one that is free ({kind!r} is {there})", repr(kind)))
        self._known[kind] = registered

    def has(self, kind: object, family: type) -> bool:
        """Whether a kind is registered and belongs to a family."""
        return isinstance(kind, str) and kind in self._known and issubclass(self._known[kind].family, family)

    def kinds(self, family: type) -> list[str]:
        """The kinds of a family, in the order in which they were registered."""
        return [kind for kind, known in self._known.items() if issubclass(known.family, family)]

    def calls(self, family: type) -> list[str]:
        """The calls that make the records of a family, for messages."""
        return list(dict.fromkeys(known.call for known in self._known.values() if issubclass(known.family, family)))

    def module(self, kind: str) -> str:
        """The module that registered a kind."""
        return self._known[kind].origin[0]

    def __iter__(self) -> Iterator[Registered]:
        return iter(self._known.values())

    def find(self, kind: object, path: str, data: object) -> Registered:
        """The entry of a kind.

        Raises:
            SpecError: The kind is not registered; the message says what to import.
        """
        if not isinstance(kind, str):
            raise SpecError(mismatch(path, "a record with a known kind", f"{data!r:.200}"))
        if kind not in self._known:
            known = ", ".join(map(repr, sorted(self._known)))
            words = f"a registered kind: import the module that registers {kind!r} first (known are {known})"
            raise SpecError(mismatch(path, words, f"{data!r:.200}"))
        return self._known[kind]


def check_name(argument: str, value: object, call: str) -> None:
    """Check that a decorator got a name, and not the class or function that it decorates.

    Raises:
        ArgumentTypeError: It did not.

    >>> check_name("kind", len, 'balance("mine")')
    Traceback (most recent call last):
    ...
    hmoevae.errors.ArgumentTypeError: kind: expected a name, as in balance("mine"), got <built-in function len>
    """
    if not (isinstance(value, str) and value):
        raise ArgumentTypeError(mismatch(argument, f"a name, as in {call}", f"{value!r:.200}"))


def origin_of(definition: Callable[..., Any]) -> tuple[str, str]:
    """Module and name of a class or function, equal for what a module defines when it is loaded anew.

    >>> origin_of(json.loads)
    ('json', 'loads')
    """
    return definition.__module__, definition.__qualname__


REGISTER = Register()
"""The register of this process."""

# --- records --------------------------------------------------------------------------------------------------------

# The words for pydantic's errors in the package's form (`errors.mismatch`).
_WORDS = {
    "literal_error": "{expected}",
    "bool_type": "True or False",
    "bool_parsing": "True or False",
    "callable_type": "a callable",
    "extra_forbidden": "no such field",
    "unexpected_keyword_argument": "no such field",
    "missing": "a value",
    "missing_argument": "a value",
    "too_short": "at least {min_length} items",
    "tuple_type": "a tuple such as (128, 64)",
    "string_type": "a string or None",
}


def _alternatives(words: Sequence[str]) -> str:
    """Join alternatives by commas and "or"."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _worded(name: str, cls: type, error: pydantic.ValidationError) -> str:
    """The first of pydantic's errors as `Name.field[1]: expected ..., got ...`."""
    first = error.errors(include_url=False)[0]
    path = name
    for part in first["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    context = first.get("ctx", {})
    words = _WORDS.get(first["type"], first["msg"].removeprefix("Input should be ")).format(**context)
    if first["type"] == "is_instance_of":
        words = _family_words(context["class"])
    elif first["type"] == "unexpected_keyword_argument" and len(first["loc"]) == 1:
        words += f" (there are {', '.join(fields_of(cls)) or 'none'})"
    elif first["type"] == "tuple_type" and first["loc"][-1] == "children":
        words = "a tuple of nodes"
    got = f"{first['input']!r:.200}"
    if first["type"].startswith("missing"):
        got = "nothing"
    elif first["type"] == "too_short":
        got = f"{context['actual_length']}"
    return mismatch(path, words, got)


def _family_words(family: str) -> str:
    """The values that a field takes, in words: the calls of its family."""
    for known in REGISTER:
        if any(base.__name__ == family for base in known.family.__mro__):
            return _alternatives(REGISTER.calls(known.family))
    return f"a record of type {family}"


def fields_of(cls: type) -> list[str]:
    """The names of a record's fields."""
    return [field.name for field in dataclasses.fields(cls)]


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def record(kind: str | None = None, *, error: type[HMoEVAEError] = SpecError) -> Callable[[type[T]], type[T]]:
    """Make a class a record: frozen and hashable, its fields validated by pydantic, with a `repr` that makes it again.

    Every value in a record can be hashed, except code of a user's own, such as a view. After `_: dataclasses.KW_ONLY`,
    fields are given by name only. A file names a record by its kind, so its class has to be defined before the file is
    read. The kind is registered under its family, the first base class of the record.

    Args:
        kind: The name of the class in JSON; `None` for a record with a field `kind` of its own, as `Balance` has.
        error: The type of error for a bad field.

    Raises:
        SpecError: Another class has that kind, or the class has a field of that name, which files need.
        ArgumentTypeError: The kind is no string, as in `@record` without a call.

    >>> class Shape:
    ...     pass
    >>> @record(kind="square")
    ... class Square(Shape):
    ...     side: PositiveInt = 2
    >>> Square(), Square(3), read(write(Square(3)), "shape") == Square(3)
    (Square(), Square(side=3), True)
    >>> Square(side=0)
    Traceback (most recent call last):
    ...
    hmoevae.errors.SpecError: Square.side: expected an integer > 0, got 0
    """
    if kind is not None:
        check_name("kind", kind, 'record(kind="mine")')

    def decorate(cls: type[T]) -> type[T]:
        config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
        made: Any = pydantic.dataclasses.dataclass(frozen=True, repr=False, config=config)(cls)
        construct = made.__init__
        names = fields_of(made)
        placed = [field.name for field in dataclasses.fields(made) if not field.kw_only]
        if kind is not None and "kind" in names:
            raise SpecError(mismatch(f"{cls.__name__}.kind", "a field of another name: files use this one", "a field"))

        @functools.wraps(construct)
        def __init__(self: T, /, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            if len(args) > len(placed):
                raise error(mismatch(cls.__name__, f"at most the arguments ({', '.join(placed)})", len(args)))
            try:  # arguments are passed by name, so that an error names the field
                construct(self, **dict(zip(placed, args, strict=False)), **kwargs)  # type: ignore[arg-type]
            except pydantic.ValidationError as complaint:
                raise error(_worded(cls.__name__, made, complaint)) from None
            for name in names:
                if not _has_hash(value := getattr(self, name)):
                    words = "a tuple or another value that can be hashed"
                    raise error(mismatch(f"{cls.__name__}.{name}", words, f"{value!r:.200}"))

        made.__init__ = __init__
        if "__repr__" not in vars(cls):
            made.__repr__ = call
        if kind is not None:
            made.kind = kind
            family = next((base for base in cls.__mro__[1:] if base is not object), cls)
            REGISTER.add(kind, Registered(family, made, f"{cls.__name__}({'...' if names else ''})", origin_of(cls)))
        return made

    return decorate


def _has_hash(value: object) -> bool:
    """Whether a value can be hashed; code of a user's own, such as a view, need not be."""
    if isinstance(value, tuple):
        return all(map(_has_hash, value))
    return type(value).__hash__ is not None or callable(value)


def arguments(record: Any) -> list[str]:
    """The arguments of the call that makes a record, as code, without those at their defaults."""
    defaults = {name: field.get_default(call_default_factory=True) for name, field in _pydantic_fields(record).items()}
    given = ((name, getattr(record, name)) for name in fields_of(type(record)))
    return [f"{name}={value!r}" for name, value in given if name not in defaults or value != defaults[name]]


def _pydantic_fields(record: Any) -> dict[str, Any]:
    return {name: field for name, field in type(record).__pydantic_fields__.items() if not field.is_required()}


def call(record: Any) -> str:
    """The call that makes a record, as code."""
    return f"{type(record).__name__}({', '.join(arguments(record))})"


# --- JSON -----------------------------------------------------------------------------------------------------------


def write(value: Any, other: Callable[[object], Any] | None = None, path: str = "value") -> Any:
    """Turn a record into data that JSON can hold.

    A class that inherits from a record is none before it has the decorator itself, and a kind of its own.

    Args:
        value: A record, or the value of a field.
        other: Turns a value that JSON cannot hold into one that it can.
        path: The value's name in error messages, such as `"root"`.

    Raises:
        SpecError: There is a value that JSON cannot hold, and no `other`.
    """
    if "kind" in vars(type(value)) and REGISTER.has(value.kind, object):
        fields = {name: write(getattr(value, name), other, f"{path}.{name}") for name in fields_of(type(value))}
        return {"kind": value.kind} | fields
    if isinstance(value, list | tuple):
        return [write(part, other, f"{path}[{i}]") for i, part in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if other is None:
        words = "a record (of a class with `@record(kind=...)`), a sequence, a string, a number or None"
        raise SpecError(mismatch(path, words, f"{value!r:.200}"))
    return other(value)


def read(data: Any, path: str, other: Callable[[dict[str, Any], str], Any] | None = None) -> Any:
    """Make the record that `write` turned into data; its constructor validates it.

    Args:
        data: The result of `write`.
        path: The record's name in error messages, such as `"root"`.
        other: Takes data without a kind, which the `other` of `write` made, and their path, and makes the value.

    Raises:
        HMoEVAEError: The data are no record, or a record with a bad field, whose path is in the message. The type is
            that of the record's class: `SpecError` for a tree.

    >>> read({"kind": "mlp", "hidden": [128, 0]}, "root.encoder")
    Traceback (most recent call last):
    ...
    hmoevae.errors.SpecError: root.encoder.hidden[1]: expected an integer > 0, got 0
    """
    if isinstance(data, list):
        return tuple(read(part, f"{path}[{i}]", other) for i, part in enumerate(data))
    if not isinstance(data, dict):
        return data
    if other is not None and "kind" not in data:
        return other(data, path)
    registered = REGISTER.find(data.get("kind"), path, data)
    given = {name: read(part, f"{path}.{name}", other) for name, part in data.items() if name != "kind"}
    try:
        return registered.make(**given)
    except HMoEVAEError as error:
        name = registered.call.partition("(")[0]
        raise type(error)(f"{path}{str(error).removeprefix(name)}") from None


def read_json(text: str | bytes, path: str) -> Any:
    """Read a record from a JSON text.

    Raises:
        SpecError: The text is not JSON, or as in `read`.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(mismatch(path, f"valid JSON ({error})", f"{text!r:.200}")) from None
    try:
        return read(data, path)
    except HMoEVAEError as error:  # of another type, where a record stands that belongs elsewhere
        raise SpecError(str(error)) from None


def modules_of(data: Any) -> dict[str, str]:
    """Which modules registered the kinds that a written record names, those of the package left out.

    Args:
        data: What `write` gives.

    >>> modules_of({"kind": "mlp", "hidden": [128]})
    {}
    """
    if isinstance(data, list):
        found = [modules_of(part) for part in data]
    elif isinstance(data, dict):
        found = [modules_of(part) for part in data.values()]
        kind = data.get("kind")
        if isinstance(kind, str) and (module := REGISTER.module(kind)).partition(".")[0] != "hmoevae":
            found.append({kind: module})
    else:
        return {}
    return {kind: module for part in found for kind, module in part.items()}


def _usable(value: Any) -> Any:
    """The record of a network or likelihood, if a file can name it."""
    cls = type(value)
    if "kind" not in vars(cls):  # a derived class would be read back as the class it comes from
        raise expected(f"a record: {cls.__name__} needs the decorator @hmoevae.record(kind=...) itself")
    return value


Usable = AfterValidator(_usable)
"""For fields that hold a record of a class that may be a user's."""


def check_family(value: object, family: type, path: str) -> None:
    """Check that a value is a record of a family.

    Raises:
        SpecError: It is not.

    >>> from hmoevae.spec import MLP, Network
    >>> check_family(MLP(), Network, "encoder")
    """
    if not isinstance(value, family):
        raise SpecError(mismatch(path, _alternatives(REGISTER.calls(family)), f"{value!r:.200}"))

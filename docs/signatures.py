"""Signatures as a reader would write them, where autodoc shows pydantic's validators or `*args, **kwargs`."""

import dataclasses
import inspect
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature

ODD = ("(*args, **kwargs)", "Annotated[", " at 0x", "<factory>")
"""What tells that autodoc's own signature is not one to read."""


def readable(
    _app: Sphinx, _what: str, _name: str, obj: Any, _options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """The signature by the constructor's own parameters, of plain types, where autodoc's is odd."""
    if getattr(obj, "_is_protocol", False):  # nothing that one calls
        return "", returns
    if signature is None or not any(mark in signature for mark in ODD):
        return signature, returns
    record = dataclasses.is_dataclass(obj)
    called = obj.__init__ if inspect.isclass(obj) and not record else obj
    hints = get_type_hints(called)  # without what pydantic keeps beside a type
    parameters = [
        parameter.replace(
            annotation=hints.get(name, parameter.annotation),
            default=_default(obj, parameter) if record else parameter.default,
        )
        for name, parameter in inspect.signature(called).parameters.items()
        if name != "self" and not _is_tag(hints.get(name))
    ]
    return stringify_signature(inspect.Signature(parameters), unqualified_typehints=True), returns


def _is_tag(hint: Any) -> bool:
    """Whether a field has one possible value, by which records are told apart in JSON."""
    return get_origin(hint) is Literal and len(get_args(hint)) == 1


def _default(record: Any, parameter: inspect.Parameter) -> Any:
    """The default of a field; one that is made anew for each record is made here, to be shown."""
    (field,) = (field for field in dataclasses.fields(record) if field.name == parameter.name)
    return parameter.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def without_constants(_app: Sphinx, what: str, _name: str, obj: Any, skip: bool, _options: object) -> bool | None:
    """Leave out what a module has beside classes and functions."""
    return True if what == "module" and not (inspect.isclass(obj) or inspect.isroutine(obj)) else skip or None


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of it."""
    app.connect("autodoc-process-signature", readable)
    app.connect("autodoc-skip-member", without_constants)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Plain attributes of modules, which are no parameters, buffers or modules, and when two of them are the same."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

from hmoevae.plan import Plan


def plain_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The public attributes of a module, without those of its parts, by name.

    >>> dict(plain_attributes(nn.Dropout(0.5)))
    {'p': 0.5, 'inplace': False}
    """
    for name, value in vars(module).items():
        if name != "training" and not name.startswith("_"):
            yield name, value


def has_numbers(value: object) -> bool:
    """Whether a value is a tensor or an array, or a list, tuple or dictionary with one.

    >>> has_numbers([{"a": np.zeros(2)}]), has_numbers([1.0])
    (True, False)
    """
    if isinstance(value, dict | list | tuple):
        return any(map(has_numbers, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Tensor | np.ndarray)


def is_same(one: object, other: object) -> bool:
    """Whether two attributes are equal.

    Objects without a comparison of their own are compared by their attributes. Of tensors on the meta device, which
    have no numbers, shapes and types are compared.

    >>> import torch
    >>> is_same([torch.zeros(2)], [torch.zeros(2)]), is_same(torch.zeros(2), torch.ones(2)), is_same(1, True)
    (True, False, False)
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, Plan) and isinstance(other, Plan):  # records of a class that was defined anew are not equal
        return one.tree.to_json() == other.tree.to_json()
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return _is_same_tensor(one, other)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):  # by bytes: NaN is the same as NaN
        return (one.shape, one.dtype) == (other.shape, other.dtype) and one.tobytes() == other.tobytes()
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    if is_plain(one) or (dataclasses.is_dataclass(one) and hasattr(one, "__dict__")):
        return one is other or is_same(vars(one), vars(other))
    return bool(one == other)


def is_plain(value: object) -> bool:
    """Whether a value is an object whose class defines no words for it.

    >>> is_plain(object()), is_plain(type("Empty", (), {})())
    (False, True)
    """
    return type(value).__repr__ is object.__repr__ and hasattr(value, "__dict__")


def _is_same_tensor(one: Tensor, other: Tensor) -> bool:
    if (one.shape, one.dtype, one.layout) != (other.shape, other.dtype, other.layout):
        return False
    if one.is_meta or other.is_meta:
        return True
    two = other.to(one.device)
    return bool(((one == two) | ((one != one) & (two != two))).all())  # NaN is the same as NaN

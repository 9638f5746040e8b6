"""State dicts as JSON and tensors, and back, in place of pickles, which can run code."""

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from hmoevae.errors import ArgumentTypeError, mismatch


@runtime_checkable
class Stateful(Protocol):
    """An object whose state can be saved and restored: torch's modules, optimisers, schedules, and some callbacks."""

    def state_dict(self) -> Mapping[str, Any]:
        """The state: nested dicts, lists and tuples of numbers, strings, tensors, arrays and `None`."""
        ...

    def load_state_dict(self, state_dict: Any) -> object:
        """Restore the state that `state_dict` returned."""
        ...


def pack(state: object, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Split a nested state into JSON and tensors, which the JSON names by their path, such as `optimizer.state`.

    Values that JSON lacks become objects with one entry: `{"tensor": path}`, `{"array": ...}`, `{"tuple": [...]}`,
    `{"float": "nan"}`, and `{"dict": [[key, value], ...]}`, because keys may be numbers.

    Args:
        state: Nested dicts, lists and tuples of numbers, strings, tensors, arrays and `None`.
        name: The path of the whole state.

    Raises:
        ArgumentTypeError: The state holds something else; the message has its path.

    >>> pack({"step": 3, 0: (torch.ones(2), math.inf)}, "adam")[0]
    {'dict': [['step', 3], [0, {'tuple': [{'tensor': 'adam.0.0'}, {'float': 'inf'}]}]]}
    """
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()

    def packed(value: object, place: str) -> Any:
        match value:
            case None | bool() | int() | str():
                return value
            case np.generic() if value.dtype.kind in "biuf" and value.itemsize <= 8:
                return packed(value.item(), place)
            case float():
                return float(value) if math.isfinite(value) else {"float": repr(float(value))}
            case Tensor() if value.layout is torch.strided and value.dtype != torch.complex128:  # as safetensors
                while place in tensors:  # as of the keys 1 and "1"
                    place += "'"
                tensor = value.detach().cpu().contiguous()
                storage = tensor.untyped_storage().data_ptr()
                # A safetensors file refuses tensors that share memory.
                tensors[place] = tensor.clone() if storage in storages else tensor
                storages.add(storage)
                return {"tensor": place}
            case np.ndarray() if value.dtype.kind in "biuf" and value.dtype.isnative:
                return {"array": packed(torch.from_numpy(value.copy()), place)}
            case list():
                return [packed(part, f"{place}.{i}") for i, part in enumerate(value)]
            case tuple():
                return {"tuple": [packed(part, f"{place}.{i}") for i, part in enumerate(value)]}
            case Mapping():
                return {"dict": [[packed(k, place), packed(v, f"{place}.{k}")] for k, v in value.items()]}
            case _:
                expected = "numbers, strings, tensors and arrays in dicts, lists and tuples, for a checkpoint"
                raise ArgumentTypeError(mismatch(place, expected, type(value).__name__))

    return packed(state, name), tensors


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Join JSON and tensors to the state that `pack` split.

    Raises:
        KeyError, TypeError, ValueError: `pack` did not make these.

    >>> unpack(*pack({"step": 3, 0: (None, -math.inf)}, "adam"))
    {'step': 3, 0: (None, -inf)}
    """
    if isinstance(packed, list):
        return [unpack(part, tensors) for part in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    match kind, content:
        case "tensor", str():
            return tensors[content]
        case "float", str():
            return float(content)
        case "array", dict():
            return unpack(content, tensors).numpy()
        case "tuple", list():
            return tuple(unpack(part, tensors) for part in content)
        case "dict", list():
            pairs = [unpack(pair, tensors) for pair in content]
            return dict(pairs)
    raise ValueError(f"a packed value of the kind {kind!r}")

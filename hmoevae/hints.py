"""Hints for error messages: describe data that cannot be samples, and say how to make samples from them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

ENCODE = "leave such columns out, or encode them as numbers"


def what_came(data: object) -> str:
    """Describe an object, and say how to get samples from it where that is known.

    >>> what_came({"image": 1, "label": 2})
    "a dict with the keys 'image', 'label', of which one may hold the samples"
    """
    name = type(data).__name__
    kind = f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"
    if data is None or isinstance(data, bool | int | float | complex):
        return repr(data)
    if isinstance(data, str | os.PathLike):
        return f"{data!r} (np.load(file, mmap_mode='r') opens a .npy file)"
    if isinstance(data, Mapping):
        keys = ", ".join(map(repr, list(data)[:6])) + (", ..." if len(data) > 6 else "")
        return f"{kind} with the keys {keys}, of which one may hold the samples"
    if isinstance(getattr(data, "x", None), Tensor):  # LabelledImages
        return f"{kind} (pass its .x)"
    if hasattr(data, "to_numpy"):
        is_frame = hasattr(data, "columns")
        return (
            f"{kind} (pass its .to_numpy(){', or make the model with the hm.Table of such frames' if is_frame else ''})"
        )
    if hasattr(data, "layers") and hasattr(data, "obs"):  # anndata's
        return f"{kind} (pass its .X, or counts in a layer, such as its .layers['counts'])"
    if hasattr(data, "toarray"):  # scipy's sparse matrices
        return f"{kind} (pass its .toarray())"
    if hasattr(data, "getbands"):  # PIL's
        return f"{kind} (a transform such as torchvision's ToTensor() makes a tensor of it)"
    if isinstance(data, list | tuple):
        return kind + _of_a_sequence(data)
    if hasattr(data, "__array__"):
        return f"{kind} (np.asarray(...) makes an array)"
    if isinstance(data, Iterator):
        return f"{kind} (wrap it in a torch.utils.data.IterableDataset)"
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return f"{kind} (wrap it in a torch.utils.data.Dataset)"
    return kind


def _of_a_sequence(data: Sequence[Any]) -> str:
    shapes = {tuple(part.shape) if isinstance(part, Tensor | np.ndarray) else None for part in data}
    if len(shapes) == 1 and None not in shapes:
        return f", of which {'torch' if isinstance(data[0], Tensor) else 'np'}.stack(...) makes one array"
    if None not in shapes and shapes:
        return f" of {len(data)} arrays of different shapes, of which the first may be the samples"
    if data and all(isinstance(part, int | float | list | tuple) for part in data):
        return " (np.asarray(..., dtype=np.float32) makes an array)"
    return f" of {type(data[0]).__name__}" if data else " without entries"


def layout(x: Tensor) -> str:
    """Describe a tensor that is not dense."""
    if x.is_nested:
        return "a nested one, of samples of different shapes (torch.nested.to_padded_tensor makes them equal)"
    if x.is_quantized:
        return "a quantised one (.dequantize() makes floating point values)"
    return f"a sparse one ({x.layout}, {tuple(x.shape)}) (.to_dense() makes a dense one)"


def value_range(x: Tensor | np.ndarray) -> str:
    """The range of the values in words; empty for numbers without an order."""
    is_ordered = not x.is_complex() if isinstance(x, Tensor) else x.dtype.kind in "biu"
    if not is_ordered or 0 in x.shape or (isinstance(x, Tensor) and x.is_meta):
        return ""
    return f" from {int(x.min())} to {int(x.max())}"


def remedy(x: Tensor | np.ndarray, name: str) -> str:
    """How to turn the values into floating point values."""
    cast = f"{name}.float()" if isinstance(x, Tensor) else f"{name}.astype(np.float32)"
    kind = str(x.dtype).removeprefix("torch.")
    is_integer = kind.startswith(("int", "uint"))
    if kind == "bool" or (is_integer and value_range(x) in (" from 0 to 1", " from 0 to 0", " from 1 to 1")):
        return f" ({cast} turns them into 0.0 and 1.0)"
    if kind == "uint8":
        return f" (for pixels: hm.datasets.Scaled({name}, 255); otherwise: {cast})"
    if is_integer:
        counts = "for counts: the same, with a likelihood of counts"
        categories = "for categories: a column of 0 and 1 for each"
        return f" (for quantities: {cast}; {counts}; {categories})"
    if kind.startswith("complex"):
        return " (make columns of the real and the imaginary parts)"
    if isinstance(x, np.ndarray) and x.dtype.names:
        return " (numpy.lib.recfunctions.structured_to_unstructured makes columns of the fields)"
    if isinstance(x, np.ndarray) and kind == "object":
        odd = next((value for value in x.flat if not isinstance(value, int | float | np.number)), None)
        if odd is None:
            return f" ({cast} turns them into numbers)"
        return f" (there is a {type(odd).__name__} in it, {str(odd)[:20]!r}: {ENCODE})"
    return f" ({ENCODE})"


def reshaping(x: Tensor | np.ndarray, name: str, shape: tuple[int, ...]) -> str:
    """How to reshape samples to `shape`, where they seem to be the same samples in another shape."""
    if x.shape == shape:
        return f" (a single sample? {name}[None] is a batch of one)"
    if len(shape) == 3 and x.ndim == 4 and tuple(x.shape[1:]) == (*shape[1:], shape[0]) and shape[0] > 1:
        moved = "permute(0, 3, 1, 2)" if isinstance(x, Tensor) else "transpose(0, 3, 1, 2)"
        return f" (channels first: {name}.{moved})"
    if len(shape) == 3 and x.ndim == 4 and tuple(x.shape[1:]) == (shape[2], *shape[:2]) and shape[2] > 1:
        return f" (the model was made for channels last: input_shape={tuple(x.shape[1:])} is what a Conv gate expects)"
    own, asked = ([n for n in sizes if n != 1] for sizes in (x.shape[1:], shape))
    same = own == asked or min(len(own), len(asked)) == 1  # otherwise reshaping would mix up rows and columns
    if x.ndim > 0 and same and np.prod(own, dtype=int) == np.prod(asked, dtype=int):
        return f" ({name}.reshape(-1, {', '.join(map(str, shape))}) has that shape)"
    return ""

"""The precision of products and of sums."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """The precision of products on the device of `x`: autocast's where it is enabled, else that of `x`.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     compute_dtype(torch.ones(2))
    torch.bfloat16
    """
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def sum_dtype(x: Tensor) -> torch.dtype:
    """The precision of log-probabilities and their sums: that of `x`, at least float32.

    A model in half precision computes its products in it, but the log-density of an image exceeds its range.

    >>> sum_dtype(torch.ones(2, dtype=torch.bfloat16)), sum_dtype(torch.ones(2, dtype=torch.float64))
    (torch.float32, torch.float64)
    """
    return torch.promote_types(x.dtype, torch.float32)


def exact_dtype(x: Tensor) -> torch.dtype:
    """The highest precision of the device of `x`, for factors of small matrices: their products square errors.

    >>> exact_dtype(torch.ones(2))
    torch.float64
    """
    return torch.float32 if x.device.type == "mps" else torch.float64


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """A context in which products on the device of `x` are not rounded by autocast.

    >>> with torch.autocast("cpu", torch.bfloat16), full_precision(torch.ones(2)):
    ...     compute_dtype(torch.ones(2))
    torch.float32
    """
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()

"""The matrix products of a grouped layer on a CPU.

PyTorch computes fp32 products with its BLAS library, which on x86 is Intel's MKL. On AMD processors with AVX-512, MKL
runs at less than half the speed of oneDNN, the library that PyTorch uses for bfloat16. There we send large products to
oneDNN. PyTorch has one switch for that: the setting that allows fp32 products to be computed in bfloat16. oneDNN uses
bfloat16 only on processors with matrix units (AMX). We set it on other processors, after a trial that loses no bit.
"""

import functools
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

LARGE = 1 << 22
"""Number of multiplications from which a product is worth the change of library."""

ONEDNN_MATMUL: Any = getattr(torch.backends.mkldnn, "matmul", None)
"""The object with PyTorch's setting; `None` before version 2.9."""


def matmul(
    left: Float[Tensor, "group row k"],
    right: Float[Tensor, "k column"] | Float[Tensor, "group k column"],
    out: Float[Tensor, "group row column"],
) -> None:
    """out[g] = left[g] right[g]; where all groups share `right`, one product computes all of them.

    For fp32 on an AMD processor, this sets `torch.backends.mkldnn.matmul.fp32_precision` while it runs, unless the user
    has set it or a setting above it.
    """
    large = left.dtype == torch.float32 and left.numel() * right.shape[-1] >= LARGE
    if large and prefers_onednn() and ONEDNN_MATMUL.fp32_precision == "none":
        by_onednn(left, right, out)
    elif left.dtype == torch.float32 and torch.backends.mkl.is_available():
        _by_mkl(left, right, out)
    else:
        _matmul(left, right, out)


def by_onednn(
    left: Float[Tensor, "group row k"],
    right: Float[Tensor, "k column"] | Float[Tensor, "group k column"],
    out: Float[Tensor, "group row column"],
) -> None:
    """`matmul` by oneDNN, which computes in bfloat16 on processors with matrix units."""
    with _onednn():
        _matmul(left, right, out)


def _matmul(left: Tensor, right: Tensor, out: Tensor) -> None:
    if right.ndim == 2:  # not bmm with a batch of one, for which PyTorch copies transposed operands
        torch.mm(left.flatten(0, 1), right, out=out.flatten(0, 1))
    else:
        torch.bmm(left, right, out=out)


def _by_mkl(left: Tensor, right: Tensor, out: Tensor) -> None:
    """`_matmul` by MKL.

    Where a shared factor is no larger than a group's own factor, MKL is faster if the shared factor is expanded to all
    groups: one product of 100 groups takes 1.4 times as long as a batch of 100.
    """
    if right.ndim == 2 and len(left) > 1 and right.numel() <= left[0].numel():
        right = right.expand(len(left), -1, -1)
    _matmul(left, right, out)


@contextmanager
def faster_library() -> Iterator[None]:
    """Send all fp32 products to oneDNN where `matmul` would send the large ones, for code that does not call it."""
    if prefers_onednn() and ONEDNN_MATMUL.fp32_precision == "none":
        with _onednn():
            yield
    else:
        yield


@contextmanager
def _onednn() -> Iterator[None]:
    before = ONEDNN_MATMUL.fp32_precision
    ONEDNN_MATMUL.fp32_precision = "bf16"
    try:
        yield
    finally:
        ONEDNN_MATMUL.fp32_precision = before


@functools.cache
def prefers_onednn() -> bool:
    """Whether this processor computes fp32 products faster by oneDNN than by PyTorch's BLAS, and as exactly."""
    if ONEDNN_MATMUL is None or not torch.backends.mkldnn.is_available():
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    cpu_info = Path("/proc/cpuinfo")
    vendor = cpu_info.read_text() if cpu_info.exists() else platform.processor()
    return "AuthenticAMD" in vendor and onednn_is_exact()


def onednn_is_exact() -> bool:
    """Whether oneDNN keeps all bits of fp32 factors here, although the setting allows rounding to bfloat16."""
    fine = torch.eye(256).mul_(1 + 2**-20).unsqueeze(0)  # tf32 and bfloat16 would make this 1
    for ones in (torch.ones(256, 256), torch.ones(1, 256, 256)):
        out = torch.empty_like(fine)
        by_onednn(fine, ones, out)
        if not (out == fine.amax()).all():
            return False
    return True

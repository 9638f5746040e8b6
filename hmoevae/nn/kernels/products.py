"""The matrix products of a grouped layer on a CPU.

PyTorch gives fp32 products to its BLAS, which for x86 is Intel's MKL. On AMD processors with AVX-512 that runs at less
than half the speed of oneDNN, the library that PyTorch already uses for products in bfloat16; there the large ones go
to oneDNN. PyTorch's one way to it is the setting that allows fp32 products to be computed in bfloat16, which oneDNN
makes use of on processors with matrix units (AMX) only. We use it on others, where a trial shows that no bit is lost.
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
"""Multiplications from which a product is worth the change of library."""

ONEDNN_MATMUL: Any = getattr(torch.backends.mkldnn, "matmul", None)
"""Where PyTorch keeps the setting, from version 2.9 on."""


def matmul(
    left: Float[Tensor, "group row k"],
    right: Float[Tensor, "k column"] | Float[Tensor, "group k column"],
    out: Float[Tensor, "group row column"],
) -> None:
    """out[g] = left[g] right[g], or left[g] right where all groups share one: then one product for the lot.

    On an AMD processor in fp32 this sets `torch.backends.mkldnn.matmul.fp32_precision` for as long as it runs, unless
    it, or a setting above it, has been set already.
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
    """The same by oneDNN, which may compute in bfloat16 where the processor can do so."""
    with _onednn():
        _matmul(left, right, out)


def _matmul(left: Tensor, right: Tensor, out: Tensor) -> None:
    if right.ndim == 2:  # not as a batch of one, of which PyTorch copies operands that lie transposed
        torch.mm(left.flatten(0, 1), right, out=out.flatten(0, 1))
    else:
        torch.bmm(left, right, out=out)


def _by_mkl(left: Tensor, right: Tensor, out: Tensor) -> None:
    """`_matmul` where PyTorch gives the product to MKL.

    MKL does best with a factor that all groups share if it is given for each of them, as long as it is no larger than
    a group's own: as one product, that of 100 groups takes 1.4 times as long.
    """
    if right.ndim == 2 and len(left) > 1 and right.numel() <= left[0].numel():
        right = right.expand(len(left), -1, -1)
    _matmul(left, right, out)


@contextmanager
def faster_library() -> Iterator[None]:
    """Inside, all fp32 products go to oneDNN where `matmul` gives it the large ones, for code that cannot choose."""
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
    """Whether fp32 products are faster by oneDNN than by PyTorch's BLAS and as exact: a matter of the processor."""
    if ONEDNN_MATMUL is None or not torch.backends.mkldnn.is_available():
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    cpu_info = Path("/proc/cpuinfo")
    vendor = cpu_info.read_text() if cpu_info.exists() else platform.processor()
    return "AuthenticAMD" in vendor and onednn_is_exact()


def onednn_is_exact() -> bool:
    """Whether oneDNN keeps all bits of fp32 factors here although it may round them to bfloat16."""
    fine = torch.eye(256).mul_(1 + 2**-20).unsqueeze(0)  # tf32 and bfloat16 would make this 1
    for ones in (torch.ones(256, 256), torch.ones(1, 256, 256)):
        out = torch.empty_like(fine)
        by_onednn(fine, ones, out)
        if not (out == fine.amax()).all():
            return False
    return True

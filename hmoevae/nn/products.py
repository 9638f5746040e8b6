"""The matrix products of a grouped layer on a CPU: forward, weight gradient, input gradient.

Axes: `group` counts equal layers, `inp` and `out` are features, `batch` is last. PyTorch gives fp32 products to its
BLAS, which for x86 is Intel's MKL. On AMD processors with AVX-512 that runs at about half the speed of oneDNN, the
library that PyTorch already uses for products in bfloat16; there the large ones go to oneDNN.
"""

import functools
import platform
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

LARGE = 1 << 21
"""Multiplications from which a product is worth the call of its own that oneDNN takes for each member of a group."""
PIECE = 1 << 20
"""Entries of a result that oneDNN makes at a time: it is copied from there, which is cheap while it is in the cache."""


@functools.cache
def prefers_onednn() -> bool:
    """Whether fp32 products are faster by oneDNN than by PyTorch's BLAS: a matter of the processor alone."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    cpu_info = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (cpu_info.read_text() if cpu_info.exists() else platform.processor())


def product(
    weight: Float[Tensor, "group out inp"],
    x: Float[Tensor, "inp batch"] | Float[Tensor, "group inp batch"],
    out: Float[Tensor, "group out batch"],
) -> None:
    """out[g] = weight[g] x[g], or weight[g] x where all groups share one input."""
    times_transposed(weight, x.mT, out)


def weight_gradient(
    dy: Float[Tensor, "group out batch"],
    x: Float[Tensor, "inp batch"] | Float[Tensor, "group inp batch"],
    out: Float[Tensor, "group out inp"],
) -> None:
    """out[g] = dy[g] x[g]^T, or dy[g] x^T where all groups share one input."""
    if dy.is_contiguous():
        times_transposed(dy, x, out)
    else:  # oneDNN would want a transposed copy, which costs what it gains
        torch.bmm(dy, x.mT, out=out)


def times_transposed(
    left: Float[Tensor, "group row k"],
    right: Float[Tensor, "column k"] | Float[Tensor, "group column k"],
    out: Float[Tensor, "group row column"],
) -> None:
    """out[g] = left[g] right[g]^T."""
    if right.ndim == 2:  # one product for all groups
        left, right, out = left.flatten(0, 1).unsqueeze(0), right.unsqueeze(0), out.flatten(0, 1).unsqueeze(0)
    _, n_rows, k = left.shape
    n_columns = right.shape[1]
    if left.dtype == torch.float32 and n_rows * k * n_columns >= LARGE and prefers_onednn():
        n = max(1, PIECE // n_columns)
        for one_left, one_right, one_out in zip(left, right, out, strict=True):
            for rows, target in zip(one_left.split(n), one_out.split(n), strict=True):
                target.copy_(by_onednn(rows, one_right))
    else:
        torch.bmm(left, right.mT, out=out)


def by_onednn(left: Float[Tensor, "row k"], right: Float[Tensor, "column k"]) -> Float[Tensor, "row column"]:
    """The product left right^T by oneDNN, which PyTorch offers for float32 under this name only."""
    return torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")

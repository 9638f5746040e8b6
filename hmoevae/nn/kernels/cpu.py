"""The kernels for the CPU, with gradients written by hand: they cast in chunks and use the memory of `StepMemory`.

Axes: `group` counts equal networks, `inp` and `out` are features, `batch` is last.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from hmoevae.nn.kernels import plain
from hmoevae.nn.kernels.memory import GLIBC_LARGEST, Blocks, blocks_of
from hmoevae.nn.kernels.precision import compute_dtype
from hmoevae.nn.kernels.products import matmul
from hmoevae.spec import Activation

CHUNK = 1 << 20
"""Number of entries in a chunk: 4 MiB in fp32, which stay in a cache between operations."""
GRADIENTS: dict[Activation, Callable[..., Tensor]] = {
    "relu": lambda dy, y, *, grad_input: torch.ops.aten.threshold_backward(dy, y, 0, grad_input=grad_input),
    "sigmoid": torch.ops.aten.sigmoid_backward,
    "tanh": torch.ops.aten.tanh_backward,
}
"""Backward of in-place activations: (dy, y) -> dx, written to `grad_input`."""


def affine(
    weight: Float[Tensor, "group _ _"],
    bias: Float[Tensor, "group out"],
    x: Float[Tensor, "inp batch"] | Float[Tensor, "group inp batch"],
    *,
    input_major: bool = False,
) -> Float[Tensor, "group out batch"]:
    """y[g] = weight[g] x[g] + bias[g]. See `hmoevae.nn.kernels.affine`.

    >>> affine(torch.ones(2, 3, 4), torch.ones(2, 3), torch.ones(4, 1)).flatten()
    tensor([5., 5., 5., 5., 5., 5.])
    """
    return _Affine.apply(weight, bias, x, input_major, blocks_of(weight))


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation of every entry of `x`, which may be overwritten. See `hmoevae.nn.kernels.activate`.

    >>> activate(torch.tensor([-1.0, 2.0]), "relu")
    tensor([0., 2.])
    """
    if activation in GRADIENTS and x.nbytes > GLIBC_LARGEST:  # glibc would return the gradient's memory to the system
        return _Activation.apply(x, activation, blocks_of(x))
    return plain.activate(x, activation)


def chunks(size: int, groups: int) -> Iterator[slice]:
    """Slices of consecutive groups with at most `CHUNK` entries each, at least one group; a group has `size` entries.

    >>> list(chunks(CHUNK // 2, groups=5))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, CHUNK // max(size, 1))
    return (slice(start, min(start + step, groups)) for start in range(0, groups, step))


def matmul_by_chunks(
    left: Float[Tensor, "group row k"],
    right: Float[Tensor, "k column"] | Float[Tensor, "group k column"],
    out: Float[Tensor, "group row column"],
) -> None:
    """out[g] = left[g] right[g] in the precision of `right`; other operands are cast to it one chunk at a time."""
    dtype = right.dtype
    size = max((tensor[0].numel() for tensor in (left, out) if tensor.dtype != dtype), default=0)
    if size == 0:
        matmul(left, right, out)
        return
    for rows in chunks(size, len(left)):
        result = out[rows]
        product = result if result.dtype == dtype else torch.empty_like(result, dtype=dtype)
        matmul(left[rows].to(dtype), right if right.ndim == 2 else right[rows], product)
        if product is not result:
            result.copy_(product)


class _Affine(torch.autograd.Function):
    """The affine map in the precision of autocast, casting weights and their gradients chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, x: Tensor, input_major: bool, blocks: Blocks) -> Tensor:
        dtype = compute_dtype(x)
        x = x.to(dtype)
        y = blocks.empty("output", (*bias.shape, x.shape[-1]), dtype)
        matmul_by_chunks(weight.mT if input_major else weight, x, y)
        ctx.save_for_backward(weight, x)
        ctx.input_major, ctx.blocks = input_major, blocks
        return y.add_(bias.unsqueeze(-1).to(dtype))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # its decorator hides the names
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (dy,) = grad_outputs
        weight, x = ctx.saved_tensors
        weight_grad, bias_grad, x_grad = None, None, None
        if ctx.needs_input_grad[0]:
            weight_grad = ctx.blocks.gradient_of(weight)
            if ctx.input_major:
                own = x.expand(len(weight), -1, -1) if x.ndim == 2 else x
                matmul_by_chunks(own, dy.mT, weight_grad)
            else:
                matmul_by_chunks(dy, x.mT, weight_grad)
        if ctx.needs_input_grad[1]:
            bias_grad = dy.new_empty(dy.shape[:2], dtype=weight.dtype)
            for rows in chunks(dy[0].numel(), len(dy)):  # torch.sum copies its input to the higher precision
                torch.sum(dy[rows], 2, dtype=bias_grad.dtype, out=bias_grad[rows])
        if ctx.needs_input_grad[2]:
            x_grad = _input_gradient(weight.mT if ctx.input_major else weight, dy, x, ctx.blocks)
        return weight_grad, bias_grad, x_grad, None, None


def _input_gradient(matrices: Float[Tensor, "group out inp"], dy: Tensor, x: Tensor, blocks: Blocks) -> Tensor:
    if x.ndim == 3:
        x_grad = blocks.empty("input gradient", tuple(x.shape), x.dtype)
        matmul_by_chunks(matrices.mT, dy, x_grad)
        return x_grad
    x_grad = dy.new_empty(1, x.shape[1], x.shape[0])  # batch-first, like the memory of a shared input
    matmul(dy.flatten(0, 1).t().unsqueeze(0), matrices.flatten(0, 1).to(dy.dtype), x_grad)
    return x_grad.squeeze(0).t()


class _Activation(torch.autograd.Function):
    """An activation of `GRADIENTS`; its gradient is written to the memory of the step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Activation, blocks: Blocks) -> Tensor:
        y = plain.activate(x, activation)
        ctx.mark_dirty(y)
        ctx.save_for_backward(y)
        ctx.activation, ctx.blocks = activation, blocks
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # its decorator hides the names
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (dy,) = grad_outputs
        (y,) = ctx.saved_tensors
        grad = ctx.blocks.empty("activation gradient", tuple(y.shape), y.dtype)
        return GRADIENTS[ctx.activation](dy, y, grad_input=grad), None, None

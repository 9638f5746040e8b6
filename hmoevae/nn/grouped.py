"""Many equal dense networks run as one: linear layers and MLPs with a leading group axis.

Axes: `group` counts the networks, `inp` and `out` are features, `batch` is last. Features-first keeps both contractions
plain GEMMs with no copy of the weights; batch-first (`"b i, g o i -> b g o"`) would transpose them at every step.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hmoevae.nn.memory import GLIBC_LARGEST, StepMemory
from hmoevae.nn.products import matmul
from hmoevae.spec import MLP, Activation

BlockSource = Callable[[str, tuple[int, ...], torch.dtype], Tensor]
"""Gives an uninitialised tensor for a role in a layer, a shape and a dtype."""
CHUNK = 1 << 20
"""Entries worked on at a time where that saves memory traffic: 4 MiB in fp32, which stay in a cache."""
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    # In place: neither the gradient of these nor that of the layer before them needs the input.
    "relu": F.relu_,
    "sigmoid": torch.sigmoid_,
    "tanh": torch.tanh_,
    "elu": F.elu_,
    "gelu": F.gelu,
    "silu": F.silu,
}
GRADIENTS: dict[Activation, Callable[..., Tensor]] = {
    "relu": lambda dy, y, *, grad_input: torch.ops.aten.threshold_backward(dy, y, 0, grad_input=grad_input),
    "sigmoid": torch.ops.aten.sigmoid_backward,
    "tanh": torch.ops.aten.tanh_backward,
}
"""Of activations in place, from the gradient of the result and the result, into `grad_input`."""


class GroupedLinear(nn.Module):
    """`groups` affine maps side by side: y[g] = weight[g] x[g] + bias[g].

    Weights and biases start as those of `torch.nn.Linear`, U(-1/sqrt(inp), 1/sqrt(inp)).

    Args:
        groups: Number of maps.
        in_features: Size of each map's input.
        out_features: Size of each map's output.
        input_major: Whether `weight` lies as (group, inp, out): the decoders' last layers run faster so.

    >>> layer = GroupedLinear(3, 5, 2)
    >>> layer(torch.rand(5, 7)).shape, layer(torch.rand(3, 5, 7)).shape
    (torch.Size([3, 2, 7]), torch.Size([3, 2, 7]))
    """

    weight: Float[nn.Parameter, "group out inp"] | Float[nn.Parameter, "group inp out"]
    bias: Float[nn.Parameter, "group out"]
    memory: StepMemory | None = None

    def __init__(self, groups: int, in_features: int, out_features: int, *, input_major: bool = False) -> None:
        super().__init__()
        self.input_major = input_major
        # Of that shape, not a transposed view: the fused Adam mixes up a parameter and moments that lie differently.
        sizes = (in_features, out_features) if input_major else (out_features, in_features)
        self.weight = nn.Parameter(torch.empty(groups, *sizes))
        self.bias = nn.Parameter(torch.empty(groups, out_features))
        self.reset_parameters()

    @property
    def matrices(self) -> Float[Tensor, "group out inp"]:
        """The linear part of each map, however it lies in memory."""
        return self.weight.mT if self.input_major else self.weight

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw fresh weights from torch's global generator, the same however they lie."""
        # torch.nn.init takes the fan-in of a 3-D weight for that of a convolution, so the bound is set here.
        bound = 1 / math.sqrt(self.matrices.shape[-1])
        drawn = torch.empty_like(self.matrices, memory_format=torch.contiguous_format)
        self.matrices.copy_(drawn.uniform_(-bound, bound))
        self.bias.uniform_(-bound, bound)

    def forward(
        self, x: Float[Tensor, "inp batch"] | Float[Tensor, "group inp batch"]
    ) -> Float[Tensor, "group out batch"]:
        """Map an input that all groups share (2-D: one GEMM for the lot) or one input a group (3-D: a batched GEMM)."""
        if is_written_out(x):
            return affine(self.matrices, self.bias, x, self.block_source())
        if self.input_major and x.ndim == 3:  # so its gradient lies as the weight does
            product = torch.bmm(x.mT, self.weight).mT
        else:
            product = torch.einsum("goi,ib->gob" if x.ndim == 2 else "goi,gib->gob", self.matrices, x)
        return product + self.bias.unsqueeze(-1).to(product.dtype)  # lest autocast's bfloat16 grow back to float32

    def block_source(self) -> BlockSource:
        """Where this pass gets the memory for the tensors of a role, such as the gradient of its weights."""
        return partial(self._block, self.memory if torch.is_grad_enabled() else None)

    def _block(self, memory: StepMemory | None, role: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        # A gradient of an earlier step may lie in the block that this one is to be added to.
        if memory is None or (role == "weight gradient" and self.weight.grad is not None):
            return torch.empty(shape, dtype=dtype, device="cpu")
        return memory.empty((self, role), shape, dtype)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which leave the memory of the steps behind."""
        return {name: value for name, value in vars(self).items() if name != "memory"}

    def extra_repr(self) -> str:
        """The sizes, for `repr`."""
        groups, out_features, in_features = self.matrices.shape
        return f"groups={groups}, in_features={in_features}, out_features={out_features}"


def is_written_out(x: Tensor) -> bool:
    """Whether a layer runs by the functions with gradients written out for the CPU, or by PyTorch's own.

    `torch.compile` and `torch.func` do better with PyTorch's own, which they can look into.
    """
    return (
        x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()
    )


def affine(
    weight: Float[Tensor, "group out inp"],
    bias: Float[Tensor, "group out"],
    x: Float[Tensor, "inp batch"] | Float[Tensor, "group inp batch"],
    block: BlockSource,
) -> Float[Tensor, "group out batch"]:
    """weight[g] x[g] + bias[g] by the function with its gradient written out, where `is_written_out`."""
    return _Affine.apply(weight, bias, x, block)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The precision of products on the device of `x`: autocast's, or that of `x`."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def sum_dtype(x: Tensor) -> torch.dtype:
    """The precision of logarithms of probabilities and of sums of them: that of `x`, or single where that is more.

    A model in half precision computes its products in that; a log-density of an image would be beyond its range.
    """
    return torch.promote_types(x.dtype, torch.float32)


def in_chunks(size: int, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The tensors by runs of groups, which are as long as `CHUNK` entries allow, there being `size` in a group."""
    groups = tensors[0].shape[0]
    step = max(1, CHUNK // size)
    return [tensors] if step >= groups else zip(*(tensor.split(step) for tensor in tensors), strict=True)


def matmul_by_chunks(
    left: Float[Tensor, "group row k"],
    right: Float[Tensor, "k column"] | Float[Tensor, "group k column"],
    out: Float[Tensor, "group row column"],
) -> None:
    """out[g] = left[g] right[g] in the precision of `right`; operands of another are cast a few groups at a time."""
    dtype = right.dtype
    size = max((tensor[0].numel() for tensor in (left, out) if tensor.dtype != dtype), default=0)
    if size == 0:
        matmul(left, right, out)
        return
    own = (right,) if right.ndim == 3 else ()
    for a, result, *b in in_chunks(size, left, out, *own):
        product = result if result.dtype == dtype else torch.empty_like(result, dtype=dtype)
        matmul(a.to(dtype), b[0] if b else right, product)
        if product is not result:
            result.copy_(product)


class _Affine(torch.autograd.Function):
    """weight[g] x[g] + bias[g] in the precision of autocast, casting weights and their gradients chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, x: Tensor, block: BlockSource) -> Tensor:
        dtype = compute_dtype(x)
        x = x.to(dtype)
        groups, n_out, _ = weight.shape
        y = block("output", (groups, n_out, x.shape[-1]), dtype)
        matmul_by_chunks(weight, x, y)
        ctx.save_for_backward(weight, x)
        ctx.block = block
        return y.add_(bias.unsqueeze(-1).to(dtype))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # its decorator hides the names
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (dy,) = grad_outputs
        weight, x = ctx.saved_tensors
        weight_grad, x_grad = ctx.block("weight gradient", weight.shape, weight.dtype), None
        matmul_by_chunks(dy, x.mT, weight_grad)
        if ctx.needs_input_grad[2]:
            if x.ndim == 2:  # batch-first, as a shared input lies
                x_grad = dy.new_empty(1, x.shape[1], x.shape[0])
                matmul(dy.flatten(0, 1).t().unsqueeze(0), weight.flatten(0, 1).to(dy.dtype), x_grad)
                x_grad = x_grad.squeeze(0).t()
            else:
                x_grad = ctx.block("input gradient", x.shape, x.dtype)
                matmul_by_chunks(weight.mT, dy, x_grad)
        bias_grad = dy.new_empty(dy.shape[:2], dtype=weight_grad.dtype)
        for part, result in in_chunks(dy[0].numel(), dy, bias_grad):  # a sum in higher precision makes a copy in it
            torch.sum(part, 2, dtype=bias_grad.dtype, out=result)
        return weight_grad, bias_grad, x_grad, None


class _Activation(torch.autograd.Function):
    """One of `GRADIENTS`, for tensors so large that the gradient too needs memory that stays."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Activation, block: BlockSource) -> Tensor:
        y = ACTIVATIONS[activation](x)
        ctx.mark_dirty(y)
        ctx.save_for_backward(y)
        ctx.activation, ctx.block = activation, block
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # its decorator hides the names
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (dy,) = grad_outputs
        (y,) = ctx.saved_tensors
        grad = ctx.block("activation gradient", y.shape, y.dtype)
        return GRADIENTS[ctx.activation](dy, y, grad_input=grad), None, None


class GroupedMLP(nn.Module):
    """`groups` multi-layer perceptrons side by side, described by one `MLP` spec.

    Args:
        groups: Number of networks.
        in_features: Size of each network's input.
        out_features: Size of each network's output, which gets no activation.
        spec: Hidden widths and activation.
        input_major: How the weights of the last layer lie, as in `GroupedLinear`.

    >>> GroupedMLP(3, 5, 2, MLP((8,)))(torch.rand(5, 7)).shape
    torch.Size([3, 2, 7])
    """

    layers: Sequence[GroupedLinear]

    def __init__(
        self, groups: int, in_features: int, out_features: int, spec: MLP, *, input_major: bool = False
    ) -> None:
        super().__init__()
        *inner, last = pairwise((in_features, *spec.hidden, out_features))
        layers = [GroupedLinear(groups, *sizes) for sizes in inner]
        layers.append(GroupedLinear(groups, *last, input_major=input_major))
        self.layers = nn.ModuleList(layers)  # type: ignore[assignment]  # a ModuleList cannot say what it holds
        self.activation: Activation = spec.activation

    def forward(
        self, x: Float[Tensor, "inp batch"] | Float[Tensor, "group inp batch"]
    ) -> Float[Tensor, "group out batch"]:
        """Run every network on the shared input (2-D) or on its own (3-D)."""
        return self.layers[-1](self.hidden(x))

    def hidden(
        self, x: Float[Tensor, "inp batch"] | Float[Tensor, "group inp batch"]
    ) -> Float[Tensor, "inp batch"] | Float[Tensor, "group hidden batch"]:
        """The input of the last layer."""
        for layer in self.layers[:-1]:
            x = layer(x)
            if self.activation in GRADIENTS and is_written_out(x) and x.nbytes > GLIBC_LARGEST:
                x = _Activation.apply(x, self.activation, layer.block_source())
            else:
                x = ACTIVATIONS[self.activation](x)
        return x

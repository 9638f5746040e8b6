"""The kernels in PyTorch's own operations: for GPUs, and for `torch.func` and `torch.compile`, which trace them.

Axes: `group` counts equal networks, `inp` and `out` are features, `batch` is last.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hmoevae.spec import Activation

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    # In place: neither their gradient nor that of the affine map before them needs their input.
    "relu": F.relu_,
    "sigmoid": torch.sigmoid_,
    "tanh": torch.tanh_,
    "elu": F.elu_,
    "gelu": F.gelu,
    "silu": F.silu,
}


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
    if input_major:  # computed transposed, so that the gradient has the weight's memory layout
        own = x.expand(len(weight), -1, -1) if x.ndim == 2 else x
        return torch.baddbmm(bias.unsqueeze(1), own.mT, weight).mT
    if x.ndim == 2:  # one product for all groups
        y = torch.addmm(bias.reshape(-1, 1), weight.flatten(0, 1), x)
        return y.view(*bias.shape, x.shape[1])
    return torch.baddbmm(bias.unsqueeze(2), weight, x)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation of every entry of `x`, which may be overwritten. See `hmoevae.nn.kernels.activate`.

    >>> activate(torch.tensor([-1.0, 2.0]), "relu")
    tensor([0., 2.])
    """
    return ACTIVATIONS[activation](x)

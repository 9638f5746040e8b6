"""Many equal dense networks run as one: linear layers and MLPs with a leading group axis.

Axes: `group` counts the networks, `inp` and `out` are features, `batch` is last. Features-first keeps both contractions
plain GEMMs with no copy of the weights; batch-first (`"b i, g o i -> b g o"`) would transpose them at every step.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hmoevae.spec import MLP, Activation

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "elu": F.elu,
}


class GroupedLinear(nn.Module):
    """`groups` affine maps side by side: y[g] = weight[g] x[g] + bias[g].

    Weights and biases start as those of `torch.nn.Linear`, U(-1/sqrt(inp), 1/sqrt(inp)).

    Args:
        groups: Number of maps.
        in_features: Size of each map's input.
        out_features: Size of each map's output.

    >>> layer = GroupedLinear(3, 5, 2)
    >>> layer(torch.rand(5, 7)).shape, layer(torch.rand(3, 5, 7)).shape
    (torch.Size([3, 2, 7]), torch.Size([3, 2, 7]))
    """

    weight: Float[nn.Parameter, "group out inp"]
    bias: Float[nn.Parameter, "group out"]

    def __init__(self, groups: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(groups, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights from torch's global generator."""
        # torch.nn.init takes the fan-in of a 3-D weight for that of a convolution, so the bound is set here.
        bound = 1 / math.sqrt(self.weight.shape[-1])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(
        self, x: Float[Tensor, "inp batch"] | Float[Tensor, "group inp batch"]
    ) -> Float[Tensor, "group out batch"]:
        """Map an input that all groups share (2-D: one GEMM for the lot) or one input a group (3-D: a batched GEMM)."""
        pattern = "goi,ib->gob" if x.ndim == 2 else "goi,gib->gob"
        product = torch.einsum(pattern, self.weight, x)
        return product + self.bias.unsqueeze(-1).to(product.dtype)  # lest autocast's bfloat16 grow back to float32

    def extra_repr(self) -> str:
        """The sizes, for `repr`."""
        groups, out_features, in_features = self.weight.shape
        return f"groups={groups}, in_features={in_features}, out_features={out_features}"


class GroupedMLP(nn.Module):
    """`groups` multi-layer perceptrons side by side, described by one `MLP` spec.

    Args:
        groups: Number of networks.
        in_features: Size of each network's input.
        out_features: Size of each network's output, which gets no activation.
        spec: Hidden widths and activation.
    """

    def __init__(self, groups: int, in_features: int, out_features: int, spec: MLP) -> None:
        super().__init__()
        widths = (in_features, *spec.hidden, out_features)
        self.layers = nn.ModuleList(GroupedLinear(groups, a, b) for a, b in pairwise(widths))
        self.activation = ACTIVATIONS[spec.activation]

    def forward(
        self, x: Float[Tensor, "inp batch"] | Float[Tensor, "group inp batch"]
    ) -> Float[Tensor, "group out batch"]:
        """Run every network on the shared input (2-D) or on its own (3-D)."""
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        return last(x)

"""Many equal dense networks run as one: linear layers and MLPs with a leading group axis.

Axes: `group` counts the networks, `inp` and `out` are features, `batch` is last.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hmoevae.nn.kernels import activate, affine
from hmoevae.nn.rows import Chosen, taken
from hmoevae.spec import MLP, Activation


class GroupedLinear(nn.Module):
    """`groups` affine maps side by side: y[g] = weight[g] x[g] + bias[g].

    Weights and biases are initialised as in `torch.nn.Linear`: U(-1/sqrt(inp), 1/sqrt(inp)).

    Args:
        groups: Number of maps.
        in_features: Size of each map's input.
        out_features: Size of each map's output.
        input_major: Whether `weight` is stored as (group, inp, out), which is faster for the decoders' last layers.

    >>> layer = GroupedLinear(3, 5, 2)
    >>> layer(torch.rand(5, 7)).shape, layer(torch.rand(3, 5, 7)).shape
    (torch.Size([3, 2, 7]), torch.Size([3, 2, 7]))
    """

    weight: Float[nn.Parameter, "group out inp"] | Float[nn.Parameter, "group inp out"]
    bias: Float[nn.Parameter, "group out"]
    chosen: Chosen | None = None
    """The rows of the group that this layer computes (`hmoevae.nn.rows.rows_of`); `None` means all."""

    def __init__(self, groups: int, in_features: int, out_features: int, *, input_major: bool = False) -> None:
        super().__init__()
        self.input_major = input_major
        # Allocated in this shape, not as a transposed view: fused Adam needs moments with the parameter's strides.
        sizes = (in_features, out_features) if input_major else (out_features, in_features)
        self.weight = nn.Parameter(torch.empty(groups, *sizes))
        self.bias = nn.Parameter(torch.empty(groups, out_features))
        self.reset_parameters()

    @property
    def matrices(self) -> Float[Tensor, "group out inp"]:
        """The matrix of each map, as (group, out, inp) in either memory layout."""
        weight = self.weight if self.chosen is None else taken(self.weight, self.chosen)
        return weight.mT if self.input_major else weight

    @property
    def offsets(self) -> Float[Tensor, "group out"]:
        """The bias of each map."""
        return self.bias if self.chosen is None else taken(self.bias, self.chosen)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw fresh weights from torch's global generator, the same in either memory layout."""
        # torch.nn.init computes the fan-in of a 3-D weight as for a convolution, so the bound is computed here.
        bound = 1 / math.sqrt(self.matrices.shape[-1])
        drawn = torch.empty_like(self.matrices, memory_format=torch.contiguous_format)
        self.matrices.copy_(drawn.uniform_(-bound, bound))
        self.bias.uniform_(-bound, bound)

    def forward(
        self, x: Float[Tensor, "inp batch"] | Float[Tensor, "group inp batch"]
    ) -> Float[Tensor, "group out batch"]:
        """Map one input for all groups (2-D: a single GEMM) or one input per group (3-D: a batched GEMM)."""
        return affine(self.weight, self.bias, x, input_major=self.input_major, chosen=self.chosen)

    def extra_repr(self) -> str:
        """The sizes, for `repr`."""
        groups, out_features, in_features = self.matrices.shape
        return f"groups={groups}, in_features={in_features}, out_features={out_features}"


class GroupedNetwork(nn.Module, ABC):
    """Equal networks that run as one. Each parameter and buffer has the group axis first.

    >>> issubclass(GroupedMLP, GroupedNetwork)
    True
    """

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "inp batch"] | Float[Tensor, "group inp batch"]
    ) -> Float[Tensor, "group out batch"]:
        """Run every network on inputs that all share (2-D) or on inputs of its own (3-D), flat and features-first."""


class AffineEnded(GroupedNetwork):
    """Networks whose outputs come from an affine layer: a likelihood can be fused with it, and revival copies its rows.

    >>> network, x = GroupedMLP(3, 5, 2, MLP((8,))), torch.rand(5, 7)
    >>> isinstance(network, AffineEnded), torch.equal(network(x), network.last(network.hidden(x)))
    (True, True)
    """

    @property
    @abstractmethod
    def last(self) -> GroupedLinear:
        """The affine layer."""

    @abstractmethod
    def hidden(
        self, x: Float[Tensor, "inp batch"] | Float[Tensor, "group inp batch"]
    ) -> Float[Tensor, "inp batch"] | Float[Tensor, "group hidden batch"]:
        """Its input."""

    def forward(
        self, x: Float[Tensor, "inp batch"] | Float[Tensor, "group inp batch"]
    ) -> Float[Tensor, "group out batch"]:
        """Run every network on inputs that all share (2-D) or on inputs of its own (3-D), flat and features-first."""
        return self.last(self.hidden(x))


class GroupedMLP(AffineEnded):
    """`groups` multi-layer perceptrons side by side, described by one `MLP` record.

    Args:
        groups: Number of networks.
        in_features: Size of each network's input.
        out_features: Size of each network's output, which has no activation.
        spec: Hidden widths and activation.
        input_major: Memory layout of the last layer's weights, as in `GroupedLinear`.

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

    @property
    def last(self) -> GroupedLinear:
        """The affine layer that gives the outputs."""
        return self.layers[-1]

    def hidden(
        self, x: Float[Tensor, "inp batch"] | Float[Tensor, "group inp batch"]
    ) -> Float[Tensor, "inp batch"] | Float[Tensor, "group hidden batch"]:
        """The input of the last layer."""
        for layer in self.layers[:-1]:
            x = activate(layer(x), self.activation)
        return x

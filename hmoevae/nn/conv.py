"""Many equal convolutional networks run as one: encoders and gates that read images, decoders that output them.

Axes: `group` counts the networks, `out` and `inp` are channels of one of them; `batch` is last. Inside, feature maps
are (batch, channel, height, width), with the channels of all networks side by side.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hmoevae.nn.grouped import AffineEnded, GroupedLinear, GroupedMLP, GroupedNetwork
from hmoevae.nn.kernels import activate
from hmoevae.spec import MLP, Activation, Conv, ConvTranspose

Inputs = Float[Tensor, "batch all_inp height width"]
Outputs = Float[Tensor, "batch all_out _ _"]


class GroupedConv2d(nn.Module):
    """`groups` strided convolutions side by side; weights and biases are initialised as in `torch.nn.Conv2d`.

    Args:
        groups: Number of networks.
        inp: Input channels of each.
        out: Output channels of each.
        kernel_size: Side of the kernels; the padding is half of it.
        stride: Step, in pixels.

    >>> layer = GroupedConv2d(3, 1, 4, kernel_size=3, stride=2)
    >>> layer(torch.rand(5, 1, 8, 8), shared=True).shape, layer.weight.shape
    (torch.Size([5, 12, 4, 4]), torch.Size([3, 4, 1, 3, 3]))
    """

    weight: Float[nn.Parameter, "group out inp kernel kernel"]
    bias: Float[nn.Parameter, "group out"]

    def __init__(self, groups: int, inp: int, out: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        bound = 1 / math.sqrt(inp * kernel_size**2)
        self.weight = nn.Parameter(torch.empty(groups, out, inp, kernel_size, kernel_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(groups, out).uniform_(-bound, bound))

    def forward(self, x: Inputs, *, shared: bool) -> Outputs:
        """Convolve images that all networks share, or feature maps with channels of each network's own."""
        groups = 1 if shared else len(self.weight)
        padding = self.weight.shape[-1] // 2
        return F.conv2d(x, self.weight.flatten(0, 1), self.bias.flatten(), self.stride, padding, groups=groups)


class GroupedNorm2d(nn.Module):
    """Group normalisation of the feature maps of `groups` networks side by side; each has factors and offsets.

    Args:
        groups: Number of networks.
        channels: Channels of each.
        norm_groups: Number of groups of channels of each network that are normalised together.

    >>> layer = GroupedNorm2d(3, 4, norm_groups=2)
    >>> layer(torch.rand(5, 12, 4, 4)).shape, layer.weight.shape
    (torch.Size([5, 12, 4, 4]), torch.Size([3, 4]))
    """

    weight: Float[nn.Parameter, "group channel"]
    bias: Float[nn.Parameter, "group channel"]

    def __init__(self, groups: int, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm_groups = norm_groups
        self.weight = nn.Parameter(torch.ones(groups, channels))
        self.bias = nn.Parameter(torch.zeros(groups, channels))

    def forward(self, x: Outputs) -> Outputs:
        """Normalise the channels of each network."""
        return F.group_norm(x, len(self.weight) * self.norm_groups, self.weight.flatten(), self.bias.flatten())


class GroupedConvTranspose2d(nn.Module):
    """`groups` strided transposed convolutions side by side.

    Weights and biases are initialised as U(-b, b), where 1 / b^2 = inp (kernel_size / stride)^2 is the number of
    products that are summed in one output.

    Args:
        groups: Number of networks.
        inp: Input channels of each.
        out: Output channels of each.
        kernel_size: Side of the kernels; the padding is half of it.
        stride: Factor by which the images grow.
        output_padding: Rows and columns added to the output, as in `torch.nn.ConvTranspose2d`.

    >>> layer = GroupedConvTranspose2d(3, 4, 1, kernel_size=3, stride=2, output_padding=(1, 1))
    >>> layer(torch.rand(5, 12, 4, 4)).shape, layer.weight.shape
    (torch.Size([5, 3, 8, 8]), torch.Size([3, 4, 1, 3, 3]))
    """

    weight: Float[nn.Parameter, "group inp out kernel kernel"]
    bias: Float[nn.Parameter, "group out"]

    def __init__(
        self, groups: int, inp: int, out: int, kernel_size: int, stride: int, output_padding: tuple[int, int]
    ) -> None:
        super().__init__()
        self.stride = stride
        self.output_padding = output_padding
        bound = stride / math.sqrt(inp * kernel_size**2)
        self.weight = nn.Parameter(torch.empty(groups, inp, out, kernel_size, kernel_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(groups, out).uniform_(-bound, bound))

    def forward(self, x: Inputs) -> Outputs:
        """Transposed convolution of the channels of each network."""
        weight, padding = self.weight.flatten(0, 1), self.weight.shape[-1] // 2
        bias, groups = self.bias.flatten(), len(self.weight)
        return F.conv_transpose2d(x, weight, bias, self.stride, padding, self.output_padding, groups)


class GroupedConv(AffineEnded):
    """`groups` small convolutional networks side by side, described by one `Conv`.

    Args:
        groups: Number of networks.
        input_shape: Channels, height and width of the images.
        out_features: Size of each network's output.
        spec: Channels, kernel, stride, hidden widths, activation and normalisation.

    >>> GroupedConv(3, (1, 8, 8), 2, Conv(channels=(4,)))(torch.rand(64, 5)).shape
    torch.Size([3, 2, 5])
    """

    def __init__(self, groups: int, input_shape: tuple[int, ...], out_features: int, spec: Conv) -> None:
        super().__init__()
        self.input_shape = input_shape
        self.activation: Activation = spec.activation
        channels = (input_shape[0], *spec.channels)
        self.convolutions = nn.ModuleList(
            GroupedConv2d(groups, inp, out, spec.kernel_size, spec.stride) for inp, out in pairwise(channels)
        )
        n = spec.norm_groups
        self.norms = nn.ModuleList(
            nn.Identity() if n is None else GroupedNorm2d(groups, out, n) for out in spec.channels
        )
        height, width = _sizes(input_shape, spec)[-1]
        dense = MLP(spec.hidden, spec.activation)
        self.head = GroupedMLP(groups, channels[-1] * height * width, out_features, dense)

    @property
    def last(self) -> GroupedLinear:
        """The affine layer that gives the outputs."""
        return self.head.last

    def hidden(
        self, x: Float[Tensor, "feature batch"] | Float[Tensor, "group feature batch"]
    ) -> Float[Tensor, "inp batch"] | Float[Tensor, "group hidden batch"]:
        """The input of the last layer, for images that all share (2-D) or that are its own (3-D), flat."""
        return self.head.hidden(self._maps(x))

    def _maps(
        self, x: Float[Tensor, "feature batch"] | Float[Tensor, "group feature batch"]
    ) -> Float[Tensor, "map batch"] | Float[Tensor, "group map batch"]:
        """The outputs of the convolutions, flat and features-first."""
        c, h, w = self.input_shape
        shared = x.ndim == 2
        if shared:
            maps = rearrange(x, "(c h w) b -> b c h w", c=c, h=h, w=w)
        else:
            maps = rearrange(x, "g (c h w) b -> b (g c) h w", c=c, h=h, w=w)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            maps = activate(norm(convolution(maps, shared=shared)), self.activation)
            shared = False
        chosen = self.last.chosen
        groups = len(self.last.bias if chosen is None else chosen)
        if groups == 1:  # a view, whose gradient has the memory layout of the maps
            return rearrange(maps, "b c h w -> (c h w) b")
        return rearrange(maps, "b (g c) h w -> g (c h w) b", g=groups)


class GroupedConvTranspose(GroupedNetwork):
    """`groups` small convolutional decoders side by side, described by one `ConvTranspose`.

    Args:
        groups: Number of networks.
        in_features: Size of each network's input.
        output_shape: Channels, height and width of the images.
        spec: Channels, kernel, stride, hidden widths and activation.

    >>> GroupedConvTranspose(3, 2, (1, 8, 8), ConvTranspose(channels=(4,)))(torch.rand(3, 2, 5)).shape
    torch.Size([3, 64, 5])
    """

    def __init__(self, groups: int, in_features: int, output_shape: tuple[int, ...], spec: ConvTranspose) -> None:
        super().__init__()
        self.activation: Activation = spec.activation
        sizes = _sizes(output_shape, spec)
        self.first_shape = (spec.channels[0], *sizes[-1])
        dense = MLP(spec.hidden, spec.activation)
        self.head = GroupedMLP(groups, in_features, torch.Size(self.first_shape).numel(), dense)
        self.convolutions = nn.ModuleList()
        channels = (*spec.channels, output_shape[0])
        for i, (small, large) in enumerate(zip(sizes[:0:-1], sizes[-2::-1], strict=True)):
            reached = [(n - 1) * spec.stride - 2 * (spec.kernel_size // 2) + spec.kernel_size for n in small]
            missing = (large[0] - reached[0], large[1] - reached[1])
            self.convolutions.append(
                GroupedConvTranspose2d(groups, channels[i], channels[i + 1], spec.kernel_size, spec.stride, missing)
            )

    def forward(
        self, x: Float[Tensor, "inp batch"] | Float[Tensor, "group inp batch"]
    ) -> Float[Tensor, "group feature batch"]:
        """Run every decoder on latents that all share (2-D) or on latents of its own (3-D); the images are flat."""
        c, h, w = self.first_shape
        flat = self.head(x)
        maps = rearrange(flat, "g (c h w) b -> b (g c) h w", c=c, h=h, w=w)
        for convolution in self.convolutions:
            maps = convolution(activate(maps, self.activation))
        return rearrange(maps, "b (g c) h w -> g (c h w) b", g=len(flat))


def _sizes(shape: tuple[int, ...], spec: Conv | ConvTranspose) -> list[tuple[int, int]]:
    """Height and width of an image, and of the output of each of its strided convolutions.

    >>> _sizes((1, 28, 28), Conv())
    [(28, 28), (14, 14), (7, 7)]
    """
    sizes = [(shape[1], shape[2])]
    for _ in spec.channels:
        height, width = ((n + 2 * (spec.kernel_size // 2) - spec.kernel_size) // spec.stride + 1 for n in sizes[-1])
        sizes.append((height, width))
    return sizes

"""The inner nodes of a tree: every group of equal gates runs as one batched network.

Axes: `edge` counts the (mixture, child) pairs in the plan's order, `group` the gates of one group, `child` the
children of each of them; `batch` is last.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from hmoevae.errors import SpecError, mismatch
from hmoevae.nn.grouped import GroupedLinear, GroupedMLP
from hmoevae.nn.kernels import activate
from hmoevae.nn.kernels.precision import sum_dtype
from hmoevae.nn.paths import joined, permutation
from hmoevae.plan import Group, Plan
from hmoevae.spec import MLP, Activation, Conv, Mixture


class GroupedConv(nn.Module):
    """`groups` small convolutional networks side by side on one shared image.

    Args:
        groups: Number of networks.
        input_shape: Channels, height and width of the image.
        out_features: Size of each network's output.
        spec: Channels, kernel, stride, hidden widths and activation.

    >>> GroupedConv(3, (1, 8, 8), 2, Conv(channels=(4,)))(torch.rand(64, 5)).shape
    torch.Size([3, 2, 5])
    """

    def __init__(self, groups: int, input_shape: tuple[int, int, int], out_features: int, spec: Conv) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.input_shape = input_shape
        self.n_networks = groups
        self.activation: Activation = spec.activation
        self.convolutions = nn.ModuleList()
        padding = spec.kernel_size // 2
        for i, out_channels in enumerate(spec.channels):
            self.convolutions.append(
                nn.Conv2d(
                    channels if i == 0 else groups * channels,  # the first layer reads the image that all share
                    groups * out_channels,
                    spec.kernel_size,
                    spec.stride,
                    padding,
                    groups=1 if i == 0 else groups,
                )
            )
            channels = out_channels
            height = (height + 2 * padding - spec.kernel_size) // spec.stride + 1
            width = (width + 2 * padding - spec.kernel_size) // spec.stride + 1
        self.head = GroupedMLP(groups, channels * height * width, out_features, MLP(spec.hidden, spec.activation))

    def forward(self, x: Float[Tensor, "feature batch"]) -> Float[Tensor, "group out batch"]:
        """Run every network on the shared images, given flat and features-first."""
        channels, height, width = self.input_shape
        maps = rearrange(x, "(c h w) b -> b c h w", c=channels, h=height, w=width)
        for convolution in self.convolutions:
            maps = activate(convolution(maps), self.activation)
        if self.n_networks == 1:  # a view, and its gradient lies as that of the maps
            return self.head(rearrange(maps, "b c h w -> (c h w) b"))
        return self.head(rearrange(maps, "b (g c) h w -> g (c h w) b", g=self.n_networks))


class Gates(nn.Module):
    """All gates of a plan.

    Args:
        plan: The compiled tree.
        input_shape: Shape of one sample; convolutional gates ask for (channels, height, width).

    Raises:
        SpecError: A convolutional gate meets samples that are not images.

    >>> from hmoevae.plan import compile_tree
    >>> from hmoevae.spec import VAE
    >>> gates = Gates(compile_tree(Mixture(children=(VAE(), Mixture.of(VAE(), 2)))), input_shape=(4,))
    >>> gates(torch.rand(4, 5)).shape  # two edges below the root, two below root/1
    torch.Size([4, 5])
    """

    edge_order: Int[Tensor, " edge"] | None

    def __init__(self, plan: Plan, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.members = [group.members for group in plan.gate_groups]
        self.groups = nn.ModuleList(_gate_network(plan, group, input_shape) for group in plan.gate_groups)
        mixtures = [plan.mixtures[i] for group in plan.gate_groups for i in group.members]
        order = [edge for mixture in mixtures for edge in mixture.child_edges]
        self.register_buffer("edge_order", permutation(order), persistent=False)
        self.depths = [[plan.mixtures[i].depth for i in group.members] for group in plan.gate_groups]

    def forward(self, x: Float[Tensor, "feature batch"], temperature: float = 1.0) -> Float[Tensor, "edge batch"]:
        """Log g(child | x) on every edge, in nats, whether or not the mixture is reached.

        Args:
            x: Samples.
            temperature: What the logits are divided by.
        """
        if not self.groups:  # a lone leaf has no gate
            return x.new_zeros(0, x.shape[1], dtype=sum_dtype(x))
        rows = [_log_softmax(network, x, temperature).flatten(0, 1) for network in self.groups]
        return joined(rows, self.edge_order)

    def split(
        self,
        upper: Float[Tensor, "feature batch"],
        lower: Float[Tensor, "feature few"],
        depth: int,
        temperature: float = 1.0,
    ) -> Float[Tensor, "edge batch"]:
        """The same where gates above a depth see `upper`, and the others `lower`, repeated to the size of the batch."""
        times = upper.shape[1] // lower.shape[1]
        rows = []
        for network, depths in zip(self.groups, self.depths, strict=True):
            if max(depths) < depth:
                rows.append(_log_softmax(network, upper, temperature))
                continue
            row = _log_softmax(network, lower, temperature).repeat(1, 1, times)
            if min(depths) < depth:  # a group across the border runs twice
                is_upper = torch.tensor([d < depth for d in depths], device=row.device).reshape(-1, 1, 1)
                row = torch.where(is_upper, _log_softmax(network, upper, temperature), row)
            rows.append(row)
        return joined([row.flatten(0, 1) for row in rows], self.edge_order)

    @property
    def take_images(self) -> bool:
        """Whether a gate is convolutional, so that it matters which axis of a sample counts channels."""
        return any(isinstance(network, GroupedConv) for network in self.groups)

    def last_layer(self, mixture: int) -> tuple[GroupedLinear, int]:
        """The layer that gives the logits of a mixture's gate, and the gate's place in it."""
        group = next(i for i, members in enumerate(self.members) if mixture in members)
        network = self.groups[group]
        head = network.head if isinstance(network, GroupedConv) else network
        assert isinstance(head, GroupedMLP)
        return head.layers[-1], self.members[group].index(mixture)


def looks_channels_last(input_shape: tuple[int, ...]) -> bool:
    """Whether a shape is more likely (height, width, channels) than (channels, height, width).

    >>> looks_channels_last((32, 32, 3)), looks_channels_last((3, 32, 32)), looks_channels_last((64, 7, 7))
    (True, False, False)
    """
    *others, last = input_shape
    return len(others) == 2 and last in (1, 3, 4) and min(others) > 4


def _log_softmax(
    network: nn.Module, x: Float[Tensor, "feature batch"], temperature: float
) -> Float[Tensor, "group child batch"]:
    logits = network(x).to(sum_dtype(x))
    return F.log_softmax(logits if temperature == 1 else logits / temperature, dim=1)


def _gate_network(plan: Plan, group: Group[Mixture], input_shape: tuple[int, ...]) -> nn.Module:
    groups, n_children, network = len(group.members), len(group.spec.children), group.spec.gate
    if isinstance(network, MLP):
        return GroupedMLP(groups, torch.Size(input_shape).numel(), n_children, network)
    if len(input_shape) != 3:
        path = plan.mixtures[group.members[0]].path
        expected = "an MLP, or samples of shape (channels, height, width) for a Conv"
        raise SpecError(mismatch(f"{path}.gate", expected, f"{network} for samples of shape {input_shape}"))
    channels, height, width = input_shape
    return GroupedConv(groups, (channels, height, width), n_children, network)

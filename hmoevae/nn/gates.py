"""The gates of a tree's mixtures: every group of equal gates runs as one batched network.

Axes: `edge` counts the (mixture, child) edges in the plan's order, `group` the gates of one group, `child` the
children of each of them; `pair` counts (sample, gate) pairs, in any order; `batch` is last.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hmoevae.errors import SpecError, mismatch
from hmoevae.nn.grouped import AffineEnded, GroupedLinear
from hmoevae.nn.kernels.precision import sum_dtype
from hmoevae.nn.networks import grouped_network
from hmoevae.nn.paths import joined, permutation
from hmoevae.nn.routes import packing, unpack
from hmoevae.nn.rows import Chosen, rows_of
from hmoevae.plan import Plan
from hmoevae.spec import VAE, LinearPosterior, Network, PosteriorGate


class GateGroup(nn.Module):
    """Equal gates side by side.

    The logits come from an affine layer, `last`, with one row per child. Where the network does not end in an affine
    layer, one is appended. It starts as the identity.

    Args:
        record: The record of the gates' network.
        groups: Number of gates.
        n_children: Number of children of each gate.
        sample_shape: Shape of one sample.
        place: The network's name in error messages, such as `"root.gate"`.

    Raises:
        SpecError: The network does not fit the samples.

    >>> from hmoevae.spec import MLP
    >>> GateGroup(MLP((8,)), 3, 2, (4,), "root.gate")(torch.rand(4, 5)).exp().sum(1).allclose(torch.ones(3, 5))
    True
    """

    def __init__(
        self, record: Network, groups: int, n_children: int, sample_shape: tuple[int, ...], place: str
    ) -> None:
        super().__init__()
        self.network = grouped_network(record, groups, sample_shape, (n_children,), place)
        self.head: GroupedLinear | None = None
        if not isinstance(self.network, AffineEnded):
            self.head = GroupedLinear(groups, n_children, n_children)
            with torch.no_grad():
                self.head.weight.copy_(torch.eye(n_children).expand_as(self.head.weight))
                self.head.bias.zero_()

    @property
    def last(self) -> GroupedLinear:
        """The affine layer that gives the logits."""
        if self.head is not None:
            return self.head
        assert isinstance(self.network, AffineEnded)
        return self.network.last

    def forward(
        self, x: Float[Tensor, "feature batch"], temperature: float = 1.0
    ) -> Float[Tensor, "group child batch"]:
        """Log g(child | x) of every gate, in nats.

        Args:
            x: Samples.
            temperature: The divisor of the logits.
        """
        return _log_softmax(self._logits(x), temperature)

    def of_pairs(
        self,
        x: Float[Tensor, "feature batch"],
        sample: Int[Tensor, " pair"],
        gate: Int[Tensor, " pair"],
        temperature: float = 1.0,
    ) -> Float[Tensor, "pair child"]:
        """Log g(child | x) of one gate for one sample each, in nats. Other pairs are not computed.

        Args:
            x: Samples.
            sample: The sample of every pair; there is at least one pair.
            gate: The gate of every pair, as its row in the group.
            temperature: The divisor of the logits.

        >>> from hmoevae.spec import MLP
        >>> group, x = GateGroup(MLP((8,)), 3, 2, (4,), "root.gate"), torch.rand(4, 5)
        >>> some = group.of_pairs(x, sample=torch.tensor([4, 0]), gate=torch.tensor([1, 2]))
        >>> some.allclose(group(x)[[1, 2], :, [4, 0]])
        True
        """
        packed = packing(gate, len(self.last.bias))
        rows, columns = packed.shape
        own = sample.new_zeros(rows * columns)  # padding runs the first sample: no likelihood limits what gates see
        own[packed.cell] = sample
        laid = x.t().index_select(0, own).unflatten(0, packed.shape).mT
        return _log_softmax(unpack(rows_of(self, packed.experts)._logits(laid), packed), temperature)

    def of_one(
        self, x: Float[Tensor, "feature batch"], gate: int, temperature: float = 1.0
    ) -> Float[Tensor, "child batch"]:
        """Log g(child | x) of one gate for all samples, in nats.

        Args:
            x: Samples.
            gate: The gate, as its row in the group.
            temperature: The divisor of the logits.

        >>> from hmoevae.spec import MLP
        >>> group, x = GateGroup(MLP((8,)), 3, 2, (4,), "root.gate"), torch.rand(4, 5)
        >>> group.of_one(x, 1).allclose(group(x)[1])
        True
        """
        if torch.is_grad_enabled() and len(self.last.bias) > 1:  # the gradient holds that row alone
            one = rows_of(self, Chosen.of(torch.tensor([gate], device=x.device)))
        else:
            one = rows_of(self, slice(gate, gate + 1))
        return _log_softmax(one._logits(x), temperature).squeeze(0)

    def _logits(
        self, x: Float[Tensor, "feature batch"] | Float[Tensor, "row feature batch"]
    ) -> Float[Tensor, "row child batch"]:
        logits = self.network(x)
        if self.head is not None:
            logits = self.head(logits)
        return logits.to(sum_dtype(x))


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of the children, which are the second axis."""
    return F.log_softmax(logits if temperature == 1 else logits / temperature, dim=1)


class PosteriorGroup(nn.Module):
    """Gates with equal numbers of children that are the posteriors of their children, side by side; no parameters.

    Args:
        plan: The compiled tree.
        members: Indices of the mixtures.

    Raises:
        SpecError: A leaf below a mixture has no `LinearPosterior`.

    >>> from hmoevae.plan import compile_tree
    >>> from hmoevae.spec import MLP, VAE, Gaussian, LinearPosterior, Mixture, PosteriorGate
    >>> leaf = VAE(2, LinearPosterior(), MLP(()), Gaussian(0.5, "identity"))
    >>> tree = Mixture((leaf, Mixture.of(leaf, 2)), gate=PosteriorGate())
    >>> log_joint = torch.tensor([[0.2], [0.4], [0.4]]).log()
    >>> PosteriorGroup(compile_tree(tree), [0])(log_joint).exp().flatten()
    tensor([0.2000, 0.8000])
    """

    below: Int[Tensor, "group child width"]
    last = None
    """These gates have no layer whose rows are the children."""

    def __init__(self, plan: Plan, members: Sequence[int]) -> None:
        super().__init__()
        mixtures = [plan.mixtures[i] for i in members]
        for leaf in (plan.leaves[i] for mixture in mixtures for i in mixture.leaves):
            if isinstance(leaf.spec, VAE) and not isinstance(leaf.spec.encoder, LinearPosterior):
                expected = "LinearPosterior(), as PosteriorGate needs the density of the leaves below it"
                raise SpecError(mismatch(f"{leaf.path}.encoder", expected, leaf.spec.encoder))
        children = [[plan.nodes[plan.edge_child[edge]].leaves for edge in mixture.child_edges] for mixture in mixtures]
        width = max(len(leaves) for own in children for leaves in own)
        rows = [[[*leaves, *[plan.n_leaves] * (width - len(leaves))] for leaves in own] for own in children]
        self.register_buffer("below", torch.tensor(rows), persistent=False)  # n_leaves stands for no leaf

    def forward(
        self, log_joint: Float[Tensor, "leaf batch"], temperature: float = 1.0
    ) -> Float[Tensor, "group child batch"]:
        """Log g(child | x) of every gate, in nats.

        Args:
            log_joint: Log pi_l + log p_l(x) of every leaf; of leaves that are not below these gates, any number.
            temperature: The divisor of the logarithms.
        """
        with_none = F.pad(log_joint, (0, 0, 0, 1), value=-torch.inf)
        by_leaf = with_none.index_select(0, self.below.flatten()).unflatten(0, self.below.shape)
        logits = by_leaf.squeeze(2) if by_leaf.shape[2] == 1 else by_leaf.logsumexp(2)
        return F.log_softmax(logits if temperature == 1 else logits / temperature, dim=1)


class Gates(nn.Module):
    """All gates of a plan.

    Args:
        plan: The compiled tree.
        input_shape: Shape of one sample; convolutional gates ask for (channels, height, width).

    Raises:
        SpecError: A gate does not fit the samples: a convolutional gate needs images. Or a leaf below a posterior gate
            has no density in closed form.

    >>> from hmoevae.plan import compile_tree
    >>> from hmoevae.spec import VAE, Mixture
    >>> gates = Gates(compile_tree(Mixture(children=(VAE(), Mixture.of(VAE(), 2)))), input_shape=(4,))
    >>> gates(torch.rand(4, 5)).shape  # two edges below the root, two below root/1
    torch.Size([4, 5])
    """

    groups: Sequence[GateGroup | PosteriorGroup]
    edge_order: Int[Tensor, " edge"] | None
    group_of_mixture: Int[Tensor, " mixture"]
    row_of_mixture: Int[Tensor, " mixture"]

    def __init__(self, plan: Plan, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        groups = nn.ModuleList(
            PosteriorGroup(plan, group.members)
            if isinstance(group.spec.gate, PosteriorGate)
            else GateGroup(
                group.spec.gate,
                len(group.members),
                len(group.spec.children),
                input_shape,
                f"{plan.mixtures[group.members[0]].path}.gate",
            )
            for group in plan.gate_groups
        )
        self.groups = groups  # type: ignore[assignment]  # a ModuleList cannot say what it holds
        mixtures = [plan.mixtures[i] for group in plan.gate_groups for i in group.members]
        order = [edge for mixture in mixtures for edge in mixture.child_edges]
        self.register_buffer("edge_order", permutation(order), persistent=False)
        # The last entries stand for no mixture.
        groups_of, rows_of_groups = [
            [*(getattr(m.place, name) for m in plan.mixtures), -1] for name in ("group", "row")
        ]
        self.register_buffer("group_of_mixture", torch.tensor(groups_of), persistent=False)
        self.register_buffer("row_of_mixture", torch.tensor(rows_of_groups), persistent=False)
        self.depths = [[plan.mixtures[i].depth for i in group.members] for group in plan.gate_groups]

    @property
    def have_posteriors(self) -> bool:
        """Whether a gate is the posterior of its children."""
        return any(isinstance(group, PosteriorGroup) for group in self.groups)

    @property
    def learn(self) -> bool:
        """Whether a gate has parameters."""
        return any(isinstance(group, GateGroup) for group in self.groups)

    def forward(
        self,
        x: Float[Tensor, "feature batch"],
        temperature: float = 1.0,
        log_joint: Float[Tensor, "leaf batch"] | None = None,
    ) -> Float[Tensor, "edge batch"]:
        """Log g(child | x) on every edge, in nats, for every sample, however improbable its mixture is.

        Args:
            x: Samples.
            temperature: The divisor of the logits.
            log_joint: As in `PosteriorGroup.forward`, for trees with such gates.
        """
        if not self.groups:  # a lone leaf has no gate
            return x.new_zeros(0, x.shape[1], dtype=sum_dtype(x))
        rows = [_answer(group, x, temperature, log_joint).flatten(0, 1) for group in self.groups]
        return joined(rows, self.edge_order)

    def of_mixtures(
        self, x: Float[Tensor, "feature few"], mixture: Int[Tensor, "batch slot"], temperature: float = 1.0
    ) -> Float[Tensor, "batch slot child"]:
        """Log g(child | x) of some mixtures for every sample, in nats; the others are not computed.

        Args:
            x: Samples; those of a smaller batch are repeated.
            mixture: The mixtures in each sample's slots; the number of mixtures stands for an empty slot.
            temperature: The divisor of the logits.

        Returns:
            Minus infinity in empty slots, and behind the children of mixtures that have fewer than others.

        >>> from hmoevae.plan import compile_tree
        >>> from hmoevae.spec import VAE, Mixture
        >>> gates = Gates(compile_tree(Mixture(children=(VAE(), Mixture.of(VAE(), 3)))), input_shape=(4,))
        >>> gates.of_mixtures(torch.rand(4, 2), torch.tensor([[1], [0]])).isneginf().squeeze(1)
        tensor([[False, False, False],
                [False, False,  True]])
        """
        n_slots, pairs = mixture.shape[1], mixture.flatten()
        of_pair = self.group_of_mixture.index_select(0, pairs)
        found: list[tuple[Tensor, Tensor]] = []
        for i, group in enumerate(self.groups):
            own = (of_pair == i).nonzero().squeeze(1)
            if len(own):
                assert isinstance(group, GateGroup)
                sample = own if n_slots == 1 else own.div(n_slots, rounding_mode="floor")
                sample = sample if len(mixture) == x.shape[1] else sample % x.shape[1]
                found.append(
                    (own, group.of_pairs(x, sample, self.row_of_mixture.index_select(0, pairs[own]), temperature))
                )
        most = max((values.shape[1] for _, values in found), default=0)
        if len(found) == 1 and len(found[0][0]) == len(pairs):
            return found[0][1].unflatten(0, mixture.shape)
        none = torch.full((len(pairs), most), -torch.inf, dtype=sum_dtype(x), device=x.device)
        for own, values in found:
            none = none.index_put((own,), F.pad(values, (0, most - values.shape[1]), value=-torch.inf))
        return none.unflatten(0, mixture.shape)

    def of_mixture(
        self, x: Float[Tensor, "feature batch"], mixture: int, temperature: float = 1.0
    ) -> Float[Tensor, "child batch"]:
        """Log g(child | x) of one mixture for all samples, in nats.

        Args:
            x: Samples.
            mixture: The mixture; its gate is a network.
            temperature: The divisor of the logits.
        """
        group = self.groups[int(self.group_of_mixture[mixture])]
        assert isinstance(group, GateGroup)
        return group.of_one(x, int(self.row_of_mixture[mixture]), temperature)

    def split(
        self,
        upper: Float[Tensor, "feature batch"],
        lower: Float[Tensor, "feature few"],
        depth: int,
        temperature: float = 1.0,
        log_joints: tuple[Float[Tensor, "leaf batch"] | None, Float[Tensor, "leaf few"] | None] = (None, None),
    ) -> Float[Tensor, "edge batch"]:
        """Like `forward`, with two inputs: gates above `depth` see `upper`, the others see `lower`.

        `lower` may be smaller than `upper`: its results are repeated to the size of `upper`'s batch.
        """
        times = upper.shape[1] // lower.shape[1]
        rows = []
        for group, depths in zip(self.groups, self.depths, strict=True):
            if max(depths) < depth:
                rows.append(_answer(group, upper, temperature, log_joints[0]))
                continue
            row = _answer(group, lower, temperature, log_joints[1]).repeat(1, 1, times)
            if min(depths) < depth:  # a group with gates on both sides of `depth` runs twice
                is_upper = torch.tensor([d < depth for d in depths], device=row.device).reshape(-1, 1, 1)
                row = torch.where(is_upper, _answer(group, upper, temperature, log_joints[0]), row)
            rows.append(row)
        return joined([row.flatten(0, 1) for row in rows], self.edge_order)


def _answer(
    group: GateGroup | PosteriorGroup,
    x: Float[Tensor, "feature batch"],
    temperature: float,
    log_joint: Float[Tensor, "leaf batch"] | None,
) -> Float[Tensor, "group child batch"]:
    """Log g(child | x) of every gate of a group."""
    if isinstance(group, GateGroup):
        return group(x, temperature)
    assert log_joint is not None
    return group(log_joint, temperature)


def looks_channels_last(input_shape: tuple[int, ...]) -> bool:
    """Whether a shape is more likely (height, width, channels) than (channels, height, width).

    >>> looks_channels_last((32, 32, 3)), looks_channels_last((3, 32, 32)), looks_channels_last((64, 7, 7))
    (True, False, False)
    """
    *others, last = input_shape
    return len(others) == 2 and last in (1, 3, 4) and min(others) > 4

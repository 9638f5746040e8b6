"""Revival: a dead child of a mixture takes over half of the samples of its most used sibling."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from hmoevae.model import HMoEVAE
from hmoevae.nn.cut_experts import CutExperts
from hmoevae.plan import Place, Plan, PlannedNode
from hmoevae.training.usage import is_dead

NOISE = 0.1
"""Standard deviation of the noise that is added to a copied row, relative to that of the row's entries."""


@torch.no_grad()
def revive(
    model: HMoEVAE, optimizer: Optimizer, usage: Float[Tensor, " leaf"], generator: torch.Generator
) -> list[str]:
    """Replace every dead child by a noisy copy of its most used sibling; each of the two gets half of its samples.

    At the gate, the copy is the sibling's row of the last layer and its learned prior. Every leaf below the child gets
    the weights of an equal leaf: the most used one below the sibling or, if there is none there, in the whole tree. A
    leaf without an equal keeps its weights. The optimiser's state is copied with the weights.

    Args:
        model: The model.
        optimizer: Its optimiser.
        usage: Share of the samples of every leaf.
        generator: Source of the noise, on the model's device.

    Returns:
        The paths of the revived children.
    """
    plan = model.plan
    copies = _Copies(optimizer, generator)
    revived = []
    for mixture in plan.mixtures:
        if is_dead(mixture, _share(mixture, usage), plan):
            continue  # it has just been revived as a child of its parent
        edges = mixture.child_edges
        children = [plan.nodes[plan.edge_child[edge]] for edge in edges]
        shares = [_share(child, usage) for child in children]
        for place, child in enumerate(children):
            if not is_dead(child, shares[place], plan):
                continue
            donor = max((i for i in range(len(children)) if i != place), key=shares.__getitem__)
            _split_samples(model, copies, mixture.place, (edges[donor], donor), (edges[place], place))
            for leaf in child.leaves:
                _copy_expert(model, copies, _donor_of(plan, leaf, children[donor], usage), leaf)
            shares[donor] = shares[place] = shares[donor] / 2
            revived.append(child.path)
    return revived


def _share(node: PlannedNode, usage: Float[Tensor, " leaf"]) -> float:
    return usage[node.leaves.start : node.leaves.stop].sum().item()


def _split_samples(
    model: HMoEVAE, copies: "_Copies", gate: Place, donor: tuple[int, int], child: tuple[int, int]
) -> None:
    """Make the gate send half of the donor's samples to the child; both are (edge, index among the children)."""
    layer = model.gates.groups[gate.group].last
    if layer is not None:  # a posterior gate follows the prior and the leaves
        n_children = layer.bias.shape[1]
        source, target = gate.row * n_children + donor[1], gate.row * n_children + child[1]
        layer.bias[gate.row, donor[1]] -= math.log(2)
        copies.row(layer.bias, source, target, layer.bias.numel(), noise=0.0)  # noise would make the halves unequal
        copies.row(layer.weight, source, target, layer.bias.numel())
    prior = model.prior.logits
    if prior is not None:
        prior[donor[0]] -= math.log(2)
        copies.row(prior, donor[0], child[0], len(prior), noise=0.0)


def _donor_of(plan: Plan, leaf: int, sibling: PlannedNode, usage: Float[Tensor, " leaf"]) -> int | None:
    """The leaf whose weights the leaf of a dead child gets; `None` if no other living leaf is equal to it."""
    equal = next(group.members for group in plan.expert_groups if leaf in group.members)
    living = [i for i in equal if i != leaf and not is_dead(plan.leaves[i], usage[i].item(), plan)]
    return max(living, key=lambda i: (i in sibling.leaves, usage[i].item()), default=None)


def _copy_expert(model: HMoEVAE, copies: "_Copies", source: int | None, target: int) -> None:
    if source is None:
        return
    here, there = model.plan.leaves[source].place, model.plan.leaves[target].place
    experts, group = model.experts, model.experts.groups[there.group]
    if isinstance(experts, CutExperts):
        for parameter in group.parameters():
            copies.cut_row(parameter, experts, here, there)
        for buffer in group.buffers():
            copied, place = experts.row(here.group, here.row, buffer), experts.own_row(there.group, there.row)
            if place is not None:
                buffer[place] = copied
        return
    for parameter in group.parameters():
        copies.row(parameter, here.row, there.row, len(parameter), noise=NOISE if parameter.requires_grad else 0.0)
    for buffer in group.buffers():  # constants of a user's network, which may differ from node to node
        buffer[there.row] = buffer[here.row]


class _Copies:
    """Copies rows of parameters, and the optimiser's state for them."""

    def __init__(self, optimizer: Optimizer, generator: torch.Generator) -> None:
        self.optimizer = optimizer
        self.generator = generator

    def row(self, parameter: nn.Parameter, source: int, target: int, rows: int, *, noise: float = NOISE) -> None:
        """View a parameter as `rows` rows, and copy row `source` to row `target`, with noise."""
        pieces = parameter.data.view(rows, -1)
        drawn = torch.randn(pieces.shape[1:], generator=self.generator, device=parameter.device, dtype=parameter.dtype)
        pieces[target] = pieces[source] + noise * pieces[source].std(correction=0) * drawn
        for value in self.optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:  # such as Adam's moments
                moments = value.view(rows, -1)
                moments[target] = moments[source]
            elif isinstance(value, Tensor) and value.shape == (rows,):  # numbers of steps, as RowAdam counts them
                value[target] = value[source]

    def cut_row(self, parameter: nn.Parameter, experts: CutExperts, source: Place, target: Place) -> None:
        """As `row`, for experts of which this process holds some rows; all processes that hold others call this too."""
        own, place = parameter.data, experts.own_row(target.group, target.row)
        copied = experts.row(source.group, source.row, own)
        drawn = torch.randn(copied.numel(), generator=self.generator, device=own.device, dtype=own.dtype)
        if place is not None and parameter.requires_grad:
            copied = copied + NOISE * copied.std(correction=0) * drawn.view_as(copied)
        if place is not None:
            own[place] = copied
        state = self.optimizer.state.get(parameter, {})
        kinds = {key: (tuple(value.shape[1:]), value.dtype) for key, value in state.items() if _has_rows(value)}
        known = {key: kind for theirs in experts.peers.objects(kinds) for key, kind in theirs.items()}
        for key, (shape, dtype) in sorted(known.items()):
            held = state.get(key, torch.zeros((), dtype=dtype, device=own.device))
            rows = held if held.ndim else held.expand(len(own), *shape).clone()  # here no row may have been met yet
            copied = experts.row(source.group, source.row, rows)
            if place is not None:
                rows[place] = copied
                self.optimizer.state[parameter][key] = rows


def _has_rows(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0

"""Revival: a child of a mixture that gets no samples takes over half of what its most used sibling does."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from hmoevae.model import HMoEVAE
from hmoevae.plan import Place, Plan, PlannedNode
from hmoevae.training.usage import is_dead

NOISE = 0.1
"""What makes a copy different from its original: the standard deviation of noise, in those of what is copied."""


@torch.no_grad()
def revive(
    model: HMoEVAE, optimizer: Optimizer, usage: Float[Tensor, " leaf"], generator: torch.Generator
) -> list[str]:
    """Give every dead child a noisy copy of its most used sibling, and each of the two half of the sibling's samples.

    At the gate that is the sibling's row of the last layer, and its learned prior; every leaf below the child gets a
    copy of an equal leaf's weights: the most used one below the sibling or, where there is none, in the tree. A leaf
    like no other keeps its weights. The optimiser's state of all this is copied along.

    Args:
        model: The model.
        optimizer: Its optimiser.
        usage: Share of the samples that every leaf had.
        generator: Source of the noise, on the model's device.

    Returns:
        The paths of the children revived.
    """
    plan = model.plan
    copies = _Copies(optimizer, generator)
    revived = []
    for mixture in plan.mixtures:
        if is_dead(mixture, _share(mixture, usage), plan):
            continue  # its parent has just seen to it
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
    """Let the gate send half of the donor's samples to the child; both are (edge, place among the children)."""
    layer = model.gates.groups[gate.group].last
    n_children = layer.bias.shape[1]
    source, target = gate.row * n_children + donor[1], gate.row * n_children + child[1]
    layer.bias[gate.row, donor[1]] -= math.log(2)
    copies.row(layer.bias, source, target, layer.bias.numel(), noise=0.0)  # a bias's noise would tip the halves
    copies.row(layer.weight, source, target, layer.bias.numel())
    prior = model.prior.logits
    if prior is not None:
        prior[donor[0]] -= math.log(2)
        copies.row(prior, donor[0], child[0], len(prior), noise=0.0)


def _donor_of(plan: Plan, leaf: int, sibling: PlannedNode, usage: Float[Tensor, " leaf"]) -> int | None:
    """The leaf whose weights one of a dead child takes; `None` where no other living one is equal to it."""
    equal = next(group.members for group in plan.expert_groups if leaf in group.members)
    living = [i for i in equal if i != leaf and not is_dead(plan.leaves[i], usage[i].item(), plan)]
    return max(living, key=lambda i: (i in sibling.leaves, usage[i].item()), default=None)


def _copy_expert(model: HMoEVAE, copies: "_Copies", source: int | None, target: int) -> None:
    if source is None:
        return
    here, there = model.plan.leaves[source].place, model.plan.leaves[target].place
    group = model.experts.groups[there.group]
    for parameter in group.parameters():
        copies.row(parameter, here.row, there.row, len(parameter), noise=NOISE if parameter.requires_grad else 0.0)
    for buffer in group.buffers():  # constants of a user's network, which may differ from node to node
        buffer[there.row] = buffer[here.row]


class _Copies:
    """Copies rows of parameters, and what the optimiser knows of them."""

    def __init__(self, optimizer: Optimizer, generator: torch.Generator) -> None:
        self.optimizer = optimizer
        self.generator = generator

    def row(self, parameter: nn.Parameter, source: int, target: int, rows: int, *, noise: float = NOISE) -> None:
        """Copy one of so many equal pieces of a parameter onto another, with noise."""
        pieces = parameter.data.view(rows, -1)
        drawn = torch.randn(pieces.shape[1:], generator=self.generator, device=parameter.device, dtype=parameter.dtype)
        pieces[target] = pieces[source] + noise * pieces[source].std(correction=0) * drawn
        for value in self.optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:  # such as Adam's moments
                moments = value.view(rows, -1)
                moments[target] = moments[source]

"""Routing of samples by a model's gates: to the most probable node of all, or of those that a beam meets."""

from collections.abc import Iterator
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from hmoevae.checks import check_integer
from hmoevae.nn.beam import Met, Seen
from hmoevae.nn.routes import TopK
from hmoevae.plan import PlannedNode
from hmoevae.tree_module import TreeModule


def width_of(model: TreeModule, beam: int | None) -> int | None:
    """The number of gates of a level that run for a sample; `None` for all.

    Args:
        model: The model.
        beam: The argument of `HMoEVAE.predict`.

    Raises:
        ArgumentError: `beam` is no integer > 0.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.Mixture.of(hm.VAE(2), 2), 3), input_shape=(4,))
    >>> width_of(model, 2), width_of(model, 3), width_of(model, None)
    (2, None, None)
    """
    if beam is None:
        return None
    check_integer("beam", beam)
    return model.beam_of(TopK(int(beam)))


def best_node(
    model: TreeModule, x: Float[Tensor, "feature batch"], level: int | None, width: int
) -> Int[Tensor, " batch"]:
    """The most probable node of a level among those that a beam meets, as an index into `model.plan.level(level)`.

    Args:
        model: The model.
        x: Samples, checked.
        level: Depth of the nodes, from 1 on; `None` means the leaves.
        width: Number of gates of a level that run for a sample.

    >>> import torch
    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.Mixture.of(hm.VAE(2), 2), 3), input_shape=(4,))
    >>> best_node(model, torch.rand(4, 5), level=1, width=1).shape
    torch.Size([5])
    """
    index_of = None if level is None else model.beam.index_of(model.plan.level(level))
    return model.beam.best(_follow(model, x, width, stop=level), index_of)


def best_leaf(
    model: TreeModule, x: Float[Tensor, "feature batch"], node: PlannedNode, width: int | None
) -> Int[Tensor, " batch"]:
    """The most probable leaf below a node.

    Args:
        model: The model.
        x: Samples, checked.
        node: The node; a leaf is the one below itself.
        width: Number of gates of a level that run for a sample, from `node` down; `None` for all of the tree.

    >>> import torch
    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.Mixture.of(hm.VAE(2), 2), 3), input_shape=(4,))
    >>> set(best_leaf(model, torch.rand(4, 5), model.plan.node("root/1"), width=1).tolist()) <= {2, 3}
    True
    """
    if width is not None and node.child_edges:
        return model.beam.best(_follow(model, x, width, start=model.plan.edge_mixture[node.child_edges[0]]))
    edge_log_prob = model._edge_log_prob(x)
    edge_log_prob[list(node.edges)] = 0.0  # a large term of the path to `node` would round small differences off
    leaf_log_prob = model.paths.leaf_log_prob(edge_log_prob)
    return node.leaves.start + leaf_log_prob[node.leaves.start : node.leaves.stop].argmax(0)


def _follow(model: TreeModule, x: Float[Tensor, "feature batch"], width: int, **how: Any) -> Iterator[Met]:
    shown = model._shown(x)
    return model.beam.follow(model.gates, Seen(shown, shown, model.plan.depth), width, **how)

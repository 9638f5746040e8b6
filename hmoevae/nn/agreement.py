"""Agreement: how far the gates are from sending two views of a sample to the same node.

Axes: `node` and `mixture` as in `hmoevae.plan`; `batch` is last.
"""

import itertools
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from hmoevae.nn.paths import Paths, logsumexp_by

NodeBatch = Float[Tensor, "node batch"]


def agreement(
    node_log_prob: tuple[NodeBatch, NodeBatch], paths: Paths, levels: Sequence[int]
) -> Float[Tensor, " batch"]:
    """How far the gates are from sending two views v, v' of a sample to the same node of each of `levels`.

    Let r_n be the probability of arriving at mixture n, a weight without gradient, and q(m|n) the probability of
    going on from n to node m. The term of a sample sums over each of `levels` and the one before it (before the first:
    the root)::

        sum_{n of the level before} r_n(v) r_n(v') (-log sum_{m below n, of the level} q(m|n, v) q(m|n, v'))

    -log(...) is the negative log-probability that a draw of m for v equals a draw of m for v'. It is zero where both
    views are certain of the same node. A model that sends all samples to one node has zero agreement loss, so a balance
    has to spread the samples. With all levels, each gate agrees for itself; with the last level alone, all gates on the
    path to a leaf agree together.

    Args:
        node_log_prob: Log-probability of arriving at every node, for each of the two views.
        paths: The plan's tables.
        levels: As in `hmoevae.plan.Plan.level`, from 1 on, ascending.

    >>> import torch
    >>> from hmoevae.plan import compile_tree
    >>> from hmoevae.spec import VAE, Mixture
    >>> paths = Paths(compile_tree(Mixture.of(VAE(), 2)))
    >>> undecided = torch.tensor([[0.5], [0.5]]).log()
    >>> nodes = paths.node_log_prob(undecided)
    >>> agreement((nodes, nodes), paths, levels=[1])  # two tosses of a coin agree half the time: log 2
    tensor([0.6931])
    """
    total = node_log_prob[0].new_zeros(node_log_prob[0].shape[1])
    for upper, lower in itertools.pairwise((0, *levels)):
        tables = paths.between(upper, lower, total.device)
        reach = [by_node.index_select(0, tables.mixtures) for by_node in node_log_prob]
        onward = [
            by_node.index_select(0, tables.below) - above.index_select(0, tables.owner)
            for by_node, above in zip(node_log_prob, reach, strict=True)
        ]
        apart = -logsumexp_by(onward[0] + onward[1], tables.owner, len(tables.mixtures))
        total = total + ((reach[0] + reach[1]).detach().exp() * apart).sum(0)
    return total

"""What the gates did with the samples of an epoch, and the warnings about leaves and gates that do nothing.

Axes: `leaf` and `edge` as in `hmoevae.plan`.
"""

import math
import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hmoevae.errors import ConstantGateWarning, DeadLeafWarning, mismatch
from hmoevae.model import Routing
from hmoevae.nn.paths import Paths
from hmoevae.plan import Plan, PlannedNode

LEAST = 0.01
"""Below this share of what is due a leaf counts as dead and a gate as constant."""


def gate_sums(routing: Routing, paths: Paths) -> Float[Tensor, " two_edges"]:
    """For every edge, summed over a batch: the probability p of arriving at its child, and behind them p log g."""
    log_prob = routing.edge_log_prob.t()
    arriving = paths.child_log_prob(log_prob).exp()
    return torch.cat([arriving.sum(1), (arriving * log_prob).sum(1)])


def information(plan: Plan, sums: Sequence[float]) -> dict[str, float]:
    """For every mixture, the mutual information in nats between the samples that arrive there and the child they go to.

    H(mean of g) - mean of H(g), each sample weighing as much as it arrives: zero for a gate that sends all samples the
    same way or, however evenly, answers all of them alike; the log of the number of children for one that is certain of
    every sample and uses all children evenly.

    Args:
        plan: The compiled tree.
        sums: Of an epoch, laid out as by `gate_sums`.
    """
    arrived, p_log_g = sums[: plan.n_edges], sums[plan.n_edges :]
    result = {}
    for mixture in plan.mixtures:
        total = sum(arrived[edge] for edge in mixture.child_edges)
        nats = 0.0
        for edge in mixture.child_edges:
            if arrived[edge] > 0:
                nats += (p_log_g[edge] - arrived[edge] * math.log(arrived[edge] / total)) / total
        result[mixture.path] = max(nats, 0.0)  # rounding may go below
    return result


def is_dead(node: PlannedNode, share: float, plan: Plan) -> bool:
    """Whether `share` of the samples, in probability, is next to nothing for the leaves below `node`."""
    return share < LEAST * len(node.leaves) / plan.n_leaves


def warn_of_collapse(plan: Plan, row: dict[str, int | float]) -> None:
    """Name the leaves that an epoch left without samples, and the gates that did not look at theirs.

    Args:
        plan: The compiled tree.
        row: The epoch's row of the history.
    """
    usage = [row[f"usage/{leaf.path}"] for leaf in plan.leaves]
    dead = [
        f"{leaf.path} ({share:.1e})"
        for leaf, share in zip(plan.leaves, usage, strict=True)
        if is_dead(leaf, share, plan)
    ]
    if dead:
        expected = f"a share of at least {LEAST / plan.n_leaves:.1e} of the samples for every leaf in the last epoch"
        warnings.warn(mismatch("usage", expected, f"less for {', '.join(dead)}"), DeadLeafWarning, stacklevel=3)
    constant = []
    for mixture in plan.mixtures:
        reached = not is_dead(mixture, sum(usage[mixture.leaves.start : mixture.leaves.stop]), plan)
        nats = row[f"information/{mixture.path}"]
        if reached and nats < LEAST * math.log(len(mixture.spec.children)):
            constant.append(f"{mixture.path} ({nats:.1e} nats)")
    if constant:
        expected = f"every gate to tell samples apart, by {LEAST} log(children) nats or more in the last epoch"
        got = f"next to the same answer to all samples from {', '.join(constant)}"
        got += "; more epochs may help, or init or agreement of fit"
        warnings.warn(mismatch("information", expected, got), ConstantGateWarning, stacklevel=3)

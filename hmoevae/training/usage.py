"""Usage of the leaves and information of the gates in an epoch, and the warnings about dead leaves and constant gates.

Axes: `leaf` and `edge` as in `hmoevae.plan`.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import compress

import torch
from jaxtyping import Float
from torch import Tensor

from hmoevae.errors import ConstantGateWarning, DeadLeafWarning, StartWarning, mismatch, warn
from hmoevae.nn.paths import Paths
from hmoevae.output import Routing
from hmoevae.plan import Plan, PlannedNode

LEAST = 0.01
"""A leaf is dead below this fraction of an even share, a gate is constant below this fraction of log(children)."""
LEARNED = 0.5
"""Gates have learned a start when less than this fraction is left of the nats that a constant gate would lack."""
LISTED = 10
"""Number of leaves or gates that a warning names."""


def gate_sums(
    routing: Routing, paths: Paths, weight: Float[Tensor, " batch"] | None = None
) -> Float[Tensor, " two_edges"]:
    """Weighted sums over a batch for every edge: first the probability p of arriving at its child, then p log g."""
    log_prob = routing.edge_log_prob.t()
    arriving = paths.child_log_prob(log_prob).exp()
    if weight is not None:
        arriving = arriving * weight
    return torch.cat([arriving.sum(1), (arriving * log_prob).sum(1)])


def information(plan: Plan, sums: Sequence[float]) -> dict[str, float]:
    """For every mixture, the mutual information in nats between the samples that arrive there and the child they go to.

    It is H(mean of g) - mean of H(g), where each sample is weighted by its probability of arriving. It is zero for a
    gate that gives all samples the same probabilities, and the log of the number of children for a gate that is certain
    of every sample and uses all children evenly.

    Args:
        plan: The compiled tree.
        sums: The sums of `gate_sums` over an epoch.
    """
    arrived, p_log_g = sums[: plan.n_edges], sums[plan.n_edges :]
    result = {}
    for mixture in plan.mixtures:
        total = sum(arrived[edge] for edge in mixture.child_edges)
        nats = 0.0
        for edge in mixture.child_edges:
            if arrived[edge] > 0:
                nats += (p_log_g[edge] - arrived[edge] * math.log(arrived[edge] / total)) / total
        result[mixture.path] = max(nats, 0.0)  # rounding may make it negative
    return result


def is_dead(node: PlannedNode, share: float, plan: Plan) -> bool:
    """Whether the probability `share` is below a hundredth of an even share for the leaves below `node`."""
    return share < LEAST * len(node.leaves) / plan.n_leaves


def warn_after_fit(plan: Plan, row: dict[str, int | float], chosen: Sequence[float]) -> None:
    """Call `warn_of_collapse` at the end of `fit`.

    The warning names a constant gate, and does not name the leaves below it that are no sample's most probable leaf.
    """
    constant = {edge for mixture in constant_gates(plan, row) for edge in mixture.child_edges}
    leaves = zip(plan.leaves, chosen, strict=False)
    warn_of_collapse(plan, row, [math.inf if constant.intersection(leaf.edges) else n for leaf, n in leaves])


def warn_of_start(plan: Plan, row: dict[str, int | float]) -> None:
    """Warn if the gates have hardly learned the start, which what comes after it then cannot keep.

    Args:
        plan: The compiled tree.
        row: The row of the history of the last epoch of the start.
    """
    usage = [row[f"usage/{leaf.path}"] for leaf in plan.leaves]
    constant = -sum(share * math.log(share) for share in usage if share > 0)
    left = row["start_gate"]
    if left > LEARNED * constant:
        expected = "enough epochs for the gates to learn the start"
        got = f"{row['epoch']}, in the last of which they lacked {left:.2f} nats of it, where a constant gate lacks "
        got += f"{constant:.2f}: the start is lost; raise init_epochs, or take more steps by a smaller batch_size"
        warn(mismatch("Training.init_epochs", expected, got), StartWarning)


def constant_gates(plan: Plan, row: dict[str, int | float]) -> list[PlannedNode]:
    """The mixtures that samples reach and whose gate gave all of them nearly the same probabilities.

    EM, whose gates learn nothing, does not measure them.
    """
    usage = [row[f"usage/{leaf.path}"] for leaf in plan.leaves]
    return [
        mixture
        for mixture in plan.mixtures
        if not is_dead(mixture, sum(usage[mixture.leaves.start : mixture.leaves.stop]), plan)
        and row.get(f"information/{mixture.path}", math.inf) < LEAST * math.log(len(mixture.spec.children))
    ]


def warn_of_collapse(plan: Plan, row: dict[str, int | float], chosen: Sequence[float]) -> None:
    """Warn of dead leaves, of leaves that are no sample's most probable leaf, and of constant gates.

    Args:
        plan: The compiled tree.
        row: The epoch's row of the history.
        chosen: For every leaf, the number or the share of samples whose most probable leaf it is; empty if unknown.
    """
    usage = [row[f"usage/{leaf.path}"] for leaf in plan.leaves]
    dead = [is_dead(leaf, share, plan) for leaf, share in zip(plan.leaves, usage, strict=True)]
    shares = [f"{leaf.path} ({share:.1e})" for leaf, share in zip(plan.leaves, usage, strict=True)]
    if any(dead):
        expected = f"a share of at least {LEAST / plan.n_leaves:.1e} of the samples for every leaf in the last epoch"
        warn(mismatch("usage", expected, f"less for {_listed(compress(shares, dead))}"), DeadLeafWarning)
    empty = [n == 0 and not is_dead for n, is_dead in zip(chosen, dead, strict=False)]
    if any(empty):
        expected = "every leaf to be the most probable one of some samples"
        got = f"none for {_listed(compress(shares, empty))}, in brackets its share in probability"
        warn(mismatch("usage", expected, got), DeadLeafWarning)
    constant = [
        f"{mixture.path} ({row[f'information/{mixture.path}']:.1e} nats)" for mixture in constant_gates(plan, row)
    ]
    if constant:
        expected = f"every gate to tell samples apart: at least {LEAST} log(children) nats in the last epoch"
        got = f"nearly the same probabilities for all samples from {_listed(constant)}"
        got += "; more epochs may help, or Training's init or agreement, or a gate without relu, whose units can die"
        warn(mismatch("information", expected, got), ConstantGateWarning)


def _listed(names: Iterable[str]) -> str:
    """The first names, and the number of the others."""
    first = list(names)
    return ", ".join(first[:LISTED]) + (f" and {len(first) - LISTED} more" if len(first) > LISTED else "")

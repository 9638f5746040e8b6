"""What the gates did with the samples of an epoch, and the warnings about leaves and gates that do nothing.

Axes: `leaf` and `edge` as in `hmoevae.plan`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import compress

import torch
from jaxtyping import Float
from torch import Tensor

from hmoevae.errors import ConstantGateWarning, DeadLeafWarning, mismatch, warn
from hmoevae.nn.paths import Paths
from hmoevae.output import Routing
from hmoevae.plan import Plan, PlannedNode

LEAST = 0.01
"""Below this share of what is due a leaf counts as dead and a gate as constant."""
LISTED = 10
"""How many leaves or gates a warning names."""


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


@contextmanager
def left_to_the_caller() -> Iterator[None]:
    """Inside, `fit` does not warn of collapse: of several trainings only the one that is kept is worth a warning."""
    token = _IS_LEFT_TO_THE_CALLER.set(True)
    try:
        yield
    finally:
        _IS_LEFT_TO_THE_CALLER.reset(token)


def warn_after_fit(plan: Plan, row: dict[str, int | float], chosen: Sequence[float]) -> None:
    """What `fit` does in the end: `warn_of_collapse`, unless that is `left_to_the_caller`.

    A leaf below a gate that is constant need not be named: the gate is.
    """
    if not _IS_LEFT_TO_THE_CALLER.get():
        constant = {edge for mixture in constant_gates(plan, row) for edge in mixture.child_edges}
        leaves = zip(plan.leaves, chosen, strict=False)
        warn_of_collapse(plan, row, [math.inf if constant.intersection(leaf.edges) else n for leaf, n in leaves])


def constant_gates(plan: Plan, row: dict[str, int | float]) -> list[PlannedNode]:
    """The mixtures that samples reach and that an epoch's row shows to answer all of them alike."""
    usage = [row[f"usage/{leaf.path}"] for leaf in plan.leaves]
    return [
        mixture
        for mixture in plan.mixtures
        if not is_dead(mixture, sum(usage[mixture.leaves.start : mixture.leaves.stop]), plan)
        and row[f"information/{mixture.path}"] < LEAST * math.log(len(mixture.spec.children))
    ]


def warn_of_collapse(plan: Plan, row: dict[str, int | float], chosen: Sequence[float]) -> None:
    """Name the leaves that an epoch left without samples, and the gates that did not look at theirs.

    Args:
        plan: The compiled tree.
        row: The epoch's row of the history.
        chosen: Of how many samples, or which share of them, every leaf is the most probable one; empty if not known.
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
        expected = f"every gate to tell samples apart, by {LEAST} log(children) nats or more in the last epoch"
        got = f"next to the same answer to all samples from {_listed(constant)}"
        got += "; more epochs may help, init or agreement of fit, or a gate without relu, whose units can die"
        warn(mismatch("information", expected, got), ConstantGateWarning)


def _listed(names: Iterable[str]) -> str:
    """The first ones; of a thousand leaves nobody reads all."""
    first = list(names)
    return ", ".join(first[:LISTED]) + (f" and {len(first) - LISTED} more" if len(first) > LISTED else "")


_IS_LEFT_TO_THE_CALLER: ContextVar[bool] = ContextVar("is_left_to_the_caller", default=False)

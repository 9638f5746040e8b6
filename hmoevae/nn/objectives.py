"""What training minimises: pure functions of ELBOs, leaf probabilities and priors that know no network.

Axes: `leaf`, `edge` and `mixture` as in `hmoevae.plan`; `batch` is last. Everything is in nats, means over the batch.
With q(l|x) the gates' leaf probabilities and pi the prior::

    expected   mean_x  sum_l q(l|x) (-ELBO_l(x))                            Jacobs et al. 1991, equation 1.2
    elbo       mean_x -sum_l q(l|x) (ELBO_l(x) + log pi_l - log q(l|x))     the gate is the recognition model of l
    marginal   mean_x -logsumexp_l (log pi_l + ELBO_l(x))                   EM (Jordan & Jacobs 1994), and the gate is
                                                                            fitted to the responsibilities

ELBOs are estimated from one draw of z. In those of `marginal` the KL is that of the draw, log q(z|x) - log p(z), so
that exp ELBO_l(x) is p_l(x) in the mean, and the negative of the term, in the mean, no more than log p(x). With the KL
in closed form, which varies less, it would exceed that wherever several leaves could have made a sample.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from hmoevae.nn.paths import Paths, logsumexp_by

LeafBatch = Float[Tensor, "leaf batch"]
NodeBatch = Float[Tensor, "node batch"]
Scalar = Float[Tensor, ""]
ObjectiveName = Literal["expected", "elbo", "marginal"]


def expected(
    leaf_elbo: LeafBatch,
    leaf_log_prob: LeafBatch,
    log_prior: Float[Tensor, " leaf"],  # noqa: ARG001
) -> dict[str, Scalar]:
    """The experts' loss as the gates weigh it; the prior plays no part.

    >>> expected(torch.tensor([[-1.0], [-3.0]]), torch.tensor([[0.5], [0.5]]).log(), torch.zeros(2))
    {'expected': tensor(2.)}
    """
    return {"expected": -(leaf_log_prob.exp() * leaf_elbo).sum(0).mean()}


def elbo(leaf_elbo: LeafBatch, leaf_log_prob: LeafBatch, log_prior: Float[Tensor, " leaf"]) -> dict[str, Scalar]:
    """The negative of a lower bound on log p(x), p(x) = sum_l pi_l p_l(x).

    >>> even = torch.tensor([[0.5], [0.5]]).log()
    >>> elbo(torch.tensor([[-1.0], [-3.0]]), even, even[:, 0])  # gate and prior agree, so their divergence is nothing
    {'elbo': tensor(2.)}
    """
    bound = leaf_log_prob.exp() * (leaf_elbo + log_prior.unsqueeze(1) - leaf_log_prob)
    return {"elbo": -bound.sum(0).mean()}


def marginal(leaf_elbo: LeafBatch, leaf_log_prob: LeafBatch, log_prior: Float[Tensor, " leaf"]) -> dict[str, Scalar]:
    """The negative of a lower bound with the leaf summed out, and what fits the gates to its responsibilities.

    >>> even = torch.tensor([[0.5], [0.5]]).log()
    >>> marginal(torch.tensor([[-1.0], [-1.0]]), even, even[:, 0])
    {'marginal': tensor(1.), 'distillation': tensor(0.6931)}
    """
    joint = leaf_elbo + log_prior.unsqueeze(1)
    responsibility = joint.detach().softmax(0)
    return {
        "marginal": -joint.logsumexp(0).mean(),
        "distillation": -(responsibility * leaf_log_prob).sum(0).mean(),
    }


OBJECTIVES: dict[ObjectiveName, Callable[[LeafBatch, LeafBatch, Float[Tensor, " leaf"]], dict[str, Scalar]]] = {
    "expected": expected,
    "elbo": elbo,
    "marginal": marginal,
}
assert set(OBJECTIVES) == set(get_args(ObjectiveName))
BY_WEIGHT: frozenset[ObjectiveName] = frozenset({"marginal"})
"""Those that ask for log p(x, z) - log q(z|x) as the estimate of the ELBO, being no mean of ELBOs."""


def agreement(node_log_prob: tuple[NodeBatch, NodeBatch], paths: Paths, levels: Sequence[int]) -> Scalar:
    """How far the gates are from sending two views v, v' of a sample to the same node of each of `levels`.

    With r_n the probability of arriving at mixture n, a weight through which no gradient flows, and q(m|n) that of
    going on from there to node m, the sum over pairs of one of `levels` and the one before it, at first the root::

        mean_x sum_{n of the level before} r_n(v) r_n(v') (-log sum_{m below n, of the level} q(m|n, v) q(m|n, v'))

    Each term is the negative log-probability that draws of m for v and for v' are the same. It is zero where both are
    certain of one node, so alone it is content with a single node for all: a balance has to hold the usage. Over all
    levels every gate agrees by itself; over the last level alone all gates on the way to a leaf agree together.

    Args:
        node_log_prob: Log of the probability of arriving at every node, for the one and for the other view.
        paths: The plan's tables.
        levels: As in `hmoevae.plan.Plan.level`, from 1 on, ascending.

    >>> from hmoevae.plan import compile_tree
    >>> from hmoevae.spec import VAE, Mixture
    >>> paths = Paths(compile_tree(Mixture.of(VAE(), 2)))
    >>> undecided = torch.tensor([[0.5], [0.5]]).log()
    >>> nodes = paths.node_log_prob(undecided)
    >>> agreement((nodes, nodes), paths, levels=[1])  # two tosses of a coin agree half the time: log 2
    tensor(0.6931)
    """
    total = node_log_prob[0].new_zeros(())
    for upper, lower in itertools.pairwise((0, *levels)):
        tables = paths.between(upper, lower)
        reach = [by_node.index_select(0, tables.mixtures) for by_node in node_log_prob]
        onward = [
            by_node.index_select(0, tables.below) - above.index_select(0, tables.owner)
            for by_node, above in zip(node_log_prob, reach, strict=True)
        ]
        apart = -logsumexp_by(onward[0] + onward[1], tables.owner, len(tables.mixtures))
        total = total + ((reach[0] + reach[1]).detach().exp() * apart).sum(0).mean()
    return total


def balance(importance: Float[Tensor, " edge"], log_prior: Float[Tensor, " edge"], paths: Paths) -> Scalar:
    """The weighted balance terms of all mixtures, each by the kind that its `Balance` names.

    With I_c the importance of child c (the sum over the batch of the probability of arriving there), Mean and Var over
    the C children of one mixture, u_c = I_c / sum_c I_c and pi_c the prior::

        variance   Var(I)                       the article; grows with the square of the batch size
        cv2        Var(I) / Mean(I)^2           Shazeer et al. 2017, equation 7
        kl         sum_c u_c log(u_c / pi_c)

    A mixture that no sample of the batch reaches contributes nothing.

    Args:
        importance: Importance of every child; in data-parallel training, that of the global batch.
        log_prior: Log prior of every child among its siblings.
        paths: The plan's tables, with the weight of each kind at each mixture.

    >>> from hmoevae.plan import compile_tree
    >>> from hmoevae.spec import VAE, Balance, Mixture
    >>> paths = Paths(compile_tree(Mixture.of(VAE(), 2, balance=Balance("kl", weight=1.0))))
    >>> one_takes_all, even = torch.tensor([8.0, 0.0]), torch.tensor([4.0, 4.0])
    >>> balance(one_takes_all, paths.edge_log_prior(), paths), balance(even, paths.edge_log_prior(), paths)
    (tensor(0.6931), tensor(0.))
    """
    # Below the floor squares and quotients leave the dtype's range; divided by infinity, value and gradient are zero.
    floor = torch.finfo(importance.dtype).tiny ** 0.5
    mixture = paths.edge_mixture
    total = paths.sum_children(importance)
    apart = importance - (total / paths.n_children).index_select(0, mixture)
    terms = []
    # Products and sums, not `@`, which autocast would compute in bfloat16.
    if "variance" in paths.balance_kinds:
        terms.append((paths.weight_variance * apart.square()).sum())
    if paths.balance_kinds & {"cv2", "kl"}:
        divisor = torch.where(total > floor, total, torch.inf).index_select(0, mixture)
        usage = importance / divisor
        terms.append((paths.weight_cv2 * (apart / divisor).square()).sum())
        terms.append((paths.weight_kl * usage * (usage.clamp_min(floor).log() - log_prior)).sum())
    return sum(terms[1:], terms[0]) if terms else importance.new_zeros(())

"""What training minimises: pure functions of ELBOs, leaf probabilities and priors that know no network.

Axes: `slot` counts the leaves that are computed for a sample, all of them or some; `batch` is last. Everything is in
nats, means over the batch. With q(l|x) the gates' leaf probabilities and pi the prior::

    expected   mean_x  sum_l q(l|x) (-ELBO_l(x))                            Jacobs et al. 1991, equation 1.2
    elbo       mean_x -sum_l q(l|x) (ELBO_l(x) + log pi_l - log q(l|x))     the gate is the recognition model of l
    marginal   mean_x -logsumexp_l (log pi_l + ELBO_l(x))                   EM (Jordan & Jacobs 1994), and the gate is
                                                                            fitted to the responsibilities

ELBOs are estimated from one draw of z. In those of `marginal` the KL is that of the draw, log q(z|x) - log p(z), so
that exp ELBO_l(x) is p_l(x) in the mean, and the negative of the term, in the mean, no more than log p(x). With the KL
in closed form, which varies less, it would exceed that wherever several leaves could have made a sample.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from hmoevae.errors import ArgumentError, mismatch
from hmoevae.spec.record import origin_of

SlotBatch = Float[Tensor, "slot batch"]
LogPrior = Float[Tensor, "slot #batch"]
Terms = dict[str, Float[Tensor, ""]]
Function = Callable[[SlotBatch, SlotBatch, LogPrior], Terms]


@dataclass(frozen=True, slots=True)
class Objective:
    """What `HMoEVAE(objective=...)` names.

    Attributes:
        terms: From ELBOs, leaf probabilities and priors to the terms of the loss by name.
        by_weight: Whether it asks for log p(x, z) - log q(z|x) as the estimate of the ELBO, being no mean of ELBOs.

    >>> OBJECTIVES["elbo"] == Objective(negative_elbo, by_weight=False)
    True
    """

    terms: Function
    by_weight: bool

    def modules(self, name: str) -> dict[str, str]:
        """As of `hmoevae.spec.record.modules_of`: which module registered it, where that is none of the package."""
        module, _ = origin_of(self.terms)
        return {} if module.partition(".")[0] == "hmoevae" else {name: module}


OBJECTIVES: dict[str, Objective] = {}
"""All of them by name, in the order in which they were registered."""


def objective(name: str, *, by_weight: bool = False) -> Callable[[Function], Function]:
    """Register a function as an objective.

    It is given, for every slot and sample: an estimate of the ELBO, from one draw of z; log q(l|x) of the gates, which
    sums to one over the slots; and log pi_l. A slot is a leaf or, where a pass computes some leaves only, one of those.

    Args:
        name: What `HMoEVAE(objective=...)` calls it; a saved model names it too.
        by_weight: As of `Objective`.

    Raises:
        ArgumentError: Another function has that name.

    >>> @objective("hard")
    ... def hard(elbo, log_prob, log_prior):
    ...     return {"hard": -elbo.amax(0).mean()}
    >>> "hard" in OBJECTIVES
    True
    >>> del OBJECTIVES["hard"]
    """

    def decorate(terms: Function) -> Function:
        before = OBJECTIVES.get(name)
        if before is not None and origin_of(before.terms) != origin_of(terms):
            there = ".".join(origin_of(before.terms))
            raise ArgumentError(mismatch("objective", f"a name that is free ({name!r} is {there})", repr(name)))
        OBJECTIVES[name] = Objective(terms, by_weight)
        return terms

    return decorate


def find_objective(name: object) -> Objective:
    """The objective of a name.

    Raises:
        ArgumentError: None is registered under it.

    >>> find_objective("marginal").by_weight
    True
    """
    if not isinstance(name, str) or name not in OBJECTIVES:
        known = f"one of {', '.join(map(repr, OBJECTIVES))} (import the module that registers another)"
        raise ArgumentError(mismatch("objective", known, repr(name)))
    return OBJECTIVES[name]


@objective("expected")
def expected(elbo: SlotBatch, log_prob: SlotBatch, log_prior: LogPrior) -> Terms:  # noqa: ARG001
    """The experts' loss as the gates weigh it; the prior plays no part.

    >>> import torch
    >>> expected(torch.tensor([[-1.0], [-3.0]]), torch.tensor([[0.5], [0.5]]).log(), torch.zeros(2, 1))
    {'expected': tensor(2.)}
    """
    return {"expected": -(log_prob.exp() * elbo).sum(0).mean()}


@objective("elbo")
def negative_elbo(elbo: SlotBatch, log_prob: SlotBatch, log_prior: LogPrior) -> Terms:
    """The negative of a lower bound on log p(x), p(x) = sum_l pi_l p_l(x).

    >>> import torch
    >>> even = torch.tensor([[0.5], [0.5]]).log()
    >>> negative_elbo(torch.tensor([[-1.0], [-3.0]]), even, even)  # the gate agrees with the prior
    {'elbo': tensor(2.)}
    """
    bound = log_prob.exp() * (elbo + log_prior - log_prob)
    return {"elbo": -bound.sum(0).mean()}


@objective("marginal", by_weight=True)
def marginal(elbo: SlotBatch, log_prob: SlotBatch, log_prior: LogPrior) -> Terms:
    """The negative of a lower bound with the leaf summed out, and what fits the gates to its responsibilities.

    >>> import torch
    >>> even = torch.tensor([[0.5], [0.5]]).log()
    >>> marginal(torch.tensor([[-1.0], [-1.0]]), even, even)
    {'marginal': tensor(1.), 'distillation': tensor(0.6931)}
    """
    joint = elbo + log_prior
    responsibility = joint.detach().softmax(0)
    return {
        "marginal": -joint.logsumexp(0).mean(),
        "distillation": -(responsibility * log_prob).sum(0).mean(),
    }

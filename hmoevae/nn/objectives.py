"""Objectives, which training minimises: pure functions of ELBOs, leaf probabilities and priors.

Axes: `slot` counts the leaves that are computed for a sample, all of them or some; `batch` is last. All terms are means
over the batch, in nats. q(l|x) are the gates' leaf probabilities and pi is the prior::

    expected   mean_x  sum_l q(l|x) (-ELBO_l(x))                            Jacobs et al. 1991, equation 1.2
    elbo       mean_x -sum_l q(l|x) (ELBO_l(x) + log pi_l - log q(l|x))     the gate is the recognition model of l
    marginal   mean_x -logsumexp_l (log pi_l + ELBO_l(x))                   EM (Jordan & Jacobs 1994), and the gate is
                                                                            fitted to the responsibilities

ELBOs are estimated from one draw of z. `marginal` takes log p(x, z) - log q(z|x) as ELBO_l(x): the expectation of
exp ELBO_l(x) over draws is p_l(x), so the expectation of the negative term is at most log p(x). With the KL in closed
form, which has less variance, the negative term would exceed log p(x) wherever several leaves explain a sample.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from hmoevae.errors import ArgumentError, mismatch
from hmoevae.spec.record import check_kind, origin_of

SlotBatch = Float[Tensor, "slot batch"]
LogPrior = Float[Tensor, "slot #batch"]
Terms = dict[str, Float[Tensor, ""]]
Function = Callable[[SlotBatch, SlotBatch, LogPrior], Terms]


@dataclass(frozen=True, slots=True)
class Objective:
    """What `HMoEVAE(objective=...)` names.

    Attributes:
        terms: From ELBOs, leaf probabilities and priors to the terms of the loss by name.
        by_weight: Whether the ELBO is estimated by log p(x, z) - log q(z|x) instead of with the KL in closed form. An
            objective that takes the exponential of ELBOs needs it.

    >>> OBJECTIVES["elbo"] == Objective(negative_elbo, by_weight=False)
    True
    """

    terms: Function
    by_weight: bool

    def modules(self, name: str) -> dict[str, str]:
        """As of `hmoevae.spec.record.modules_of`: which module registered it, where that is none of the package."""
        module, _ = origin_of(self.terms)
        return {} if module.partition(".")[0] == "hmoevae" else {name: module}

    def terms_of(self, name: str, elbo: SlotBatch, log_prob: SlotBatch, log_prior: LogPrior) -> Terms:
        """The terms, checked.

        Args:
            name: The name of this objective.
            elbo: As in `objective`, like the next two.
            log_prob: The gates' log q(l|x).
            log_prior: The log-prior.

        Raises:
            ArgumentError: They are no scalar tensors by name, none has the objective's own name, by which epochs are
                compared, or one has the name of something else.

        >>> import torch
        >>> wrong = Objective(lambda elbo, log_prob, log_prior: {"loss": elbo.mean()}, by_weight=False)
        >>> wrong.terms_of("mine", *3 * [torch.zeros(2, 1)])
        Traceback (most recent call last):
        ...
        hmoevae.errors.ArgumentError: objective 'mine': expected no term of this name, which is taken, got 'loss'
        """
        terms = self.terms(elbo, log_prob, log_prior)
        argument = f"objective {name!r}"
        if not isinstance(terms, dict):
            raise ArgumentError(mismatch(argument, "a dictionary of terms", type(terms).__name__))
        for term, value in terms.items():
            if not isinstance(value, Tensor) or value.ndim > 0:
                got = f"{tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.200}"
                raise ArgumentError(
                    mismatch(argument, f"a tensor of shape (), the mean over the batch, as {term!r}", got)
                )
            if term in TAKEN or "/" in term or (term in OBJECTIVES and term != name):
                raise ArgumentError(mismatch(argument, "no term of this name, which is taken", repr(term)))
        if name not in terms:
            expected = f"a term {name!r}, by which epochs are compared"
            raise ArgumentError(mismatch(argument, expected, ", ".join(map(repr, terms)) or "no term"))
        return terms


TAKEN = frozenset({"loss", "balance", "agreement", "start_gate", "start_expert", "epoch", "seconds", "revived"})
"""Names of other terms, and of other columns of the history."""

OBJECTIVES: dict[str, Objective] = {}
"""All registered objectives by name, in the order of their registration."""


def objective(name: str, *, by_weight: bool = False) -> Callable[[Function], Function]:
    """Register a function as an objective.

    The function takes, for every slot and sample: an estimate of the ELBO from one draw of z; the gates' log q(l|x),
    whose exponential sums to one over the slots; and log pi_l. A slot stands for a leaf: for every leaf of the tree or,
    where a pass computes some leaves only, for one of those.

    Args:
        name: Its name in `HMoEVAE(objective=...)` and in saved models.
        by_weight: As in `Objective`.

    Raises:
        ArgumentError: Another function has that name.
        SpecError: `name` is no name.

    >>> @objective("hard")
    ... def hard(elbo, log_prob, log_prior):
    ...     return {"hard": -elbo.amax(0).mean()}
    >>> "hard" in OBJECTIVES
    True
    >>> del OBJECTIVES["hard"]
    """
    check_kind(name, "objective(...)")

    def decorate(terms: Function) -> Function:
        before = OBJECTIVES.get(name)
        if before is not None and origin_of(before.terms) != origin_of(terms):
            there = ".".join(origin_of(before.terms))
            raise ArgumentError(mismatch("objective", f"a name that is free ({name!r} is {there})", repr(name)))
        OBJECTIVES[name] = Objective(terms, by_weight)
        return terms

    return decorate


def find_objective(name: object) -> Objective:
    """The objective of that name.

    Raises:
        ArgumentError: No objective of that name is registered.

    >>> find_objective("marginal").by_weight
    True
    """
    if not isinstance(name, str) or name not in OBJECTIVES:
        known = f"one of {', '.join(map(repr, OBJECTIVES))} (import the module that registers another)"
        raise ArgumentError(mismatch("objective", known, repr(name)))
    return OBJECTIVES[name]


@objective("expected")
def expected(elbo: SlotBatch, log_prob: SlotBatch, log_prior: LogPrior) -> Terms:  # noqa: ARG001
    """The mean loss of the experts, weighted by the gates. The prior is not used.

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
    """The negative of a lower bound with the leaf summed out, and a term that fits the gates to the responsibilities.

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

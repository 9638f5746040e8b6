"""Objectives, which training minimises: pure functions of ELBOs, leaf probabilities and priors.

Axes: `slot` counts the leaves that are computed for a sample, all of them or some; `batch` is last. A term has a value
in nats for each sample, and the loss is their mean over the batch. q(l|x) are the gates' leaf probabilities and pi is
the prior::

    expected    sum_l q(l|x) (-ELBO_l(x))                            Jacobs et al. 1991, equation 1.2
    elbo       -sum_l q(l|x) (ELBO_l(x) + log pi_l - log q(l|x))     the gate is the recognition model of l
    marginal   -logsumexp_l (log pi_l + ELBO_l(x))                   EM (Jordan & Jacobs 1994), and the gate is fitted
                                                                     to the responsibilities

ELBOs are estimated from one draw of z. `marginal` takes log p(x, z) - log q(z|x) as ELBO_l(x): the expectation of
exp ELBO_l(x) over draws is p_l(x), so the expectation of the negative term is at most log p(x). With the KL in closed
form, which has less variance, the negative term would exceed log p(x) wherever several leaves explain a sample.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hmoevae.errors import ArgumentError, mismatch
from hmoevae.nn.draws import borrowed_random_state
from hmoevae.spec.record import check_name, origin_of

SlotBatch = Float[Tensor, "slot batch"]
LogPrior = Float[Tensor, "slot #batch"]
Terms = dict[str, Float[Tensor, " batch"]]
Function = Callable[[SlotBatch, SlotBatch, LogPrior], Terms]


@dataclass(frozen=True, slots=True)
class Objective:
    """What `HMoEVAE(objective=...)` names.

    Attributes:
        terms: From ELBOs, leaf probabilities and priors to the terms of the loss by name, a value for each sample.
        by_weight: Whether the ELBO is estimated by log p(x, z) - log q(z|x) instead of with the KL in closed form. An
            objective that takes the exponential of ELBOs needs it.
        names: The names of the terms.

    >>> OBJECTIVES["elbo"] == Objective(negative_elbo, by_weight=False, names=("elbo",))
    True
    """

    terms: Function
    by_weight: bool
    names: tuple[str, ...]

    def modules(self, name: str) -> dict[str, str]:
        """As of `hmoevae.spec.record.modules_of`: which module registered it, where that is none of the package."""
        module, _ = origin_of(self.terms)
        return {} if module.partition(".")[0] == "hmoevae" else {name: module}


OBJECTIVES: dict[str, Objective] = {}
"""All registered objectives by name, in the order of their registration."""
_COLUMNS = frozenset(
    {"loss", "balance", "agreement", "start_gate", "start_expert", "epoch", "seconds", "phase", "revived"}
)
"""Names of other terms of the loss and of other columns of a history."""
_COLUMNS_BEGIN = "val_", "usage/", "information/"


def objective(name: str, *, by_weight: bool = False) -> Callable[[Function], Function]:
    """Register a function as an objective.

    The function takes, for every slot and sample: an estimate of the ELBO from one draw of z; the gates' log q(l|x),
    whose exponential sums to one over the slots; and log pi_l. A slot stands for a leaf: for every leaf of the tree or,
    where a pass computes some leaves only, for one of those.

    It returns the terms of the loss by name, each a tensor `(batch,)` with a value for every sample, of which the model
    takes the mean. One of them has the name of the objective: early stopping, `best_of` and the best checkpoint compare
    models by that term. To check this, the function is called once.

    Args:
        name: Its name in `HMoEVAE(objective=...)` and in saved models.
        by_weight: As in `Objective`.

    Raises:
        ArgumentError: Another function has that name, the function returns no such terms, or the name of a term is that
            of another objective's term or of another column of a history.
        ArgumentTypeError: The name is no string, as in `@objective` without a call.

    >>> @objective("hard")
    ... def hard(elbo, log_prob, log_prior):
    ...     return {"hard": -elbo.amax(0)}
    >>> "hard" in OBJECTIVES
    True
    >>> del OBJECTIVES["hard"]
    """
    check_name("name", name, 'objective("mine")')

    def decorate(terms: Function) -> Function:
        before = OBJECTIVES.get(name)
        if before is not None and origin_of(before.terms) != origin_of(terms):
            there = ".".join(origin_of(before.terms))
            raise ArgumentError(mismatch("objective", f"a name that is free ({name!r} is {there})", repr(name)))
        OBJECTIVES[name] = Objective(terms, by_weight, _names_of(name, terms))
        return terms

    return decorate


def _names_of(objective: str, terms: Function) -> tuple[str, ...]:
    """The names of an objective's terms, which are checked, for two slots and three samples."""
    where, even = f"objective {objective!r}", torch.full((2, 3), 0.5, device="cpu").log()
    values = "a dict of tensors (batch,), a value for each sample"
    try:
        with torch.no_grad(), borrowed_random_state():
            found: object = terms(torch.zeros(2, 3, device="cpu"), even, even[:, :1])
    except Exception as error:  # whatever the function of a user raises
        expected = "a function of ELBOs (slot, batch), log-probabilities and log-priors"
        raise ArgumentError(mismatch(where, expected, f"{type(error).__name__}: {error}")) from error
    if not isinstance(found, dict):
        raise ArgumentError(mismatch(where, values, type(found).__name__))
    taken = {term: name for name, other in OBJECTIVES.items() if name != objective for term in other.names}
    for name, term in found.items():
        if not isinstance(name, str):
            raise ArgumentError(mismatch(where, "a dict of tensors by name", f"the name {name!r}"))
        if not isinstance(term, Tensor) or term.shape != (3,) or not term.is_floating_point():
            got = f"{term.dtype} of shape {tuple(term.shape)}" if isinstance(term, Tensor) else type(term).__name__
            raise ArgumentError(mismatch(where, values, f"{{{name!r}: {got}}} for a batch of 3"))
        if name in taken or name in _COLUMNS or name.startswith(_COLUMNS_BEGIN):
            of = f" (of {taken[name]!r})" if name in taken else ""
            raise ArgumentError(mismatch(where, "names of terms that are free", f"{name!r}{of}"))
    if objective not in found:
        expected = f"a term {objective!r}, by which early stopping compares models"
        raise ArgumentError(mismatch(where, expected, ", ".join(map(repr, found)) or "none"))
    return tuple(found)


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


def measured_for(name: str) -> list[Objective]:
    """The objectives that `evaluate` computes for a model of one objective: those of the package, and its own.

    Others are not computed, so that the terms do not depend on which modules have been imported.

    >>> sum((objective.names for objective in measured_for("marginal")), ())
    ('expected', 'elbo', 'marginal', 'distillation')
    """
    return [OBJECTIVES[each] for each in dict.fromkeys((*_OURS, name))]


@objective("expected")
def expected(elbo: SlotBatch, log_prob: SlotBatch, log_prior: LogPrior) -> Terms:  # noqa: ARG001
    """The loss of the experts, weighted by the gates. The prior is not used.

    >>> import torch
    >>> expected(torch.tensor([[-1.0], [-3.0]]), torch.tensor([[0.5], [0.5]]).log(), torch.zeros(2, 1))
    {'expected': tensor([2.])}
    """
    return {"expected": -(log_prob.exp() * elbo).sum(0)}


@objective("elbo")
def negative_elbo(elbo: SlotBatch, log_prob: SlotBatch, log_prior: LogPrior) -> Terms:
    """The negative of a lower bound on log p(x), p(x) = sum_l pi_l p_l(x).

    >>> import torch
    >>> even = torch.tensor([[0.5], [0.5]]).log()
    >>> negative_elbo(torch.tensor([[-1.0], [-3.0]]), even, even)  # the gate agrees with the prior
    {'elbo': tensor([2.])}
    """
    bound = log_prob.exp() * (elbo + log_prior - log_prob)
    return {"elbo": -bound.sum(0)}


@objective("marginal", by_weight=True)
def marginal(elbo: SlotBatch, log_prob: SlotBatch, log_prior: LogPrior) -> Terms:
    """The negative of a lower bound with the leaf summed out, and a term that fits the gates to the responsibilities.

    >>> import torch
    >>> even = torch.tensor([[0.5], [0.5]]).log()
    >>> marginal(torch.tensor([[-1.0], [-1.0]]), even, even)
    {'marginal': tensor([1.]), 'distillation': tensor([0.6931])}
    """
    joint = elbo + log_prior
    responsibility = joint.detach().softmax(0)
    return {"marginal": -joint.logsumexp(0), "distillation": -(responsibility * log_prob).sum(0)}


_OURS = tuple(OBJECTIVES)

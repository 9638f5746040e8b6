"""Balance: terms of the loss that keep a mixture from sending all samples to one child, ours and a user's.

I_c is the importance of child c (the sum over the batch of the probability of arriving there), Mean and Var are over
the C children of one mixture, u_c = I_c / sum_c I_c, and pi_c is the prior::

    variance   Var(I)                       the article; grows with the square of the batch size
    cv2        Var(I) / Mean(I)^2           Shazeer et al. 2017, equation 7
    kl         sum_c u_c log(u_c / pi_c)

Axes: `edge` and `mixture` as in `hmoevae.plan`.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hmoevae.nn.paths import Siblings
from hmoevae.plan import Plan
from hmoevae.spec.balances import register_balance
from hmoevae.spec.record import check_kind, origin_of

Edges = Float[Tensor, " edge"]
Summands = Callable[[Edges, Edges, Siblings], Edges]
F = TypeVar("F", bound=Summands)
_SUMMANDS: dict[str, Summands] = {}


def balance(kind: str) -> Callable[[F], F]:
    """Register the function that `Balance(kind)` computes.

    The function takes the importance of every child, the log prior of every child among its siblings, and `Siblings`,
    which sums over the children of a mixture. It returns one summand per child. The sum over the children is the term
    of the mixture, before its weight. The summands must be zero, not NaN, for a mixture that no sample reaches.

    Args:
        kind: The name, in Python and in files.

    Raises:
        SpecError: `kind` is no name, or something else has it already.

    >>> @balance("squares")
    ... def squares(importance, log_prior, siblings):
    ...     return siblings.share(importance).square()
    >>> from hmoevae.plan import compile_tree
    >>> from hmoevae.spec import VAE, Balance, Mixture
    >>> balances = Balances(compile_tree(Mixture.of(VAE(), 2, balance=Balance("squares", weight=1.0))))
    >>> balances(torch.tensor([3.0, 1.0]), torch.tensor([0.5, 0.5]).log())
    tensor(0.6250)
    """
    check_kind(kind, "balance(...)")

    def decorate(summands: F) -> F:
        register_balance(kind, origin_of(summands))
        _SUMMANDS[kind] = summands
        return summands

    return decorate


@balance("variance")
def variance(importance: Edges, log_prior: Edges, siblings: Siblings) -> Edges:  # noqa: ARG001
    """The summands of Var(I).

    >>> from hmoevae.plan import compile_tree
    >>> from hmoevae.spec import VAE, Mixture
    >>> pair = Siblings(compile_tree(Mixture.of(VAE(), 2)))
    >>> variance(torch.tensor([8.0, 0.0]), torch.zeros(2), pair).sum()
    tensor(16.)
    """
    return siblings.from_mean(importance).square() / siblings.count


@balance("cv2")
def cv2(importance: Edges, log_prior: Edges, siblings: Siblings) -> Edges:  # noqa: ARG001
    """The summands of Var(I) / Mean(I)^2.

    >>> from hmoevae.plan import compile_tree
    >>> from hmoevae.spec import VAE, Mixture
    >>> pair = Siblings(compile_tree(Mixture.of(VAE(), 2)))
    >>> cv2(torch.tensor([8.0, 0.0]), torch.zeros(2), pair).sum()
    tensor(1.)
    """
    return siblings.count * siblings.from_mean(siblings.share(importance)).square()


@balance("kl")
def kl(importance: Edges, log_prior: Edges, siblings: Siblings) -> Edges:
    """The summands of sum_c u_c log(u_c / pi_c).

    >>> from hmoevae.plan import compile_tree
    >>> from hmoevae.spec import VAE, Mixture
    >>> pair = Siblings(compile_tree(Mixture.of(VAE(), 2)))
    >>> kl(torch.tensor([8.0, 0.0]), torch.tensor([0.5, 0.5]).log(), pair).sum()
    tensor(0.6931)
    """
    usage = siblings.share(importance)
    return usage * (usage.clamp_min(torch.finfo(usage.dtype).tiny ** 0.5).log() - log_prior)


class Balances(nn.Module):
    """The weighted balance terms of all mixtures, each of the kind that the mixture's `Balance` names.

    A mixture that no sample of the batch reaches contributes nothing.

    Args:
        plan: The compiled tree.

    >>> from hmoevae.plan import compile_tree
    >>> from hmoevae.spec import VAE, Balance, Mixture
    >>> balances = Balances(compile_tree(Mixture.of(VAE(), 2, balance=Balance("kl", weight=1.0))))
    >>> even_prior = torch.tensor([0.5, 0.5]).log()
    >>> balances(torch.tensor([8.0, 0.0]), even_prior), balances(torch.tensor([4.0, 4.0]), even_prior)
    (tensor(0.6931), tensor(0.))
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.siblings = Siblings(plan)
        self.kinds = list(dict.fromkeys(balance.kind for balance in plan.balances if balance.weight > 0))
        for i, kind in enumerate(self.kinds):
            weights = torch.tensor([b.weight if b.kind == kind else 0.0 for b in plan.balances])
            self.register_buffer(f"weight_{i}", weights[self.siblings.edge_mixture], persistent=False)

    def forward(self, importance: Edges, log_prior: Edges) -> Float[Tensor, ""]:
        """The sum over all mixtures.

        Args:
            importance: Importance of every child; in data-parallel training, that of the global batch.
            log_prior: Log prior of every child among its siblings.
        """
        # Products and sums, not `@`, which autocast would compute in bfloat16.
        terms = [
            (getattr(self, f"weight_{i}") * _SUMMANDS[kind](importance, log_prior, self.siblings)).sum()
            for i, kind in enumerate(self.kinds)
        ]
        return torch.stack(terms).sum() if terms else importance.new_zeros(())

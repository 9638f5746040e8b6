"""The tree of an estimator: given, or made of its options and the columns of the table."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from hmoevae.checks import check_choice, check_integer
from hmoevae.errors import ArgumentTypeError, mismatch
from hmoevae.spec import (
    MLP,
    VAE,
    Balance,
    Bernoulli,
    Categorical,
    Columns,
    Gaussian,
    Likelihood,
    LinearPosterior,
    LogNormal,
    Mixture,
    NegativeBinomial,
    Ordinal,
    Poisson,
    PosteriorGate,
    Tree,
)

MOST_LATENTS = 8
"""Largest default `latent_dim`."""
CONSTANT = (Bernoulli, Categorical, LogNormal, NegativeBinomial, Ordinal, Poisson)
"""Likelihoods of columns that `fit_em` fits by outputs that do not depend on z."""
COUNTS = "counts"
"""What an estimator calls the negative binomial likelihood of counts given the total of their row."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of an estimator that describe its tree, as in `VAEMixture`."""

    n_components: int
    tree: Tree | None
    latent_dim: int | None
    hidden: tuple[int, ...]
    likelihood: Likelihood | str | None
    balance: Balance | None
    objective: str
    solver: str

    @property
    def likelihoods(self) -> set[Likelihood | str]:
        """The likelihoods that are given."""
        if isinstance(self.likelihood, str):
            check_choice("likelihood", self.likelihood, (COUNTS,))
        if self.tree is None:
            return set() if self.likelihood is None else {self.likelihood}
        if not isinstance(self.tree, VAE | Mixture):
            raise ArgumentTypeError(mismatch("tree", "a VAE or a Mixture", type(self.tree).__name__))
        return {node.likelihood for _, node in self.tree.walk() if isinstance(node, VAE)}

    def planted(self, likelihood: Likelihood, n_columns: int, chosen: int | None = None) -> Tree:
        """The tree.

        Args:
            likelihood: The likelihood of the leaves, where no tree is given.
            n_columns: Number of columns of the table.
            chosen: Number of latents where none is given; `None` means the default for so many columns.

        Raises:
            ArgumentError: The number of components is not above 0.
        """
        if self.tree is not None:
            return self.tree
        check_integer("n_components", self.n_components)
        network, exact = MLP(self.hidden), self._is_exact(likelihood)
        latent_dim = chosen if self.latent_dim is None else self.latent_dim
        if latent_dim is None:
            n_varied = n_numbers(likelihood, n_columns) if exact else n_columns
            latent_dim = max(1, min(MOST_LATENTS, n_varied - 1))
        expert = VAE(latent_dim, LinearPosterior() if exact else network, network, likelihood)
        if self.n_components == 1:
            return expert
        balance = None if exact else Balance("kl", 1.0) if self.balance is None else self.balance
        prior = "uniform" if self.objective == "expected" else "learned"
        gate = PosteriorGate() if exact else network
        return Mixture.of(expert, self.n_components, gate=gate, balance=balance, prior=prior)

    def _is_exact(self, likelihood: Likelihood) -> bool:
        """Whether leaves and gates are those that have a closed form."""
        if self.solver == "sgd" or self.objective != "marginal" or self.balance is not None or self.hidden:
            return False
        wants_latents = self.latent_dim is not None and self.solver == "auto"
        return has_constant_form(likelihood) and (has_numbers(likelihood) or not wants_latents)


def has_constant_form(likelihood: Likelihood) -> bool:
    """Whether `fit_em` can fit leaves of every column: a Gaussian of learned noise, or one that needs no latents.

    >>> [has_constant_form(each) for each in (Gaussian("learned", "identity"), Gaussian(0.5), Poisson())]
    [True, False, True]
    """
    return all(_is_number(part) or isinstance(part, CONSTANT) for part in _parts(likelihood))


def has_numbers(likelihood: Likelihood) -> bool:
    """Whether there are columns whose latents `fit_em` fits. Others do not depend on the latents then.

    >>> numbers = Gaussian("learned", "identity")
    >>> has_numbers(Columns.of(numbers, Poisson())), has_numbers(Poisson())
    (True, False)
    """
    return any(map(_is_number, _parts(likelihood)))


def n_numbers(likelihood: Likelihood, n_columns: int) -> int:
    """How many of the columns are numbers whose latents `fit_em` fits.

    >>> numbers = Gaussian("learned", "identity")
    >>> n_numbers(Columns.of(numbers, Poisson()), 2), n_numbers(numbers, 5)
    (1, 5)
    """
    parts = _parts(likelihood)
    n = sum(map(_is_number, parts))
    return n if isinstance(likelihood, Columns) else n * n_columns


def counts_like(totals: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"] | None = None) -> NegativeBinomial:
    """The likelihood of counts given the total of their row, whose typical total is the median.

    Args:
        totals: The total of every row.
        weight: How many rows each row counts for.

    >>> print(counts_like(np.array([5.0, 1.0, 9.0])), counts_like(np.array([5.0, 1.0, 9.0]), np.array([1.0, 1.0, 3.0])))
    NegativeBinomial(total=5) NegativeBinomial(total=9)
    """
    order = totals.argsort()
    below = np.cumsum(np.ones(len(totals)) if weight is None else weight[order])
    return NegativeBinomial(total=max(1.0, float(totals[order][np.searchsorted(below, below[-1] / 2)])))


def _parts(likelihood: Likelihood) -> tuple[Likelihood, ...]:
    return likelihood.parts if isinstance(likelihood, Columns) else (likelihood,)


def _is_number(part: Likelihood) -> bool:
    return isinstance(part, Gaussian) and (part.scale, part.mean) == ("learned", "identity")

"""The tree of an estimator: given, or made of its options and the columns of the table."""

from dataclasses import dataclass

from hmoevae.checks import check_integer
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


@dataclass(frozen=True, slots=True)
class Options:
    """The options of an estimator that describe its tree, as in `VAEMixture`."""

    n_components: int
    tree: Tree | None
    latent_dim: int | None
    hidden: tuple[int, ...]
    likelihood: Likelihood | None
    balance: Balance | None
    objective: str
    solver: str

    @property
    def likelihoods(self) -> set[Likelihood]:
        """The likelihoods that are given."""
        if self.tree is None:
            return set() if self.likelihood is None else {self.likelihood}
        if not isinstance(self.tree, VAE | Mixture):
            raise ArgumentTypeError(mismatch("tree", "a VAE or a Mixture", type(self.tree).__name__))
        return {node.likelihood for _, node in self.tree.walk() if isinstance(node, VAE)}

    def planted(self, likelihood: Likelihood, n_columns: int) -> Tree:
        """The tree.

        Args:
            likelihood: The likelihood of the leaves, where no tree is given.
            n_columns: Number of columns of the table.
        """
        if self.tree is not None:
            return self.tree
        check_integer("n_components", self.n_components)
        latent_dim = max(1, min(MOST_LATENTS, n_columns - 1)) if self.latent_dim is None else self.latent_dim
        network, exact = MLP(self.hidden), self._is_exact(likelihood)
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
        return has_constant_form(likelihood)


def has_constant_form(likelihood: Likelihood) -> bool:
    """Whether leaves are fitted in closed form: all columns can be, and it is a table's likelihood or Gaussian.

    Columns that are not Gaussian then do not depend on the latents, so one likelihood that was asked for, such as that
    of counts, is left to gradients.

    >>> has_constant_form(Gaussian("learned", "identity")), has_constant_form(NegativeBinomial())
    (True, False)
    """
    parts = likelihood.parts if isinstance(likelihood, Columns) else (likelihood,)
    linear = [isinstance(part, Gaussian) and (part.scale, part.mean) == ("learned", "identity") for part in parts]
    known = [is_linear or isinstance(part, CONSTANT) for part, is_linear in zip(parts, linear, strict=True)]
    return all(known) and (any(linear) or isinstance(likelihood, Columns))

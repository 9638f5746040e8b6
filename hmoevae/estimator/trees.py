"""The tree of an estimator: given, or made of its options and the columns of the table."""

from dataclasses import dataclass

from hmoevae.checks import check_integer
from hmoevae.errors import ArgumentTypeError, mismatch
from hmoevae.spec import (
    MLP,
    VAE,
    Balance,
    Likelihood,
    Mixture,
    Tree,
)

MOST_LATENTS = 8
"""Largest default `latent_dim`."""


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
        network = MLP(self.hidden)
        expert = VAE(latent_dim, network, network, likelihood)
        if self.n_components == 1:
            return expert
        balance = Balance("kl", 1.0) if self.balance is None else self.balance
        prior = "uniform" if self.objective == "expected" else "learned"
        return Mixture.of(expert, self.n_components, gate=network, balance=balance, prior=prior)

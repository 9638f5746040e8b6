"""The prior of the leaves: the product of the mixtures' own priors along the path.

Axes: `leaf`, `edge` and `mixture` as in `hmoevae.plan`.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hmoevae.nn.paths import PathSums, Siblings
from hmoevae.plan import Plan

NEVER = -1000.0
"""Logit of a child without samples; its probability is zero in every floating point type."""


class Prior(nn.Module):
    """The prior of every child among its siblings: uniform, by their leaves, or the softmax of learned logits.

    Args:
        plan: The compiled tree.

    Attributes:
        logits: One per edge; `None` if no mixture learns its prior. Those of mixtures with a fixed prior are unused.

    >>> from hmoevae.plan import compile_tree
    >>> from hmoevae.spec import VAE, Mixture
    >>> Prior(compile_tree(Mixture(children=(VAE(), Mixture.of(VAE(), 2))))).leaf_log_prob().exp()
    tensor([0.5000, 0.2500, 0.2500])
    """

    learned: Float[Tensor, " edge"]
    fixed_edge: Float[Tensor, " edge"]
    fixed_leaf: Float[Tensor, " leaf"]

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.siblings = Siblings(plan)
        self.to_leaves = PathSums([leaf.edges for leaf in plan.leaves], plan.n_edges)
        self.leaves_below = [plan.nodes[child].leaves for child in plan.edge_child]
        kinds = [getattr(plan.mixtures[m].spec, "prior", None) for m in plan.edge_mixture]
        self.logits = nn.Parameter(torch.zeros(plan.n_edges)) if "learned" in kinds else None
        n_leaves = torch.tensor([float(len(plan.nodes[child].leaves)) for child in plan.edge_child])
        weights = torch.where(torch.tensor([kind == "leaves" for kind in kinds], dtype=torch.bool), n_leaves, 1.0)
        fixed_edge = (weights / self.siblings.total(weights)).log()
        self.register_buffer("learned", torch.tensor([float(kind == "learned") for kind in kinds]), persistent=False)
        self.register_buffer("fixed_edge", fixed_edge, persistent=False)
        self.register_buffer("fixed_leaf", self._along_paths(fixed_edge), persistent=False)

    def edge_log_prob(self) -> Float[Tensor, " edge"]:
        """Log pi of every child among its siblings."""
        if self.logits is None:
            return self.fixed_edge
        return self.siblings.log_softmax(self.fixed_edge + self.logits * self.learned)

    def leaf_log_prob(self) -> Float[Tensor, " leaf"]:
        """Log pi_l of every leaf: the product of the priors on its path."""
        return self.fixed_leaf if self.logits is None else self._along_paths(self.edge_log_prob())

    @torch.no_grad()
    def set_shares_(self, of_leaf: Float[Tensor, " leaf"]) -> None:
        """Set learned priors to the shares of weights, such as counts of samples, that the leaves have.

        A child without weight gets a probability that is zero in every floating point type. A mixture without any
        weight keeps its prior.

        >>> from hmoevae.plan import compile_tree
        >>> from hmoevae.spec import VAE, Mixture
        >>> prior = Prior(compile_tree(Mixture.of(VAE(), 2, prior="learned")))
        >>> prior.set_shares_(torch.tensor([3.0, 1.0]))
        >>> prior.leaf_log_prob().exp()
        tensor([0.7500, 0.2500], grad_fn=<ExpBackward0>)
        """
        if self.logits is None:
            return
        below = torch.stack([of_leaf[leaves.start : leaves.stop].sum() for leaves in self.leaves_below])
        shares = below / self.siblings.total(below)
        logits = torch.where(shares > 0, shares.log(), NEVER)
        self.logits.copy_(torch.where(shares.isfinite(), logits.to(self.logits), self.logits))

    def _along_paths(self, edge: Float[Tensor, " edge"]) -> Float[Tensor, " leaf"]:
        return self.to_leaves(edge.unsqueeze(1)).squeeze(1)

"""Where every sample goes, how sure the gates are, and how well its leaf models it: one pass over all samples.

Axes: `n` counts samples, `depth` the gates on the path of a sample's leaf; `slot` its most probable leaves.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hmoevae.model import HMoEVAE
from hmoevae.nn.posteriors import Draw
from hmoevae.plan import Plan, PlannedNode

AT_A_TIME = 2048


@dataclass(frozen=True, slots=True, eq=False)
class Routed:
    """What the gates and the leaves say of samples.

    Args:
        leaf: The most probable leaf of every sample, q(leaf | x) its probability.
        probability: That probability.
        second: The second most probable leaf; the leaf itself in a tree of one.
        second_probability: Its probability.
        other: At every gate on the way to the leaf, the most probable of the other children, as an index of nodes; -1
            below the leaf.
        chosen_probability: At every gate, the probability of the child on the way; 1 below the leaf.
        other_probability: The probability of `other`; 0 below the leaf.
        entropy: The entropy of every gate on the way, in nats; 0 below the leaf.
        bound: A lower bound on log p(x) from the two most probable leaves with one draw of z each, in nats.
        latent: The mean of q(z|x) of the most probable leaf.
        order: The samples sorted by leaf.
        start: Where the samples of every leaf start in `order`; one more at the end.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.Mixture.of(hm.VAE(latent_dim=2), 2), 3), input_shape=(4,))
    >>> routed = route(model, torch.rand(9, 4))
    >>> len(routed.samples_of(model.plan.nodes[0])), routed.bound.shape, routed.chosen_probability.shape
    (9, (9,), (9, 2))
    """

    leaf: Int[np.ndarray, " n"]
    probability: Float[np.ndarray, " n"]
    second: Int[np.ndarray, " n"]
    second_probability: Float[np.ndarray, " n"]
    other: Int[np.ndarray, "n depth"]
    chosen_probability: Float[np.ndarray, "n depth"]
    other_probability: Float[np.ndarray, "n depth"]
    entropy: Float[np.ndarray, "n depth"]
    bound: Float[np.ndarray, " n"]
    latent: Float[np.ndarray, "n latent"]
    order: Int[np.ndarray, " n"]
    start: Int[np.ndarray, " ends"]

    def samples_of(self, node: PlannedNode) -> Int[np.ndarray, " own"]:
        """The samples whose most probable leaf lies at or below a node.

        >>> import hmoevae as hm
        >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(4,))
        >>> routed = route(model, torch.rand(9, 4))
        >>> sum(len(routed.samples_of(leaf)) for leaf in model.plan.leaves)
        9
        """
        return self.order[self.start[node.leaves.start] : self.start[node.leaves.stop]]

    def counts(self) -> Int[np.ndarray, " leaf"]:
        """The number of samples of every leaf.

        >>> import hmoevae as hm
        >>> int(route(hm.HMoEVAE(hm.VAE(latent_dim=2), input_shape=(4,)), torch.rand(9, 4)).counts().sum())
        9
        """
        return np.diff(self.start)


@torch.no_grad()
def route(model: HMoEVAE, x: Float[Tensor, "n *input_shape"]) -> Routed:
    """Run gates and the two most probable leaves of every sample.

    Args:
        model: The model.
        x: Samples, checked.

    >>> import hmoevae as hm
    >>> routed = route(hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(4,)), torch.rand(9, 4))
    >>> bool((routed.probability >= routed.second_probability).all()), routed.latent.shape
    (True, (9, 2))
    """
    ways = _Ways.of(model.plan)
    generator = torch.Generator(model.device).manual_seed(0)
    parts: list[tuple[Tensor, ...]] = []
    for piece in x.split(AT_A_TIME):
        flat = model._features_first(piece.to(model.device))
        edge = model._edge_log_prob(flat)
        top = model.paths.leaf_log_prob(edge).topk(min(2, model.plan.n_leaves), dim=0)
        log_prior = model.prior.leaf_log_prob()[top.indices]
        noise = model.experts.noise(flat, generator, n_slots=len(top.indices))
        elbo = model.experts.estimates(flat, noise, of=Draw.elbo, leaf=top.indices)
        latent, _ = model.experts.encode(flat.t(), top.indices[0])
        bound = (elbo + log_prior).logsumexp(0)
        if model.table is not None:
            bound = bound + model.table.log_jacobian(flat.t())
        probability = top.values.exp()
        leaves = top.indices[0], probability[0], top.indices[-1], probability[-1]
        parts.append(tuple(part.cpu() for part in (*leaves, *ways.follow(edge, top.indices[0]), bound, latent)))
    joined = [torch.cat(part).numpy() for part in zip(*parts, strict=True)]
    leaf = joined[0]
    order = np.argsort(leaf, kind="stable")
    start = np.searchsorted(leaf[order], np.arange(model.plan.n_leaves + 1))
    return Routed(*joined, order=order, start=start)


@torch.no_grad()
def leaf_of(model: HMoEVAE, x: Float[Tensor, "n *input_shape"]) -> Int[np.ndarray, " n"]:
    """The most probable leaf of samples that are checked, or made of checked ones.

    Args:
        model: The model.
        x: Samples.

    >>> import hmoevae as hm
    >>> leaf_of(hm.HMoEVAE(hm.VAE(latent_dim=2), input_shape=(4,)), torch.rand(3, 4))
    array([0, 0, 0])
    """
    found = []
    for piece in x.split(AT_A_TIME):
        edge = model._edge_log_prob(model._features_first(piece.to(model.device)))
        found.append(model.paths.leaf_log_prob(edge).argmax(0).cpu())
    return torch.cat(found).numpy()


@dataclass(frozen=True, slots=True, eq=False)
class _Ways:
    """The edges on the way to every leaf, and those beside them, in tables of one width."""

    taken: Int[Tensor, "leaf depth"]
    """The edges on the way; one that is not there below the leaf."""
    beside: Int[Tensor, "edge sibling"]
    """The edges of the same gate, for the one that is not there too."""
    child: Int[Tensor, " edge"]
    """The node at the lower end of an edge; -1 for the one that is not there."""

    @classmethod
    def of(cls, plan: Plan) -> "_Ways":
        none = plan.n_edges
        widest = max((len(mixture.child_edges) for mixture in plan.mixtures), default=1)
        taken = [[*leaf.edges, *[none] * (plan.depth - len(leaf.edges))] for leaf in plan.leaves]
        own = [plan.mixtures[mixture].child_edges for mixture in plan.edge_mixture]
        beside = [[*edges, *[none] * (widest - len(edges))] for edges in (*own, [])]
        tables = torch.tensor(taken, dtype=torch.long).reshape(plan.n_leaves, plan.depth), torch.tensor(beside)
        return cls(*tables, torch.tensor([*plan.edge_child, -1]))

    def follow(self, edge: Float[Tensor, "edge batch"], leaf: Int[Tensor, " batch"]) -> tuple[Tensor, ...]:
        """At every gate on the way: the best other child, both probabilities, and the entropy."""
        edge, leaf = edge.cpu(), leaf.cpu()
        padded = torch.cat([edge, edge.new_full((1, edge.shape[1]), -torch.inf)])
        none, column = len(edge), torch.arange(len(leaf))
        found: list[list[Tensor]] = [[], [], [], []]
        for taken in self.taken[leaf].t():
            options = self.beside[taken]  # (batch, sibling)
            values = padded[options, column.unsqueeze(1)]
            entropy = -torch.special.xlogy(values.exp(), values.exp()).sum(1)
            best = values.masked_fill(options == taken.unsqueeze(1), -torch.inf).max(1)
            chosen = torch.where(taken == none, 0.0, padded[taken, column]).exp()
            other = torch.where(best.values.isfinite(), self.child[options[column, best.indices]], -1)
            for part, value in zip(found, (other, chosen, best.values.exp(), entropy), strict=True):
                part.append(value)
        if not found[0]:  # a lone leaf
            empty = edge.new_zeros(len(leaf), 0)
            return empty.long(), empty, empty, empty
        return tuple(torch.stack(part, 1) for part in found)

"""Hierarchies after the fact: the leaves of a trained model, joined two by two into a binary tree by their overlap.

Axes: `batch` counts samples, `leaf` as in `hmoevae.plan`, `cluster` groups of leaves, `merge` the joins in their order.
"""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hmoevae.checks import check_choice, check_integer, is_integer
from hmoevae.errors import ArgumentError, ArgumentTypeError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.nn.posteriors import Draw
from hmoevae.samples import BATCH_SIZE, Data

if TYPE_CHECKING:
    import networkx as nx

MOST_DENSITIES = 32
"""Largest number of leaves whose densities are computed for a sample: the most probable ones of a model with more."""
LEAST = 1e-12
"""Overlaps below it have its height: those of leaves that share nothing would have an infinite one."""


@dataclass(frozen=True, slots=True)
class Merge:
    """Two groups of leaves that become one.

    Attributes:
        left: The leaves of one group, in the order of a drawing without crossings.
        right: The leaves of the other group.
        height: log(1 + 1 / overlap) of the two groups, see `hierarchy`. It never falls from one merge to the next.

    >>> merge = Merge(left=(0,), right=(2, 1), height=0.7)
    >>> merge.leaves, merge.size
    ((0, 2, 1), 3)
    """

    left: tuple[int, ...]
    right: tuple[int, ...]
    height: float

    @property
    def leaves(self) -> tuple[int, ...]:
        """The leaves of the new group."""
        return self.left + self.right

    @property
    def size(self) -> int:
        """Number of leaves of the new group."""
        return len(self.left) + len(self.right)


@dataclass(frozen=True, eq=False, repr=False)
class Hierarchy:
    """A binary tree over the leaves of a model, as `hierarchy` makes it.

    Attributes:
        model: The model whose leaves are joined; it stays as it is.
        merges: The merges, those of the largest overlap first; one fewer than leaves.

    >>> from hmoevae.spec import VAE, Mixture
    >>> model = HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,))
    >>> tree = Hierarchy(model, (Merge((0,), (2,), height=0.5), Merge((0, 2), (1,), height=2.0)))
    >>> tree, tree.n_leaves, tree.names
    (<Hierarchy of 3 leaves>, 3, ['0', '1', '2'])

    For other tools:

    >>> tree.newick()
    '(1:2,(0:0.5,2:0.5):1.5);'
    >>> tree.linkage.tolist()
    [[0.0, 2.0, 0.5, 2.0], [1.0, 3.0, 2.0, 3.0]]
    >>> graph = tree.to_networkx()
    >>> list(graph.edges), graph.nodes[3], graph.nodes[1]
    ([(3, 0), (3, 2), (4, 1), (4, 3)], {'height': 0.5, 'leaves': (0, 2)}, {'name': '1', 'height': 0.0, 'leaves': (1,)})

    Two clusters in place of three leaves:

    >>> x = torch.rand(5, 4)
    >>> tree.cut(2).tolist()
    [0, 1, 0]
    >>> tree.predict_proba(x, n_clusters=2).shape, tree.predict(x, n_clusters=2).shape
    (torch.Size([5, 2]), torch.Size([5]))
    >>> torch.equal(tree.predict(x, n_clusters=3), model.predict(x))
    True
    """

    model: HMoEVAE
    merges: tuple[Merge, ...]

    def __repr__(self) -> str:
        """The number of leaves."""
        return f"<Hierarchy of {self.n_leaves} leaves>"

    @property
    def n_leaves(self) -> int:
        """Number of leaves."""
        return len(self.merges) + 1

    @property
    def names(self) -> list[str]:
        """The names of the leaves, in the order of the model's."""
        return self.model.plan.level_names(None)

    @property
    def linkage(self) -> Float[np.ndarray, "merge 4"]:
        """The merges as `scipy.cluster.hierarchy` has them: two nodes, their height, and the number of leaves below.

        Node i < n_leaves is leaf i; node n_leaves + i is what merge i has made.
        """
        node_of = list(range(self.n_leaves))
        rows = []
        for i, merge in enumerate(self.merges):
            a, b = sorted((node_of[merge.left[0]], node_of[merge.right[0]]))
            rows.append((a, b, merge.height, merge.size))
            for leaf in merge.leaves:
                node_of[leaf] = self.n_leaves + i
        return np.array(rows, dtype=np.float64)

    def newick(self) -> str:
        """The tree in the Newick format, which programs that draw trees read; a length is a difference of heights."""
        text, height = [_newick_name(name) for name in self.names], [0.0] * self.n_leaves
        for a, b, above, _ in self.linkage.tolist():
            below = (f"{text[int(node)]}:{above - height[int(node)]:.6g}" for node in (a, b))
            text.append(f"({','.join(below)})")
            height.append(above)
        return f"{text[-1]};"

    def to_networkx(self) -> "nx.DiGraph":
        """The tree as a directed graph: nodes as in `linkage`, with `leaves`, `height` and, of leaves, `name`."""
        import networkx as nx

        graph = nx.DiGraph()
        for leaf, name in enumerate(self.names):
            graph.add_node(leaf, name=name, height=0.0, leaves=(leaf,))
        for i, (merge, (a, b, *_)) in enumerate(zip(self.merges, self.linkage.tolist(), strict=True), self.n_leaves):
            graph.add_node(i, height=merge.height, leaves=merge.leaves)
            graph.add_edges_from(((i, int(a)), (i, int(b))))
        return graph

    def cut(self, n_clusters: int) -> Int[Tensor, " leaf"]:
        """The cluster of every leaf after all but the last `n_clusters - 1` merges.

        Clusters are numbered by their first leaves, so that as many clusters as leaves are the leaves.

        Args:
            n_clusters: Number of clusters, from 1 to the number of leaves.

        Raises:
            ArgumentError: There are no so many clusters.
        """
        if not is_integer(n_clusters, least=1) or n_clusters > self.n_leaves:
            expected = f"an integer from 1 to the number of leaves, {self.n_leaves}"
            raise ArgumentError(mismatch("n_clusters", expected, repr(n_clusters)))
        first = torch.arange(self.n_leaves)  # the first leaf of each leaf's cluster
        for merge in self.merges[: self.n_leaves - n_clusters]:
            first[list(merge.leaves)] = min(merge.leaves)
        return first.unique(return_inverse=True)[1]

    def predict_proba(
        self, x: Data, *, n_clusters: int, batch_size: int = BATCH_SIZE
    ) -> Float[Tensor, "batch cluster"]:
        """Probability of every cluster, the sum of those of its leaves; rows sum to one.

        Args:
            x: Samples, as `data` of `hmoevae.fit`.
            n_clusters: Number of clusters, as in `cut`.
            batch_size: Samples evaluated at a time.

        Raises:
            ArgumentError: There are no so many clusters.
        """
        cluster = self.cut(n_clusters)
        by_leaf = self.model.predict_proba(x, batch_size=batch_size)
        by_cluster = by_leaf.new_zeros(len(by_leaf), int(n_clusters))
        return by_cluster.index_add_(1, cluster.to(by_leaf.device), by_leaf)

    def predict(self, x: Data, *, n_clusters: int, batch_size: int = BATCH_SIZE) -> Int[Tensor, " batch"]:
        """The most probable cluster; for as many clusters as leaves, what `model.predict` answers.

        Args:
            x: Samples, as `data` of `hmoevae.fit`.
            n_clusters: Number of clusters, as in `cut`.
            batch_size: Samples evaluated at a time.

        Raises:
            ArgumentError: There are no so many clusters.
        """
        return self.predict_proba(x, n_clusters=n_clusters, batch_size=batch_size).argmax(1)


def hierarchy(
    model: HMoEVAE,
    x: Data,
    *,
    by: Literal["gate", "density"] = "gate",
    n_importance: int = 4,
    batch_size: int = BATCH_SIZE,
) -> Hierarchy:
    """Join the leaves of a trained model into a binary tree by how much they overlap, without training.

    The overlap of two groups of leaves a and b is how much more often than by chance both are drawn for one sample:

        overlap(a, b) = mean_x r(a|x) r(b|x) / (mean_x r(a|x) mean_x r(b|x)),

    where r(a|x), the responsibility of a group, is the sum of those of its leaves. It is 1 for groups that do not
    depend on each other, and 0 for groups without a common sample. The two groups with the largest overlap are joined,
    then overlaps are computed anew, until there is one group: average linkage with leaves weighted by their use. The
    idea is that of Hennig (2010, Methods for merging Gaussian mixture components, section 4.2), who joins components
    by estimated misclassification.

    Args:
        model: The model. Of a deep tree only the leaves are used.
        x: Samples, as `data` of `hmoevae.fit`, such as those of the training; ten thousand are enough.
        by: Where responsibilities come from: `"gate"`, q(leaf|x) of the gates; or `"density"`, softmax of log pi_l +
            log p_l(x) over the leaves, with importance-weighted bounds in place of log p_l(x). Of more than 32 leaves,
            densities are computed of the 32 most probable ones of each sample: these divide among them the probability
            that the gates give them together, and other leaves keep what the gates give them.
        n_importance: Number of draws of z from every leaf, for `"density"`.
        batch_size: Samples evaluated at a time.

    Raises:
        ArgumentTypeError: `model` is no `HMoEVAE`, or `x` are no samples.
        ArgumentError: The model has one leaf, or another argument cannot be used.
        DataError: `x` is empty.

    >>> from hmoevae.spec import VAE, Mixture
    >>> model = HMoEVAE(Mixture.of(VAE(latent_dim=2), 4), input_shape=(3,))
    >>> tree = hierarchy(model, torch.rand(50, 3))
    >>> tree.n_leaves, len(tree.merges), tree.cut(2).unique().tolist()
    (4, 3, [0, 1])
    """
    if not isinstance(model, HMoEVAE):
        raise ArgumentTypeError(mismatch("model", "an HMoEVAE, such as an estimator's model_", type(model).__name__))
    if model.plan.n_leaves < 2:
        raise ArgumentError(mismatch("model", "a tree of two leaves or more", "one leaf"))
    check_choice("by", by, ("gate", "density"))
    check_integer("n_importance", n_importance)
    if by == "gate":
        found = model.predict_proba(x, batch_size=batch_size)
    else:
        found = responsibilities(model, x, int(n_importance), batch_size)
    return Hierarchy(model, joined(found.cpu().double().numpy()))


def responsibilities(model: HMoEVAE, x: Data, n_importance: int, batch_size: int) -> Float[Tensor, "batch leaf"]:
    """The responsibilities of the leaves by their densities, as `hierarchy` says.

    Args:
        model: The model.
        x: Samples, as `data` of `hmoevae.fit`.
        n_importance: Number of draws of z from every leaf.
        batch_size: Samples evaluated at a time.

    >>> from hmoevae.spec import VAE, Mixture
    >>> model = HMoEVAE(Mixture.of(VAE(latent_dim=2), 4), input_shape=(3,))
    >>> responsibilities(model, torch.rand(5, 3), 8, 1024).sum(1).allclose(torch.ones(5))
    True
    """
    experts, log_prior = model.experts, model.prior.leaf_log_prob().unsqueeze(1)
    few = model.plan.n_leaves > MOST_DENSITIES
    draws = model._same_draws()

    def compute(chunk: Tensor) -> Float[Tensor, "batch leaf"]:
        flat = chunk.flatten(1).t()
        by_gate = model.route(chunk, batch_size=len(chunk)).exp() if few else None
        leaf = by_gate.topk(MOST_DENSITIES).indices.t() if by_gate is not None else None
        bounds = []
        for _ in range(n_importance):  # one draw at a time: memory does not grow with n_importance
            noise = experts.noise(flat, draws, n_slots=None if leaf is None else len(leaf))
            bounds.append(experts.estimates(flat, noise, of=Draw.log_weight, leaf=leaf))
        log_weight = torch.stack(bounds).logsumexp(0)
        if leaf is None or by_gate is None:
            return (log_weight + log_prior).softmax(0).t()
        own = (log_weight + log_prior[leaf].squeeze(2)).softmax(0) * by_gate.gather(1, leaf.t()).sum(1)
        return by_gate.scatter(1, leaf.t(), own.t().to(by_gate.dtype))

    return model._in_batches(compute, x, batch_size)


def joined(responsibilities: Float[np.ndarray, "batch leaf"]) -> tuple[Merge, ...]:
    """Join the two groups of the largest overlap until there is one group, see `hierarchy`.

    Args:
        responsibilities: Numbers >= 0 in rows that sum to one.

    >>> joined(np.array([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.2, 0.1, 0.7]]))
    (Merge(left=(0,), right=(2,), height=0.54...), Merge(left=(0, 2), right=(1,), height=2.16...))
    """
    both = responsibilities.T @ responsibilities / len(responsibilities)
    share = responsibilities.mean(0).clip(min=np.finfo(np.float64).tiny)  # a dead leaf's may be 0
    overlap = both / share / share[:, None]
    np.fill_diagonal(overlap, -1.0)
    leaves: list[tuple[int, ...]] = [(leaf,) for leaf in range(len(share))]
    merges: list[Merge] = []
    height = 0.0
    for _ in range(len(share) - 1):
        a, b = sorted(int(i) for i in np.unravel_index(overlap.argmax(), overlap.shape))
        height = max(height, math.log1p(1 / max(overlap[a, b], LEAST)))  # rounding may lower it by a little
        merges.append(Merge(leaves[a], leaves[b], height))
        leaves[a] += leaves[b]
        both[a] += both[b]
        both[:, a] += both[:, b]
        share[a] += share[b]
        gone = overlap[a] < 0
        overlap[a] = overlap[:, a] = np.where(gone, -1.0, both[a] / share / share[a])
        overlap[b] = overlap[:, b] = -1.0
    return tuple(merges)


def _newick_name(name: str) -> str:
    """A name in quotes, unless it has nothing that means something in the format."""
    return name if re.fullmatch(r"[A-Za-z0-9.]+", name) else "'" + name.replace("'", "''") + "'"

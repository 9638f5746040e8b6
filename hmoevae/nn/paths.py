"""The plan's tables as tensors: from the gates' log-probabilities on the edges to those of nodes and leaves.

Axes: `node`, `leaf`, `mixture` and `edge` as in `hmoevae.plan`; `path` counts paths from the root; `batch` is last.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hmoevae.plan import Plan
from hmoevae.spec import VAE


class PathSums(nn.Module):
    """Sum values of edges along paths from the root down.

    Args:
        paths: The edges of each path.
        n_edges: Number of edges of the tree.

    >>> PathSums([(), (0,), (0, 2)], n_edges=3)(torch.tensor([[1.0], [2.0], [3.0]])).squeeze(1)
    tensor([0., 1., 4.])
    """

    def __init__(self, paths: Sequence[tuple[int, ...]], n_edges: int) -> None:
        super().__init__()
        self.n_paths = len(paths)
        self.length = max(map(len, paths), default=0)
        # Shorter paths are padded with edge `n_edges`, an extra row of zeros.
        self.has_shorter = any(len(path) < self.length for path in paths)
        filled = [(*path, *[n_edges] * (self.length - len(path))) for path in paths]
        for i in range(self.length):
            step = [path[i] for path in filled]
            index = None if step == list(range(n_edges)) else torch.tensor(step)
            self.register_buffer(f"step_{i}", index, persistent=False)

    def forward(self, per_edge: Float[Tensor, "edge batch"]) -> Float[Tensor, "path batch"]:
        """The sums; zero for an empty path."""
        if self.length == 0:
            return per_edge.new_zeros(self.n_paths, per_edge.shape[1])
        padded = F.pad(per_edge, (0, 0, 0, 1)) if self.has_shorter else per_edge
        steps = [take(padded, getattr(self, f"step_{i}")) for i in range(self.length)]
        return sum(steps[1:], steps[0])


class Between(nn.Module):
    """Which nodes of one level lie below which mixtures of another.

    Attributes:
        mixtures: The mixtures of the upper level, as indices of nodes.
        below: The nodes of the lower level that lie below these mixtures, as indices of nodes.
        owner: For each node of `below`, the position in `mixtures` of the mixture above it.

    Args:
        plan: The compiled tree.
        upper: The upper level.
        lower: The lower one.

    >>> from hmoevae.plan import compile_tree
    >>> from hmoevae.spec import Mixture
    >>> between = Between(compile_tree(Mixture(children=(VAE(), Mixture.of(VAE(), 2)))), upper=1, lower=2)
    >>> between.mixtures, between.below, between.owner
    (tensor([2]), tensor([3, 4]), tensor([0, 0]))
    """

    mixtures: Int[Tensor, " mixture"]
    below: Int[Tensor, " below"]
    owner: Int[Tensor, " below"]

    def __init__(self, plan: Plan, upper: int, lower: int) -> None:
        super().__init__()
        mixtures = [node for node in plan.level(upper) if not isinstance(node.spec, VAE)]
        above = {leaf: i for i, mixture in enumerate(mixtures) for leaf in mixture.leaves}
        below = [node for node in plan.level(lower) if node.leaves.start in above]
        tables = {
            "mixtures": [node.index for node in mixtures],
            "below": [node.index for node in below],
            "owner": [above[node.leaves.start] for node in below],
        }
        for name, table in tables.items():
            self.register_buffer(name, torch.tensor(table), persistent=False)


class Siblings(nn.Module):
    """The children of every mixture: sums, shares and means over them.

    Args:
        plan: The compiled tree.

    Attributes:
        edge_mixture: The mixture at the upper end of each edge.
        count: For each child, the number of children of its mixture.

    >>> from hmoevae.plan import compile_tree
    >>> from hmoevae.spec import Mixture
    >>> siblings = Siblings(compile_tree(Mixture(children=(VAE(), Mixture.of(VAE(), 2)))))
    >>> siblings.total(torch.tensor([1.0, 2.0, 3.0, 4.0])), siblings.share(torch.tensor([1.0, 3.0, 0.0, 0.0]))
    (tensor([3., 3., 7., 7.]), tensor([0.2500, 0.7500, 0.0000, 0.0000]))
    """

    edge_mixture: Int[Tensor, " edge"]
    count: Float[Tensor, " edge"]

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.n_mixtures = len(plan.mixtures)
        self.register_buffer("edge_mixture", torch.tensor(plan.edge_mixture, dtype=torch.long), persistent=False)
        counts = [float(len(plan.mixtures[m].spec.children)) for m in plan.edge_mixture]
        self.register_buffer("count", torch.tensor(counts), persistent=False)

    def total(self, per_edge: Float[Tensor, " edge"]) -> Float[Tensor, " edge"]:
        """The sum over the children of a mixture, repeated for each of them."""
        totals = per_edge.new_zeros(self.n_mixtures).index_add(0, self.edge_mixture, per_edge)
        return totals.index_select(0, self.edge_mixture)

    def from_mean(self, per_edge: Float[Tensor, " edge"]) -> Float[Tensor, " edge"]:
        """The difference from the mean over the children of the mixture."""
        return per_edge - self.total(per_edge) / self.count

    def share(self, per_edge: Float[Tensor, " edge"]) -> Float[Tensor, " edge"]:
        """Each child's part of the sum; where the sum is next to zero, value and gradient are zero."""
        # Below the floor, squares and quotients leave the dtype's range.
        floor = torch.finfo(per_edge.dtype).tiny ** 0.5
        total = self.total(per_edge)
        return per_edge / torch.where(total > floor, total, torch.inf)

    def log_softmax(self, logits: Float[Tensor, " edge"]) -> Float[Tensor, " edge"]:
        """Log-softmax over the children of every mixture."""
        # The largest logit is subtracted, so that exp does not overflow.
        none = logits.new_zeros(self.n_mixtures)
        largest = none.scatter_reduce(0, self.edge_mixture, logits.detach(), "amax", include_self=False)
        shifted = logits - largest[self.edge_mixture]
        return shifted - self.total(shifted.exp()).log()


class Paths(nn.Module):
    """Index tables of a plan. They move between devices with the model, and are not saved: they follow from the tree.

    Args:
        plan: The compiled tree.

    >>> from hmoevae.plan import compile_tree
    >>> from hmoevae.spec import Mixture
    >>> paths = Paths(compile_tree(Mixture(children=(VAE(), Mixture.of(VAE(), 2)))))
    >>> paths.leaf_log_prob(torch.tensor([[0.5], [0.5], [0.9], [0.1]]).log()).exp().squeeze(1)
    tensor([0.5000, 0.4500, 0.0500])
    """

    steps_down: Sequence[Between]

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.to_nodes = PathSums([node.edges for node in plan.nodes], plan.n_edges)
        self.to_leaves = PathSums([leaf.edges for leaf in plan.leaves], plan.n_edges)
        self.to_mixtures = PathSums([plan.nodes[child].edges[:-1] for child in plan.edge_child], plan.n_edges)
        # Made once: agreement uses them in every step.
        steps_down = nn.ModuleList(Between(plan, level, level + 1) for level in range(plan.depth))
        self.steps_down = steps_down  # type: ignore[assignment]  # a ModuleList cannot say what it holds

    def node_log_prob(self, edge_log_prob: Float[Tensor, "edge batch"]) -> Float[Tensor, "node batch"]:
        """Log-probability of arriving at every node: the sum over the edges of its path, zero at the root."""
        return self.to_nodes(edge_log_prob)

    def leaf_log_prob(self, edge_log_prob: Float[Tensor, "edge batch"]) -> Float[Tensor, "leaf batch"]:
        """Log-probability of arriving at every leaf, log q(l|x)."""
        return self.to_leaves(edge_log_prob)

    def child_log_prob(self, edge_log_prob: Float[Tensor, "edge batch"]) -> Float[Tensor, "edge batch"]:
        """Log-probability of arriving at the child of every edge. The gradient reaches the edge's own gate only."""
        if self.plan.depth < 2:  # all samples arrive at the one mixture
            return edge_log_prob
        return edge_log_prob + self.to_mixtures(edge_log_prob.detach())

    def importance(
        self, edge_log_prob: Float[Tensor, "edge batch"], counts: Float[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " edge"]:
        """Expected number of samples of the batch that arrive at the child of every edge.

        The gradient reaches the edge's own gate only: the balance among children must not change how many samples
        arrive at their mixture.

        Args:
            edge_log_prob: Log-probability of every edge.
            counts: How many samples each sample counts for; `None` means one.
        """
        arriving = self.child_log_prob(edge_log_prob).exp()
        return arriving.sum(1) if counts is None else (arriving * counts).sum(1)

    def between(self, upper: int, lower: int, device: torch.device) -> "Between":
        """The tables between two levels."""
        if lower == upper + 1:
            return self.steps_down[upper]
        return Between(self.plan, upper, lower).to(device)


def logsumexp_by(
    values: Float[Tensor, "row batch"], owner: Int[Tensor, " row"], n_owners: int
) -> Float[Tensor, "owner batch"]:
    """Logsumexp over the rows of every owner; every owner has at least one row."""
    none = values.new_zeros(n_owners, values.shape[1])
    # The largest row is subtracted, so that the sum of the exponentials is at least one.
    largest = none.scatter_reduce(0, owner.unsqueeze(1).expand_as(values), values.detach(), "amax", include_self=False)
    return none.index_add(0, owner, (values - largest[owner]).exp()).log() + largest


def permutation(order: list[int]) -> Int[Tensor, " row"] | None:
    """The index that sorts rows which lie in the order `order`; `None` if `order` is ascending."""
    if order == sorted(order):
        return None
    return torch.tensor(order).argsort()


def joined(groups: list[Float[Tensor, "_ batch"]], index: Int[Tensor, " row"] | None) -> Float[Tensor, "row batch"]:
    """Concatenate the rows of all groups and reorder them by a `permutation`; a single group is not copied."""
    return take(groups[0] if len(groups) == 1 else torch.cat(groups), index)


def take(
    rows: Float[Tensor, "row batch"], index: Int[Tensor, " taken"] | None
) -> Float[Tensor, "taken batch"] | Float[Tensor, "row batch"]:
    """The rows at `index`, such as a `permutation`; if it is `None`, all rows without a copy."""
    return rows if index is None else rows.index_select(0, index)

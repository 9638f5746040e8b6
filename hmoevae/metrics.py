"""Scores of clusters against labels, for evaluation only: training uses no labels. Two of the scores need none.

Axes: `n` counts samples, `node` the nodes of a level. Every score is a fraction; 1 is a perfect match, except for the
calibration error, where 0 is. All of them raise a `DataError` for a missing label (NaN, None or masked): leave such
samples out. Labels that are not a vector raise a `ShapeError`.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from hmoevae.checks import check_integer
from hmoevae.door import ArrayLike, Samples
from hmoevae.errors import (
    ArgumentError,
    ArgumentTypeError,
    DataError,
    MissingExtraError,
    ShapeError,
    from_extra,
    mismatch,
)
from hmoevae.hierarchies import Hierarchy
from hmoevae.labels import Labels, read_labels
from hmoevae.model import HMoEVAE
from hmoevae.nn.draws import borrowed_random_state
from hmoevae.plan import compile_tree
from hmoevae.samples import BATCH_SIZE
from hmoevae.spec import Tree
from hmoevae.views import Compose, ViewLike, as_view

try:
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix
except ImportError as missing:
    raise MissingExtraError(mismatch("hmoevae.metrics", from_extra("scikit-learn", "sklearn"), missing)) from None

__all__ = [
    "accuracy",
    "agreement_score",
    "calibration_error",
    "clustering_scores",
    "dendrogram_purity",
    "purity",
    "report",
    "usage_entropy",
]


def __dir__() -> list[str]:
    """The public names."""
    return __all__


def accuracy(labels: Labels, clusters: Labels) -> float:
    """Share of samples whose cluster is matched with their label, under the best one-to-one match.

    The Hungarian algorithm finds the match (Xie et al. 2016, equation 10). Where there are more clusters than labels,
    the samples of unmatched clusters count as errors.

    Args:
        labels: `(n,)` integers.
        clusters: `(n,)` integers, such as `model.predict(x)`.

    >>> accuracy(np.array([0, 0, 1, 1]), np.array([7, 7, 3, 7]))
    0.75
    """
    return float(_matched(labels, clusters).mean())


def purity(labels: Labels, clusters: Labels) -> float:
    """Share of samples whose label is the most frequent one in their cluster (Manning et al. 2008, section 16.3).

    Splitting clusters never lowers it, so compare it between equal numbers of clusters only.

    Args:
        labels: `(n,)` integers.
        clusters: `(n,)` integers.

    >>> purity(np.array([0, 0, 1, 1]), np.array([7, 7, 3, 5]))
    1.0
    """
    table = np.asarray(contingency_matrix(*_vectors(labels, clusters)))
    return float(table.max(0).sum() / table.sum())


def clustering_scores(labels: Labels, clusters: Labels) -> dict[str, float]:
    """Accuracy, normalised mutual information, adjusted Rand index and leaf purity.

    Args:
        labels: `(n,)` integers.
        clusters: `(n,)` integers.

    >>> clustering_scores(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0]))
    {'accuracy': 1.0, 'nmi': 1.0, 'ari': 1.0, 'leaf_purity': 1.0}
    """
    y, c = (np.unique(values, return_inverse=True)[1] for values in _vectors(labels, clusters))
    return {
        "accuracy": accuracy(y, c),
        "nmi": float(normalized_mutual_info_score(y, c)),
        "ari": float(adjusted_rand_score(y, c)),
        "leaf_purity": purity(y, c),
    }


def dendrogram_purity(
    labels: Labels, leaves: Labels, tree: Tree | Hierarchy, *, confidence: ArrayLike | None = None
) -> float:
    """Mean, over all pairs of samples with the same label, of that label's share in the smallest subtree with both.

    (1/Z) sum_k sum_{i<j: y_i = y_j = k} n_k(s_ij) / n(s_ij), where s_ij is the smallest subtree with samples i and j,
    n(s) counts its samples, n_k(s) those of label k, and Z is the number of pairs (Heller & Ghahramani 2005). The
    smallest subtree of two samples of one leaf is the leaf. The result is exact: it is computed from the counts of
    every label at every node, without drawing pairs.

    In that paper's trees the leaves are samples. With `confidence` they are so here: the surest samples of a leaf are
    joined first, and then the others one by one, those of equal confidence at once. The smallest subtree of two
    samples of one leaf then is all of its samples that are at least as sure as the less sure of the two. This is a
    finer tree, so compare figures with `confidence` among themselves only.

    Args:
        labels: `(n,)` integers.
        leaves: `(n,)` leaf indices, such as `model.predict(x)`.
        tree: The tree, such as `model.tree`, or a hierarchy over the leaves of a model.
        confidence: `(n,)` numbers, such as `model.predict_proba(x).amax(1)`; `None` for leaves that are not divided.

    Raises:
        ShapeError: `labels`, `leaves` and `confidence` are not equally long vectors.
        ArgumentError: `leaves` are not indices of the tree's leaves.
        ArgumentTypeError: `tree` is not a tree.
        DataError: No two samples have the same label, or `confidence` is not finite.

    >>> from hmoevae import VAE, Mixture
    >>> tree = Mixture(children=(VAE(), Mixture.of(VAE(), 2)))
    >>> dendrogram_purity(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2]), tree)  # both ones below root/1
    1.0
    >>> dendrogram_purity(np.array([1, 0, 0, 1]), np.array([0, 1, 2, 2]), tree)  # 2/3 at root/1, 2/4 at the root
    0.5833333333333333

    A leaf with one sample of another label, of which it is not sure:

    >>> y, leaf = np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])
    >>> dendrogram_purity(y, leaf, tree), dendrogram_purity(y, leaf, tree, confidence=np.array([0.9, 0.8, 0.6, 0.9]))
    (0.5833333333333333, 0.75)
    """
    n_leaves, nodes, children, parents = _nodes_of(tree)
    y, leaf = _vectors(labels, leaves, "leaves")
    if not np.issubdtype(leaf.dtype, np.integer) or leaf.min() < 0 or leaf.max() >= n_leaves:
        got = f"{leaf.dtype} from {leaf.min()} to {leaf.max()}"
        raise ArgumentError(mismatch("leaves", f"integers from 0 to {n_leaves - 1}", got))
    surety = np.zeros(len(y)) if confidence is None else _vectors(labels, confidence, "confidence")[1]
    kinds, y = np.unique(y, return_inverse=True)
    counts = np.zeros((n_leaves, len(kinds)), dtype=np.int64)
    np.add.at(counts, (leaf, y), 1)

    below = np.stack([counts[list(node)].sum(0) for node in nodes])
    pairs = below * (below - 1) // 2
    # A pair below a node has that node as its smallest subtree unless it is below one of the node's children.
    split_here = pairs.copy()
    np.subtract.at(split_here, parents, pairs[children])
    if not split_here.any():
        raise DataError(mismatch("labels", "two samples or more of one label", f"{len(y)} samples, no two alike"))
    is_leaf = np.ones(len(nodes), dtype=bool)
    is_leaf[parents] = False
    inner = ~is_leaf
    share = below[inner] / np.maximum(below[inner].sum(1, keepdims=True), 1)
    within = sum(_within(y[leaf == i], surety[leaf == i], len(kinds)) for i in np.unique(leaf))
    return float(((split_here[inner] * share).sum() + within) / split_here.sum())


def _within(y: np.ndarray, surety: np.ndarray, n_kinds: int) -> float:
    """Sum, over the pairs of samples of one leaf and one label, of that label's share among those as sure as both."""
    order = (-surety).argsort(kind="stable")
    counts = np.eye(n_kinds, dtype=np.int64)[y[order]].cumsum(0)
    last = np.flatnonzero(np.diff(surety[order], append=np.nan))  # the last sample of each confidence
    counts = counts[last]
    new = np.diff(counts * (counts - 1) // 2, axis=0, prepend=0)
    return float((new * counts / counts.sum(1, keepdims=True)).sum())


def _nodes_of(tree: Tree | Hierarchy) -> tuple[int, list[Iterable[int]], list[int], list[int]]:
    """The number of leaves, the leaves below every node, and the nodes at the lower and the upper end of every edge."""
    if isinstance(tree, Hierarchy):
        ends = [(int(child), i) for i, pair in enumerate(tree.linkage[:, :2], tree.n_leaves) for child in pair]
        nodes: list[Iterable[int]] = [[leaf] for leaf in range(tree.n_leaves)]
        nodes += [merge.leaves for merge in tree.merges]
        return tree.n_leaves, nodes, [child for child, _ in ends], [parent for _, parent in ends]
    if not isinstance(tree, Tree):
        expected = "a VAE or a Mixture, such as model.tree, or a Hierarchy"
        raise ArgumentTypeError(mismatch("tree", expected, type(tree).__name__))
    plan = compile_tree(tree)
    parents = [plan.mixtures[mixture].index for mixture in plan.edge_mixture]
    return plan.n_leaves, [node.leaves for node in plan.nodes], list(plan.edge_child), parents


def usage_entropy(probabilities: ArrayLike) -> float:
    """Entropy of the mean usage of the nodes, divided by its largest possible value, the log of their number.

    It is 1 if all nodes have the same share of the samples, and 0 if one node has all of them. It needs no labels. For
    a single node it is 1.

    Args:
        probabilities: `(n, node)`, such as `model.predict_proba(x)`.

    Raises:
        ShapeError: `probabilities` is not a matrix.
        DataError: A row is not a distribution.

    >>> usage_entropy(np.array([[1.0, 0.0], [0.0, 1.0]])), usage_entropy(np.array([[1.0, 0.0], [1.0, 0.0]]))
    (1.0, 0.0)
    """
    usage = _probabilities(probabilities).mean(0)
    if len(usage) == 1:
        return 1.0
    used = usage[usage > 0]
    return float(abs((used * np.log(used)).sum()) / np.log(len(usage)))


def calibration_error(labels: Labels, probabilities: ArrayLike, *, n_bins: int = 15) -> float:
    """Expected calibration error: the difference between the gates' confidence and their accuracy.

    sum_m n_m/n abs(accuracy_m - confidence_m), where bin m holds the n_m samples whose largest probability lies in
    ((m-1)/M, m/M] (Guo et al. 2017, equation 3). A sample is right if its most probable node is matched with its label,
    under the one-to-one match of `accuracy`. The match uses the same labels, so the error is slightly too small.

    Args:
        labels: `(n,)` integers.
        probabilities: `(n, node)`, such as `model.predict_proba(x)`.
        n_bins: M, the number of bins.

    Raises:
        ShapeError: `probabilities` is not a matrix with one row a label.
        DataError: A row of `probabilities` is not a distribution.
        ArgumentError: `n_bins` is not an integer > 0.

    >>> calibration_error(np.array([0, 0, 1, 1]), np.array([[0.75, 0.25], [0.75, 0.25], [0.75, 0.25], [0.25, 0.75]]))
    0.0
    """
    check_integer("n_bins", n_bins)
    p = _probabilities(probabilities)
    right = _matched(*_vectors(labels, p.argmax(1), "probabilities"))
    confidence = p.max(1)
    gaps = np.zeros(n_bins)  # n_m (accuracy_m - confidence_m)
    np.add.at(gaps, np.searchsorted(np.arange(1, n_bins) / n_bins, confidence), right - confidence)
    return float(np.abs(gaps).sum() / len(p))


def agreement_score(
    model: HMoEVAE,
    x: Samples,
    *,
    view: ViewLike | None = None,
    partner: ViewLike | None = None,
    level: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> float:
    """How much the node of a sample tells of the node of its partner: a score without labels, to choose among runs.

    I(c; c') / log C, where c is a node drawn for `view(x)` and c' one drawn for `view(partner(x))`: the mutual
    information of their symmetric joint distribution, mean over the samples of (p p'^T + p' p^T) / 2, as a share of its
    largest value for C nodes (Ji et al. 2019, arXiv 1807.06653). It is 1 where the gates are sure, both samples of a
    pair are always in the same node, and all nodes are used alike. It is 0 where all samples are in one node or the
    gates know nothing, and, but for about 0.5 (C - 1)^2 / n nats, where pairs meet by chance.

    Give it samples that training has not seen, the same ones and the same `view`, `partner` and `seed` for every run
    that is compared. It compares trees of equal numbers of nodes. Where kinds are unequal, the best value is below 1.

    Args:
        model: The model; only its gates are used.
        x: Samples, `(n, *input_shape)`; a few thousand.
        view: A random change of both samples of a pair, such as `hm.views.RandomAffine()`.
        partner: What makes a sample's partner, such as `hm.views.Neighbour()`; it is prepared for `x`. `None` means
            that the sample is its own partner, so that two changed copies of it are compared.
        level: Depth of the nodes, as in `model.predict`; `None` means the leaves.
        seed: Seed of the draws of both views.
        batch_size: Samples evaluated at a time.

    Raises:
        ArgumentTypeError: `model` is not an `HMoEVAE`, or a view cannot be called.
        ArgumentError: There is neither a view nor a partner, or the level has one node only.

    >>> from hmoevae import VAE, Mixture
    >>> model = HMoEVAE(Mixture.of(VAE(), 3), input_shape=(4,))
    >>> 0 <= agreement_score(model, torch.rand(50, 4), view=lambda x: x + 0.1 * torch.randn_like(x)) <= 1
    True
    """
    if not isinstance(model, HMoEVAE):
        raise ArgumentTypeError(mismatch("model", "an HMoEVAE, such as an estimator's model_", type(model).__name__))
    if view is None and partner is None:
        raise ArgumentError(mismatch("view", "a view or a partner, since a sample agrees with itself", None))
    n_nodes = model.plan.n_leaves if level is None else len(model.plan.level(level))
    if n_nodes == 1:
        raise ArgumentError(mismatch("level", "one of several nodes", f"{level}, which has one"))
    samples = model.checked(x, support=False).x
    change = [] if view is None else [as_view(view, "view")]
    parts = change, change if partner is None else [as_view(partner, "partner"), *change]
    generator = torch.Generator(samples.device).manual_seed(seed)
    probability: list[Tensor] = []
    with torch.no_grad(), borrowed_random_state(seed, samples.device):  # a plain callable draws from the global ones
        for part in parts:
            made = Compose(part).prepare(samples)
            seen = made(samples.clone(), index=torch.arange(len(samples)), generator=generator)
            seen = model.checked(seen, support=False)
            probability.append(model.predict_proba(seen, level=level, batch_size=batch_size).cpu().double())
    p, q = (each.numpy() / each.sum(1, keepdim=True).numpy() for each in probability)
    joint = p.T @ q / len(p)
    return _information((joint + joint.T) / 2) / float(np.log(n_nodes))


def _information(joint: np.ndarray) -> float:
    """Mutual information of a joint distribution, in nats."""
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    there = joint > 0
    return max(0.0, float((joint[there] * np.log(joint[there] / apart[there])).sum()))


def report(model: HMoEVAE, x: Samples, labels: Labels, *, batch_size: int = BATCH_SIZE) -> dict[str, float]:
    """Every score of this module for the gates of a model, at the leaves and at each level between them and the root.

    Args:
        model: The model; only its gates are used.
        x: Samples, `(n, *input_shape)`.
        labels: `(n,)` integers.
        batch_size: Samples evaluated at a time.

    Returns:
        `accuracy`, `nmi`, `ari`, `leaf_purity`, `usage_entropy` and `calibration_error` of the leaves,
        `dendrogram_purity` of the tree, and all except the last for each level, with names such as `accuracy_level1`.

    Raises:
        ArgumentTypeError: `model` is not an `HMoEVAE`.
        ShapeError: The samples do not have the model's shape, or the number of labels differs.

    >>> from hmoevae import VAE, Mixture
    >>> model = HMoEVAE(Mixture.of(Mixture.of(VAE(), 2), 2), input_shape=(4,))
    >>> scores = report(model, torch.rand(20, 4), torch.arange(20) % 2)
    >>> sorted(name for name in scores if not name.endswith("_level1"))
    ['accuracy', 'ari', 'calibration_error', 'dendrogram_purity', 'leaf_purity', 'nmi', 'usage_entropy']
    """
    if not isinstance(model, HMoEVAE):
        raise ArgumentTypeError(mismatch("model", "an HMoEVAE, such as an estimator's model_", type(model).__name__))
    x, labels = model.checked(x, support=False), read_labels("labels", labels)
    if labels.shape != (len(x),):
        raise ShapeError(mismatch("labels", f"one per sample, ({len(x)},)", labels.shape))
    scores: dict[str, float] = {}
    for level in (None, *range(1, model.plan.depth)):
        p = model.predict_proba(x, level=level, batch_size=batch_size)
        at_level = clustering_scores(labels, p.argmax(1)) | {
            "usage_entropy": usage_entropy(p),
            "calibration_error": calibration_error(labels, p),
        }
        if level is None:
            at_level["dendrogram_purity"] = dendrogram_purity(labels, p.argmax(1), model.tree)
        scores |= at_level if level is None else {f"{name}_level{level}": value for name, value in at_level.items()}
    return scores


def _vectors(labels: Labels, clusters: Labels, name: str = "clusters") -> tuple[np.ndarray, np.ndarray]:
    y, c = read_labels("labels", labels), read_labels(name, clusters)
    if y.shape != c.shape:
        raise ShapeError(mismatch(name, f"one per label, {y.shape}", c.shape))
    return y, c


def _probabilities(probabilities: ArrayLike) -> np.ndarray:
    if isinstance(probabilities, torch.Tensor):
        probabilities = probabilities.detach().cpu().double().numpy()  # first to the CPU: Apple's GPUs have no float64
    expected = "numbers, one per sample and node"
    if np.ma.is_masked(probabilities):
        raise DataError(mismatch("probabilities", expected, "masked ones"))
    if np.iscomplexobj(probabilities):
        raise DataError(mismatch("probabilities", expected, "complex ones"))
    try:
        p = np.asarray(probabilities, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(mismatch("probabilities", expected, f"{error}")) from None
    if p.ndim != 2 or p.size == 0:
        raise ShapeError(mismatch("probabilities", "(n, node)", p.shape))
    wrong = ~((p >= 0).all(1) & np.isclose(p.sum(1), 1, atol=0.02))  # bfloat16 has three digits
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(mismatch("probabilities", "rows that are >= 0 and sum to 1", f"{p[row].tolist()} in row {row}"))
    return p


def _matched(labels: Labels, clusters: Labels) -> np.ndarray:
    """Whether each sample's cluster is matched with its label, under the best one-to-one match."""
    y, c = _vectors(labels, clusters)
    rows, columns = linear_sum_assignment(contingency_matrix(y, c), maximize=True)
    y = np.unique(y, return_inverse=True)[1]
    names, c = np.unique(c, return_inverse=True)
    label_of = np.full(len(names), -1)
    label_of[columns] = rows
    return label_of[c] == y

"""Starts: a leaf for every sample, by clustering, with which training begins.

Axes: `n` counts samples.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hmoevae.errors import (
    ArgumentError,
    ArgumentTypeError,
    DataError,
    MissingExtraError,
    ShapeError,
    from_extra,
    mismatch,
)
from hmoevae.features import principal_components
from hmoevae.kinds import neighbour_graph, parts_of
from hmoevae.nn.gaps import observed
from hmoevae.plan import Plan, PlannedNode
from hmoevae.tree_module import TreeModule

StartName = Literal["random", "kmeans", "umap", "graph"]
Clustering = Callable[[Float[np.ndarray, "n feature"], int, int], Int[np.ndarray, " n"]]
"""From features, a number of clusters and a seed to the index of every sample's cluster, from 0."""
ClustersOf = Callable[[Int[Tensor, " member"], int], Int[Tensor, " member"]]
"""From samples, as indices, and a number of clusters to the cluster of each, from 0."""
Start = StartName | Tensor | np.ndarray | Clustering
N_COMPONENTS = 50
"""Number of principal components that are clustered."""


def kmeans(
    features: Float[np.ndarray, "n feature"],
    n_clusters: int,
    seed: int,
    sample_weight: Float[np.ndarray, " n"] | None = None,
) -> Int[np.ndarray, " n"]:
    """k-means, the best of ten runs.

    >>> kmeans(np.array([[0.0], [0.1], [5.0]]), 2, seed=0).tolist() in ([0, 0, 1], [1, 1, 0])
    True
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise MissingExtraError(mismatch("init='kmeans'", from_extra("scikit-learn", "sklearn"), f"{error}")) from None
    n_init: Any = 10  # scikit-learn's annotation knows of "auto" only
    return KMeans(n_clusters, n_init=n_init, random_state=seed).fit_predict(features, sample_weight=sample_weight)


def umap(features: Float[np.ndarray, "n feature"], n_clusters: int, seed: int) -> Int[np.ndarray, " n"]:
    """A Gaussian mixture on a 10-dimensional UMAP embedding with `min_dist=0` (McConville et al. 2021, N2D)."""
    try:
        from sklearn.mixture import GaussianMixture
        from umap import UMAP  # pyright: ignore[reportMissingImports]  # an extra that the tests do without
    except ImportError as error:
        raise MissingExtraError(mismatch("init='umap'", from_extra("umap-learn", "umap"), f"{error}")) from None
    n_components = min(10, len(features) - 2)  # UMAP's spectral initialisation needs more samples than dimensions
    embedding = UMAP(n_neighbors=15, n_components=n_components, min_dist=0.0, random_state=seed, n_jobs=1)
    return GaussianMixture(n_clusters, n_init=5, random_state=seed).fit_predict(embedding.fit_transform(features))


_BY_NAME: dict[str, Clustering] = {"kmeans": kmeans, "umap": umap}


def comparable(model: TreeModule, samples: Float[Tensor, "n *sample"]) -> Float[Tensor, "n *shown"]:
    """What a clustering compares: what networks see of the samples, such as one-hot codes, without the mask.

    Samples of which networks see every value keep their shape.

    A missing cell stays NaN, which `hmoevae.features.filled` fills; where a cell is shown by several numbers, they are
    zeros.

    >>> import hmoevae as hm
    >>> comparable(hm.HMoEVAE(hm.VAE(2), (2,), missing=True), torch.tensor([[0.5, torch.nan]]))
    tensor([[0.5000,    nan]])
    """
    flat, likelihood = samples.flatten(1), model.experts.first.likelihood
    if model.missing:
        present = observed(flat)
        shown = likelihood.shown(flat.t(), present.t()).t()
        shown = shown.masked_fill(~present, torch.nan) if shown.shape == flat.shape else shown
    else:
        shown = likelihood.shown(flat.t()).t()
    return shown.reshape(len(samples), *likelihood.shown_shape(tuple(samples.shape[1:])))


def check_start(start: object, argument: str) -> None:
    """Check a start, as far as possible without data.

    Raises:
        ArgumentError: There is no start of that name.
        ArgumentTypeError: It is neither a name, nor labels, nor a callable.

    >>> check_start("kmeans", "init")
    """
    if isinstance(start, str):
        if start not in get_args(StartName):
            names = ", ".join(map(repr, get_args(StartName)))
            raise ArgumentError(mismatch(argument, f"one of {names}, labels or a callable", repr(start)))
    elif not isinstance(start, Tensor | np.ndarray) and not callable(start):
        expected = "a name, an array of leaf indices or a callable"
        raise ArgumentTypeError(mismatch(argument, expected, type(start).__name__))


def first_leaves(
    plan: Plan, samples: Tensor, start: Start | str, seed: int, sample_weight: Float[Tensor, " n"] | None = None
) -> Int[Tensor, " n"]:
    """The leaf of every sample for the start phase: given, or found by clustering each cluster again, level by level.

    Args:
        plan: The compiled tree.
        samples: All samples.
        start: As `init` of `hmoevae.Training`, other than `"random"`.
        seed: Seed of the clustering.
        sample_weight: Weights of the samples, which `"kmeans"` uses; other clusterings have no place for them.

    Returns:
        Indices of leaves.

    Raises:
        ArgumentError: `start` is not one of those, or its labels or clusters are out of range or masked.
        MissingExtraError: The clustering's library is not installed.
    """
    check_start(start, "init")
    if isinstance(start, Tensor | np.ndarray):
        return _checked(start, len(samples), plan.n_leaves)
    leaf = torch.zeros(len(samples), dtype=torch.long, device="cpu")
    clustering = _BY_NAME.get(start) if isinstance(start, str) else start
    if start == "graph":
        clusters_of = _cut(samples, seed)
    elif clustering is not None:
        weight = None if sample_weight is None or clustering is not kmeans else sample_weight.cpu().numpy()
        clusters_of = _clustered(samples, clustering, seed % (1 << 32), weight)  # scikit-learn takes seeds of 32 bits
    else:
        raise ArgumentError(mismatch("init", "a start other than 'random'", repr(start)))
    _split(plan, plan.nodes[0], torch.arange(len(samples), device="cpu"), clusters_of, leaf)
    return leaf


def _clustered(
    samples: Float[Tensor, "n *sample"], clustering: Clustering, seed: int, weight: Float[np.ndarray, " n"] | None
) -> ClustersOf:
    """Clusters of the principal components of some samples."""
    flat = samples.flatten(1).cpu()

    def clusters_of(members: Int[Tensor, " member"], n_clusters: int) -> Int[Tensor, " member"]:
        features = principal_components(flat[members], N_COMPONENTS)
        given = {} if weight is None or not weight[members].any() else {"sample_weight": weight[members]}
        return _checked(clustering(features, n_clusters, seed, **given), len(members), n_clusters)

    return clusters_of


def _cut(samples: Float[Tensor, "n *sample"], seed: int) -> ClustersOf:
    """Parts of the graph of neighbours of all samples; images without gaps are compared as images."""
    are_images = samples.ndim == 4 and bool(samples.isfinite().all())
    compared = samples if are_images else torch.from_numpy(principal_components(samples, N_COMPONENTS))
    graph = neighbour_graph(compared, seed=seed)

    def clusters_of(members: Int[Tensor, " member"], n_clusters: int) -> Int[Tensor, " member"]:
        rows = members.numpy()
        return torch.from_numpy(parts_of(graph[rows][:, rows], n_clusters))

    return clusters_of


def _split(
    plan: Plan,
    node: PlannedNode,
    members: Int[Tensor, " member"],
    clusters_of: ClustersOf,
    leaf: Int[Tensor, " n"],
) -> None:
    """Cluster the `members` of `node` and, recursively, each cluster; write their leaves to `leaf`."""
    n_children = len(node.spec.children)
    if n_children == 0:
        leaf[members] = node.leaves.start
        return
    if len(members) < max(n_children, 3):  # too few to cluster: any assignment will do
        clusters = torch.arange(len(members), device="cpu") % n_children
    else:
        clusters = clusters_of(members, n_children)
    for i, edge in enumerate(node.child_edges):
        child = plan.nodes[plan.edge_child[edge]]
        _split(plan, child, members[clusters == i], clusters_of, leaf)


def _checked(given: Tensor | np.ndarray | Sequence[int], n: int, n_labels: int) -> Int[Tensor, " n"]:
    """Check labels and return them as indices, on the CPU."""
    if np.ma.is_masked(given):
        raise DataError(mismatch("init", "a label for every sample", "masked ones"))
    array = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if array.shape != (n,):
        raise ShapeError(mismatch("init", f"one label per sample, ({n},)", array.shape))
    if not np.issubdtype(array.dtype, np.integer):
        dtype = given.dtype if isinstance(given, Tensor) else array.dtype
        raise ArgumentTypeError(mismatch("init", "integer labels", dtype))
    labels = torch.from_numpy(array.astype(np.int64))  # copies any width, byte order and strides
    low, high = (int(end) for end in labels.aminmax())
    if low < 0 or high >= n_labels:
        raise ArgumentError(mismatch("init", f"labels from 0 to {n_labels - 1}", f"{low} to {high}"))
    return labels

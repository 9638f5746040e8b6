"""Kinds: how many kinds there are among samples, and which, by cuts of the graph of their neighbours.

Axes: `n` counts samples, `feature` what they are compared by.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hmoevae.checks import check_choice, check_integer, check_number, is_integer
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, MissingExtraError, from_extra, mismatch
from hmoevae.features import oriented_gradients, principal_components_of
from hmoevae.nn.draws import borrowed_random_state
from hmoevae.views import Neighbour, RandomAffine, ViewLike, as_view

Changes = ViewLike | Literal["auto"] | None
Graph = Any
"""A `scipy.sparse.csr_matrix`, whose types would have to be imported."""
Limit = Callable[[Int[np.ndarray, " part"]], float]
LEAST = 20
"""Smallest number of samples of a kind."""
MOST_NEIGHBOURS = 25
FRACTION = 0.5
"""A cut is good if its conductance is below this fraction of that of the best cut of one kind."""
MANY_DIMENSIONS = 10
MOST_DRAWN, DRAWS = 20_000, 5
"""Largest number of samples of a reference, and number of references of each size."""
STROKES = 16
"""Smallest width and height of images that are compared by their edges; smaller ones are compared by their pixels."""
EIGENVECTORS = 3
"""Number of eigenvectors along which a cut is looked for."""
ROUNDS = 20
"""Largest number of rounds in which samples go to the kind of most of their neighbours."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The best way to cut a set of samples in two.

    Attributes:
        path: The set, in the binary tree of cuts, such as `"root/0/1"`.
        size: Number of its samples.
        smaller: Number of samples of the smaller part.
        conductance: Share of the smaller part's edges that the cut goes through, from 0 to 1.
        accepted: Whether the set was cut.

    >>> Cut("root", 100, 40, 0.01, accepted=True).size
    100
    """

    path: str
    size: int
    smaller: int
    conductance: float
    accepted: bool


@dataclass(frozen=True, slots=True, repr=False)
class Kinds:
    """What `find_kinds` has found.

    Attributes:
        labels: The kind of every sample. Kinds that were cut from each other last have numbers side by side.
        cuts: The best cut of every set that was looked at, depth first.

    >>> found = Kinds(torch.tensor([0, 1, 1, 1]), ())
    >>> found, found.n_kinds, found.shares
    (<Kinds: 2 among 4 samples>, 2, tensor([0.2500, 0.7500]))
    """

    labels: Int[Tensor, " n"]
    cuts: tuple[Cut, ...]

    @property
    def n_kinds(self) -> int:
        """Number of kinds."""
        return int(self.labels.max()) + 1

    @property
    def shares(self) -> Float[Tensor, " kind"]:
        """Share of the samples that are of each kind."""
        return self.labels.bincount() / len(self.labels)

    def __repr__(self) -> str:
        return f"<Kinds: {self.n_kinds} among {len(self.labels)} samples>"


def find_kinds(
    x: Float[Tensor, "n *sample"],
    *,
    neighbour: Neighbour | None = None,
    changes: Changes = "auto",
    n_changes: int = 4,
    max_conductance: float = 0.06,
    smallest: float = 0.005,
    max_kinds: int | None = None,
    seed: int = 0,
) -> Kinds:
    """Find the kinds among samples, and their number, without training and without labels.

    Every sample is joined to its nearest neighbours, and to the nearest neighbours of changed copies of itself, such as
    a rotated one. A kind is a set of samples that no good cut divides. A cut is good where few edges cross it: its
    conductance (share of the smaller part's edges that cross) is below `max_conductance`, and below half of that of a
    Gaussian of the same size and spread (`one_kind`). The best cut of a set is looked for along the leading
    eigenvectors of the normalised graph (Shi & Malik 2000; Kannan, Vempala & Vetta 2004).
    The set of all samples is cut, then its parts, the best cut first, as long as there are good ones. In the end every
    sample goes to the kind of most of its neighbours.

    Copies matter where samples of a kind differ by something continuous, as digits by their slant: along it, neighbours
    alone make a long chain, which is easily cut.

    Args:
        x: Samples, on any device.
        neighbour: How neighbours are found, and how many. `None` means a tenth of the root of n, from 5 to 25, so that
            conductances of more and of fewer samples can be compared; for images of at least 16 by 16 pixels, with
            `hmoevae.features.oriented_gradients`. Changed copies have half as many. With `mutual`, two samples are
            joined if each is among the neighbours of the other or of its copies.
        changes: A random change of samples that leaves a sample like others of its kind. `"auto"` rotates and shears
            images, which have to be centred, and changes nothing else; `None` changes nothing.
        n_changes: Number of changed copies of each sample.
        max_conductance: The largest conductance of a cut that is made.
        smallest: The smallest share of all samples that is a kind; at least 20 samples are.
        max_kinds: Largest number of kinds; `None` for no limit.
        seed: Seed of the changes.

    Raises:
        ArgumentError: An argument is out of range.
        ArgumentTypeError: `x` is not a tensor of floating point numbers.
        DataError: There are too few samples, or they are not finite.
        MissingExtraError: scikit-learn is not installed.

    >>> rng = torch.Generator().manual_seed(0)
    >>> x = torch.cat([torch.randn(200, 5, generator=rng) + 8 * i for i in range(3)])
    >>> found = find_kinds(x)
    >>> found.n_kinds, found.labels.bincount()
    (3, tensor([200, 200, 200]))
    """
    for name, value in (("max_conductance", max_conductance), ("smallest", smallest)):
        check_number(name, value)
        if value >= 1:
            raise ArgumentError(mismatch(name, "a number below 1", repr(value)))
    if max_kinds is not None:
        check_integer("max_kinds", max_kinds)
    graph = neighbour_graph(x, neighbour=neighbour, changes=changes, n_changes=n_changes, seed=seed)
    limit = limit_of(x, max_conductance, neighbour=neighbour, smallest=smallest, seed=seed)
    return kinds_of(graph, limit=limit, smallest=smallest, max_kinds=max_kinds)


def kinds_of(graph: Graph, *, limit: Limit, smallest: float, max_kinds: int | None = None) -> Kinds:
    """The kinds among the samples of a graph, as in `find_kinds`.

    Args:
        graph: The graph.
        limit: The largest conductance of a cut that is made, by the samples of the set that is cut.
        smallest: As in `find_kinds`.
        max_kinds: As in `find_kinds`.

    >>> from scipy.sparse import block_diag
    >>> graph = block_diag([np.ones((30, 30)), np.ones((50, 50))]).tocsr()
    >>> kinds_of(graph, limit=lambda members: 0.06, smallest=0.0).n_kinds
    2
    """
    n = len(graph.indptr) - 1
    parts, cuts = [], []
    for cut, part in _cuts(graph, least_of(n, smallest), limit, max_kinds):
        cuts.append(cut)
        if part is not None:
            parts.append(part)
    labels = np.empty(n, np.int64)
    for kind, part in enumerate(parts):
        labels[part] = kind
    return Kinds(torch.from_numpy(_settled(graph, labels)), tuple(cuts))


def parts_of(graph: Graph, n_parts: int) -> Int[np.ndarray, " n"]:
    """So many parts of a graph, by its best cuts, whether they are good ones or not.

    Every cut leaves at least a tenth of an even share on either side. In the end every sample goes to the part of most
    of its neighbours, which may make a part smaller.

    Args:
        graph: The graph.
        n_parts: Number of parts. There are fewer if only sets of two or three samples are left to be cut.

    >>> from scipy.sparse import block_diag
    >>> parts_of(block_diag([np.ones((3, 3)), np.ones((2, 2))]).tocsr(), 2).tolist()
    [0, 0, 0, 1, 1]
    """
    n = len(graph.indptr) - 1
    labels, least = np.empty(n, np.int64), max(1, n // (10 * n_parts))
    cuts = _cuts(graph, least, lambda _: 1.0, n_parts)  # no conductance is larger
    for i, part in enumerate(part for _, part in cuts if part is not None):
        labels[part] = i
    return _settled(graph, labels)


def least_of(n: int, smallest: float) -> int:
    """The smallest number of samples of a kind among `n`, of which it is at least this share.

    >>> least_of(100, 0.005), least_of(10_000, 0.005)
    (20, 50)
    """
    return max(LEAST, round(smallest * n))


def limit_of(
    x: Float[Tensor, "n *sample"],
    max_conductance: float,
    *,
    neighbour: Neighbour | None = None,
    smallest: float = 0.005,
    seed: int = 0,
) -> Limit:
    """The largest conductance of a cut that is made, by the set that is cut: at most half of `one_kind` of that set.

    >>> limit_of(torch.randn(500, 20), 0.06)(np.arange(500))
    0.06
    """
    x = x.detach().cpu()
    neighbour = _neighbour(x, neighbour)
    described = neighbour.features if neighbour.features is not None else _flat
    features = principal_components_of(described(x), neighbour.n_components)[0].astype(np.float64)
    k, least = neighbour.k, least_of(len(x), smallest)

    def limit(members: Int[np.ndarray, " part"]) -> float:
        return min(max_conductance, FRACTION * one_kind(features[members], k, least, seed))

    return limit


def one_kind(features: Float[np.ndarray, "n feature"], k: int, least: int, seed: int = 0) -> float:
    """The conductance of the best cut of samples that are one kind: of a Gaussian of the same size and variances.

    A single Gaussian in a plane is easily cut, too: few of its neighbours are on both sides of any line. In many
    dimensions it is not. So a Gaussian with the variances of the principal components is drawn and cut, some times, as
    in the gap statistic (Tibshirani, Walther & Hastie 2001). Where the variances are spread over more than ten
    dimensions, no cut of a Gaussian is good, and nothing is drawn: the result is 1.

    Args:
        features: Principal components of the samples.
        k: Number of neighbours of a sample.
        least: Smallest number of samples of a part.
        seed: Seed of the draws.

    >>> rng = np.random.default_rng(0)
    >>> one_kind(rng.normal(size=(500, 2)), 5, 20) < 0.06, one_kind(rng.normal(size=(500, 20)), 5, 20)
    (True, 1.0)
    """
    variance = features.var(0)
    total, size = variance.sum(), min(len(features), MOST_DRAWN)
    if size < max(2 * least, k + 1) or total == 0 or total**2 / (variance**2).sum() > MANY_DIMENSIONS:
        return 1.0
    rng = np.random.default_rng(seed)
    drawn = (rng.normal(size=(size, len(variance))) * np.sqrt(variance) for _ in range(DRAWS))
    graphs = (_joined([_search(each).kneighbors(n_neighbors=k, return_distance=False)]) for each in drawn)
    return min(best_cut(graph, least)[0] for graph in graphs)


def _neighbour(x: Tensor, neighbour: Neighbour | None) -> Neighbour:
    """What is given, or the usual for these samples."""
    if neighbour is not None:
        return neighbour
    has_strokes = x.ndim == 4 and min(x.shape[2:]) >= STROKES
    k = min(MOST_NEIGHBOURS, max(5, round(math.sqrt(len(x)) / 10)))
    return Neighbour(k=k, features=oriented_gradients if has_strokes else None)


def neighbour_graph(
    x: Float[Tensor, "n *sample"],
    *,
    neighbour: Neighbour | None = None,
    changes: Changes = "auto",
    n_changes: int = 4,
    seed: int = 0,
) -> Graph:
    """The symmetric graph of neighbours of samples and of changed copies; entries count edges.

    Arguments and errors are those of `find_kinds`.

    >>> graph = neighbour_graph(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), neighbour=Neighbour(k=1))
    >>> graph.toarray().astype(int).tolist()
    [[0, 2, 0, 0], [2, 0, 0, 0], [0, 0, 0, 2], [0, 0, 2, 0]]
    """
    check_integer("n_changes", n_changes, least=0)
    if not is_integer(seed, -(1 << 63)) or seed >= 1 << 64:
        raise ArgumentError(mismatch("seed", "an integer of at most 64 bits", repr(seed)))
    if not isinstance(neighbour, Neighbour | None):
        raise ArgumentTypeError(mismatch("neighbour", "a Neighbour(...) or None", repr(neighbour)))
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ArgumentTypeError(mismatch("x", "a tensor of floating point samples, (n, *sample)", got))
    x = x.detach().cpu()
    neighbour = _neighbour(x, neighbour)
    if len(x) <= neighbour.k:
        raise DataError(mismatch("x", f"more than {neighbour.k} samples for {neighbour.k} neighbours", len(x)))
    if not x.isfinite().all():
        raise DataError(mismatch("x", "finite values", "NaN or infinite ones"))
    if isinstance(changes, str):
        check_choice("changes", changes, ["auto"])
        changes = RandomAffine(translate=(0.0, 0.0), scale=(1.0, 1.0)) if x.ndim == 4 else None
    described = neighbour.features if neighbour.features is not None else _flat
    features, project = principal_components_of(described(x), neighbour.n_components)
    search = _search(features)
    tables = [search.kneighbors(n_neighbors=neighbour.k, return_distance=False)]
    if changes is not None:
        view, generator = as_view(changes, "changes"), torch.Generator().manual_seed(seed)
        with borrowed_random_state(seed):  # a view that is a plain callable draws from the global ones
            for _ in range(n_changes):
                copies = project(described(view(x, index=torch.arange(len(x)), generator=generator)))
                tables.append(search.kneighbors(copies, n_neighbors=max(1, neighbour.k // 2), return_distance=False))
    return _joined(tables, neighbour.mutual)


def _search(features: Float[np.ndarray, "n feature"]) -> Any:
    """What finds nearest neighbours among samples."""
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError as error:
        raise MissingExtraError(mismatch("find_kinds", from_extra("scikit-learn", "sklearn"), f"{error}")) from None
    return NearestNeighbors().fit(features)


def _joined(tables: Sequence[Int[np.ndarray, "n _"]], mutual: bool = False) -> Graph:
    """The symmetric graph of tables of neighbours; entries count edges, or those found from both ends."""
    from scipy.sparse import csr_matrix

    n = len(tables[0])
    rows = np.concatenate([np.repeat(np.arange(n), table.shape[1]) for table in tables])
    columns = np.concatenate([table.ravel() for table in tables])
    kept = rows != columns
    edges = csr_matrix((np.ones(kept.sum()), (rows[kept], columns[kept])), shape=(n, n))
    graph = (edges + edges.T).tocsr()
    return graph.multiply(edges.astype(bool).multiply(edges.T.astype(bool))).tocsr() if mutual else graph


def _flat(samples: Float[Tensor, "m *sample"]) -> Float[Tensor, "m feature"]:
    return samples.flatten(1)


def _cuts(
    graph: Graph, least: int, limit: Limit, max_kinds: int | None
) -> Iterator[tuple[Cut, Int[np.ndarray, " part"] | None]]:
    """Every cut that is looked at, in the order of paths, with the samples of the set where it is not cut.

    The best cuts, those furthest below the limit, are made first, until there are no good ones or enough kinds.
    """
    waiting: list[tuple[float, str, Int[np.ndarray, " part"], Bool[np.ndarray, " part"], Cut]] = []
    made: list[tuple[Cut, Int[np.ndarray, " part"] | None]] = []

    def look(path: str, members: Int[np.ndarray, " part"]) -> None:
        conductance, first = best_cut(graph[members][:, members], least)
        smaller = min(int(first.sum()), len(members) - int(first.sum()))
        cut = Cut(path, len(members), smaller, conductance, accepted=False)
        excess = conductance - limit(members) if smaller else math.inf
        heapq.heappush(waiting, (excess, path, members, first, cut))

    look("root", np.arange(len(graph.indptr) - 1))  # the shape, of which scipy's annotations know nothing
    while waiting[0][0] <= 0 and (max_kinds is None or len(waiting) < max_kinds):
        _, path, members, first, cut = heapq.heappop(waiting)
        made.append((replace(cut, accepted=True), None))
        look(f"{path}/0", members[first])
        look(f"{path}/1", members[~first])
    ends = [(cut, members) for _, _, members, _, cut in waiting]
    yield from sorted([*made, *ends], key=lambda each: each[0].path)


def best_cut(graph: Graph, least: int) -> tuple[float, Bool[np.ndarray, " n"]]:
    """The cut of smallest conductance along the leading eigenvectors, with at least so many samples on either side.

    Args:
        graph: Symmetric weights of edges.
        least: Smallest number of samples of a part.

    Returns:
        The conductance, 1 where no cut is possible; and which samples are in the first part.

    >>> from scipy.sparse import csr_matrix
    >>> pairs = csr_matrix([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
    >>> best_cut(pairs, least=2)[0]
    0.0
    """
    from scipy.sparse.csgraph import connected_components

    n = len(graph.indptr) - 1
    none = 1.0, np.zeros(n, bool)
    if n < 2 * least:
        return none
    n_components, component = connected_components(graph, directed=False)
    sizes = np.bincount(component)
    if (sizes >= least).sum() > 1:
        return 0.0, component == int(np.flatnonzero(sizes >= least)[0])
    main = np.flatnonzero(component == sizes.argmax())  # what is not connected to it is too small to be a part
    if n_components > 1:
        conductance, within = best_cut(graph[main][:, main], least)
        first = np.zeros(n, bool)
        first[main] = within
        return conductance, first
    degree = np.asarray(graph.sum(1)).ravel()
    best = none
    for vector in _eigenvectors(graph, degree):
        order = vector.argsort(kind="stable")
        conductance = _conductances(graph, degree, order)
        place = least - 1 + int(conductance[least - 1 : n - least].argmin())
        if conductance[place] < best[0]:
            first = np.zeros(n, bool)
            first[order[: place + 1]] = True
            best = float(conductance[place]), first
    return best


def _eigenvectors(graph: Graph, degree: Float[np.ndarray, " n"]) -> Iterator[Float[np.ndarray, " n"]]:
    """The leading eigenvectors of the random walk on the graph but for the constant one, the slowest first."""
    from scipy.sparse import diags
    from scipy.sparse.linalg import eigsh

    n, root = len(degree), np.sqrt(degree)
    walk = diags(1 / root) @ graph @ diags(1 / root)
    n_wanted = min(EIGENVECTORS + 1, n - 1)
    start = root + 0.01 * np.random.default_rng(0).normal(size=n)
    loose: Any = 1e-3  # the stubs ask for an integer
    values, vectors = eigsh(walk, k=n_wanted, which="LA", v0=start, tol=loose)
    for i in values.argsort()[::-1][1:]:
        yield vectors[:, i] / root


def _conductances(
    graph: Graph, degree: Float[np.ndarray, " n"], order: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " cut"]:
    """The conductance of every cut between samples in an order: cut i has i + 1 samples before it."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    edges = graph.tocoo()
    ends = np.sort(place[np.stack([edges.row, edges.col])], axis=0)  # each edge is there twice
    change = np.bincount(ends[0], edges.data, len(order)) - np.bincount(ends[1], edges.data, len(order))
    crossing = change.cumsum()[:-1] / 2
    volume = degree[order].cumsum()
    return crossing / np.minimum(volume[:-1], volume[-1] - volume[:-1])


def _settled(graph: Graph, labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Let every sample go to the kind of most of its neighbours, until none does or for so many rounds."""
    from scipy.sparse import csr_matrix

    n, n_kinds = len(labels), int(labels.max()) + 1
    for _ in range(ROUNDS):
        indicator = csr_matrix((np.ones(n), (np.arange(n), labels)), shape=(n, n_kinds))
        votes = csr_matrix(graph @ indicator).toarray()
        votes[np.arange(n), labels] += 0.5  # a tie changes nothing
        found = votes.argmax(1)
        if (found == labels).all() or len(np.unique(found)) < n_kinds:
            break
        labels = found
    return labels

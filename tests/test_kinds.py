"""Kinds: what is planted is found, cuts are the best ones, and what cannot be used is refused."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import block_diag, csr_matrix
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, MissingExtraError
from hmoevae.kinds import LEAST, _conductances, best_cut, kinds_of, neighbour_graph, one_kind, parts_of

pytestmark = pytest.mark.usefixtures("as_users_call")


def blobs(sizes: tuple[int, ...], n_features: int = 8, apart: float = 10.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit Gaussians far from each other, shuffled, and which each sample is of."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    x = torch.randn(len(kind), n_features, generator=generator) + apart * kind.unsqueeze(1)
    order = torch.randperm(len(kind), generator=generator)
    return x[order], kind[order]


def chains(n: int, n_chains: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Samples along lines in five dimensions, which are so long that neighbours know little of the ends."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.5 * torch.randn(n * n_chains, 5, generator=generator)
    x[:, 0] += 100 * torch.rand(n * n_chains, generator=generator)
    chain = torch.arange(n_chains).repeat(n)
    x[:, 1] += 20 * chain
    return x, chain


def moved(x: Tensor) -> Tensor:
    """Copies anywhere on the same line: a plain callable, which draws from the global generator."""
    along = 100 * torch.rand(len(x), 1)
    return torch.cat([along, x[:, 1:]], 1)


def random_graph(n: int, share: float, seed: int) -> csr_matrix:
    """Symmetric random weights; a share of the pairs has an edge."""
    rng = np.random.default_rng(seed)
    weights = np.triu(rng.random((n, n)) * (rng.random((n, n)) < share), 1)
    return csr_matrix(weights + weights.T)


def plain_conductance(graph: csr_matrix, first: np.ndarray) -> float:
    """Edges that cross over the edges of the smaller side, pair by pair."""
    weights, crossing, volume = graph.toarray(), 0.0, {True: 0.0, False: 0.0}
    for i in range(len(weights)):
        for j in range(len(weights)):
            volume[bool(first[i])] += weights[i, j]
            if first[i] and not first[j]:
                crossing += weights[i, j]
    return crossing / min(volume.values())


def prefixes(order: np.ndarray) -> list[np.ndarray]:
    """All cuts between samples in an order."""
    return [np.isin(np.arange(len(order)), order[: i + 1]) for i in range(len(order) - 1)]


# --- what is planted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(150,), (100, 100), (400, 120, 40), (60, 25, 60, 25, 60)])
def test_blobs_of_unequal_sizes_are_found(sizes: tuple[int, ...]) -> None:
    x, kind = blobs(sizes)
    found = hm.find_kinds(x)
    assert found.n_kinds == len(sizes)
    assert adjusted_rand_score(kind, found.labels) == 1
    assert sorted(found.shares.tolist()) == pytest.approx(sorted(n / sum(sizes) for n in sizes))
    accepted = [cut for cut in found.cuts if cut.accepted]
    assert len(accepted) == len(sizes) - 1
    assert len(found.cuts) == 2 * len(sizes) - 1


@pytest.mark.parametrize("d", [2, 3, 5, 12])
def test_one_gaussian_is_one_kind_in_few_dimensions_too(d: int) -> None:
    x = torch.randn(700, d, generator=torch.Generator().manual_seed(d))
    assert hm.find_kinds(x).n_kinds == 1
    assert (one_kind(x.double().numpy(), 5, LEAST) == 1) == (d == 12)


def test_blobs_in_a_plane_are_found() -> None:
    angle = torch.arange(5) * (2 * torch.pi / 5)
    centres = 10 * torch.stack([angle.cos(), angle.sin()], 1)
    x = (centres.unsqueeze(1) + torch.randn(5, 100, 2, generator=torch.Generator().manual_seed(0))).flatten(0, 1)
    found = hm.find_kinds(x)
    assert found.n_kinds == 5
    assert adjusted_rand_score(torch.arange(5).repeat_interleave(100), found.labels) > 0.98


@pytest.mark.parametrize("most", [1, 2, 3, 9])
def test_the_best_cuts_are_made_first_up_to_a_number_of_kinds(most: int) -> None:
    x, _ = blobs((100, 100, 100, 100))
    found = hm.find_kinds(x, max_kinds=most)
    assert found.n_kinds == min(most, 4)
    paths = [cut.path for cut in found.cuts]
    assert paths == sorted(paths)
    assert sum(cut.accepted for cut in found.cuts) == found.n_kinds - 1
    ends = [cut.size for cut in found.cuts if not cut.accepted]
    assert ends == found.labels.bincount().tolist()


def test_changed_copies_keep_a_chain_together() -> None:
    x, chain = chains(300, 2)
    found = hm.find_kinds(x, changes=moved)
    assert found.n_kinds == 2
    assert adjusted_rand_score(chain, found.labels) == 1
    assert hm.find_kinds(x).n_kinds > 4
    assert hm.find_kinds(x, changes=moved, n_changes=0).n_kinds == hm.find_kinds(x, changes=None).n_kinds > 4


def test_images_are_rotated_and_described_by_their_edges() -> None:
    """Bars at any angle within the default rotations are a kind, and so are crosses."""
    bar = torch.zeros(1, 20, 20)
    bar[:, 3:17, 9:11] = 1
    cross = bar.clone()
    cross[:, 9:11, 3:17] = 1
    rotated = hm.views.RandomAffine(degrees=12.0, translate=(0.0, 0.0))
    generator = torch.Generator().manual_seed(0)
    x = rotated(torch.cat([bar.expand(80, 1, 20, 20), cross.expand(80, 1, 20, 20)]), generator=generator)
    x = x + 0.02 * torch.randn(x.shape, generator=generator)
    found = hm.find_kinds(x)
    assert adjusted_rand_score([0] * 80 + [1] * 80, found.labels) == 1
    plain, turned = (neighbour_graph(x, changes=changes) for changes in (None, "auto"))
    assert turned.sum() > plain.sum()


def test_kinds_that_were_cut_last_are_side_by_side() -> None:
    """Two pairs, whose order in the data does not matter."""
    generator = torch.Generator().manual_seed(0)
    place = torch.tensor([0.0, 100.0, 4.5, 104.5])
    kind = torch.arange(4).repeat(100)
    x = torch.randn(400, 10, generator=generator)
    x[:, 0] += place[kind]
    found = hm.find_kinds(x, max_conductance=0.1)
    assert found.n_kinds == 4
    pairs = found.labels // 2
    assert adjusted_rand_score(kind % 2, pairs) == 1
    assert [len(cut.path.split("/")) for cut in found.cuts] == [1, 2, 3, 3, 2, 3, 3]


def test_no_part_is_smaller_than_the_smallest() -> None:
    x, _ = blobs((200, 30))
    assert hm.find_kinds(x).n_kinds == 2
    found = hm.find_kinds(x, smallest=0.2)
    assert found.n_kinds == 1
    assert all(cut.smaller >= 46 or not cut.accepted for cut in found.cuts)


@pytest.mark.parametrize("limit", [0.0, 0.3])
def test_cuts_above_the_limit_are_not_made(limit: float) -> None:
    x, _ = blobs((100, 100), apart=2.0)
    found = hm.find_kinds(x, max_conductance=limit)
    assert all(cut.conductance <= limit for cut in found.cuts if cut.accepted)
    assert (found.n_kinds > 1) == (limit > 0)


# --- cuts -----------------------------------------------------------------------------------------------------------


@given(st.integers(4, 14), st.sampled_from((0.3, 0.6, 1.0)), st.integers(0, 999))
def test_conductances_are_those_of_a_plain_loop(n: int, share: float, seed: int) -> None:
    graph = random_graph(n, share, seed) + csr_matrix(np.diag(np.ones(n - 1), 1) + np.diag(np.ones(n - 1), -1))
    order = np.random.default_rng(seed).permutation(n)
    found = _conductances(graph, np.asarray(graph.sum(1)).ravel(), order)
    assert found == pytest.approx([plain_conductance(graph, first) for first in prefixes(order)])


@given(st.integers(6, 14), st.integers(1, 3), st.integers(0, 999))
def test_the_best_cut_is_the_best_of_all_along_the_eigenvectors(n: int, least: int, seed: int) -> None:
    graph = random_graph(n, 0.5, seed) + csr_matrix(np.full((n, n), 0.01) - 0.01 * np.eye(n))
    degree = graph.toarray().sum(1)
    _, vectors = np.linalg.eigh(graph.toarray() / np.sqrt(np.outer(degree, degree)))
    best = 1.0
    for i in range(2, 5):  # from the last, which is the constant one
        for first in prefixes((vectors[:, -i] / np.sqrt(degree)).argsort()):
            if least <= first.sum() <= n - least:
                best = min(best, plain_conductance(graph, first))
    conductance, first = best_cut(graph, least)
    assert conductance == pytest.approx(best, abs=1e-9)
    assert plain_conductance(graph, first) == pytest.approx(conductance)
    assert least <= first.sum() <= n - least


def test_a_small_graph_is_cut_where_no_other_cut_is_better() -> None:
    """Of two cliques with a bridge, by every cut that there is."""
    graph = block_diag([np.ones((5, 5)) - np.eye(5)] * 2).tolil()
    graph[4, 5] = graph[5, 4] = 1
    graph = graph.tocsr()
    codes = (np.array([i >> bit & 1 for bit in range(10)], bool) for i in range(1, 1023))
    conductance, first = best_cut(graph, 1)
    assert conductance == pytest.approx(min(plain_conductance(graph, code) for code in codes))
    assert set(np.flatnonzero(first)) in ({0, 1, 2, 3, 4}, {5, 6, 7, 8, 9})


@pytest.mark.parametrize("sizes", [(30, 50), (20, 20, 20), (3, 60, 40)])
def test_parts_that_are_not_connected_are_kinds_if_large_enough(sizes: tuple[int, ...]) -> None:
    graph = block_diag([np.ones((n, n)) - np.eye(n) for n in sizes]).tocsr()
    found = kinds_of(graph, limit=lambda _: 0.0, smallest=0.0)
    part = np.repeat(np.arange(len(sizes)), sizes)
    large = np.array([n >= LEAST for n in sizes])
    assert found.n_kinds == large.sum()
    kept = large[part]
    assert adjusted_rand_score(part[kept], found.labels[kept]) == 1
    assert len({int(i) for i in found.labels}) == found.n_kinds


def test_a_sample_goes_to_the_kind_of_most_of_its_neighbours() -> None:
    """One sample is on the wrong side of the cut, because 20 samples are the least."""
    graph = block_diag([np.ones((19, 19)), np.ones((41, 41))]).tolil()
    graph[18, 19] = graph[19, 18] = 0.1
    found = kinds_of(graph.tocsr(), limit=lambda _: 0.2, smallest=0.0)
    assert found.labels.bincount().tolist() in ([19, 41], [41, 19])
    assert found.cuts[0].smaller == LEAST


@pytest.mark.parametrize("n", [1, 2, 5, 2 * LEAST - 1])
def test_what_is_too_small_for_two_parts_is_one_kind(n: int) -> None:
    graph = csr_matrix(np.ones((n, n)))
    assert best_cut(graph, LEAST)[0] == 1
    assert not best_cut(graph, LEAST)[1].any()
    found = kinds_of(graph, limit=lambda _: 0.06, smallest=0.005)
    assert (found.n_kinds, len(found.cuts)) == (1, 1)


@pytest.mark.parametrize(("n", "n_parts"), [(40, 2), (40, 7), (300, 4)])
def test_so_many_parts_are_made_of_what_has_no_good_cut(n: int, n_parts: int) -> None:
    graph = neighbour_graph(torch.randn(n, 12, generator=torch.Generator().manual_seed(n)))
    parts = parts_of(graph, n_parts)
    assert np.unique(parts).tolist() == [*range(n_parts)]
    groups, kind = blobs((30, 50, 40))
    assert adjusted_rand_score(parts_of(neighbour_graph(groups), 3), kind) == 1


def test_equal_samples_are_one_kind() -> None:
    assert hm.find_kinds(torch.ones(100, 4)).labels.shape == (100,)
    assert hm.find_kinds(torch.rand(6, 4)).n_kinds == 1


# --- the graph ------------------------------------------------------------------------------------------------------


def test_the_graph_is_symmetric_and_has_no_loops() -> None:
    x, _ = blobs((30, 30))
    graph = neighbour_graph(x, neighbour=hm.views.Neighbour(k=3), changes=moved, n_changes=2)
    assert abs(graph - graph.T).sum() == 0
    assert graph.diagonal().sum() == 0
    assert graph.sum() <= 2 * 60 * (3 + 2)
    near = torch.cdist(x.double(), x.double()).fill_diagonal_(torch.inf).topk(3, largest=False).indices
    plain = np.zeros((60, 60))
    np.add.at(plain, (np.repeat(np.arange(60), 3), near.flatten().numpy()), 1)
    alone = neighbour_graph(x, neighbour=hm.views.Neighbour(k=3)).toarray()
    assert (alone == plain + plain.T).all()
    mutual = neighbour_graph(x, neighbour=hm.views.Neighbour(k=3, mutual=True)).toarray()
    assert (mutual == 2 * plain * plain.T).all()
    assert 0 < mutual.sum() < alone.sum()


def test_the_seed_fixes_the_changes_and_nothing_else_is_drawn(rng_untouched: None) -> None:
    x, _ = chains(100, 1)
    state = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    first, second = (neighbour_graph(x, changes=moved, seed=3) for _ in range(2))
    assert (first != second).nnz == 0
    assert (neighbour_graph(x, changes=moved, seed=4) != first).nnz > 0
    assert (np.random.get_state(legacy=False)["state"]["key"] == state).all()  # noqa: NPY002
    affine = hm.views.RandomAffine()
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    one, other = (neighbour_graph(images, changes=affine, seed=seed) for seed in (0, 1))
    assert (one != other).nnz > 0
    assert torch.equal(hm.find_kinds(x, changes=moved).labels, hm.find_kinds(x, changes=moved).labels)


# --- what is refused ------------------------------------------------------------------------------------------------


X = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X.numpy()}, ArgumentTypeError, "x: expected a tensor of floating point samples, (n, *sample), got nda"),
        ({"x": X.round().long()}, ArgumentTypeError, "x: expected a tensor of floating point samples, (n, *sample), "),
        ({"x": X[:, 0]}, ArgumentTypeError, "got torch.float32 of shape (50,)"),
        ({"x": X[:5]}, DataError, "x: expected more than 5 samples for 5 neighbours, got 5"),
        ({"x": X[:0]}, DataError, "x: expected more than 5 samples for 5 neighbours, got 0"),
        ({"x": X.where(X < 0.9, torch.nan)}, DataError, "x: expected finite values, got NaN or infinite ones"),
        ({"x": X.where(X < 0.9, torch.inf)}, DataError, "x: expected finite values, got NaN or infinite ones"),
        ({"max_conductance": 1.0}, ArgumentError, "max_conductance: expected a number below 1, got 1.0"),
        ({"max_conductance": -0.1}, ArgumentError, "max_conductance: expected a finite number >= 0, got -0.1"),
        ({"max_conductance": "small"}, ArgumentError, "max_conductance: expected a finite number >= 0, got 'small'"),
        ({"smallest": 1}, ArgumentError, "smallest: expected a number below 1, got 1"),
        ({"smallest": float("nan")}, ArgumentError, "smallest: expected a finite number >= 0, got nan"),
        ({"n_changes": -1}, ArgumentError, "n_changes: expected an integer > -1, got -1"),
        ({"n_changes": 1.5}, ArgumentError, "n_changes: expected an integer > -1, got 1.5"),
        ({"changes": "all"}, ArgumentError, "changes: expected one of 'auto', got 'all'"),
        ({"changes": 3}, ArgumentTypeError, "changes: expected a View or a callable from samples to samples, got int"),
        ({"neighbour": 5}, ArgumentTypeError, "neighbour: expected a Neighbour(...) or None, got 5"),
        ({"seed": 0.5}, ArgumentError, "seed: expected an integer of at most 64 bits, got 0.5"),
    ],
)
def test_what_cannot_be_used_is_refused(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"x": X} | change
    with pytest.raises(error, match=re.escape(message)):
        hm.find_kinds(arguments.pop("x"), **arguments)


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.neighbors", None)
    with pytest.raises(MissingExtraError, match=r"find_kinds: expected scikit-learn \(in a clone"):
        hm.find_kinds(X)

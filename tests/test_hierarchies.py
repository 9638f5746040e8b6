"""Hierarchies over the leaves of a model: valid, nested, equal to a plain reference, and right where truth is known."""

import itertools
import math
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from conftest import Case, build, cases
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import cophenet, cut_tree, is_monotonic, is_valid_linkage

import hmoevae as hm
from hmoevae import metrics
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, ShapeError
from hmoevae.hierarchies import joined, responsibilities

LEAF = hm.VAE(2, hm.MLP((4,)), hm.MLP((4,)))
FLAT = hm.Mixture.of(LEAF, 4, gate=hm.MLP((4,)))

MODELS = cases().filter(lambda case: case.tree.n_leaves > 1)


@given(MODELS, st.sampled_from(["gate", "density"]))
def test_every_hierarchy_is_a_binary_tree_of_nested_clusters(case: Case, by: Any) -> None:
    model, x = case.model, case.x
    tree = hm.hierarchy(model, x, by=by, n_importance=2)
    n = model.plan.n_leaves
    assert tree.linkage.shape == (n - 1, 4)
    if n > 2:  # of one merge scipy sees no linkage
        assert is_valid_linkage(tree.linkage, throw=True)
        assert is_monotonic(tree.linkage)
    assert sorted(tree.merges[-1].leaves) == list(range(n))
    assert nx.is_arborescence(tree.to_networkx())
    by_leaf = model.predict_proba(x)
    finer = None
    for n_clusters in range(n, 0, -1):
        clusters = tree.cut(n_clusters)
        assert clusters.unique().tolist() == list(range(n_clusters))
        if finer is not None:  # each cluster of the finer cut lies in one of the coarser
            assert len({(int(a), int(b)) for a, b in zip(finer, clusters, strict=True)}) == n_clusters + 1
        finer = clusters
        proba = tree.predict_proba(x, n_clusters=n_clusters)
        torch.testing.assert_close(proba.sum(1), torch.ones_like(proba[:, 0]))
        expected = torch.stack([by_leaf[:, clusters == c].sum(1) for c in range(n_clusters)], 1)
        torch.testing.assert_close(proba, expected)
        assert torch.equal(tree.predict(x, n_clusters=n_clusters), proba.argmax(1))
    assert torch.equal(tree.predict(x, n_clusters=n), model.predict(x))


def plain(r: np.ndarray) -> list[tuple[set[int], float]]:
    """The merges by their definition: overlaps of all pairs of groups from the samples, anew after every merge."""
    groups = [{leaf} for leaf in range(r.shape[1])]
    found = []
    while len(groups) > 1:
        of = {frozenset(group): [sum(row[leaf] for leaf in group) for row in r] for group in groups}
        overlaps = {}
        for a, b in itertools.combinations(of, 2):
            both = sum(p * q for p, q in zip(of[a], of[b], strict=True)) / len(r)
            overlaps[a, b] = both / (sum(of[a]) / len(r)) / (sum(of[b]) / len(r))
        a, b = max(overlaps, key=lambda pair: overlaps[pair])
        groups = [group for group in groups if group not in (set(a), set(b))] + [set(a | b)]
        found.append((set(a | b), math.log(1 + 1 / overlaps[a, b])))
    return found


@given(st.integers(2, 8), st.integers(0, 99))
def test_merges_are_those_of_the_definition(n_leaves: int, seed: int) -> None:
    r = np.random.default_rng(seed).dirichlet(np.full(n_leaves, 0.3), size=30)
    merges = joined(r)
    expected = plain(r)
    assert [set(merge.leaves) for merge in merges] == [leaves for leaves, _ in expected]
    np.testing.assert_allclose([merge.height for merge in merges], [height for _, height in expected], rtol=1e-9)


def test_leaves_without_samples_and_without_overlap_are_joined_too() -> None:
    r = np.zeros((6, 5))
    r[:3, 0] = r[3:, 3] = 1  # leaves 1, 2 and 4 are dead, and nothing overlaps
    merges = joined(r)
    assert len(merges) == 4
    assert all(math.isfinite(merge.height) for merge in merges)


def planted() -> tuple[hm.HMoEVAE, torch.Tensor, torch.Tensor]:
    """Eight Gaussians on a line, pairs of pairs of pairs, and the model that made them, exact in every density."""
    middles = torch.tensor([0.0, 3.0, 12.0, 15.0, 36.0, 39.0, 48.0, 51.0])
    leaf = hm.VAE(1, hm.LinearPosterior(), hm.MLP(()), hm.Gaussian(2.0, "identity"))
    model = hm.HMoEVAE(hm.Mixture.of(leaf, 8, gate=hm.PosteriorGate()), (1,))
    mixed = torch.tensor([3, 6, 0, 5, 2, 7, 1, 4])  # so that neighbours are not neighbours by their numbers
    (group,) = model.experts.groups
    with torch.no_grad():
        group.decoder.last.weight.zero_()
        group.decoder.last.bias.copy_(middles[mixed].reshape(group.decoder.last.bias.shape))
    y = torch.arange(8).repeat_interleave(2000)
    x = middles[y] + 2 * torch.randn(len(y), generator=torch.Generator().manual_seed(0))
    return model, x.unsqueeze(1), mixed


@pytest.mark.parametrize("by", ["gate", "density"])
def test_planted_gaussians_are_joined_as_they_were_planted(by: Any) -> None:
    model, x, mixed = planted()
    tree = hm.hierarchy(model, x, by=by)
    for n_clusters, size in ((4, 2), (2, 4)):
        clusters = {}
        for leaf, cluster in enumerate(tree.cut(n_clusters).tolist()):
            clusters.setdefault(cluster, set()).add(int(mixed[leaf]) // size)
        assert all(len(planted_as) == 1 for planted_as in clusters.values())
    distances = cophenet(tree.linkage)
    assert distances.min() > 0


def test_densities_of_some_leaves_are_those_of_all_where_the_gate_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate is the posterior here, so the most probable leaves divide among them what they have anyway."""
    model, x, _ = planted()
    every = responsibilities(model, x[::50], 2, 64)
    monkeypatch.setattr("hmoevae.hierarchies.MOST_DENSITIES", 3)
    some = responsibilities(model, x[::50], 2, 64)
    torch.testing.assert_close(some, every, atol=1e-4, rtol=1e-3)


def test_densities_say_what_gates_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(FLAT, (3,))
    x = torch.rand(40, 3, dtype=torch.float64)
    every = responsibilities(model, x, 4, 16)
    torch.testing.assert_close(every.sum(1), torch.ones(40, dtype=torch.float64))
    assert not torch.allclose(every, model.predict_proba(x), atol=0.05)
    assert torch.equal(responsibilities(model, x, 4, 16), every)
    monkeypatch.setattr("hmoevae.hierarchies.MOST_DENSITIES", 2)
    some, by_gate = responsibilities(model, x, 4, 16), model.predict_proba(x)
    torch.testing.assert_close(some.sum(1), torch.ones(40, dtype=torch.float64))
    rest = by_gate.argsort(1)[:, :2]
    torch.testing.assert_close(some.gather(1, rest), by_gate.gather(1, rest))
    kept = by_gate.topk(2).indices
    assert not torch.allclose(some.gather(1, kept), by_gate.gather(1, kept), atol=0.02)


def test_cuts_are_scipys() -> None:
    r = np.random.default_rng(0).dirichlet(np.full(20, 0.1), size=200)
    tree = hm.Hierarchy(build(hm.Mixture.of(LEAF, 20, gate=hm.MLP((4,))), (3,)), joined(r))
    for n_clusters in range(1, 21):
        assert tree.cut(n_clusters).tolist() == cut_tree(tree.linkage, n_clusters).squeeze(1).tolist()


def test_names_in_the_newick_format_are_quoted() -> None:
    leaves = (hm.VAE(2, name="it's"), hm.Mixture.of(hm.VAE(2), 2), hm.VAE(2, name="plain"))
    model = build(hm.Mixture(leaves), (3,))
    merges = (hm.Merge((0,), (3,), 1.0), hm.Merge((1,), (2,), 2.0), hm.Merge((0, 3), (1, 2), 2.5))
    assert hm.Hierarchy(model, merges).newick() == "(('it''s':1,plain:1):1.5,('1/0':2,'1/1':2):0.5);"


@pytest.mark.usefixtures("as_users_call")
def test_what_cannot_be_joined_is_refused() -> None:
    model, x = build(FLAT, (3,)), torch.rand(10, 3, dtype=torch.float64)
    with pytest.raises(ArgumentError, match="model: expected a tree of two leaves or more, got one leaf"):
        hm.hierarchy(build(LEAF, (3,)), x)
    with pytest.raises(ArgumentTypeError, match=r"model: expected an HMoEVAE, such as .* model_, got Mixture"):
        hm.hierarchy(FLAT, x)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="by: expected one of 'gate', 'density', got 'labels'"):
        hm.hierarchy(model, x, by="labels")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="n_importance: expected an integer > 0, got 0"):
        hm.hierarchy(model, x, by="density", n_importance=0)
    with pytest.raises(DataError, match="x: expected at least one sample"):
        hm.hierarchy(model, x[:0])
    with pytest.raises(ShapeError, match="x: expected"):
        hm.hierarchy(model, x[:, :2])
    with pytest.raises(ArgumentTypeError, match="x: expected"):
        hm.hierarchy(model, None)  # type: ignore[arg-type]


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("n_clusters", [0, 5, -1, 2.0, True, None, "2"])
def test_a_number_of_clusters_that_there_is_not_is_refused(n_clusters: Any) -> None:
    x = torch.rand(10, 3, dtype=torch.float64)
    tree = hm.hierarchy(build(FLAT, (3,)), x)
    for call in (tree.cut, lambda n: tree.predict(x, n_clusters=n), lambda n: tree.predict_proba(x, n_clusters=n)):
        with pytest.raises(ArgumentError, match=r"n_clusters: expected an integer from 1 to .* leaves, 4, got"):
            call(n_clusters)


def test_samples_come_in_every_form() -> None:
    model, x = build(FLAT, (3,)), torch.rand(10, 3, dtype=torch.float64)
    expected = hm.hierarchy(model, x).merges
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=4)
    for data in (x.numpy(), model.checked(x), loader):
        assert hm.hierarchy(model, data).merges == expected
    assert hm.hierarchy(model, loader, by="density").n_leaves == 4


# --- dendrogram purity ----------------------------------------------------------------------------------------------


@given(st.integers(2, 6), st.integers(0, 99), st.booleans())
def test_dendrogram_purity_equals_a_loop_over_all_pairs(n_leaves: int, seed: int, ordered: bool) -> None:
    rng = np.random.default_rng(seed)
    tree = hm.Hierarchy(
        build(hm.Mixture.of(LEAF, n_leaves, gate=hm.MLP((4,))), (3,)),
        joined(rng.dirichlet(np.full(n_leaves, 0.3), size=20)),
    )
    y, leaf = rng.integers(0, 3, 25), rng.integers(0, n_leaves, 25)
    sure = rng.integers(0, 4, 25) / 4 if ordered else np.zeros(25)  # with ties
    shares = []
    for i, j in itertools.combinations(range(25), 2):
        if y[i] != y[j]:
            continue
        if leaf[i] == leaf[j]:
            inside = (leaf == leaf[i]) & (sure >= min(sure[i], sure[j]))
        else:
            both = next(m.leaves for m in tree.merges if {leaf[i], leaf[j]} <= set(m.leaves))
            inside = np.isin(leaf, both)
        shares.append((y[inside] == y[i]).mean())
    found = metrics.dendrogram_purity(y, leaf, tree, confidence=sure if ordered else None)
    assert found == pytest.approx(np.mean(shares))


def test_dendrogram_purity_refuses_confidences_that_are_none() -> None:
    tree = hm.Mixture.of(hm.VAE(), 2)
    with pytest.raises(ShapeError, match=r"confidence: expected one per label, \(2,\), got \(1,\)"):
        metrics.dendrogram_purity([0, 0], [0, 1], tree, confidence=np.ones(1))
    with pytest.raises(DataError, match=r"confidence: expected one for every sample.*got nan for sample 1"):
        metrics.dendrogram_purity([0, 0], [0, 1], tree, confidence=np.array([1.0, np.nan]))

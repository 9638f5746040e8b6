"""Warm starts: what they make of data, level by level, and how fit learns them."""

import functools
import math
import sys

import conftest
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, MissingExtraError, ShapeError
from hmoevae.plan import compile_tree
from hmoevae.starts import comparable, first_leaves

LEAF = hm.VAE(1, hm.MLP((8,)), hm.MLP((8,)), hm.Gaussian(mean="identity"))
TREE = hm.Mixture((LEAF, hm.Mixture.of(LEAF, 2, gate=hm.MLP((16,))), LEAF), gate=hm.MLP((16,)))


@pytest.fixture
def blobs():
    """Four tight groups in the plane, two of them close together, and the group of every sample."""
    centres = torch.tensor([[0.0, 9.0], [0.0, 0.0], [1.0, 0.0], [9.0, 9.0]])
    group = torch.arange(80) % 4
    return centres[group] + 0.05 * torch.randn(80, 2, generator=torch.Generator().manual_seed(0)), group


@pytest.fixture
def model():
    torch.manual_seed(0)
    return hm.HMoEVAE(TREE, (2,))


fit = functools.partial(conftest.fit, epochs=30, init_epochs=30, batch_size=20, lr=1e-2)


def clusters(labels):
    """Which samples are together, whatever the clusters are called."""
    return {frozenset((labels == label).nonzero().flatten().tolist()) for label in labels.unique()}


def test_kmeans_goes_level_by_level():
    """Three groups at the root, the wide one split below it; the tree says which child is split, k-means does not."""
    plan = compile_tree(hm.Mixture.of(hm.Mixture.of(LEAF, 2), 2))
    centres = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    group = torch.arange(40) % 4
    x = centres[group] + 0.01 * torch.rand(40, 1, generator=torch.Generator().manual_seed(0))
    leaf = first_leaves(plan, x, "kmeans", 0)
    assert clusters(leaf) == clusters(group)
    assert clusters(leaf // 2) == clusters(group // 2)
    assert torch.equal(leaf, first_leaves(plan, x, "kmeans", 0))


def test_graph_goes_level_by_level():
    """As for k-means, but the groups are rings, one around the other, and each has two halves."""
    plan = compile_tree(hm.Mixture.of(hm.Mixture.of(LEAF, 2), 2))
    group = torch.arange(400) % 4
    angle = math.pi * (group % 2 + 0.012 + 0.0098 * (torch.arange(400) // 4))
    radius = 1.0 + 3.0 * (group // 2)
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    x[0] = x[4]  # twins do no harm
    leaf = first_leaves(plan, x, "graph", 0)
    assert clusters(leaf) == clusters(group)
    assert clusters(leaf // 2) == clusters(group // 2)


def test_graph_compares_images_by_their_strokes_and_fills_gaps(monkeypatch):
    seen = []
    monkeypatch.setattr("hmoevae.starts.neighbour_graph", lambda x, **_: seen.append(x.shape) or np.ones((30, 30)))
    monkeypatch.setattr("hmoevae.starts.parts_of", lambda graph, n_parts: np.arange(len(graph)) % n_parts)
    plan, images = compile_tree(hm.Mixture.of(LEAF, 3)), torch.rand(30, 1, 16, 16)
    assert first_leaves(plan, images, "graph", 0).bincount().tolist() == [10, 10, 10]
    images[0, 0, 3, 3] = torch.nan
    first_leaves(plan, images, "graph", 0)
    first_leaves(plan, torch.rand(30, 4), "graph", 0)
    assert seen == [(30, 1, 16, 16), (30, 30), (30, 4)]


@pytest.mark.parametrize("n", [30, 100])
def test_graph_leaves_no_leaf_empty(n):
    plan = compile_tree(hm.Mixture.of(hm.Mixture.of(LEAF, 2), 3))
    leaf = first_leaves(plan, torch.randn(n, 3, generator=torch.Generator().manual_seed(n)), "graph", 0)
    assert len(leaf.unique()) == 6


@pytest.mark.parametrize("missing", [False, True])
def test_what_is_compared_keeps_the_shape_of_images(missing):
    leaf = hm.VAE(1, hm.MLP((8,)), hm.MLP((8,)))
    model = hm.HMoEVAE(leaf, (1, 4, 5), missing=missing)
    assert comparable(model, torch.rand(3, 1, 4, 5)).shape == (3, 1, 4, 5)


@pytest.mark.slow
def test_umap_finds_blobs(blobs):
    pytest.importorskip("umap")
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(60, 3, generator=generator) + 20 * i for i in range(3)])
    leaf = first_leaves(compile_tree(hm.Mixture.of(LEAF, 3)), x, "umap", 0)
    assert clusters(leaf) == clusters(torch.arange(3).repeat_interleave(60))


def test_a_callable_is_asked_at_every_mixture_for_the_samples_that_reach_it(blobs):
    x, _ = blobs
    asked = []

    def halves(features, n_clusters, seed):
        asked.append((features.shape, n_clusters, seed))
        return np.arange(len(features)) % n_clusters

    leaf = first_leaves(compile_tree(TREE), x, halves, 7)
    assert asked == [((80, 2), 3, 7), ((27, 2), 2, 7)]
    assert leaf.tolist() == [[0, 1, 3, 0, 2, 3][i % 6] for i in range(80)]


def test_too_few_samples_for_a_mixture_still_start_somewhere(blobs):
    x, _ = blobs
    tree = hm.Mixture.of(hm.Mixture.of(LEAF, 3), 2)
    leaf = first_leaves(compile_tree(tree), x, lambda features, n, _: np.r_[1, np.zeros(len(features) - 1, int)], 0)
    assert leaf[0] == 3


def test_without_scikit_learn_a_start_names_the_extra(model, blobs, monkeypatch):
    x, _ = blobs
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    with pytest.raises(MissingExtraError, match=r"expected scikit-learn \(in a clone: pip install -e '\.\[sklearn\]'"):
        fit(model, x, init="kmeans")


@pytest.mark.slow
def test_gates_and_experts_learn_the_start(model, blobs):
    x, group = blobs
    history = fit(model, x, init=group)
    assert torch.equal(model.predict(x), group)
    assert set(history.columns) >= {"start_gate", "start_expert"}
    assert "expected" not in history.columns
    assert history["start_gate"][-1] < 0.1
    own = model(x).leaf_elbo.gather(1, group.unsqueeze(1)).mean()
    assert own > model(x).leaf_elbo.mean() + 10


def test_joint_training_follows(model, blobs):
    x, group = blobs
    history = fit(model, x, init=group.numpy(), init_epochs=2, epochs=5)
    assert np.isnan(history["expected"]).tolist() == [True, True, False, False, False]
    assert np.isnan(history["start_gate"]).tolist() == [False, False, True, True, True]


def test_umap_names_its_extra(blobs, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(
        MissingExtraError,
        match=r"init='umap': expected umap-learn \(.*pip install -e '\.\[umap\]'; elsewhere: pip install umap-learn\)",
    ):
        first_leaves(compile_tree(TREE), blobs[0], "umap", 0)


@pytest.mark.parametrize(
    ("init", "error", "message"),
    [
        ("k-means", ArgumentError, r"init: expected one of 'random', .*'graph', labels .*got 'k-means'"),
        (torch.zeros(3, dtype=torch.long), ShapeError, r"init: expected one label per sample, \(80,\), got \(3,\)"),
        (torch.zeros(80), ArgumentTypeError, r"init: expected integer labels, got torch.float32"),
        (torch.full((80,), 4), ArgumentError, r"init: expected labels from 0 to 3, got 4 to 4"),
        (lambda features, n, seed: np.full(len(features), -1), ArgumentError, r"init: expected labels from 0 to 2"),
        (3, ArgumentTypeError, r"init: expected a name, an array of leaf indices or a callable, got int"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_bad_starts(model, blobs, init, error, message):
    with pytest.raises(error, match=message):
        fit(model, blobs[0], init=init)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, ">i4", "reversed", torch.uint8, "list"])
def test_labels_of_any_integer_type_and_layout(kind, blobs):
    labels = np.arange(80) % 4
    given = {
        "reversed": labels[::-1].copy()[::-1],
        "list": lambda features, n, seed: (np.arange(len(features)) % n).tolist(),
    }.get(str(kind))
    if given is None:
        given = torch.tensor(labels, dtype=kind) if isinstance(kind, torch.dtype) else labels.astype(kind)
    plan = compile_tree(hm.Mixture.of(hm.VAE(2), 4))
    assert first_leaves(plan, blobs[0], given, 0).tolist() == labels.tolist()


@pytest.mark.parametrize("seed", [None, -1, 1 << 40])
def test_any_seed_will_do_for_a_clustering(model, blobs, seed):
    assert len(fit(model, blobs[0], init="kmeans", init_epochs=1, epochs=1, seed=seed)) == 1


def test_a_start_needs_data_in_memory(model, blobs):
    loader = DataLoader(TensorDataset(blobs[0]))
    with pytest.raises(ArgumentTypeError, match=r"data: expected a tensor or array in memory, for a start"):
        fit(model, loader, init="kmeans")


def test_kmeans_with_gaps(blobs):
    """Groups far apart are found from the cells that are there."""
    x, group = blobs
    x = torch.cat([x, 2 * x[:, :1] + 1, x[:, 1:] - x[:, :1]], 1)  # of four columns, two say all
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.1] = torch.nan
    torch.manual_seed(0)
    model = hm.HMoEVAE(hm.Mixture.of(LEAF, 3), (4,), missing=True)
    wide = torch.where(group == 2, 1, group)  # two of the groups are close together
    leaf = first_leaves(model.plan, comparable(model, x), "kmeans", 0)
    agree = (leaf.unsqueeze(1) == leaf) == (wide.unsqueeze(1) == wide)
    assert agree.float().mean() > 0.9


def test_clusterings_compare_what_networks_see():
    """Codes that are no numbers: one of them between two others is not half-way."""
    codes = hm.VAE(1, hm.MLP((8,)), hm.MLP((8,)), hm.Categorical(3))
    model = hm.HMoEVAE(codes, (2,), missing=True)
    x = torch.tensor([[0.0, 2.0], [torch.nan, 1.0]])
    assert comparable(model, x).tolist() == [[1, 0, 0, 0, 0, 1], [0, 0, 0, 1, 0, 0]]

"""Cluster scores against brute force over all matches and all pairs, and against scikit-learn."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Case, build, cases, data_for, trees
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import hmoevae as hm
from hmoevae import metrics
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, ShapeError
from hmoevae.plan import compile_tree


def brute_force_accuracy(labels, clusters):
    names = sorted(set(clusters))
    best = 0
    for match in itertools.permutations(range(6), len(names)):
        label_of = dict(zip(names, match, strict=True))
        best = max(best, sum(label_of[c] == y for y, c in zip(labels, clusters, strict=True)))
    return best / len(labels)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=30))
def test_scores_equal_a_naive_reference(pairs):
    labels, clusters = (np.array(column) for column in zip(*pairs, strict=True))
    scores = metrics.clustering_scores(torch.tensor(labels), torch.tensor(clusters))
    assert scores["accuracy"] == pytest.approx(brute_force_accuracy(labels.tolist(), clusters.tolist()))
    majority = sum(np.bincount(labels[clusters == c]).max() for c in set(clusters.tolist()))
    assert scores["leaf_purity"] == pytest.approx(majority / len(labels))
    assert scores["nmi"] == pytest.approx(normalized_mutual_info_score(labels, clusters))
    assert scores["ari"] == pytest.approx(adjusted_rand_score(labels, clusters))


def test_scores_do_not_depend_on_names():
    labels = np.repeat(np.arange(5), 20)
    scores = metrics.clustering_scores(labels, (labels * 3 + 2) % 5)
    assert set(scores.values()) == {1.0}


# --- what is no label -----------------------------------------------------------------------------------------------

TREE = hm.Mixture.of(hm.VAE(), 3)
GOOD = np.array([0, 1, 2, 0])
EVERY_SCORE = {
    "accuracy": lambda y: metrics.accuracy(y, GOOD),
    "accuracy of clusters": lambda c: metrics.accuracy(GOOD, c),
    "purity": lambda y: metrics.purity(y, GOOD),
    "purity of clusters": lambda c: metrics.purity(GOOD, c),
    "clustering_scores": lambda y: metrics.clustering_scores(y, GOOD),
    "clustering_scores of clusters": lambda c: metrics.clustering_scores(GOOD, c),
    "dendrogram_purity": lambda y: metrics.dendrogram_purity(y, GOOD, TREE),
    "dendrogram_purity of leaves": lambda leaf: metrics.dendrogram_purity(GOOD, leaf, TREE),
    "calibration_error": lambda y: metrics.calibration_error(y, np.eye(3)[GOOD]),
    "report": lambda y: metrics.report(build(TREE, (3,)), torch.rand(4, 3), y),
}
NO_LABELS = {
    "NaN": (np.array([0.0, np.nan, 2, np.nan]), DataError, "got nan for sample 1 and 1 more"),
    "NaN of a tensor": (torch.tensor([0.0, 1, torch.nan, 2]), DataError, "got nan for sample 2"),
    "NaN in half precision": (torch.tensor([0.0, 1, torch.nan, 2], dtype=torch.bfloat16), DataError, "got nan"),
    "NaN among strings": (["a", "b", float("nan"), "a"], DataError, "got nan for sample 2"),
    "infinity": ([0.0, 1.0, -np.inf, 2.0], DataError, "got -inf for sample 2"),
    "a complex NaN": (np.array([0, 1, complex(0, np.nan), 2]), DataError, "for sample 2"),
    "None": (["a", None, "b", "a"], DataError, "got None for sample 1"),
    "None of objects": (np.array([0, 1, 2, None], dtype=object), DataError, "got None for sample 3"),
    "a gap of pandas": (pd.Series([0, 1, None, 2], dtype="Int64"), DataError, "got (<NA>|nan) for sample 2"),
    "a gap of pandas' strings": (pd.Series(["a", "b", None, "b"], dtype="string"), DataError, "for sample 2"),
    "a gap of categories": (pd.Series(["a", "b", None, "b"], dtype="category"), DataError, "got nan for sample 2"),
    "no time": (
        np.array(["2020-01-01", "NaT", "2020-01-01", "2021-01-01"], "M8[D]"),
        DataError,
        "got NaT for sample 1",
    ),
    "masked": (np.ma.masked_equal([0, 1, -9, 2], -9), DataError, "got a masked one for sample 2"),
    "of two kinds": ([0, "0", 1, 2], DataError, "expected labels of one kind, got int, str"),
    "lists": ([[0], [1, 2], [0], [0]], DataError, "got list"),
    "none at all": ([], DataError, "expected at least one, got none"),
    "a column": (GOOD.reshape(4, 1), ShapeError, r"expected \(n,\), got \(4, 1\)"),
    "a table": (pd.DataFrame({"y": GOOD}), ShapeError, r"expected \(n,\), got \(4, 1\)"),
    "one": (np.array(3), ShapeError, r"expected \(n,\), got \(\)"),
    "a word": ("abcd", ShapeError, r"expected \(n,\), got \(\)"),
    "nothing": (None, ShapeError, r"expected \(n,\), got \(\)"),
    "too few": (GOOD[:3], ShapeError, "expected one per "),
}


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("score", EVERY_SCORE)
@pytest.mark.parametrize("labels", NO_LABELS)
def test_a_sample_without_a_label_is_refused_by_every_score(score, labels):
    """NaNs, for one, would each be a label of its own, or all of them one that clusters of NaNs match perfectly."""
    given, error, message = NO_LABELS[labels]
    with pytest.raises(error, match=f"^(labels|clusters|leaves|probabilities): .*{message}"):
        EVERY_SCORE[score](given)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    "labels",
    [
        np.array(["a", "b", "b"], dtype=object),
        pd.Series(["a", "b", "b"], index=[7, 8, 9]),
        pd.Series(["a", "b", "b"], dtype="category"),
        pd.Series([0, 1, 1], dtype="Int64"),
        [np.int8(0), 1, True],
        [torch.tensor(0), torch.tensor(1), torch.tensor(1)],
        torch.tensor([0.0, 1, 1], dtype=torch.bfloat16),
        np.array([0.5, 1, 1], dtype=np.float16),
        np.array([False, True, True]),
        np.array(["2020-01-01", "2021-01-01", "2021-01-01"], "M8[D]"),
        np.ma.masked_equal([0, 1, 1], -9),
        (10**30, 5, 5),
    ],
    ids=repr,
)
def test_labels_of_any_kind_are_told_apart(labels):
    assert set(metrics.clustering_scores(labels, [3, 0, 0]).values()) == {1.0}
    assert metrics.accuracy(labels, [3, 0, 3]) == pytest.approx(2 / 3)
    assert metrics.dendrogram_purity(labels, [2, 0, 0], TREE) == 1


@pytest.mark.usefixtures("as_users_call")
def test_a_start_of_masked_labels_is_refused():
    masked = np.ma.masked_equal(np.arange(8) % 3, 2)
    with pytest.raises(DataError, match="init: expected a label for every sample, got masked ones"):
        hm.fit(hm.HMoEVAE(TREE, (3,)), torch.rand(8, 3), hm.Training(epochs=1, init=masked), progress=False)


# --- dendrogram purity ----------------------------------------------------------------------------------------------


def brute_force_dendrogram_purity(labels, leaves, tree):
    """Pair by pair: the smallest subtree by the common start of two paths, its samples by that start."""
    paths = [compile_tree(tree).leaves[leaf].path.split("/") for leaf in leaves]
    shares = []
    for i, j in itertools.combinations(range(len(labels)), 2):
        if labels[i] == labels[j]:
            both = itertools.takewhile(lambda step: step[0] == step[1], zip(paths[i], paths[j], strict=False))
            depth = len(list(both))
            inside = [y for y, path in zip(labels, paths, strict=True) if path[:depth] == paths[i][:depth]]
            shares.append(inside.count(labels[i]) / len(inside))
    return sum(shares) / len(shares)


@given(st.data())
def test_dendrogram_purity_equals_a_loop_over_all_pairs(data):
    tree = data.draw(trees())
    pairs = data.draw(
        st.lists(st.tuples(st.integers(-1, 3), st.integers(0, tree.n_leaves - 1)), min_size=2, max_size=25)
    )
    labels, leaves = map(list, zip(*pairs, strict=True))
    assume(len(set(labels)) < len(labels))
    purity = metrics.dendrogram_purity(torch.tensor(labels), np.array(leaves), tree)
    assert purity == pytest.approx(brute_force_dendrogram_purity(labels, leaves, tree))


def test_dendrogram_purity_sees_the_order_of_the_tree():
    """The same leaves, pure all of them: only the tree says whether the two leaves of a label are neighbours."""
    tree = hm.Mixture.of(hm.Mixture.of(hm.VAE(), 2), 2)
    leaves = np.repeat(np.arange(4), 5)
    near, far = leaves // 2, leaves % 2
    assert metrics.purity(near, leaves) == metrics.purity(far, leaves) == 1
    assert metrics.dendrogram_purity(near, leaves, tree) == 1
    # Of 45 pairs of a label, 20 share a leaf; the smallest subtree of the others is the whole tree, half theirs.
    assert metrics.dendrogram_purity(far, leaves, tree) == pytest.approx((20 + 25 / 2) / 45)


def test_dendrogram_purity_counts_large_sets_exactly():
    labels = np.repeat(np.arange(2), 100_000)  # 10^10 pairs
    assert metrics.dendrogram_purity(labels, np.zeros(200_000, int), hm.Mixture.of(hm.VAE(), 2)) == 0.5
    assert metrics.dendrogram_purity(labels, labels, hm.Mixture.of(hm.VAE(), 2)) == 1


@pytest.mark.parametrize(
    ("labels", "leaves", "error", "message"),
    [
        ([0, 0], [0, 2], ArgumentError, r"leaves: expected integers from 0 to 1, got int64 from 0 to 2"),
        ([0, 0], [-1, 1], ArgumentError, r"leaves: expected integers from 0 to 1, got int64 from -1 to 1"),
        ([0, 0], [0.0, 1.0], ArgumentError, r"leaves: expected integers from 0 to 1, got float64 from 0.0 to 1.0"),
        ([0, 0], [0], ShapeError, r"leaves: expected one per label, \(2,\), got \(1,\)"),
        ([0, 1], [0, 1], DataError, r"labels: expected two samples or more of one label, got 2 samples, no two alike"),
    ],
)
def test_dendrogram_purity_refuses(labels, leaves, error, message):
    with pytest.raises(error, match=message):
        metrics.dendrogram_purity(np.array(labels), np.array(leaves), hm.Mixture.of(hm.VAE(), 2))


@pytest.mark.usefixtures("as_users_call")
def test_dendrogram_purity_takes_the_tree_and_not_the_model():
    with pytest.raises(ArgumentTypeError, match=r"tree: expected a VAE or a Mixture, .* or a Hierarchy, got HMoEVAE"):
        metrics.dendrogram_purity([0, 0], [0, 0], build(hm.VAE(), (3,)))


# --- usage and calibration ------------------------------------------------------------------------------------------


def probabilities(n_nodes):
    """Rows of positive weights, normalised."""
    weights = st.lists(st.floats(0.01, 1), min_size=n_nodes, max_size=n_nodes)
    return st.lists(weights, min_size=1, max_size=12).map(lambda rows: np.array(rows) / np.sum(rows, 1, keepdims=True))


def calibration_by_hand(right, confidence, n_bins):
    error = 0.0
    for m in range(1, n_bins + 1):
        inside = [i for i, c in enumerate(confidence) if (m - 1) / n_bins < c <= m / n_bins]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            mean_confidence = sum(confidence[i] for i in inside) / len(inside)
            error += len(inside) / len(confidence) * abs(accuracy - mean_confidence)
    return error


@given(st.data())
def test_usage_entropy_equals_scipys(data):
    p = data.draw(st.integers(2, 5).flatmap(probabilities))
    assert metrics.usage_entropy(p) == pytest.approx(entropy(p.mean(0), base=p.shape[1]))


@given(st.data())
def test_calibration_error_equals_a_loop_over_bins(data):
    """Several matches may be the best one; the error is that of one of them."""
    p = data.draw(probabilities(data.draw(st.integers(1, 4))))
    labels = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(p), max_size=len(p))))
    n_bins = data.draw(st.integers(1, 20))
    clusters = p.argmax(1).tolist()
    rights = [
        [match[c] == y for c, y in zip(clusters, labels.tolist(), strict=True)]
        for match in itertools.permutations(range(4), p.shape[1])
    ]
    most = max(map(sum, rights))
    assert most / len(p) == metrics.accuracy(labels, np.array(clusters))
    errors = [calibration_by_hand(right, p.max(1).tolist(), n_bins) for right in rights if sum(right) == most]
    got = metrics.calibration_error(labels, torch.tensor(p), n_bins=n_bins)
    assert any(got == pytest.approx(error) for error in errors)


def test_calibration_of_bins_that_end_on_a_confidence():
    """(m-1)/M < p <= m/M keeps 0.8 and 1.0 apart; in one bin, too little confidence would make up for too much."""
    modest, sure = np.tile([0.8, 0.2], (5, 1)), np.tile([0.0, 1.0], (5, 1))
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 0])
    assert metrics.calibration_error(labels, np.concatenate([modest, sure]), n_bins=5) == pytest.approx(0.2)


def test_a_cluster_without_a_label_is_always_wrong():
    labels = np.array([0, 0, 0])
    p = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert metrics.accuracy(labels, p.argmax(1)) == pytest.approx(2 / 3)
    assert metrics.calibration_error(labels, p) == pytest.approx(1 / 3)


def test_lists_are_read():
    assert metrics.accuracy([0, 1, 1], [1, 0, 0]) == metrics.purity([0, 1, 1], (1, 0, 0)) == 1
    with pytest.raises(ShapeError, match=r"clusters: expected one per label, \(3,\), got \(2,\)"):
        metrics.accuracy([0, 1, 1], [1, 0])


def test_half_precision_is_read():
    p = torch.tensor([[0.7, 0.3], [0.3, 0.7]], dtype=torch.bfloat16)
    assert metrics.usage_entropy(p) == pytest.approx(1)


@pytest.mark.parametrize(
    ("p", "error", "message"),
    [
        ([0.5, 0.5], ShapeError, r"probabilities: expected \(n, node\), got \(2,\)"),
        ([[0.5, 0.5], [0.5, 0.7]], DataError, r"rows that are >= 0 and sum to 1, got \[0.5, 0.7\] in row 1"),
        ([[1.5, -0.5], [1.0, 0.0]], DataError, r"rows that are >= 0 and sum to 1, got \[1.5, -0.5\] in row 0"),
        ([[np.nan, 1.0], [1.0, 0.0]], DataError, r"rows that are >= 0 and sum to 1, got \[nan, 1.0\] in row 0"),
        ([[1.0, 0.0]], ShapeError, r"probabilities: expected one per label, \(2,\), got \(1,\)"),
        ([[np.inf, 0.0], [1.0, 0.0]], DataError, r"rows that are >= 0 and sum to 1, got \[inf, 0.0\] in row 0"),
        ([[None, 1.0], [1.0, 0.0]], DataError, r"rows that are >= 0 and sum to 1, got \[nan, 1.0\] in row 0"),
        (
            [["a", "b"], ["c", "d"]],
            DataError,
            r"probabilities: expected numbers, one per sample and node, got could not",
        ),
        (
            [[1.0j, 1.0], [1.0, 0.0]],
            DataError,
            r"probabilities: expected numbers, one per sample and node, got complex",
        ),
    ],
)
def test_what_is_no_distribution_is_refused(p, error, message):
    with pytest.raises(error, match=message):
        metrics.calibration_error(np.array([0, 1]), np.array(p))


def test_masked_probabilities_are_refused():
    p = np.ma.masked_less([[0.75, 0.25], [0.5, 0.5]], 0.3)
    for score in (metrics.usage_entropy, lambda p: metrics.calibration_error([0, 1], p)):
        with pytest.raises(
            DataError, match="probabilities: expected numbers, one per sample and node, got masked ones"
        ):
            score(p)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("n_bins", [0, 1.5, True])
def test_bins_are_counted(n_bins):
    with pytest.raises(ArgumentError, match=f"n_bins: expected an integer > 0, got {n_bins!r}"):
        metrics.calibration_error(np.array([0, 1]), np.eye(2), n_bins=n_bins)


# --- all in one -----------------------------------------------------------------------------------------------------


@given(cases())
def test_a_report_holds_every_score_at_every_level(case: Case):
    model, x = build(case.tree, case.shape), data_for(case.tree, case.shape, 9)
    labels = torch.arange(9) % 3
    leaf = model.predict(x)
    expected = metrics.clustering_scores(labels, leaf)
    expected["usage_entropy"] = metrics.usage_entropy(model.predict_proba(x))
    expected["calibration_error"] = metrics.calibration_error(labels, model.predict_proba(x))
    names = list(expected)
    expected["dendrogram_purity"] = metrics.dendrogram_purity(labels, leaf, case.tree)
    report = metrics.report(model, x, labels, batch_size=4)
    assert {name: report[name] for name in expected} == pytest.approx(expected)
    levels = range(1, case.tree.depth)
    assert report.keys() == {*expected, *(f"{name}_level{level}" for name in names for level in levels)}
    for level in levels:
        assert report[f"accuracy_level{level}"] == metrics.accuracy(labels, model.predict(x, level=level))


def test_a_lone_expert_has_a_report_too():
    report = metrics.report(build(hm.VAE(), (3,)), torch.rand(6, 3), torch.arange(6) % 2)
    assert (report["usage_entropy"], report["dendrogram_purity"], report["nmi"]) == (1, pytest.approx(0.5), 0)


@pytest.mark.usefixtures("as_users_call")
def test_a_report_names_what_cannot_be_used():
    x = torch.rand(6, 3)
    model = build(hm.Mixture.of(hm.VAE(), 2), (3,))
    for other, came in ((hm.VAEMixture(2), "VAEMixture"), (model.tree, "Mixture"), (x, "Tensor")):
        with pytest.raises(ArgumentTypeError, match=f"model: expected an HMoEVAE, .* estimator's model_, got {came}"):
            metrics.report(other, x, torch.zeros(6))
    with pytest.raises(ShapeError, match=r"labels: expected one per sample, \(6,\), got \(5,\)"):
        metrics.report(model, x, torch.zeros(5))
    with pytest.raises(ShapeError, match=r"x: expected \(batch, 3\), got \(6, 2\)"):
        metrics.report(model, x[:, :2], torch.zeros(6))


def test_probabilities_leave_their_device_before_they_become_double(monkeypatch):
    """There is no double precision on Apple's GPUs."""
    here = []
    cpu, double = torch.Tensor.cpu, torch.Tensor.double
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: (here.append("cpu"), cpu(tensor))[1])
    monkeypatch.setattr(torch.Tensor, "double", lambda tensor: (here.append("double"), double(tensor))[1])
    metrics.usage_entropy(torch.tensor([[0.7, 0.3]]))
    assert here[:2] == ["cpu", "double"]

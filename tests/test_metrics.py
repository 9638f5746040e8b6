"""Cluster scores against a brute force over all matches, and against scikit-learn."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from hmoevae import metrics
from hmoevae.errors import ShapeError


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


@pytest.mark.parametrize("clusters", [np.zeros(3, int), np.zeros((4, 1), int)])
def test_lengths_must_agree(clusters):
    with pytest.raises(ShapeError, match=r"clusters: expected one a label, \(4,\), got"):
        metrics.accuracy(np.zeros(4, int), clusters)

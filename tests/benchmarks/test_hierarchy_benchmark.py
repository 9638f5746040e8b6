"""The benchmark of hierarchies: a row for every tree, and the figures of the package."""

import json

import hierarchy
import numpy as np
import pytest
import torch

import hmoevae as hm

pytestmark = pytest.mark.slow


def test_a_quick_run_has_a_row_for_every_tree(capsys: pytest.CaptureFixture[str]) -> None:
    hierarchy.main(["--quick", "--steps", "20", "--threads", "1", "--device", "cpu"])
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    trees = ["flat", "random", "gate", "density", "mean images", "mean gradients", "with labels"]
    assert [row["what"] for row in rows] == trees
    for row in rows:
        assert 0 < row["purity"] <= row["ordered"] + 0.05 <= 1.05


def test_with_labels_the_leaves_of_a_label_are_joined_first() -> None:
    model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2), 4), (3,))
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    leaf = torch.tensor([0, 2, 2, 1, 3, 3])
    tree = hierarchy.by_labels(model, y, leaf)
    assert {frozenset(merge.leaves) for merge in tree.merges[:2]} == {frozenset((0, 2)), frozenset((1, 3))}
    assert hm.metrics.dendrogram_purity(y, leaf, tree) == 1
    drawn = hierarchy.at_random(model, np.random.default_rng(0))
    assert sorted(drawn.merges[-1].leaves) == [0, 1, 2, 3]

"""The benchmark of other data: a short run, and Ward's clustering of samples that it has and has not seen."""

import argparse
import functools
import json
import os

import numpy as np
import other_data
import pytest
import torch
from scipy.sparse import csr_matrix

import hmoevae as hm

pytestmark = pytest.mark.slow


def test_ward_gives_samples_in_the_order_they_came_in(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.array([[0.0], [9.0], [0.1], [9.1], [0.2], [9.2]])
    expected = [[0, 1, 0, 1, 0, 1], [1, 0, 1, 0, 1, 0]]
    assert other_data.ward(x, x, 2, seed=0).tolist() in expected
    monkeypatch.setattr(other_data, "MOST_FOR_WARD", 4)
    assert other_data.ward(x, x, 2, seed=0).tolist() in expected


def test_words_get_components_of_unit_length() -> None:
    rng = np.random.default_rng(0)
    counts = csr_matrix(rng.poisson(0.5, (80, 60)).astype(np.uint16))
    first, second = other_data.of_words((counts, np.zeros(80)), (counts[:9], np.ones(9)))
    assert first.features.shape == (80, 50)
    np.testing.assert_allclose(np.linalg.norm(second.features, axis=1), 1, rtol=1e-6)
    assert second.y.tolist() == [1] * 9


def test_photographs_are_clustered_by_features_of_their_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    few = functools.partial(hm.photographs.learn_patches, n_filters=6, n_features=8)
    monkeypatch.setattr(hm.photographs, "learn_patches", few)
    x = torch.rand(120, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model, seen = other_data.by_photographs(x, 3, 0, argparse.Namespace(steps=4, device="cpu"))
    assert model.input_shape == (8,)
    torch.testing.assert_close(seen(x).square().mean(), torch.tensor(1.0))
    assert model.predict(seen(x)).unique().tolist() == [0, 1, 2]


@pytest.mark.skipif("HMOEVAE_DATA" not in os.environ, reason="needs COIL-20 in the folder HMOEVAE_DATA")
def test_a_quick_run_has_a_row_for_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--data-root", os.environ["HMOEVAE_DATA"]]
    other_data.main(["--quick", "--steps", "12", "--threads", "1", "--device", "cpu", *where])
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["what"] for row in rows] == ["ours", "our start", "k-means", "ward"]
    for row in rows:
        assert row["k"] == 20
        assert 0 < row["leaf_purity"] <= 1

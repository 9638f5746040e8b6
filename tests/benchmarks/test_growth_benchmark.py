"""The benchmark of growth: what it counts, and a short run of one task."""

import json
import os

import growth
import pytest
import torch

from hmoevae.datasets import LabelledImages

pytestmark = pytest.mark.slow


def test_a_kind_is_found_where_a_cluster_holds_most_of_it_and_little_else() -> None:
    y = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    assert growth.holds(y, torch.tensor([1, 1, 0, 0, 0, 0, 0, 0]), 0) == (2 / 3, True)
    assert growth.holds(y, torch.tensor([1, 1, 0, 1, 1, 0, 0, 0]), 0) == (2 / 3, False)
    assert growth.holds(y, torch.tensor([0, 1, 2, 0, 0, 0, 0, 0]), 0)[1] is False


def test_the_thinned_kind_is_one_per_cent() -> None:
    y = torch.arange(10).repeat_interleave(110)
    x, kept = growth.thinned(LabelledImages("images", torch.zeros(1100, 1, 2, 2), y), 3)
    assert kept.bincount().tolist() == [110, 110, 110, 10, 110, 110, 110, 110, 110, 110]
    assert len(x) == 1000


@pytest.mark.skipif("HMOEVAE_DATA" not in os.environ, reason="needs MNIST")
def test_a_short_run_finds_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--samples", "1000", "--steps", "8", "--seeds", "1", "--threads", "1", "--device", "cpu"]
    growth.main(["--tasks", "kinds", *short])
    [row] = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert 5 < row["kinds"] < 15
    assert 0 < row["accuracy"] <= 1

"""The benchmark of errors: digits of leaves, neighbours of another digit, and a quick run."""

import json

import errors
import numpy as np
import pytest
import torch

import hmoevae as hm
from hmoevae.datasets import LabelledImages

pytestmark = pytest.mark.slow


def test_a_leaf_has_the_digit_of_the_best_match(monkeypatch: pytest.MonkeyPatch) -> None:
    model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=1), 4), (1, 2, 2))
    monkeypatch.setattr(hm.HMoEVAE, "predict", lambda *_: torch.tensor([3, 3, 0, 0, 0, 2]))
    images = LabelledImages("digits", torch.rand(6, 1, 2, 2), torch.tensor([5, 5, 7, 7, 5, 7]))
    assert errors.digits_of(model, images).tolist() == [5, 5, 7, 7, 7, -1]


def test_neighbours_of_another_digit_are_counted() -> None:
    table = np.array([[1, 2], [0, 2], [3, 0], [2, 1]])
    mutual = np.array([[True, True], [True, False], [True, True], [True, False]])
    found = errors.of_neighbours(table, mutual, np.array([0, 0, 1, 1]), np.arange(4))
    assert (found["images"], found["other_digit"], found["mutual"]) == (4, 0.5, 0.75)
    assert found["mutual_other_digit"] == pytest.approx(2 / 6)  # 0 and 2 have each other
    assert (found["mostly_other"], found["half_other"], found["none_other"], found["no_mutual"]) == (0, 2, 2, 0)


def test_mutual_neighbours_have_each_other() -> None:
    table, mutual = errors.mutual_neighbours(torch.rand(30, 1, 16, 16, generator=torch.Generator().manual_seed(0)))
    for i, row in enumerate(table):
        assert i not in row
        assert mutual[i].tolist() == [i in table[j] for j in row]


@pytest.mark.usefixtures("bfloat16")
def test_a_quick_run(capsys: pytest.CaptureFixture[str]) -> None:
    errors.main(["--quick", "--epochs", "3", "--threads", "1", "--device", "cpu"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    for run, wrong in enumerate(report["errors"]):
        assert wrong == sum(row["errors"][run] for row in report["rows"])
    assert report["errors_of_all"] <= min(report["errors"]) <= max(report["errors"]) <= report["errors_of_any"]
    assert report["with_labels"]["errors"] == sum(row["errors_with_labels"] for row in report["rows"])
    with pytest.raises(SystemExit):
        errors.main([])

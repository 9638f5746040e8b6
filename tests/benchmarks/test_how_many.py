"""The benchmark of the number of kinds: planted tables, BIC, its report."""

import json
from pathlib import Path

import how_many
import numpy as np
import pytest
import tables
from how_many import PLANTED, ByBIC, gaussians, main

import hmoevae as hm


@pytest.mark.parametrize(("name", "shape", "k"), [("separated", 5, 7), ("overlapping", 8, 4), ("many", 2, 12)])
def test_planted_tables_are_what_they_say(name: str, shape: int, k: int) -> None:
    x, labels = PLANTED[name](0)
    assert x.shape == (len(labels), shape)
    assert len(np.unique(labels)) == k
    assert np.array_equal(PLANTED[name](0).x, x)
    assert not np.array_equal(PLANTED[name](1).x, x)
    assert np.bincount(PLANTED["overlapping"](0).labels).tolist() == [500, 300, 150, 50]


def test_any_two_kinds_are_as_far_apart_as_is_said() -> None:
    x, labels = gaussians(np.full(4, 0.25), n_columns=3, n=8000, apart=5.0, seed=0)
    kinds = [x[labels == kind] for kind in range(4)]
    for i in range(4):
        for j in range(i):
            gap = kinds[i].mean(0) - kinds[j].mean(0)
            covariance = (np.cov(kinds[i].T) + np.cov(kinds[j].T)) / 2
            assert gap @ np.linalg.solve(covariance, gap) > 4.8**2


def test_bic_finds_two() -> None:
    x = np.concatenate([np.random.default_rng(0).normal(size=(30, 2)) + shift for shift in (0, 12)])
    for standardises in (False, True):
        found = ByBIC(standardises=standardises, seed=0)
        assert len(np.unique(found.fit_predict(x))) == found.n_components_ == 2


def test_a_report_has_every_row_and_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = {
        "VAEMixture": lambda seed: hm.VAEMixture("auto", max_components=2, random_state=seed, device="cpu"),
        "BIC": lambda seed: ByBIC(standardises=True, seed=seed),
    }
    monkeypatch.setattr(how_many, "methods", lambda device: made)
    monkeypatch.setattr(how_many, "MOST", 2)
    file = tmp_path / "r.json"
    main(["--tables", "iris", "--seeds", "2", "--device", "cpu", "--json", str(file)])
    printed = capsys.readouterr().out.splitlines()
    report = json.loads(printed[-1])
    assert report == json.loads(file.read_text())
    assert [(row["table"], row["method"], row["k"]) for row in report["rows"]] == [
        ("iris", "VAEMixture", 3),
        ("iris", "BIC", 3),
    ]
    assert len(printed) == 4
    for row in report["rows"]:
        assert row["found"] == [2, 2]
        assert row["mean"]["off"] == 1
        assert all(run["ari"] > 0.5 for run in row["runs"])
    assert report["rows"][0]["runs"][0]["selection"]["n_components"] == [1, 2]
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert "| iris | 3 | BIC | 2, 2 | 1.0 | 56.81 " in tables.TABLES["how-many"]()


def test_bad_options_end_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--seeds", "0"])
    assert "--seeds: expected an integer > 0, got 0" in capsys.readouterr().err

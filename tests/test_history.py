"""Histories: there and back again through CSV and JSON, and what is said of them in short."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hmoevae as hm
from hmoevae.errors import CheckpointError

FLAT = hm.History(
    [
        {"epoch": 1, "seconds": 0.1, "loss": 1 / 3, "elbo": 1e-300, "usage/root/0": 1.0},
        {"epoch": 2, "seconds": 0.2, "loss": math.inf, "val_elbo": -2.5, "revived": 1},
    ]
)
cells = st.one_of(st.integers(-(2**40), 2**40), st.floats(allow_nan=False))
texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1)
names = st.one_of(st.sampled_from(["loss", "val_elbo", "usage/root/0", 'a "quoted", one']), texts)
rows = st.lists(st.dictionaries(names.filter(lambda name: name != "epoch"), cells, max_size=4))


@given(rows=rows)
def test_what_is_read_back_is_what_was_written(tmp_path_factory, rows):
    history = hm.History([{"epoch": i, **row} for i, row in enumerate(rows, 1)])
    file = tmp_path_factory.getbasetemp() / "history.csv"
    history.to_csv(file)
    back = hm.History.from_csv(file)
    assert back == history
    assert back.columns == history.columns
    text = file.read_bytes()
    back.to_csv(file)
    assert file.read_bytes() == text


def test_a_trained_history_is_drawn_from_its_file(tmp_path):
    import torch

    model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2), 3), (4,))
    history = hm.fit(model, torch.rand(20, 4), hm.Training(epochs=2, device="cpu"), progress=False)
    history.to_csv(tmp_path / "history.csv")
    back = hm.History.from_csv(tmp_path / "history.csv")
    assert back.rows == history.rows
    assert [text.get_text() for text in hm.plot.usage(back).axes[0].texts] == [" 0", " 1", " 2"]


@pytest.mark.parametrize(
    "text",
    [None, "", "loss\n1.0\n", "epoch,loss\n1\n", "epoch,loss\n1,2,3\n", "epoch,loss\n1,word\n", 'epoch,"lo'],
    ids=["missing", "empty", "no epoch", "short", "long", "word", "torn"],
)
def test_what_is_no_history_is_refused(tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / "h.csv").write_text(text)
    with pytest.raises(CheckpointError, match=r"h.csv: expected a history written by to_csv, got"):
        hm.History.from_csv(tmp_path / "h.csv")


@pytest.mark.parametrize("view", [{"kind": "elsewhere.brighter", "by": 1.5}, {"by": 1.5}, {"described": "Brighter"}])
def test_a_training_that_this_process_cannot_make_is_plain_data(tmp_path: Path, view: dict[str, object]):
    content = json.loads(hm.Training().to_json()) | {"view": view}
    hm.History([{"epoch": 1, "loss": 3.5}], training=content).to_json(tmp_path / "h.json")
    assert hm.History.from_json(tmp_path / "h.json").training == content

"""Checkpoints: a run that is cut short anywhere ends as the one that was not; what is damaged is never trusted."""

import errno
import functools
import json
import math
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import conftest
import kills
import numpy as np
import pytest
import torch
from conftest import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from torch.utils.data import DataLoader, TensorDataset

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, CheckpointError, CheckpointWarning, NonFiniteError
from hmoevae.training import best_checkpoint, checkpoints, last_checkpoint
from hmoevae.training.states import pack, unpack

LEAF = hm.VAE(2, hm.MLP((5,)), hm.MLP((5,)))
TREE = hm.Mixture(children=(LEAF, hm.Mixture.of(hm.VAE(3), 2)), gate=hm.MLP((4,)))
X = torch.rand(20, 4, generator=torch.Generator().manual_seed(0))
EPOCHS = 6
FILES = ("SHA256SUMS", "config.json", "model.safetensors", "state.json", "state.safetensors", "training.json")

fit = functools.partial(conftest.fit, epochs=EPOCHS, batch_size=8)
EVERYTHING = {
    "lr_schedule": "cosine",
    "precision": "bf16",
    "init": "kmeans",
    "init_epochs": 2,
    "agreement": hm.Agreement(partner=hm.views.Neighbour(3), alone=0.4),
    # A callable draws from the global random state.
    "view": hm.views.Compose([hm.views.Neighbour(2), lambda x: x + 0.1 * torch.randn_like(x)]),
    "validation_data": X[:7],
    "route": hm.TopK(2, explore=0.1),
}

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::hmoevae.errors.{name}") for name in ("DeadLeafWarning", "ConstantGateWarning")
] + [pytest.mark.filterwarnings("ignore:precision='bf16'")]


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_at(epoch):
    def callback(end):
        if end.epoch == epoch:
            raise Killed

    return callback


def new_model(tree=TREE, shape=(4,), objective="elbo"):
    torch.manual_seed(0)
    return hm.HMoEVAE(tree, shape, objective=objective)


def result(model, history, recorder=None):
    """All that two equal runs have in common, to the bit."""
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]
    frames = None if recorder is None else (recorder.epochs, recorder.frames.numpy().tobytes())
    weights = {name: value.numpy().tobytes() for name, value in model.state_dict().items()}
    return weights, json.dumps(rows), frames, torch.rand(1).item()


def run(folder, *callbacks, **options):
    """A run from the start of a script to its end; `None` where it is killed."""
    model, recorder = new_model(), hm.SampleRecorder(4)
    try:
        history = fit(model, X, checkpoint_dir=folder, callbacks=[recorder, *callbacks], **options)
    except Killed:
        return None
    return result(model, history, recorder)


@functools.cache
def uninterrupted():
    return run(None)


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir() if path.name != checkpoints.LOCK_NAME)


def epoch_folders(*epochs):
    return [f"epoch-{epoch:06d}" for epoch in epochs]


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_killed_in_every_epoch_and_equal_to_the_bit(tmp_path, options):
    expected = run(None, **options)
    assert run(tmp_path / "whole", **options) == expected  # writing checkpoints changes nothing
    for epoch in range(1, EPOCHS + 1):
        folder = tmp_path / str(epoch)
        assert run(folder, kill_at(epoch), **options) is None
        assert run(folder, **options) == expected
        assert names(folder) == names(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_killed_in_one_epoch_after_the_other(tmp_path, options):
    for epoch in range(1, EPOCHS + 1):
        assert run(tmp_path, kill_at(epoch), **options) is None
    assert run(tmp_path, **options) == run(None, **options)


@pytest.mark.slow
@given(case=cases(max_leaves=5), data=st.data())
@settings(max_examples=8)
def test_any_tree_goes_on(tmp_path_factory, case: Case, data):
    options = {
        "epochs": 3,
        "batch_size": data.draw(st.integers(1, 5)),
        "lr_schedule": data.draw(st.sampled_from(("constant", "cosine"))),
        "checkpoint_every": data.draw(st.integers(1, 2)),
    }
    if data.draw(st.booleans()):
        options["optimizer"] = functools.partial(torch.optim.SGD, lr=1e-3, momentum=0.9)

    def trained(folder, *callbacks):
        model = case.model
        history = fit(model, case.x, checkpoint_dir=folder, callbacks=callbacks, **options)
        torch.manual_seed(0)
        return result(model, history)

    folder = tmp_path_factory.mktemp("checkpoints")
    with pytest.raises(Killed):
        trained(folder, kill_at(data.draw(st.integers(1, 3))))
    assert trained(folder) == trained(None)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        pytest.param(lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True), marks=pytest.mark.slow),
        lambda p: torch.optim.Adam([{"params": list(p), "lr": torch.tensor(0.01)}], foreach=False),
        pytest.param(lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True), marks=pytest.mark.slow),
        pytest.param(lambda p: torch.optim.NAdam(p, lr=0.01), marks=pytest.mark.slow),
        pytest.param(lambda p: torch.optim.Adagrad(p, lr=0.01), marks=pytest.mark.slow),
    ],
    ids=["SGD", "AdamW", "tensor rate", "RMSprop", "NAdam", "Adagrad"],
)
def test_other_optimisers_go_on(tmp_path, make):
    assert run(tmp_path, kill_at(4), optimizer=make) is None
    assert run(tmp_path, optimizer=make) == run(None, optimizer=make)


@pytest.mark.parametrize(
    "source",
    [
        lambda: X.numpy(),
        pytest.param(lambda: TensorDataset(X), marks=pytest.mark.slow),
        pytest.param(lambda: DataLoader(TensorDataset(X), batch_size=8, shuffle=True), marks=pytest.mark.slow),
        lambda: DataLoader(TensorDataset(X), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3)),
        pytest.param(
            lambda: DataLoader(
                TensorDataset(X),
                batch_size=8,
                sampler=torch.utils.data.RandomSampler(X, generator=torch.Generator().manual_seed(3)),
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["array", "dataset", "loader", "loader with a generator", "sampler with a generator"],
)
def test_every_source_goes_on_in_its_order(tmp_path, source):
    def trained(folder, *callbacks):
        model = new_model()
        return result(model, fit(model, source(), checkpoint_dir=folder, callbacks=callbacks))

    with pytest.raises(Killed):
        trained(tmp_path, kill_at(4))
    assert trained(tmp_path) == trained(None)


@pytest.mark.usefixtures("as_users_call")  # the tests' type checks draw from Python's
def test_a_view_may_draw_from_any_global_state(tmp_path):
    def view(x):
        return x + random.random() + np.random.random() + torch.rand(1)  # noqa: NPY002

    def seeded(*callbacks, folder=None):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        return run(folder, *callbacks, view=view)

    assert seeded(kill_at(5), folder=tmp_path) is None
    assert seeded(folder=tmp_path) == seeded()


def test_without_a_seed_the_one_drawn_is_kept(tmp_path):
    assert run(tmp_path / "a", kill_at(3), seed=None) is None
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert run(tmp_path / "a", seed=None) == run(tmp_path / "b", seed=None)


def test_a_finished_run_gives_what_it_gave(tmp_path):
    expected = run(tmp_path)
    with mock.patch.object(hm.training.loop.Run, "step", side_effect=AssertionError("a step")):
        assert run(tmp_path) == expected


def test_a_run_that_a_callback_ended_is_finished(tmp_path):
    expected = run(tmp_path, lambda end: end.epoch == 3, checkpoint_every=2)
    assert names(tmp_path) == epoch_folders(2, 3)
    assert run(tmp_path, lambda end: pytest.fail("another epoch")) == expected


def test_more_epochs_of_a_finished_run(tmp_path):
    run(tmp_path, epochs=2)
    model = new_model()
    history = fit(model, X, checkpoint_dir=tmp_path)
    assert result(model, history)[:2] == uninterrupted()[:2]


def test_ctrl_c_and_on(tmp_path):
    def press(end):
        if end.epoch == 3:
            raise KeyboardInterrupt

    model = new_model()
    history = fit(model, X, checkpoint_dir=tmp_path, callbacks=[press])
    assert (history.interrupted, len(history)) == (True, 3)
    model = new_model()
    history = fit(model, X, checkpoint_dir=tmp_path)
    assert not history.interrupted
    assert result(model, history)[:2] == uninterrupted()[:2]


def test_seconds_go_on(tmp_path):
    run(tmp_path, kill_at(4))
    history = fit(new_model(), X, checkpoint_dir=tmp_path)
    assert history["seconds"] == sorted(history["seconds"])


def test_the_bar_goes_on(tmp_path, capsys):
    run(tmp_path, kill_at(4))
    fit(new_model(), X, checkpoint_dir=tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "epoch 6/6" in shown
    assert "18/18" in shown
    assert "epoch 3/6" not in shown


def test_resume_names_a_checkpoint(tmp_path):
    run(tmp_path / "a")
    # In another folder, in none, and in its own once the later ones are gone.
    expected = uninterrupted()
    assert run(tmp_path / "b", resume=tmp_path / "a" / "epoch-000004") == expected
    assert names(tmp_path / "b") == epoch_folders(5, 6)
    assert run(None, resume=str(tmp_path / "a" / "epoch-000005")) == expected
    with pytest.raises(ArgumentError, match=r"checkpoint_dir: .*later than .*epoch-000004, got epoch-000006"):
        run(tmp_path / "a", resume=tmp_path / "a" / "epoch-000004")
    shutil.rmtree(tmp_path / "a" / "epoch-000006")
    assert run(tmp_path / "a", resume=tmp_path / "a" / "epoch-000005") == expected
    with pytest.raises(ArgumentError, match=r"checkpoint_dir: .*without checkpoints later than"):
        run(tmp_path / "b", resume=tmp_path / "a" / "epoch-000006")


def test_a_callback_that_comes_later_starts_anew(tmp_path):
    with pytest.raises(Killed):
        fit(new_model(), X, checkpoint_dir=tmp_path, callbacks=[kill_at(4)])
    recorders = [hm.SampleRecorder(6), hm.SampleRecorder(2, seed=1)]
    fit(new_model(), X, checkpoint_dir=tmp_path, callbacks=recorders)
    assert [recorder.epochs for recorder in recorders] == [[4, 5, 6], [6]]


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "keep", "kept"),
    [
        (1, 3, (4, 5, 6)),
        pytest.param(1, 1, (6,), marks=pytest.mark.slow),
        pytest.param(2, 2, (4, 6), marks=pytest.mark.slow),
        (4, 3, (4, 6)),
        pytest.param(9, 1, (6,), marks=pytest.mark.slow),
    ],
)
def test_the_last_ones_are_kept(tmp_path, every, keep, kept):
    run(tmp_path, checkpoint_every=every, checkpoint_keep=keep)
    assert names(tmp_path) == epoch_folders(*kept)
    assert last_checkpoint(tmp_path).name == "epoch-000006"
    with pytest.raises(
        CheckpointError, match="expected a folder with a checkpoint that has a validation loss, got none"
    ):
        best_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "kill", [pytest.param(None, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)]
)
def test_the_best_one_is_kept(tmp_path, kill):
    losses = iter((5.0, 3.0, math.nan, 4.0, 3.5, 6.0))

    def evaluate(*_):
        return {"elbo": next(losses)}

    with mock.patch("hmoevae.training.epochs.evaluate", evaluate):
        if kill is not None:
            run(tmp_path, kill_at(kill), checkpoint_keep=1, validation_data=X[:4])
            losses = iter([5.0, 3.0, math.nan, 4.0, 3.5, 6.0][kill - 1 :])
        run(tmp_path, checkpoint_keep=1, validation_data=X[:4])
    assert names(tmp_path) == epoch_folders(2, 6)
    assert best_checkpoint(tmp_path) == tmp_path / "epoch-000002"
    model = new_model()
    fit(model, X, epochs=2)
    best = hm.HMoEVAE.from_pretrained(best_checkpoint(str(tmp_path)))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in best.state_dict().items())


def test_what_others_keep_there_stays(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "epoch-1").mkdir()
    run(tmp_path, kill_at(5))
    (tmp_path / ".epoch-000009-1234abcd").mkdir()  # as a killed run leaves it
    assert run(tmp_path) == uninterrupted()
    assert names(tmp_path) == sorted(["epoch-1", "notes.txt", *epoch_folders(4, 5, 6)])


def test_a_checkpoint_that_somebody_deleted_is_not_missed(tmp_path):
    assert run(tmp_path, lambda end: shutil.rmtree(tmp_path / "epoch-000001") if end.epoch == 3 else None)
    assert names(tmp_path) == epoch_folders(4, 5, 6)


def test_no_pickle_is_written_or_read(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a pickle")

    expected = uninterrupted()
    for module, name in ((torch, "save"), (torch, "load"), (pickle, "Pickler"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refuse)
    run(tmp_path, kill_at(4))
    assert run(tmp_path)[0] == expected[0]
    for path in tmp_path.rglob("*"):
        assert path.suffix in ("", ".json", ".safetensors", ".md")


def test_sha256sum_can_check_them(tmp_path):
    run(tmp_path)
    for folder in tmp_path.glob("epoch-*"):
        assert names(folder) == sorted([*FILES, "README.md"])
        if shutil.which("sha256sum"):
            subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(path):
    content = bytearray(path.read_bytes())
    place = random.Random(str(path.name)).randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_text('{"a": [1, 2]}\n'),
    "earlier": lambda path: shutil.copy(path.parent.parent / "epoch-000002" / path.name, path),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.fixture(scope="module")
def killed_at_4(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed") / "run"
    assert run(folder, kill_at(4)) is None
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path, killed_at_4, file, how):
    folder = tmp_path / "run"
    shutil.copytree(killed_at_4, folder)
    DAMAGE[how](folder / "epoch-000003" / file)
    if how == "earlier" and file in ("config.json", "training.json"):  # those of a run are all the same
        assert last_checkpoint(folder).name == "epoch-000003"
        return
    with pytest.raises(CheckpointError, match=r"epoch-000003: expected a whole checkpoint, got "):
        run(None, resume=folder / "epoch-000003")
    with pytest.warns(
        CheckpointWarning, match=r"epoch-000003: expected a whole checkpoint, got .*; passed over"
    ) as seen:
        assert run(folder) == uninterrupted()
    assert sum(warning.category is CheckpointWarning for warning in seen) == 1
    refused = [name for name in names(folder) if "refused" in name]  # nothing is lost
    assert len(refused) == 1
    assert refused[0].startswith("epoch-000003.refused-")
    assert [name for name in names(folder) if name not in refused] == epoch_folders(4, 5, 6)


@given(data=st.data())
@settings(max_examples=60)
def test_no_bit_can_be_flipped_unseen(killed_at_4, data):
    path = killed_at_4 / "epoch-000003" / data.draw(st.sampled_from(FILES))
    before = path.read_bytes()
    place = data.draw(st.integers(0, 8 * len(before) - 1))
    changed = bytearray(before)
    changed[place // 8] ^= 1 << place % 8
    path.write_bytes(changed)
    try:
        with pytest.raises(CheckpointError, match="expected a whole checkpoint"):
            checkpoints.read_checkpoint(path.parent)
    finally:
        path.write_bytes(before)


def test_all_damaged_starts_anew_and_loses_nothing(tmp_path):
    run(tmp_path, kill_at(4))
    for folder in tmp_path.glob("epoch-*"):
        (folder / "state.json").unlink()
    with pytest.warns(CheckpointWarning) as seen:
        assert run(tmp_path) == uninterrupted()
    assert [warning.filename for warning in seen if warning.category is CheckpointWarning] == [conftest.__file__] * 3
    assert len([name for name in names(tmp_path) if "refused" in name]) == 3
    for function in (last_checkpoint, best_checkpoint):
        with pytest.raises(CheckpointError, match=r"expected a folder with a .*checkpoint.*, got none"):
            function(tmp_path / "nowhere")


def signed(folder):
    """Digests that fit whatever is in the folder."""
    sums = "".join(f"{checkpoints._sha256(folder / name)}  {name}\n" for name in checkpoints.NEEDED)
    (folder / "SHA256SUMS").write_text(sums)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "a checkpoint of format_version 3, got of something else"),
        ({"format_version": 1}, "a checkpoint of format_version 3, got 1"),
        ({"state": {"tensor": "nowhere"}}, "a whole checkpoint, got KeyError: 'nowhere'"),
        ({"state": {"pickle": "gASVBQ=="}}, "a whole checkpoint, got ValueError: a packed value of the kind 'pickle'"),
        ({"state": {"tuple": 3}}, "a whole checkpoint, got ValueError"),
        ({"kept": 3}, "a whole checkpoint, got TypeError"),
    ],
)
def test_another_programs_checkpoint_is_refused(tmp_path, change, message):
    run(tmp_path, epochs=1)
    path = tmp_path / "epoch-000001" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    signed(path.parent)
    with pytest.raises(CheckpointError, match=message):
        run(None, resume=path.parent)


@pytest.mark.usefixtures("as_users_call")
def test_a_state_that_does_not_fit_is_refused(tmp_path):
    run(tmp_path, epochs=1)
    path = tmp_path / "epoch-000001" / "state.json"
    content = json.loads(path.read_text())
    content["state"]["dict"][0][1] = {"dict": [["run", 3]]}
    path.write_text(json.dumps(content))
    signed(path.parent)
    model = new_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="epoch-000001: expected the state of this run, got TypeError"):
        fit(model, X, checkpoint_dir=tmp_path, callbacks=[hm.SampleRecorder(4)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(getattr(layer, "memory", None) is None for layer in model.modules())


# --- other arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 5}, r"batch_size: expected 8, as in the checkpoint .*epoch-000003, got 5"),
        ({"seed": 1}, r"seed: expected 0, as in the checkpoint .*epoch-000003, got 1"),
        ({"compile": True}, r"compile: expected False, as in the checkpoint .*epoch-000003, got True"),
        ({"seed": None}, r"seed: expected 0, as in"),
        ({"route": hm.TopK(2)}, r"route: expected All\(\), as in .*, got TopK\(k=2, explore=0.0\)"),
        ({"lr": 0.1}, r"lr: expected 0.001, as in .*, got 0.1"),
        ({"lr_schedule": "cosine"}, r"lr_schedule: expected 'constant', as in .*, got 'cosine'"),
        ({"precision": "bf16"}, r"precision: expected 'fp32', as in"),
        ({"optimizer": functools.partial(torch.optim.SGD, lr=0.1)}, r"optimizer: expected None, as in .*, got SGD"),
        ({"view": torch.sin}, r"view: expected None, as in .*, got .*sin"),
        (
            {"agreement": hm.Agreement(partner=hm.views.Neighbour(2))},
            r"agreement: expected None, as in .*Neighbour\(k=2",
        ),
        ({"init": "kmeans"}, r"init: expected 'random', as in .*, got 'kmeans'"),
        (
            {"init": torch.zeros(20, dtype=torch.long)},
            r"init: expected 'random', as in .*, got Tensor\(20,\) with sha256",
        ),
        ({"validation_data": X[:5]}, r"validation_data: expected None, as in .*, got 5 samples with sha256"),
        ({"data": X[:19]}, r"data: expected 20 samples with sha256 .*, got 19 samples with sha256"),
        ({"data": 1 - X}, r"data: expected 20 samples with sha256 .*, got 20 samples with sha256"),
        ({"data": DataLoader(TensorDataset(X), batch_size=8)}, r"data: expected 20 samples .*got DataLoader with 3"),
        (
            {"model": new_model(hm.Mixture.of(LEAF, 3))},
            r"tree: expected that of the checkpoint .*epoch-000003, got root.children: 3 in place of 2 and 1 more$",
        ),
        (
            {"model": new_model(replace(TREE, children=(LEAF, hm.Mixture.of(hm.VAE(4), 2))))},
            r"got root.children\[1\].children\[0\].latent_dim: 4 in place of 3 and 1 more$",
        ),
        (
            {"model": new_model(replace(TREE, children=(LEAF, LEAF)))},
            r"got root.children\[1\]: vae in place of mixture$",
        ),
        ({"model": new_model(replace(TREE, gate=hm.MLP((5,))))}, r"got root.gate.hidden: \[5\] in place of \[4\]$"),
        ({"model": new_model(objective="expected")}, r"objective: expected 'elbo', as in .*, got 'expected'"),
        ({"model": new_model().double()}, r"dtype: expected torch.float32, as in .*, got torch.float64"),
        ({"epochs": 2}, r"epochs: expected at least 3, as in the checkpoint .*epoch-000003, got 2"),
        (
            {"resume": "never"},
            r"checkpoint_dir: expected a folder without checkpoints for resume='never', got epoch-000003",
        ),
        ({"resume": "/nowhere"}, r"resume: expected 'auto', 'never' or the path of a checkpoint, got /nowhere"),
        ({"resume": "best"}, r"resume: .*, got best, which is no folder"),
        ({"checkpoint_every": 0}, r"checkpoint_every: expected an integer > 0, got 0"),
        ({"checkpoint_keep": 1.5}, r"checkpoint_keep: expected an integer > 0, got 1.5"),
        (
            {"checkpoint_dir": __file__},
            r"checkpoint_dir: expected a folder that can be written, got .*test_checkpoints.py",
        ),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_other_arguments_are_named_and_nothing_is_lost(killed_at_4, change, message):
    given = {"model": new_model(), "data": X, "checkpoint_dir": killed_at_4} | change
    before = {path: path.read_bytes() for path in killed_at_4.rglob("*") if path.is_file()}
    weights = {name: value.clone() for name, value in given["model"].state_dict().items()}
    with pytest.raises(ArgumentError, match=message):
        fit(**given)
    assert {path: path.read_bytes() for path in killed_at_4.rglob("*") if path.is_file()} == before
    assert all(torch.equal(value, weights[name]) for name, value in given["model"].state_dict().items())


@pytest.mark.usefixtures("as_users_call")
def test_two_runs_do_not_share_a_folder(tmp_path):
    other = new_model()

    def second(end):
        if end.epoch == 2:
            with pytest.raises(
                ArgumentError, match=r"checkpoint_dir: expected a folder that no other run is using, got"
            ):
                fit(other, X, checkpoint_dir=tmp_path)

    assert run(tmp_path, second, kill_at(3)) is None
    assert run(tmp_path) == uninterrupted()  # the one before no longer uses it, though it was killed


@pytest.mark.usefixtures("as_users_call")
def test_resume_is_no_truth_value(tmp_path):
    with pytest.raises(
        ArgumentTypeError, match="resume: expected 'auto', 'never' or the path of a checkpoint, got True"
    ):
        fit(new_model(), X, checkpoint_dir=tmp_path, resume=True)


@pytest.mark.parametrize("options", [{"lr_schedule": "cosine"}, {"agreement": EVERYTHING["agreement"]}])
def test_epochs_stay_where_they_say_what_is_done_when(tmp_path, options):
    run(tmp_path, kill_at(4), **options)
    with pytest.raises(ArgumentError, match=r"epochs: expected 6, as in the checkpoint .*epoch-000003, got 7"):
        run(tmp_path, epochs=7, **options)


@pytest.mark.parametrize("number", [np.bool_(True), np.int64(3), np.uint8(3), np.float32(0.5), np.float64(0.5)])
def test_numbers_of_numpy_are_numbers(number):
    again = unpack(*pack({"best": number}, "callback"))["best"]
    assert again == number
    assert isinstance(again, bool | int | float)


@pytest.mark.usefixtures("as_users_call")
def test_a_state_that_only_a_pickle_could_hold_is_refused(tmp_path):
    class Strange(torch.optim.SGD):
        def state_dict(self):
            return super().state_dict() | {"strange": {"a": [self]}}

    with pytest.raises(
        ArgumentTypeError, match=r"state.training.run.optimizer.strange.a.0: expected numbers, .*Strange"
    ):
        run(tmp_path, optimizer=functools.partial(Strange, lr=0.1))
    assert names(tmp_path) == []


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.builds(torch.full, st.just((2, 1)), st.floats(width=32))
    | st.builds(np.full, st.just(3), st.integers(0, 9), st.sampled_from((np.uint32, np.float64, np.bool_))),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers() | st.text() | st.booleans(), inner, max_size=3)
    ),
    max_leaves=10,
)


def same(a, b):
    if isinstance(a, torch.Tensor | np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(map(same, a.values(), b.values()))
    return type(a) is type(b) and (a == b or a != a)


@given(values)
@settings(max_examples=100)
def test_states_come_back_as_they_were(value):
    packed, tensors = pack(value, "s")
    assert same(value, unpack(json.loads(json.dumps(packed, allow_nan=False)), tensors))


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    both = torch.arange(6.0)
    packed, tensors = pack([both, both[:3], both.view(2, 3).t(), {1: both, "1": both}], "s")
    checkpoints.save_file(tensors, tmp_path / "t.safetensors")
    back = unpack(packed, checkpoints.load_file(tmp_path / "t.safetensors"))
    assert same(back, [both, both[:3], both.view(2, 3).t(), {1: both, "1": both}])


# --- when it cannot be written ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("call", range(14))
def test_a_full_disk_stops_with_the_last_one_kept(tmp_path, call):
    """No space left at one call to the system after the other."""
    run(tmp_path, kill_at(3))
    left = call

    def full(real):
        def write(*args, **options):
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **options)

        return write

    model = new_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_text", full(Path.write_text))
        patch.setattr(Path, "mkdir", full(Path.mkdir))
        patch.setattr(os, "fsync", full(os.fsync))
        patch.setattr(checkpoints, "save_file", full(checkpoints.save_file))
        patch.setattr("hmoevae.saving.files.save_file", full(hm.saving.files.save_file))
        patch.setattr("tempfile.mkdtemp", full(tempfile.mkdtemp))
        with pytest.raises((CheckpointError, ArgumentError), match="No space left on device") as caught:
            fit(model, X, checkpoint_dir=tmp_path)
    if left < -1:  # not while the folder was opened, but by a later write
        pytest.fail("a second write after the first had failed")
    kept = [name for name in names(tmp_path) if not name.startswith(".")]
    assert set(epoch_folders(1, 2)) & set(kept)
    if isinstance(caught.value, CheckpointError):
        assert f"the last one is {last_checkpoint(tmp_path)}" in str(caught.value)
        assert not model.training
    assert run(tmp_path) == uninterrupted()


@pytest.mark.parametrize(
    "limit", [pytest.param(10, marks=pytest.mark.slow), 3000, pytest.param(6000, marks=pytest.mark.slow)]
)
def test_a_really_full_disk(tmp_path, limit):
    """A limit on the size of files stands for the size of the disk."""
    run(tmp_path, kill_at(3))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(CheckpointError) as caught:
            run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"{tmp_path / 'epoch-000003'}: expected a checkpoint that can be written, got " in str(caught.value)
    assert "File too large" in str(caught.value)
    assert str(caught.value).endswith(f"; the last one is {tmp_path / 'epoch-000002'}")
    assert names(tmp_path) == epoch_folders(1, 2)
    assert run(tmp_path) == uninterrupted()


def test_non_finite_weights_are_never_kept(tmp_path):
    """From a gradient in the last step of an epoch, which no loss sees before the epoch ends."""
    model = new_model()
    spoilt = model.experts.groups[0].decoder.layers[0].bias
    steps = 0

    def spoil(gradient):
        nonlocal steps
        steps += 1
        return gradient * math.nan if steps == 9 else gradient  # the last of epoch 3

    spoilt.register_hook(spoil)
    with pytest.raises(NonFiniteError) as caught:
        fit(model, X, checkpoint_dir=tmp_path)
    assert str(caught.value) == (
        "weights: expected finite weights after step 9, got NaN or infinity in experts.groups.0.decoder.layers.0.bias "
        "(the expert root/0); "
        f"the model has the weights of the last good epoch; the last checkpoint is {tmp_path / 'epoch-000002'}"
    )
    good = hm.HMoEVAE.from_pretrained(last_checkpoint(tmp_path))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in good.state_dict().items())
    assert run(tmp_path)[:2] == uninterrupted()[:2]


def test_weights_that_a_callback_spoils_are_not_kept(tmp_path):
    def spoil(end):
        if end.epoch == 2:
            with torch.no_grad():
                next(end.model.parameters()).view(-1)[0] = math.inf

    with pytest.raises(NonFiniteError, match=r"weights: .*after step 6, .*; the last checkpoint is .*epoch-000001"):
        run(tmp_path, spoil)
    assert names(tmp_path) == epoch_folders(1)


def test_non_finite_loss_names_the_last_checkpoint(tmp_path):
    def view(x):
        view.calls += 1
        return x * (math.nan if view.calls == 8 else 1)

    view.calls = 0
    with pytest.raises(NonFiniteError, match=r"finite loss at step 8, .*; the last checkpoint is .*epoch-000002$"):
        run(tmp_path, view=view)


# --- any order of events ----------------------------------------------------------------------------------------------


class Lives(RuleBasedStateMachine):
    """A run with a hard life: killed in epochs and in writes, damaged, interrupted; and it ends as if untouched."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())

    @initialize(every=st.integers(1, 3), keep=st.integers(1, 3), everything=st.booleans())
    def begin(self, every, keep, everything):
        self.options = {"checkpoint_every": every, "checkpoint_keep": keep, **(EVERYTHING if everything else {})}
        self.expected = run(None, **(EVERYTHING if everything else {}))

    def whole(self):
        return [path for path in checkpoints._paths(self.folder) if self.is_whole(path)]

    @staticmethod
    def is_whole(path):
        try:
            checkpoints.read_checkpoint(path)
        except CheckpointError:
            return False
        return True

    def go_on(self, *callbacks):
        damaged = checkpoints._paths(self.folder)[:1] and not self.is_whole(checkpoints._paths(self.folder)[0])
        if not damaged:
            return run(self.folder, *callbacks, **self.options)
        with pytest.warns(CheckpointWarning):
            return run(self.folder, *callbacks, **self.options)

    @rule(epoch=st.integers(1, EPOCHS))
    def kill_in_an_epoch(self, epoch):
        self.go_on(kill_at(epoch))

    @rule(call=st.integers(0, 40))
    def kill_in_a_write(self, call):
        """At some call that brings a checkpoint to the disk; what a killed process would leave is left."""
        left = call

        def deadly(real):
            def wrapped(*args, **options):
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return real(*args, **options)

            return wrapped

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoints.os, "fsync", deadly(os.fsync))
            patch.setattr(Path, "rename", deadly(Path.rename))
            patch.setattr(checkpoints.shutil, "rmtree", deadly(shutil.rmtree))
            self.go_on()

    @rule()
    def press_ctrl_c(self):
        def press(end):
            if end.epoch == EPOCHS - 1:
                raise KeyboardInterrupt

        self.go_on(press)

    @precondition(lambda self: len(checkpoints._paths(self.folder)) > 0)
    @rule(how=st.sampled_from(("truncated", "flipped", "empty", "foreign", "missing")), file=st.sampled_from(FILES))
    def damage_the_newest(self, how, file):
        path = checkpoints._paths(self.folder)[0] / file
        if path.exists() and path.stat().st_size > 2:
            DAMAGE[how](path)

    @rule()
    def look(self):
        for path in self.whole():
            assert torch.isfinite(hm.HMoEVAE.from_pretrained(path).predict_proba(X)).all()

    @rule()
    def finish(self):
        assert self.go_on() == self.expected

    def teardown(self):
        if hasattr(self, "expected"):
            self.finish()
        shutil.rmtree(self.folder)


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=4, stateful_step_count=6)
TestLives = pytest.mark.slow(pytest.mark.usefixtures("as_users_call")(TestLives))


# --- real kills -------------------------------------------------------------------------------------------------------

KILLS = """
import os, random, signal, sys
sys.path[:0] = {folders!r}
from test_checkpoints import *  # once; every run is a fork of this process
torch.set_num_threads(1)  # OpenMP's threads do not survive a fork

def die(real):
    def wrapped(*args, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    return wrapped

def child(folder, call=None):
    global left
    pid = os.fork()
    if pid == 0:
        if call is not None:
            left = call
            for owner, name in ((os, "fsync"), (os, "mkdir"), (os, "rename"), (os, "rmdir"), (os, "open"),
                                (Path, "write_text"), (checkpoints, "save_file")):
                setattr(owner, name, die(getattr(owner, name)))
        os._exit(0 if run(folder) == expected else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

expected = run(None)
torn = 0
for call in {calls!r}:
    folder = Path({folder!r}) / str(call)
    assert child(folder, call) == -signal.SIGKILL, call
    torn += any(name.startswith(".epoch-") for name in os.listdir(folder)) if folder.exists() else 0
    assert child(folder) == 0, call
    assert names(folder) == epoch_folders(4, 5, 6), (call, names(folder))
print(torn)
"""


@pytest.mark.slow
def test_killed_for_real_at_calls_to_the_system(tmp_path):
    """SIGKILL, before one call or another of those that write, move and delete."""
    calls = sorted(random.Random(0).sample(range(90), 6))
    here = Path(__file__).parent
    folders = [str(here), str(here.parent), str(here.parents[1]), str(here.parents[1] / "benchmarks")]
    script = KILLS.format(folders=folders, calls=calls, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 1  # some were killed in the middle of a write


@pytest.mark.slow
def test_the_rows_of_the_benchmark(tmp_path):
    """One of each kind of number spoilt, and a full disk; the kills take minutes."""
    report = tmp_path / "report.json"
    kills.main(["--kills", "0", "--writes", "0", "--spoilt", "3", "--full", "1", "--json", str(report)])
    rows = json.loads(report.read_text())["rows"]
    assert [(row["tries"], row["survived"]) for row in rows] == [(3, 3), (3, 3), (3, 3), (1, 1)]

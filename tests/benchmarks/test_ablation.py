"""The ablation and the likelihood benchmarks: what they change, what they score, and what they report."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ablation
import likelihood
import pytest
import torch
from recipes import RECIPES

import hmoevae as hm
from hmoevae.datasets import LabelledImages

pytestmark = pytest.mark.slow

USUAL = RECIPES["styles"].training(60_000)
QUICK_STEPS: dict[str, Any] = {"epochs": 3, "batch_size": 50, "device": "cpu", "precision": "fp32"}
QUICK = replace(USUAL, epochs=2, batch_size=50, device="cpu", precision="fp32")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))


# --- ablation ---------------------------------------------------------------------------------------------------------


def test_the_full_row_is_the_recipe(images: torch.Tensor) -> None:
    own, _ = RECIPES["styles"].run("flat", images, QUICK, False)
    row, _ = ablation.run_row("full", images, QUICK)
    assert row.tree == own.tree
    assert torch.equal(row.route(images), own.route(images))


def test_every_row_differs_from_the_recipe_in_its_own_way(images: torch.Tensor) -> None:
    routes = {name: ablation.run_row(name, images, QUICK)[0].route(images) for name in (*ablation.ROWS, "article")}
    for one in routes:
        for other in routes:
            assert torch.equal(routes[one], routes[other]) == (one == other), (one, other)


def test_every_part_of_the_best_recipe_is_taken_away(images: torch.Tensor) -> None:
    x = torch.nn.functional.interpolate(images, size=(16, 16))
    training = replace(RECIPES["best"].training(60_000), **QUICK_STEPS)
    own, _ = RECIPES["best"].run("flat", x, training, False)
    routes = {name: ablation.run_row(name, x, training, recipe="best")[0].route(x) for name in ablation.PARTS_OF_BEST}
    assert torch.equal(routes["full"], own.route(x))
    for one in routes:
        for other in routes:
            assert torch.equal(routes[one], routes[other]) == (one == other), (one, other)


def test_gates_alone_leave_the_experts_as_they_were(images: torch.Tensor) -> None:
    _, history = ablation.run_row("gates alone, no experts", images, QUICK)
    assert "elbo" not in history.columns
    _, history = ablation.run_row("no agreement", images, QUICK)
    assert "agreement" not in history.columns


@pytest.mark.usefixtures("bfloat16")
def test_an_ablation_goes_on_where_another_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ablation.json"
    small = tuple(LabelledImages("digits", split.x[:80], split.y[:80]) for split in hm.datasets.digits())
    monkeypatch.setattr(hm.datasets, "digits", lambda: small)
    command = ["--quick", "--device", "cpu", "--threads", "1", "--json", str(file), "--rows"]
    ablation.main([*command, "full", "--seeds", "1"])
    first = json.loads(file.read_text())["rows"]
    capsys.readouterr()
    ablation.main([*command, "dense gate", "full", "--seeds", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(":")[0] for line in lines[:-1]] == [
        "dense gate, seed 0",
        "dense gate, seed 1",
        "full, seed 1",
    ]
    report = json.loads(lines[-1])
    assert report == json.loads(file.read_text())
    assert {row["what"]: row["n_seeds"] for row in report["rows"]} == {"full": 2, "dense gate": 2}
    full = report["rows"][0]
    assert full["runs"][0] == first[0]["runs"][0]
    assert full["mean"]["accuracy"] == pytest.approx(sum(run["accuracy"] for run in full["runs"]) / 2)
    assert first[0]["sd"]["accuracy"] is None
    monkeypatch.setattr(hm.datasets, "mnist", lambda _: small)
    with pytest.raises(SystemExit, match=r"--json: expected no file, or one of the same data, recipe and epochs"):
        ablation.main([*command[1:], "full"])


# --- likelihood -------------------------------------------------------------------------------------------------------


def test_images_are_binarised_anew_and_seen_once() -> None:
    grey = torch.linspace(0, 1, 7).reshape(7, 1, 1, 1).expand(7, 1, 4, 50)
    batches = likelihood.Redrawn(grey, batch_size=3, seed=0)
    epochs = [torch.cat(list(batches)) for _ in range(2)]
    assert len(batches) == len(list(batches)) == 3
    for epoch in epochs:
        assert set(epoch.unique().tolist()) == {0.0, 1.0}
        torch.testing.assert_close(epoch.flatten(1).mean(1).sort().values, grey[:, 0, 0, 0], atol=0.12, rtol=0)
    assert not torch.equal(*epochs)


@pytest.mark.parametrize("leaves", [1, 2])
def test_likelihood_of_the_test_split(
    leaves: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = torch.rand(90, 1, 4, 4, generator=torch.Generator().manual_seed(7)).mul(1.4).clamp(0, 1)
    train = LabelledImages("mnist", grey[:60], torch.zeros(60, dtype=torch.long))
    test = LabelledImages("mnist", grey[60:], torch.zeros(30, dtype=torch.long))
    monkeypatch.setattr(hm.datasets, "mnist", lambda _: (train, test))
    tiny = ["--epochs", "3", "--hidden", "8", "--latent-dim", "2", "--importance", "5", "--batch-size", "20"]
    tiny += ["--device", "cpu", "--threads", "1", "--precision", "fp32", "--leaves", str(leaves)]
    scored = []
    score_samples = hm.HMoEVAE.score_samples

    def watched(model: hm.HMoEVAE, x: torch.Tensor, **options: object) -> torch.Tensor:
        scored.append(x)
        return score_samples(model, x, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(hm.HMoEVAE, "score_samples", watched)
    likelihood.main([*tiny, "--seeds", "2", "--json", str(tmp_path / "l.json")])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report == json.loads((tmp_path / "l.json").read_text())
    assert report["scored"] == {"split": "test", "images": 30}
    assert torch.equal(scored[0], scored[1])  # every seed scores the same draw
    assert len(report["rows"][0]["usage"]) == leaves
    assert -16 < report["log_likelihood"] < 0  # of 16 pixels, 11 nats of coin tosses
    for run in report["rows"]:
        assert run["log_likelihood"] > run["elbo"]
    likelihood.main([*tiny, "--held-out", "10"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["scored"] == {"split": "train, held out", "images": 10}
    assert torch.equal(scored[2], torch.bernoulli(grey[50:60], generator=torch.Generator().manual_seed(0)))

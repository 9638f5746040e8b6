"""The benchmark of scores without labels: what its scores say of known cases, and how a run goes on."""

import json
from pathlib import Path

import numpy as np
import pytest
import score
import torch

import hmoevae as hm

pytestmark = pytest.mark.slow

KIND = np.arange(400) % 4
EVERY = np.eye(4)


@pytest.mark.parametrize("name", ["kappa", "leaf_information"])
def test_scores_of_known_pairs(name: str) -> None:
    of = getattr(score, name)
    perfect = EVERY[KIND]
    assert of(perfect, perfect) == pytest.approx(1)
    one = EVERY[np.zeros(400, int)]
    assert of(one, one) == pytest.approx(0, abs=1e-9)
    by_chance = EVERY[np.random.default_rng(0).integers(4, size=400)]
    assert abs(of(perfect, by_chance)) < 0.06
    nearly = EVERY[np.where(np.arange(400) < 40, 0, KIND)]
    assert 0.5 < of(perfect, nearly) < 1


def test_a_collapse_into_half_of_the_leaves_is_seen_by_information_and_not_by_kappa() -> None:
    half = EVERY[KIND // 2]
    assert score.kappa(half, half) == 1
    assert score.leaf_information(half, half) == pytest.approx(0.5)
    assert score.objective(half, half) < score.objective(EVERY[KIND], EVERY[KIND]) == pytest.approx(0)


def test_a_rank_is_by_what_the_score_says() -> None:
    rows = [
        {
            "setting": "random start",
            "accuracy": value,
            "accuracy_held_out": value,
            "scores": {"right": value**3, "wrong": -value},
            "leaves": leaves,
        }
        for value, leaves in zip((0.2, 0.5, 0.7, 0.9), ("010101", "001201", "001122", "001122"), strict=True)
    ]
    right, wrong, like, labels = score.ranks(rows)
    assert (right["correlation"], wrong["correlation"]) == (pytest.approx(1), pytest.approx(-1))
    assert (right["chosen"], wrong["chosen"]) == (0.9, 0.2)
    assert (like["score"], labels["score"]) == (score.LIKE_THE_OTHERS, score.WITH_LABELS)
    assert labels["correlation"] == pytest.approx(1)
    assert like["correlation"] > 0.5
    assert score.ranks(rows[:2]) == []


@pytest.mark.usefixtures("bfloat16")
def test_a_quick_run_goes_on_where_another_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "score.json"
    quick = ["--quick", "--epochs", "1", "--threads", "1", "--device", "cpu", "--json", str(file), "--seeds"]
    score.main([*quick, "1"])
    first = json.loads(file.read_text())
    assert [row["seed"] for row in first["rows"]] == [0, 0]
    capsys.readouterr()
    score.main([*quick, "2"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report == json.loads(file.read_text())
    assert report["rows"][:2] == first["rows"]
    assert [(row["setting"], row["seed"]) for row in report["rows"][2:]] == [(name, 1) for name in score.QUICK]
    names = {*first["rows"][0]["scores"], score.LIKE_THE_OTHERS, score.WITH_LABELS}
    assert {found["score"] for found in report["candidates"]} == names
    with pytest.raises(SystemExit, match="--json: expected no file, or one of the same data and epochs"):
        score.main(["--quick", "--threads", "1", "--json", str(file)])


def test_every_score_of_a_run_is_of_the_same_pairs() -> None:
    model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=1), 4), (1, 16, 16))
    x = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    pairs = score.pairs_of(x)
    found = score.scores_of(model, x, pairs)
    for name, (first, second) in pairs.items():
        p, q = (model.predict_proba(images).numpy() for images in (first, second))
        assert found[f"leaf information, {name}"] == score.leaf_information(p, q)
        assert found[f"kappa, {name}"] == score.kappa(p, q)
        assert found[f"information, {name}"] == hm.metrics.agreement_score(
            model, first, partner=score.partner_in(second)
        )
    assert torch.equal(pairs["copies"][0], score.pairs_of(x)["copies"][0])  # whatever is scored


def test_every_setting_differs_from_the_example() -> None:
    usual = score.SETTINGS["as the example"]
    assert all(setting != usual for name, setting in score.SETTINGS.items() if name != "as the example")
    assert usual.view == hm.views.RandomAffine()

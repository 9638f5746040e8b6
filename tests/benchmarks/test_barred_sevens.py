"""The benchmark of barred sevens: the strokes it draws, what it scores, and its report."""

import json
import math
from pathlib import Path

import barred_sevens
import numpy as np
import pytest
import torch
from barred_sevens import SCORES, Sevens, barred, barred_leaf, score, stem, stroke, with_bars
from barred_sevens_figure import save_figure
from matplotlib.image import imread

import hmoevae as hm
from hmoevae.datasets import LabelledImages

pytestmark = pytest.mark.slow

LEAF = hm.VAE(1, hm.MLP((2,)), hm.MLP((2,)))


def test_a_level_stroke_by_hand() -> None:
    """1.6 pixels thick: a full row, and three tenths of the rows on either side."""
    drawn = stroke((7, 11), (3.0, 5.0), 3.0, 0.0)
    np.testing.assert_allclose(drawn[:, 5], [0, 0, 0.3, 1, 0.3, 0, 0], atol=1e-12)
    np.testing.assert_allclose(drawn[3], [0, 0.3, 1, 1, 1, 1, 1, 1, 1, 0.3, 0], atol=1e-12)
    assert drawn[2, 1] == drawn[4, 9] == 0, "the ends are round"


@pytest.mark.parametrize("tilt", [0.0, 0.12, -0.3, math.pi / 2])
@pytest.mark.parametrize("centre", [(14.0, 13.0), (13.4, 14.7)])
def test_strokes_have_the_ink_of_their_area_wherever_they_lie(tilt: float, centre: tuple[float, float]) -> None:
    half, thickness = 5.0, 1.6
    drawn = stroke((28, 28), centre, half, tilt)
    assert drawn.sum() == pytest.approx(2 * half * thickness + math.pi * thickness**2 / 4, rel=0.06)
    rows, columns = np.indices(drawn.shape)
    assert (drawn * rows).sum() / drawn.sum() == pytest.approx(centre[0], abs=0.1)
    assert (drawn * columns).sum() / drawn.sum() == pytest.approx(centre[1], abs=0.1)
    end = round(centre[0] + (half - 1) * math.sin(tilt)), round(centre[1] + (half - 1) * math.cos(tilt))
    assert drawn[end] > 0.5, "a positive tilt is clockwise"


def test_the_stem_is_where_the_ink_is() -> None:
    image = np.zeros((28, 28), dtype=np.float32)
    image[4:24, 10:12] = 1
    image[4:6, 6:20] = 1
    assert stem(image, 14.3) == pytest.approx(10.5)
    image[12:18] = 0
    assert stem(image, 14.3) == pytest.approx((image * np.arange(28)).sum() / image.sum()), "a gap: all of the ink"


def test_a_barred_image_has_its_ink_and_a_stroke_through_the_middle() -> None:
    image = np.zeros((28, 28), dtype=np.float32)
    image[4:24, 12] = 0.7
    for seed in range(20):
        drawn = barred(image, np.random.default_rng(seed))
        assert drawn.dtype == image.dtype
        assert (drawn >= image).all()
        assert drawn.max() <= 1
        added = drawn - image
        assert 10 < added.sum() < 25
        rows, columns = np.indices(image.shape)
        assert abs((added * rows).sum() / added.sum() - 13.5) < 1.2
        assert abs((added * columns).sum() / added.sum() - 12) < 0.5


def test_half_of_the_sevens_and_nothing_else_changes() -> None:
    x = torch.zeros(100, 1, 28, 28)
    x[:, :, 5:22, 14] = 1
    split = LabelledImages("test", x, torch.arange(100) % 10)
    changed, drawn = with_bars(split, np.random.default_rng(0))
    assert drawn.sum() == 5
    assert (split.y[drawn] == 7).all()
    assert torch.equal((changed.x != x).flatten(1).any(1), drawn)
    assert torch.equal(changed.y, split.y)
    again, _ = with_bars(split, np.random.default_rng(0))
    assert torch.equal(changed.x, again.x)


class Gated(hm.HMoEVAE):
    """Routes by the first pixels: the kind by the first, the style by the second."""

    def predict_proba(self, x, *, level=None, batch_size=1):
        kind, style = x[:, 0, 0, 0].long(), x[:, 0, 0, 1].long()
        return torch.eye(2)[kind] if level == 1 else torch.eye(4)[2 * kind + style]


def test_scores_by_hand() -> None:
    """Ten sevens, one of them with another kind; six strokes, of which the barred leaf takes four of five."""
    model = Gated(hm.Mixture.of(hm.Mixture.of(LEAF, 2), 2), (1, 2, 2))
    kind = [1, 1, 1, 1, 1, 1, 1, 1, 1, 0]
    style = [1, 1, 1, 1, 0, 0, 0, 0, 1, 0]
    drawn = torch.tensor([True] * 5 + [False] * 4 + [True])
    changed = torch.zeros(10, 1, 2, 2)
    changed[:, 0, 0, 0], changed[:, 0, 0, 1] = torch.tensor(kind), torch.tensor(style)
    real = changed.clone()
    real[:4, 0, 0, 1] = 0
    sevens = Sevens(real, changed, drawn)
    assert barred_leaf(model, sevens) == 3
    assert score(model, sevens) == pytest.approx({"kind": 0.9, "found": 0.8, "purity": 7 / 9, "real": 0.1})


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.filterwarnings("ignore::hmoevae.errors.DeadLeafWarning")  # a few steps on noise
def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    splits = [
        LabelledImages("mnist", torch.rand(n, 1, 28, 28, generator=generator), torch.arange(n) % 10) for n in (80, 60)
    ]
    monkeypatch.setattr(hm.datasets, "mnist", lambda _: splits)
    files = tmp_path / "r.json", tmp_path / "r.png"
    quick = ["--seeds", "0", "3", "--epochs", "3", "--threads", "1", "--device", "cpu"]
    barred_sevens.main([*quick, "--json", str(files[0]), "--plot", str(files[1])])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report == json.loads(files[0].read_text())
    assert [run["seed"] for run in report["rows"]] == [0, 3]
    assert report["images"] == {"train": 80, "test sevens": 6, "drawn": 3}
    for name in SCORES:
        assert 0 <= report["rows"][0][name] <= 1
        assert report["mean"][name] == pytest.approx(sum(run[name] for run in report["rows"]) / 2)
    assert imread(files[1]).ndim == 3


def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        barred_sevens.main(["--epochs", "0"])
    assert "--epochs: expected an integer > 0, got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"barred_sevens.py: root: expected a folder with MNIST/raw/"):
        barred_sevens.main(["--data-root", "/nowhere"])


def test_the_picture_holds_when_a_leaf_takes_nothing(tmp_path: Path) -> None:
    model = hm.HMoEVAE(hm.Mixture.of(hm.Mixture.of(LEAF, 2), 2), (1, 28, 28))
    x = torch.rand(5, 1, 28, 28)
    leaf = int(model.predict(x)[0])
    save_figure(
        model, Sevens(x, x, torch.tensor([True, False, True, False, False])), (leaf + 1) % 4, tmp_path / "p.png"
    )
    assert imread(tmp_path / "p.png").ndim == 3

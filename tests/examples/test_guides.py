"""The examples that pages of guidance are about: they run, and do what the pages say."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import early_stopping
import numpy as np
import outliers
import own_images
import pytest
import thousand_kinds
import torch

import hmoevae as hm

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode or done.stdout.splitlines()[-1].startswith("A smoke run: it only shows")
    return done


# --- outliers -------------------------------------------------------------------------------------------------------


def test_outliers_leave_a_model_and_the_strangest(tmp_path: Path) -> None:
    done = run("outliers.py", "--smoke", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^ *(k-means|hmoevae): AUROC 0\.\d{3}, \d+% of the spoilt", done.stdout, re.MULTILINE)
    assert found == ["k-means", "hmoevae"]
    assert {file.name for file in tmp_path.iterdir()} == {"model", "strangest.png"}


def test_a_spoilt_image_is_of_two_halves() -> None:
    x = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 1, 2, 4)
    assert outliers.spoilt(x)[:, 0, 0].tolist() == [[0, 0, 2, 2], [1, 1, 0, 0], [2, 2, 1, 1]]


def test_the_limit_is_set_by_held_out_samples(capsys: pytest.CaptureFixture[str]) -> None:
    held_out = np.arange(101.0)
    outliers.report("some", held_out, good=np.array([4.0, 50.0, 60.0, 70.0]), bad=np.array([1.0, 2.0, 3.0, 90.0]))
    # 5 is the 5 % quantile; of the 16 pairs of a good and a bad one, 12 are in order.
    expected = "    some: AUROC 0.750, 75% of the spoilt found and 25% of the others, limit 5.0\n"
    assert capsys.readouterr().out == expected


# --- early stopping and logging -------------------------------------------------------------------------------------


def test_the_log_has_a_line_for_every_epoch_and_starts_anew_with_a_run(tmp_path: Path) -> None:
    log = early_stopping.Log(tmp_path / "log.jsonl")
    model = hm.HMoEVAE(hm.VAE(2), (4,))
    for n in (3, 2):
        history = hm.fit(model, torch.rand(8, 4), hm.Training(epochs=n), callbacks=[log], progress=False)
        lines = [json.loads(line) for line in log.file.read_text(encoding="utf-8").splitlines()]
        assert lines == history.rows
        assert len(lines) == n


def test_early_stopping_leaves_logs_and_the_best_model_and_goes_on(tmp_path: Path) -> None:
    first = run("early_stopping.py", "--smoke", "--out", tmp_path)
    assert first.returncode == 0, first.stderr
    assert {"model", "checkpoints", "history.csv", "log.jsonl"} <= {file.name for file in tmp_path.iterdir()}
    with (tmp_path / "history.csv").open(encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert f"2 epochs; held-out loss {float(rows[0]['val_elbo']):.2f} at first" in first.stdout
    assert "in epoch 2\n" in first.stdout  # the first one teaches the start, and does not count
    again = run("early_stopping.py", "--smoke", "--out", tmp_path)
    assert again.stdout == first.stdout


# --- images of your own ---------------------------------------------------------------------------------------------


def test_own_images_sort_every_file(tmp_path: Path) -> None:
    done = run("own_images.py", "--smoke", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    files = sorted(map(str, (tmp_path / "few_shapes").rglob("*.png")))
    assert len(files) == 100
    for leaves in tmp_path.glob("*/leaves.csv"):
        with leaves.open(encoding="utf-8") as table:
            rows = list(csv.DictReader(table))
        assert [row["file"] for row in rows] == files
        assert {int(row["leaf"]) for row in rows} <= set(range(5))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_pictures_are_read_as_numbers_from_0_to_1(mode: str, channels: int, tmp_path: Path) -> None:
    from PIL import Image

    for i in range(10):
        Image.new("RGB", (20, 10), (255, 0, 51 * (i % 2))).save(tmp_path / f"{i}.png")
    x, files = own_images.read(tmp_path, 8, mode)
    assert x.shape == (10, channels, 8, 8)
    assert [file.name for file in files] == [f"{i}.png" for i in range(10)]
    if channels == 3:
        assert x[1].amax((1, 2)).tolist() == pytest.approx([1.0, 0.0, 0.2])


def test_a_folder_without_pictures_ends_with_one_line(tmp_path: Path) -> None:
    done = run("own_images.py", "--folder", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr == f"own_images.py: --folder: expected at least 10 pictures, got 0 in {tmp_path}\n"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


# --- a thousand kinds -----------------------------------------------------------------------------------------------


@pytest.mark.skipif("HMOEVAE_DATA" not in os.environ, reason="needs Fashion-MNIST in the folder HMOEVAE_DATA")
def test_many_leaves_are_trained_by_routing_and_drawn_in_part(tmp_path: Path) -> None:
    done = run("thousand_kinds.py", "--smoke", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"of 20 leaves are the most probable one of some test image\nthe  10 largest .*%", done.stdout)
    assert re.findall(r"^labels against (\w+): purity 0\.\d{3}, NMI 0\.\d{3}$", done.stdout, re.MULTILINE) == [
        "groups",
        "leaves",
    ]
    assert {file.name for file in tmp_path.iterdir()} == {
        "model",
        "history.csv",
        "report.html",
        "tree.png",
        "groups.png",
    }
    assert hm.HMoEVAE.from_pretrained(tmp_path / "model").plan.n_leaves == 20


def test_a_thousand_leaves_are_trained_with_two_an_image() -> None:
    assert thousand_kinds.make_tree(20, 50).n_leaves == 1000
    training = thousand_kinds.make_training(7, seed=3)
    assert (training.route, training.init_shared, training.start_epochs, training.seed) == (hm.TopK(2), True, 4, 3)
    assert thousand_kinds.make_training(1, seed=0).start_epochs == 1


def test_clothes_that_are_nowhere_end_with_one_line(tmp_path: Path) -> None:
    done = run("thousand_kinds.py", "--smoke", "--data-root", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("thousand_kinds.py: root: expected a folder with FashionMNIST/raw/ in it, got ")
    assert len(done.stderr.splitlines()) == 1

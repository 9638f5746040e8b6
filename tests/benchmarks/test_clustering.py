"""The clustering benchmark: its trees, its baselines, its command line and its report."""

import itertools
import json
import math
import statistics
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import mnist_flat
import mnist_two_level
import numpy as np
import pytest
import torch
from baselines import BASELINES
from clustering import aligned, main, published_lines
from published import PUBLISHED
from recipes import RECIPES, Layout, article_tree, best_tree, halves, leaves_by_likeness
from sklearn.decomposition import PCA

import hmoevae as hm

pytestmark = pytest.mark.slow

SCORES = {"accuracy", "nmi", "ari", "leaf_purity"}
GATE_SCORES = {*SCORES, "usage_entropy", "calibration_error"}


class Shrinker(PCA):
    """In place of `umap.UMAP`, which takes half a minute to import and compile."""

    def __init__(
        self, n_components: int, min_dist: float, random_state: int, n_jobs: int, n_neighbors: int = 15
    ) -> None:
        super().__init__(min(n_components, 3), random_state=random_state)
        assert (min_dist, n_jobs, n_neighbors) == (0, 1, 15)
        self.min_dist, self.n_jobs, self.n_neighbors = min_dist, n_jobs, n_neighbors


# --- trees ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_layouts_are_what_they_say(name: str) -> None:
    trees = [RECIPES[name].tree(layout) for layout in get_args(Layout)]
    assert [(tree.n_leaves, tree.depth) for tree in trees] == [(10, 1), (30, 2), (10, 4)]


def test_the_best_recipe_is_what_the_examples_do() -> None:
    assert best_tree("flat") == mnist_flat.make_tree()
    assert best_tree("two-level") == mnist_two_level.make_tree()
    for n_images in (1_000, 60_000):
        assert mnist_flat.make_training(n_images) == mnist_two_level.make_training(n_images)


@pytest.mark.parametrize(
    ("name", "steps", "steps_of_few"),
    [
        *(("best", 8640, 4320), ("random-start", 8640, 4320), ("styles", 8640, 4320)),
        *(("no-augmentation", 3360, 1680), ("article", 60_000, 60_000)),
    ],
)
def test_recipes_count_steps_whatever_the_number_of_images(name: str, steps: int, steps_of_few: int) -> None:
    """36 epochs of MNIST and 36 of a sixth part of it would not be the same training."""
    for n_images in (1_000, 4_000, 60_000):
        training = RECIPES[name].training(n_images)
        made = training.epochs * math.ceil(n_images / training.batch_size)
        assert made == pytest.approx(steps if n_images == 60_000 else steps_of_few, rel=0.02)


@pytest.mark.parametrize("n", range(2, 20))
def test_halves_are_as_even_as_can_be(n: int) -> None:
    left, right = halves(n)
    assert left + right == n
    assert left - right in (0, 1)


@pytest.mark.parametrize("layout", ["two-level", "binary"])
def test_the_balances_of_the_best_tree_weigh_by_their_share_of_the_leaves(layout: Layout) -> None:
    """So that, of kind `kl`, they add up to the divergence of the leaves' usage from the prior."""
    tree = best_tree(layout)
    for _, node in tree.walk():
        if node.children:
            assert node.balance.weight == pytest.approx(20 * node.n_leaves / tree.n_leaves)


def test_kinds_that_are_confused_lie_close_in_the_binary_tree() -> None:
    """Ten kinds in the tree of two sides of five; within each side, three that are alike and two that are."""
    sides = [[{9, 2, 4}, {0, 7}], [{5, 1, 8}, {3, 6}]]
    confused = torch.eye(10)
    for side in sides:
        for group in side:
            for i, j in itertools.permutations(set().union(*side), 2):
                confused[i, j] += 0.3 if {i, j} <= group else 0.1
    kind = torch.arange(10).repeat_interleave(10)
    share = confused[kind] / confused[kind].sum(1, keepdim=True)
    leaf_of = dict(zip(kind.tolist(), leaves_by_likeness(share).tolist(), strict=True))
    assert sorted(leaf_of.values()) == list(range(10))
    found = [[{leaf_of[kind] for kind in group} for group in side] for side in sides]
    found.sort(key=lambda side: min(map(min, side)))
    assert found == [[{0, 1, 2}, {3, 4}], [{5, 6, 7}, {8, 9}]]


@pytest.mark.filterwarnings("ignore::hmoevae.errors.ConstantGateWarning", "ignore::hmoevae.errors.DeadLeafWarning")
def test_a_binary_tree_starts_from_the_kinds_of_a_flat_one() -> None:
    x = torch.rand(60, 1, 8, 8)
    training = replace(RECIPES["best"].training(60_000), epochs=3, batch_size=20, device="cpu", precision="fp32")
    model, history = RECIPES["best"].run("binary", x, training, False)
    assert (model.plan.n_leaves, len(history), "start_gate" in history.columns) == (10, 2, True)


def test_a_binary_tree_of_the_article_has_ten_of_its_experts() -> None:
    tree = article_tree("binary")
    assert (tree.n_leaves, tree.depth) == (10, 4)
    assert {node for _, node in tree.walk() if not node.children} == {article_tree("flat").children[0]}
    assert tree.at("root").balance == article_tree("flat").balance  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore::hmoevae.errors.ConstantGateWarning", "ignore::hmoevae.errors.DeadLeafWarning")
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_give_the_same_model_for_the_same_seed(name: str) -> None:
    x = torch.rand(40, 1, 8, 8)
    quick = replace(RECIPES[name].training(60_000), epochs=1, batch_size=20, device="cpu", precision="fp32")
    one, again, other = (RECIPES[name].run("flat", x, replace(quick, seed=seed), False)[0] for seed in (3, 3, 4))
    assert torch.equal(one.route(x), again.route(x))
    assert not torch.equal(one.route(x), other.route(x))


# --- baselines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_find_far_apart_blobs_from_the_training_samples_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Shrinker))
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    x = (10 * np.eye(3, 60)[labels] + rng.normal(size=(300, 60))).astype(np.float32)
    clusters = BASELINES[name](x[:240], x[240:], 3, 0)
    assert hm.metrics.accuracy(labels[240:], clusters) == 1
    # What a test sample is called does not depend on the others.
    assert BASELINES[name](x[:240], x[240:250], 3, 0).tolist() == clusters[:10].tolist()


# --- published ------------------------------------------------------------------------------------------------------


def test_every_published_number_has_a_source_and_is_a_fraction() -> None:
    for other in PUBLISHED:
        assert other.source
        assert other.note
        numbers = [other.accuracy, other.accuracy_sd, other.nmi, other.dendrogram_purity]
        assert any(number is not None for number in numbers)
        assert all(0 < number < 1 for number in numbers if number is not None)


# --- the command ----------------------------------------------------------------------------------------------------


def report_of(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    main([*argv, "--threads", "1", "--device", "cpu"])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_quick_run_reports(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    file, picture = tmp_path / "report.json", tmp_path / "picture.svg"
    argv = ["--quick", "--epochs", "1", "--tree", "flat", "binary", "--json", str(file), "--plot", str(picture)]
    report = report_of(capsys, *argv)
    assert torch.get_num_threads() == threads
    assert json.loads(file.read_text()) == report
    assert picture.read_text().lstrip().startswith("<?xml")
    fields = {"date", "argv", "hardware", "versions", "images", "published", "rows", "load_average_after"}
    assert report.keys() == fields
    assert report["images"] == {"train": 1438, "test": 359}
    assert report["versions"].keys() >= {"torch", "hmoevae", "scikit-learn", "numpy"}
    rows = {(row["what"], row["recipe"], row["tree"]): row for row in report["rows"]}
    flat, deep = (rows.pop(("hmoevae", "best", tree)) for tree in ("flat", "binary"))
    assert rows.keys() == {("k-means", None, None), ("pca-gmm", None, None)}
    for row in (flat, deep, *rows.values()):
        assert [run["seed"] for run in row["runs"]] == [0, 1]
        for name in SCORES:
            values = [run[name] for run in row["runs"]]
            assert all(-1 <= value <= 1 for value in values)
            assert (row["mean"][name], row["sd"][name]) == (statistics.fmean(values), statistics.stdev(values))
    assert (flat["levels"], deep["levels"]) == (0, 3)
    assert deep["mean"].keys() - flat["mean"].keys() == {f"{name}_level{n}" for name in GATE_SCORES for n in (1, 2, 3)}
    assert flat["mean"]["epochs"] == 1
    assert rows["k-means", None, None]["mean"]["accuracy"] > 0.6  # of scikit-learn's digits; chance is 0.1


def test_the_table_has_a_line_for_every_level_and_published_result(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--epochs", "1", "--seeds", "1", "--tree", "two-level", "--against", "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "digits: 1,438 training and 359 test images, 1 seeds"
    assert lines[2].startswith("hmoevae best two-level")
    assert "+-" not in lines[2]  # one seed has no spread
    assert lines[3].split()[0] == "1"
    assert len(lines) == 5
    (line,) = published_lines(
        [{"what": "X", "accuracy": 0.9, "accuracy_sd": 0.01, "nmi": None, "source": "here", "note": "as is"}]
    )
    assert line == aligned(("X", "", "90.0 +- 1.0", *[""] * 7)) + "    here; as is"


def test_baselines_alone(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(capsys, "--quick", "--recipe", "--against", "k-means", "--seeds", "1")
    (row,) = report["rows"]
    assert (row["what"], set(row["sd"].values())) == ("k-means", {None})


def test_a_missing_umap_is_found_out_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(SystemExit, match=r"umap-gmm: expected umap-learn \(in a clone: pip install -e '\.\[umap\]'"):
        main(["--dataset", "digits", "--seeds", "1"])


def test_missing_images_end_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"root: expected a folder with FashionMNIST/raw/ in it"):
        main(["--dataset", "fashion", "--against", "--data-root", str(tmp_path)])


def test_the_trees_are_kept_where_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    quick = ["--quick", "--recipe", "article", "--epochs", "1", "--seeds", "1", "--against"]
    (row,) = report_of(capsys, *quick, "--models", str(tmp_path / "models"))["rows"]
    model = hm.HMoEVAE.from_pretrained(tmp_path / "models" / "article-flat-0")
    _, test = hm.datasets.digits()
    assert hm.metrics.accuracy(test.y, model.predict(test.x)) == row["mean"]["accuracy"]


def test_an_interrupted_run_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(model: hm.HMoEVAE, *_: Any, **__: Any) -> hm.History:
        history = hm.History()
        history.interrupted = True
        return history

    monkeypatch.setattr(hm, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        main(["--quick", "--against"])


@pytest.mark.parametrize("name", ["--seeds", "--epochs", "--threads"])
def test_counts_are_positive(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--quick", name, "0"])
    assert f"{name}: expected an integer > 0, got 0" in capsys.readouterr().err

"""The model card: what it tells, code that runs as printed, and respect for what others have written."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build
from huggingface_hub import ModelCard

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError
from hmoevae.spec import Tree

NET = hm.MLP((3,))
LEAF = hm.VAE(2, NET, NET)
FLAT = hm.Mixture.of(LEAF, 3, gate=NET)
INFO = hm.CardInfo(
    "MNIST",
    description="Handwritten digits.",
    dataset_id="ylecun/mnist",
    split="test",
    metrics={"accuracy": 0.98412, "nmi": np.float32(0.5), "elbo": torch.tensor(-218.5)},
)


def make(tree: Tree = FLAT, shape: tuple[int, ...] = (1, 2, 3)) -> hm.HMoEVAE:
    return build(tree, shape).float()


def readme(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


# --- what it tells --------------------------------------------------------------------------------------------------


def test_a_card_shows_tree_data_and_metrics(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "model", info=INFO)
    text = readme(tmp_path / "model")
    assert str(FLAT) in text
    assert "Samples of shape (1, 2, 3), objective `elbo`" in text
    assert "[MNIST](https://huggingface.co/datasets/ylecun/mnist): Handwritten digits." in text
    assert "On MNIST, test:\n\n| metric | value |\n|---|---|\n| accuracy | 0.9841 |\n| nmi | 0.5 |\n" in text


def test_the_hub_reads_its_metadata(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "model", info=INFO)
    data = ModelCard.load(tmp_path / "model" / "README.md").data
    assert data.library_name == "hmoevae"
    assert data.datasets == ["ylecun/mnist"]
    assert data.metrics == ["accuracy", "nmi", "elbo"]
    assert data.model_name == "model"
    found = [
        (r.dataset_type, r.dataset_name, r.dataset_split, r.metric_type, r.metric_value) for r in data.eval_results
    ]
    where = ("ylecun/mnist", "MNIST", "test")
    assert found == [(*where, "accuracy", 0.98412), (*where, "nmi", 0.5), (*where, "elbo", -218.5)]


def test_what_is_not_given_is_not_made_up(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "bare")
    text, data = readme(tmp_path / "bare"), ModelCard.load(tmp_path / "bare" / "README.md").data
    assert "## Data\n\nNot described.\n" in text
    assert "## Metrics\n\nNone were given.\n" in text
    assert (data.datasets, data.metrics, data.eval_results) == (None, None, None)
    make().save_pretrained(tmp_path / "named", info=hm.CardInfo("my scans"))
    text, data = readme(tmp_path / "named"), ModelCard.load(tmp_path / "named" / "README.md").data
    assert "## Data\n\nmy scans\n" in text
    assert (data.datasets, data.eval_results) == (None, None)


class Record:
    """A training as data, as far as saving knows one."""

    def __init__(self, text: str = '{"epochs": 3}') -> None:
        self.text = text

    def to_json(self) -> str:
        return self.text

    def __str__(self) -> str:
        return "Training(epochs=3)"


def test_a_training_is_told_and_kept_beside_the_model(tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path, info=hm.CardInfo("noise", training=Record()))
    assert "## Training\n\n```text\nTraining(epochs=3)\n```\n" in readme(tmp_path)
    assert json.loads((tmp_path / "training.json").read_text()) == {"epochs": 3}
    assert hm.HMoEVAE.from_pretrained(tmp_path).tree == model.tree
    (tmp_path / "training.json").unlink()  # as in a folder of a model that was saved without
    assert hm.HMoEVAE.from_pretrained(tmp_path).tree == model.tree


def test_a_training_record_reads_back_from_beside_the_model(tmp_path: Path) -> None:
    training = hm.Training(epochs=3, view=hm.views.RandomAffine(shear=0.0), early_stopping=hm.EarlyStopping(patience=2))
    make().save_pretrained(tmp_path, info=hm.CardInfo("noise", training=training))
    assert f"```text\n{training}\n```" in readme(tmp_path)
    assert hm.training_from_json((tmp_path / "training.json").read_text(encoding="utf-8")) == training


@pytest.mark.parametrize(
    ("likelihood", "samples"),
    [
        (hm.ContinuousBernoulli(), "torch.rand(8, 4)"),
        (hm.Gaussian(), "torch.rand(8, 4)"),
        (hm.Bernoulli(), "torch.full((8, 4), 0.0)"),
    ],
    ids=["grey", "any", "binary"],
)
def test_the_samples_in_a_card_are_such_as_the_model_takes(
    tmp_path: Path, likelihood: hm.Likelihood, samples: str
) -> None:
    model = make(hm.VAE(2, NET, NET, likelihood), (4,))
    model.save_pretrained(tmp_path)
    assert f"x = {samples}  # in place of your samples" in readme(tmp_path)
    model.score_samples(eval(samples), n_importance=2)


def test_a_training_of_another_model_is_pointed_out(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path, info=hm.CardInfo("noise", training=Record()))
    with pytest.warns(
        UserWarning, match=r"training\.json was there before, and does not describe the training of this model"
    ):
        make().save_pretrained(tmp_path)
    assert "## Training\n\nNot described.\n" in readme(tmp_path)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("training", [{"epochs": 3}, "epochs=3", Record], ids=["a dict", "a text", "a class"])
def test_a_training_that_is_no_record(training: object) -> None:
    with pytest.raises(ArgumentTypeError, match=r"^training: expected a Training or None, got "):
        hm.CardInfo("noise", training=training)


def test_a_training_that_gives_no_json_leaves_the_old_model(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ArgumentError, match=r"^training: expected a record whose to_json returns JSON, got "):
        make().save_pretrained(tmp_path, info=hm.CardInfo("noise", training=Record("epochs: 3")))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_metrics_of_a_model_fit_in(tmp_path: Path) -> None:
    model = make()
    scores = hm.metrics.report(model, torch.rand(6, 1, 2, 3), torch.arange(6) % 2)
    model.save_pretrained(tmp_path, info=hm.CardInfo("noise", metrics=scores))
    results = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert {r.metric_type: r.metric_value for r in results} == scores


@pytest.mark.parametrize("text", ["---", "{{ 7 * 7 }}", "a: [b", "```", 'quote "', "数 Ä", "\n", "# head"])
def test_any_text_survives(tmp_path: Path, text: str) -> None:
    """Neither YAML nor the template takes it for its own."""
    info = hm.CardInfo(text, description=text, split=text, metrics={text: 1.0})
    tree = hm.Mixture((LEAF, hm.VAE(2, NET, NET, name=text)), name=text)
    make(tree).save_pretrained(tmp_path, info=info)
    (result,) = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert (result.dataset_name, result.dataset_split, result.metric_type) == (text, text, text)
    assert str(tree) in readme(tmp_path)
    make(tree).save_pretrained(tmp_path)
    assert "Not described." in readme(tmp_path)


@pytest.mark.usefixtures("as_users_call")
def test_information_that_makes_no_sense() -> None:
    with pytest.raises(ArgumentError, match="dataset: expected the name of the data, got ''"):
        hm.CardInfo("")
    with pytest.raises(ArgumentTypeError, match=r"metrics\['nmi'\]: expected a number, got 'high'"):
        hm.CardInfo("MNIST", metrics={"nmi": "high"})
    with pytest.raises(ArgumentError, match=r"metrics\['nmi'\]: expected a finite number, got nan"):
        hm.CardInfo("MNIST", metrics={"nmi": float("nan")})
    with pytest.raises(ArgumentTypeError, match=r"metrics: expected a mapping from names to numbers, got list"):
        hm.CardInfo("MNIST", metrics=[1])


@pytest.mark.usefixtures("as_users_call")
def test_information_is_a_card_info(tmp_path: Path) -> None:
    with pytest.raises(ArgumentTypeError, match=r"info: expected a CardInfo or None, got dict"):
        make().save_pretrained(tmp_path / "model", info={"dataset": "MNIST"})
    assert not (tmp_path / "model" / "config.json").exists()


# --- the snippet ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tree",
    [FLAT, LEAF, hm.Mixture((LEAF, hm.VAE(1, NET, NET, hm.Bernoulli())), gate=NET)],
    ids=["flat", "leaf", "bernoulli"],
)
@pytest.mark.parametrize("folder", ["model", "runs/a model", '"quoted" 数', "absolute"])
def test_its_code_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Tree, folder: str) -> None:
    monkeypatch.chdir(tmp_path)
    make(tree).save_pretrained(tmp_path / folder if folder == "absolute" else folder)
    (code,) = re.findall(r"```python\n(.*?)```", readme(tmp_path / folder), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert isinstance(names["model"], hm.HMoEVAE)
    assert names["model"].tree == tree
    names["model"].check_input(names["x"])
    assert f"# (8, {names['model'].plan.n_leaves}): " in code


def test_it_loads_from_the_repository_where_there_is_one(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path, repo_id="me/digits", info=INFO)
    assert 'hm.HMoEVAE.from_pretrained("me/digits")' in readme(tmp_path)
    assert ModelCard.load(tmp_path / "README.md").data.model_name == "digits"


# --- whose it is ----------------------------------------------------------------------------------------------------


def test_our_card_is_written_anew_with_the_model(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path, info=INFO)
    make(hm.Mixture.of(LEAF, 2)).save_pretrained(tmp_path, info=hm.CardInfo("other data"))
    assert "Mixture of 2" in readme(tmp_path)
    assert "MNIST" not in readme(tmp_path)


@pytest.mark.parametrize("how", ["others", "edited", "appended", "empty", "binary"])
def test_what_others_wrote_stays(tmp_path: Path, how: str) -> None:
    make().save_pretrained(tmp_path)
    path = tmp_path / "README.md"
    ours = path.read_bytes()
    theirs = {
        "others": b"# Mine\n",
        "edited": ours.replace(b"Not described.", b"My scans."),
        "appended": ours + b"More.\n",
        "empty": b"",
        "binary": b"\xff\xfe\x00",
    }[how]
    path.write_bytes(theirs)
    other = make(hm.Mixture.of(LEAF, 2))
    other.save_pretrained(tmp_path)
    assert path.read_bytes() == theirs
    with pytest.warns(
        UserWarning,
        match=r"README\.md was written or edited by somebody else and is kept, so it does not have the given info",
    ) as caught:
        other.save_pretrained(tmp_path, info=INFO)
    assert caught[0].filename == __file__
    assert path.read_bytes() == theirs
    assert hm.HMoEVAE.from_pretrained(tmp_path).tree == other.tree


def test_a_folder_in_its_place_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").mkdir()
    make().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").is_dir()
    assert hm.HMoEVAE.from_pretrained(tmp_path).tree == FLAT

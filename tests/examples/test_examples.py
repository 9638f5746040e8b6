"""The examples as a user runs them, in their smoke mode; and a short real run."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import _run
import grow
import mnist_flat
import pytest
import share_model
import torch
from _run import draw, load_mnist, thinned
from recipes import article_tree

import hmoevae as hm
from hmoevae.training import has_bfloat16

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
HAS_MNIST = "HMOEVAE_DATA" in os.environ
COMMON = {
    *("tree", "contingency", "misrouted", "reconstructions", "traversals", "samples"),
    *("losses", "usage", "samples_by_epoch"),
}
FIELDS = {
    *("dataset", "recipe", "epochs", "seed", "leaves", "accuracy", "nmi", "ari", "leaf_purity"),
    *("dendrogram_purity", "usage_entropy", "calibration_error"),
    *("expected_loss", "elbo_loss", "usage", "seconds", "device"),
}


def run(script, *arguments, **environment):
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=600)


@pytest.fixture
def offline(tmp_path):
    """An environment in which MNIST cannot be had: an empty cache, and a proxy that refuses every connection."""
    nowhere = "http://127.0.0.1:9"
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), nowhere)
    return {"HMOEVAE_DATA": "", "XDG_CACHE_HOME": str(tmp_path / "cache"), "no_proxy": "", "NO_PROXY": "", **proxies}


@pytest.mark.parametrize(
    ("script", "arguments", "leaves", "more"),
    [
        ("mnist_flat.py", ["--precision", "fp32"], 10, set()),
        ("mnist_flat.py", [], 10, set()),
        ("mnist_two_level.py", [], 30, {"contingency_level1", "nearest"}),
    ],
)
def test_smoke_run_leaves_everything(script, arguments, leaves, more, tmp_path, offline):
    environment = {} if HAS_MNIST else offline
    done = run(script, "--smoke", *arguments, "--out", tmp_path / "out", "--device", "cpu", **environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.keys() >= FIELDS
    assert (result["leaves"], result["epochs"], len(result["usage"])) == (leaves, 3, leaves)
    assert sum(result["usage"]) == pytest.approx(1, abs=0.01)
    assert all(f"{name}_level1" in result for name in ("accuracy", "nmi")) == bool(more)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == result
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == COMMON | more
    history = hm.History.from_csv(tmp_path / "out" / "history.csv")
    assert len(history) == 3
    assert result["elbo_loss"] == pytest.approx(history["loss"][-1], rel=0.5), "of one sign, in nats"
    model = hm.HMoEVAE.from_pretrained(tmp_path / "out" / "model")
    assert model.plan.n_leaves == leaves
    assert "Traceback" not in done.stderr
    assert "bfloat16" not in done.stderr, "a warning about what nobody has asked for"
    is_bf16 = script.startswith("mnist") and not arguments and has_bfloat16(model.device)  # as the training asks
    assert result["precision"] == ("bf16" if is_bf16 else "fp32")


def test_pictures_call_nodes_by_their_names(tmp_path, monkeypatch):
    tree = hm.Mixture((hm.VAE(2, name="round"), hm.Mixture.of(hm.VAE(2), 2, name="straight")))
    model, (_, test) = hm.HMoEVAE(tree, (1, 8, 8)), hm.datasets.digits()
    named, contingency = [], hm.plot.contingency

    def noted(*arguments, **options):
        named.append(options["cluster_names"])
        return contingency(*arguments, **options)

    monkeypatch.setattr(hm.plot, "contingency", noted)
    draw(model, test, hm.History(), hm.SampleRecorder(2), tmp_path)
    assert named == [["round", "1/0", "1/1"], ["round", "straight"]]
    assert {path.stem for path in tmp_path.glob("*.png")} == {
        *(COMMON - {"losses", "usage", "samples_by_epoch"}),
        *("nearest", "contingency_level1"),
    }


EVEN = ("--smoke", "--precision", "fp32", "--batch-size", "100", "--device", "cpu")
"""A batch that two processes can halve."""


@pytest.fixture(scope="module")
def history_of_one(tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    done = run("mnist_flat.py", *EVEN, "--out", out)
    assert done.returncode == 0, done.stderr
    return (out / "history.csv").read_text()


@pytest.mark.skipif(not HAS_MNIST, reason="needs real MNIST: set HMOEVAE_DATA to a folder with MNIST/raw/ in it")
@pytest.mark.usefixtures("compiler")
def test_compiled_steps_end_where_plain_ones_do(history_of_one, tmp_path):
    done = run("mnist_flat.py", *EVEN, "--compile", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = csv.DictReader((tmp_path / "history.csv").read_text().splitlines())
    for row, other in zip(rows, csv.DictReader(history_of_one.splitlines()), strict=True):
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), rel=1e-4)


@pytest.mark.skipif(not HAS_MNIST, reason="needs real MNIST: set HMOEVAE_DATA to a folder with MNIST/raw/ in it")
@pytest.mark.parametrize(
    "launcher",
    ["torch.distributed.run --nproc-per-node 2", "accelerate.commands.launch --multi_gpu --num_processes 2"],
    ids=["torchrun", "accelerate"],
)
def test_two_processes_end_where_one_does(launcher, history_of_one, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", *launcher.split(), EXAMPLES / "distributed.py", *EVEN, "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(result) == 1  # one process speaks
    assert "2 processes, 50 images a step each" in done.stdout
    assert done.stderr.count("epoch 3/3") <= 2  # and one shows its progress
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == result[0]
    rows = list(csv.DictReader((tmp_path / "out" / "history.csv").read_text().splitlines()))
    expected = list(csv.DictReader(history_of_one.splitlines()))
    for row, other in zip(rows, expected, strict=True):
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), rel=1e-4)


@pytest.mark.parametrize(
    ("script", "files", "says"),
    [
        (
            "own_table.py",
            {"model", "report.html", "clustered.csv", "leaves.png", "wine.csv"},
            "rows of every label by cluster",
        ),
        ("grow.py", {"model", "growth.png", "tree.png"}, "clusters of k-means: NMI"),
        (
            "custom_tree.py",
            {"model", "report.html", "history.csv", "metrics.json", "tree.png", "samples.png", "contingency.png"},
            "k-means, 11 clusters",
        ),
        ("share_model.py", {"model"}, "the loaded model gives the same probabilities: True"),
        ("own_loop.py", {"model"}, "of 359 test images reach the leaf of their digit, with 30 labels"),
    ],
)
def test_tutorials_smoke_run(script, files, says, tmp_path):
    done = run(script, "--smoke", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    hm.HMoEVAE.from_pretrained(tmp_path / "out" / "model")


@pytest.mark.parametrize(
    ("train", "what"),
    [
        (
            lambda: grow.grown(torch.rand(99, 1, 8, 8), epochs=1, round_epochs=1, seed=0),
            "hmoevae.growth.growing.fit_quietly",
        ),
        (lambda: share_model.train(1), "hmoevae.fit"),
    ],
    ids=["grow", "share_model"],
)
def test_half_a_training_is_neither_compared_nor_shared(train, what, monkeypatch):
    """Ctrl-C, on which fit ends quietly."""
    monkeypatch.setattr(what, lambda *_, **__: hm.History(interrupted=True))
    with pytest.raises(KeyboardInterrupt):
        train()


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("own_loop.py", ["--epochs", "-1"], "--epochs: expected an integer > 0, got -1"),
        ("custom_tree.py", ["--data-root", "/nowhere"], "unrecognized arguments: --data-root /nowhere"),
    ],
)
def test_options_that_cannot_be_used_are_refused(script, arguments, says, tmp_path):
    done = run(script, *arguments, "--smoke", "--out", tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_that_cannot_be_reached_ends_in_one_line(tmp_path, offline):
    done = run("share_model.py", "--smoke", "--push-to", "you/x", "--out", tmp_path / "out", **offline)
    assert done.returncode == 1
    assert "share_model.py: --push-to: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    hm.HMoEVAE.from_pretrained(tmp_path / "out" / "model")


def test_a_table_of_ones_own(tmp_path):
    """Categories and gaps are modelled, and come out again to the letter and in order.

    A label that is no column ends with one line.
    """
    gaps = {3: "", 8: "NA"}
    rows = [f"{i % 7}.50,{(i * i) % 5},00{i},{gaps.get(i, 'uv'[i % 2])},{'ab'[i % 2]}" for i in range(40)]
    (tmp_path / "mine.csv").write_text("\n".join(["x,y,number,z,kind", *rows]), encoding="utf-8")
    arguments = ["--smoke", "--csv", tmp_path / "mine.csv", "--out", tmp_path / "out"]
    done = run("own_table.py", *arguments, "--label", "kind", "--index", "number", "--kinds", "y=category")
    assert done.returncode == 0, done.stderr
    assert "40 rows, 3 columns, 2 gaps" in done.stdout
    assert "rows of every label by cluster" in done.stdout
    header, *clustered = (tmp_path / "out" / "clustered.csv").read_text().splitlines()
    assert header == "x,y,number,z,kind,cluster"
    assert [line.rsplit(",", 1)[0] for line in clustered] == rows
    mixture = hm.VAEMixture.from_pretrained(tmp_path / "out" / "model")
    assert [line.rsplit(",", 1)[1] for line in clustered] == [str(label) for label in mixture.labels_]
    assert [column.kind for column in mixture.table_.columns] == ["number", "category", "category"]
    done = run("own_table.py", *arguments, "--label", "colour")
    assert done.returncode == 1
    assert "--label: expected one of x, y, number, z, kind, got colour" in done.stderr


def test_of_several_numbers_of_clusters_the_one_with_the_smallest_criterion_is_taken(tmp_path):
    rows = [f"{10 * (i % 2) + i % 7 / 9},{i % 5}" for i in range(60)]
    (tmp_path / "mine.csv").write_text("\n".join(["x,y", *rows]), encoding="utf-8")
    done = run("own_table.py", "--clusters", 1, 2, "--csv", tmp_path / "mine.csv", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    criteria = [float(line.rpartition(": ")[2]) for line in done.stdout.splitlines() if "criterion" in line]
    assert len(criteria) == 2
    mixture = hm.VAEMixture.from_pretrained(tmp_path / "out" / "model")
    assert mixture.n_components == 1 + criteria.index(min(criteria))


def test_a_table_that_pandas_wrote_keeps_its_index_and_its_cluster(tmp_path):
    rows = [f"{100 - i % 9},{i % 7},{(i * i) % 5},{'mn'[i % 2]}" for i in range(40)]  # rows of one name, too
    (tmp_path / "mine.csv").write_text("\n".join([",x,y,cluster", *rows]), encoding="utf-8")
    done = run("own_table.py", "--smoke", "--csv", tmp_path / "mine.csv", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "40 rows, 3 columns, 0 gaps" in done.stdout
    header, *clustered = (tmp_path / "out" / "clustered.csv").read_text().splitlines()
    assert header == ",x,y,cluster,cluster_"
    assert [line.rsplit(",", 1)[0] for line in clustered] == rows
    assert {line.rsplit(",", 1)[1] for line in clustered} <= {"0", "1"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file or directory"),
        ("", "No columns to parse from file"),
        ("a,b\n1,2\n", "X: expected n_samples >= 2, the number of leaves, got n_samples = 1"),
        ("a,b\n1,inf\n3,4\n5,1\n", "X['b']: expected"),
    ],
    ids=["missing", "empty", "short", "infinite"],
)
def test_a_table_that_cannot_be_read_ends_in_one_line(text, says, tmp_path):
    if text is not None:
        (tmp_path / "mine.csv").write_text(text, encoding="utf-8")
    done = run("own_table.py", "--smoke", "--csv", tmp_path / "mine.csv", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_column_that_is_the_same_everywhere_does_no_harm(tmp_path):
    rows = [f"{i % 7},{(i * i) % 5},1" for i in range(40)]
    (tmp_path / "mine.csv").write_text("\n".join(["x,y,one", *rows]), encoding="utf-8")
    done = run("own_table.py", "--smoke", "--csv", tmp_path / "mine.csv", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_without_mnist_the_example_says_so_and_goes_on(tmp_path, offline):
    done = run("mnist_flat.py", "--smoke", "--epochs", 1, "--out", tmp_path, "--device", "cpu", **offline)
    assert done.returncode == 0, done.stderr
    assert "going on with mnist5k" in done.stdout.splitlines()[0]
    assert json.loads(done.stdout.splitlines()[-1])["dataset"] == "mnist5k"


def test_what_the_command_line_says_takes_the_place_of_the_trainings_own(monkeypatch, tmp_path, capsys):
    def chosen(*options):
        monkeypatch.setattr(sys, "argv", ["mnist_flat.py", "--out", str(tmp_path), "--device", "cpu", *options])
        made = _run.chosen(mnist_flat.make_training(60_000), _run.arguments("about"), 60_000)
        return made.epochs, made.batch_size, made.lr, made.precision, made.checkpoint_every

    usual = "bf16" if has_bfloat16(torch.device("cpu")) else "fp32"
    assert chosen() == (36, 250, 1e-3, usual, 1)
    assert chosen("--batch-size", "500") == (72, 500, 1e-3, usual, 2), "the number of steps stays"
    assert chosen("--steps", "481", "--lr", "0.1") == (2, 250, 0.1, usual, 1)
    assert chosen("--steps", "1", "--precision", "fp32") == (1, 250, 1e-3, "fp32", 1)
    assert chosen("--epochs", "3", "--batch-size", "100") == (3, 100, 1e-3, usual, 1)
    assert chosen("--smoke") == (3, 250, 1e-3, usual, 1)
    assert capsys.readouterr().out.splitlines()[:2] == ["36 epochs of 240 steps", "72 epochs of 120 steps"]


def test_help_tells_what_the_example_does():
    done = run("mnist_flat.py", "--help")
    assert done.returncode == 0, done.stderr
    assert mnist_flat.__doc__.strip() in done.stdout
    assert "None" not in done.stdout


def test_the_last_lines_say_what_the_results_are_worth(capsys):
    _run.print_results({"dataset": "mnist5k", "accuracy": 0.97}, smoke=False)
    about, result = capsys.readouterr().out.rsplit("\n", 2)[:2]
    assert "4,000 images to train on and 1,000 to test" in about
    assert "98.9 %" in about
    assert json.loads(result) == {"dataset": "mnist5k", "accuracy": 0.97}
    _run.print_results({"dataset": "mnist"}, smoke=False)
    assert len(capsys.readouterr().out.splitlines()) == 1
    _run.print_results({"dataset": "mnist5k"}, smoke=True)
    assert "A smoke run: it only shows that everything works" in capsys.readouterr().out.splitlines()[0]


def test_a_run_that_was_cut_short_goes_on_when_asked_to(tmp_path, offline, monkeypatch):
    environment = {} if HAS_MNIST else offline
    images, _ = load_mnist(None) if HAS_MNIST else hm.datasets.mnist5k()
    few = thinned(images, 1000)
    arguments = ("--smoke", "--precision", "fp32", "--out", tmp_path, "--device", "cpu")
    monkeypatch.setattr(sys, "argv", ["mnist_flat.py", *map(str, arguments)])
    training = _run.chosen(mnist_flat.make_training(len(few)), _run.arguments("about"), len(few))

    def train(*callbacks, folder=None):
        torch.manual_seed(0)
        model = hm.HMoEVAE(mnist_flat.make_tree(), (1, 28, 28), objective="elbo")
        hm.fit(model, few.x, training, callbacks=callbacks, progress=False, checkpoint_dir=folder)
        return model

    def stop(end):
        if end.epoch == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):  # after the first epoch's checkpoint
        train(stop, folder=tmp_path / "checkpoints")
    done = run("mnist_flat.py", *arguments, **environment)
    assert done.returncode == 1
    assert "go on with --resume" in done.stderr
    done = run("mnist_flat.py", *arguments, "--resume", **environment)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "checkpoints").exists()
    model = train()
    resumed = hm.HMoEVAE.from_pretrained(tmp_path / "model")
    if torch.get_num_threads() == int(os.environ.get("OMP_NUM_THREADS", "0")):  # sums depend on it
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in resumed.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data-root", "/nowhere"], "root: expected a folder with MNIST/raw/ in it, got /nowhere"),
        (["--out", __file__], "--out: expected a folder that can be written"),
        (["--device", "warp"], "device: expected 'auto', 'cpu' or an accelerator of this machine, got 'warp'"),
        (["--epochs", "0"], "--epochs: expected an integer > 0, got 0"),
        (["--steps", "0"], "--steps: expected an integer > 0, got 0"),
        (["--lr", "nan"], "--lr: expected a finite number > 0, got nan"),
    ],
)
def test_bad_arguments_end_with_one_line(arguments, message, tmp_path, offline):
    done = run("mnist_flat.py", "--smoke", "--out", tmp_path, *arguments, **({} if HAS_MNIST else offline))
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "training and" not in done.stdout, "refused before any data were shown"


@pytest.mark.skipif(not HAS_MNIST, reason="needs real MNIST: set HMOEVAE_DATA to a folder with MNIST/raw/ in it")
def test_an_epoch_of_real_mnist_finds_clusters():
    """The article's recipe, as the example runs it; chance is 0.1."""
    train, test = hm.datasets.mnist()
    torch.manual_seed(0)
    model = hm.HMoEVAE(article_tree("flat"), (1, 28, 28))
    untrained = model.evaluate(test.x[:2000])["expected"]
    hm.fit(model, train.x, hm.Training(epochs=1, batch_size=100, device="cpu"), progress=False)
    assert model.evaluate(test.x[:2000])["expected"] < untrained - 50
    assert hm.metrics.accuracy(test.y, model.predict(test.x)) > 0.5

"""The benchmark's promises: peers compute the library's loss, products are counted right, the report can be read."""

import functools
import itertools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import likelihood
import precision
import pytest
import shapes
import streaming
import torch
import turns
import unequal
from gemms import Op, alone, gemms_of, total_bytes, total_flops
from peers import PEERS, Loop, peer
from throughput import article_tree, balanced_factors, main

import hmoevae as hm
from hmoevae.spec import Tree

pytestmark = pytest.mark.slow

N_FEATURES, BATCH, LATENT = 12, 7, 3
NETWORK = hm.MLP((5,), activation="sigmoid")
EXPERT = hm.VAE(latent_dim=LATENT, encoder=NETWORK, decoder=NETWORK)
FLAT = hm.Mixture.of(EXPERT, 4, gate=NETWORK)


def model_of(tree: Tree, dtype: torch.dtype) -> hm.HMoEVAE:
    torch.manual_seed(0)
    return hm.HMoEVAE(tree, (N_FEATURES,)).to(dtype)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("tree", [FLAT, EXPERT], ids=["flat", "lone"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_peers_compute_the_same_loss_and_gradients(name: str, tree: Tree, dtype: torch.dtype) -> None:
    model = model_of(tree, dtype)
    them = peer(name, model)
    x = torch.rand(BATCH, N_FEATURES, dtype=dtype)
    noise = torch.randn(tree.n_leaves, LATENT, BATCH, generator=torch.Generator().manual_seed(1), dtype=dtype)
    ours = model(x, generator=torch.Generator().manual_seed(1)).loss
    theirs = them.loss(x, noise.mT)
    torch.testing.assert_close(theirs, ours)

    ours.backward()
    theirs.backward()
    # A peer made from a model whose weights are our gradients holds, in its own layout, what its gradients must be.
    expected = model_of(tree, dtype)
    expected.load_state_dict({name: p.grad for name, p in model.named_parameters()})
    for (place, p), gradient in zip(them.named_parameters(), peer(name, expected).parameters(), strict=True):
        torch.testing.assert_close(p.grad, gradient, msg=lambda text, place=place: f"{place}: {text}")


@pytest.mark.parametrize("name", PEERS)
def test_peers_draw_their_own_noise(name: str) -> None:
    them = peer(name, model_of(FLAT, torch.float32))
    x = torch.rand(BATCH, N_FEATURES)
    assert them.loss(x) != them.loss(x)


def test_the_loop_routes_and_samples_as_the_library_does() -> None:
    model = model_of(FLAT, torch.float64)
    them = peer("loop", model)
    assert isinstance(them, Loop)
    x = torch.rand(BATCH, N_FEATURES, dtype=torch.float64)
    torch.testing.assert_close(them.route(x), model.route(x))
    samples = them.sample(BATCH)
    assert samples.shape == model.sample(BATCH).shape
    assert ((samples > 0) & (samples < 1)).all()


def test_peers_are_flat() -> None:
    with pytest.raises(AssertionError, match="depth 2"):
        peer("loop", model_of(hm.Mixture.of(FLAT, 2, gate=NETWORK), torch.float32))


def test_flops_by_hand() -> None:
    network = hm.MLP((3,))
    tree = hm.Mixture.of(hm.VAE(latent_dim=2, encoder=network, decoder=network), 2, gate=network)
    # Two experts 4-3-4 and 2-3-4, a gate 4-3-2: 2 (12 + 12 + 6 + 12) + 12 + 6 = 102 weights, 36 in first layers.
    train = gemms_of(tree, 4, 5, "train")
    assert total_flops(train) == 2 * 5 * (3 * 102 - 36)
    assert total_flops(gemms_of(tree, 4, 5, "fit")) == total_flops(train)
    assert total_flops(gemms_of(tree, 4, 5, "route")) == 2 * 5 * (12 + 6)
    assert total_flops(gemms_of(tree, 4, 6, "sample")) == 2 * 6 * (6 + 12)
    assert [gemm.groups for gemm in train if gemm.shared] == [3]  # both encoders and the gate, one product


def test_bytes_by_hand() -> None:
    (gemm,) = gemms_of(hm.Mixture.of(hm.VAE(), 2, gate=hm.MLP(())), 4, 5, "route")
    assert total_bytes([gemm], itemsize=2) == 2 * (2 * 4 + 4 * 5 + 2 * 5)
    trained = gemms_of(hm.VAE(latent_dim=1, encoder=hm.MLP(()), decoder=hm.MLP(())), 4, 5, "train")
    first, second = 2 * (2 * 4 + 4 * 5 + 2 * 5), 3 * (4 * 1 + 1 * 5 + 4 * 5)
    assert total_bytes(trained, itemsize=4) == 4 * (first + second) + 28 * (8 + 4)


@pytest.mark.parametrize("op", ["train", "route", "sample"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_run_alone(op: Op, dtype: torch.dtype) -> None:
    alone(gemms_of(FLAT, N_FEATURES, BATCH, op), torch.device("cpu"), dtype)()


@pytest.mark.parametrize(
    ("n", "depth", "factors"),
    [
        (10, 1, (10,)),
        (10, 2, (2, 5)),
        (100, 2, (10, 10)),
        (100, 3, (4, 5, 5)),
        (1000, 3, (10, 10, 10)),
        (7, 2, None),
        (10, 3, None),
        (1, 1, None),
    ],
)
def test_factors_are_balanced(n: int, depth: int, factors: tuple[int, ...] | None) -> None:
    assert balanced_factors(n, depth) == factors
    tree = article_tree(n, depth)
    if factors is not None:
        assert math.prod(factors) == n
        assert tree is not None
        assert (tree.n_leaves, tree.depth) == (n, depth)
    elif n > 1:
        assert tree is None


# --- the command ----------------------------------------------------------------------------------------------------

TINY = ["--threads", "1", "--batch", "4", "--rounds", "2", "--seconds", "0.001", "--device", "cpu"]


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is timed in earnest: let the references be small too."""
    monkeypatch.setattr("machine.SQUARE", {"cpu": 16})
    monkeypatch.setattr("machine.COPY_BYTES", 4096)
    monkeypatch.setattr("throughput.FIT_STEPS", 2)
    monkeypatch.setattr("throughput.has_bfloat16", lambda device: True)


def report_of(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    main([*argv, *TINY])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.usefixtures("small_machine")
def test_a_quick_run_reports(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    report = report_of(capsys, "--quick", "--leaves", "2")
    assert torch.get_num_threads() == threads
    assert {"date", "argv", "hardware", "versions", "copy_gbytes_per_s", "load_average_after", "rows"} == set(report)
    assert report["hardware"]["threads"] == 1
    assert report["versions"]["torch"] == torch.__version__
    assert [row["what"] for row in report["rows"]] == ["hmoevae", "loop", "einsum", "GEMMs alone"]
    for row in report["rows"]:
        assert row["rounds"] == 2
        for name in ("ms", "samples_per_s", "gflop_per_s", "ceiling_fraction", "gemms_alone_ms", "speedup"):
            assert 0 < row[name] < math.inf
    assert report["rows"][1]["speedup"] == 1


@pytest.mark.usefixtures("small_machine")
def test_every_op_and_depth_in_one_run_with_its_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, picture = tmp_path / "report.json", tmp_path / "picture.svg"
    argv = ["--leaves", "1", "4", "--depth", "1", "2", "3", "--op", "train", "route", "sample", "fit"]
    argv += ["--precision", "fp32", "bf16", "--against", "loop", "vmap", "--json", str(file), "--plot", str(picture)]
    report = report_of(capsys, *argv)
    assert json.loads(file.read_text()) == report
    assert picture.read_text().lstrip().startswith("<?xml")
    rows = {(row["op"], row["leaves"], row["depth"], row["precision"], row["what"]) for row in report["rows"]}
    assert ("train", 4, 2, "bf16", "hmoevae") in rows
    assert ("train", 1, 0, "fp32", "vmap") in rows
    assert ("route", 4, 2, "fp32", "hmoevae") in rows
    assert ("sample", 4, 1, "fp32", "loop") in rows
    assert ("fit", 4, 1, "fp32", "hm.fit") in rows
    bare = [row["speedup"] for row in report["rows"] if row["op"] == "fit" and row["what"] == "hmoevae"]
    assert bare == [1] * 6  # each tree's own step is what its fit is compared with
    assert not any(op == "route" and leaves == 1 for op, leaves, *_ in rows)  # nothing to route to
    assert not any(depth == 3 for _, _, depth, *_ in rows)  # 4 leaves do not factor into three levels


@pytest.mark.usefixtures("small_machine")
def test_what_cannot_be_run_is_left_out_with_a_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("machine.free_memory", lambda device: 1_000_000)
    main(["--quick", "--leaves", "2", *TINY])
    assert "skipped: einsum, train, 2 leaves, batch 4, fp32: needs about" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--leaves", "10", "0"], "--leaves: expected an integer > 0, got 0"),
        (["--depth", "-1"], "--depth: expected an integer > 0, got -1"),
        (["--batch", "0"], "--batch: expected an integer > 0, got 0"),
        (["--threads", "0"], "--threads: expected an integer > 0, got 0"),
        (["--rounds", "1"], "--rounds: expected at least 2, for quartiles"),
        (["--json", "missing/x.json"], "--json: expected a file in a folder that exists, got missing/x.json"),
        (["--plot", "x.xyz"], "--plot: expected a file that ends in one of "),
    ],
)
def test_bad_options_end_before_the_work(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(argv)
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_here_ends_in_one_line() -> None:
    with pytest.raises(
        SystemExit, match=r"throughput.py: device: expected 'auto', 'cpu' or an accelerator of this machine"
    ):
        main(["--device", "cuda", "--quick"])


@pytest.mark.usefixtures("small_machine")
def test_without_bfloat16_instructions_its_rows_are_left_out_with_a_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("throughput.has_bfloat16", lambda device: False)
    main(["--quick", "--leaves", "2", "--precision", "bf16", "fp32", "--against", *TINY])
    *said, last = capsys.readouterr().out.splitlines()
    reason = "this CPU has no bfloat16 instructions; hm.fit would train in fp32"
    assert f"    skipped: all, train, 2 leaves, batch 4, bf16: {reason}" in said
    assert {row["precision"] for row in json.loads(last)["rows"]} == {"fp32"}


@pytest.mark.skipif(torch.__version__ < "2.7", reason="compiled passes need PyTorch 2.7")
@pytest.mark.usefixtures("small_machine")
def test_a_compiler_that_fails_is_a_reason_not_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # else there may be code from earlier runs
    main(["--quick", "--leaves", "2", "--against", "einsum", "compile", *TINY])
    printed = capsys.readouterr().out
    for what in ("hmoevae compiled", "einsum compiled"):
        reason = printed.partition(f"skipped: {what}, train, 2 leaves, batch 4, fp32: ")[2].partition("\n")[0]
        assert "InvalidCxxCompiler" in reason


# --- taking turns ---------------------------------------------------------------------------------------------------


def count(start: int) -> Callable[[], object] | None:
    """A step that counts up from `start`, none at all where that is zero."""
    return functools.partial(next, itertools.count(start)) if start else None


def fails() -> Callable[[], object]:
    raise ValueError("made up")


def test_a_worker_makes_times_and_forgets() -> None:
    worker = turns.Worker(threads=1)
    try:
        device = torch.device("cpu")
        assert worker.make(functools.partial(count, 0), 1, device) is None
        for number in (0, 1):
            made = worker.make(functools.partial(count, 1), 1, device)
            assert made is not None
            assert made[0] == number
            assert 0 < worker.time(number, 0.001) < 1
        with pytest.raises(turns.WorkerError, match="ValueError: made up"):
            worker.make(fails, 1, device)
        worker.forget()
        with pytest.raises(turns.WorkerError, match="IndexError"):
            worker.time(0, 0.001)
        with pytest.raises(turns.WorkerError, match="the process ended, exit code 3"):
            worker.make(functools.partial(os._exit, 3), 1, device)
    finally:
        worker.close()


def test_quartiles_need_two_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--quick", "--rounds", "1"])
    assert "--rounds: expected at least 2" in capsys.readouterr().err


def test_streaming_reports_every_source(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    streaming.main(
        ["--samples", "300", "--leaves", "2", "--rounds", "2", "--folder", str(tmp_path), "--json", f"{tmp_path / 'r'}"]
    )
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report == json.loads((tmp_path / "r").read_text())
    rows = {row["data"]: row for row in report["rows"]}
    assert list(rows) == ["memory", "file", "stream"]
    assert rows["memory"]["x_memory"] == 1
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows.values())
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_shapes_are_drawn_alike_from_a_seed_and_lie_in_the_picture() -> None:
    images = shapes.draw(200, 3)
    assert torch.equal(images.x, shapes.draw(200, 3).x)
    assert not torch.equal(images.x, shapes.draw(200, 4).x)
    assert images.x.shape == (200, 3, 32, 32)
    assert (images.y // shapes.N_STYLES).bincount().tolist() == [40] * 5
    assert set(images.y.tolist()) == set(range(10))
    middle = images.x[:, :, 14:18, 14:18].mean((1, 2, 3))  # which every disc covers, but for its hole
    filled, hollow = (middle[images.y == style].mean() for style in range(shapes.N_STYLES))
    assert filled > 2 * hollow


@pytest.mark.filterwarnings("ignore::hmoevae.errors.CollapseWarning")
def test_shapes_reports_both_levels(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shapes, "COMPARED", ("k-means",))  # so few images do not do for covariances
    argv = ["--n", "120", "--epochs", "2", "--seeds", "1", "--device", "cpu", "--json", str(tmp_path / "r")]
    shapes.main(argv)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report == json.loads((tmp_path / "r").read_text())
    found = {(row["level"], row["what"]) for row in report["rows"]}
    assert found == {
        *((level, "tree of 5 x 2, init kmeans") for level in ("kinds", "styles")),
        ("kinds", "k-means, 5 clusters"),
        ("styles", "k-means, 10 clusters"),
    }
    assert all(0 < run["nmi"] <= 1 for row in report["rows"] for run in row["runs"])


@pytest.mark.parametrize(
    ("main", "argv"),
    [
        (unequal.main, ["--epochs", "1", "--seeds", "1"]),
        (precision.main, ["--dataset", "digits", "--epochs", "1", "--seeds", "1"]),
        (likelihood.main, ["--dataset", "mnist5k", "--epochs", "1", "--importance", "1", "--precision", "fp32"]),
        (streaming.main, ["--samples", "4", "--rounds", "1"]),
        (shapes.main, ["--n", "40", "--epochs", "1", "--seeds", "1"]),
    ],
    ids=["unequal", "precision", "likelihood", "streaming", "shapes"],
)
def test_half_a_run_is_no_result(
    main: Callable[[list[str]], None], argv: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ctrl-C in a training, of several in the very first."""
    interrupted = iter([hm.History(interrupted=True)])
    monkeypatch.setattr(hm, "fit", lambda *_, **__: next(interrupted))
    monkeypatch.setattr("precision.has_bfloat16", lambda device: True)
    images = hm.datasets.LabelledImages("noise", torch.rand(40, 1, 8, 8), torch.arange(40) % 10)
    monkeypatch.setattr(hm.datasets, "mnist", lambda *_: (images, images))
    file = tmp_path / "report.json"
    with pytest.raises(KeyboardInterrupt):
        main([*argv, "--device", "cpu", "--threads", "1", "--json", str(file)])
    assert not file.exists()


def test_streaming_does_not_count_its_first_epoch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = itertools.count()
    monkeypatch.setattr(streaming, "seconds_of", lambda *_: (float(next(times)), 1.0))
    streaming.main(["--samples", "4", "--rounds", "2"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["seconds"] for row in report["rows"]] == [[1, 4], [2, 5], [3, 6]]

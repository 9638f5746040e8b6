"""fit: sources of data, the record it keeps, reproducibility, and how it ends when something goes wrong."""

import contextlib
import copy
import functools
import io
import math
import sys
import tracemalloc

import conftest
import numpy as np
import pytest
import torch
from sources import Items, Stream
from torch.utils.data import DataLoader, TensorDataset

import hmoevae as hm
from hmoevae.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    DataError,
    DeadLeafWarning,
    NonFiniteError,
    ShapeError,
)
from hmoevae.training.batches import batches_of
from hmoevae.training.epochs import _bar
from hmoevae.training.processes import Processes

N_FEATURES = 6
TREE = hm.Mixture(
    children=(hm.VAE(2, hm.MLP((8,)), hm.MLP((8,))), hm.Mixture.of(hm.VAE(3, hm.MLP((8,)), hm.MLP((8,))), 2)),
    gate=hm.MLP((8,)),
)


@pytest.fixture
def x():
    return torch.rand(50, N_FEATURES, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return hm.HMoEVAE(TREE, (N_FEATURES,))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


ALONE = Processes(torch.device("cpu"))
quiet_fit = functools.partial(conftest.fit, batch_size=16)


@pytest.mark.parametrize(
    "source",
    [
        lambda x: x,
        lambda x: x.numpy(),
        lambda x: x.double().numpy(),
        lambda x: TensorDataset(x, torch.zeros(len(x))),
        Items,
        Stream,
        lambda x: DataLoader(Items(x), batch_size=16, shuffle=True),
    ],
    ids=["tensor", "array", "float64", "TensorDataset", "Dataset", "IterableDataset", "DataLoader"],
)
def test_trains_on_every_source(model, x, source):
    before = model.evaluate(x)["expected"]
    history = quiet_fit(model, source(x), epochs=3, lr=1e-2)
    assert len(history) == 3
    assert model.evaluate(x)["expected"] < before
    assert not model.training


@pytest.mark.parametrize(
    "options",
    [
        {"validation_data": torch.rand(20, N_FEATURES), "revive": True, "epochs": 3},
        {"init": "kmeans"},
        {"agreement": hm.Agreement()},
    ],
    ids=["validation and revival", "start", "agreement"],
)
def test_a_default_device_changes_nothing(model, x, options):
    """Where `torch.set_default_device` sends new tensors is not where the order of the data is worked out."""
    other = copy.deepcopy(model)
    quiet_fit(other, x, **{"epochs": 2} | options)
    with torch.device("meta"):  # whose tensors nothing can be read from
        quiet_fit(model, x, **{"epochs": 2} | options)
    assert torch.equal(weights(model), weights(other))


def test_an_epoch_sees_every_sample_once(model, x):
    seen = []
    forward = model.forward
    model.forward = lambda batch, **options: (seen.append(batch), forward(batch, **options))[1]
    quiet_fit(model, x, epochs=2)
    assert [len(batch) for batch in seen] == [16, 16, 16, 2] * 2
    for epoch in (seen[:4], seen[4:]):
        rows = torch.cat(epoch)
        assert torch.equal(rows.sort(0).values, x.sort(0).values)
        assert not torch.equal(rows, x)
    assert not torch.equal(torch.cat(seen[:4]), torch.cat(seen[4:]))


def test_same_seed_same_result_and_global_state_untouched(x):
    def trained(seed):
        torch.manual_seed(3)
        model = hm.HMoEVAE(TREE, (N_FEATURES,))
        state = torch.get_rng_state()
        history = quiet_fit(model, x, epochs=2, seed=seed, validation_data=x)
        assert torch.equal(torch.get_rng_state(), state)
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]
        return weights(model), rows

    first, again, other = trained(1), trained(1), trained(2)
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert not torch.equal(first[0], other[0])


def test_no_seed_is_a_fresh_one_and_leaves_the_global_state_alone(x):
    def trained():
        torch.manual_seed(3)
        model = hm.HMoEVAE(TREE, (N_FEATURES,))
        state = torch.get_rng_state()
        quiet_fit(model, x, epochs=1, seed=None)
        assert torch.equal(torch.get_rng_state(), state)
        return weights(model)

    assert not torch.equal(trained(), trained())


@pytest.mark.usefixtures("as_users_call")
def test_counts_may_be_numpys(model, x):
    assert len(quiet_fit(model, x, epochs=np.int64(2), batch_size=np.int64(16))) == 2


def test_history_means_what_it_says(model, x):
    """With a learning rate too small to move the weights, the record is that of the model itself."""
    history = quiet_fit(model, x, epochs=2, lr=1e-12, validation_data=x)
    usage = model.predict_proba(x).mean(0)
    for row in history.rows:
        assert row["loss"] == pytest.approx(row["expected"] + row["balance"], rel=1e-5)
        assert [row[f"usage/{leaf.path}"] for leaf in model.plan.leaves] == pytest.approx(usage.tolist(), rel=1e-4)
        assert row["expected"] == pytest.approx(row["val_expected"], rel=0.1)  # other draws of z
    assert history["epoch"] == [1, 2]
    assert history["seconds"][0] < history["seconds"][1]
    assert history["val_elbo"][0] == pytest.approx(history["val_elbo"][1], rel=1e-5)  # the same draws every time


def test_validation_changes_nothing(x):
    def trained(**options):
        torch.manual_seed(0)
        model = hm.HMoEVAE(TREE, (N_FEATURES,))
        quiet_fit(model, x, epochs=3, **options)
        return weights(model)

    assert torch.equal(trained(), trained(validation_data=x[:10]))


def test_history_round_trip(tmp_path):
    history = hm.History(
        [{"epoch": 1.0, "loss": 0.1}, {"epoch": 2.0, "loss": 1 / 3, "val_elbo": 2.5}], interrupted=True
    )
    history.to_json(tmp_path / "h.json")
    assert hm.History.from_json(tmp_path / "h.json") == history
    history.to_csv(tmp_path / "h.csv")
    assert (tmp_path / "h.csv").read_text() == "epoch,loss,val_elbo\n1.0,0.1,\n2.0,0.3333333333333333,2.5\n"
    assert history["val_elbo"][1] == 2.5
    assert math.isnan(history["val_elbo"][0])
    with pytest.raises(ArgumentError, match=r"column: expected one of epoch, loss, val_elbo, got 'lose'"):
        history["lose"]
    (tmp_path / "h.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"h.json: expected a history written by to_json"):
        hm.History.from_json(tmp_path / "h.json")


def test_callbacks_see_every_epoch_and_can_stop(model, x):
    ends = []

    def callback(end):
        ends.append((end.epoch, end.epochs, len(end.history), end.model is model))
        return end.epoch == 2

    assert len(quiet_fit(model, x, epochs=5, callbacks=[callback])) == 2
    assert ends == [(1, 5, 1, True), (2, 5, 2, True)]


def test_sample_recorder_decodes_one_z_with_every_leaf(model, x):
    recorder = hm.SampleRecorder(n_frames=3, seed=5)
    quiet_fit(model, x, epochs=7, callbacks=[recorder])
    assert recorder.epochs == [1, 4, 7]
    assert recorder.frames.shape == (3, 3, N_FEATURES)
    z = torch.randn(3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(recorder.frames[-1], model.decode(z.expand(3, -1), torch.arange(3)))


def test_sample_recorder_leaves_out_epochs_of_gates_alone(model, x):
    recorder = hm.SampleRecorder(n_frames=6)
    agreement = hm.Agreement(partner=hm.views.Neighbour(3), alone=0.5)
    quiet_fit(model, x, epochs=6, agreement=agreement, callbacks=[recorder])
    assert recorder.epochs == [1, 4, 5, 6]
    assert len(recorder.frames) == 4


def test_ctrl_c_returns_what_there_is(model, x):
    def press(end):
        if end.epoch == 2:
            raise KeyboardInterrupt

    history = quiet_fit(model, x, epochs=5, callbacks=[press])
    assert history.interrupted
    assert len(history) == 2
    assert not model.training


def test_other_optimiser(model, x):
    before = weights(model)
    quiet_fit(model, x, epochs=1, optimizer=functools.partial(torch.optim.SGD, lr=0.0))
    assert torch.equal(weights(model), before)


def test_three_steps_are_three_plain_steps_of_adam(x):
    torch.manual_seed(0)
    model = hm.HMoEVAE(TREE, (N_FEATURES,))
    torch.manual_seed(0)
    plain = hm.HMoEVAE(TREE, (N_FEATURES,))
    quiet_fit(model, x[:16], epochs=3, lr=1e-2, seed=4)
    order, noise = torch.Generator().manual_seed(4), torch.Generator().manual_seed(4)
    adam = torch.optim.Adam(plain.parameters(), lr=1e-2)
    for _ in range(3):
        adam.zero_grad()
        plain(x[torch.randperm(16, generator=order)], generator=noise).loss.backward()
        adam.step()
    torch.testing.assert_close(weights(model), weights(plain))


@pytest.mark.usefixtures("bfloat16")
def test_bf16_trains_in_float32_parameters(model, x):
    history = quiet_fit(model, x, epochs=3, lr=1e-2, precision="bf16")
    assert history["loss"][-1] < history["loss"][0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_not_trained(model, x, dtype):
    """Of a step of 1e-3, weights of eight bits keep next to nothing."""
    kind = str(dtype).removeprefix("torch.")
    expected = rf"float32 or float64 parameters \(call model.float\(\); for speed use .*\), got {kind}$"
    with pytest.raises(ArgumentError, match=f"model: expected {expected}"):
        hm.fit(model.to(dtype), x, hm.Training(epochs=1))
    model.float().gates.to(dtype)
    with pytest.raises(ArgumentError, match=f"got {kind} and float32$"):
        hm.fit(model, x, hm.Training(epochs=1))


def test_bf16_without_instructions_warns_and_is_fp32(x, monkeypatch):
    def trained(precision):
        torch.manual_seed(0)
        model = hm.HMoEVAE(TREE, (N_FEATURES,))
        training = hm.Training(epochs=1, batch_size=16, precision=precision, device="cpu")
        hm.fit(model, x, training, progress=False)
        return weights(model)

    monkeypatch.setattr(hm.training.device, "has_bfloat16", lambda device: False)
    expected = trained("fp32")
    with pytest.warns(UserWarning, match="no bfloat16 instructions") as caught:
        assert torch.equal(trained("bf16"), expected)
    assert [w.filename for w in caught if "bfloat16" in str(w.message)] == [__file__]  # the user's own line


def test_bf16_keeps_activations_in_bf16(model, x):
    """The bias, which stays float32, must not make every activation twice as large again."""
    seen = []
    for layer in (m for m in model.modules() if isinstance(m, hm.nn.GroupedLinear)):
        layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).loss.dtype == torch.float32
    assert set(seen) == {torch.bfloat16}


def test_a_leaf_without_samples_is_named(model, x):
    with torch.no_grad():
        model.gates.groups[1].last.bias[0, 0] = -50.0  # the first child of the inner mixture
    with pytest.warns(DeadLeafWarning, match=r"usage: expected a share of at least 3.3e-03 .*less for root/1/0 \("):
        quiet_fit(model, x, epochs=1)


def test_non_finite_loss_names_step_term_and_node(model, x):
    good = {}

    def spoil(end):
        if end.epoch == 2:
            good.update({k: v.clone() for k, v in model.state_dict().items()})
            with torch.no_grad():
                model.experts.groups[1].decoder.layers[0].bias[1] = math.nan

    with pytest.raises(NonFiniteError) as caught:
        quiet_fit(model, x, epochs=5, callbacks=[spoil])
    assert str(caught.value) == (
        "loss: expected a finite loss at step 9, got 'expected' = nan from the expert root/1/1; "
        "the model has the weights of the last good epoch"
    )
    assert all(torch.equal(good[name], value) for name, value in model.state_dict().items())


def test_non_finite_gate_is_named(model, x):
    with torch.no_grad():
        model.gates.groups[0].last.bias.fill_(math.inf)
    with pytest.raises(NonFiniteError, match=r"step 1, got 'expected' = nan from the gate of root"):
        quiet_fit(model, x, epochs=1)


@pytest.mark.parametrize("answer", [True, np.True_, np.mean([1.0]) > 0, torch.tensor(1.0) > 0], ids=repr)
def test_a_callback_ends_training_by_any_true(model, x, answer):
    assert len(quiet_fit(model, x, epochs=3, callbacks=[lambda _: answer])) == 1


@pytest.mark.parametrize("answer", [None, False, np.False_, torch.tensor(False), 1, "go on", torch.ones(2)], ids=repr)
def test_nothing_else_that_a_callback_returns_ends_training(model, x, answer):
    assert len(quiet_fit(model, x, epochs=3, callbacks=[lambda _: answer])) == 3


def test_training_where_gradients_are_off_switches_them_on(model, x):
    torch.manual_seed(0)
    twin = hm.HMoEVAE(TREE, (N_FEATURES,))
    twin.load_state_dict(model.state_dict())
    quiet_fit(model, x, epochs=2)
    with torch.no_grad():
        quiet_fit(twin, x, epochs=2)
    assert torch.equal(weights(twin), weights(model))


def test_training_in_inference_mode_is_refused(model, x):
    with (
        torch.inference_mode(),
        pytest.raises(ArgumentError, match=r"fit: expected a call outside torch.inference_mode, got a call inside"),
    ):
        hm.fit(model, x, hm.Training(epochs=1))


@pytest.mark.usefixtures("as_users_call")
def test_numpy_seeds_are_seeds(model, x):
    twin = hm.HMoEVAE(TREE, (N_FEATURES,))
    twin.load_state_dict(model.state_dict())
    quiet_fit(model, x, epochs=1, seed=3)
    quiet_fit(twin, x, epochs=1, seed=np.int64(3))
    assert torch.equal(weights(twin), weights(model))


class Halved(TensorDataset):
    """A data set of tensors that changes what it gives."""

    def __getitem__(self, index):
        return (self.tensors[0][index] / 2,)


def test_a_data_set_of_tensors_with_a_getitem_of_its_own_is_asked(model, x):
    twin = hm.HMoEVAE(TREE, (N_FEATURES,))
    twin.load_state_dict(model.state_dict())
    quiet_fit(model, Items(x / 2), epochs=1)
    quiet_fit(twin, Halved(x), epochs=1)
    torch.testing.assert_close(weights(twin), weights(model))


@pytest.mark.parametrize("source", [Items, Stream, TensorDataset])
def test_validation_leaves_the_global_random_state_alone(model, x, source):
    before = torch.get_rng_state()
    quiet_fit(model, x, epochs=2, validation_data=source(x[:7]))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": torch.rand(5, 7)}, ShapeError, r"data: expected \(batch, 6\), got \(5, 7\)"),
        ({"data": torch.rand(0, 6)}, DataError, r"data: expected at least one sample, got none"),
        ({"data": torch.full((5, 6), math.nan)}, DataError, r"data: expected finite values, got NaN .* 5 samples"),
        ({"data": torch.full((5, 6), 255.0)}, DataError, r"data: expected values in \[0, 1\] .*got .*255 to 255"),
        (
            {"data": torch.zeros(5, 6, dtype=torch.uint8)},
            ArgumentTypeError,
            r"data: .*floating point values, got torch.uint8 from 0 to 0",
        ),
        ({"data": [[0.5] * 6]}, ArgumentTypeError, r"data: expected a tensor, .*got a list \(np.asarray"),
        ({"data": DataLoader(Items(torch.rand(0, 6)))}, DataError, r"data: expected at least one sample, got none"),
        ({"data": DataLoader(Items(torch.rand(4, 5)))}, ShapeError, r"data: expected \(batch, 6\), got \(1, 5\)"),
        ({"validation_data": np.zeros((3, 2))}, ShapeError, r"validation_data: expected \(batch, 6\), got \(3, 2\)"),
        ({"epochs": 0}, ArgumentError, r"epochs: expected an integer > 0, got 0"),
        ({"batch_size": 2.5}, ArgumentError, r"batch_size: expected an integer > 0, got 2.5"),
        ({"lr": -1.0}, ArgumentError, r"lr: expected a finite number > 0, got -1.0"),
        ({"lr": math.nan}, ArgumentError, r"lr: expected a finite number > 0, got nan"),
        ({"lr": "1e-3"}, ArgumentError, r"lr: expected a finite number > 0, got '1e-3'"),
        ({"seed": 1.0}, ArgumentError, r"seed: expected None or an integer of at most 64 bits, got 1.0"),
        ({"seed": 1 << 64}, ArgumentError, r"seed: expected None or an integer of at most 64 bits, got 1844"),
        ({"optimizer": "adam"}, ArgumentTypeError, r"optimizer: expected None or a callable .*got str"),
        ({"optimizer": lambda p: None}, ArgumentTypeError, r"optimizer: .*returns a torch Optimizer, got NoneType"),
        (
            {"optimizer": torch.optim.LBFGS},
            ArgumentError,
            r"optimizer: expected an optimiser that steps without a closure",
        ),
        ({"callbacks": [hm.SampleRecorder]}, ArgumentTypeError, r"callbacks: expected SampleRecorder\(...\), got the"),
        ({"warmup": 3}, ArgumentTypeError, r"warmup: expected None or Warmup\(...\), got 3"),
        ({"agreement": 0.5}, ArgumentTypeError, r"agreement: expected None or Agreement\(...\), got 0.5"),
        ({"revive": "no"}, ArgumentTypeError, r"revive: expected True or False, got 'no'"),
        ({"checkpoint_dir": 3}, ArgumentTypeError, r"checkpoint_dir: expected None or a path, got 3"),
        ({"callbacks": print}, ArgumentTypeError, r"callbacks: expected a sequence of callables, got builtin_func"),
        ({"callbacks": [3]}, ArgumentTypeError, r"callbacks: expected a sequence of callables, got 3 in it"),
        ({"init": np.full(50, "a")}, ArgumentTypeError, r"init: expected integer labels, got <U1"),
        ({"init": np.full(50, 0.5)}, ArgumentTypeError, r"init: expected integer labels, got float64"),
        ({"precision": "fp8"}, ArgumentError, r"precision: expected 'fp32' or 'bf16', got 'fp8'"),
        ({"device": "gpu"}, ArgumentError, r"device: expected 'auto', 'cpu' or .*got 'gpu'"),
        ({"device": "cuda:99"}, ArgumentError, r"device: expected 'auto', 'cpu' or .*got 'cuda:99'"),
        ({"model": torch.nn.Linear(2, 2)}, ArgumentTypeError, r"model: expected an HMoEVAE, got Linear"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_bad_input_is_refused_before_training(model, x, change, error, message):
    before = weights(model)
    with pytest.raises(error, match=message):
        conftest.fit(**{"model": model, "data": x, "epochs": 1} | change)
    assert torch.equal(weights(model), before)


def test_an_optimiser_that_cannot_be_made_leaves_no_trace(model, x):
    def fail(parameters):
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left on device"):
        quiet_fit(model, x, epochs=1, optimizer=fail)
    assert not model.training


def test_a_model_without_anything_to_train_is_refused(model, x):
    with pytest.raises(ArgumentError, match=r"model: expected a parameter that requires a gradient, got none"):
        quiet_fit(model.requires_grad_(False), x, epochs=1)


def test_progress_bar_shows_terms(model, x, capsys):
    hm.fit(model, x, hm.Training(epochs=1, device="cpu"))
    shown = capsys.readouterr().err
    assert "epoch 1/1" in shown
    assert "expected=" in shown
    assert "balance=" in shown


def test_the_bar_moves_where_somebody_looks_on(monkeypatch):
    class Stream(io.StringIO):
        def __init__(self, is_terminal):
            super().__init__()
            self.isatty = lambda: is_terminal

    class Notebook(Stream):
        __module__ = "ipykernel.iostream"

    for stream, interval in ((Notebook(False), 0.1), (Stream(True), 0.1), (Stream(False), 30.0)):
        monkeypatch.setattr(sys, "stderr", stream)
        for show, expected in ((True, interval), (False, 30.0)):
            with contextlib.closing(_bar(3, done=0, show=show)) as bar:
                assert bar.mininterval == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_trains_on_cuda(model, x):
    history = hm.fit(model, x, hm.Training(epochs=3, device="cuda", precision="bf16"), progress=False)
    assert model.device.type == "cuda"
    assert history["loss"][-1] < history["loss"][0]
    assert model.predict(x).device.type == "cpu"


# --- data that do not lie in memory -----------------------------------------------------------------------------------


def mapped(folder, array, mode="r"):
    file = folder / f"{len(list(folder.iterdir()))}.npy"
    np.save(file, array)
    return np.load(file, mmap_mode=mode)


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [("r", np.float32), ("r+", np.float32), ("c", np.float64), ("r", np.float64), ("r", np.dtype(">f4"))],
)
def test_a_mapped_file_trains_as_the_same_array(x, tmp_path, mode, dtype):
    def trained(data, held_out):
        torch.manual_seed(0)
        model = hm.HMoEVAE(TREE, (N_FEATURES,))
        history = quiet_fit(model, data, epochs=2, validation_data=held_out)
        return weights(model), history["loss"], history["val_elbo"]

    array = x.numpy().astype(dtype)
    file, held_out = mapped(tmp_path, array, mode), mapped(tmp_path, array[:20], mode)
    from_file, from_memory = trained(file, held_out), trained(array, array[:20])
    assert torch.equal(from_file[0], from_memory[0])
    assert from_file[1:] == from_memory[1:]
    assert np.array_equal(file, array)


@pytest.mark.parametrize("n", [160, 163, 1000])
def test_a_file_larger_than_a_window_is_shuffled_and_seen_once(model, tmp_path, monkeypatch, n):
    """Of 48 rows at a time, that is, in blocks of 5 rows."""
    row_bytes = 4 * N_FEATURES
    monkeypatch.setattr(hm.training.batches, "WINDOW_BYTES", 50 * row_bytes)
    monkeypatch.setattr(hm.training.batches, "BLOCK_BYTES", 5 * row_bytes)
    rows = torch.arange(n).unsqueeze(1).expand(n, N_FEATURES) / n
    batches = batches_of(model, mapped(tmp_path, rows.numpy()), "data", 16, torch.Generator().manual_seed(0), ALONE)
    pairs = [[((batch[:, 0] * n).round().long(), index) for batch, index in batches] for _ in range(2)]
    assert all(torch.equal(batch, index) for epoch in pairs for batch, index in epoch)  # each knows its place
    epochs = [[batch for batch, _ in epoch] for epoch in pairs]
    for epoch in epochs:
        assert len(epoch) == len(batches) == math.ceil(n / 16)
        assert [len(batch) for batch in epoch] == [16] * (n // 16) + [n % 16] * (n % 16 > 0)
        assert torch.equal(torch.cat(epoch).sort().values, torch.arange(n))
        assert len({int(i) // 5 for i in epoch[0]}) > 5  # rows of many blocks meet in a batch
        assert max(int(i) for batch in epoch[:3] for i in batch) > n / 2  # from all over the file
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))
    in_order = batches_of(model, mapped(tmp_path, rows.numpy()), "data", 16, None, ALONE)
    assert torch.equal(torch.cat([(batch[:, 0] * n).round().long() for batch, _ in in_order]), torch.arange(n))


def test_a_mapped_file_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    """64 MB, of which windows of 1 MB are copied; numpy's memory is what tracemalloc sees."""
    monkeypatch.setattr(hm.training.batches, "WINDOW_BYTES", 1 << 20)
    monkeypatch.setattr(hm.training.batches, "BLOCK_BYTES", 1 << 16)
    model = hm.HMoEVAE(TREE, (256,))
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (1 << 16, 256)).flush()
    data = np.load(tmp_path / "x.npy", mmap_mode="r")
    tracemalloc.start()
    try:
        batches = batches_of(model, data, "data", 128, torch.Generator().manual_seed(0), ALONE)
        n_samples = sum(len(batch) for batch, _ in batches)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert n_samples == 1 << 16
    assert peak < 4 << 20


@pytest.mark.parametrize(
    ("row", "value", "message"),
    [
        (1500, math.nan, r"data\[1024:1600\]: expected finite values, got NaN .* in 1 samples, first 476"),
        (3, 7.0, r"data\[0:1024\]: expected values in \[0, 1\] .*got values from 0 to 7"),
    ],
)
def test_bad_rows_of_a_file_are_refused_before_training(model, tmp_path, row, value, message):
    array = np.zeros((1600, N_FEATURES), np.float32)
    array[row] = value
    before = weights(model)
    with pytest.raises(DataError, match=message):
        quiet_fit(model, mapped(tmp_path, array))
    assert torch.equal(weights(model), before)


def test_a_file_of_other_samples_is_refused(model, tmp_path):
    with pytest.raises(ShapeError, match=r"data\[0:9\]: expected \(batch, 6\), got \(9, 7\)"):
        quiet_fit(model, mapped(tmp_path, np.zeros((9, 7), np.float32)))
    with pytest.raises(
        ArgumentTypeError, match=r"data\[0:9\]: expected floating point values, got uint8 from 0 to 0 \(data.as"
    ):
        quiet_fit(model, mapped(tmp_path, np.zeros((9, 6), np.uint8)))
    with pytest.raises(ShapeError, match=r"data: expected \(batch, 6\), got \(\)"):
        quiet_fit(model, mapped(tmp_path, np.zeros((), np.float32)))


def test_a_stream_trains_as_its_batches_in_order(x):
    def trained(data):
        torch.manual_seed(0)
        model = hm.HMoEVAE(TREE, (N_FEATURES,))
        quiet_fit(model, data, epochs=2)
        return weights(model)

    assert torch.equal(trained(Stream(x)), trained(DataLoader(Items(x), batch_size=16)))
    assert torch.equal(trained(Stream(x.numpy())), trained(Stream(x)))

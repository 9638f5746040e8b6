"""The door for data: what `fit` takes every method takes, batch by batch; what cannot come in is told what would."""

import functools
import random
import re
import tracemalloc
import types
import warnings

import conftest
import numpy as np
import pandas as pd
import pytest
import torch
from sources import Items, Stream
from torch.masked import masked_tensor
from torch.utils.data import DataLoader, TensorDataset

import hmoevae as hm
from hmoevae.errors import (
    ArgumentError,
    ArgumentTypeError,
    ConvergenceWarning,
    DataError,
    DeadLeafWarning,
    ScaleWarning,
    ShapeError,
)

pytestmark = pytest.mark.usefixtures("as_users_call")

NET = hm.MLP((4,))
EXPERT = hm.VAE(2, NET, NET)
FREE = hm.VAE(2, NET, NET, hm.Gaussian(mean="identity"))


def make(expert=EXPERT, shape=(4,), seed=0):
    torch.manual_seed(seed)
    return hm.HMoEVAE(hm.Mixture.of(expert, 3, gate=NET), shape)


@pytest.fixture
def model():
    return make()


@pytest.fixture
def x():
    return torch.rand(20, 4, generator=torch.Generator().manual_seed(0))


fit = functools.partial(conftest.fit, epochs=1, batch_size=8)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def mapped(folder, array):
    file = folder / f"{len(list(folder.iterdir()))}.npy"
    np.save(file, array)
    return np.load(file, mmap_mode="r")


METHODS = {
    "route": lambda model, x, **options: model.route(x, **options),
    "predict": lambda model, x, **options: model.predict(x, **options),
    "predict_proba": lambda model, x, **options: model.predict_proba(x, level=1, **options),
    "encode": lambda model, x, **options: model.encode(x, **options),
    "reconstruct": lambda model, x, **options: model.reconstruct(x, **options),
    "score_samples": lambda model, x, **options: model.score_samples(
        x, n_importance=4, generator=torch.Generator().manual_seed(0), **options
    ),
    "evaluate": lambda model, x, **options: torch.tensor(
        list(model.evaluate(x, generator=torch.Generator().manual_seed(0), **options).values())
    ),
}
every_method = pytest.mark.parametrize("call", METHODS.values(), ids=METHODS)
every_way_in = pytest.mark.parametrize("call", [*METHODS.values(), fit], ids=[*METHODS, "fit"])

# --- every method takes what fit takes ------------------------------------------------------------------------------

SOURCES = {
    "array": lambda x, folder: x.numpy(),
    "float64": lambda x, folder: x.numpy().astype(np.float64),
    "mapped": lambda x, folder: mapped(folder, x.numpy()),
    "TensorDataset": lambda x, folder: TensorDataset(x, torch.zeros(len(x))),
    "Dataset": lambda x, folder: Items(x),
    "IterableDataset": lambda x, folder: Stream(x),
    "DataLoader": lambda x, folder: DataLoader(Items(x), batch_size=8),
    "large batches": lambda x, folder: DataLoader(Items(x), batch_size=16),
    "Scaled": lambda x, folder: hm.datasets.Scaled(2 * x + 1, 2, offset=1),
    "Scaled, mapped": lambda x, folder: hm.datasets.Scaled(mapped(folder, 4 * x.numpy() - 1), 4, offset=-1),
}


@every_method
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_source_gives_what_its_tensor_gives(model, x, tmp_path, call, source):
    before = torch.get_rng_state()
    torch.testing.assert_close(call(model, source(x, tmp_path), batch_size=8), call(model, x, batch_size=8))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_more_than_a_batch_is_evaluated_at_a_time(model, x, monkeypatch):
    seen = []
    gates = model.gates.forward
    monkeypatch.setattr(model.gates, "forward", lambda flat, *told: (seen.append(flat.shape[1]), gates(flat, *told))[1])
    model.predict(DataLoader(Items(x), batch_size=16), batch_size=10)
    assert seen == [10, 6, 4]


def test_a_mapped_file_is_never_in_memory_as_a_whole(tmp_path):
    """64 MB of pixels, which are 256 MB of numbers; numpy's memory is what tracemalloc sees."""
    model = make(shape=(1024,))
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (1 << 16, 1024)).flush()
    data = hm.datasets.Scaled(np.load(tmp_path / "x.npy", mmap_mode="r"), 255)
    tracemalloc.start()
    try:
        assert len(model.predict(data, batch_size=256)) == 1 << 16
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


@every_method
def test_bad_rows_of_a_file_are_named(model, tmp_path, call):
    array = np.zeros((20, 4), np.float32)
    array[11] = np.nan
    with pytest.raises(DataError, match=r"x\[8:16\]: expected finite values, got NaN .* in 1 samples, first 3"):
        call(model, mapped(tmp_path, array), batch_size=8)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "evaluate"])
def test_one_answer_each_needs_every_sample_in_its_place(model, x, name):
    expected = "x: expected a DataLoader that yields all samples in order, got one "
    with pytest.raises(ArgumentError, match=re.escape(f"{expected}that shuffles (use shuffle=False)")):
        METHODS[name](model, DataLoader(Items(x), batch_size=8, shuffle=True))
    with pytest.raises(ArgumentError, match=re.escape(f"{expected}with drop_last=True")):
        METHODS[name](model, DataLoader(Items(x), batch_size=8, drop_last=True))
    assert len(METHODS[name](model, DataLoader(Items(x), batch_size=5, drop_last=True))) == 20  # nothing to drop


def test_means_need_no_order(model, x):
    terms = model.evaluate(
        DataLoader(Items(x), batch_size=20, shuffle=True), generator=torch.Generator().manual_seed(0)
    )
    assert terms["elbo"] == pytest.approx(model.evaluate(x)["elbo"], rel=0.5)  # other draws of z


# --- a stated scaling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float16, np.float64, np.dtype(">i4"), np.bool_])
def test_scaled_numbers_are_those_of_the_formula(dtype):
    values = np.arange(12).reshape(4, 3).astype(dtype)
    means, deviations = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 8.0])
    expected = torch.from_numpy((values.astype(np.float64) - means) / deviations).float()
    native = values.astype(values.dtype.newbyteorder("="))
    for data in (values, torch.from_numpy(native)):
        scaled = hm.datasets.Scaled(data, deviations, offset=means)
        assert len(scaled) == 4
        assert scaled[:].is_floating_point()
        torch.testing.assert_close(scaled[:].float(), expected)
        torch.testing.assert_close(scaled[2].float(), expected[2])
        torch.testing.assert_close(scaled[np.array([3, 0])].float(), expected[[3, 0]])


def test_a_large_integer_is_not_rounded_before_it_is_scaled():
    year = np.array([[16_777_216], [16_777_217]])  # equal as float32
    assert hm.datasets.Scaled(year, 1, offset=16_777_216)[:].flatten().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("in_file", [True, False])
def test_pixels_train_as_their_numbers(tmp_path, in_file):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 4), dtype=np.uint8)
    data = hm.datasets.Scaled(mapped(tmp_path, pixels) if in_file else pixels, 255)
    models = []
    for source in (data, pixels.astype(np.float32) / 255):
        models.append(make())
        fit(models[-1], source, validation_data=source)
    torch.testing.assert_close(weights(models[0]), weights(models[1]))
    assert data.is_in_file == in_file
    assert torch.equal(torch.cat(list(DataLoader(data, batch_size=7))), data[:])


@pytest.mark.parametrize(
    ("data", "divisor", "offset", "error", "message"),
    [
        (
            [1, 2],
            255,
            0,
            ArgumentTypeError,
            r"data: expected a tensor, a numpy array or .*, got a list \(np.asar",
        ),
        (np.array([["a"]]), 255, 0, ArgumentTypeError, r"data: expected rows of numbers, got <U1, \(1, 1\)"),
        (np.array(3), 255, 0, ArgumentTypeError, r"data: expected rows of numbers, got int64, \(\)"),
        (np.ones((2, 2)), 0, 0, ArgumentError, r"divisor: expected numbers other than 0, got 0"),
        (np.ones((2, 2)), np.array([1.0, 0.0]), 0, ArgumentError, r"divisor: expected numbers other than 0, got 0"),
        (np.ones((2, 2)), "255", 0, ArgumentTypeError, r"divisor: expected a number or an array of them, got str"),
        (np.ones((2, 2)), 1, float("nan"), ArgumentError, r"offset: expected finite numbers, got NaN or infinity"),
        (
            np.ma.masked_equal([[1, -9]], -9),
            1,
            0,
            DataError,
            r"data: expected values without a mask, got 1 of 2 masked",
        ),
    ],
)
def test_a_scaling_that_makes_no_sense(data, divisor, offset, error, message):
    with pytest.raises(error, match=message):
        hm.datasets.Scaled(data, divisor, offset=offset)


# --- what cannot come in --------------------------------------------------------------------------------------------


ROWS = np.arange(24).reshape(6, 4)
FLOATS = ROWS / 24
IN_TABLES = "pass its .to_numpy(), or make the model with the hm.Table of such frames"
FOUR = "a tensor, a numpy array, a torch Dataset, a DataLoader or a sparse matrix of scipy"
VALUES = "floating point values"
WRONG = {
    "masked": (np.ma.masked_equal(FLOATS, 0), DataError, "expected values without a mask, got 1 of 24 masked (leave"),
    "MaskedTensor": (
        lambda: masked_tensor(torch.rand(2, 4), torch.tensor([[True] * 4, [False] * 4])),
        DataError,
        "expected values without a mask, got 4 of 8 masked (leave",
    ),
    "bool": (
        ROWS > 3,
        ArgumentTypeError,
        f"expected {VALUES}, got bool from 0 to 1 (DATA.astype(np.float32) turns them into 0.0",
    ),
    "bool tensor": (
        torch.ones(3, 4, dtype=torch.bool),
        ArgumentTypeError,
        f"expected {VALUES}, got torch.bool from 1 to 1 (DATA.float() turns them into 0.0 and 1.0)",
    ),
    "pixels": (
        ROWS.astype(np.uint8),
        ArgumentTypeError,
        f"expected {VALUES}, got uint8 from 0 to 23 (for pixels: hm.datasets.Scaled(DATA, 255)",
    ),
    "0 or 1": (
        (ROWS % 2).astype(np.uint8),
        ArgumentTypeError,
        f"expected {VALUES}, got uint8 from 0 to 1 (DATA.astype(np.float32) turns them into 0.0 and 1.0)",
    ),
    "counts": (
        ROWS,
        ArgumentTypeError,
        f"expected {VALUES}, got int64 from 0 to 23 (for quantities: DATA.astype(np.float32); for counts: the same, ",
    ),
    "complex": (FLOATS + 0j, ArgumentTypeError, f"expected {VALUES}, got complex128 (make columns of the real and"),
    "text": (np.full((6, 4), "0.5"), ArgumentTypeError, f"expected {VALUES}, got <U3 (leave such columns out, or"),
    "dates": (ROWS.astype("datetime64[D]"), ArgumentTypeError, f"expected {VALUES}, got datetime64[D] (leave such col"),
    "objects": (
        pd.DataFrame({"a": [1.5, 2.0], "b": ["cat", "dog"]}).to_numpy(),
        ArgumentTypeError,
        f"expected {VALUES}, got object (there is a str in it, 'cat': leave such columns out, or encode",
    ),
    "numbers as objects": (
        FLOATS.astype(object),
        ArgumentTypeError,
        f"expected {VALUES}, got object (DATA.astype(np.float32) turns them into numbers)",
    ),
    "fields": (
        np.zeros(3, dtype=[("a", float), ("b", float)]),
        ArgumentTypeError,
        "(numpy.lib.recfunctions.structured_to_unstructured makes columns of the fields)",
    ),
    "sparse tensor": (
        torch.eye(4).to_sparse(),
        ArgumentTypeError,
        "expected a dense tensor, got a sparse one (torch.sparse_coo, (4, 4)) (.to_dense() makes a dense one)",
    ),
    "sparse rows": (
        lambda: torch.eye(4).to_sparse_csr(),
        ArgumentTypeError,
        "expected a dense tensor, got a sparse one (torch.sparse_csr, (4, 4)) (.to_dense() makes a dense one)",
    ),
    "frame": (pd.DataFrame(FLOATS), ArgumentTypeError, f"expected {FOUR}, got a DataFrame ({IN_TABLES})"),
    "series": (pd.Series([0.5]), ArgumentTypeError, f"expected {FOUR}, got a Series (pass its .to_numpy())"),
    "list": (
        FLOATS.tolist(),
        ArgumentTypeError,
        f"expected {FOUR}, got a list (np.asarray(..., dtype=np.float32) makes an array)",
    ),
    "list of tensors": (
        [torch.rand(4)] * 3,
        ArgumentTypeError,
        f"expected {FOUR}, got a list, of which torch.stack(...) makes one array",
    ),
    "samples and labels": (
        (FLOATS, np.zeros(6)),
        ArgumentTypeError,
        f"expected {FOUR}, got a tuple of 2 arrays of different shapes, of which the first may be the samples",
    ),
    "nothing": (None, ArgumentTypeError, f"expected {FOUR}, got None"),
    "empty list": ([], ArgumentTypeError, f"expected {FOUR}, got a list without entries"),
    "dict": (
        {"data": FLOATS, "target": 0},
        ArgumentTypeError,
        f"expected {FOUR}, got a dict with the keys 'data', 'target', of which one may hold the samples",
    ),
    "file": (
        "x.npy",
        ArgumentTypeError,
        f"expected {FOUR}, got 'x.npy' (np.load(file, mmap_mode='r') opens a .npy file",
    ),
    "generator": (
        lambda: (row for row in FLOATS),
        ArgumentTypeError,
        f"expected {FOUR}, got a generator (wrap it in a torch.utils.data.IterableDataset)",
    ),
    "array of another library": (
        types.SimpleNamespace(__array__=lambda: FLOATS),
        ArgumentTypeError,
        f"expected {FOUR}, got a SimpleNamespace (np.asarray(...) makes an array)",
    ),
    "empty": (FLOATS[:0], DataError, "expected at least one sample, got none"),
    "empty data set": (Items(FLOATS[:0]), DataError, "expected at least one sample, got none"),
    "empty stream": (Stream(FLOATS[:0]), DataError, "expected at least one sample, got none"),
    "drop_last": (
        DataLoader(Items(FLOATS), batch_size=16, drop_last=True),
        DataError,
        "expected at least one sample, got none (drop_last=True leaves out the 6 samples, less than a batch)",
    ),
    "loader of dicts": (
        DataLoader(Items(FLOATS, lambda x: {"image": x, "label": 1}), batch_size=2),
        ArgumentTypeError,
        "expected batches that are tensors, or tuples that begin with one, got a dict with the keys 'image'",
    ),
    "data set of dicts": (
        Items(FLOATS, lambda x: {"image": x, "label": 1}),
        ArgumentTypeError,
        "expected items that are tensors, or tuples that begin with one, got a dict with the keys 'image'",
    ),
    "names first": (
        DataLoader(Items(FLOATS, lambda x: ("a.png", x)), batch_size=2),
        ArgumentTypeError,
        "expected batches that are tensors, or tuples that begin with one, got a tuple of str",
    ),
    "masked items": (
        Items(FLOATS, lambda x: np.ma.masked_less(x, 0.5)),
        DataError,
        "expected values without a mask, got 4 of 4 masked (leave",
    ),
    "one sample": (FLOATS[0], ShapeError, "expected (batch, 4), got (4,) (a single sample? DATA[None] is a batch of"),
    "images": (
        FLOATS.reshape(6, 2, 2),
        ShapeError,
        "expected (batch, 4), got (6, 2, 2) (DATA.reshape(-1, 4) has that shape)",
    ),
    "columns": (FLOATS[:, :3], ShapeError, "expected (batch, 4), got (6, 3)"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors", "ignore:Sparse CSR tensor support")
def test_what_cannot_come_in_is_told_what_would(model, kind):
    given, error, words = WRONG[kind]
    before = weights(model)
    for call in (*METHODS.values(), fit):
        name = "data" if call is fit else "x"
        start = "" if words.startswith("(") else f"{name}: "
        message = start + words.replace("DATA", name)
        if kind == "drop_last" and call not in (fit, METHODS["evaluate"]):
            error, message = ArgumentError, "x: expected a DataLoader that yields all samples in order"
        data = given() if isinstance(given, types.FunctionType) else given
        with pytest.raises(error, match=re.escape(message)) as caught:
            call(model, data)
        assert len(str(caught.value)) < 300
        assert "\n" not in str(caught.value)
        assert "/ 255" not in str(caught.value)
    assert torch.equal(weights(model), before)


@every_way_in
def test_a_mask_that_hides_nothing_is_none(model, call):
    call(model, np.ma.masked_equal(FLOATS, -9999.0))


def test_the_estimator_reads_a_mask_as_gaps():
    """scikit-learn's own checks take what lies under it."""
    table = np.random.default_rng(0).normal(size=(30, 2))
    mixture = hm.VAEMixture(2, hidden=(4,), max_iter=20, init="random", random_state=0, device="cpu")
    masked, gaps = np.ma.masked_less(table, -1), np.where(table < -1, np.nan, table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(masked)
    for method in (mixture.predict, mixture.transform, mixture.score_samples):
        np.testing.assert_array_equal(method(masked), method(gaps))


def test_no_reshaping_is_told_that_would_mix_up_rows_and_columns():
    with pytest.raises(ShapeError) as caught:
        make(shape=(2, 3)).predict(torch.rand(5, 3, 2))
    assert str(caught.value) == "x: expected (batch, 2, 3), got (5, 3, 2)"


def test_channels_come_first():
    model = make(shape=(3, 8, 5))
    with pytest.raises(ShapeError, match=re.escape("got (2, 8, 5, 3) (channels first: x.permute(0, 3, 1, 2))")):
        model.predict(torch.rand(2, 8, 5, 3))
    with pytest.raises(ShapeError, match=re.escape("got (2, 8, 5, 3) (channels first: data.transpose(0, 3, 1, 2))")):
        fit(model, np.ones((2, 8, 5, 3)))


# --- random states --------------------------------------------------------------------------------------------------


def noisy(sample):
    return sample * (torch.rand(1) + random.random() + np.random.random()) / 3  # noqa: NPY002


@pytest.mark.parametrize(
    "source",
    [
        lambda x: DataLoader(TensorDataset(x), batch_size=8, shuffle=True),
        lambda x: DataLoader(Items(x, noisy), batch_size=8, shuffle=True),
        lambda x: Items(x, noisy),
        lambda x: Stream(x),
    ],
    ids=["loader", "noisy loader", "noisy data set", "stream"],
)
@pytest.mark.parametrize("seed", [0, None])
def test_the_seed_fixes_what_loaders_and_data_sets_draw(x, source, seed):
    def trained(seed):
        model = make()
        random.seed()
        np.random.seed()  # noqa: NPY002
        torch.seed()
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
        fit(model, source(x), epochs=2, seed=seed, validation_data=source(x))
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
        assert before[:2] == after[:2]
        assert torch.equal(before[2], after[2])
        return weights(model)

    assert torch.equal(trained(seed), trained(seed)) == (seed is not None)


def test_a_seeded_loader_shuffles_every_epoch_anew(model, x, monkeypatch):
    seen = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda batch, **options: (seen.append(batch), forward(batch, **options))[1])
    fit(model, DataLoader(TensorDataset(x), batch_size=20, shuffle=True), epochs=2)
    assert torch.equal(seen[0].sort(0).values, seen[1].sort(0).values)
    assert not torch.equal(seen[0], seen[1])


def test_the_seed_fixes_what_a_view_draws(x):
    def trained(seed):
        model = make()
        torch.seed()
        before = torch.get_rng_state()
        fit(model, x, seed=seed, view=noisy, epochs=2)
        assert torch.equal(torch.get_rng_state(), before)
        return weights(model)

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_two_views_of_a_callable_are_not_the_same(x):
    seen = []
    model = make()
    model.agree = lambda view, other, **options: (seen.append((view, other)), hm.HMoEVAE.agree(model, view, other))[1]
    fit(model, x, view=noisy, agreement=hm.Agreement(partner=None), epochs=2)
    assert len(seen) == 3
    assert not any(torch.equal(view, other) for view, other in seen)
    assert not torch.equal(seen[0][0].sum(), seen[1][0].sum())


# --- models that cannot learn ---------------------------------------------------------------------------------------


def test_a_model_made_in_inference_mode_is_named(x):
    with torch.inference_mode():
        model = make()
        assert model.predict(x).shape == (20,)
    message = r"model: expected a model made outside torch.inference_mode, for gradients, got a model"
    for call in (functools.partial(fit, model, x), functools.partial(model, x), functools.partial(model.agree, x, x)):
        with pytest.raises(ArgumentError, match=message):
            call()
    with torch.no_grad():
        assert model(x).leaf_elbo.shape == (20, 3)


def test_samples_made_in_inference_mode_can_be_learned_from(model):
    with torch.inference_mode():
        x = torch.rand(20, 4)
    fit(model, DataLoader(Items(x), batch_size=None, collate_fn=lambda item: item[0].unsqueeze(0)))
    model(x).loss.backward()


# --- scales ---------------------------------------------------------------------------------------------------------

RAW = np.random.default_rng(0).normal([40.0, 52_000.0, 0.3, 7.0], [12.0, 18_000.0, 0.1, 2.0], (200, 4))


def standardised(table):
    return (table - table.mean(0)) / table.std(0)


@pytest.mark.filterwarnings("ignore:usage. expected a share")
@pytest.mark.parametrize(
    "source", [lambda x, _: x, lambda x, folder: mapped(folder, x), lambda x, _: DataLoader(Items(x), batch_size=50)]
)
def test_a_table_of_raw_scales_is_to_be_standardised(tmp_path, source):
    message = (
        r"data: expected data of about the scale of Gaussian\(scale=0.5, mean='identity'\), got column 1 with mean "
        r"5\d,\d{3} and standard deviation 1\d,\d{3}: standardise them"
    )
    with pytest.warns(ScaleWarning, match=message) as caught:
        fit(make(FREE), source(RAW, tmp_path), epochs=2)
    assert [warning.category for warning in caught].count(ScaleWarning) == 1


@pytest.mark.filterwarnings("ignore:usage. expected a share")
def test_scales_are_those_of_the_observed_cells():
    gaps = np.random.default_rng(1).random(RAW.shape) < 0.3
    model = hm.HMoEVAE(hm.Mixture.of(FREE, 3), (4,), missing=True)
    with pytest.warns(ScaleWarning, match=r"got column 1 with mean 5\d,\d{3} and standard deviation 1\d,\d{3}:"):
        fit(model, np.where(gaps, np.nan, RAW), epochs=2)


def test_data_that_drown_in_the_noise_are_to_be_standardised():
    with pytest.warns(ScaleWarning, match=r"got standard deviations up to 0.0\d+, far below its noise: standardise"):
        fit(make(FREE), 0.05 * standardised(RAW))


@pytest.mark.parametrize(
    ("expert", "data"),
    [
        (FREE, standardised(RAW)),
        (FREE, hm.datasets.Scaled(RAW, RAW.std(0), offset=RAW.mean(0))),
        (FREE, np.abs(standardised(RAW)) ** 3),
        (FREE, np.concatenate([standardised(RAW)[:, :3], np.zeros((200, 1))], 1)),
        (hm.VAE(2, NET, NET, hm.Gaussian(0.1, mean="identity")), standardised(RAW)),
        (hm.VAE(2, NET, NET, hm.Gaussian(20_000.0, mean="identity")), RAW),
        (hm.VAE(2, NET, NET, hm.Gaussian(0.001, mean="identity")), np.full((200, 4), 0.5)),
        (EXPERT, np.full((200, 4), 0.5)),
        (hm.VAE(2, NET, NET, hm.Bernoulli()), np.ones((200, 4))),
    ],
    ids=["standard", "scaled", "heavy", "constant", "sharp", "stated", "grey", "sigmoid", "bits"],
)
def test_data_of_the_likelihoods_scale_pass_in_silence(expert, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeadLeafWarning)
        fit(make(expert), data)


@pytest.mark.parametrize("argument", ["divisor", "offset"])
def test_a_scaling_fits_a_sample(argument: str) -> None:
    given = {"divisor": 2.0, argument: np.ones(5)}
    with pytest.raises(ShapeError, match=rf"{argument}: expected .* that fits a sample of \(1, 8, 8\), got .*\(5,\)"):
        hm.datasets.Scaled(np.zeros((3, 1, 8, 8), np.uint8), **given)
    assert repr(hm.datasets.Scaled(np.zeros((3, 2), np.uint8), 255)) == "<Scaled uint8, (3, 2)>"

"""Models of tables: frames come in at the door, scores are densities of rows, the table is saved with the model."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, SpecError

NET = hm.MLP((4,))
KINDS = {"eggs": "count"}


def frame(n: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "mass": np.where(rng.random(n) < 0.2, np.nan, rng.normal(4000, 800, n)),
            "island": rng.choice(np.array(["Biscoe", "Dream", None], dtype=object), n, p=[0.5, 0.4, 0.1]),
            "eggs": rng.poisson(2, n),
            "ringed": rng.random(n) < 0.5,
        }
    )


def table() -> hm.Table:
    return hm.Table.of(frame(), kinds=KINDS)


def make(table: hm.Table, **how: Any) -> hm.HMoEVAE:
    torch.manual_seed(0)
    tree = hm.Mixture.of(hm.VAE(2, NET, NET, likelihood=table.likelihood()), 2, gate=NET)
    return hm.HMoEVAE(tree, table, objective="marginal", **how)


def test_a_model_of_a_table_has_its_columns_and_gaps() -> None:
    model = make(table())
    assert (model.input_shape, model.missing, model.table) == ((4,), True, table())
    complete = hm.Table.of(frame().dropna(), kinds=KINDS)
    assert not make(complete).missing
    assert make(complete, missing=True).missing


METHODS = {
    "predict": lambda m, x: m.predict(x, batch_size=7),
    "predict_proba": lambda m, x: m.predict_proba(x),
    "encode": lambda m, x: m.encode(x),
    "reconstruct": lambda m, x: m.reconstruct(x),
    "score_samples": lambda m, x: m.score_samples(x, n_importance=2),
    "evaluate": lambda m, x: torch.tensor(list(m.evaluate(x).values())),
    "check_input": lambda m, x: m.check_input(x).nan_to_num(),
    "checked": lambda m, x: m.checked(x).x.nan_to_num(),
    "forward": lambda m, x: m(m.check_input(x), generator=torch.Generator().manual_seed(0)).loss,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make_frame", [frame, lambda: pl.from_pandas(frame()), lambda: frame()[sorted(frame())]])
def test_methods_take_frames_and_their_samples(method: str, make_frame: Any) -> None:
    model, call = make(table()), METHODS[method]
    assert torch.equal(call(model, make_frame()), call(model, model.table.encode(frame())))


@pytest.mark.parametrize("is_held_out", [False, True])
def test_training_on_a_frame_is_training_on_its_samples(tmp_path: Path, is_held_out: bool) -> None:
    models, start = [make(table()), make(table())], np.arange(40) % 2
    training = hm.Training(epochs=2, batch_size=16, seed=0, init=start, init_epochs=1)
    for i, (model, x) in enumerate(zip(models, (frame(), table().encode(frame())), strict=True)):
        held_out = x[:10] if is_held_out else None
        hm.fit(model, x, training, validation_data=held_out, progress=False, checkpoint_dir=tmp_path / f"{i}")
    for one, other in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(one, other)


def test_a_training_on_a_frame_resumes_with_its_samples(tmp_path: Path) -> None:
    training = hm.Training(epochs=1, batch_size=16, seed=0)
    hm.fit(make(table()), frame(), training, progress=False, checkpoint_dir=tmp_path)
    again = hm.fit(make(table()), table().encode(frame()), training, progress=False, checkpoint_dir=tmp_path)
    assert len(again) == 1
    with pytest.raises(ArgumentError, match="data: expected 40 samples with sha256"):
        hm.fit(make(table()), frame().assign(eggs=1), training, progress=False, checkpoint_dir=tmp_path)


def test_scores_are_densities_of_rows() -> None:
    """Grams in place of kilograms: each row is a thousand times less dense."""
    x = frame().dropna()[["mass"]]
    grams, kilograms = hm.Table.of(x), hm.Table.of(x / 1000)
    scores = [make(t).score_samples(rows) for t, rows in ((grams, x), (kilograms, x / 1000))]
    assert torch.allclose(scores[0], scores[1] - np.log(1000), atol=1e-4)
    samples = grams.encode(x)
    plain = hm.HMoEVAE(make(grams).tree, (1,), objective="marginal")
    plain.load_state_dict(make(grams).state_dict())
    assert torch.allclose(scores[0], plain.score_samples(samples) + grams.log_jacobian(samples).float(), atol=1e-5)


def test_samples_and_reconstructions_become_rows() -> None:
    model = make(table())
    rows = table().decode(model.sample(20, observe=True))
    assert isinstance(rows, pd.DataFrame)
    assert list(rows) == list(frame())
    assert set(rows["island"]) <= {"Biscoe", "Dream"}
    assert rows["eggs"].dtype == np.int64
    assert rows["ringed"].dtype == bool
    assert table().decode(model.reconstruct(frame())).shape == frame().shape


def test_a_table_is_saved_with_its_model(tmp_path: Path) -> None:
    model = make(table())
    model.save_pretrained(tmp_path)
    same = hm.HMoEVAE.from_pretrained(tmp_path)
    assert (same.table, same.missing) == (model.table, True)
    assert torch.equal(same.predict_proba(frame()), model.predict_proba(frame()))


def test_an_array_is_a_frame_and_a_tensor_holds_samples() -> None:
    x = np.random.default_rng(0).normal(50, 10, (30, 3))
    model = make(hm.Table.of(x))
    assert torch.equal(model.predict_proba(x), model.predict_proba(model.table.encode(x)))
    assert torch.equal(model.predict_proba(pd.DataFrame(x, columns=["x0", "x1", "x2"])), model.predict_proba(x))


def test_a_file_is_read_as_rows_of_the_table(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(50, 10, (30, 3))
    np.save(tmp_path / "x.npy", x)
    in_file = np.load(tmp_path / "x.npy", mmap_mode="r")
    model = make(hm.Table.of(x))
    assert torch.equal(model.predict_proba(in_file, batch_size=7), model.predict_proba(x, batch_size=7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="mass"), "x: expected a column 'mass', got none"),
        (
            lambda f: f.assign(island="Anvers"),
            r"x\['island'\]: expected one of the 2 categories 'Biscoe', 'Dream', got",
        ),
        (lambda f: f.assign(eggs=-1), r"x\['eggs'\]: expected counts: integers >= 0, got -1 in 40 of 40 rows"),
        (lambda f: f.assign(mass=np.inf), r"x\['mass'\]: expected finite numbers, got inf in 40 of 40 rows"),
        (lambda f: f.assign(eggs=None), r"x\['eggs'\]: expected no gaps, as where the table was made, got None in 40"),
    ],
)
def test_later_frames_are_checked(change: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        make(table()).predict(change(frame()))
    with pytest.raises(DataError, match=f"^{message.replace('x', 'data', 1)}"):
        hm.fit(make(table()), change(frame()), progress=False)


@pytest.mark.usefixtures("as_users_call")
def test_a_model_without_a_table_says_what_frames_need() -> None:
    model = hm.HMoEVAE(hm.VAE(2), (4,))
    expected = r"x: expected .*, got a DataFrame \(pass its .to_numpy\(\), or make the model with the hm.Table of such"
    for call in (model.predict, model.check_input):
        with pytest.raises(ArgumentTypeError, match=expected):
            call(frame())


@pytest.mark.parametrize(
    ("likelihood", "column"),
    [
        (hm.Gaussian("learned", "identity"), "island"),
        (hm.Gaussian(), "mass"),
        (hm.ContinuousBernoulli(), "mass"),
        (hm.Columns.of(hm.Gaussian(mean="identity"), hm.Categorical(2), hm.Gaussian(), hm.Bernoulli()), "eggs"),
        (hm.Columns.of(hm.Gaussian(mean="identity"), hm.Bernoulli(), hm.Bernoulli(), hm.Bernoulli()), "eggs"),
        (hm.Columns.of(hm.Gaussian(mean="identity"), *[hm.Poisson()] * 2, hm.ContinuousBernoulli()), "ringed"),
    ],
)
def test_likelihoods_fit_the_columns(likelihood: hm.Likelihood, column: str) -> None:
    tree = hm.Mixture((hm.VAE(2, NET, NET, likelihood=table().likelihood()), hm.VAE(2, NET, NET, likelihood)), gate=NET)
    expected = (
        rf"root/1.likelihood: expected one that fits the column '{column}', as likelihood=table.likelihood\(\) does"
    )
    with pytest.raises(SpecError, match=expected):
        hm.HMoEVAE(tree, table())


def test_numbers_take_a_gaussian_of_ones_own() -> None:
    numbers = hm.Table.of({"a": [1.0, 2.0, 4.0], "b": [3.0, 5.0, 7.0]})
    tree = hm.VAE(2, NET, NET, hm.Gaussian(0.5, mean="identity"))
    assert hm.HMoEVAE(tree, numbers).score_samples({"b": [3.0], "a": [1.0]}).shape == (1,)


def test_em_takes_frames() -> None:
    leaf = hm.VAE(1, hm.LinearPosterior(), hm.MLP(()), table().likelihood())
    tree, em = hm.Mixture.of(leaf, 2, gate=hm.PosteriorGate(), balance=None, prior="learned"), hm.EM(max_iter=2, seed=0)
    models = [hm.HMoEVAE(tree, table(), objective="marginal") for _ in range(2)]
    losses = [
        hm.fit_em(model, x, em)["loss"] for model, x in zip(models, (frame(), table().encode(frame())), strict=True)
    ]
    assert losses[0] == pytest.approx(losses[1])

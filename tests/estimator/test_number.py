"""VAEMixture("auto"): the number of components that held-out samples choose."""

import pickle
import re

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score

import hmoevae as hm
from hmoevae.em import EM
from hmoevae.errors import ArgumentError
from hmoevae.estimator import number
from hmoevae.estimator.number import chosen_number

pytestmark = [
    pytest.mark.usefixtures("as_users_call"),
    pytest.mark.filterwarnings("ignore::hmoevae.errors.ConvergenceWarning"),
]


def auto(**changes):
    return hm.VAEMixture("auto", **{"random_state": 0, "device": "cpu"} | changes)


def kinds(k, n_each=40, n_columns=2, seed=0):
    """Unit Gaussians on a line of the plane, ten apart."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(k), n_each)
    x = rng.normal(size=(len(y), n_columns))
    x[:, 0] += 10 * y
    x[:, 1] += 10 * (y % 2)
    return x, y


@pytest.mark.parametrize("k", [1, 4])
def test_kinds_that_are_far_apart_are_found(k):
    x, y = kinds(k)
    mixture = auto().fit(x)
    assert mixture.n_components_ == mixture.model_.plan.n_leaves == k
    assert adjusted_rand_score(y, mixture.labels_) == 1
    assert mixture.n_components == "auto"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_skewed_kinds_are_not_split(seed):
    """More components make them denser, as the record says, but overlap."""
    rng = np.random.default_rng(seed)
    x = rng.gamma(2, size=(600, 2)) + np.repeat([[0, 0], [20, 0], [0, 20]], 200, axis=0)
    mixture = auto(kinds={"x0": "linear", "x1": "linear"}).fit(x)
    tried = pd.DataFrame(mixture.selection_)
    assert mixture.n_components_ == 3
    assert tried["log_density"].idxmax() > 2


def test_the_record_says_what_was_tried_and_why():
    x, _ = kinds(3)
    mixture = auto(max_components=6).fit(x)
    tried = pd.DataFrame(mixture.selection_)
    assert tried["n_components"].tolist() == [1, 2, 3, 4, 5, 6]
    assert tried["n_components"][tried["chosen"]].tolist() == [mixture.n_components_] == [3]
    cost = number.LEAST_GAIN * tried["n_components"] * x.shape[1]
    assert np.allclose(tried["log_density"] - tried["entropy"] - cost, tried["score"])
    assert tried["entropy"][0] == 0
    assert (tried["entropy"] >= 0).all()
    best = tried["score"].idxmax()
    assert tried["error"][best] == 0
    good = tried["score"].max() - tried["score"] <= tried["error"]
    assert tried["n_components"][good].min() == 3


def test_it_ends_where_larger_numbers_do_not_help_and_at_the_most():
    x, _ = kinds(2)
    data = _model(1).checked(torch.from_numpy(x))
    assert len(chosen_number(_model, data, None, EM())[1]["score"]) == 2 + number.PATIENCE
    assert chosen_number(_model, data, None, EM(), most=1) == (1, {})
    data = _model(1).checked(torch.from_numpy(kinds(5)[0]))
    found, tried = chosen_number(_model, data, None, EM(), most=3)
    assert found == 3
    assert tried["n_components"] == [1, 2, 3]


def test_the_seed_fixes_it():
    x, _ = kinds(2)
    first, second = (auto(max_components=2).fit(x) for _ in range(2))
    assert first.selection_ == second.selection_
    assert np.array_equal(first.labels_, second.labels_)


def test_a_number_that_is_given_is_told_too():
    x, _ = kinds(2)
    mixture = hm.VAEMixture(3, device="cpu", random_state=0).fit(x)
    assert (mixture.n_components_, mixture.selection_) == (3, {})
    planted = auto(tree=_model(2).tree).fit(x)
    assert (planted.n_components_, planted.selection_) == (2, {})


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_samples_are_one_kind(n):
    x, _ = kinds(1, n_each=n)
    mixture = auto().fit(x)
    assert (mixture.n_components_, mixture.selection_) == (1, {})


def test_weights_are_worth_the_same_as_equal_rows():
    x, _ = kinds(3, n_each=16)
    weight = np.random.default_rng(0).integers(0, 4, len(x))
    data, repeated = (_model(1).checked(torch.from_numpy(rows)) for rows in (x, np.repeat(x, weight, axis=0)))
    found, tried = chosen_number(_model, data, weight.astype(float), EM(), most=4)
    same, also = chosen_number(_model, repeated, None, EM(), most=4)
    assert found == same
    assert tried["n_components"] == also["n_components"]
    for column in ("log_density", "entropy", "score", "error"):
        assert np.allclose(tried[column], also[column], atol=1e-6)


def test_weights_that_sum_to_one_choose_too():
    x, _ = kinds(3)
    assert auto(max_components=3).fit(x, sample_weight=np.full(len(x), 1 / len(x))).n_components_ == 3


def test_no_sample_is_held_out_and_fitted():
    x, _ = kinds(2)
    data = _model(1).checked(torch.from_numpy(x))
    turns = list(number._turns(data, np.ones(len(x))))
    assert len(turns) == number.QUARTERS
    for turn in turns:
        together = torch.cat([turn.fitted.x, turn.held.x])
        assert len(together) == len(x) == len(together.unique(dim=0))
        assert len(turn.held.x) == len(x) // number.QUARTERS
    assert len(torch.cat([turn.held.x for turn in turns]).unique(dim=0)) == len(x)


def test_a_frame_with_categories_and_gaps():
    x, y = kinds(2, n_each=60)
    frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "kind": np.where(y == 0, "u", "v")})
    frame.loc[::7, "a"] = np.nan
    frame.loc[3::11, "kind"] = None
    mixture = auto(max_components=3).fit(frame)
    assert mixture.n_components_ == 2
    assert adjusted_rand_score(y, mixture.labels_) == 1


def test_categories_alone():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 100)
    names = np.array(["a", "b", "c"])
    frame = {f"c{i}": names[np.where(rng.random(200) < 0.95, y, 2)] for i in range(5)}
    assert auto(max_components=4).fit(frame).n_components_ == 2


def test_more_rows_and_warm_starts_keep_the_number():
    x, _ = kinds(3)
    mixture = auto(max_components=4).partial_fit(x)
    tried = mixture.selection_
    assert mixture.partial_fit(kinds(5)[0]).n_components_ == 3
    mixture.set_params(warm_start=True).fit(x[::2])
    assert (mixture.n_components_, mixture.selection_) == (3, tried)
    assert mixture.set_params(warm_start=False).fit(x[:40]).n_components_ == 1


def test_what_is_saved_has_the_number_and_the_record(tmp_path):
    mixture = auto(max_components=4).fit(kinds(3)[0])
    mixture.save_pretrained(tmp_path)
    for again in (hm.VAEMixture.from_pretrained(tmp_path), pickle.loads(pickle.dumps(mixture))):
        assert again.n_components == "auto"
        assert again.n_components_ == 3
        assert again.selection_ == mixture.selection_
    assert clone(mixture).get_params() == mixture.get_params()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_components": "many"}, "n_components: expected an integer > 0 or 'auto', got 'many'"),
        (
            {"hidden": (8,)},
            "n_components: expected an integer > 0, got 'auto' for a model that is trained by grad",
        ),
        ({"solver": "sgd"}, "n_components: expected an integer > 0, got 'auto' for a model that is trained by grad"),
        ({"max_components": 0}, "max_components: expected an integer > 0, got 0"),
        ({"max_components": "all"}, "max_components: expected an integer > 0, got 'all'"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        auto().set_params(**change).fit(kinds(2)[0])


def _model(n):
    leaf = hm.VAE(1, hm.LinearPosterior(), hm.MLP(()), hm.Gaussian("learned", "identity"))
    if n == 1:
        return hm.HMoEVAE(leaf, (2,), objective="marginal")
    tree = hm.Mixture.of(leaf, n, gate=hm.PosteriorGate(), balance=None, prior="learned")
    return hm.HMoEVAE(tree, (2,), objective="marginal")

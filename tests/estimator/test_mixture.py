"""VAEMixture: scikit-learn's own checks, and what it promises beyond them."""

import copy
import math
import os
import pickle
import re
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone, is_clusterer
from sklearn.datasets import load_breast_cancer, make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import hmoevae as hm
from hmoevae.errors import (
    ArgumentError,
    ArgumentTypeError,
    DataError,
    DeadLeafWarning,
    MissingExtraError,
    NonFiniteError,
    SpecError,
    VersionWarning,
)
from hmoevae.estimator import leaves, solvers
from hmoevae.nn.grouped import GroupedMLP

# scikit-learn's checks hand over arguments of wrong types on purpose.
pytestmark = [
    pytest.mark.usefixtures("as_users_call"),
    pytest.mark.filterwarnings("ignore::hmoevae.errors.ConvergenceWarning"),
]

TREE = hm.Mixture(
    children=(hm.VAE(2, likelihood=hm.Gaussian(mean="identity")), hm.Mixture.of(hm.VAE(3), 2)),
    balance=hm.Balance("kl", 1.0),
)


# A few epochs of gradients, which converge by accident only.
SMALL = {
    "solver": "sgd",
    "n_components": 3,
    "latent_dim": 2,
    "hidden": (32,),
    "max_iter": 5,
    "n_importance": 4,
    "device": "cpu",
}


def small(**changes):
    return hm.VAEMixture(**SMALL | changes)


def blobs(n=90):
    x, y = make_blobs(n_samples=n, centers=3, n_features=4, random_state=0)
    return StandardScaler().fit_transform(x), y


def weights(estimator):
    return torch.cat([p.detach().flatten() for p in estimator.model_.parameters()])


# What VAEMixture is known to fail, by the name of the check, each with its reason.
EXPECTED_FAILED_CHECKS: dict[str, str] = {
    "check_dataframe_column_names_consistency": "columns in another order are found by name",
    "check_estimator_sparse_array": "it asks how many classes what is no classifier has",
    "check_estimator_sparse_matrix": "it asks how many classes what is no classifier has",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Number of distinct clusters:sklearn.exceptions.ConvergenceWarning")  # repeated rows
@pytest.mark.filterwarnings("ignore::hmoevae.errors.ScaleWarning")  # some of the checks' data lie around 100
@pytest.mark.filterwarnings("ignore::hmoevae.errors.DeadLeafWarning")  # the checks' data need not fill ten clusters
@parametrize_with_checks(
    [hm.VAEMixture(), hm.VAEMixture(3, latent_dim=2), hm.VAEMixture("auto", max_components=2)],
    expected_failed_checks=lambda _: EXPECTED_FAILED_CHECKS,
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


ARRAY_API_CHECK = """
from sklearn.utils.estimator_checks import estimator_checks_generator
import hmoevae as hm
mixture = hm.VAEMixture(3, max_iter=5, n_importance=4, device="cpu")
checks = [c for _, c in estimator_checks_generator(mixture) if c.func.__name__ == "check_array_api_input"]
for check in checks:
    check(mixture)
print("ran", len(checks))
"""


# PyTorch 2.6 leaves a temporary folder to the interpreter's end, which says so; few epochs on noise teach gates little.
QUIET = ("-W", "ignore:Implicitly cleaning up", "-W", "ignore:information", "-W", "ignore:usage")


@pytest.mark.slow
def test_the_check_that_wants_a_process_of_its_own():
    """scipy reads SCIPY_ARRAY_API when it is imported; without it `check_array_api_input` is skipped."""
    run = subprocess.run(
        [sys.executable, "-W", "error", *QUIET, "-c", ARRAY_API_CHECK],
        env=os.environ | {"SCIPY_ARRAY_API": "1"},
        cwd=Path(hm.__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("ran ")
    assert run.stdout != "ran 0\n"


# --- what the methods give ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_finds_blobs_and_follows_the_model():
    x, y = blobs()
    mixture = small(max_iter=60, n_init=3, random_state=0)
    labels = mixture.fit_predict(x)
    assert adjusted_rand_score(y, labels) > 0.9
    assert is_clusterer(mixture)
    assert np.array_equal(labels, mixture.labels_)
    assert np.array_equal(labels, mixture.predict(x))
    model = mixture.model_
    samples = mixture.table_.encode(x)
    np.testing.assert_array_equal(mixture.predict_proba(x), model.predict_proba(samples).numpy())
    np.testing.assert_array_equal(mixture.transform(x)[:, :3], mixture.predict_proba(x))
    np.testing.assert_array_equal(mixture.transform(x)[:, 3:], model.encode(samples).numpy())
    assert mixture.n_iter_ == len(mixture.history_) == 60
    assert mixture.weights_.sum() == pytest.approx(1)
    assert mixture.score(x) == pytest.approx(mixture.score_samples(x).mean())


@pytest.mark.slow
def test_score_is_the_models_bound():
    """With many draws, the bound from shared draws is the bound from draws of each sample's own, in the mean."""
    x, _ = blobs()
    mixture = small(max_iter=30, n_importance=3000, random_state=0).fit(x)
    own = mixture.model_.score_samples(
        torch.from_numpy(x), n_importance=3000, generator=torch.Generator().manual_seed(1)
    )
    np.testing.assert_allclose(mixture.score_samples(x), own.numpy(), atol=0.2)
    assert mixture.score(x) == pytest.approx(own.mean().item(), abs=0.02)


def test_score_of_a_sample_depends_on_the_sample_alone():
    """Also across the batches that scoring goes in, and from call to call."""
    x, _ = blobs(1500)
    mixture = small(max_iter=1, random_state=0).fit(x)
    scores = mixture.score_samples(x)
    np.testing.assert_allclose(mixture.score_samples(x[::-1])[::-1], scores, rtol=1e-10)
    np.testing.assert_allclose(mixture.score_samples(x[1400:1401]), scores[1400:1401], rtol=1e-10)


def test_weights_are_the_shares_of_unequal_clusters():
    """However few steps there are to learn them in; a rare kind is not drawn more often than it occurs."""
    rng = np.random.default_rng(0)
    centres = np.repeat([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]], [180, 16, 4], axis=0)
    x = centres + rng.normal(0, 0.3, centres.shape)
    mixture = hm.VAEMixture(3, max_iter=20, random_state=0, device="cpu").fit((x - x.mean(0)) / x.std(0))
    np.testing.assert_allclose(np.sort(mixture.weights_), [0.02, 0.08, 0.9], atol=0.015)
    np.testing.assert_allclose(mixture.weights_, np.bincount(mixture.labels_) / 200, rtol=1e-6)


@pytest.mark.slow
def test_sample_follows_the_weights_and_the_density():
    x, _ = blobs()
    mixture = small(max_iter=60, random_state=0).fit(x)
    drawn, leaf = mixture.sample(3000)
    assert drawn.shape == (3000, 4)
    assert np.array_equal(leaf, np.sort(leaf))
    np.testing.assert_allclose(np.bincount(leaf, minlength=3) / 3000, mixture.weights_, atol=0.04)
    again, _ = mixture.sample(3000)
    assert np.array_equal(drawn, again)  # an integer random_state, as GaussianMixture has it
    np.testing.assert_allclose(drawn.std(0), x.std(0), atol=0.3)
    # Draws from p(x) keep the likelihood's noise: rows of one leaf differ by about its scale from their means.
    assert mixture.set_params(random_state=1).sample(3000)[0].std() != drawn.std()
    with pytest.raises(ArgumentError, match="n_samples: expected an integer > 0, got 0"):
        mixture.sample(0)


def test_any_tree():
    x, _ = blobs()
    x = 1 / (1 + np.exp(-x))
    mixture = small(tree=TREE, random_state=0).fit(x)
    assert mixture.model_.tree == TREE
    assert mixture.predict_proba(x).shape == (90, 3)
    assert mixture.transform(x).shape == (90, 6)
    names = [f"vaemixture_{name}{i}" for name in ("leaf", "latent") for i in range(3)]
    assert list(mixture.get_feature_names_out()) == names
    assert mixture.node_paths_ == ["root/0", "root/1/0", "root/1/1"]
    by_leaf = mixture.predict_proba(x)
    np.testing.assert_allclose(mixture.predict_proba(x, level=1), np.stack([by_leaf[:, 0], by_leaf[:, 1:].sum(1)], 1))
    assert set(mixture.predict(x, level=1)) <= {0, 1}
    assert mixture.score_samples(x).shape == (90,)
    assert clone(mixture).tree == TREE


@pytest.mark.slow
def test_score_puts_every_prior_with_its_own_leaf():
    """Leaves of two groups that alternate in the tree, with weights that differ."""
    thin, wide = (hm.VAE(1, hm.MLP(()), hm.MLP(()), hm.Gaussian(s, mean="identity")) for s in (0.5, 2.0))
    tree = hm.Mixture(children=(thin, wide, thin), prior="learned")
    x, _ = blobs()
    mixture = small(tree=tree, max_iter=1, n_importance=2000, random_state=0).fit(x)
    with torch.no_grad():
        mixture.model_.prior.logits.copy_(torch.tensor([-3.0, 0.0, 3.0]))
    own = mixture.model_.score_samples(torch.from_numpy(x), n_importance=2000)
    assert mixture.score(x) == pytest.approx(own.mean().item(), abs=0.05)


def test_a_lone_vae():
    x, _ = blobs()
    mixture = small(n_components=1).fit(x)
    assert isinstance(mixture.model_.tree, hm.VAE)
    assert set(mixture.predict(x)) == {0}
    assert mixture.sample(5)[0].shape == (5, 4)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["expected", "elbo", "marginal"])
def test_every_objective(objective):
    x, _ = blobs()
    mixture = small(objective=objective, random_state=0).fit(x)
    before = mixture.loss_
    assert mixture.set_params(max_iter=40).fit(x).loss_ < before
    assert mixture.model_.objective == objective
    prior = mixture.model_.prior.logits
    assert (prior is None) == (objective == "expected")


def test_type_of_the_data_is_that_of_the_results():
    x, _ = blobs()
    for dtype in (np.float32, np.float64):
        mixture = small().fit(x.astype(dtype))
        assert mixture.model_.dtype == torch.from_numpy(x.astype(dtype)).dtype
        for method in (mixture.transform, mixture.predict_proba, mixture.score_samples):
            assert method(x.astype(dtype)).dtype == dtype
            assert method(x.astype(np.float32)).dtype == np.float32


# --- clusters that stay empty ---------------------------------------------------------------------------------------


def two_far_away():
    """Two hundred and forty samples of one kind, and two that the gates' second cluster is for: a third has none."""
    x = np.random.default_rng(0).normal(size=(240, 4))
    return StandardScaler().fit_transform(np.concatenate([x, np.full((2, 4), [[30.0], [31.0]])]))


def test_empty_clusters_are_named_come_last_and_have_no_prior():
    x = two_far_away()
    mixture = small(n_components=9, max_iter=1, init="random", random_state=0)
    with pytest.warns(DeadLeafWarning, match="got none for .*root/8") as caught:
        mixture.fit(x)
    assert {warning.filename for warning in caught} == {__file__}
    counts = np.bincount(mixture.labels_, minlength=9)
    assert np.array_equal(counts, np.sort(counts)[::-1])
    np.testing.assert_allclose(mixture.weights_, counts / 242, rtol=1e-6)
    assert mixture.weights_[8] == 0
    assert np.array_equal(mixture.labels_, mixture.predict(x))
    assert set(mixture.sample(500)[1]) <= set(mixture.labels_)
    assert np.isfinite(mixture.score_samples(x)).all()
    again = pickle.loads(pickle.dumps(mixture))
    assert np.array_equal(again.weights_, mixture.weights_)
    assert np.isfinite(mixture.set_params(warm_start=True, max_iter=2).fit(x).loss_)


def test_leaves_that_change_places_are_the_same_leaves():
    x, _ = blobs()
    mixture = small(n_components=5, random_state=0, max_iter=20).fit(x)
    model, before = mixture.model_, copy.deepcopy(mixture.model_)
    order = [0, 2, 4, 1, 3]
    rows = copy.deepcopy(mixture.history_.rows)
    leaves.reorder_leaves_(model, mixture.history_, np.array(order))
    data = mixture.table_.encode(x)
    torch.testing.assert_close(model.predict_proba(data), before.predict_proba(data)[:, order])
    torch.testing.assert_close(model.prior.leaf_log_prob(), before.prior.leaf_log_prob()[order])
    noise = [torch.zeros(5, 2, len(x), dtype=torch.float64)]
    elbos = [m.experts.draw(data.t(), noise)[0].elbo() for m in (model, before)]
    torch.testing.assert_close(elbos[0], elbos[1][order])
    for row, old in zip(mixture.history_.rows, rows, strict=True):
        assert [row[f"usage/root/{i}"] for i in range(5)] == [old[f"usage/root/{i}"] for i in order]


def test_a_tree_keeps_the_places_of_its_leaves():
    x, _ = blobs()
    leaf = hm.VAE(2, hm.MLP((32,)), hm.MLP((32,)), hm.Gaussian(mean="identity"))
    tree = hm.Mixture.of(leaf, 3, gate=hm.MLP((32,)), prior="learned")
    orders = []
    for seed in range(4):
        mixture = small(tree=tree, random_state=seed).fit(x)
        assert np.array_equal(mixture.labels_, mixture.model_.predict(mixture.table_.encode(x)).numpy())
        orders.append(tuple(np.argsort(-np.bincount(mixture.labels_, minlength=3), kind="stable")))
    assert len(set(orders)) > 1


def test_of_several_trainings_the_one_that_is_kept_is_warned_of():
    """In one epoch from random weights each of these leaves some cluster empty, and alone says so."""
    x = two_far_away()
    mixture = small(n_components=9, max_iter=1, init="random", random_state=0)
    alone, kept = [], []
    for n_init, caught in ((1, alone), (4, kept)):
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            mixture.set_params(n_init=n_init).fit(x)
        caught += [warning.category for warning in raised]
    assert DeadLeafWarning in alone
    assert len(kept) == len(set(kept)), "each kind once, not once a training"


# --- training -------------------------------------------------------------------------------------------------------


def test_same_random_state_same_result_and_global_state_untouched():
    x, _ = blobs()
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (small(random_state=seed).fit(x) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.slow
def test_threads_that_fit_side_by_side_do_as_one_alone():
    x, _ = blobs(30)
    state = torch.get_rng_state()
    alone = small(max_iter=1, random_state=0).fit(x).loss_
    with ThreadPoolExecutor(4) as pool:
        losses = list(pool.map(lambda _: small(max_iter=1, random_state=0).fit(x).loss_, range(16)))
    assert losses == [alone] * 16
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_n_init_keeps_the_smallest_objective_and_never_reads_labels(monkeypatch):
    x, y = blobs()
    runs = []
    fit = solvers.fit_quietly

    def spy(model, data, *arguments, **options):
        history = fit(model, data, *arguments, **options)
        runs.append((model.evaluate(x, generator=torch.Generator().manual_seed(0))["marginal"], model))
        return history

    monkeypatch.setattr(solvers, "fit_quietly", spy)
    mixture = small(n_init=4, random_state=0).fit(x, y)
    assert len({loss for loss, _ in runs}) == 4
    assert (mixture.loss_, mixture.model_) == min(runs, key=lambda run: run[0])
    with_others = small(n_init=4, random_state=0).fit(x, y[::-1])
    assert torch.equal(weights(mixture), weights(with_others))


def test_warm_start_goes_on():
    x, _ = blobs()
    mixture = small(max_iter=20, random_state=0, warm_start=True).fit(x)
    model, before = mixture.model_, mixture.loss_
    mixture.set_params(max_iter=1).fit(x)
    assert mixture.model_ is model
    assert mixture.n_iter_ == 1
    assert mixture.loss_ < before + 0.5
    assert mixture.set_params(warm_start=False).fit(x).loss_ > before + 0.5  # one epoch from fresh weights
    mixture.set_params(warm_start=True)
    for other in ({"n_components": 4}, {"objective": "elbo"}):
        with pytest.raises(ArgumentError, match=r"warm_start: expected .* got another (tree|objective)$"):
            clone(mixture).fit(x).set_params(**other).fit(x)
    with pytest.raises(ValueError, match="X has 2 features, but VAEMixture is expecting 4 features"):
        mixture.fit(x[:, :2])


@pytest.mark.slow
def test_the_first_epoch_learns_the_clusters_of_k_means_unless_told_otherwise():
    """From fresh weights, gates leave one of these five groups to another's expert with some seeds."""
    x, y = make_blobs(400, n_features=4, centers=5, random_state=3)
    x = StandardScaler().fit_transform(x)
    mixture = hm.VAEMixture(5, latent_dim=1, hidden=(32,), max_iter=30, random_state=3, device="cpu").fit(x)
    assert adjusted_rand_score(y, mixture.predict(x)) > 0.8
    assert "start_gate" in mixture.history_.columns
    assert "start_gate" not in mixture.set_params(init="random").fit(x).history_.columns
    assert "start_gate" not in small(n_components=1, max_iter=1).fit(x).history_.columns
    with pytest.raises(ArgumentError, match="init: expected one of 'random', 'kmeans', 'umap', 'graph'"):
        mixture.set_params(init="k-means++").fit(x)


def test_a_warm_start_takes_the_precision_of_the_new_data():
    x, _ = blobs()
    mixture = small(max_iter=1, random_state=0, warm_start=True).fit(x.astype(np.float32))
    assert mixture.model_.dtype == torch.float32
    assert mixture.fit(x.astype(np.float64)).model_.dtype == torch.float64
    assert mixture.sample(2)[0].dtype == np.float64


def test_ctrl_c_keeps_what_there_is(monkeypatch):
    x, _ = blobs()
    steps = []
    forward = hm.HMoEVAE.forward

    def press(model, *args, **options):
        steps.append(model)
        if len(steps) == 5:  # an epoch has two
            raise KeyboardInterrupt
        return forward(model, *args, **options)

    monkeypatch.setattr(hm.HMoEVAE, "forward", press)
    mixture = small(n_init=5)
    with pytest.warns(UserWarning, match="Training interrupted by the user"):
        mixture.fit(x)
    assert mixture.n_iter_ == 2
    assert mixture.predict(x).shape == (90,)
    assert len(steps) == 5


def test_verbose_shows_progress(capsys):
    x, _ = blobs()
    small(max_iter=1).fit(x)
    assert capsys.readouterr().err == ""
    small(max_iter=1, verbose=1).fit(x)
    assert "epoch 1/1" in capsys.readouterr().err


# --- scikit-learn's machinery ---------------------------------------------------------------------------------------


def test_pickle_gives_an_equal_estimator():
    x, _ = blobs()
    mixture = small(random_state=0).fit(x)
    again = pickle.loads(pickle.dumps(mixture))
    assert again.get_params() == mixture.get_params()
    assert again.history_ == mixture.history_
    for method in ("predict", "predict_proba", "transform", "score_samples"):
        np.testing.assert_array_equal(getattr(again, method)(x), getattr(mixture, method)(x))
    np.testing.assert_array_equal(again.sample(7)[0], mixture.sample(7)[0])
    assert pickle.loads(pickle.dumps(small(tree=TREE))).tree == TREE


def older(mixture, *missing, version=None):
    """A pickle as a version without some parameters made it."""
    state = {name: value for name, value in mixture.__getstate__().items() if name not in missing}
    state["_hmoevae_version"] = version
    if version is None:
        del state["_hmoevae_version"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hm.VAEMixture, "__getstate__", lambda _: state)
        return pickle.dumps(mixture)


@pytest.mark.parametrize("version", [None, "0.0.9", "99.0"])
def test_a_pickle_of_another_version_is_named_and_works_with_defaults(version):
    x, _ = blobs()
    mixture = small(random_state=0, init="random", n_importance=7).fit(x)
    pickled = older(mixture, "init", "n_importance", version=version)
    named = "one of an unknown version" if version is None else f"one of {re.escape(version)}"
    message = (
        rf"VAEMixture: expected a pickle of hmoevae {re.escape(hm.__version__)}, got {named}, with the defaults of "
    )
    with pytest.warns(VersionWarning, match=f"{message}init, n_importance; fit again") as caught:
        again = pickle.loads(pickled)
    assert caught[0].filename == __file__
    assert (again.init, again.n_importance, again.max_iter) == ("kmeans", 64, 5)
    assert "_hmoevae_version" not in vars(again)
    assert clone(again).get_params() == again.get_params()
    assert repr(again) == repr(small(random_state=0, n_importance=64))
    assert np.array_equal(again.predict(x), mixture.predict(x))
    assert np.isfinite(again.score(x))
    pickle.loads(pickle.dumps(again))  # of this version now, so nothing is said


def test_a_pickle_from_before_tables_answers_as_its_model_did():
    """Its estimator has no `table_`, and its modules lack what models have since."""
    x, _ = blobs()
    mixture = small(random_state=0).fit(x)
    mixture.model_ = model = hm.HMoEVAE(mixture.model_.tree, (4,), objective="elbo").double()
    probabilities = model.predict_proba(torch.from_numpy(x)).numpy()
    del model.table, model.missing
    pickled = older(mixture, "table_", "solver", version=hm.__version__)
    with pytest.warns(
        VersionWarning, match=rf"one of an earlier {re.escape(hm.__version__)}, with the defaults of solver;"
    ):
        again = pickle.loads(pickled)
    np.testing.assert_allclose(again.predict_proba(x), probabilities, atol=1e-12)
    assert np.isfinite(again.score(x))
    assert again.means_.shape == (3, 4)


def test_a_pickle_of_this_version_says_nothing():
    for mixture in (small(), clone(small())):
        assert mixture.__getstate__()["_hmoevae_version"] == hm.__version__
        assert vars(pickle.loads(pickle.dumps(mixture))).keys() == vars(mixture).keys()


class Louder(GroupedMLP):
    """A network of somebody's own."""

    def forward(self, x):
        return 3 * super().forward(x)


def test_a_pickle_keeps_a_module_that_was_swapped_in_where_a_saved_model_would_not(tmp_path):
    x, _ = blobs()
    mixture = small(random_state=0).fit(x)
    mixture.model_.gates.groups[0].network.__class__ = Louder
    again = pickle.loads(pickle.dumps(mixture))
    assert np.array_equal(again.predict_proba(x), mixture.predict_proba(x))
    with pytest.raises(ArgumentError, match=r"model\.gates\.groups\.0\.network: expected GroupedMLP, .* got Louder"):
        again.model_.save_pretrained(tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pickle_of_a_model_on_an_accelerator_opens_without_one():
    x, _ = blobs()
    mixture = small(device="cuda", random_state=0).fit(x)
    assert mixture.model_.device.type == "cuda"
    assert mixture.model_.dtype == torch.float32
    again = pickle.loads(pickle.dumps(mixture))
    assert again.model_.device.type == "cpu"
    assert mixture.model_.device.type == "cuda"
    np.testing.assert_allclose(again.score_samples(x), mixture.score_samples(x), rtol=0.1)


@pytest.mark.slow
def test_pipeline_and_grid_search():
    x, _ = blobs()
    x = 100 * x + 1000
    pipeline = make_pipeline(StandardScaler(), small(max_iter=20, random_state=0))
    assert pipeline.fit_predict(x).shape == (90,)
    assert np.isfinite(pipeline.score(x))
    assert pipeline.transform(x).shape == (90, 5)
    assert list(pipeline.get_feature_names_out())[2:4] == ["vaemixture_leaf2", "vaemixture_latent0"]
    search = GridSearchCV(pipeline, {"vaemixture__n_components": [1, 3], "vaemixture__latent_dim": [1]}, cv=2)
    search.fit(x)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_params_["vaemixture__latent_dim"] == 1


def test_columns_scaled_to_the_unit_interval():
    """The largest value is 1 and a last digit, which is rounding; new rows may go further."""
    x = MinMaxScaler().fit_transform(load_breast_cancer().data)
    assert x.max() > 1
    mixture = hm.VAEMixture(2, likelihood=hm.Gaussian(), max_iter=2, random_state=0, device="cpu").fit(x)
    assert np.isfinite(mixture.score_samples(x)).all()
    new = x[:20] * 1.1
    for result in (mixture.predict(new), mixture.predict_proba(new), mixture.transform(new)):
        assert len(result) == 20
    with pytest.raises(ValueError, match=r"X: expected values in \[0, 1\] .* got values from 0 to 1.1"):
        mixture.score_samples(1.1 * x)


def test_pandas_in_and_out():
    x, _ = blobs()
    frame = pd.DataFrame(x, columns=["a", "b", "c", "d"], index=np.arange(90) + 7)
    mixture = small(random_state=0).set_output(transform="pandas").fit(frame)
    assert list(mixture.feature_names_in_) == ["a", "b", "c", "d"]
    latents = mixture.transform(frame)
    assert isinstance(latents, pd.DataFrame)
    assert list(latents.columns) == list(mixture.get_feature_names_out())
    assert list(latents.index) == list(frame.index)
    np.testing.assert_array_equal(latents, small(random_state=0).fit(x).transform(x))
    np.testing.assert_array_equal(mixture.predict(frame[["d", "a", "c", "b"]]), mixture.labels_)  # found by name
    with pytest.raises(DataError, match=r"X: expected a column 'a', got none"):
        mixture.predict(frame.rename(columns={"a": "z"}))
    means = mixture.means_
    assert isinstance(means, pd.DataFrame)
    assert (list(means.columns), len(means)) == (list(frame.columns), 3)
    assert isinstance(mixture.sample(2)[0], pd.DataFrame)


def test_a_warm_start_keeps_the_latents_that_were_chosen():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 30)) + 0.1 * rng.normal(size=(300, 30))
    mixture = hm.VAEMixture(2, random_state=0, device="cpu", warm_start=True).fit(x)
    tree, loss = mixture.model_.tree, mixture.loss_
    assert mixture.model_.experts.latent_dim > 8
    assert mixture.fit(x).model_.tree == tree
    assert mixture.loss_ <= loss + 1e-3


def test_not_fitted():
    x, _ = blobs()
    for method in ("predict", "predict_proba", "transform", "score_samples", "score"):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            getattr(small(), method)(x)
    with pytest.raises(NotFittedError, match="not fitted yet"):
        small().sample()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n_components": 0}, ArgumentError, "n_components: expected an integer > 0, got 0"),
        ({"n_components": 2.5}, ArgumentError, "n_components: expected an integer > 0, got 2.5"),
        ({"tree": "deep"}, ArgumentTypeError, "tree: expected a VAE or a Mixture, got str"),
        ({"latent_dim": -1}, SpecError, "VAE.latent_dim: expected an integer > 0, got -1"),
        ({"hidden": (0,)}, SpecError, "MLP.hidden[0]: expected an integer > 0, got 0"),
        ({"objective": "best"}, ArgumentError, "objective: expected one of 'expected', 'elbo', 'marginal'"),
        ({"max_iter": 0}, ArgumentError, "max_iter: expected an integer > 0, got 0"),
        ({"n_init": 0}, ArgumentError, "n_init: expected an integer > 0, got 0"),
        ({"batch_size": 0}, ArgumentError, "batch_size: expected an integer > 0, got 0"),
        ({"lr": math.nan}, ArgumentError, "lr: expected a finite number > 0, got nan"),
        ({"device": "gpu"}, ArgumentError, "device: expected 'auto', 'cpu' or an accelerator"),
        ({"likelihood": hm.Bernoulli()}, DataError, "X: expected values 0 or 1"),
        ({"n_components": 99}, DataError, "X: expected n_samples >= 99, the number of leaves, got n_samples = 90"),
    ],
)
def test_bad_parameters_are_refused_by_fit(change, error, message):
    x, _ = blobs()
    with pytest.raises(error, match=re.escape(message)):
        small(**change).fit(x)


def test_weights_that_the_last_step_spoils_are_no_result(monkeypatch):
    x, _ = blobs()
    fit = solvers.fit_quietly

    def spoil(model, data, *arguments, **options):
        history = fit(model, data, *arguments, **options)
        with torch.no_grad():
            model.experts.groups[0].decoder.layers[0].bias.fill_(math.nan)
        return history

    monkeypatch.setattr(solvers, "fit_quietly", spoil)
    with pytest.raises(NonFiniteError, match="loss: expected a finite loss after the last step, got nan"):
        small().fit(x)


def test_bad_n_importance_is_refused_by_score():
    x, _ = blobs()
    with pytest.raises(ArgumentError, match="n_importance: expected an integer > 0, got 0"):
        small(n_importance=0).fit(x).score(x)


@pytest.mark.slow
def test_nothing_is_said():
    """After five epochs some gates still answer all samples alike, and fit says so; this training is long enough."""
    x, _ = blobs()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert small(max_iter=300, tol=0.1, random_state=0).fit(x).converged_


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "hmoevae.estimator")
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn>=1\.6 \(in a clone: pip install -e '\.\[sklearn\]'"):
        hm.VAEMixture  # noqa: B018

"""VAEMixture on tables as they come: frames, gaps, units, weights, order of labels, bad input."""

import copy
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import StandardScaler

import hmoevae as hm
from hmoevae.errors import ConvergenceWarning, DataError
from hmoevae.estimator import latents, leaves

pytestmark = pytest.mark.usefixtures("as_users_call")


def blobs(n=90):
    return StandardScaler().fit_transform(make_blobs(n_samples=n, centers=3, n_features=4, random_state=0)[0])


def birds(n=120):
    """Two species: sizes of different scales, an island, a sex, a count, and gaps."""
    rng = np.random.default_rng(0)
    species = rng.integers(2, size=n)
    frame = pd.DataFrame(
        {
            "mass": 4000 + 1000 * species + 100 * rng.normal(size=n),
            "bill": 0.04 - 0.01 * species + 0.001 * rng.normal(size=n),
            "island": np.where(rng.random(n) < 0.1, "Dream", np.where(species == 1, "Biscoe", "Torgersen")),
            "sex": rng.choice(["f", "m"], n),
            "eggs": rng.poisson(2, n),
        },
        index=np.arange(n) + 5,
    )
    frame.loc[frame.index[:7], "sex"] = None
    frame.loc[frame.index[3:9], "mass"] = np.nan
    return frame, species


def fitted_birds(**options):
    frame, species = birds()
    return frame, species, hm.VAEMixture(2, random_state=0, device="cpu", **options).fit(frame)


@pytest.mark.slow
def test_a_frame_as_it_comes():
    frame, species, mixture = fitted_birds(kinds={"eggs": "count"})
    assert adjusted_rand_score(species, mixture.labels_) == 1
    assert mixture.converged_
    assert mixture.n_features_in_ == 5
    assert list(mixture.feature_names_in_) == list(frame)
    counts = np.bincount(mixture.labels_)
    assert counts[0] >= counts[1]
    np.testing.assert_allclose(mixture.weights_, counts / 120, atol=0.01)
    means = mixture.means_
    by_leaf = frame.groupby(mixture.labels_)[["mass", "bill"]].mean()
    np.testing.assert_allclose(means[["mass", "bill"]], by_leaf, rtol=1e-2)
    assert set(means["island"]) == {"Biscoe", "Torgersen"}
    rows, leaf = mixture.sample(4000)
    assert list(rows) == list(frame)
    assert (rows["eggs"] >= 0).all()
    assert set(rows["island"]) == {"Biscoe", "Torgersen", "Dream"}
    for i in (0, 1):
        np.testing.assert_allclose(rows["mass"][leaf == i].std(), frame["mass"][mixture.labels_ == i].std(), rtol=0.15)


def test_gaps_are_filled_and_other_cells_stay():
    frame, species, mixture = fitted_birds()
    filled = mixture.impute(frame)
    assert list(filled.index) == list(frame.index)
    assert not filled.isna().any(axis=None)
    known = frame.notna()
    assert (filled[known] == frame[known]).where(known, other=True).all(axis=None)
    gaps = frame["mass"].isna()
    assert np.abs(filled["mass"] - (4000 + 1000 * species))[gaps].max() < 300
    array = np.where(np.arange(90)[:, None] % 7 == np.arange(4), np.nan, blobs()).astype(np.float32)
    of_array = hm.VAEMixture(3, random_state=0, device="cpu").fit(array).impute(array)
    assert of_array.dtype == np.float32
    assert np.array_equal(of_array[~np.isnan(array)], array[~np.isnan(array)])


@pytest.mark.filterwarnings("ignore:X has feature names")
def test_what_fit_reads_as_an_array_is_filled_as_an_array():
    x = blobs()
    mixture = hm.VAEMixture(3, random_state=0, device="cpu").fit(x)
    x[3, 1] = np.nan
    filled = mixture.impute(x)
    assert np.array_equal(filled == x, ~np.isnan(x))
    for same in (x.tolist(), torch.from_numpy(x), pd.DataFrame(x, columns=list("abcd"))):
        assert np.array_equal(mixture.impute(same), filled)


@pytest.mark.parametrize("dtype", [int, float, np.float32])
def test_masked_cells_are_gaps(dtype):
    x = np.random.default_rng(0).integers(0, 9, (60, 3)).astype(dtype)
    x[::7, 1] = -99
    masked = np.ma.masked_equal(x, -99)
    mixture = hm.VAEMixture(1, device="cpu").fit(masked)
    assert mixture.table_ == hm.VAEMixture(1, device="cpu").fit(np.where(x == -99, np.nan, x.astype(float))).table_
    assert mixture.impute(masked)[::7, 1].min() > 0


@pytest.mark.filterwarnings("ignore::hmoevae.errors.ConvergenceWarning")
def test_gradients_leave_samples_of_weight_zero_out():
    x, far = blobs(400), np.arange(400) % 2 == 1
    without = hm.VAEMixture(2, hidden=(4,), max_iter=3, random_state=0, device="cpu").fit(x[~far])
    x[far] += 50
    weighted = copy.deepcopy(without).fit(x, sample_weight=~far)
    assert weighted.loss_ == without.loss_
    assert np.array_equal(weighted.labels_[~far], without.labels_)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::hmoevae.errors.ConvergenceWarning")
def test_gradients_learn_from_gaps_too():
    x, kinds = make_blobs(n_samples=90, centers=2, n_features=4, cluster_std=0.3, random_state=0)
    x[np.random.default_rng(0).random(x.shape) < 0.2] = np.nan
    options = {"hidden": (8,), "latent_dim": 1, "max_iter": 30, "batch_size": 30, "lr": 1e-2}
    mixture = hm.VAEMixture(2, random_state=0, device="cpu", **options).fit(x)
    assert mixture.history_.training is not None  # not EM
    assert adjusted_rand_score(kinds, mixture.labels_) > 0.85
    assert np.isfinite(mixture.score_samples(x)).all()
    filled = mixture.impute(x)
    assert np.array_equal(filled[~np.isnan(x)], x[~np.isnan(x)])
    centres = np.array([np.nanmean(x[kinds == kind], 0) for kind in range(2)])[kinds]
    gaps = np.isnan(x)
    assert np.median(np.abs(filled - centres)[gaps]) < 0.5


def test_rows_with_gaps_are_scored_by_what_is_there_also_where_training_had_none():
    x = blobs()
    mixture = hm.VAEMixture(3, random_state=0, device="cpu").fit(x)
    assert np.array_equal(mixture.impute(x), x)
    gaps = x.copy()
    gaps[:, 2] = np.nan
    others = [0, 1, 3]
    exact = np.logaddexp.reduce(
        [
            math.log(w) + multivariate_normal(m[others], c[np.ix_(others, others)]).logpdf(x[:, others])
            for w, m, c in _components(mixture)
        ]
    )
    np.testing.assert_allclose(mixture.score_samples(gaps), exact, rtol=1e-9)


def _components(mixture):
    """Weights, means and covariances in the units of the table, read off the model's parameters."""
    group, scale = mixture.model_.experts.groups[0], np.array([column.scale for column in mixture.table_.columns])
    loadings = group.decoder.last.matrices.detach().numpy() * scale[:, None]
    noise = group.likelihood.linear_features().scale.detach().numpy()[..., 0] * scale
    covariances = loadings @ loadings.swapaxes(1, 2) + np.stack([np.diag(row**2) for row in noise])
    return zip(mixture.weights_, mixture.means_, covariances, strict=True)


def test_densities_are_those_of_the_given_columns():
    """Of a mixture of Gaussians, whatever the scale of the columns."""
    x = blobs()
    scale, shift = np.array([1e-3, 1.0, 50.0, 1e4]), np.array([5.0, -20.0, 0.0, 1e6])
    plain, scaled = (hm.VAEMixture(3, random_state=0, device="cpu").fit(z) for z in (x, x * scale + shift))
    assert np.array_equal(plain.labels_, scaled.labels_)
    np.testing.assert_allclose(scaled.score(x * scale + shift), plain.score(x) - np.log(scale).sum(), rtol=1e-6)
    np.testing.assert_allclose(scaled.means_, plain.means_ * scale + shift, rtol=1e-4)
    exact = np.logaddexp.reduce([math.log(w) + multivariate_normal(m, c).logpdf(x) for w, m, c in _components(plain)])
    np.testing.assert_allclose(plain.score_samples(x), exact, rtol=1e-9)


def test_information_criteria_count_the_free_parameters_of_the_density():
    x = blobs()
    mixture = hm.VAEMixture(3, latent_dim=2, random_state=0, device="cpu").fit(x)
    n_free = 2 + 3 * (4 + 4 + 4 * 2 - 1)  # weights; means, noise, loadings up to a rotation
    log_likelihood = mixture.score_samples(x).sum()
    assert mixture.bic(x) == pytest.approx(-2 * log_likelihood + n_free * math.log(90))
    assert mixture.aic(x) == pytest.approx(-2 * log_likelihood + 2 * n_free)
    birds_mixture = fitted_birds(latent_dim=1)[2]
    # mass, bill and eggs are numbers: means, noise, loadings; islands have 2 free probabilities, sexes 1
    assert leaves.n_parameters(birds_mixture.model_) == 1 + 2 * (3 + 3 + 3 + 2 + 1)


def test_labels_are_ordered_by_size_whatever_the_seed():
    rng = np.random.default_rng(0)
    centres = np.repeat([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]], [20, 120, 60], axis=0)
    x = centres + rng.normal(0, 0.3, centres.shape)
    for seed in range(3):
        mixture = hm.VAEMixture(3, random_state=seed, device="cpu").fit(x)
        assert np.array_equal(mixture.labels_, np.repeat([2, 0, 1], [20, 120, 60]))
        np.testing.assert_allclose(mixture.weights_, [0.6, 0.3, 0.1], atol=1e-3)
        np.testing.assert_allclose(mixture.means_, [[9, 0], [0, 9], [0, 0]], atol=0.3)


@pytest.mark.filterwarnings("ignore::hmoevae.errors.ConvergenceWarning")
def test_integer_weights_equal_repeated_rows():
    """The start is given, because k-means draws rows."""
    x = blobs()
    weight = np.random.default_rng(0).integers(0, 4, len(x))
    same = {"warm_start": True, "random_state": 0, "device": "cpu", "tol": 1e-12, "max_iter": 5}
    first = hm.VAEMixture(3, **same).fit(x)
    weighted, repeated = copy.deepcopy(first).fit(x, sample_weight=weight), copy.deepcopy(first)
    repeated.fit(np.repeat(x, weight, axis=0))
    np.testing.assert_allclose(weighted.score_samples(x), repeated.score_samples(x), rtol=1e-9)
    np.testing.assert_allclose(weighted.weights_, repeated.weights_, rtol=1e-9)
    assert weighted.loss_ == pytest.approx(repeated.loss_, rel=1e-9)
    tables = [
        hm.VAEMixture(1, device="cpu").fit(*rows).table_ for rows in ((x, None, weight), (np.repeat(x, weight, 0),))
    ]
    for one, other in zip(*(table.columns for table in tables), strict=True):
        np.testing.assert_allclose(
            [one.mean, one.std, one.ties], [other.mean, other.std, other.ties], rtol=1e-9, atol=1e-12
        )


def test_latents_are_chosen_by_weights_as_by_repeated_rows():
    """Twelve factors explain these columns, so more than the eight to start from pay."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(*shape, generator=generator) for shape in ((300, 12), (12, 24), (300, 24))]
    x = draws[0] @ draws[1] + 0.1 * draws[2]
    weight = np.random.default_rng(0).integers(0, 4, len(x))

    def chosen(rows, weights=None):
        seen = []

        def make(latent_dim):
            expert = hm.VAE(latent_dim, hm.LinearPosterior(), hm.MLP(()), hm.Gaussian("learned", mean="identity"))
            model = hm.HMoEVAE(hm.Mixture.of(expert, 2, gate=hm.PosteriorGate()), (24,))
            seen.append(model)
            return model

        best = latents.chosen_latents(make, make(1).checked(rows), weights, hm.EM(), n_columns=24)
        return best, [
            model.score_samples(x).mean().item() for model in seen[2:]
        ]  # the first two are asked for their sizes

    weighted, repeated = chosen(x, weight.astype(float)), chosen(x.repeat_interleave(torch.from_numpy(weight), 0))
    assert weighted[0] == repeated[0] == 16
    assert weighted[1] == pytest.approx(repeated[1], abs=1e-3)


@pytest.mark.filterwarnings("ignore::hmoevae.errors.ConvergenceWarning")
def test_em_goes_on_from_the_weights_of_the_last_fit():
    x = blobs()
    mixture = hm.VAEMixture(3, max_iter=3, tol=0.0, warm_start=True, random_state=0, device="cpu").fit(x)
    whole = hm.VAEMixture(3, max_iter=6, tol=0.0, random_state=0, device="cpu").fit(x)
    mixture.fit(x)
    np.testing.assert_allclose(mixture.loss_, whole.loss_, rtol=1e-9)


def test_a_table_of_categories_alone_is_a_mixture_of_latent_classes():
    rng = np.random.default_rng(0)
    kind = rng.integers(2, size=200)
    flips = rng.random((200, 6)) < 0.1
    frame = pd.DataFrame(np.where(flips ^ kind[:, None].astype(bool), "yes", "no"), columns=list("abcdef"))
    frame.loc[:20, "c"] = None
    mixture = hm.VAEMixture(2, random_state=0, device="cpu").fit(frame)
    assert mixture.history_.training is None
    assert adjusted_rand_score(kind, mixture.labels_) > 0.9
    assert np.exp(mixture.score_samples(frame.dropna())).max() < 1
    assert set(mixture.impute(frame)["c"]) == {"yes", "no"}
    before = mixture.score(frame)
    assert mixture.partial_fit(frame).score(frame) == pytest.approx(before, abs=0.02)


def test_max_iter_that_is_too_small_is_said():
    x = blobs()
    with pytest.warns(ConvergenceWarning, match="max_iter: expected iterations until the loss stops falling, got 1"):
        mixture = hm.VAEMixture(3, max_iter=1, random_state=0, device="cpu").fit(x)
    assert not mixture.converged_


def test_a_tree_is_fitted_in_closed_form_too():
    frame, species = birds()
    table = hm.Table.of(frame)
    leaf = hm.VAE(1, hm.LinearPosterior(), hm.MLP(()), table.likelihood())
    two = hm.Mixture.of(leaf, 2, gate=hm.PosteriorGate(), prior="learned")
    tree = hm.Mixture.of(two, 2, gate=hm.PosteriorGate(), prior="learned")
    mixture = hm.VAEMixture(tree=tree, random_state=0, device="cpu").fit(frame)
    assert mixture.history_.training is None
    assert mixture.table_.columns[0].std > 1  # standardised, because the leaves have the likelihood of the table
    assert adjusted_rand_score(species, mixture.predict(frame, level=1)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": "newton"}, "solver: expected one of 'auto', 'em', 'sgd', got 'newton'"),
        ({"solver": "em", "hidden": (3,)}, "root/0.encoder: expected LinearPosterior()"),
        ({"tol": -1.0}, "tol: expected a finite number >= 0, got -1.0"),
    ],
)
def test_a_solver_that_cannot_be_used(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        hm.VAEMixture(3, device="cpu", **change).fit(blobs())


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mass": np.inf}, "X['mass']: expected finite numbers, got inf in 120 of 120 rows"),
        ({"mass": np.nan}, "X['mass']: expected a cell that is not missing (leave the column out), got gaps only"),
        ({"island": [f"i{i}" for i in range(120)]}, "X['island']: expected a category for two rows or more"),
    ],
)
def test_columns_that_cannot_be_used_are_named(change, message):
    with pytest.raises(DataError, match=re.escape(message)):
        hm.VAEMixture(2, device="cpu").fit(birds()[0].assign(**change))


@pytest.mark.parametrize("count", [-1.0, 0.5])
def test_counts_are_integers_that_are_not_negative(count):
    frame, _ = birds()
    wrong = frame.assign(eggs=[count] + [1.0] * 119)
    for fitted in (hm.VAEMixture(2, kinds={"eggs": "count"}, device="cpu"), fitted_birds(kinds={"eggs": "count"})[2]):
        with pytest.raises(DataError, match=re.escape(f"X['eggs']: expected counts: integers >= 0, got {count} in 1")):
            fitted.score_samples(wrong) if hasattr(fitted, "model_") else fitted.fit(wrong)


def test_a_constant_column_tells_nothing():
    frame, species = birds()
    mixture = hm.VAEMixture(2, random_state=0, device="cpu").fit(frame.assign(year=2007))
    assert adjusted_rand_score(species, mixture.labels_) == 1
    np.testing.assert_allclose(mixture.means_["year"], 2007)


def test_later_frames_are_checked_by_name():
    frame, _, mixture = fitted_birds()
    shuffled = frame[frame.columns[::-1]].assign(note="kept out")
    np.testing.assert_array_equal(mixture.predict_proba(shuffled), mixture.predict_proba(frame))
    with pytest.raises(DataError, match=r"X: expected a column 'sex', got none"):
        mixture.predict(frame.drop(columns="sex"))
    with pytest.raises(DataError, match=r"X\['island'\]: expected one of the 3 categories .* got 'Anvers'"):
        mixture.score(frame.assign(island="Anvers"))
    twice = pd.concat([frame, frame[["mass"]]], axis=1)
    with pytest.raises(DataError, match="X: expected column names that differ, got 'mass' 2 times"):
        mixture.predict(twice)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.full(90, -1.0), "sample_weight: expected finite numbers >= 0, not all zero"),
        (np.zeros(90), "sample_weight: expected finite numbers >= 0, not all zero"),
        (np.full(90, np.nan), "sample_weight: expected finite numbers >= 0, not all zero"),
        (np.ones(3), "sample_weight: expected one per sample, (90,), got (3,)"),
    ],
)
def test_weights_that_cannot_be_used(weight, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        hm.VAEMixture(3, device="cpu").fit(blobs(), sample_weight=weight)

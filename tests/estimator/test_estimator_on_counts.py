"""VAEMixture on counts."""

import numpy as np
import pytest
from scipy.stats import nbinom
from sklearn.metrics import adjusted_rand_score

import hmoevae as hm
from hmoevae.errors import ArgumentError, DataError


def cells(n: int = 240, genes: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Counts of three kinds of cells whose totals differ tenfold, and the kinds."""
    rng = np.random.default_rng(seed)
    kinds = np.repeat([0, 1, 2], [n // 2, n // 3, n - n // 2 - n // 3])
    rates = rng.dirichlet(np.full(genes, 0.5), 3)[kinds] * rng.uniform(50, 500, (n, 1))
    return rng.negative_binomial(4, 4 / (4 + rates)).astype(float), kinds


def mixture(k: int = 3, **options) -> hm.VAEMixture:
    return hm.VAEMixture(k, **{"likelihood": "counts", "random_state": 0, "device": "cpu", **options})


def test_counts_are_fitted_in_closed_form_and_their_kinds_found():
    x, kinds = cells()
    fitted = mixture().fit(x)
    assert fitted.history_.training is None  # EM's
    assert fitted.model_.plan.expert_groups[0].spec.latent_dim == 1
    assert adjusted_rand_score(kinds, fitted.labels_) > 0.95
    assert fitted.weights_ == pytest.approx([1 / 2, 1 / 3, 1 / 6], abs=0.02)


def test_counts_are_negative_binomial_given_the_median_total():
    x, _ = cells()
    totals = x.sum(1)
    lower_median = np.sort(totals)[len(x) // 2 - 1]
    fitted = mixture(1).fit(x)
    assert fitted.model_.plan.expert_groups[0].spec.likelihood == hm.NegativeBinomial(total=lower_median)
    size = np.exp(-fitted.model_.experts.groups[0].likelihood.log_dispersion.detach().numpy()[0])
    rate = fitted.means_[0] / fitted.means_[0].sum() * totals[:, None]
    expected = nbinom.logpmf(x, size, size / (size + rate)).sum(1)
    assert fitted.score_samples(x) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("likelihood", [hm.Poisson(), hm.NegativeBinomial(), hm.NegativeBinomial(total=100)])
def test_other_likelihoods_of_counts_have_a_closed_form_too(likelihood):
    x, kinds = cells()
    fitted = mixture(likelihood=likelihood).fit(x)
    assert fitted.history_.training is None
    if likelihood == hm.NegativeBinomial(total=100):
        assert adjusted_rand_score(kinds, fitted.labels_) > 0.95


@pytest.mark.filterwarnings("ignore::hmoevae.errors.ConvergenceWarning")
def test_a_latent_dim_asks_for_gradients():
    x, _ = cells(60, 8)
    assert mixture(latent_dim=2, max_iter=2).fit(x).history_.training is not None
    assert mixture(latent_dim=2, solver="em").fit(x).history_.training is None


def test_weights_equal_repeated_rows():
    x, _ = cells(80, 8)
    weights = np.random.default_rng(0).integers(0, 4, len(x))
    weighted, repeated = mixture(2).fit(x, sample_weight=weights), mixture(2).fit(np.repeat(x, weights, axis=0))
    assert weighted.model_.tree == repeated.model_.tree
    assert weighted.loss_ == pytest.approx(repeated.loss_, abs=1e-9)


def test_a_warm_start_keeps_the_typical_total(tmp_path):
    x, _ = cells()
    fitted = mixture(warm_start=True).fit(x)
    tree = fitted.model_.tree
    assert fitted.fit(2 * x).model_.tree == tree
    fitted.save_pretrained(tmp_path)
    assert (hm.VAEMixture.from_pretrained(tmp_path).predict(x) == fitted.predict(x)).all()


@pytest.mark.parametrize(
    ("options", "x", "error", "words"),
    [
        ({"likelihood": "count"}, np.ones((5, 2)), ArgumentError, "likelihood: expected .*'counts'.*, got 'count'"),
        ({}, np.array([[1.0, 2.5]] * 5), DataError, "whole numbers"),
        ({}, np.array([[1.0, -1.0]] * 5), DataError, "whole numbers"),
    ],
)
def test_bad_input(options, x, error, words):
    with pytest.raises(error, match=words):
        mixture().set_params(**options).fit(x)

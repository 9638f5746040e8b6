"""Moments and factors against plain formulas of conditional Gaussians."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal

from hmoevae.em.covariances import first_factors, next_factors, pulled
from hmoevae.em.moments import Factors, filled_in, moments


def a_problem(seed: int, n: int = 7, d: int = 4, q: int = 2) -> tuple[torch.Tensor, torch.Tensor, Factors]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    x = normal(n, d)
    x[torch.rand(n, d, generator=generator) < 0.4] = torch.nan
    return x, normal(n).abs(), Factors(normal(d), normal(d, q), normal(d).exp())


def test_moments_without_gaps_are_numpys() -> None:
    x, weight, _ = a_problem(0)
    x = x.nan_to_num(0.5)
    found = moments(x, weight)
    torch.testing.assert_close(found.mean.numpy(), np.average(x, axis=0, weights=weight))
    torch.testing.assert_close(found.covariance.numpy(), np.cov(x.T, aweights=weight, ddof=0))
    assert found.weight == weight.sum()


@given(st.integers(0, 10_000))
def test_gaps_are_filled_by_the_conditional_gaussian(seed: int) -> None:
    x, weight, factors = a_problem(seed)
    filled, within = filled_in(x, weight, factors)
    covariance, expected = factors.covariance, torch.zeros_like(within)
    for row, result, w in zip(x, filled, weight, strict=True):
        gap, seen = row.isnan(), ~row.isnan()
        to_gap = covariance[gap][:, seen] @ torch.linalg.inv(covariance[seen][:, seen])
        mean = factors.mean[gap] + to_gap @ (row[seen] - factors.mean[seen])
        torch.testing.assert_close(result[gap], mean)
        assert torch.equal(result[seen], row[seen])
        conditional = covariance[gap][:, gap] - to_gap @ covariance[seen][:, gap]
        expected[gap.outer(gap)] += w * conditional.flatten()
    torch.testing.assert_close(within, expected)


def test_more_samples_than_are_filled_at_a_time_are_filled_too() -> None:
    x, weight, factors = a_problem(2)
    many = moments(x.repeat(300, 1), weight.repeat(300), factors)
    for found, expected in zip(many, moments(x, 300 * weight, factors), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_leaf_without_weight_has_finite_moments() -> None:
    x, weight, factors = a_problem(1)
    assert all(part.isfinite().all() for part in moments(x, 0 * weight, factors))


def test_the_first_factors_are_probabilistic_principal_components() -> None:
    x = torch.randn(50, 5, dtype=torch.float64)
    covariance = moments(x, torch.ones(50, dtype=torch.float64)).covariance
    loadings, noise = first_factors(covariance.unsqueeze(0), 2, torch.full((1, 5), 1e-6, dtype=torch.float64))
    values = torch.linalg.eigvalsh(covariance).flip(0)
    leading = torch.linalg.eigvalsh(loadings[0] @ loadings[0].T).flip(0)[:2]
    torch.testing.assert_close(leading, values[:2] - values[2:].mean())
    torch.testing.assert_close((loadings[0] @ loadings[0].T + noise[0].diag()).diagonal(), covariance.diagonal())


@pytest.mark.parametrize(
    "n_latents", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(6, marks=pytest.mark.slow)]
)
def test_factors_reach_the_likelihood_of_scikit_learns_factor_analysis(n_latents: int) -> None:
    from sklearn.decomposition import FactorAnalysis

    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, n_latents)) @ rng.normal(size=(n_latents, 7)) + 0.5 * rng.normal(size=(300, 7))
    peer = FactorAnalysis(n_latents, tol=1e-8, max_iter=5000).fit(x)
    found = moments(torch.from_numpy(x), torch.ones(300, dtype=torch.float64))
    floor = torch.full((1, 7), 1e-6, dtype=torch.float64)
    factors = first_factors(found.covariance.unsqueeze(0), n_latents, floor)
    for _ in range(2000):
        factors = next_factors(found.covariance.unsqueeze(0), *factors, floor)
    fitted = Factors(found.mean, factors[0][0], factors[1][0]).covariance
    score = MultivariateNormal(found.mean, fitted).log_prob(torch.from_numpy(x)).mean()
    assert float(score) == pytest.approx(peer.score(x), abs=2e-3)


def test_noise_keeps_its_floor() -> None:
    covariance = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)).unsqueeze(0)
    floor = torch.full((1, 2), 0.01, dtype=torch.float64)
    _, noise = next_factors(covariance, *first_factors(covariance, 1, floor), floor)
    assert noise[0, 1] == 0.01


@pytest.mark.parametrize("strength", [0.0, 10.0])
def test_small_leaves_are_pulled_more(strength: float) -> None:
    own = torch.stack([torch.eye(2) * 2.0, torch.eye(2) * 6.0, torch.zeros(2, 2)]).double()
    weights = torch.tensor([10.0, 30.0, 0.0], dtype=torch.float64)
    found = pulled(own, weights, strength)[:, 0, 0].tolist()
    if strength:
        assert found == pytest.approx([3.5, 5.75, 5.0])  # the mean within leaves is 5
    else:
        assert found == pytest.approx([2.0, 6.0, 0.0])

"""fit_em: the likelihood rises, weights repeat rows, gaps and categories, trees, and what it refuses."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

import hmoevae as hm
from hmoevae.em.fitting import features_of
from hmoevae.em.leaves import MStep

NUMBER = hm.Gaussian("learned", "identity")


def linear(latent_dim: int = 2, likelihood: hm.Likelihood = NUMBER) -> hm.VAE:
    return hm.VAE(latent_dim, hm.LinearPosterior(), hm.MLP(()), likelihood)


def mixture_of(leaf: hm.VAE, n: int = 3, **options: object) -> hm.Mixture:
    return hm.Mixture.of(leaf, n, gate=hm.PosteriorGate(), **{"balance": None, "prior": "learned", **options})


def model_of(tree: hm.VAE | hm.Mixture, d: int, *, missing: bool = False) -> hm.HMoEVAE:
    return hm.HMoEVAE(tree, (d,), objective="marginal", missing=missing)


def blobs(n: tuple[int, ...] = (60, 30, 15), d: int = 4, apart: float = 6.0, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(m, d)) @ rng.normal(size=(d, d)) * 0.5 + apart * i for i, m in enumerate(n)]
    return torch.from_numpy(np.concatenate(parts))


def test_without_a_prior_every_iteration_raises_the_likelihood() -> None:
    x = blobs(apart=1.0)
    history = hm.fit_em(model_of(mixture_of(linear()), 4), x, hm.EM(strength=0.0, tol=0.0, max_iter=40))
    assert np.diff(history["loss"]).max() < 1e-9
    assert len(history) == 40
    assert history.converged is False


def test_with_enough_factors_it_reaches_the_likelihood_of_a_gaussian_mixture() -> None:
    x = blobs()
    model = model_of(mixture_of(linear(4)), 4).double()
    history = hm.fit_em(model, x, hm.EM(strength=0.0, tol=1e-7, max_iter=2000))
    peer = GaussianMixture(3, tol=1e-7, max_iter=500, random_state=0).fit(x)
    assert history.converged
    assert -history["loss"][-1] == pytest.approx(peer.score(x), abs=0.01)
    assert float(model.score_samples(x).mean()) == pytest.approx(-history["loss"][-1], abs=1e-9)
    assert sorted(model.prior.leaf_log_prob().exp().tolist()) == pytest.approx(sorted(peer.weights_), abs=1e-3)


def test_documents_start_from_what_few_of_them_share() -> None:
    """A fifth of the words tell topics apart; the others are common, and differ a lot from document to document."""
    rng = np.random.default_rng(0)
    topic = np.arange(300) % 3
    rates = rng.gamma(0.3, 2.0, (300, 60))
    rare = np.kron(np.eye(3), np.full(4, 0.8))[topic] + 0.02
    counts = torch.from_numpy(rng.poisson(np.concatenate([rates, rare], 1))).double()
    model = model_of(mixture_of(linear(1, hm.NegativeBinomial(total=40))), 72).double()
    weight = torch.ones(300, dtype=torch.float64)
    starts = features_of(MStep(model, counts, weight, 0.0))
    assert [start.shape[1] for start in starts] == [72, 72, 50]
    assert starts[-1].norm(dim=1).numpy() == pytest.approx(np.ones(300))
    of_rates = model_of(mixture_of(linear(1, hm.Poisson())), 72).double()
    assert len(features_of(MStep(of_rates, counts, weight, 0.0))) == 2
    hm.fit_em(model, counts)
    assert adjusted_rand_score(topic, model.predict(counts)) > 0.8


@pytest.mark.slow
def test_integer_weights_equal_repeated_rows() -> None:
    x = blobs()
    weight = torch.arange(len(x)) % 3
    found, repeated = model_of(mixture_of(linear()), 4).double(), model_of(mixture_of(linear()), 4).double()
    hm.fit_em(found, x, hm.EM(tol=1e-10, max_iter=500), sample_weight=weight)
    hm.fit_em(repeated, x.repeat_interleave(weight, 0), hm.EM(tol=1e-10, max_iter=500))
    torch.testing.assert_close(found.score_samples(x), repeated.score_samples(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("column", [1, 4], ids=["gap of a number", "standardised count"])
def test_starts_count_weights_as_repeated_rows(column: int) -> None:
    x = torch.cat([blobs(), torch.arange(105.0, dtype=torch.float64).unsqueeze(1) % 7], 1)
    x[::5, 1] = torch.nan
    weight = torch.arange(len(x)) % 3
    x[weight == 0, column] *= 100  # rows that count for nothing
    model = model_of(linear(2, hm.Columns.of(*[NUMBER] * 4, hm.Poisson())), 5, missing=True).double()
    steps = [
        MStep(model, samples, counts.double(), 1.0)
        for samples, counts in ((x, weight), (x.repeat_interleave(weight, 0), torch.ones(int(weight.sum()))))
    ]
    for weighted, repeated in zip(*map(features_of, steps), strict=True):
        torch.testing.assert_close(weighted.repeat_interleave(weight, 0), repeated)


def test_where_new_tensors_go_does_not_matter() -> None:
    x = torch.cat([blobs(), (torch.arange(105).unsqueeze(1) % 7).double()], 1)
    x[::5, 1] = torch.nan
    model = model_of(linear(2, hm.Columns.of(*[NUMBER] * 4, hm.Poisson())), 5, missing=True)
    with torch.device("meta"):  # whose tensors nothing can be read from
        assert hm.fit_em(model, x).converged


def test_a_model_that_allows_gaps_learns_the_same_where_there_are_none() -> None:
    x = blobs()
    one, other = model_of(mixture_of(linear()), 4), model_of(mixture_of(linear()), 4, missing=True)
    losses = [hm.fit_em(model, x)["loss"] for model in (one, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


def test_gaps_hardly_move_the_means_of_clusters() -> None:
    x = blobs((200, 100, 100))
    holes = x.clone()
    holes[torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.3] = torch.nan
    whole, partly = model_of(mixture_of(linear()), 4), model_of(mixture_of(linear()), 4, missing=True)
    hm.fit_em(whole, x)
    history = hm.fit_em(partly, holes)
    assert history.converged
    means = [torch.sort(model.experts.groups[0].decoder.last.bias[:, 0]).values for model in (whole, partly)]
    torch.testing.assert_close(*means, atol=0.25, rtol=0)


def test_a_row_and_a_column_without_any_cell_do_no_harm() -> None:
    x = blobs()
    x[0], x[:, 1] = torch.nan, torch.nan
    history = hm.fit_em(model_of(mixture_of(linear()), 4, missing=True), x)
    assert np.isfinite(history["loss"]).all()


def test_outcomes_that_are_no_numbers_get_their_shares() -> None:
    numbers = blobs((60, 40), d=2)
    leaf = torch.tensor([0] * 60 + [1] * 40)
    rng = np.random.default_rng(1)
    colour = torch.from_numpy(np.where(leaf == 0, rng.choice(3, 100, p=[0.8, 0.2, 0.0]), 2))
    coin = torch.from_numpy(rng.random(100) < np.where(leaf == 0, 0.9, 0.1))
    eggs = torch.from_numpy(rng.poisson(np.where(leaf == 0, 1.0, 9.0)))
    x = torch.cat([numbers, torch.stack([colour, coin, eggs], 1)], 1)
    columns = hm.Columns.of(NUMBER, NUMBER, hm.Categorical(3), hm.Bernoulli(), hm.Poisson())
    model = model_of(mixture_of(linear(1, columns), 2), 5)
    hm.fit_em(model, x)
    found = model.predict(x)
    first = int(found[0])
    assert found.eq(first).eq(leaf == 0).all()
    group = model.experts.groups[0]
    expected = group.likelihood.statistics(group.decoder.last.bias.detach().unsqueeze(2))
    at = {"colour": 2, "coin": 5, "eggs": 6}
    share = float((colour[leaf == 0] == 0).double().mean())
    overall = float((colour == 0).double().mean())
    assert float(expected[first, at["colour"]]) == pytest.approx((60 * share + overall) / 61, abs=1e-4)
    assert float(expected[first, at["eggs"]]) == pytest.approx(
        (float(eggs[:60].sum()) + float(eggs.double().mean())) / 61, abs=1e-3
    )


def test_a_tree_of_two_levels_and_a_lone_leaf() -> None:
    x = blobs((40, 40, 40, 40))
    tree = hm.Mixture(
        children=(mixture_of(linear(), 2), mixture_of(linear(1), 2)),
        gate=hm.PosteriorGate(),
        balance=None,
        prior="learned",
    )
    model = model_of(tree, 4)
    hm.fit_em(model, x)
    assert model.predict(x).bincount().tolist() == [40] * 4
    assert model.predict(x, level=1).bincount().tolist() == [80, 80]
    lone = model_of(linear(), 4)
    assert hm.fit_em(lone, x).converged


@pytest.mark.slow
def test_more_runs_keep_the_best() -> None:
    x = blobs(apart=1.0)
    losses = [hm.fit_em(model_of(mixture_of(linear()), 4), x, hm.EM(n_init=n))["loss"][-1] for n in (1, 5)]
    alone = [hm.fit_em(model_of(mixture_of(linear()), 4), x, hm.EM(seed=seed))["loss"][-1] for seed in range(5)]
    assert min(alone) <= losses[1] <= min(alone) + hm.EM().tol
    assert losses[1] <= losses[0]


def test_what_has_no_closed_form_is_refused_with_its_place() -> None:
    x = blobs()
    learned = hm.Mixture.of(linear(), 2, balance=None)
    with pytest.raises(hm.errors.SpecError, match=r"^root\.gate: expected PosteriorGate\(\).*hmoevae.fit.*got MLP"):
        hm.fit_em(hm.HMoEVAE(learned, (4,)), x)
    with pytest.raises(hm.errors.SpecError, match=r"^root\.encoder: expected LinearPosterior\(\)"):
        hm.fit_em(hm.HMoEVAE(hm.VAE(2, likelihood=NUMBER), (4,)), x)
    with pytest.raises(hm.errors.ArgumentError, match="likelihood: expected learned scales"):
        hm.fit_em(hm.HMoEVAE(linear(2, hm.Gaussian(0.5, "identity")), (4,)), x)
    mixed = hm.Columns.of(NUMBER, NUMBER, NUMBER, hm.ZeroInflated(hm.Poisson()))
    with pytest.raises(hm.errors.ArgumentError, match=r"likelihood: expected one with a closed form.*ZeroInflated"):
        hm.fit_em(hm.HMoEVAE(linear(2, mixed), (4,)), torch.cat([x[:, :3], torch.ones(len(x), 1)], 1))


def test_bad_data_and_options_are_named() -> None:
    model = model_of(mixture_of(linear()), 4)
    with pytest.raises(hm.errors.DataError, match="data: expected 3 samples or more, the number of leaves, got 2"):
        hm.fit_em(model, blobs()[:2])
    with pytest.raises(hm.errors.DataError, match="finite"):
        hm.fit_em(model, torch.full((5, 4), torch.nan))
    with pytest.raises(hm.errors.DataError, match="sample_weight"):
        hm.fit_em(model, blobs(), sample_weight=torch.zeros(105))
    with pytest.raises(hm.errors.ArgumentError, match="strength"):
        hm.EM(strength=-1)
    with pytest.raises(
        hm.errors.ArgumentTypeError, match=r"max_iter: expected this option in the argument em: EM\(max_iter"
    ):
        hm.fit_em(model, blobs(), max_iter=3)  # type: ignore[call-arg]


def test_weights_of_a_model_in_float32_and_global_random_state_are_kept() -> None:
    model, before = model_of(mixture_of(linear()), 4), torch.get_rng_state()
    hm.fit_em(model, blobs())
    assert model.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), before)

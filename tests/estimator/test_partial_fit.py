"""VAEMixture.partial_fit and hmoevae.em.step_em: batches one after another, against the fit of all at once."""

import copy

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

import hmoevae as hm
from hmoevae.em import EM, Step, fit_em, step_em

pytestmark = pytest.mark.usefixtures("as_users_call")


def stream(n, seed):
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    centres, mix = np.array([[0, 0, 0], [6, 0, 3], [0, 8, -3]]), np.array([[1, 0.5, 0], [0, 1, 0.3], [0, 0, 1]])
    return centres[kind] + rng.normal(size=(n, 3)) @ mix, kind


def test_a_whole_step_is_an_iteration_of_em():
    x = torch.from_numpy(stream(300, 0)[0])
    x = (x - x.mean(0)) / x.std(0)
    leaf = hm.VAE(1, hm.LinearPosterior(), hm.MLP(()), hm.Gaussian("learned", "identity"))
    model = hm.HMoEVAE(hm.Mixture.of(leaf, 3, gate=hm.PosteriorGate(), prior="learned"), (3,), objective="marginal")
    model = model.double()
    fit_em(model, x, EM(max_iter=5, tol=0.0))
    other = copy.deepcopy(model)
    fit_em(model, x, EM(max_iter=1, tol=0.0, init="model"))
    before = -other.score_samples(x).mean().item()
    assert step_em(other, x, Step(1.0, len(x))) == pytest.approx(before)
    for one, same in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, same)
    step_em(other, x, Step(0.0, len(x)))  # stays where it is, but for the M-step of its own covariances
    assert -other.score_samples(x).mean() < before + 0.02


def test_batches_reach_what_one_fit_reaches():
    x, kind = stream(6000, 0)
    held, _ = stream(2000, 1)
    whole = hm.VAEMixture(3, latent_dim=1, random_state=0, device="cpu").fit(x)
    first = hm.VAEMixture(3, latent_dim=1, random_state=0, device="cpu").fit(x[:200])
    parts = copy.deepcopy(first)
    for batch in np.split(x[200:], 29):
        parts.partial_fit(batch)
    assert (parts.n_steps_, parts.n_samples_seen_) == (29, 6000)
    assert parts.labels_.shape == (200,)
    assert first.score(held) < parts.score(held)
    assert parts.score(held) == pytest.approx(whole.score(held), abs=0.01)
    np.testing.assert_allclose(parts.weights_, whole.weights_, atol=0.03)
    assert adjusted_rand_score(kind, parts.predict(x)) > 0.98


def test_the_first_call_is_a_fit():
    x, _ = stream(300, 0)
    one, other = (hm.VAEMixture(3, random_state=0, device="cpu") for _ in range(2))
    assert one.partial_fit(x).score(x) == other.fit(x).score(x)
    assert np.array_equal(one.table_.columns, other.table_.columns)


def test_weights_count_as_repeated_samples():
    x, _ = stream(200, 0)
    weight = np.random.default_rng(0).integers(0, 4, 100)
    first = hm.VAEMixture(3, random_state=0, device="cpu").fit(x[:100])
    weighted = copy.deepcopy(first).partial_fit(x[100:], sample_weight=weight)
    repeated = copy.deepcopy(first).partial_fit(np.repeat(x[100:], weight, axis=0))
    assert weighted.n_samples_seen_ == repeated.n_samples_seen_
    np.testing.assert_allclose(weighted.score_samples(x), repeated.score_samples(x), rtol=1e-9)


def test_categories_and_gaps_go_on_too():
    rng = np.random.default_rng(0)

    def frame(n):
        x, kind = stream(n, rng.integers(1000))
        x[rng.random(x.shape) < 0.1] = np.nan
        colour = np.where(rng.random(n) < 0.8, np.array(["red", "green", "blue"])[kind], "red")
        return {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "colour": colour}, kind

    mixture = hm.VAEMixture(3, random_state=0, device="cpu").fit(frame(150)[0])
    held, kind = frame(1000)
    before = mixture.score(held)
    for _ in range(20):
        mixture.partial_fit(frame(150)[0])
    assert mixture.score(held) > before
    assert adjusted_rand_score(kind, mixture.predict(held)) > 0.85
    assert sorted(mixture.means_["colour"]) == ["blue", "green", "red"]


def test_gradients_take_one_epoch():
    x, _ = stream(100, 0)
    mixture = hm.VAEMixture(2, hidden=(4,), tol=1.0, random_state=0, device="cpu").fit(x)
    before, labels = copy.deepcopy(mixture.model_.state_dict()), mixture.labels_
    mixture.partial_fit(x)
    assert any(not torch.equal(before[name], now) for name, now in mixture.model_.state_dict().items())
    assert np.mean(mixture.labels_ == labels) > 0.9

"""The score that needs no labels: answers that are known, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from conftest import build
from sklearn.metrics import mutual_info_score
from torch import Tensor

import hmoevae as hm
from hmoevae import metrics
from hmoevae.errors import ArgumentError, ArgumentTypeError

N, N_LEAVES = 4000, 4
DRAWN = torch.Generator().manual_seed(0)
KIND = torch.arange(N) % N_LEAVES
RANDOM = torch.randint(N_LEAVES, (N,), generator=DRAWN)


def placed(leaf: Tensor) -> Tensor:
    """Samples that the model of the fixture sends to these leaves."""
    return torch.nn.functional.one_hot(leaf, N_LEAVES).float()


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> hm.HMoEVAE:
    """A model whose samples are the probabilities of the leaves."""
    made = build(hm.Mixture.of(hm.VAE(), N_LEAVES), (N_LEAVES,))
    monkeypatch.setattr(hm.HMoEVAE, "predict_proba", lambda _, x, **__: x.x)
    return made


def partner_in(leaf: Tensor):
    return lambda _: placed(leaf)


@pytest.mark.parametrize(
    ("leaf", "partner", "expected"),
    [
        (KIND, KIND, 1.0),  # perfect
        (KIND, (KIND + 1) % N_LEAVES, None),  # each leaf tells of the other, but the pairs never meet
        (KIND // 2, KIND // 2, 0.5),  # two of four leaves, log 2 of log 4
        (torch.zeros_like(KIND), torch.zeros_like(KIND), 0.0),  # everything in one leaf
    ],
)
def test_known_answers(model: hm.HMoEVAE, leaf: Tensor, partner: Tensor, expected: float | None) -> None:
    score = metrics.agreement_score(model, placed(leaf), partner=partner_in(partner))
    if expected is None:
        expected = 0.5  # in the symmetric distribution a leaf has two neighbours, and leaves log 2 undecided
    assert score == pytest.approx(expected)


def test_leaves_by_chance_score_nothing(model: hm.HMoEVAE) -> None:
    chance = (N_LEAVES - 1) ** 2 / (2 * N) / math.log(N_LEAVES)  # the bias of mutual information, about
    score = metrics.agreement_score(model, placed(KIND), partner=partner_in(RANDOM))
    assert 0 <= score < 3 * chance < 0.003


def test_gates_that_are_not_sure_score_less(model: hm.HMoEVAE) -> None:
    sure = torch.tensor([1.0, 0.7, 0.4, 1 / N_LEAVES])
    scores = []
    for share in sure:
        x = share * placed(KIND) + (1 - share) / (N_LEAVES - 1) * (1 - placed(KIND))
        scores.append(metrics.agreement_score(model, x, partner=lambda x: x))
    assert scores == sorted(scores, reverse=True)
    assert (scores[0], scores[-1]) == (pytest.approx(1, abs=1e-6), pytest.approx(0, abs=1e-6))


def test_it_falls_as_pairs_part(model: hm.HMoEVAE) -> None:
    scores = [
        metrics.agreement_score(model, placed(KIND), partner=partner_in(torch.where(torch.arange(N) < n, RANDOM, KIND)))
        for n in (0, 40, 400, 2000, N)
    ]
    assert scores == sorted(scores, reverse=True)


def test_it_is_scikit_learns_mutual_information(model: hm.HMoEVAE) -> None:
    other = torch.where(torch.arange(N) % 3 > 0, KIND, RANDOM)
    both = np.concatenate([KIND, other]), np.concatenate([other, KIND])
    score = metrics.agreement_score(model, placed(KIND), partner=partner_in(other))
    assert score == pytest.approx(mutual_info_score(*both) / math.log(N_LEAVES))


def test_views_and_partners_are_prepared_and_seeded() -> None:
    expert = hm.VAE(latent_dim=1, likelihood=hm.Gaussian(mean="identity"))
    model = build(hm.Mixture.of(hm.Mixture.of(expert, 2), 3), (1, 8, 8))
    x = 30 * torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    before = torch.get_rng_state()
    pairs = {"view": hm.views.RandomAffine(), "partner": hm.views.Neighbour(k=3)}
    one, same, other = (metrics.agreement_score(model, x, **pairs, seed=seed) for seed in (0, 0, 1))
    assert one == same != other
    assert metrics.agreement_score(model, x, **pairs, level=1, batch_size=7) <= 1
    noise = [metrics.agreement_score(model, x, view=lambda x: x + torch.randn_like(x)) for _ in range(2)]
    assert noise[0] == noise[1]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("as_users_call")
def test_it_refuses() -> None:
    model, x = build(hm.Mixture.of(hm.VAE(), 2), (3,)), torch.rand(6, 3)
    with pytest.raises(ArgumentTypeError, match=r"model: expected an HMoEVAE, .* got Mixture"):
        metrics.agreement_score(model.tree, x, view=torch.sin)
    with pytest.raises(ArgumentError, match="view: expected a view or a partner, since a sample agrees with itself"):
        metrics.agreement_score(model, x)
    with pytest.raises(ArgumentError, match="level: expected one of several nodes, got 0, which has one"):
        metrics.agreement_score(model, x, view=torch.sin, level=0)
    with pytest.raises(ArgumentTypeError, match="view"):
        metrics.agreement_score(model, x, view=3)

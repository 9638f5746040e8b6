"""Likelihoods of categories and grades against `torch.distributions` and closed forms."""

import pytest
import torch
from torch import Tensor, distributions

import hmoevae as hm
from hmoevae.errors import DataError
from hmoevae.nn.likelihoods import likelihood_module

GROUPS, FEATURES, BATCH = 2, 3, 40


def raw_outputs(n: int) -> Tensor:
    return 2 * torch.randn(GROUPS, n, BATCH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def codes(n: int) -> Tensor:
    return torch.randint(0, n, (FEATURES, BATCH), generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("n", [2, 5])
def test_a_categorical(n: int) -> None:
    """The first logit of all features comes before the second of all features."""
    module, raw, x = likelihood_module(hm.Categorical(n), GROUPS, FEATURES), raw_outputs(n * FEATURES), codes(n)
    twin = distributions.Categorical(logits=raw.reshape(GROUPS, n, FEATURES, BATCH).movedim(1, -1))
    torch.testing.assert_close(module.log_density(raw, x), twin.log_prob(x.expand(GROUPS, -1, -1)))
    torch.testing.assert_close(module.mean(raw), twin.mode.double())
    torch.testing.assert_close(module.statistics(raw), twin.probs.movedim(-1, 1).flatten(1, 2))


@pytest.mark.parametrize("n", [2, 3, 6])
def test_an_ordinal(n: int) -> None:
    """Differences of sigmoids at the cut points; evenly probable codes at first for an output of zero."""
    module, raw = likelihood_module(hm.Ordinal(n), GROUPS, FEATURES).double(), raw_outputs(FEATURES)
    fresh = module.statistics(torch.zeros_like(raw))
    torch.testing.assert_close(fresh, torch.full_like(fresh, 1 / n))
    with torch.no_grad():
        module.cuts.add_(0.3 * torch.randn(module.cuts.shape, generator=torch.Generator().manual_seed(2)))
    first, gaps = module.cuts[:, :1], module.cuts[:, 1:].exp()
    cuts = torch.cat([first, first + gaps.cumsum(1)], 1).unsqueeze(3)
    below = torch.sigmoid(cuts - raw.unsqueeze(1))
    edge = torch.ones(GROUPS, 1, FEATURES, BATCH).double()
    expected = torch.cat([below, edge], 1) - torch.cat([0 * edge, below], 1)
    torch.testing.assert_close(module.statistics(raw).unflatten(1, (n, -1)), expected)
    x = codes(n)
    density = expected.gather(1, x.long().expand(GROUPS, 1, -1, -1)).squeeze(1).log()
    torch.testing.assert_close(module.log_density(raw, x), density)


@pytest.mark.parametrize("spec", [hm.Categorical(4), hm.Ordinal(4)], ids=str)
def test_draws_are_as_frequent_as_they_are_probable(spec: hm.Likelihood) -> None:
    n = 50_000
    module = likelihood_module(spec, GROUPS, FEATURES).double()
    raw = raw_outputs(*module.raw_shape((FEATURES,)))[..., :1]
    x = module.sample(raw.expand(-1, -1, n), torch.Generator().manual_seed(0))
    frequency = torch.stack([(x == code).double().mean(2) for code in range(4)], 1).flatten(1)
    assert ((frequency - module.statistics(raw)[..., 0]).abs() < 2.5 / n**0.5).all()


def test_the_most_probable_code_of_averaged_probabilities() -> None:
    """Code 1 is never the most probable one, but it is on average; the average of codes would be 1 by chance."""
    module = likelihood_module(hm.Categorical(3), 1, 1)
    raw = torch.tensor([[0.5, 0.45, 0.05], [0.05, 0.45, 0.5]]).log().T.unsqueeze(0)
    assert module.mean(raw).flatten().tolist() == [0, 2]
    assert module.from_statistics(module.statistics(raw).mean(2, keepdim=True)).item() == 1


def test_networks_see_one_hot_codes() -> None:
    module = likelihood_module(hm.Categorical(3), 1, 2)
    x = torch.tensor([[0.0, 2.0, 1.0], [1.0, 1.0, 7.0]])  # the last one was never seen
    shown = module.shown(x).reshape(3, 2, 3)  # code, feature, sample
    assert shown[:, 0].T.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert shown[:, 1].T.tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert module.shown_shape((2, 5)) == module.raw_shape((2, 5)) == (6, 5)


def test_networks_see_grades_as_numbers() -> None:
    shown = likelihood_module(hm.Ordinal(5), 1, 1).shown(torch.arange(5.0).unsqueeze(0))
    assert shown.flatten().tolist() == [-1, -0.5, 0, 0.5, 1]


@pytest.mark.parametrize("spec", [hm.Categorical(3), hm.Ordinal(3)], ids=str)
@pytest.mark.parametrize(
    ("values", "got"),
    [
        ([0.0, 3.0], "values from 0 to 3"),
        ([-1.0, 0.0], "values from -1 to 0"),
        ([0.0, 0.5, 2.0], "values from 0 to 2, 0.5 among them"),
    ],
)
def test_other_codes_are_refused(spec: hm.Likelihood, values: list[float], got: str) -> None:
    model = hm.HMoEVAE(hm.VAE(1, likelihood=spec), (len(values),))
    with pytest.raises(DataError) as caught:
        model.score_samples(torch.tensor([values]))
    assert str(caught.value) == f"x: expected codes 0 to 2, got {got}"

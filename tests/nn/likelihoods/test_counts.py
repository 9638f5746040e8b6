"""Likelihoods of counts against `torch.distributions`, with dispersions, totals and more zeros."""

import math

import pytest
import torch
from torch import Tensor, distributions

import hmoevae as hm
from hmoevae.nn.likelihoods import NegativeBinomialModule, likelihood_module

GROUPS, FEATURES, BATCH = 2, 3, 50


def raw_outputs(n: int = FEATURES) -> Tensor:
    return 2 * torch.randn(GROUPS, n, BATCH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def counts() -> Tensor:
    x = torch.randint(0, 40, (FEATURES, BATCH), generator=torch.Generator().manual_seed(1)).double()
    return x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.6)


def with_dispersion(dispersion: float, total: float | None = None) -> NegativeBinomialModule:
    module = likelihood_module(hm.NegativeBinomial(total), GROUPS, FEATURES).double()
    assert isinstance(module, NegativeBinomialModule)
    torch.nn.init.constant_(module.log_dispersion, math.log(dispersion))
    return module


@pytest.mark.parametrize("dispersion", [1e-5, 0.01, 1 / 33, 1 / 31, 0.7, 40.0])
def test_a_negative_binomial_and_its_gradients(dispersion: float) -> None:
    module, raw, x = with_dispersion(dispersion), raw_outputs().requires_grad_(), counts()
    log_dispersion = module.log_dispersion.detach().clone().requires_grad_()
    size = (-log_dispersion).exp().unsqueeze(2).expand_as(raw)
    twin = distributions.NegativeBinomial(size, logits=raw + log_dispersion.unsqueeze(2))
    expected = twin.log_prob(x.expand_as(raw))
    result = module.log_density(raw, x)
    torch.testing.assert_close(result, expected, rtol=1e-8, atol=1e-8)
    found = torch.autograd.grad(result.sum(), [raw, module.log_dispersion])
    wanted = torch.autograd.grad(expected.sum(), [raw, log_dispersion])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_negative_binomial_without_dispersion_is_a_poisson() -> None:
    """As far as the parameter is moved, in float32, where differences of log Gamma would lose all digits."""
    raw, x = raw_outputs().float(), counts().float()
    module = with_dispersion(1e-30).float()
    poisson = likelihood_module(hm.Poisson(), GROUPS, FEATURES)
    torch.testing.assert_close(module.log_density(raw, x), poisson.log_density(raw, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dispersion", [0.05, 3.0])
def test_draws_of_a_negative_binomial_vary_as_they_should(dispersion: float) -> None:
    n = 100_000
    raw = torch.full((GROUPS, FEATURES, n), math.log(6.0), dtype=torch.float64)
    x = with_dispersion(dispersion).sample(raw, torch.Generator().manual_seed(0))
    variance = 6 + dispersion * 36
    assert ((x.mean(2) - 6).abs() < 5 * math.sqrt(variance / n)).all()
    torch.testing.assert_close(x.var(2), torch.full((GROUPS, FEATURES), variance).double(), rtol=0.06, atol=0)


@pytest.mark.parametrize(("raw", "rate"), [(-3.0, math.exp(-3)), (9.9, math.exp(9.9)), (14.0, 5 * math.exp(10))])
def test_rates_grow_exponentially_and_then_linearly(raw: float, rate: float) -> None:
    module = likelihood_module(hm.Poisson(), 1, 1)
    torch.testing.assert_close(module.mean(torch.full((1, 1, 1), raw, dtype=torch.float64)).item(), rate)


@pytest.mark.parametrize("count", [hm.Poisson(), hm.NegativeBinomial(), hm.Poisson(20.0), hm.NegativeBinomial(20.0)])
def test_zero_inflation_is_a_mixture_with_zero(count: hm.Poisson | hm.NegativeBinomial) -> None:
    raw, x = raw_outputs(2 * FEATURES), counts()
    inner = likelihood_module(count, GROUPS, FEATURES).double()
    share = torch.sigmoid(raw[:, FEATURES:])
    expected = share * (x == 0) + (1 - share) * inner.log_density(raw[:, :FEATURES], x).exp()
    module = likelihood_module(hm.ZeroInflated(count), GROUPS, FEATURES).double()
    torch.testing.assert_close(module.log_density(raw, x), expected.log())
    torch.testing.assert_close(module.mean(raw), (1 - share) * inner.mean(raw[:, :FEATURES]))


# --- given the total ------------------------------------------------------------------------------------------------

WITH_TOTAL = {
    "poisson": hm.Poisson(total=30),
    "negative binomial": hm.NegativeBinomial(total=30),
    "zero-inflated": hm.ZeroInflated(hm.NegativeBinomial(total=30)),
}
each_with_total = pytest.mark.parametrize("spec", WITH_TOTAL.values(), ids=WITH_TOTAL)


def test_rates_are_shares_of_the_total() -> None:
    raw, x = raw_outputs(), counts()
    rate = raw.softmax(1) * x.sum(0).clamp_min(1)
    poisson = likelihood_module(hm.Poisson(total=30), GROUPS, FEATURES)
    torch.testing.assert_close(poisson.log_density(raw, x), distributions.Poisson(rate).log_prob(x.expand_as(rate)))
    torch.testing.assert_close(poisson.mean(raw), 30 * raw.softmax(1))
    twin = distributions.NegativeBinomial(torch.tensor(2.0).double(), logits=(rate / 2).log())
    module = with_dispersion(0.5, total=30)
    torch.testing.assert_close(module.log_density(raw, x), twin.log_prob(x.expand_as(rate)))


def test_networks_see_counts_scaled_to_the_same_total() -> None:
    module, x = likelihood_module(hm.Poisson(total=30), 1, FEATURES), counts()
    shown = module.shown(x)
    totals = torch.where(x.sum(0) > 0, 30.0, 0.0).double()
    torch.testing.assert_close(shown.expm1().sum(0), totals)
    torch.testing.assert_close(module.shown(7 * x), shown)


@each_with_total
def test_the_total_is_that_of_what_was_observed(spec: hm.Likelihood) -> None:
    """A sample with gaps is scored and shown as by a model without these columns."""
    outputs = likelihood_module(spec, GROUPS, FEATURES).outputs
    raw, x = raw_outputs(outputs * FEATURES).requires_grad_(), counts()
    present = torch.tensor([True, False, True]).unsqueeze(1).expand_as(x)
    module = likelihood_module(spec, GROUPS, FEATURES).double()
    fewer = likelihood_module(spec, GROUPS, 2).double()
    result = module.log_prob(raw, torch.where(present, x, torch.nan), present)
    expected = fewer.log_prob(raw.unflatten(1, (outputs, FEATURES))[:, :, [0, 2]].flatten(1, 2), x[[0, 2]])
    torch.testing.assert_close(result, expected)
    found, wanted = (torch.autograd.grad(t.sum(), raw)[0] for t in (result, expected))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(module.shown(x, present)[[0, 2]], fewer.shown(x[[0, 2]]))


@each_with_total
@pytest.mark.parametrize("size", [0.0, 30.0, 1e4])
def test_extremes(spec: hm.Likelihood, size: float) -> None:
    """Outputs far apart, empty samples, and samples of which nothing was observed, in float32."""
    module = likelihood_module(spec, GROUPS, FEATURES)
    raw = (size * raw_outputs(module.outputs * FEATURES).sign()).float().requires_grad_()
    x = counts().float()
    x[:, 0] = 0
    present = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    present[:, 1] = False
    for result in (module.log_prob(raw, x), module.log_prob(raw, x, present), module.mean(raw)):
        gradients = torch.autograd.grad(result.sum(), [raw, *module.parameters()], allow_unused=True)
        assert torch.isfinite(result).all()
        assert all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)
    assert (module.log_prob(raw, x, present)[:, 1] == 0).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, 1.0, 2.5, 4.0], r"x: expected counts \(whole numbers >= 0\), got values from 0 to 4, 2\.5 among them"),
        ([0.0, -1.0, 2.0, 4.0], r"x: expected counts \(whole numbers >= 0\), got values from -1 to 4$"),
    ],
)
@pytest.mark.parametrize("spec", [hm.Poisson(), hm.ZeroInflated()], ids=str)
def test_fractions_and_negative_numbers_are_no_counts(spec: hm.Likelihood, values: list[float], message: str) -> None:
    model = hm.HMoEVAE(hm.VAE(1, likelihood=spec), (4,))
    with pytest.raises(hm.errors.DataError, match=message):
        model.score_samples(torch.tensor([values]))
    model.score_samples(torch.tensor([values]).round().abs())

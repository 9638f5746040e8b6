"""Observation models against `torch.distributions`: log-densities, gradients, means, draws and supports."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import Laplace, LaplaceModule
from torch import Tensor, distributions

import hmoevae as hm
from hmoevae.errors import SpecError
from hmoevae.nn.likelihoods import (
    BernoulliModule,
    ColumnsModule,
    GaussianModule,
    LikelihoodModule,
    likelihood_module,
)
from hmoevae.nn.likelihoods.codes import CodesModule
from hmoevae.nn.rows import Chosen, rows_of
from hmoevae.spec import Likelihood

SPECS = {
    "sigmoid": hm.Gaussian(0.5),
    "sharp": hm.Gaussian(0.05),
    "identity": hm.Gaussian(1.5, "identity"),
    "bernoulli": hm.Bernoulli(),
    "continuous": hm.ContinuousBernoulli(),
    "log normal": hm.LogNormal(0.4),
    "poisson": hm.Poisson(),
    "negative binomial": hm.NegativeBinomial(),
}
CLOSED_FORM = {name: spec for name, spec in SPECS.items() if name != "negative binomial"}
NUMBER = hm.Gaussian("learned", "identity")
GROUPS, FEATURES, BATCH = 3, 5, 4

each_likelihood = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def reference(spec: Likelihood, raw: Tensor) -> distributions.Distribution:
    """The same observation model from `torch.distributions`."""
    match spec:
        case hm.Gaussian(scale=scale, mean="sigmoid"):
            return distributions.Normal(torch.sigmoid(raw), scale)
        case hm.Gaussian(scale=scale):
            return distributions.Normal(raw, scale)
        case hm.Bernoulli():
            return distributions.Bernoulli(logits=raw)
        case hm.LogNormal(scale=scale):
            return distributions.LogNormal(raw, scale)
        case hm.Poisson():
            return distributions.Poisson(raw.exp())
        case hm.NegativeBinomial():  # as it starts, with a dispersion of 1
            return distributions.NegativeBinomial(torch.ones_like(raw), logits=raw)
    return distributions.ContinuousBernoulli(logits=raw)


def raw_outputs(dtype: torch.dtype = torch.float64) -> Tensor:
    """A decoder's outputs, some of them near zero, where the continuous Bernoulli needs care."""
    raw = 3 * torch.randn(GROUPS, FEATURES, BATCH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    raw[0] *= 1e-3
    return raw.to(dtype).requires_grad_()


def samples(spec: Likelihood, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Data in the support, its ends included."""
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    x[..., 0, 0], x[..., 1, 0] = 0, 1
    match spec:
        case hm.Bernoulli():
            return x.round()
        case hm.LogNormal():
            return x + 0.1
        case hm.Poisson() | hm.NegativeBinomial():
            return (12 * x).floor()
    return x


@each_likelihood
@pytest.mark.parametrize("shape", [(FEATURES, BATCH), (GROUPS, FEATURES, BATCH)], ids=["shared", "own"])
def test_log_prob_and_its_gradient(spec: Likelihood, shape: tuple[int, ...]) -> None:
    raw, twin = raw_outputs(), raw_outputs()
    x = samples(spec, *shape)
    expected = torch.zeros(GROUPS, BATCH, dtype=torch.float64)
    for g in range(GROUPS):
        for b in range(BATCH):
            column = x[:, b] if x.ndim == 2 else x[g, :, b]
            expected[g, b] = reference(spec, twin[g, :, b]).log_prob(column).sum()
    result = likelihood_module(spec, GROUPS, FEATURES).log_prob(raw, x)
    torch.testing.assert_close(result, expected)
    weights = torch.arange(1, 1 + result.numel(), dtype=torch.float64).reshape(result.shape)
    (result * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(raw.grad, twin.grad)


@pytest.mark.parametrize("spec", [SPECS[name] for name in ("sigmoid", "sharp", "identity", "bernoulli", "continuous")])
@pytest.mark.parametrize("logit", [-60.0, -16.0, -6.0, -0.51, -0.49, -0.3, -2e-3, 0.0, 3.9e-3, 4.1e-3, 0.7, 5.0, 30.0])
def test_densities_integrate_to_one(spec: Likelihood, logit: float) -> None:
    """Independent of any library; the logits straddle the series that a continuous Bernoulli uses near 1/2."""
    low, high = (0, 1)
    if isinstance(spec, hm.Gaussian):
        low, high = (logit - 12, logit + 12) if spec.mean == "identity" else (-12, 12)
    if isinstance(spec, hm.Bernoulli):
        grid, weights = torch.tensor([0.0, 1.0]), torch.ones(2)
    else:
        grid = torch.linspace(low, high, 20_001)
        weights = torch.full_like(grid, (high - low) / 20_000)
        weights[[0, -1]] /= 2
    raw = torch.full((1, 1, len(grid)), logit)
    density = likelihood_module(spec, GROUPS, FEATURES).log_prob(raw, grid.unsqueeze(0)).exp().squeeze(0)
    assert (density.double() @ weights.double()).item() == pytest.approx(1, abs=2e-4)
    mean = ((density * grid).double() @ weights.double()).item()
    assert mean == pytest.approx(likelihood_module(spec, GROUPS, FEATURES).mean(raw)[0, 0, 0].item(), abs=5e-4)


@each_likelihood
def test_means(spec: Likelihood) -> None:
    raw = raw_outputs()
    torch.testing.assert_close(likelihood_module(spec, GROUPS, FEATURES).mean(raw), reference(spec, raw).mean)


@each_likelihood
def test_draws_have_the_distributions_moments(spec: Likelihood) -> None:
    """100,000 draws at each of a few outputs; the tolerance is five standard errors."""
    n = 100_000
    raw = torch.tensor([[-3.0, 0.0, 0.001, 1.5]], dtype=torch.float64).unsqueeze(-1).expand(1, 4, n)
    drawn = likelihood_module(spec, 1, 4).sample(raw, torch.Generator().manual_seed(2))
    assert drawn.shape == raw.shape
    assert likelihood_module(spec, 1, 4).contains(drawn) or isinstance(spec, hm.Gaussian)
    expected = reference(spec, raw[..., 0])
    error = 5 * expected.stddev / math.sqrt(n)
    assert ((drawn.mean(-1) - expected.mean).abs() < error).all()
    torch.testing.assert_close(drawn.var(-1), expected.variance, rtol=0.05, atol=0)


@each_likelihood
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_follow_the_generator_and_keep_the_dtype(
    spec: Likelihood, dtype: torch.dtype, rng_untouched: None
) -> None:
    raw = raw_outputs(dtype).detach()
    first, again, other = (
        likelihood_module(spec, GROUPS, FEATURES).sample(raw, torch.Generator().manual_seed(s)) for s in (3, 3, 4)
    )
    assert first.dtype == dtype
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@each_likelihood
def test_extreme_outputs_stay_finite(spec: Likelihood) -> None:
    raw = torch.tensor([-1e4, -90.0, -20.0, 20.0, 90.0, 1e4]).reshape(1, -1, 1).expand(1, 6, 2).clone().requires_grad_()
    x = torch.tensor([0.5 if isinstance(spec, hm.LogNormal) else 0.0, 1.0]).expand(6, 2)
    model = likelihood_module(spec, 1, 6)
    log_prob = model.log_prob(raw, x)
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(raw.grad).all()
    raw.grad = None
    mean = model.mean(raw)
    mean.sum().backward()
    assert torch.isfinite(mean).all()
    assert torch.isfinite(raw.grad).all()
    assert torch.isfinite(model.sample(raw.detach(), torch.Generator().manual_seed(0))).all()


@each_likelihood
def test_half_precision_outputs_are_scored_in_single(spec: Likelihood) -> None:
    """Under autocast a decoder answers in bfloat16, with eight bits; sums over features need more."""
    raw = raw_outputs(torch.bfloat16).detach()
    x = samples(spec, FEATURES, BATCH, dtype=torch.float32)
    result = likelihood_module(spec, GROUPS, FEATURES).log_prob(raw, x)
    assert result.dtype == torch.float32
    expected = reference(spec, raw.double()).log_prob(x.double()).sum(1)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)


MODULES = {name: lambda spec=spec: likelihood_module(spec, GROUPS, FEATURES) for name, spec in SPECS.items()}
MODULES |= {
    "learned": lambda: likelihood_module(hm.Gaussian("learned", "identity"), GROUPS, FEATURES),
    "learned sigmoid": lambda: likelihood_module(hm.Gaussian("learned"), GROUPS, FEATURES),
    "a user's": lambda: likelihood_module(Laplace(), GROUPS, FEATURES),
}
MORE = {
    "learned log normal": hm.LogNormal(),
    "categorical": hm.Categorical(4),
    "two categories": hm.Categorical(2),
    "ordinal": hm.Ordinal(4),
    "two grades": hm.Ordinal(2),
    "zero-inflated": hm.ZeroInflated(),
    "zero-inflated poisson": hm.ZeroInflated(hm.Poisson()),
    "columns": hm.Columns.of(hm.Ordinal(3), NUMBER, hm.Categorical(3), hm.LogNormal(), NUMBER),
    "alternating columns": hm.Columns.of(NUMBER, hm.Poisson(), NUMBER, hm.Poisson(), hm.Bernoulli()),
    "a user's in columns": hm.Columns.of(Laplace(), hm.ContinuousBernoulli(), Laplace(), Laplace(), hm.Poisson()),
}
MODULES |= {name: lambda spec=spec: likelihood_module(spec, GROUPS, FEATURES) for name, spec in MORE.items()}


def module_and_raw(make: Callable[[], LikelihoodModule]) -> tuple[LikelihoodModule, Tensor]:
    """A module in double precision with parameters of its own, where it has some, and raw outputs for it."""
    module = make().double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    raw = torch.randn(GROUPS, *module.raw_shape((FEATURES,)), BATCH, generator=generator, dtype=torch.float64)
    return module, raw.requires_grad_()


def drawn_from(module: LikelihoodModule, raw: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Data that all experts share, or of each one's own: in the support, as draws are."""
    drawn = module.sample(raw.detach(), torch.Generator().manual_seed(1))
    return drawn.detach() if len(shape) == 3 else drawn[0].detach()


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
@pytest.mark.parametrize("shape", [(FEATURES, BATCH), (GROUPS, FEATURES, BATCH)], ids=["shared", "own"])
def test_a_cell_that_is_not_observed_contributes_nothing(
    make: Callable[[], LikelihoodModule], shape: tuple[int, ...]
) -> None:
    """Neither to the number nor to a gradient, whatever it holds; what was observed contributes as ever."""
    module, raw = module_and_raw(make)
    x = drawn_from(module, raw, shape)
    present = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.6
    expected = (module.log_density(raw, x) * present).sum(1)
    weights = [raw, *module.parameters()]
    gradients = torch.autograd.grad(expected.sum(), weights)
    result = module.log_prob(raw, torch.where(present, x, torch.nan), present)
    torch.testing.assert_close(result, expected)
    for gradient, other in zip(torch.autograd.grad(result.sum(), weights), gradients, strict=True):
        torch.testing.assert_close(gradient, other)
    torch.testing.assert_close(module.log_prob(raw, x), module.log_prob(raw, x, torch.ones_like(present)))


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_every_module_keeps_the_contract(make: Callable[[], LikelihoodModule]) -> None:
    module, raw = module_and_raw(make)
    assert module.contains(torch.full((2, FEATURES), module.example, dtype=torch.float64))
    mean, drawn = module.mean(raw), module.sample(raw, torch.Generator().manual_seed(0))
    assert mean.shape == drawn.shape == (GROUPS, FEATURES, BATCH)
    assert mean.dtype == drawn.dtype == torch.float64
    torch.testing.assert_close(module.from_statistics(module.statistics(raw)), mean)
    assert all(len(parameter) == GROUPS for parameter in module.parameters())
    n = 4000
    many = module.sample(raw.detach().repeat(1, 1, n), torch.Generator().manual_seed(1)).unflatten(2, (n, BATCH))
    error = 5 * many.std(2) / math.sqrt(n) + 0.02
    assert ((many.mean(2) - expectation(module, raw)).abs() < error).all()


def expectation(module: LikelihoodModule, raw: Tensor) -> Tensor:
    """E[x|z], also where that has no meaning, as of codes."""
    if isinstance(module, ColumnsModule):
        result = torch.empty(GROUPS, FEATURES, BATCH, dtype=raw.dtype)
        for part, columns, own in zip(module.parts, module.columns, raw.split(module.raw_sizes, 1), strict=True):
            result[:, columns] = expectation(part, own)
        return result
    if isinstance(module, CodesModule):
        by_code = module.statistics(raw).unflatten(1, (module.n, -1))
        return (by_code * torch.arange(module.n).view(-1, 1, 1)).sum(1)
    return module.mean(raw)


LEAVING = {"sigmoid", "sharp", "learned sigmoid", "a user's", "a user's in columns"}
"""Likelihoods with normal noise about a mean in [0, 1], and a user's that takes care of nothing."""


@pytest.mark.parametrize("make", [MODULES[name] for name in MODULES if name not in LEAVING])
def test_draws_lie_in_the_support(make: Callable[[], LikelihoodModule]) -> None:
    module, raw = module_and_raw(make)
    x = module.sample(raw.detach().repeat(1, 1, 20), torch.Generator().manual_seed(0)).mT.flatten(0, 1)
    assert module.contains(x)
    torch.testing.assert_close(module.nearest(x), x, rtol=0, atol=0)


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
@pytest.mark.parametrize("shape", [(FEATURES, BATCH), (GROUPS, FEATURES, BATCH)], ids=["shared", "own"])
def test_what_networks_see(make: Callable[[], LikelihoodModule], shape: tuple[int, ...]) -> None:
    """Finite numbers in the shape that is said, zeros for what was not observed, whatever that holds."""
    module, raw = module_and_raw(make)
    x = drawn_from(module, raw, shape)
    shown = module.shown(x)
    assert shown.shape == (*shape[:-2], *module.shown_shape((FEATURES,)), BATCH)
    assert shown.dtype == x.dtype
    assert torch.isfinite(shown).all()
    assert torch.isfinite(module.shown(torch.full_like(x, -3.7))).all()
    torch.testing.assert_close(module.shown(x, torch.ones_like(x, dtype=torch.bool)), shown)
    present = torch.zeros_like(x, dtype=torch.bool)
    assert (module.shown(torch.full_like(x, torch.nan), present) == 0).all()
    present[..., 1, :] = True
    gaps = module.shown(torch.where(present, x, torch.nan), present)
    assert torch.isfinite(gaps).all()
    if x[..., 1, :].any():
        assert ((gaps == 0) | (gaps == shown)).all() or isinstance(module, ColumnsModule)


@pytest.mark.parametrize("make", [MODULES[name] for name in MODULES if "a user's" not in name])
@pytest.mark.parametrize("size", [0.0, 20.0, 1e4])
def test_extreme_outputs_of_every_module_stay_finite(make: Callable[[], LikelihoodModule], size: float) -> None:
    """In float32: log-densities, means and draws, and the gradients of the first two."""
    module, raw = module_and_raw(make)
    x = drawn_from(module, raw, (FEATURES, BATCH)).float()
    module = module.float()
    raw = (size * raw.detach().sign()).float().requires_grad_()
    weights = [raw, *module.parameters()]
    for result in (module.log_prob(raw, x), module.mean(raw)):
        assert torch.isfinite(result).all()
        if result.requires_grad:
            gradients = torch.autograd.grad(result.sum(), weights, allow_unused=True)
            assert all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)
    assert not torch.isnan(module.sample(raw.detach(), torch.Generator().manual_seed(0))).any()


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_low_precision_is_scored_in_single(make: Callable[[], LikelihoodModule]) -> None:
    """Outputs in bfloat16, parameters and samples in float32."""
    module, raw = module_and_raw(make)
    x, low = drawn_from(module, raw, (FEATURES, BATCH)).float(), raw.detach().bfloat16()
    expected = module.log_prob(low.double(), x.double())
    result = module.float().log_prob(low, x)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)
    assert module.statistics(low).dtype in (torch.float32, torch.bfloat16)


def test_rows_of_a_likelihood_are_its_experts() -> None:
    module, raw = module_and_raw(MODULES["learned"])
    x = torch.rand(FEATURES, BATCH, dtype=torch.float64)
    some = torch.tensor([0, 2, 2])
    torch.testing.assert_close(rows_of(module, Chosen.of(some)).log_prob(raw[some], x), module.log_prob(raw, x)[some])


def test_a_learned_scale_is_that_of_a_normal_distribution() -> None:
    module, raw = module_and_raw(MODULES["learned"])
    x = torch.rand(FEATURES, BATCH, dtype=torch.float64)
    scale = 1e-3 + module.log_scale.exp()
    expected = distributions.Normal(raw, scale.unsqueeze(2)).log_prob(x).sum(1)
    torch.testing.assert_close(module.log_prob(raw, x), expected)
    fresh = likelihood_module(hm.Gaussian("learned"), 2, 3)
    torch.testing.assert_close(fresh.scale.flatten(), torch.full((6,), 0.5))


@pytest.mark.parametrize("floor", [1e-3, 0.05, 3.0])
def test_the_floor_of_a_learned_scale_bounds_the_density_of_a_repeated_point(floor: float) -> None:
    """However long an expert learns from one point, its density is at most 1 / (floor sqrt(2 pi)) an entry."""
    module = likelihood_module(hm.Gaussian("learned", "identity", floor), GROUPS, FEATURES).double()
    torch.testing.assert_close(module.scale.min().item(), max(0.5, 2 * floor))
    raw = torch.zeros(GROUPS, FEATURES, 1, dtype=torch.float64)
    optimiser = torch.optim.SGD(module.parameters(), lr=1.0)
    bound = -math.log(floor * math.sqrt(2 * math.pi)) * FEATURES
    for _ in range(300):
        optimiser.zero_grad()
        (-module.log_prob(raw, raw[0]).sum()).backward()
        optimiser.step()
    reached = module.log_prob(raw, raw[0])
    assert (reached < bound).all()
    torch.testing.assert_close(reached, torch.full_like(reached, bound), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("name", "values", "inside"),
    [
        ("sigmoid", [0.0, 0.5, 1.0], True),
        ("sigmoid", [-1e-6, 0.5], False),
        ("sigmoid", [0.5, 1.0001], False),
        ("identity", [-100.0, 100.0], True),
        ("bernoulli", [0.0, 1.0], True),
        ("bernoulli", [0.0, 0.5, 1.0], False),
        ("bernoulli", [1.0, 2.0], False),
        ("continuous", [0.0, 0.3, 1.0], True),
        ("continuous", [-0.1, 0.3], False),
        ("continuous", [0.3, 1.1], False),
    ],
)
def test_support(name: str, values: list[float], inside: bool) -> None:
    assert likelihood_module(SPECS[name], GROUPS, FEATURES).contains(torch.tensor(values)) is inside


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("sigmoid", [0.0, 0.0, 0.25, 1.0, 1.0]),
        ("identity", [-1e-6, 0.0, 0.25, 1.0, 1.25]),
        ("bernoulli", [0.0, 0.0, 0.0, 1.0, 1.0]),
        ("continuous", [0.0, 0.0, 0.25, 1.0, 1.0]),
    ],
)
def test_the_nearest_values_of_the_support(name: str, nearest: list[float]) -> None:
    model = likelihood_module(SPECS[name], GROUPS, FEATURES)
    assert torch.equal(model.nearest(torch.tensor([-1e-6, 0.0, 0.25, 1.0, 1.25])), torch.tensor(nearest))
    assert model.contains(torch.tensor(nearest))


@each_likelihood
def test_every_model_says_what_data_it_takes(spec: Likelihood) -> None:
    model = likelihood_module(spec, GROUPS, FEATURES)
    assert isinstance(model, LikelihoodModule)
    assert model.support.startswith(("values", "finite values", "counts"))


@pytest.mark.parametrize("spec", [*CLOSED_FORM.values(), hm.Poisson(total=20), hm.Categorical(3)], ids=str)
def test_the_score_is_the_gradient_of_the_log_density(spec: Likelihood) -> None:
    """Known without autograd."""
    model = likelihood_module(spec, GROUPS, FEATURES)
    raw = 4 * torch.randn(3, *model.raw_shape((4,)), 6, dtype=torch.float64)
    raw[0, 0, 0] = 12.0  # a rate that grows linearly
    raw.requires_grad_()
    x = model.nearest(samples(spec, 4, 6))
    score = model.score(raw.detach(), x)
    (expected,) = torch.autograd.grad(model.log_prob(raw, x).sum(), raw)
    torch.testing.assert_close(score * 1.0, expected)


class OnlyAutogradKnows(BernoulliModule):
    """A model of one's own that says nothing about its gradient."""

    def score(self, raw: Tensor, x: Tensor) -> None:
        return None

    log_prob_and_score = LikelihoodModule.log_prob_and_score


class InItsOwnUnit(GaussianModule):
    """A score in another unit, which the default way has to know of."""

    log_prob_and_score = LikelihoodModule.log_prob_and_score


@pytest.mark.parametrize(
    "model",
    [
        *(likelihood_module(spec, GROUPS, FEATURES) for spec in SPECS.values()),
        OnlyAutogradKnows(),
        InItsOwnUnit(0.5, sigmoid=True),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_log_density_and_score_in_one(model: LikelihoodModule, dtype: torch.dtype) -> None:
    """The score in units of `score_unit`, in the precision of the tensor that it is written to."""
    x = model.nearest(samples(hm.LogNormal() if model.example == 1 else hm.ContinuousBernoulli(), FEATURES, BATCH))
    raw = raw_outputs()
    expected = model.log_prob(raw, x)
    (slope,) = torch.autograd.grad(expected.sum(), raw)
    score = torch.empty_like(slope, dtype=dtype).mT.contiguous().mT  # as readouts lie
    torch.testing.assert_close(model.log_prob_and_score(raw.detach().clone(), x, score), expected.detach())
    torch.testing.assert_close(score * model.score_unit, slope.to(dtype))


@pytest.mark.parametrize("logit", [-1e4, -60.0, -20.0, -3.0, -0.51, -0.49, -1e-3, -1e-6, 0.0, 4e-3, 0.3, 0.6, 30.0])
def test_a_continuous_bernoulli_in_single_precision(logit: float) -> None:
    """The density, the mean and the score as a finer one has them, however sure the decoder is."""
    model = likelihood_module(hm.ContinuousBernoulli(), GROUPS, FEATURES)
    fine = torch.full((1, 3, 1), logit, dtype=torch.float64, requires_grad=True)
    single = fine.detach().float().requires_grad_()
    fine_mean = 0.5 if logit == 0 else -1 / math.expm1(-logit) - 1 / logit if logit > -700 else -1 / logit
    assert model.mean(single)[0, 0, 0].item() == pytest.approx(fine_mean, rel=3e-6, abs=1e-6)
    x = torch.tensor([[0.0], [0.25], [1.0]])
    result = model.log_prob(single, x)
    expected = model.log_prob(fine, x.double())
    torch.testing.assert_close(result, expected.float(), rtol=1e-6, atol=2e-6)
    result.sum().backward()
    torch.testing.assert_close(single.grad, (x.double() - fine_mean).float().unsqueeze(0), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("logit", [-60.0, -20.0, -1e-5, 0.0, 0.4, 25.0])
def test_draws_of_a_continuous_bernoulli_follow_its_cdf(logit: float) -> None:
    """The share of draws below each of nine quantiles, within five standard errors."""
    n = 100_000
    drawn = likelihood_module(hm.ContinuousBernoulli(), GROUPS, FEATURES).sample(
        torch.full((1, 1, n), logit), torch.Generator().manual_seed(0)
    )
    for share in torch.linspace(0.1, 0.9, 9).tolist():
        sure = abs(logit)
        below = share if logit < 0 else 1 - share
        quantile = below if sure < 1e-4 else -math.log1p(below * math.expm1(-sure)) / sure
        at = quantile if logit < 0 else 1 - quantile
        assert (drawn <= at).double().mean().item() == pytest.approx(share, abs=2.5 / math.sqrt(n))


@hm.record(kind="tests.derived_gaussian")
class DerivedGaussian(hm.Gaussian):
    """A record derived from one of the package's, with a module of its own."""

    def build(self, n_experts: int, n_features: int) -> LikelihoodModule:
        return BernoulliModule()


def test_a_record_derived_from_ours_builds_its_own_module() -> None:
    assert isinstance(likelihood_module(DerivedGaussian(), 2, 3), BernoulliModule)


MADE: dict[str, tuple[Callable[[int, int], Any], str]] = {
    "no module": (lambda *_: None, r": expected a LikelihoodModule from Given\(how='no module'\)\.build, got NoneType"),
    "another module": (lambda *_: torch.nn.Identity(), r": expected a LikelihoodModule from .*, got Identity"),
    "the class": (lambda *_: BernoulliModule, r": expected a LikelihoodModule from .*, got ABCMeta"),
    "a parameter without experts": (
        lambda n_experts, n_features: LaplaceModule(1, n_features),
        r": expected the axis of the 2 experts first in its parameters and buffers, got offset of shape \(1, 4\)",
    ),
    "a number": (
        lambda *_: scaled(torch.tensor(0.5)),
        r": expected the axis of the 2 experts first .*, got scale of shape \(\)",
    ),
    "one a feature": (lambda *_: scaled(torch.ones(4)), r": expected the axis of .*, got scale of shape \(4,\)"),
    "no outputs": (lambda *_: with_attribute(outputs=0), r"\.outputs: expected an integer > 0, got 0"),
    "no support": (lambda *_: with_attribute(support=None), r"\.support: expected words, got None"),
}


def with_attribute(**given: object) -> LikelihoodModule:
    module = BernoulliModule()
    vars(module).update(given)
    return module


def scaled(scale: Tensor) -> LikelihoodModule:
    module = BernoulliModule()
    module.register_buffer("scale", scale, persistent=False)
    return module


@hm.record(kind="tests.given_likelihood")
class Given(hm.Likelihood):
    """Whatever one of `MADE` gives."""

    how: str

    def build(self, n_experts: int, n_features: int) -> Any:
        return MADE[self.how][0](n_experts, n_features)


@pytest.mark.parametrize("how", MADE)
def test_what_is_no_likelihood_is_refused_by_its_place(how: str, as_users_call: None) -> None:
    net = hm.MLP((3,))
    tree = hm.Mixture((hm.VAE(2, net, net), *[hm.VAE(3, net, net, Given(how))] * 2))
    with pytest.raises(SpecError, match=rf"^root/1\.likelihood{MADE[how][1]}"):
        hm.HMoEVAE(tree, (4,))


def test_the_number_of_floors_is_that_of_the_features() -> None:
    expected = r"likelihood.floor: expected a number, or one for each of the 3 entries of a sample, got 2 numbers"
    with pytest.raises(SpecError, match=expected):
        likelihood_module(hm.LogNormal(floor=(0.1, 0.2)), 1, n_features=3)


CONSTANT = [
    hm.LogNormal(),
    hm.Bernoulli(),
    hm.Categorical(3),
    hm.Ordinal(3),
    hm.Poisson(),
    hm.NegativeBinomial(),
    hm.Columns.of(hm.LogNormal(), hm.Bernoulli()),
]


@pytest.mark.parametrize("spec", CONSTANT, ids=str)
def test_an_expert_without_a_value_is_fitted_to_those_of_all(spec: Likelihood) -> None:
    """The first expert has all values, the second has the samples of which none was observed."""
    module = likelihood_module(spec, 2, n_features=2).double()
    x = torch.tensor([[1.0, 0.0, 1.0, torch.nan], [1.0, 1.0, 1.0, torch.nan]], dtype=torch.float64)
    x = x + 1 if isinstance(spec, hm.LogNormal) else x
    x[0] = x[0] + 1 if isinstance(spec, hm.Columns) else x[0]
    present = x.isfinite()
    weight = present[:1].double().repeat(2, 1)
    weight[1] = 1 - weight[1]
    raw = module.fit_constant_(x, weight, present).unsqueeze(2).expand(-1, -1, 4)
    log_prob = module.log_prob(raw, x, present)
    torch.testing.assert_close(log_prob[0], log_prob[1])


COUNTS = [*(hm.Poisson(total=total) for total in (None, 9)), *(hm.NegativeBinomial(total=total) for total in (None, 9))]


@pytest.mark.parametrize("spec", [*CONSTANT, *COUNTS, hm.ZeroInflated(hm.Poisson())], ids=str)
@pytest.mark.parametrize("has_gaps", [False, True])
def test_the_density_of_outputs_without_z_is_that_of_outputs_with_it(spec: Likelihood, *, has_gaps: bool) -> None:
    n = 1500  # more than a piece
    module = likelihood_module(spec, GROUPS, n_features=2).double()
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(GROUPS, *module.raw_shape((2,)), dtype=torch.float64, generator=generator)
    x = module.sample(raw.unsqueeze(2).expand(-1, -1, n), generator)[0]
    x[:, 0] = module.example
    present = torch.rand(x.shape, generator=generator) < 0.8 if has_gaps else None
    expected = module.log_prob(raw.unsqueeze(2).expand(-1, -1, n), x, present)
    torch.testing.assert_close(module.log_prob_constant(raw, x, present), expected)

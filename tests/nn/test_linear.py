"""Exact posteriors: leaves with linear decoders are factor analysers, whose densities are known in closed form."""

import numpy as np
import pytest
import torch
from conftest import build
from scipy import stats
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal, kl_divergence

import hmoevae as hm
from hmoevae.errors import SpecError
from hmoevae.nn.linear import coefficients, with_gaps
from hmoevae.nn.posteriors import Draw, FullPosterior, LinearFeatures
from hmoevae.spec import Likelihood, Network

LINEAR = hm.MLP(())
SHAPE = (5,)


def leaf(latent: int = 2, scale: object = "learned") -> hm.VAE:
    return hm.VAE(latent, hm.LinearPosterior(), LINEAR, hm.Gaussian(scale, "identity"))


def mixture(scale: object = "learned") -> hm.HMoEVAE:
    """Three factor analysers with a learned prior, in double precision, whose scales differ."""
    model = build(hm.Mixture.of(leaf(2, scale), 3, gate=hm.MLP((3,)), prior="learned"), SHAPE)
    if scale == "learned":
        with torch.no_grad():
            model.experts.groups[0].likelihood.log_scale.copy_(torch.randn(3, 5, generator=seeded(3)))
    return model


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(n: int) -> Tensor:
    return 2 * torch.randn(n, *SHAPE, generator=seeded(1), dtype=torch.float64)


def parameters(model: hm.HMoEVAE) -> tuple[Tensor, Tensor, Tensor]:
    """W, b and the variances of every leaf."""
    group = model.experts.groups[0]
    scale = torch.as_tensor(group.likelihood.scale, dtype=torch.float64).expand(3, 5, 1)
    return group.decoder.last.matrices, group.decoder.last.bias, scale.squeeze(2) ** 2


@pytest.mark.parametrize("scale", ["learned", 0.3])
def test_every_draw_of_a_leaf_has_the_weight_of_the_closed_form(scale: object) -> None:
    """Density and gradients, of every parameter."""
    model, x = mixture(scale), samples(7)
    out = model(x, generator=seeded(0))
    weight, bias, variance = parameters(model)
    expected = torch.stack(
        [LowRankMultivariateNormal(b, w, v).log_prob(x) for w, b, v in zip(weight, bias, variance, strict=True)], 1
    )
    torch.testing.assert_close(out.leaf_elbo, expected, rtol=1e-9, atol=1e-9)
    learned = list(model.experts.parameters())
    ours, closed = (torch.autograd.grad(elbo.sum(), learned) for elbo in (out.leaf_elbo, expected))
    torch.testing.assert_close(ours, closed, rtol=1e-8, atol=1e-8)


def test_scores_are_those_of_a_mixture_of_gaussians() -> None:
    model, x = mixture(), samples(7)
    weight, bias, variance = (part.detach().numpy() for part in parameters(model))
    prior = model.prior.logits.softmax(0).detach().numpy()
    density = sum(
        p * stats.multivariate_normal(b, w @ w.T + np.diag(v)).pdf(x.numpy())
        for p, w, b, v in zip(prior, weight, bias, variance, strict=True)
    )
    for n_importance in (1, 3):
        scores = model.score_samples(x, n_importance=n_importance)
        np.testing.assert_allclose(scores.numpy(), np.log(density), rtol=1e-9)
    assert model.evaluate(x)["marginal"] == pytest.approx(-np.log(density).mean(), rel=1e-9)


def test_the_posterior_is_what_conditioning_the_joint_density_gives() -> None:
    model, x = mixture(), samples(4)
    posterior = model.experts.groups[0].posterior(x.t())
    noise = torch.randn(3, 2, 4, generator=seeded(2), dtype=torch.float64)
    z = posterior.sample(noise)
    weight, bias, variance = parameters(model)
    for i in range(3):
        covariance = weight[i] @ weight[i].T + variance[i].diag()
        gain = weight[i].T @ covariance.inverse()
        expected = MultivariateNormal((x - bias[i]) @ gain.T, torch.eye(2) - gain @ weight[i])
        prior = MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
        torch.testing.assert_close(posterior.mean[i].t(), expected.mean)
        torch.testing.assert_close(posterior.variance[i].t(), expected.variance)
        torch.testing.assert_close(posterior.kl()[i], kl_divergence(expected, prior))
        own = z[i].t()
        at_draw = expected.log_prob(own) - prior.log_prob(own)
        torch.testing.assert_close(posterior.kl_at(z, noise)[i], at_draw)


def test_absent_features_take_no_part() -> None:
    """As if the model had no such columns, sample by sample; a sample without any has the prior as its posterior."""
    model, x = mixture(), samples(6)
    present = torch.rand(6, 5, generator=seeded(4)) < 0.6
    present[0], present[1] = True, False
    weight, bias, variance = parameters(model)
    linear = LinearFeatures(variance.sqrt().unsqueeze(2))
    gaps = torch.where(present, x, torch.nan)
    shared = with_gaps(weight, bias, linear, gaps.t(), present.t())
    each = gaps.t().expand(3, -1, -1), present.t().expand(3, -1, -1)
    own = with_gaps(weight, bias, linear, *each)
    noise = torch.randn(3, 2, 6, generator=seeded(2), dtype=torch.float64)
    for posterior in (shared, own):
        z = posterior.sample(noise)
        for b in range(6):
            there = present[b]
            few = LinearFeatures(variance[:, there].sqrt().unsqueeze(2))
            observed = x[b, there].unsqueeze(1)
            alone = with_gaps(weight[:, there], bias[:, there], few, observed, ~observed.isnan())
            for name in ("mean", "variance"):
                torch.testing.assert_close(getattr(posterior, name)[..., b], getattr(alone, name)[..., 0])
            torch.testing.assert_close(posterior.kl()[:, b], alone.kl()[:, 0])
            one = noise[..., b : b + 1]
            torch.testing.assert_close(posterior.kl_at(z, noise)[:, b], alone.kl_at(alone.sample(one), one)[:, 0])
    full = model.experts.groups[0].posterior(x[:1].t())
    torch.testing.assert_close(shared.mean[..., 0], full.mean[..., 0])
    torch.testing.assert_close(shared.root[:, 0], full.root)
    torch.testing.assert_close(shared.root[:, 1], torch.eye(2, dtype=torch.float64).expand(3, 2, 2))
    (gradient,) = torch.autograd.grad(shared.mean.sum() + shared.kl().sum(), weight)
    assert torch.isfinite(gradient).all()


def mixed_table(*, missing: bool = False) -> hm.HMoEVAE:
    """Leaves over columns of four likelihoods, three of which are Gaussian with an identity link."""
    gaussian, narrow = hm.Gaussian("learned", "identity"), hm.Gaussian(0.3, "identity")
    columns = hm.Columns.of(gaussian, hm.Categorical(3), narrow, gaussian, hm.Poisson())
    expert = hm.VAE(2, hm.LinearPosterior(), LINEAR, columns)
    return build(hm.Mixture.of(expert, 3, gate=hm.MLP((3,))), SHAPE, missing=missing)


def table_rows(n: int) -> Tensor:
    x = samples(n)
    x[:, 1], x[:, 4] = torch.arange(n) % 3, torch.arange(n) % 4
    return x


@pytest.mark.parametrize("missing", [False, True])
def test_columns_that_are_not_gaussian_take_no_part(missing: bool) -> None:
    model, x = mixed_table(missing=missing), table_rows(4)
    group = model.experts.groups[0]
    parts = dict(zip(("learned", "codes", "narrow", "counts"), group.likelihood.parts, strict=True))
    columns, outputs = [0, 3, 2], [0, 1, 5]  # of two learned scales, three numbers of a category, and the fixed scale
    last = group.decoder.last
    scale = torch.cat([parts["learned"].scale, torch.full((3, 1, 1), 0.3, dtype=torch.float64)], 1)
    alone = coefficients(last.matrices[:, outputs], last.bias[:, outputs], LinearFeatures(scale), 3)
    expected = alone.at(x[:, columns].t(), is_exact=True)
    found = group.posterior(x.t())
    assert not found.is_exact
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.variance, expected.variance)


@pytest.mark.slow
def test_the_bound_of_mixed_columns_closes_in_on_the_density() -> None:
    """From below, as with any encoder; the first estimate is not exact."""
    model, x = mixed_table(), table_rows(4)
    scores = [model.score_samples(x, n_importance=n, generator=seeded(0)).mean() for n in (1, 4000)]
    again = model.score_samples(x, n_importance=4000, generator=seeded(1)).mean()
    assert scores[0] < scores[1]
    torch.testing.assert_close(scores[1], again, rtol=0, atol=0.02)


def test_single_precision_is_enough_for_narrow_features() -> None:
    """Their products have condition numbers beyond float32, whose Cholesky factor would fail."""
    model = build(leaf(3, 1e-3), (64,)).float()
    with torch.no_grad():
        weight = model.experts.groups[0].decoder.last.weight
        weight.copy_(torch.ones_like(weight) + 1e-7 * weight)
    x = torch.rand(3, 64, generator=seeded(0))
    posterior = model.experts.groups[0].posterior(x.t())
    assert torch.isfinite(model(x).loss)
    exact = model.double().experts.groups[0].posterior(x.t().double())
    torch.testing.assert_close(posterior.variance.double(), exact.variance, rtol=1e-5, atol=0)


def test_weights_that_are_not_finite_give_a_loss_that_is_not_and_no_error() -> None:
    model = mixture()
    with torch.no_grad():
        model.experts.groups[0].decoder.last.weight[1] = torch.inf
    elbo = model(samples(3)).leaf_elbo
    assert torch.isfinite(elbo).all(0).tolist() == [True, False, True]


def test_the_elbo_with_another_weight_of_the_kl_has_its_closed_form() -> None:
    """The log-weight is log p(x) only where the weight is one."""
    noise = torch.randn(1, 2, 3, generator=seeded(0))
    root = torch.tensor([[[0.5, 0.2], [0.0, 0.4]]])
    posterior = FullPosterior(torch.ones(1, 2, 3), root, is_exact=True)
    draw = Draw(posterior, noise, posterior.sample(noise), torch.zeros(1, 3))
    torch.testing.assert_close(draw.elbo(), -posterior.kl_at(draw.z, noise))
    torch.testing.assert_close(draw.elbo(0.5), -0.5 * posterior.kl())


@pytest.mark.parametrize(
    ("decoder", "likelihood", "message"),
    [
        (hm.MLP((4,)), hm.Gaussian(mean="identity"), r"root/0\.decoder: expected MLP\(\(\)\), .* got MLP\(4\)"),
        (
            LINEAR,
            hm.Gaussian(),
            r"root/0\.likelihood: expected Gaussian\(.*, 'identity'\), .* got Gaussian\(0\.5\)",
        ),
        (LINEAR, hm.Gaussian("learned"), r"root/0\.likelihood: expected .* got Gaussian\(learned\)"),
        (LINEAR, hm.ContinuousBernoulli(), r"root/0\.likelihood: expected .* got ContinuousBernoulli"),
    ],
)
def test_leaves_without_a_closed_form_are_refused(decoder: Network, likelihood: Likelihood, message: str) -> None:
    expert = hm.VAE(2, hm.LinearPosterior(), decoder, likelihood)
    with pytest.raises(SpecError, match=message):
        hm.HMoEVAE(hm.Mixture.of(expert, 2), SHAPE)


def test_it_is_no_network_for_other_places() -> None:
    with pytest.raises(SpecError, match=r"root/0\.decoder: expected a network \(LinearPosterior is for the encoder"):
        hm.HMoEVAE(hm.Mixture.of(hm.VAE(2, decoder=hm.LinearPosterior()), 2), SHAPE)
    with pytest.raises(SpecError, match=r"root\.gate: expected a network \(LinearPosterior is for the encoder"):
        hm.HMoEVAE(hm.Mixture.of(leaf(), 2, gate=hm.LinearPosterior()), SHAPE)

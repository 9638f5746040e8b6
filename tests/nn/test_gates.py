"""Posterior gates: a mixture of leaves with densities in closed form needs no gate network."""

import pytest
import torch
from conftest import build, fit
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal

import hmoevae as hm
from hmoevae.errors import ArgumentError, DataError, SpecError
from hmoevae.nn.routes import TopK
from hmoevae.spec import Tree
from hmoevae.training.revival import revive

LINEAR, GATE = hm.MLP(()), hm.MLP((3,))
LEAF = hm.VAE(2, hm.LinearPosterior(), LINEAR, hm.Gaussian("learned", "identity"))
FLAT = hm.Mixture.of(LEAF, 3, gate=hm.PosteriorGate(), prior="learned")
DEEP = hm.Mixture(
    (hm.Mixture.of(LEAF, 2, gate=hm.PosteriorGate(), prior="learned"), LEAF), gate=hm.PosteriorGate(), prior="leaves"
)
SHAPE = (5,)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(n: int) -> Tensor:
    return 2 * torch.randn(n, *SHAPE, generator=seeded(1), dtype=torch.float64)


def log_joint(model: hm.HMoEVAE, x: Tensor) -> Tensor:
    """log pi_l + log p_l(x), (batch, leaf)."""
    group = model.experts.groups[0]
    weight, bias = group.decoder.last.matrices, group.decoder.last.bias
    variance = group.likelihood.scale.squeeze(2) ** 2
    found = [LowRankMultivariateNormal(b, w, v).log_prob(x) for w, b, v in zip(weight, bias, variance, strict=True)]
    return (torch.stack(found, 1) + model.prior.leaf_log_prob()).detach()


@pytest.mark.parametrize("tree", [FLAT, DEEP], ids=["flat", "deep"])
def test_the_leaves_have_their_posterior_probabilities(tree: Tree) -> None:
    model, x = build(tree, SHAPE), samples(9)
    joint = log_joint(model, x)
    torch.testing.assert_close(model.predict_proba(x), joint.softmax(1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model.route(x), joint.log_softmax(1), rtol=1e-9, atol=1e-9)
    assert torch.equal(model.predict(x), joint.argmax(1))
    out = model(x, settings=hm.StepSettings(routes=TopK(2)))
    assert torch.equal(out.leaf, joint.topk(2).indices)
    torch.testing.assert_close(model.score_samples(x), joint.logsumexp(1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("tree", [FLAT, DEEP], ids=["flat", "deep"])
def test_the_bound_is_tight_and_its_gradient_that_of_the_density(tree: Tree) -> None:
    """Of every parameter, though the gate passes none; nothing is left to distil."""
    x = samples(9)
    gradients = {}
    for objective in ("elbo", "marginal"):
        model = build(tree, SHAPE, objective=objective)
        out = model(x, generator=seeded(0))
        torch.testing.assert_close(out.terms[objective], -log_joint(model, x).logsumexp(1).mean())
        assert not out.edge_log_prob.requires_grad
        assert out.terms["balance"] == 0
        out.loss.backward()
        gradients[objective] = [parameter.grad for parameter in model.parameters()]
    torch.testing.assert_close(gradients["elbo"], gradients["marginal"], rtol=1e-7, atol=1e-9)
    assert all(gradient.abs().sum() > 0 for gradient in gradients["elbo"])


def test_a_temperature_divides_the_logarithms() -> None:
    model, x = build(FLAT, SHAPE), samples(9)
    out = model(x, settings=hm.StepSettings(gate_temperature=3.0))
    torch.testing.assert_close(out.leaf_log_prob, (log_joint(model, x) / 3).log_softmax(1))


def test_gates_of_both_kinds_see_the_view_that_their_level_sees() -> None:
    """Agreement above a level; the posterior gates below it see the samples themselves."""
    tree = hm.Mixture.of(hm.Mixture.of(LEAF, 2, gate=hm.PosteriorGate()), 2, gate=GATE)
    model, x, view, other = build(tree, SHAPE), samples(4), samples(4) + 1, samples(4) - 1
    settings = hm.StepSettings(agreement_levels=(1,))
    out = model(x, view=view, other_view=other, settings=settings)
    seen, own = (model._edge_log_prob(each.t()).t() for each in (view, x))
    torch.testing.assert_close(out.edge_log_prob, torch.cat([seen[:, :2], own[:, 2:]], 1))


def test_agreement_needs_a_gate_that_learns() -> None:
    model, x = build(FLAT, SHAPE), samples(4)
    with pytest.raises(ArgumentError, match="other_view: expected a tree with a gate that learns"):
        model.agree(x, x)


def test_a_balance_is_off_and_goes_on_below() -> None:
    tree = hm.Mixture((hm.Mixture.of(LEAF, 2, gate=GATE), LEAF), gate=hm.PosteriorGate(), balance=hm.Balance("kl", 2.0))
    assert [balance.weight for balance in build(tree, SHAPE).plan.balances] == [0.0, 2.0]


@pytest.mark.parametrize("missing", [False, True])
def test_other_columns_have_a_part_in_the_gate(missing: bool) -> None:
    """Their likelihood at the mean of z; values that they may not have are refused where other gates take them."""
    columns = hm.Columns.of(*[hm.Gaussian("learned", "identity")] * 3, hm.Categorical(3), hm.Poisson())
    leaf = hm.VAE(2, hm.LinearPosterior(), LINEAR, columns)
    model = build(hm.Mixture.of(leaf, 3, gate=hm.PosteriorGate()), SHAPE, missing=missing)
    x = samples(6)
    x[:, 3], x[:, 4] = torch.arange(6) % 3, torch.arange(6) % 4
    group = model.experts.groups[0]
    posterior = group.posterior(x.t())
    expected = group.draw(x.t(), posterior, torch.zeros_like(posterior.mean)).log_weight().softmax(0)
    torch.testing.assert_close(model.predict_proba(x), expected.detach().t())
    few = x.clone()
    few[:, 3] = (few[:, 3] + 1) % 3
    assert not torch.allclose(model.predict_proba(few), model.predict_proba(x))
    few[0, 3] = 7
    with pytest.raises(DataError, match="in column 3"):
        model.predict(few)


def test_a_dead_leaf_is_revived_as_a_noisy_copy_with_half_of_the_prior() -> None:
    model = build(FLAT, SHAPE, objective="marginal")
    with torch.no_grad():
        model.prior.logits.copy_(torch.tensor([0.0, 0.0, -30.0]))
    before = model.prior.leaf_log_prob().exp().detach()
    optimizer = torch.optim.Adam(model.parameters())
    assert revive(model, optimizer, torch.tensor([0.6, 0.4, 0.0]), seeded(0)) == ["root/2"]
    after = model.prior.leaf_log_prob().exp().detach()
    torch.testing.assert_close(after, torch.stack([before[0] / 2, before[1], before[0] / 2]))
    weight = model.experts.groups[0].decoder.last.weight
    assert 0 < (weight[2] - weight[0]).abs().max() < 0.5


@pytest.mark.slow
def test_training_finds_two_clusters_of_unequal_size() -> None:
    """With the shares of the samples as the prior, which no balance draws away."""
    x = torch.cat([torch.randn(190, 5, generator=seeded(0)) - 4, torch.randn(10, 5, generator=seeded(1)) + 4])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        leaf = hm.VAE(1, hm.LinearPosterior(), LINEAR, hm.Gaussian(1.0, "identity"))
        tree = hm.Mixture.of(leaf, 2, gate=hm.PosteriorGate(), prior="learned")
        model = hm.HMoEVAE(tree, SHAPE, objective="marginal")
    fit(model, x, epochs=80, init_epochs=40, init="kmeans", batch_size=200, lr=0.05, seed=0)
    assert model.predict(x).bincount().sort().values.tolist() == [10, 190]
    assert model.prior.leaf_log_prob().exp().min().item() == pytest.approx(0.05, abs=0.02)


def test_leaves_without_a_density_are_refused() -> None:
    tree = hm.Mixture((LEAF, hm.Mixture((LEAF, hm.VAE(2)))), gate=hm.PosteriorGate())
    with pytest.raises(SpecError, match=r"root/1/1\.encoder: expected LinearPosterior\(\), .* got MLP\(128\)"):
        hm.HMoEVAE(tree, SHAPE)


def test_it_is_no_network_for_other_places() -> None:
    with pytest.raises(SpecError, match=r"root\.encoder: expected a network \(PosteriorGate is for the gate"):
        hm.HMoEVAE(hm.VAE(2, encoder=hm.PosteriorGate()), SHAPE)

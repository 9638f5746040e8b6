"""The whole model against the plain reference on random trees, and the laws it must obey whatever its weights."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Case, about, build, cases, data_for, fixed_noise, trees
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import Reference, copy_weights
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, HMoEVAEError, ShapeError, SpecError
from hmoevae.nn.posteriors import posterior_of
from hmoevae.spec import Likelihood, Tree

SMALL = hm.VAE(2, hm.MLP((4,), "tanh"), hm.MLP((4,), "tanh"))
TINY = hm.VAE(1, hm.MLP((3,), "tanh"), hm.MLP((3,), "tanh"), hm.Gaussian(0.7))
GATE = hm.MLP((4,), "tanh")
UNEQUAL = hm.Mixture((TINY, hm.Mixture((SMALL, TINY, SMALL), gate=GATE), SMALL), gate=GATE)
SHAPE = (2, 3)


# Random trees seldom have groups that interleave; this one has: leaves 0 1 3 / 2 4 5, and gates 0 2 / 1.
INTERLEAVED = hm.Mixture(
    children=(
        hm.Mixture.of(TINY, 2, gate=GATE),
        hm.Mixture((SMALL, TINY, SMALL), gate=GATE, balance=hm.Balance("kl", 1.0), prior="learned"),
        SMALL,
    ),
    gate=GATE,
)
by_hand = example(case=Case(INTERLEAVED, SHAPE, "elbo", batch=5, seed=0), seed=0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- against the reference ------------------------------------------------------------------------------------------


@given(case=cases(), seed=st.integers(0, 1000))
@by_hand
def test_one_pass_is_the_references(case: Case, seed: int) -> None:
    """Loss, terms, every output, and the gradient of every parameter."""
    check_one_pass(case.model, case.x, seed)


@pytest.mark.parametrize("objective", ["expected", "elbo", "marginal"])
def test_far_from_all_data_one_pass_is_the_references(objective: str) -> None:
    expert = hm.VAE(2, hm.MLP((4,)), hm.MLP((4,)), hm.Gaussian(1.0, "identity"))
    model = build(hm.Mixture.of(expert, 3, gate=GATE), SHAPE, objective=objective)
    x = data_for(model.tree, SHAPE, 5)
    x[2] *= 1e3
    assert model.experts.groups[0].posterior(x.flatten(1).t()).variance.max() > math.exp(11)
    check_one_pass(model, x, seed=0)


@pytest.mark.parametrize("objective", ["elbo", "marginal"])
@pytest.mark.parametrize(
    "likelihood", [hm.LogNormal(), hm.Categorical(3), hm.Poisson(), hm.NegativeBinomial()], ids=str
)
def test_networks_see_what_the_references_see(likelihood: Likelihood, objective: str) -> None:
    """Logarithms and one-hot codes, gates what the first leaf's likelihood shows."""
    one, other = (hm.VAE(2, hm.MLP((4,)), hm.MLP((4,)), known) for known in (likelihood, hm.Gaussian(1.0, "identity")))
    model = build(
        hm.Mixture((one, hm.Mixture((one, other, one), gate=hm.MLP((3,)))), gate=hm.MLP((3,))),
        (2, 2),
        objective=objective,
    )
    check_one_pass(model, data_for(model.tree, (2, 2), 5), seed=0)


def check_one_pass(model: hm.HMoEVAE, x: Tensor, seed: int) -> None:
    twin = copy.deepcopy(model)
    out = model(x, generator=seeded(seed))
    expected = Reference(twin).run(x, Reference(twin).draw_noise(len(x), seeded(seed)))
    torch.testing.assert_close(out.leaf_elbo, expected.leaf_elbo)
    torch.testing.assert_close(out.leaf_log_prob, expected.leaf_log_prob)
    torch.testing.assert_close(out.edge_log_prob, expected.edge_log_prob)
    assert out.terms.keys() == expected.terms.keys()
    for name, value in expected.terms.items():
        torch.testing.assert_close(out.terms[name], value, msg=about(name))
    torch.testing.assert_close(out.loss, expected.loss)

    out.loss.backward()
    expected.loss.backward()
    for (name, fast), slow in zip(model.named_parameters(), twin.parameters(), strict=True):
        # A gradient that is zero may be None.
        one, other = (torch.zeros_like(p) if p.grad is None else p.grad for p in (fast, slow))
        torch.testing.assert_close(one, other, msg=about(name))


@settings(max_examples=8)
@given(case=cases(max_leaves=6), seed=st.integers(0, 1000))
@by_hand
def test_three_adam_steps_end_where_the_references_do(case: Case, seed: int) -> None:
    model, x = case.model, case.x
    twin = copy.deepcopy(model)
    slow = Reference(twin)
    optimisers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (model, twin)]
    noise = seeded(seed), seeded(seed)
    for _ in range(3):
        model(x, generator=noise[0]).loss.backward()
        slow.run(x, slow.draw_noise(len(x), noise[1])).loss.backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
    for (name, fast), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(fast, expected, rtol=1e-5, atol=1e-7, msg=about(name))


@given(case=cases(), seed=st.integers(0, 1000))
@by_hand
def test_routed_encoding_and_decoding_are_the_references(case: Case, seed: int) -> None:
    """Packing samples by leaf changes nothing: every sample gets its own leaf's answer, latents unequal or not."""
    model, x = case.model, case.x
    slow = Reference(model)
    node = model.plan.nodes[seed % len(model.plan.nodes)].path
    best = slow.best_leaf(x, node)
    z, std = model.encode(x, node=node, return_std=True)
    assert torch.equal(z, model.encode(x, node=node))
    assert std.shape == z.shape
    seen = model.reconstruct(x, node=node)
    widest = max(leaf.latent_dim for _, leaf in slow.leaves)
    assert z.shape == (len(x), widest)
    assert seen.shape == x.shape
    with torch.no_grad():
        for b, path in enumerate(best):
            posterior = slow.posterior(path, x[b : b + 1])
            mean, latent = posterior.mean, posterior.mean.shape[1]
            torch.testing.assert_close(z[b : b + 1, :latent], mean)
            torch.testing.assert_close(std[b : b + 1, :latent], posterior.stddev)
            assert (torch.stack([z, std])[:, b, latent:] == 0).all()
            torch.testing.assert_close(seen[b].flatten(), slow.observation(path, mean).mean[0])

    check_decoding(slow, torch.randint(len(slow.leaves), (7,), generator=seeded(seed)), seed)


def check_decoding(slow: Reference, leaf: Tensor, seed: int) -> None:
    model, widest = slow.model, slow.model.experts.latent_dim
    z = torch.randn(len(leaf), widest, generator=seeded(seed + 1), dtype=torch.float64)
    images = model.decode(z, leaf)
    assert images.shape == (len(leaf), *model.input_shape)
    with torch.no_grad():
        for row, i in enumerate(leaf.tolist()):
            path, spec = slow.leaves[i]
            expected = slow.observation(path, z[row : row + 1, : spec.latent_dim]).mean[0]
            torch.testing.assert_close(images[row].flatten(), expected)


@pytest.mark.parametrize(
    "counts",
    [{0: 30}, {11: 30}, {0: 29, 7: 1}, {1: 1, 4: 40, 5: 3, 10: 1}, {3: 50, 12: 50, 13: 1}],
    ids=str,
)
def test_uneven_routing_is_the_references(counts: dict[int, int]) -> None:
    """Of two groups of experts; busy ones are run as several, idle ones not at all."""
    other = hm.VAE(latent_dim=3, encoder=hm.MLP((4,)), decoder=hm.MLP((4,)))
    tree = hm.Mixture(children=(hm.Mixture.of(SMALL, 12, gate=GATE), other, other), gate=GATE)
    leaf = torch.tensor([leaf for leaf, n in counts.items() for _ in range(n)])
    check_decoding(Reference(build(tree, SHAPE, seed=0)), leaf[torch.randperm(len(leaf), generator=seeded(1))], seed=2)


@given(case=cases(objectives=("elbo",)), n_importance=st.integers(1, 4), seed=st.integers(0, 1000))
@example(case=Case(INTERLEAVED, SHAPE, "elbo", batch=5, seed=0), n_importance=3, seed=0)
def test_score_is_log_mean_exp_of_the_references_log_weights(case: Case, n_importance: int, seed: int) -> None:
    model, x = case.model, case.x
    slow, generator = Reference(model), seeded(seed)
    groups: dict[str, list[Tensor]] = {path: [] for path, _ in slow.leaves}
    with torch.no_grad():
        # The model draws all of one group's noise before the next one's.
        for group in model.plan.expert_groups:
            is_exact = isinstance(group.spec.encoder, hm.LinearPosterior)
            for _ in range(n_importance):
                sizes = len(group.members), group.spec.latent_dim, len(x)
                # All draws have the same weight where the posterior is exact, so the model draws none.
                drawn = torch.ones(sizes) if is_exact else torch.randn(sizes, generator=generator, dtype=torch.float64)
                noise = drawn.double()
                for place, member in enumerate(group.members):
                    path = model.plan.leaves[member].path
                    groups[path].append(slow.log_weight(path, x, noise[place].t()))
        log_prior = slow.run(x, {p: torch.zeros(len(x), leaf.latent_dim) for p, leaf in slow.leaves}).leaf_log_prior
        joint = torch.stack([log_prior[k] + w for k, ws in enumerate(groups.values()) for w in ws])
        expected = joint.logsumexp(0) - math.log(n_importance)
    torch.testing.assert_close(model.score_samples(x, n_importance=n_importance, generator=seeded(seed)), expected)


@given(cases(objectives=("elbo",), max_leaves=6), st.integers(0, 1000))
def test_evaluate_is_the_mean_of_every_objectives_terms(case: Case, seed: int) -> None:
    model, x = case.model, case.x
    result = model.evaluate(x, generator=seeded(seed))
    slow = Reference(model)
    noise = slow.draw_noise(len(x), seeded(seed))
    expected = {}
    for objective in ("expected", "elbo", "marginal"):
        model.objective = objective
        expected |= slow.run(x, noise).terms
    del expected["balance"]
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        assert result[name] == pytest.approx(value.item(), rel=1e-6)


# --- laws -----------------------------------------------------------------------------------------------------------


@given(cases())
def test_probabilities_sum_to_one_at_every_level(case: Case) -> None:
    model, x = case.model, case.x
    ones = torch.ones(len(x), dtype=torch.float64)
    for level in (*range(model.plan.depth + 1), None):
        probability = model.predict_proba(x, level=level)
        assert probability.shape == (len(x), len(model.plan.level(level)))
        assert (probability >= 0).all()
        torch.testing.assert_close(probability.sum(1), ones)
    out = model(x)
    for m, mixture in enumerate(model.plan.mixtures):
        edges = [e for e, owner in enumerate(model.plan.edge_mixture) if owner == m]
        torch.testing.assert_close(out.edge_log_prob[:, edges].exp().sum(1), ones, msg=about(mixture.path))


@given(cases())
def test_routing_methods_agree(case: Case) -> None:
    model, x = case.model, case.x
    route = model.route(x)
    torch.testing.assert_close(route, model(x).leaf_log_prob.detach())
    torch.testing.assert_close(model.predict_proba(x), route.exp())
    assert torch.equal(model.predict(x), route.argmax(1))
    for level in range(model.plan.depth + 1):
        nodes = model.plan.level(level)
        summed = torch.stack([route[:, n.leaves.start : n.leaves.stop].exp().sum(1) for n in nodes], 1)
        torch.testing.assert_close(model.predict_proba(x, level=level), summed)
        assert torch.equal(model.predict(x, level=level), model.predict_proba(x, level=level).argmax(1))


@st.composite
def permutations(draw: st.DrawFn, tree: Tree) -> tuple[Tree, dict[str, str]]:
    """The tree with the children of every mixture shuffled, and where each of its nodes comes from."""
    origin = {"root": "root"}

    def visit(node: Tree, path: str, old: str) -> Tree:
        if isinstance(node, hm.VAE):
            return node
        children = []
        for i, j in enumerate(draw(st.permutations(range(len(node.children))))):
            origin[f"{path}/{i}"] = f"{old}/{j}"
            children.append(visit(node.children[j], f"{path}/{i}", f"{old}/{j}"))
        return hm.Mixture(children, node.gate, node.balance, node.prior, node.name)

    return visit(tree, "root", "root"), origin


@given(cases(leaf_root=False), st.data())
def test_the_order_of_children_does_not_matter(case: Case, data: st.DataObject) -> None:
    model, x = case.model, case.x
    tree, origin = data.draw(permutations(model.tree))
    shuffled = build(tree, model.input_shape, objective=model.objective, seed=1)
    copy_weights(model, shuffled, origin)
    with fixed_noise():
        out, other = model(x), shuffled(x)
    torch.testing.assert_close(other.loss, out.loss)
    for name, value in out.terms.items():
        torch.testing.assert_close(other.terms[name], value, msg=about(name))
    leaf_of = {leaf.path: i for i, leaf in enumerate(model.plan.leaves)}
    order = [leaf_of[origin[leaf.path]] for leaf in shuffled.plan.leaves]
    torch.testing.assert_close(other.leaf_elbo, out.leaf_elbo[:, order])
    torch.testing.assert_close(other.leaf_log_prob, out.leaf_log_prob[:, order])
    torch.testing.assert_close(shuffled.reconstruct(x), model.reconstruct(x))
    with fixed_noise():
        scores = shuffled.score_samples(x, n_importance=2), model.score_samples(x, n_importance=2)
    torch.testing.assert_close(*scores)


@pytest.mark.parametrize("objective", ["expected", "elbo", "marginal"])
@pytest.mark.parametrize("children", [2, 3])
def test_a_trivial_level_changes_nothing(objective: str, children: int) -> None:
    """Each inner mixture holds copies of one expert of the flat tree: whatever its gate says, it is that expert."""
    flat_tree = hm.Mixture.of(SMALL, 4, gate=GATE)
    inner = hm.Mixture.of(SMALL, children, gate=hm.MLP((3,)), balance=hm.Balance(weight=0))
    flat = build(flat_tree, SHAPE, objective=objective, seed=2)
    deep = build(hm.Mixture.of(inner, 4, gate=GATE), SHAPE, objective=objective, seed=3)
    source, target = Reference(flat), Reference(deep)
    with torch.no_grad():
        for a, b in zip(target.gate_weights("root"), source.gate_weights("root"), strict=True):
            a.copy_(b)
        for i in range(4):
            for j in range(children):
                mine = target.encoder_weights(f"root/{i}/{j}") + target.decoder_weights(f"root/{i}/{j}")
                theirs = source.encoder_weights(f"root/{i}") + source.decoder_weights(f"root/{i}")
                for a, b in zip(mine, theirs, strict=True):
                    a.copy_(b)
    x = data_for(flat_tree, SHAPE, 6)
    with fixed_noise():
        out, other = flat(x), deep(x)
        scores = flat.score_samples(x), deep.score_samples(x)
    torch.testing.assert_close(deep.predict_proba(x, level=1), flat.predict_proba(x))
    torch.testing.assert_close(other.terms["balance"], out.terms["balance"])
    torch.testing.assert_close(*scores)
    if objective == "expected":
        torch.testing.assert_close(other.loss, out.loss)
    if objective == "marginal":
        torch.testing.assert_close(other.terms["marginal"], out.terms["marginal"])
    if objective == "elbo":
        # The bound pays, on top, for an inner gate that is not the uniform prior: its divergence, weighted by reach.
        log_gate = other.leaf_log_prob.unflatten(1, (4, children)) - out.leaf_log_prob.unsqueeze(2)
        divergence = (log_gate.exp() * (log_gate + math.log(children))).sum(2)
        paid = (out.leaf_log_prob.exp() * divergence).sum(1).mean()
        torch.testing.assert_close(other.terms["elbo"], out.terms["elbo"] + paid)


@settings(max_examples=8)
@given(cases(objectives=("elbo", "marginal"), leaf_root=False))
def test_every_parameter_gets_a_gradient(case: Case) -> None:
    model = case.model
    model(case.x, generator=seeded(0)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


# --- bounds ---------------------------------------------------------------------------------------------------------


def linear_gaussian(latent: int, seed: int) -> tuple[hm.HMoEVAE, Callable[[Tensor], Tensor]]:
    """A mixture of three linear-Gaussian VAEs with a learned prior, and its exact log p(x).

    With mean b + W z and z ~ N(0, I), x ~ N(b, W W' + scale^2 I).
    """
    expert = hm.VAE(latent, hm.MLP(()), hm.MLP(()), hm.Gaussian(0.6, "identity"))
    model = build(hm.Mixture.of(expert, 3, gate=hm.MLP((3,)), prior="learned"), (4,), seed=seed)
    slow = Reference(model)

    def log_density(x: Tensor) -> Tensor:
        joint = []
        for path, _ in slow.leaves:
            weight, bias = slow.decoder_weights(path)
            covariance = weight @ weight.T + 0.6**2 * torch.eye(4, dtype=torch.float64)
            joint.append(torch.distributions.MultivariateNormal(bias, covariance).log_prob(x))
        log_prior = model.prior.logits.log_softmax(0)
        return (torch.stack(joint, 1) + log_prior).logsumexp(1).detach()

    return model, log_density


def test_score_is_exact_where_the_encoder_is() -> None:
    """With the true posterior as q(z|x), every draw's weight is p(x): one draw is enough."""
    model, log_density = linear_gaussian(latent=1, seed=0)
    slow = Reference(model)
    with torch.no_grad():
        for path, _ in slow.leaves:
            weight, bias = slow.decoder_weights(path)
            precision = 1 + (weight.T @ weight).item() / 0.6**2
            to_mean = weight.T / 0.6**2 / precision
            encoder_weight, encoder_bias = slow.encoder_weights(path)
            encoder_weight.copy_(torch.cat([to_mean, torch.zeros(1, 4)]))
            encoder_bias.copy_(torch.stack([-(to_mean @ bias)[0], torch.tensor(math.log(1 / precision - 1e-5))]))
    x = torch.randn(20, 4, generator=seeded(1), dtype=torch.float64)
    torch.testing.assert_close(model.score_samples(x, n_importance=1, generator=seeded(2)), log_density(x))
    terms = model.evaluate(x, generator=seeded(3))
    assert terms["marginal"] == pytest.approx(-log_density(x).mean().item(), rel=1e-9)


@pytest.mark.parametrize("objective", ["expected", "elbo", "marginal"])
def test_a_variance_beyond_all_bounds_spoils_no_other_leaf(objective: str) -> None:
    model = build(hm.Mixture.of(SMALL, 3, gate=GATE), SHAPE, objective=objective, seed=0).float()
    with torch.no_grad():
        model.experts.groups[0].encoder.layers[-1].bias[0] = 200.0  # the first leaf: means and log-variances
        model.gates.groups[0].last.bias[0, 0] = -1e4
    x = data_for(model.tree, SHAPE, 5).float()
    out = model(x)
    out.loss.backward()
    assert torch.isfinite(out.leaf_elbo).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert torch.isfinite(model.score_samples(x)).all()


def test_a_variance_is_the_exponential_and_beyond_its_range_the_tangent() -> None:
    """To the bit where models live; with a gradient everywhere."""
    usual = torch.linspace(-12, 10, 50).reshape(1, 50, 1)
    raw = torch.cat([torch.zeros_like(usual), usual], dim=1).requires_grad_()
    variance = posterior_of(raw).variance
    assert torch.equal(variance, 1e-5 + usual.exp())
    variance.sum().backward()
    torch.testing.assert_close(raw.grad[:, 50:], usual.exp())
    far = torch.tensor([0.0, 0.0, 0.0, 10.5, 40.0, 1e4]).reshape(1, 6, 1).requires_grad_()
    variance = posterior_of(far).variance
    torch.testing.assert_close(variance.flatten(), math.exp(10) * torch.tensor([1.5, 31.0, 9991.0]))
    variance.sum().backward()
    torch.testing.assert_close(far.grad[0, 3:, 0], torch.full((3,), math.exp(10)))


def test_one_row_far_off_does_not_hold_up_the_others() -> None:
    """Most of what is left is its distance, 1000^2 * 8 / 2 over 201 rows: the KL of a huge variance was 3e10."""
    expert = hm.VAE(2, hm.MLP((32,)), hm.MLP((32,)), hm.Gaussian(1.0, "identity"))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = hm.HMoEVAE(hm.Mixture.of(expert, 3, gate=hm.MLP((32,))), (8,))
    x = torch.randn(201, 8, generator=seeded(0))
    x[100] = 1000.0
    history = hm.fit(model, x, hm.Training(epochs=10, batch_size=50, device="cpu"), progress=False)
    assert history["loss"][0] < 1e5
    assert history["loss"][-1] < 1000**2 * 8 / 2 / 201


def test_the_way_to_a_node_does_not_round_off_the_choice_below_it() -> None:
    inner = hm.Mixture.of(SMALL, 2, gate=GATE)
    model = build(hm.Mixture.of(inner, 2, gate=GATE), SHAPE, seed=0).float()
    x = data_for(model.tree, SHAPE, 20).float()
    with torch.no_grad():
        for gate in model.gates.groups:
            gate.last.weight.zero_()
            gate.last.bias.zero_()
        for path, logits in (("root", [2e4, 0.0]), ("root/1", [0.0, 1e-3])):
            place = model.plan.node(path).place
            model.gates.groups[place.group].last.bias[place.row] = torch.tensor(logits)
    assert torch.equal(model.encode(x, node="root/1"), model.encode(x, node="root/1/1"))


@pytest.mark.slow
def test_bounds_are_ordered_and_close_in_on_log_p() -> None:
    """E[-elbo] <= E[IW_1] <= E[IW_4] <= ... <= log p(x), for an encoder that knows nothing of the decoder."""
    model, log_density = linear_gaussian(latent=2, seed=4)
    with torch.no_grad():
        for parameter in model.experts.groups[0].encoder.parameters():
            parameter.zero_()  # q(z|x) is the prior
    generator = seeded(5)
    x = model.sample(300, observe=True, generator=generator)
    exact = log_density(x)
    bounds = [-np.mean([model.evaluate(x, generator=generator)["elbo"] for _ in range(20)])]
    for n_importance in (1, 4, 32):
        repeats = [model.score_samples(x, n_importance=n_importance, generator=generator) for _ in range(10)]
        bounds.append(torch.stack(repeats).mean().item())
    bounds.append(exact.mean().item())
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[-1] - 0.5
    tightest = model.score_samples(x, n_importance=6000, generator=generator)
    torch.testing.assert_close(tightest, exact, rtol=0, atol=0.5)
    assert tightest.mean().item() == pytest.approx(bounds[-1], abs=0.01)


@pytest.mark.slow
def test_elbo_objective_is_no_tighter_than_the_marginal_one() -> None:
    """Of the model's own terms, in the mean over draws, which for the two objectives differ in their KL."""
    tree = hm.Mixture.of(hm.Mixture.of(SMALL, 2, gate=GATE, prior="learned"), 3, gate=GATE)
    for seed in range(10):
        model = build(tree, SHAPE, seed=seed)
        x, generator = data_for(tree, SHAPE, 9, seed), seeded(seed)
        runs = [model.evaluate(x, generator=generator) for _ in range(50)]
        assert sum(terms["marginal"] - terms["elbo"] for terms in runs) < 0


# --- sampling -------------------------------------------------------------------------------------------------------


def labelled(scale: float = 0.01) -> hm.HMoEVAE:
    """A model each of whose leaves generates its own index, under an uneven prior."""
    expert = hm.VAE(1, hm.MLP(()), hm.MLP(()), hm.Gaussian(scale, "identity"))
    other = hm.VAE(2, hm.MLP(()), hm.MLP(()), hm.Gaussian(scale, "identity"))
    tree = hm.Mixture((expert, hm.Mixture((other, expert, other), prior="learned"), other), prior="learned")
    model = build(tree, (2,)).float()
    slow = Reference(model)
    with torch.no_grad():
        model.prior.logits.copy_(torch.tensor([0.3, 0.9, -0.5, 1.0, 0.0, -1.0]))
        for index, (path, _) in enumerate(slow.leaves):
            weight, bias = slow.decoder_weights(path)
            weight.zero_()
            bias.fill_(float(index))
    return model


def drawn_leaves(images: Tensor) -> Tensor:
    """The index of the leaf that each of a `labelled` model's samples comes from."""
    return images[:, 0].round().long()


@pytest.mark.parametrize("node", ["root", "root/1", "root/1/2", "root/0"])
def test_leaves_are_drawn_from_the_prior_below_a_node(node: str) -> None:
    model, n = labelled(), 20_000
    leaf = drawn_leaves(model.sample(n, node=node, generator=seeded(0)))
    outer, inner = torch.tensor([0.3, 0.9, -0.5]).softmax(0), torch.tensor([1.0, 0.0, -1.0]).softmax(0)
    prior = torch.tensor([outer[0], *(outer[1] * inner), outer[2]])
    below = model.plan.node(node).leaves
    prior = torch.tensor([p if i in below else 0.0 for i, p in enumerate(prior.tolist())])
    prior /= prior.sum()
    frequency = leaf.bincount(minlength=5) / n
    # Five standard errors of a frequency; none at all outside the subtree.
    assert ((frequency - prior).abs() <= 5 * (prior * (1 - prior) / n).sqrt()).all()


def test_samples_below_an_unlikely_node() -> None:
    """Its leaves have a prior that is zero in float32, and are drawn all the same when asked for."""
    model = labelled()
    with torch.no_grad():
        model.prior.logits[1] = -300.0
    assert set(drawn_leaves(model.sample(200, node="root/1", generator=seeded(0))).tolist()) == {1, 2, 3}
    assert 1 not in drawn_leaves(model.sample(200, generator=seeded(0)))


def test_samples_have_the_latents_distribution() -> None:
    """z ~ N(0, I) of the leaf's own size: a linear decoder's samples have covariance W W'."""
    expert = hm.VAE(2, hm.MLP(()), hm.MLP(()), hm.Gaussian(0.3, "identity"))
    model = build(expert, (3,), seed=1)
    weight, bias = Reference(model).decoder_weights("root")
    for observe, noise in ((False, 0.0), (True, 0.3**2)):
        x = model.sample(50_000, observe=observe, generator=seeded(0))
        covariance = weight @ weight.T + noise * torch.eye(3, dtype=torch.float64)
        torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=0.03)
        torch.testing.assert_close(x.mean(0), bias, rtol=0, atol=0.03)


@pytest.mark.parametrize("observe", [False, True])
def test_the_same_generator_gives_the_same_samples(observe: bool, rng_untouched: None) -> None:
    model = build(UNEQUAL, SHAPE)
    first, again, other = (model.sample(50, observe=observe, generator=seeded(s)) for s in (1, 1, 2))
    assert first.shape == (50, *SHAPE)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("observe", [False, True])
@pytest.mark.parametrize(
    "likelihood",
    [hm.Gaussian(), hm.Bernoulli(), hm.ContinuousBernoulli(), hm.ZeroInflated(), hm.Categorical(4), hm.LogNormal()],
    ids=str,
)
def test_samples_do_not_depend_on_the_batch_size(observe: bool, likelihood: Likelihood) -> None:
    """More than are drawn at a time, from two groups of leaves that each sample goes to in its turn."""
    tree = hm.Mixture((hm.VAE(2, likelihood=likelihood), hm.Mixture.of(hm.VAE(1, likelihood=likelihood), 2)))
    model = build(tree, SHAPE)
    whole, *others = (model.sample(300, observe=observe, generator=seeded(1), batch_size=b) for b in (1000, 50, 7))
    for pieces in others:
        torch.testing.assert_close(pieces, whole)


def test_without_a_generator_the_global_one_is_used() -> None:
    model = build(UNEQUAL, SHAPE)
    x = data_for(UNEQUAL, SHAPE, 4)
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append((model.sample(5), model(x).leaf_elbo, model.sample(5, observe=True)))
    for first, again in zip(*results, strict=True):
        assert torch.equal(first, again)
    assert not torch.equal(model.sample(5), model.sample(5))


def test_a_generator_spares_the_global_one(rng_untouched: None) -> None:
    model = build(UNEQUAL, SHAPE)
    x = data_for(UNEQUAL, SHAPE, 4)
    results = []
    for _ in range(2):
        g = seeded(3)
        results.append(
            (model(x, generator=g).leaf_elbo, model.score_samples(x, generator=g), model.sample(4, generator=g))
        )
        model.evaluate(x, generator=g)
    for first, again in zip(*results, strict=True):
        assert torch.equal(first, again)
    for deterministic in (model.route, model.predict, model.predict_proba, model.encode, model.reconstruct):
        deterministic(x)


# --- batches, types and places --------------------------------------------------------------------------------------

EVALUATIONS: dict[str, Callable[..., Tensor]] = {
    "route": hm.HMoEVAE.route,
    "predict": hm.HMoEVAE.predict,
    "predict_proba": hm.HMoEVAE.predict_proba,
    "encode": hm.HMoEVAE.encode,
    "reconstruct": hm.HMoEVAE.reconstruct,
}
each_evaluation = pytest.mark.parametrize("name", EVALUATIONS)


@each_evaluation
@pytest.mark.parametrize("batch_size", [1, 7, 20, 21, np.int64(5)])
def test_batches_change_nothing(name: str, batch_size: int, as_users_call: None) -> None:
    model = build(UNEQUAL, SHAPE)
    x = data_for(UNEQUAL, SHAPE, 20)
    whole = EVALUATIONS[name](model, x)
    pieces = EVALUATIONS[name](model, x, batch_size=batch_size)
    torch.testing.assert_close(pieces, whole)
    assert not whole.requires_grad


@pytest.mark.slow
def test_scores_in_batches_are_scores() -> None:
    """The draws differ, so the comparison is with many of them."""
    model = build(UNEQUAL, SHAPE)
    x = data_for(UNEQUAL, SHAPE, 10)
    whole, pieces = (model.score_samples(x, n_importance=400, batch_size=b, generator=seeded(0)) for b in (100, 3))
    torch.testing.assert_close(whole, pieces, rtol=0, atol=0.1)
    with fixed_noise():
        terms = model.evaluate(x, batch_size=100), model.evaluate(x[:5], batch_size=5), model.evaluate(x[5:])
    assert terms[0].keys() == terms[1].keys()
    with fixed_noise():
        halves = model.evaluate(torch.cat([x[:5], x[:5]]), batch_size=5)
    for name, value in terms[1].items():
        assert halves[name] == pytest.approx(value)


def test_scores_without_a_generator_are_the_samples_own(rng_untouched: None) -> None:
    """The same in every call, whatever the other samples and the batch size."""
    model = build(UNEQUAL, SHAPE)
    x = data_for(UNEQUAL, SHAPE, 10)
    scores = model.score_samples(x, n_importance=5)
    assert torch.equal(model.score_samples(x, n_importance=5), scores)
    torch.testing.assert_close(model.score_samples(x, n_importance=5, batch_size=3), scores)
    torch.testing.assert_close(model.score_samples(x.flip(0)[:4], n_importance=5), scores.flip(0)[:4])
    assert model.evaluate(x) == model.evaluate(x)


def test_evaluation_weighs_an_odd_last_batch_by_its_size() -> None:
    model = build(hm.Mixture.of(SMALL, 2, gate=GATE), SHAPE)
    x = data_for(model.tree, SHAPE, 1)
    with fixed_noise():
        one = model.evaluate(x)
        many = model.evaluate(x.expand(5, *SHAPE), batch_size=1)
        first = model.evaluate(torch.cat([x, 0 * x, 0 * x]), batch_size=1)
        zero = model.evaluate(0 * x)
    for name, value in one.items():
        assert many[name] == pytest.approx(value)
        assert first[name] == pytest.approx((value + 2 * zero[name]) / 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("likelihood", [hm.Gaussian(0.05), hm.ContinuousBernoulli()], ids=str)
def test_a_model_in_half_precision_adds_up_in_single(dtype: torch.dtype, likelihood: Likelihood) -> None:
    """Log-densities of an image beyond the range of float16, and of its last digit; gradients too."""
    shape = (3, 64, 64)
    model = build(hm.Mixture.of(hm.VAE(2, likelihood=likelihood), 3), shape).to(dtype)
    exact = copy.deepcopy(model).float()
    x = data_for(model.tree, shape, 4).to(dtype)
    scores = model.score_samples(x, n_importance=2)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact.score_samples(x, n_importance=2), rtol=0.01, atol=5)
    terms, expected = model.evaluate(x), exact.evaluate(x)
    assert terms == pytest.approx(expected, rel=0.01, abs=5)
    if isinstance(likelihood, hm.Gaussian):
        assert terms["elbo"] > torch.finfo(torch.float16).max
    torch.testing.assert_close(model.predict_proba(x).sum(1), torch.ones(4))
    out = model(x, generator=seeded(0))
    out.loss.backward()
    assert out.loss.item() == pytest.approx(exact(x, generator=seeded(0)).loss.item(), rel=0.01, abs=5)
    assert {parameter.grad.dtype for parameter in model.parameters()} == {dtype}
    mean, std = model.encode(x, return_std=True)
    images = model.reconstruct(x), model.decode(mean, model.predict(x)), model.sample(3), model.sample(3, observe=True)
    for result in (mean, std, *images):
        assert result.dtype == dtype
        assert torch.isfinite(result).all()


@each_evaluation
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("data_dtype", [torch.float16, torch.float32, torch.float64])
def test_any_floating_point_data_will_do(name: str, model_dtype: torch.dtype, data_dtype: torch.dtype) -> None:
    model = build(UNEQUAL, SHAPE).to(model_dtype)
    x = data_for(UNEQUAL, SHAPE, 5).to(data_dtype)
    expected = EVALUATIONS[name](model, x.to(model_dtype))
    for given_as in (x, x.numpy()):
        result = EVALUATIONS[name](model, given_as)
        assert isinstance(result, Tensor)
        assert result.dtype == (torch.int64 if name == "predict" else model_dtype)
        assert torch.equal(result, expected)


def test_forward_and_scores_take_other_floating_point_data() -> None:
    model = build(UNEQUAL, SHAPE).float()
    x = data_for(UNEQUAL, SHAPE, 5)
    single, double = model(x.float(), generator=seeded(0)), model(x, generator=seeded(0))
    assert double.loss.dtype == torch.float32
    assert torch.equal(single.loss, double.loss)
    assert torch.equal(
        model.score_samples(x.numpy(), generator=seeded(0)), model.score_samples(x.float(), generator=seeded(0))
    )
    assert model.evaluate(x.numpy(), generator=seeded(0)) == model.evaluate(x.float(), generator=seeded(0))


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::-1],
        lambda a: a[:, ::2][:, :1],
        lambda a: a.astype(">f4"),
        lambda a: np.asfortranarray(a),
        lambda a: a.astype(np.longdouble),
    ],
    ids=["reversed", "strided", "big-endian", "fortran", "longdouble"],
)
def test_any_numpy_layout_will_do(view: Callable[[np.ndarray], np.ndarray]) -> None:
    x = view(np.random.default_rng(0).random((6, 2), dtype=np.float32))
    model = build(hm.Mixture.of(SMALL, 3, gate=GATE), x.shape[1:]).float()
    expected = model.predict_proba(torch.tensor(np.ascontiguousarray(x, dtype=np.float32)))
    assert torch.equal(model.predict_proba(x), expected)


def test_a_read_only_array_is_read_without_a_warning() -> None:
    x = np.random.default_rng(0).random((6, 2), dtype=np.float32)
    x.flags.writeable = False
    assert build(hm.Mixture.of(SMALL, 3, gate=GATE), (2,)).predict(x).shape == (6,)


def test_strided_tensors_will_do() -> None:
    model = build(UNEQUAL, SHAPE)
    x = data_for(UNEQUAL, SHAPE, 10)
    odd = x.transpose(0, 2).contiguous().transpose(0, 2)[::2]
    assert not odd.is_contiguous()
    assert torch.equal(model.route(odd), model.route(odd.contiguous()))
    assert torch.equal(model(odd, generator=seeded(0)).loss, model(odd.contiguous(), generator=seeded(0)).loss)
    assert torch.equal(model.reconstruct(odd), model.reconstruct(odd.contiguous()))


def test_leaf_indices_of_any_integer_type_will_do() -> None:
    model = build(UNEQUAL, SHAPE)
    z = torch.randn(5, 2, generator=seeded(0), dtype=torch.float64)
    leaf = torch.tensor([4, 0, 2, 0, 1])
    assert torch.equal(model.decode(z, leaf.int()), model.decode(z, leaf))
    assert model.decode(z[:0], leaf[:0]).shape == (0, *SHAPE)


@pytest.mark.usefixtures("as_users_call")
def test_counts_may_be_numpys() -> None:
    model = build(UNEQUAL, SHAPE)
    x = data_for(UNEQUAL, SHAPE, 5)
    two = np.int64(2)
    assert model.sample(two, batch_size=two).shape == (2, *SHAPE)
    assert model.score_samples(x, n_importance=two, batch_size=two).shape == (5,)
    assert model.decode(torch.zeros(5, 2), torch.arange(5), batch_size=two).shape == (5, *SHAPE)


def test_inputs_are_left_alone() -> None:
    model = build(UNEQUAL, SHAPE)
    x = data_for(UNEQUAL, SHAPE, 4)
    before = x.clone()
    model(x).loss.backward()
    model.reconstruct(x)
    model.score_samples(x, n_importance=2)
    assert torch.equal(x, before)
    assert not x.requires_grad


def test_repr_shows_the_tree_and_the_sizes() -> None:
    model = hm.HMoEVAE(UNEQUAL, SHAPE, objective="marginal")
    n_parameters = sum(p.numel() for p in model.parameters())
    text = repr(model)
    assert f"input_shape=(2, 3), objective='marginal', leaves=5, parameters={n_parameters:,}" in text
    drawn = [line.strip() for line in text.splitlines()]
    assert [line for line in str(UNEQUAL).splitlines() if line.strip() not in drawn] == []


@pytest.mark.usefixtures("as_users_call")
def test_properties() -> None:
    model = hm.HMoEVAE(UNEQUAL, (2, np.int64(3)))
    assert model.tree is UNEQUAL
    assert (model.device, model.dtype, model.input_shape) == (torch.device("cpu"), torch.float32, (2, 3))
    assert model.double().dtype == torch.float64


# --- bad input ------------------------------------------------------------------------------------------------------

VALID = torch.full((3, *SHAPE), 0.5)


def with_value(value: float, sample: int = 1) -> Tensor:
    """Valid data but for one number."""
    x = VALID.clone()
    x[sample, 0, 2] = value
    return x


BAD_DATA = [
    (VALID[0], ShapeError, "x: expected (batch, 2, 3), got (2, 3)"),
    (VALID.flatten(1), ShapeError, "x: expected (batch, 2, 3), got (3, 6)"),
    (VALID.transpose(1, 2), ShapeError, "x: expected (batch, 2, 3), got (3, 3, 2)"),
    (VALID.unsqueeze(1), ShapeError, "x: expected (batch, 2, 3), got (3, 1, 2, 3)"),
    (torch.tensor(0.5), ShapeError, "x: expected (batch, 2, 3), got ()"),
    (
        VALID.to(torch.uint8),
        ArgumentTypeError,
        "x: expected floating point values, got torch.uint8",
    ),
    (VALID > 0, ArgumentTypeError, "x: expected floating point values, got torch.bool"),
    (VALID + 0j, ArgumentTypeError, "x: expected floating point values, got torch.complex64"),
    (
        np.ones((3, 2, 3), np.int64),
        ArgumentTypeError,
        "x: expected floating point values, got int64",
    ),
    (np.full((3, 2, 3), "0.5"), ArgumentTypeError, "x: expected floating point values, got <U3"),
    (VALID[:0], DataError, "x: expected at least one sample, got none"),
    (with_value(math.nan), DataError, "x: expected finite values, got NaN or infinity in 1 samples, first 1"),
    (with_value(-math.inf, 2), DataError, "x: expected finite values, got NaN or infinity in 1 samples, first 2"),
    (VALID * math.nan, DataError, "x: expected finite values, got NaN or infinity in 3 samples, first 0"),
]
CHECKED = {**EVALUATIONS, "forward": hm.HMoEVAE.forward, "score_samples": hm.HMoEVAE.score_samples}
CHECKED |= {"evaluate": hm.HMoEVAE.evaluate}


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("method", CHECKED)
@pytest.mark.parametrize(("x", "error", "message"), BAD_DATA, ids=[f"{m[3:60]}" for _, _, m in BAD_DATA])
def test_bad_data_is_refused(method: str, x: object, error: type[HMoEVAEError], message: str) -> None:
    model = build(UNEQUAL, SHAPE).float()
    with pytest.raises(error) as caught:
        CHECKED[method](model, x)
    assert str(caught.value).startswith(message)  # and ends in a hint, see test_samples
    assert isinstance(caught.value, TypeError if error is ArgumentTypeError else ValueError)


@pytest.mark.parametrize("method", CHECKED)
@pytest.mark.parametrize(
    ("value", "got"), [(1.5, "0.5 to 1.5"), (-0.25, "-0.25 to 0.5"), (1.0001220703125, "0.5 to 1.0001220703125")]
)
def test_values_outside_the_support_are_refused_where_there_is_a_density(method: str, value: float, got: str) -> None:
    """Gates and encoders take them: of a column that is scaled to [0, 1], new rows go a little beyond."""
    model = build(UNEQUAL, SHAPE).float()
    x = with_value(value)
    if method in EVALUATIONS:
        small, tiny = (replace(leaf, likelihood=hm.Gaussian(1.0, "identity")) for leaf in (SMALL, TINY))
        twin = build(hm.Mixture((tiny, hm.Mixture((small, tiny, small), gate=GATE), small), gate=GATE), SHAPE).float()
        answer, expected = EVALUATIONS[method](model, x), EVALUATIONS[method](twin, x)
        assert torch.equal(answer, expected.sigmoid() if method == "reconstruct" else expected)
        return
    with pytest.raises(DataError) as caught:
        CHECKED[method](model, x)
    expected = "values in [0, 1] (for others, Gaussian(mean='identity'))"
    assert str(caught.value) == f"x: expected {expected}, got values from {got}"


@each_evaluation
def test_values_far_outside_the_support_are_warned_of(name: str) -> None:
    """Such as those of pixels that are not / 255."""
    model = build(UNEQUAL, SHAPE).float()
    said = r"x: expected values in \[0, 1\] .*, or close to it, got values from 0.5 to 255"
    with pytest.warns(UserWarning, match=said) as caught:
        EVALUATIONS[name](model, with_value(255.0))
    assert caught[0].filename == __file__
    with pytest.raises(DataError, match="x: expected finite values"):
        EVALUATIONS[name](model, with_value(math.inf))


@pytest.mark.parametrize("likelihood", [hm.Gaussian(), hm.Bernoulli(), hm.ContinuousBernoulli()], ids=str)
@pytest.mark.parametrize("model_dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("data_dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("low", [False, True])
def test_a_bound_that_rounding_has_moved_is_the_bound(
    likelihood: Likelihood, model_dtype: torch.dtype, data_dtype: torch.dtype, low: bool
) -> None:
    """The data's or the model's, as `MinMaxScaler` leaves them: 1 and a last digit, or a last digit less than 0."""
    model = build(hm.Mixture.of(hm.VAE(2, likelihood=likelihood), 2), SHAPE).to(model_dtype)
    exact = data_for(hm.VAE(likelihood=hm.Bernoulli()), SHAPE, 4).to(data_dtype)
    eps = torch.finfo(data_dtype).eps
    moved = torch.where(exact == (0 if low else 1), exact - eps if low else exact + eps, exact)
    assert not torch.equal(moved, exact)
    read = model.check_input(moved).to(model_dtype)
    assert torch.equal(read, exact.to(model_dtype))
    assert torch.equal(model(moved, generator=seeded(0)).loss, model(exact, generator=seeded(0)).loss)
    assert model.evaluate(moved) == model.evaluate(exact)
    assert torch.equal(model.score_samples(moved, n_importance=2), model.score_samples(exact, n_importance=2))


def test_no_more_than_rounding_is_forgiven() -> None:
    model = build(UNEQUAL, SHAPE).float()
    assert model.check_input(with_value(1 + 1e-5 - 1e-6)).max() == 1
    with pytest.raises(DataError, match=r"got values from 0\.5 to 1\.00002"):
        model.check_input(with_value(1 + 2e-5))


@pytest.mark.parametrize(
    ("likelihood", "x", "message"),
    [
        (
            hm.Bernoulli(),
            VALID,
            "x: expected values 0 or 1 (for grey levels in [0, 1], ContinuousBernoulli is a density), "
            "got values from 0.5 to 0.5",
        ),
        (hm.ContinuousBernoulli(), VALID + 1, "x: expected values in [0, 1], got values from 1.5 to 1.5"),
    ],
)
def test_one_leaf_with_another_support_is_enough_to_refuse_data(
    likelihood: hm.Bernoulli | hm.ContinuousBernoulli, x: Tensor, message: str
) -> None:
    free = hm.VAE(2, likelihood=hm.Gaussian(1.0, "identity"))
    model = build(hm.Mixture((free, hm.Mixture((free, hm.VAE(2, likelihood=likelihood))))), SHAPE).float()
    with pytest.raises(DataError) as caught:
        model(x)
    assert str(caught.value) == message
    build(hm.Mixture.of(free, 2), SHAPE).float()(x * 100)


def test_data_too_large_for_the_models_dtype() -> None:
    """Finite in float64, infinite in the model's float32."""
    model = build(hm.VAE(2, likelihood=hm.Gaussian(1.0, "identity")), SHAPE).float()
    with pytest.raises(DataError, match="x: expected finite values"):
        model(VALID.double() * 1e300)


@pytest.mark.usefixtures("as_users_call")
def test_a_training_step_takes_one_batch() -> None:
    """Unlike the methods, which take data sets and loaders, too."""
    for x, got in ((VALID.tolist(), r"a list \(np.asarray"), (None, "None")):
        with pytest.raises(ArgumentTypeError, match=f"x: expected a torch.Tensor or numpy array, got {got}"):
            build(UNEQUAL, SHAPE)(x)


def test_checks_of_values_can_be_left_out_but_not_those_of_shape() -> None:
    model = build(UNEQUAL, SHAPE).float()
    assert torch.isfinite(model(VALID + 3, validate=False).loss)
    with pytest.raises(ShapeError):
        model(VALID.flatten(1), validate=False)


def test_check_input_names_the_argument() -> None:
    with pytest.raises(ShapeError) as caught:
        build(UNEQUAL, SHAPE).check_input(torch.rand(3, 7), name="validation_data")
    assert str(caught.value) == "validation_data: expected (batch, 2, 3), got (3, 7)"


def decode(z: object, leaf: object) -> Callable[[hm.HMoEVAE], object]:
    return lambda model: model.decode(z, leaf)


Z = torch.zeros(3, 2)
LEAF = torch.tensor([0, 1, 4])
BAD_ARGUMENTS = [
    (lambda m: m(VALID, generator=0), ArgumentTypeError, "generator: expected a torch.Generator or None, got 0"),
    (lambda m: m.sample(3, generator=0), ArgumentTypeError, "generator: expected a torch.Generator or None, got 0"),
    (
        lambda m: m.predict(VALID, level=3),
        ArgumentError,
        "level: expected an integer from 0 to the tree's depth 2, got 3",
    ),
    (
        lambda m: m.predict_proba(VALID, level=-1),
        ArgumentError,
        "level: expected an integer from 0 to the tree's depth 2, got -1",
    ),
    (
        lambda m: m.encode(VALID, node="root/7"),
        ArgumentError,
        "node: expected a node of the tree (root has children 0 to 2), got 'root/7'",
    ),
    (
        lambda m: m.reconstruct(VALID, node="root/0/1"),
        ArgumentError,
        "node: expected a node of the tree (root/0 has no children), got 'root/0/1'",
    ),
    (
        lambda m: m.sample(3, node="leaf"),
        ArgumentError,
        "node: expected a path that starts with 'root', such as 'root/0', got 'leaf'",
    ),
    (lambda m: m.sample(0), ArgumentError, "n: expected an integer > 0, got 0"),
    (lambda m: m.sample(-2), ArgumentError, "n: expected an integer > 0, got -2"),
    (lambda m: m.sample(2.0), ArgumentError, "n: expected an integer > 0, got 2.0"),
    (lambda m: m.sample(True), ArgumentError, "n: expected an integer > 0, got True"),
    (lambda m: m.sample(None), ArgumentError, "n: expected an integer > 0, got None"),
    (lambda m: m.score_samples(VALID, n_importance=0), ArgumentError, "n_importance: expected an integer > 0, got 0"),
    (decode(Z[0], LEAF), ShapeError, "z: expected (batch, 2), got (2,)"),
    (decode(Z[:, :1], LEAF), ShapeError, "z: expected (batch, 2), got (3, 1)"),
    (decode(Z, LEAF[:2]), ShapeError, "leaf: expected (3,), one per row of z, got (2,)"),
    (decode(Z, LEAF.unsqueeze(1)), ShapeError, "leaf: expected (3,), one per row of z, got (3, 1)"),
    (decode(Z, LEAF + 1), ArgumentError, "leaf: expected indices from 0 to 4, got 1 to 5"),
    (decode(Z, LEAF - 1), ArgumentError, "leaf: expected indices from 0 to 4, got -1 to 3"),
    (decode(Z, LEAF.float()), ArgumentTypeError, "leaf: expected integers, got torch.float32"),
    (decode(Z.tolist(), LEAF), ArgumentTypeError, "z: expected a torch.Tensor, got list"),
    (decode(Z, LEAF.tolist()), ArgumentTypeError, "leaf: expected a torch.Tensor, got list"),
]
BAD_ARGUMENTS += [
    (
        lambda m, name=name, size=size: CHECKED[name](m, VALID, batch_size=size),
        ArgumentError,
        f"batch_size: expected an integer > 0, got {size!r}",
    )
    for name in CHECKED
    if name != "forward"
    for size in (0, -1, 2.5)
]
BAD_ARGUMENTS += [
    (lambda m: m.sample(3, observe=True, batch_size=0), ArgumentError, "batch_size: expected an integer > 0, got 0"),
    (lambda m: m.sample(3, batch_size=0), ArgumentError, "batch_size: expected an integer > 0, got 0"),
    (lambda m: m.decode(Z, LEAF, batch_size=0), ArgumentError, "batch_size: expected an integer > 0, got 0"),
]


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(("call", "error", "message"), BAD_ARGUMENTS, ids=[message for _, _, message in BAD_ARGUMENTS])
def test_bad_arguments_are_refused(
    call: Callable[[hm.HMoEVAE], object], error: type[HMoEVAEError], message: str
) -> None:
    with pytest.raises(error) as caught:
        call(build(UNEQUAL, SHAPE).float())
    assert str(caught.value) == message


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((UNEQUAL, ()), ArgumentError, "input_shape: expected a tuple of integers > 0, got ()"),
        ((UNEQUAL, 6), ArgumentError, "input_shape: expected a tuple of integers > 0, got 6"),
        ((UNEQUAL, (1, 0)), ArgumentError, "input_shape: expected a tuple of integers > 0, got (1, 0)"),
        ((UNEQUAL, (2, -3)), ArgumentError, "input_shape: expected a tuple of integers > 0, got (2, -3)"),
        ((UNEQUAL, (2.0, 3)), ArgumentError, "input_shape: expected a tuple of integers > 0, got (2.0, 3)"),
        ((UNEQUAL, "23"), ArgumentError, "input_shape: expected a tuple of integers > 0, got '23'"),
        (("tree", SHAPE), ArgumentTypeError, "tree: expected a VAE or a Mixture, got str"),
        ((hm.MLP(), SHAPE), ArgumentTypeError, "tree: expected a VAE or a Mixture, got MLP"),
        (
            (hm.Mixture.of(hm.Mixture.of(SMALL, 2, gate=hm.Conv()), 2), SHAPE),
            SpecError,
            "root/0.gate: expected an MLP, or samples of shape (channels, height, width) for a Conv, "
            "got Conv(16-32, MLP 128) for samples of shape (2, 3)",
        ),
    ],
)
def test_bad_models_are_refused(arguments: tuple, error: type[HMoEVAEError], message: str) -> None:
    with pytest.raises(error) as caught:
        hm.HMoEVAE(*arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("shape", [(32, 32, 3), (48, 64, 1), (28, 28, 4)], ids=str)
def test_images_with_their_channels_last_are_warned_of(shape: tuple[int, int, int]) -> None:
    tree = hm.Mixture.of(hm.Mixture.of(SMALL, 2, gate=GATE), 2, gate=hm.Conv((2,), 3, 4, ()))
    height, width, channels = shape
    expected = (
        f"input_shape: expected (channels, height, width) for Conv, such as {(channels, height, width)} for "
        f"x.permute(0, 3, 1, 2), got {shape}, which looks like (height, width, channels)"
    )
    with pytest.warns(UserWarning, match="input_shape") as caught:
        hm.HMoEVAE(tree, shape)
    assert [(str(warning.message), warning.filename) for warning in caught] == [(expected, __file__)]
    hm.HMoEVAE(tree, (channels, height, width))
    hm.HMoEVAE(hm.Mixture.of(SMALL, 2, gate=GATE), shape)


@pytest.mark.usefixtures("as_users_call")
def test_bad_objectives_are_refused() -> None:
    with pytest.raises(ArgumentError) as caught:
        hm.HMoEVAE(UNEQUAL, SHAPE, objective="mse")
    assert (
        str(caught.value)
        == "objective: expected one of 'expected', 'elbo', 'marginal' (import the module that registers another), "
        "got 'mse'"
    )
    with pytest.raises(ArgumentError) as caught:
        hm.HMoEVAE(hm.Mixture.of(SMALL, 2, prior="learned"), SHAPE)
    assert str(caught.value) == (
        "objective: expected 'elbo' or 'marginal' for a tree with a learned prior, which 'expected' does not use, "
        "got 'expected'"
    )


@given(trees(), st.integers(0, 100))
@settings(max_examples=5)
def test_a_model_starts_the_same_from_the_same_seed(tree: Tree, seed: int) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(seed)
        states.append(hm.HMoEVAE(tree, (3,), objective="elbo").state_dict())
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name

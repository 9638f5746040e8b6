"""Routed passes against the plain reference, which runs the chosen leaves of each sample one by one."""

import hypothesis
import pytest
import torch
from conftest import Case, build, cases, data_for, with_gaps
from hypothesis import strategies as st
from reference import Reference, walk
from test_routes import SHAPE, TREES
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import ArgumentError
from hmoevae.nn.routes import Given, Routes, TopK

OBJECTIVES = ("expected", "elbo", "marginal")
NET = hm.MLP((5,), "tanh")
# A likelihood with parameters in every leaf, beside those of test_routes.py.
COUNTS = hm.Mixture.of(hm.VAE(2, NET, NET, hm.NegativeBinomial()), 4, gate=NET)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ran(model: hm.HMoEVAE, x: Tensor, routes: Routes, seed: int) -> list[set[str]] | None:
    """The mixtures whose gates run for every sample; `None` for all."""
    width = model.beam_of(routes)
    if width is None:
        return None
    draws = model.prepare(x, settings=hm.StepSettings(routes=routes), generator=seeded(seed)).draws
    drawn = routes.explored(model.plan.n_leaves, draws)
    others, reference = [-1] * len(x) if drawn is None else drawn.tolist(), Reference(model)
    return [walk(reference, [x[b : b + 1]] * model.plan.depth, width, other).ran for b, other in enumerate(others)]


def assert_equals_reference(model: hm.HMoEVAE, x: Tensor, routes: Routes, seed: int = 0) -> None:
    """Outputs and, for every parameter, gradients."""
    out = model(x, settings=hm.StepSettings(routes=routes), generator=seeded(seed))
    assert out.leaf is not None
    noise = torch.randn(out.leaf.shape[1], model.experts.latent_dim, len(x), generator=seeded(seed), dtype=x.dtype)
    slow = Reference(model).run_over(x, out.leaf.tolist(), noise, ran(model, x, routes, seed))
    for name in ("leaf_elbo", "leaf_log_prob", "edge_log_prob"):
        torch.testing.assert_close(getattr(out, name), getattr(slow, name), msg=lambda text, n=name: f"{n}: {text}")
    assert out.terms.keys() == slow.terms.keys()
    for name, term in slow.terms.items():
        torch.testing.assert_close(out.terms[name], term, msg=lambda text, n=name: f"{n}: {text}")
    names, parameters = zip(*model.named_parameters(), strict=True)
    found, expected = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (out.loss, slow.loss))
    for name, one, other in zip(names, found, expected, strict=True):
        one, other = (torch.zeros(1) if g is None else g.to_dense() for g in (one, other))
        one, other = torch.broadcast_tensors(one.to(x.dtype), other.to(x.dtype))
        torch.testing.assert_close(one, other, msg=lambda text, n=name: f"gradient of {n}: {text}")


def best(log_prob: Tensor, k: int, explore: float, draws: Tensor) -> list[tuple[set[int], int]]:
    """For each sample, the leaves that are the most probable ones, and the last one of its slots; without ties."""
    found = []
    for row, (first, second) in zip(log_prob.tolist(), draws.t().tolist(), strict=True):
        ranked = sorted(range(len(row)), key=lambda i: -row[i])[:k]
        other = int(second * len(row))
        if first < explore and other not in ranked:
            ranked[-1] = other
        found.append((set(ranked[:-1]), ranked[-1]))
    return found


@st.composite
def routed_cases(draw: st.DrawFn) -> tuple[Case, TopK]:
    """Random trees of at least two leaves, and fewer slots than that."""
    case = draw(cases(leaf_root=False))
    explore = draw(st.sampled_from((0.0, 0.3, 1.0)))
    return case, TopK(draw(st.integers(1, case.tree.n_leaves - 1)), explore=explore)


@hypothesis.given(routed_cases())
@hypothesis.settings(max_examples=40)
def test_random_trees(drawn: tuple[Case, TopK]) -> None:
    case, routes = drawn
    model, x = case.model, case.x
    assert_equals_reference(model, x, routes, case.seed)
    out = model(x, settings=hm.StepSettings(routes=routes), generator=seeded(case.seed))
    generator = seeded(case.seed)
    torch.randn(routes.k, model.experts.latent_dim, len(x), generator=generator, dtype=x.dtype)
    draws = torch.rand(2, len(x), generator=generator)
    log_prob, reached = out.leaf_log_prob.detach().clone(), ran(model, x, routes, case.seed)
    for b, paths in enumerate(reached or []):
        above = [leaf.path.rpartition("/")[0] for leaf in model.plan.leaves]
        log_prob[b, torch.tensor([path not in paths for path in above])] = -torch.inf
    for found, (first, last) in zip(out.leaf.tolist(), best(log_prob, *_of(routes), draws), strict=True):
        assert (set(found[:-1]), found[-1]) == (first, last)


def _of(routes: TopK) -> tuple[int, float]:
    return routes.k, routes.explore


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("missing", [False, True], ids=["whole", "gaps"])
@pytest.mark.parametrize("name", TREES)
def test_networks_and_likelihoods_of_all_sorts(name: str, missing: bool, objective: str) -> None:
    """Convolutions, a user's networks and likelihood, parameters of likelihoods, one sample or nine."""
    tree = TREES[name]
    if objective == "expected" and isinstance(tree, hm.Mixture) and tree.prior == "learned":
        pytest.skip("refused")
    model = build(tree, SHAPE, objective=objective, missing=missing)
    for n in (1, 9):
        x = data_for(tree, SHAPE, n)
        x = with_gaps(x, seed=n) if missing else x
        for k in range(1, model.plan.n_leaves):
            assert_equals_reference(model, x, TopK(k, explore=0.5))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_counts(objective: str) -> None:
    model = build(COUNTS, (6,), objective=objective)
    x = torch.poisson(torch.full((9, 6), 3.0), generator=seeded()).double()
    for k in (1, 2, 3):
        assert_equals_reference(model, x, TopK(k, explore=0.5))


@pytest.mark.parametrize("k", [1, 2])
def test_one_leaf_takes_all(k: int) -> None:
    """Its rows are split where it takes most of the pairs."""
    model = build(TREES["dense"], SHAPE)
    with torch.no_grad():
        Reference(model).gate_weights("root")[-1][2] = 50.0
    x = data_for(model.tree, SHAPE, 30)
    assert (model.predict(x) == 2).all()
    assert_equals_reference(model, x, TopK(k))
    assert_equals_reference(model, x, TopK(k, explore=0.2))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_ties(k: int) -> None:
    """Gates that know nothing: any k leaves will do, but different ones."""
    model = build(TREES["dense"], SHAPE)
    with torch.no_grad():
        for weight in Reference(model).gate_weights("root")[-2:]:
            weight.zero_()
    x = data_for(model.tree, SHAPE, 20)
    out = model(x, settings=hm.StepSettings(routes=TopK(k, explore=0.5)))
    assert all(len(set(leaf)) == k for leaf in out.leaf.tolist())
    assert_equals_reference(model, x, TopK(k, explore=0.5))


def test_given_leaves_over_groups_of_unequal_leaves() -> None:
    model, n = build(TREES["mixed"], SHAPE), 11
    leaf = torch.stack([torch.randperm(model.plan.n_leaves, generator=seeded(i))[:3] for i in range(n)], 1)
    assert_equals_reference(model, data_for(model.tree, SHAPE, n), Given(leaf))


def test_k_of_all_leaves_is_the_dense_pass_to_the_bit() -> None:
    model = build(TREES["mixed"], SHAPE)
    x, n = data_for(model.tree, SHAPE, 6), model.plan.n_leaves
    found = []
    for routes in (hm.routes.ALL, TopK(n, explore=0.5), TopK(n + 3)):
        model.zero_grad()
        generator = seeded()
        out = model(x, settings=hm.StepSettings(routes=routes), generator=generator)
        assert out.leaf is None
        out.loss.backward()
        found.append(([out.loss, *(p.grad for p in model.parameters())], generator.get_state()))
    for numbers, state in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(numbers, found[0][0], strict=True))
        assert torch.equal(state, found[0][1])


def test_all_leaves_given_are_the_dense_pass() -> None:
    """Every leaf in a slot of every sample, in another order."""
    model = build(TREES["dense"], SHAPE)
    leaf = torch.stack([torch.randperm(4, generator=seeded(i)) for i in range(8)], 1)
    assert_equals_reference(model, data_for(model.tree, SHAPE, 8), Given(leaf))


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 0}, "TopK.k: expected an integer > 0, got 0"),
        ({"k": 1.5}, "TopK.k: expected an integer"),
        ({"k": True}, "TopK.k: expected an integer"),
        ({"k": 1, "explore": 2}, "TopK.explore: expected .*, got 2"),
        ({"k": 1, "explore": -0.1}, "TopK.explore: expected .*, got -0.1"),
        ({"k": 1, "explore": float("nan")}, "TopK.explore: expected .*, got nan"),
    ],
)
def test_bad_values_are_named(options: dict[str, float], words: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{words}"):
        TopK(**options)

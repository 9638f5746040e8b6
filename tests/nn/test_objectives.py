"""Objectives and balance terms against their formulas written out, and what must hold of them whatever the network."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import reference
import torch
from conftest import build, data_for, fixed_noise, trees
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError
from hmoevae.nn.agreement import agreement
from hmoevae.nn.balance import Balances
from hmoevae.nn.objectives import OBJECTIVES, objective
from hmoevae.nn.paths import Paths
from hmoevae.nn.prior import Prior
from hmoevae.nn.routes import restricted
from hmoevae.plan import Plan, compile_tree
from hmoevae.spec import Tree

LEAF = hm.VAE(latent_dim=2, encoder=hm.MLP((4,)), decoder=hm.MLP((4,)))


def random_inputs(leaves: int, batch: int, seed: int, spread: float = 10.0) -> tuple[Tensor, Tensor, Tensor]:
    """ELBOs, log-probabilities of the leaves (leaf, batch), and a log prior, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    elbo = spread * torch.randn(leaves, batch, generator=generator, dtype=torch.float64)
    log_prob = torch.randn(leaves, batch, generator=generator, dtype=torch.float64).log_softmax(0)
    log_prior = torch.randn(leaves, generator=generator, dtype=torch.float64).log_softmax(0)
    return elbo.requires_grad_(), log_prob.requires_grad_(), log_prior.requires_grad_()


def terms_of(name: str, elbo: Tensor, log_prob: Tensor, log_prior: Tensor) -> dict[str, Tensor]:
    """The means of an objective's terms, from a prior of the leaves."""
    terms = OBJECTIVES[name].terms(elbo, log_prob, log_prior.unsqueeze(1))
    assert {term.shape for term in terms.values()} == {(elbo.shape[1],)}
    return {name: term.mean() for name, term in terms.items()}


# --- objectives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
@given(leaves=st.integers(1, 6), batch=st.integers(1, 5), seed=st.integers(0, 1000))
def test_objective_is_its_formula(name: str, leaves: int, batch: int, seed: int) -> None:
    fast, slow = random_inputs(leaves, batch, seed), random_inputs(leaves, batch, seed)
    terms = terms_of(name, *fast)
    expected = getattr(reference, f"naive_{name}")(slow[0].t(), slow[1].t(), slow[2])
    assert terms.keys() == expected.keys()
    for term, value in expected.items():
        torch.testing.assert_close(terms[term], value)
    sum(terms.values()).backward()
    sum(expected.values()).backward()
    for a, b in zip(fast, slow, strict=True):
        # A gradient that is zero may be None.
        one, other = (torch.zeros_like(t) if t.grad is None else t.grad for t in (a, b))
        torch.testing.assert_close(one, other)


@given(leaves=st.integers(1, 6), batch=st.integers(1, 5), seed=st.integers(0, 1000))
def test_elbo_is_below_the_marginal_bound(leaves: int, batch: int, seed: int) -> None:
    """Jensen: whatever the gate, -elbo <= mean logsumexp(log pi + ELBO); the responsibilities reach it."""
    elbo, log_prob, log_prior = random_inputs(leaves, batch, seed)
    bound = -terms_of("marginal", elbo, log_prob, log_prior)["marginal"]
    assert -terms_of("elbo", elbo, log_prob, log_prior)["elbo"] <= bound + 1e-9
    best_gate = (elbo + log_prior.unsqueeze(1)).log_softmax(0)
    torch.testing.assert_close(-terms_of("elbo", elbo, best_gate, log_prior)["elbo"], bound)


def test_distillation_trains_the_gate_alone() -> None:
    """The responsibilities are the gate's targets: no gradient flows into the experts through them."""
    elbo, log_prob, log_prior = random_inputs(4, 3, seed=0)
    terms_of("marginal", elbo, log_prob, log_prior)["distillation"].backward()
    assert elbo.grad is None
    assert log_prior.grad is None
    assert (log_prob.grad != 0).all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_far_apart_elbos_do_not_overflow(name: str) -> None:
    elbo = torch.tensor([[-1e6, -3.0], [-5.0, -1e7], [-1e5, -2.0]], requires_grad=True)
    logits = torch.tensor([[300.0, 0.0], [0.0, -400.0], [-300.0, 400.0]], requires_grad=True)
    terms = terms_of(name, elbo, logits.log_softmax(0), torch.full((3,), 1 / 3).log())
    total = sum(terms.values())
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(elbo.grad).all()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", ["elbo", "marginal"])
@given(leaves=st.integers(1, 6), batch=st.integers(1, 5), seed=st.integers(0, 1000), data=st.data())
def test_over_chosen_leaves_a_bound_is_lower(
    name: str, leaves: int, batch: int, seed: int, data: st.DataObject
) -> None:
    """With q made to sum to one over any leaves, no bound is above the dense marginal one."""
    elbo, log_prob, log_prior = random_inputs(leaves, batch, seed)
    order = torch.rand(leaves, batch, generator=torch.Generator().manual_seed(seed)).argsort(0)
    chosen = order[: data.draw(st.integers(1, leaves))]
    q = restricted(log_prob, chosen)
    torch.testing.assert_close(q.exp().sum(0), torch.ones(batch, dtype=q.dtype))
    some = OBJECTIVES[name].terms(elbo.gather(0, chosen), q, log_prior[chosen])[name].mean()
    every = terms_of("marginal", elbo, log_prob, log_prior)["marginal"]
    assert -some <= -every + 1e-9
    if len(chosen) == leaves:
        torch.testing.assert_close(some, terms_of(name, elbo, log_prob, log_prior)[name])


def test_an_objective_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered by a function, then named by a model that trains, saves and loads."""
    monkeypatch.setattr("hmoevae.nn.objectives.OBJECTIVES", OBJECTIVES)
    try:

        @objective("best")
        def best(elbo: Tensor, log_prob: Tensor, log_prior: Tensor) -> dict[str, Tensor]:
            return {"best": -elbo.amax(0), "gate": -(log_prob.exp() * log_prob).sum(0)}

        model = hm.HMoEVAE(hm.Mixture.of(LEAF, 3), (4,), objective="best")
        out = model(torch.rand(5, 4))
        assert list(out.terms) == ["best", "gate", "balance"]
        torch.testing.assert_close(out.terms["best"], -out.leaf_elbo.amax(1).mean())
        assert "best" in model.evaluate(torch.rand(5, 4))
        other = hm.HMoEVAE(hm.Mixture.of(LEAF, 3), (4,))
        assert list(other.evaluate(torch.rand(5, 4))) == ["expected", "elbo", "marginal", "distillation"]
    finally:
        OBJECTIVES.pop("best", None)


def raises(*_: Tensor) -> Any:
    raise ValueError("no such slot")


def terms_are(terms: Any) -> Any:
    return lambda *_: terms


ZERO = torch.zeros(3)
VALUES = r"a dict of tensors \(batch,\), a value for each sample, got"
NO_OBJECTIVES: dict[str, tuple[Any, str]] = {
    "no own name": (terms_are({"other": ZERO}), r"a term 'mine', .*, got 'other'"),
    "none": (terms_are({}), r"a term 'mine', .*, got none"),
    "no dict": (terms_are(ZERO), f"{VALUES} Tensor"),
    "no tensor": (terms_are({"mine": 0.0}), rf"{VALUES} \{{'mine': float\}}"),
    "a mean": (terms_are({"mine": ZERO.mean()}), rf"{VALUES} \{{'mine': .* of shape \(\)\}} for a batch of 3"),
    "slots": (terms_are({"mine": torch.zeros(2, 3)}), rf"{VALUES} \{{'mine': .* of shape \(2, 3\)"),
    "integers": (terms_are({"mine": ZERO.long()}), rf"{VALUES} \{{'mine': torch\.int64"),
    "another key": (terms_are({"mine": ZERO, 1: ZERO}), r"a dict of tensors by name, got the name 1"),
    "reserved": (terms_are({"mine": ZERO, "balance": ZERO}), "names of terms that are free, got 'balance'"),
    "a column": (terms_are({"mine": ZERO, "usage/root": ZERO}), "names of terms that are free, got 'usage/root'"),
    "another's": (terms_are({"mine": ZERO, "distillation": ZERO}), r"names .*, got 'distillation' \(of 'marginal'\)"),
    "an error": (raises, r"a function of .*, got ValueError: no such slot"),
    "no arguments": (dict, r"a function of .*, got TypeError: "),
}


@pytest.mark.parametrize("case", NO_OBJECTIVES)
def test_an_objective_that_could_not_be_trained_is_refused_where_it_is_defined(case: str) -> None:
    function, message = NO_OBJECTIVES[case]
    with pytest.raises(ArgumentError, match=f"^objective 'mine': expected {message}"):
        objective("mine")(function)
    assert "mine" not in OBJECTIVES


def test_an_objective_has_a_name_of_its_own(as_users_call: None) -> None:
    with pytest.raises(ArgumentTypeError, match="got <func"):
        objective(terms_are({}))
    with pytest.raises(ArgumentError, match=r"^objective 'loss': expected names of terms that are free, got 'loss'"):
        objective("loss")(terms_are({"loss": ZERO}))


def test_an_objective_is_looked_at_without_a_draw() -> None:
    """Its module may be imported at any time of a training."""

    def noisy(elbo: Tensor, log_prob: Tensor, log_prior: Tensor) -> dict[str, Tensor]:
        assert elbo.shape == log_prob.shape == (2, 3)
        return {"noisy": torch.rand(3) + (log_prior + log_prob).mean(0)}

    before = torch.get_rng_state()
    try:
        assert objective("noisy")(noisy) is noisy
        assert objective("noisy")(noisy) is noisy  # as a module that is loaded anew
    finally:
        OBJECTIVES.pop("noisy", None)
    assert torch.equal(torch.get_rng_state(), before)


# --- balance --------------------------------------------------------------------------------------------------------


def random_edges(plan: Plan, batch: int, seed: int) -> Tensor:
    """log g(child | x) on every edge, (edge, batch)."""
    generator = torch.Generator().manual_seed(seed)
    blocks = [
        torch.randn(len(mixture.spec.children), batch, generator=generator, dtype=torch.float64).log_softmax(0)
        for mixture in plan.mixtures
    ]
    return torch.cat([torch.zeros(0, batch, dtype=torch.float64), *blocks])


def run_balance(plan: Plan, edges: Tensor, log_prior: Tensor | None = None) -> Tensor:
    """The balance of all mixtures, as the model computes it."""
    importance = Paths(plan).importance(edges)
    prior = Prior(plan).to(edges.dtype).edge_log_prob() if log_prior is None else log_prior
    return Balances(plan).to(edges.dtype)(importance, prior.detach())


def naive_total(tree: Tree, plan: Plan, edges: Tensor, log_prior: list[float]) -> Tensor:
    """The sum over all mixtures, recursing over the tree."""
    first = {mixture.path: plan.edge_mixture.index(m) for m, mixture in enumerate(plan.mixtures)}

    def visit(node: Tree, path: str, reach: Tensor, inherited: hm.Balance) -> Tensor:
        if isinstance(node, hm.VAE):
            return edges.new_zeros(())
        own = node.balance or inherited
        n = len(node.children)
        rows = range(first[path], first[path] + n)
        importance = [(reach.detach() + edges[row]).exp().sum() for row in rows]
        weight = 0.0 if isinstance(node.gate, hm.PosteriorGate) else own.weight  # it has nothing to balance
        total = weight * reference.naive_balance(own.kind, importance, [log_prior[row] for row in rows])
        for i, (row, child) in enumerate(zip(rows, node.children, strict=True)):
            total = total + visit(child, f"{path}/{i}", reach + edges[row], own)
        return total

    return visit(tree, "root", edges.new_zeros(edges.shape[1]), hm.Balance("variance", 0.1))


@given(trees(), st.integers(1, 4), st.integers(0, 1000))
def test_balance_is_its_formula(tree: Tree, batch: int, seed: int) -> None:
    plan = compile_tree(tree)
    fast = random_edges(plan, batch, seed).requires_grad_()
    slow = random_edges(plan, batch, seed).requires_grad_()
    log_prior = random_edges(plan, 1, seed + 1).squeeze(1)
    result = run_balance(plan, fast, log_prior)
    expected = naive_total(tree, plan, slow, log_prior.tolist())
    torch.testing.assert_close(result, expected)
    # Where every weight is zero, the result has no gradient at all; the sums give it one of zeros.
    (result + 0 * fast.sum()).backward()
    (expected + 0 * slow.sum()).backward()
    torch.testing.assert_close(fast.grad, slow.grad)


@pytest.mark.parametrize(("kind", "expected"), [("variance", 2 / 9), ("cv2", 0.5), ("kl", None)])
def test_balance_by_hand(kind: str, expected: float | None) -> None:
    """Two samples, one each way of the first two of three children: importance (1, 1, 0)."""
    tree = hm.Mixture.of(LEAF, 3, balance=hm.Balance(kind, 2.0))
    importance = torch.tensor([1.0, 1.0, 0.0])
    result = Balances(compile_tree(tree))(importance, torch.full((3,), 1 / 3).log()).item()
    assert result == pytest.approx(2 * (math.log(3 / 2) if expected is None else expected))


@pytest.mark.parametrize("kind", ["variance", "cv2", "kl"])
def test_even_use_costs_nothing_and_one_sidedness_costs_most(kind: str) -> None:
    balances = Balances(compile_tree(hm.Mixture.of(LEAF, 4, balance=hm.Balance(kind, 1.0))))
    prior = torch.full((4,), 1 / 4).log()
    even, mixed, single = (
        balances(torch.tensor(importance), prior).item()
        for importance in ([2.0, 2.0, 2.0, 2.0], [5.0, 1.0, 1.0, 1.0], [8.0, 0.0, 0.0, 0.0])
    )
    assert even == pytest.approx(0, abs=1e-6)
    assert 0.1 < mixed < single


def test_kl_balance_asks_for_the_prior_not_for_even_use() -> None:
    balances = Balances(compile_tree(hm.Mixture.of(LEAF, 2, balance=hm.Balance("kl", 1.0))))
    prior = torch.tensor([0.8, 0.2])
    assert balances(10 * prior, prior.log()).item() == pytest.approx(0, abs=1e-6)
    assert balances(torch.tensor([5.0, 5.0]), prior.log()).item() > 0.1


def two_level(kind: str) -> tuple[Plan, Plan]:
    """A mixture of a leaf and a mixture, with the balance at the inner one alone, and at none."""
    off = hm.Balance("variance", 0.0)
    inner = hm.Mixture.of(LEAF, 3, balance=hm.Balance(kind, 1.0))
    silent = hm.Mixture.of(LEAF, 3, balance=off)
    return compile_tree(hm.Mixture((LEAF, inner), balance=off)), compile_tree(hm.Mixture((LEAF, silent), balance=off))


@pytest.mark.parametrize("kind", ["variance", "cv2", "kl"])
@pytest.mark.parametrize("logit", [-95.0, -100.0, -110.0, -1e4])
def test_a_mixture_that_nothing_reaches_contributes_nothing(kind: str, logit: float) -> None:
    """Its probability runs through the denormal numbers to an exact zero; value and gradient stay finite."""
    plan, _ = two_level(kind)
    logits = torch.tensor([0.0, logit, 2.0, 0.0, -1.0]).unsqueeze(1).expand(5, 3).clone().requires_grad_()
    edges = torch.cat([logits[:2].log_softmax(0), logits[2:].log_softmax(0)])
    term = run_balance(plan, edges)
    term.backward()
    assert torch.isfinite(term)
    assert torch.isfinite(logits.grad).all()
    if logit < -105:  # below e^-105 a float32 probability is zero
        assert term.item() == 0
        assert (logits.grad == 0).all()


@pytest.mark.parametrize("kind", ["cv2", "kl"])
def test_relative_balances_do_not_fade_with_reach(kind: str) -> None:
    """`cv2` and `kl` compare siblings; how rarely their parent is reached is not theirs to weigh."""
    plan, _ = two_level(kind)
    values = []
    for logit in (0.0, -20.0):
        logits = torch.tensor([0.0, logit, 2.0, 0.0, -1.0]).unsqueeze(1)
        values.append(run_balance(plan, torch.cat([logits[:2].log_softmax(0), logits[2:].log_softmax(0)])).item())
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert values[0] > 0.1


@pytest.mark.parametrize("kind", ["variance", "cv2", "kl"])
def test_weight_zero_switches_a_balance_off(kind: str) -> None:
    _, silent = two_level(kind)
    assert run_balance(silent, random_edges(silent, 3, 0)).item() == 0


@pytest.mark.parametrize("kind", ["variance", "cv2", "kl"])
def test_balance_keeps_its_precision_under_autocast(kind: str) -> None:
    """Its sums are over few numbers, and cost nothing in float32; in bfloat16 they would keep two digits."""
    plan = compile_tree(hm.Mixture.of(hm.Mixture.of(LEAF, 3), 2, balance=hm.Balance(kind, 0.7)))
    edges = random_edges(plan, 5, 1).float()
    expected = run_balance(plan, edges)
    with torch.autocast("cpu", torch.bfloat16):
        result = run_balance(plan, edges)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=0)


# --- agreement ------------------------------------------------------------------------------------------------------


def run_agreement(plan: Plan, first: Tensor, second: Tensor, levels: Sequence[int] | None = None) -> Tensor:
    """The agreement at some levels, by default all of them, as the model computes it."""
    paths = Paths(plan).to(first.dtype)
    nodes = paths.node_log_prob(first), paths.node_log_prob(second)
    return agreement(nodes, paths, range(1, plan.depth + 1) if levels is None else levels).mean()


def naive_total_agreement(plan: Plan, first: Tensor, second: Tensor, levels: Sequence[int]) -> Tensor:
    """The sum over all levels and the mixtures of the level before, path by path."""
    edge = {plan.nodes[child].path: e for e, child in enumerate(plan.edge_child)}

    def onward(edges: Tensor, start: str, end: str) -> Tensor:
        """Log-probability of going on from one node to another below it."""
        steps = end.split("/")
        paths = ["/".join(steps[:i]) for i in range(len(start.split("/")) + 1, len(steps) + 1)]
        return sum((edges[edge[path]] for path in paths), edges.new_zeros(edges.shape[1]))

    total = first.new_zeros(())
    for upper, lower in itertools.pairwise((0, *levels)):
        for mixture in plan.level(upper):
            below = [node.path for node in plan.level(lower) if node.path.startswith(f"{mixture.path}/")]
            if not below:
                continue
            reach = tuple(onward(edges, "root", mixture.path).exp() for edges in (first, second))
            gates = tuple(torch.stack([onward(e, mixture.path, b) for b in below], 1) for e in (first, second))
            total = total + reference.naive_agreement(reach, gates)
    return total


@given(tree=trees(), batch=st.integers(1, 4), seed=st.integers(0, 1000), data=st.data())
def test_agreement_is_its_formula(tree: Tree, batch: int, seed: int, data: st.DataObject) -> None:
    plan = compile_tree(tree)
    levels = sorted(data.draw(st.sets(st.sampled_from(range(1, plan.depth + 1))))) if plan.depth else []
    fast, slow = ([random_edges(plan, batch, seed + i).requires_grad_() for i in (0, 1)] for _ in range(2))
    result, expected = run_agreement(plan, *fast, levels), naive_total_agreement(plan, *slow, levels)
    torch.testing.assert_close(result, expected)
    # Without a level, the result has no gradient at all.
    one, other = (total + sum(0 * edges.sum() for edges in both) for total, both in ((result, fast), (expected, slow)))
    for a, b in zip(torch.autograd.grad(one, fast), torch.autograd.grad(other, slow), strict=True):
        torch.testing.assert_close(a, b)


def test_over_all_levels_every_gate_agrees_by_itself_and_over_the_last_one_all_together() -> None:
    """Two views that agree about the children of either child of the root, but not about these."""
    plan = compile_tree(hm.Mixture.of(hm.Mixture.of(LEAF, 2), 2))
    even, sure = torch.tensor([0.5, 0.5]).log(), torch.tensor([60.0, 0.0]).log_softmax(0)
    edges = torch.cat([even, sure, sure]).unsqueeze(1)
    assert run_agreement(plan, edges, edges).item() == pytest.approx(math.log(2))
    assert run_agreement(plan, edges, edges, [2]).item() == pytest.approx(math.log(2))
    edges = torch.cat([even, even, even]).unsqueeze(1)
    assert run_agreement(plan, edges, edges).item() == pytest.approx(1.5 * math.log(2))  # a gate below is half reached
    assert run_agreement(plan, edges, edges, [1]).item() == pytest.approx(math.log(2))
    assert run_agreement(plan, edges, edges, [2]).item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("term", ["balance", "agreement"])
def test_a_level_does_not_teach_the_one_above(term: str) -> None:
    """The gate above learns as in the tree that ends there."""
    balance = hm.Balance("kl", 3.0)
    deep = compile_tree(hm.Mixture.of(hm.Mixture.of(LEAF, 2), 3, balance=balance))
    flat = compile_tree(hm.Mixture.of(LEAF, 3, balance=balance))
    first, second = (random_edges(deep, 5, seed).requires_grad_() for seed in (0, 1))
    gradients = []
    for plan in (deep, flat):
        views = first[: plan.n_edges], second[: plan.n_edges]
        total = run_agreement(plan, *views) if term == "agreement" else run_balance(plan, views[0])
        gradients.append(torch.autograd.grad(total, first)[0])
    torch.testing.assert_close(gradients[0][:3], gradients[1][:3])
    assert gradients[0][3:].abs().sum() > 0.01


def test_agreement_of_certain_gates_is_nothing_and_of_even_ones_log_n() -> None:
    plan = compile_tree(hm.Mixture.of(LEAF, 4))
    certain = torch.tensor([[50.0], [0.0], [0.0], [0.0]]).log_softmax(0)
    even = torch.zeros(4, 1).log_softmax(0)
    assert run_agreement(plan, certain, certain).item() == pytest.approx(0, abs=1e-6)
    assert run_agreement(plan, even, even).item() == pytest.approx(math.log(4))
    assert run_agreement(plan, certain, certain.roll(1, 0)).item() > 40


def test_far_apart_gates_do_not_overflow() -> None:
    """Two views sent opposite ways with full certainty: the term is large, not infinite, and pulls them together."""
    logits = torch.tensor([[400.0, 0.0, -400.0], [-400.0, 0.0, 400.0]]).unsqueeze(2).requires_grad_()
    plan = compile_tree(hm.Mixture.of(LEAF, 3))
    term = run_agreement(plan, *logits.log_softmax(1))
    term.backward()
    assert torch.isfinite(term)
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() > 0


def test_what_a_sub_mixture_thinks_counts_as_far_as_both_views_reach_it() -> None:
    plan = compile_tree(hm.Mixture((LEAF, hm.Mixture.of(LEAF, 2))))
    here, there = torch.tensor([0.0, 60.0]).log_softmax(0), torch.tensor([60.0, 0.0]).log_softmax(0)
    undecided = torch.zeros(2).log_softmax(0)

    def edges(root: Tensor) -> Tensor:
        return torch.cat([root, undecided]).unsqueeze(1)

    assert run_agreement(plan, edges(here), edges(here)).item() == pytest.approx(math.log(2))
    assert run_agreement(plan, edges(there), edges(there)).item() == pytest.approx(0, abs=1e-6)
    assert run_agreement(plan, edges(here), edges(there)).item() == pytest.approx(60 - math.log(2))  # the root's own


# --- probabilities --------------------------------------------------------------------------------------------------


@given(trees(), st.integers(1, 3), st.integers(0, 1000))
def test_leaf_and_prior_probabilities_are_products_of_the_edges(tree: Tree, batch: int, seed: int) -> None:
    plan = compile_tree(tree)
    paths, module = Paths(plan).double(), Prior(plan).double()
    if module.logits is not None:
        torch.nn.init.normal_(module.logits, generator=torch.Generator().manual_seed(seed))
    edges = random_edges(plan, batch, seed)
    by_node = paths.node_log_prob(edges)
    prior = module.edge_log_prob()
    for i, node in enumerate(plan.nodes):
        torch.testing.assert_close(by_node[i], edges[list(node.edges)].sum(0))
    leaf_log_prob = paths.leaf_log_prob(edges)
    leaf_log_prior = module.leaf_log_prob()
    for i, leaf in enumerate(plan.leaves):
        torch.testing.assert_close(leaf_log_prob[i], edges[list(leaf.edges)].sum(0))
        torch.testing.assert_close(leaf_log_prior[i], prior[list(leaf.edges)].sum())
    one = torch.ones((), dtype=torch.float64)
    torch.testing.assert_close(leaf_log_prior.exp().sum(), one)
    torch.testing.assert_close(leaf_log_prob.exp().sum(0), one.expand(batch))
    for m, mixture in enumerate(plan.mixtures):
        rows = [e for e, owner in enumerate(plan.edge_mixture) if owner == m]
        torch.testing.assert_close(prior[rows].exp().sum(), one)
        if mixture.spec.prior == "uniform":
            torch.testing.assert_close(prior[rows].exp(), torch.full_like(prior[rows], 1 / len(rows)))


def test_far_apart_prior_logits_do_not_overflow() -> None:
    module = Prior(compile_tree(hm.Mixture.of(hm.Mixture.of(LEAF, 2, prior="learned"), 2, prior="learned")))
    with torch.no_grad():
        module.logits.copy_(torch.tensor([300.0, -300.0, 1e4, 1e4, -1e4, -1e4]))
    prior = module.edge_log_prob()
    prior.sum().backward()
    half = math.log(0.5)
    torch.testing.assert_close(prior, torch.tensor([0.0, -600.0, half, half, half, half]))
    assert torch.isfinite(module.logits.grad).all()


# --- the article ----------------------------------------------------------------------------------------------------


def test_flat_tree_is_the_articles_formula() -> None:
    """mean_x sum_l p_l(x) L_l(x) + 0.1 Var_l(sum_x p_l(x)), written out from the weights with bare arithmetic."""
    expert = hm.VAE(latent_dim=2, encoder=hm.MLP((5,), "sigmoid"), decoder=hm.MLP((4,), "sigmoid"))
    tree = hm.Mixture.of(expert, 3, gate=hm.MLP((6,), "sigmoid"))
    model = build(tree, (2, 3), objective="expected", seed=3)
    x = data_for(tree, (2, 3), 4)
    flat = x.flatten(1)
    noise = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def dense(network: Any, g: int, inputs: Tensor) -> Tensor:
        first, second = network.layers
        hidden = 1 / (1 + torch.exp(-(inputs @ first.matrices[g].T + first.bias[g])))
        return hidden @ second.matrices[g].T + second.bias[g]

    scores = torch.exp(dense(model.gates.groups[0].network, 0, flat))
    p = scores / scores.sum(1, keepdim=True)
    losses = []
    for k in range(3):
        answer = dense(model.experts.groups[0].encoder, k, flat)
        mu, var = answer[:, :2], 1e-5 + torch.exp(answer[:, 2:])
        z = mu + torch.sqrt(var) * noise[k].T
        mean = 1 / (1 + torch.exp(-dense(model.experts.groups[0].decoder, k, z)))
        pixel = (flat - mean) ** 2 / (2 * 0.5**2) + math.log(0.5) + 0.5 * math.log(2 * math.pi)
        kl = 0.5 * (var + mu**2 - 1 - torch.log(var)).sum(1)
        losses.append(pixel.sum(1) + kl)
    expected = (p * torch.stack(losses, 1)).sum(1).mean()
    importance = p.sum(0)
    balance_term = 0.1 * ((importance - importance.mean()) ** 2).mean()

    out = model(x, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(out.leaf_elbo, -torch.stack(losses, 1))
    torch.testing.assert_close(out.leaf_log_prob.exp(), p)
    torch.testing.assert_close(out.terms["expected"], expected)
    torch.testing.assert_close(out.terms["balance"], balance_term)
    torch.testing.assert_close(out.loss, expected + balance_term)


@pytest.mark.parametrize("kind", ["variance", "cv2", "kl"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_underflown_leaf_leaves_no_nan_gradient(kind: str, name: str) -> None:
    """One gate has made up its mind so firmly that a leaf, or a whole mixture, has probability zero in float32."""
    tree = hm.Mixture((LEAF, hm.Mixture.of(LEAF, 3), LEAF), gate=hm.MLP((3,)), balance=hm.Balance(kind, 1.0))
    for child in (0, 1, 2):
        model = build(tree, (4,), objective=name).float()
        with torch.no_grad():
            reference.Reference(model).gate_weights("root")[-1][child] = -500.0
        with fixed_noise():
            out = model(data_for(tree, (4,), 3).float())
        assert (out.leaf_log_prob.exp() == 0).any()
        out.loss.backward()
        assert torch.isfinite(out.loss)
        for weight, parameter in model.named_parameters():
            assert torch.isfinite(parameter.grad).all(), weight

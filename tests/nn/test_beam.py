"""Gates down the tree: against a loop over samples and nodes, in passes of a model, in training and in predictions."""

import hypothesis
import pytest
import torch
from conftest import Case, about, build, cases, data_for, fit
from hypothesis import strategies as st
from reference import Reference, Walk, walk
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError
from hmoevae.nn.beam import Beam, Seen
from hmoevae.nn.routes import ALL, TopK

NET = hm.MLP((6,), "tanh")
LEAF = hm.VAE(2, NET, NET)
UNEVEN = hm.Mixture(
    (
        LEAF,
        hm.Mixture((LEAF, hm.Mixture.of(LEAF, 3, gate=NET), LEAF), gate=NET),
        hm.Mixture.of(hm.Mixture.of(LEAF, 2, gate=NET), 3, gate=hm.MLP((4,), "tanh")),
        hm.Mixture.of(LEAF, 4, gate=NET),
    ),
    gate=NET,
)
"""Leaves at depths 1 to 3; the root's gate runs in one group with gates below it."""


def to_child(model: hm.HMoEVAE, child: int, bias: float = 50.0) -> None:
    """Let the root send all samples to one child."""
    with torch.no_grad():
        model.gates.groups[0].last.weight[0] = 0.0
        model.gates.groups[0].last.bias[0] = 0.0
        model.gates.groups[0].last.bias[0, child] = bias


# --- the reference ----------------------------------------------------------------------------------------------------


def walks(model: hm.HMoEVAE, x: Tensor, width: int, explored: Tensor | None = None) -> list[Walk]:
    """Walk with every sample."""
    other = [-1] * len(x) if explored is None else explored.tolist()
    reference = Reference(model)
    return [walk(reference, [x[i : i + 1]] * model.plan.depth, width, other[i]) for i in range(len(x))]


def slots(one: Walk, k: int, explored: int) -> list[int]:
    """The leaves that a sample is computed with."""
    best = sorted(one.leaves, key=lambda leaf: -one.leaves[leaf].item())[:k]
    return best if explored < 0 or explored in best else [*best[:-1], explored]


# --- the walk ---------------------------------------------------------------------------------------------------------


def check_against_the_loop(model: hm.HMoEVAE, x: Tensor, width: int, explored: Tensor | None) -> None:
    """Outputs, and the gradients of all gates."""
    shown = model._shown(x.flatten(1).t())
    seen = Seen(shown, shown, model.plan.depth)
    met = list(model.beam.follow(model.gates, seen, width, explored=explored))
    edges, found = model.beam.edges(met), walks(model, x, width, explored)
    expected = torch.stack([one.edges for one in found], 1)
    torch.testing.assert_close(edges, expected)
    others = [-1] * len(x) if explored is None else explored.tolist()
    k = min(width, model.plan.n_leaves)
    leaves = model.beam.leaves(met, k, explored).t().tolist()
    assert leaves == [slots(*one) for one in zip(found, [k] * len(x), others, strict=True)]
    assert model.beam.best(met).tolist() == [one.best for one in found]
    assert all(len(one.leaves) >= k for one in found)
    weights = torch.randn(edges.shape, generator=torch.Generator().manual_seed(0), dtype=edges.dtype)
    names, parameters = zip(*model.gates.named_parameters(), strict=True)
    gradients = [torch.autograd.grad((weights * out).sum(), parameters, allow_unused=True) for out in (edges, expected)]
    for name, own, theirs in zip(names, *gradients, strict=True):
        assert (own is None) == (theirs is None), name
        if own is not None and theirs is not None:
            torch.testing.assert_close(own.to_dense(), theirs, msg=about(name))


@hypothesis.given(cases(leaf_root=False), st.integers(1, 4), st.data())
@hypothesis.settings(max_examples=40)
def test_random_trees_are_walked_as_by_the_loop(case: Case, width: int, data: st.DataObject) -> None:
    """With gates of their own and of a few groups, convolutional ones among them, and leaves that are explored."""
    model, x = case.model, case.x
    if model.gates.have_posteriors:
        assert model.beam_of(TopK(1)) is None
        assert torch.equal(model.predict(x, beam=1), model.predict(x))
        return
    explored = data.draw(st.none() | st.lists(st.integers(-1, model.plan.n_leaves - 1), min_size=5, max_size=5))
    check_against_the_loop(model, x, width, None if explored is None else torch.tensor(explored[: len(x)]))


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 30])
def test_leaves_at_several_depths(width: int, n: int) -> None:
    """Many samples, whose gates are packed unevenly, and one alone."""
    model, x = build(UNEVEN, (3,)), data_for(UNEVEN, (3,), n)
    check_against_the_loop(model, x, width, torch.arange(n) % (model.plan.n_leaves + 1) - 1)
    assert model.predict(x, beam=width).tolist() == [one.best for one in walks(model, x, width)]


def test_a_leaf_is_found_though_more_probable_mixtures_fill_the_beam() -> None:
    """No leaf takes a slot, so one far up stays in the running."""
    model = build(hm.Mixture((LEAF, *[hm.Mixture.of(LEAF, 9, gate=NET)] * 2), gate=NET), (3,))
    x = data_for(model.tree, (3,), 4)
    with torch.no_grad():
        model.gates.groups[0].last.weight.zero_()
        model.gates.groups[0].last.bias.copy_(torch.tensor([[0.3, 0.34, 0.36]]).log())
    assert model.predict(x, beam=1).tolist() == [0, 0, 0, 0]
    assert model.predict(x, level=1, beam=1).tolist() == [2, 2, 2, 2]


def test_no_leaf_below_a_gate_that_did_not_run_is_chosen() -> None:
    """One of two even leaves looks more probable than the best of many."""
    model = build(hm.Mixture((hm.Mixture.of(LEAF, 2, gate=NET), hm.Mixture.of(LEAF, 9, gate=NET)), gate=NET), (3,))
    to_child(model, 1, bias=0.1)
    out = model(data_for(model.tree, (3,), 6), settings=hm.StepSettings(routes=TopK(1)))
    assert bool((out.leaf_log_prob.argmax(1) < 2).all())
    assert bool((out.leaf >= 2).all())


def test_a_gradient_holds_the_rows_of_gates_that_ran() -> None:
    """The root's too, which is one of a group."""
    model, x = wide(), data_for(LEAF, (3,), 5)
    to_child(model, 1)
    model(x, settings=hm.StepSettings(routes=TopK(1))).loss.backward()
    for parameter in model.gates.parameters():
        assert parameter.grad is not None
        assert parameter.grad.coalesce().indices().tolist() == [[0, 2]]


def test_ties_end_at_one_of_the_most_probable_nodes() -> None:
    model = build(hm.Mixture.of(hm.Mixture.of(LEAF, 3, gate=NET), 4, gate=NET), (3,))
    with torch.no_grad():
        for parameter in model.gates.parameters():
            parameter.zero_()
        model.gates.groups[1].last.bias[:, 1] = 1.0
    x = data_for(model.tree, (3,), 5)
    assert model.predict(x, beam=1).tolist() == [1] * 5
    for width in (2, 3):
        assert set(model.predict(x, beam=width).tolist()) <= {1, 4, 7, 10}


# --- passes of a model ------------------------------------------------------------------------------------------------


def wide(n: int = 3, objective: str = "elbo") -> hm.HMoEVAE:
    """Two levels, all of whose gates are in one group."""
    return build(hm.Mixture.of(hm.Mixture.of(LEAF, n, gate=NET), n, gate=NET), (3,), objective=objective)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("tree", [UNEVEN, wide().tree], ids=["uneven", "wide"])
@pytest.mark.parametrize("objective", ["expected", "elbo", "marginal"])
@pytest.mark.parametrize("explore", [0.0, 0.5])
@pytest.mark.parametrize("k", [1, 2])
def test_a_pass_chooses_among_the_leaves_that_are_met(tree: hm.Mixture, objective: str, explore: float, k: int) -> None:
    """Probabilities sum to one, and the terms are finite."""
    model, x, routes = build(tree, (3,), objective=objective), data_for(tree, (3,), 12), TopK(k, explore)
    settings = hm.StepSettings(routes=routes)
    explored = routes.explored(model.plan.n_leaves, model.prepare(x, settings=settings, generator=seeded()).draws)
    out = model(x, settings=settings, generator=seeded())
    found = walks(model, x, k, explored)
    torch.testing.assert_close(out.edge_log_prob, torch.stack([one.edges for one in found]))
    torch.testing.assert_close(out.leaf_log_prob.exp().sum(1), torch.ones(12).double())
    for i, (one, chosen) in enumerate(zip(found, out.leaf.tolist(), strict=True)):
        assert chosen == slots(one, k, -1 if explored is None else int(explored[i]))
    assert all(term.isfinite() for term in out.terms.values())
    out.loss.backward()
    assert all(p.grad is None or p.grad.to_dense().isfinite().all() for p in model.parameters())


def test_where_the_beam_reaches_all_mixtures_the_pass_is_the_dense_one() -> None:
    """Bit for bit, in a flat tree and in one with as many mixtures as slots; predictions too."""
    for tree, k in ((hm.Mixture.of(LEAF, 5, gate=NET), 1), (wide().tree, 3), (UNEVEN, 4)):
        model, x = build(tree, (3,)), data_for(tree, (3,), 9)
        assert model.beam_of(TopK(k)) is None
        routed = model(x, settings=hm.StepSettings(routes=TopK(k)), generator=seeded())
        dense = model(x, settings=hm.StepSettings(routes=ALL), generator=seeded())
        assert torch.equal(routed.edge_log_prob, dense.edge_log_prob)
        assert torch.equal(routed.terms["balance"], dense.terms["balance"])
        gates = list(model.gates.parameters())
        pairs = zip(*(torch.autograd.grad(out.terms["balance"], gates) for out in (routed, dense)), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
        for level in (None, *range(model.plan.depth + 1)):
            assert torch.equal(model.predict(x, level=level, beam=k), model.predict(x, level=level))


@pytest.mark.parametrize("levels", [(1, 2, 3), (1,), (3,), (2,), ()])
@pytest.mark.parametrize("explore", [0.0, 0.6])
def test_each_of_two_views_walks_by_itself(levels: tuple[int, ...], explore: float) -> None:
    """Gates below the last level of agreement see the sample, in the walks of both views; the first one explores."""
    model, x = build(UNEVEN, (3,)), data_for(UNEVEN, (3,), 6)
    views = [data_for(UNEVEN, (3,), 6, seed) for seed in (1, 2)]
    routes, last = TopK(1, explore), levels[-1] if levels else 0
    settings = hm.StepSettings(routes=routes, agreement_levels=levels)
    draws = model.prepare(x, settings=settings, generator=seeded()).draws
    drawn, reference = routes.explored(model.plan.n_leaves, draws), Reference(model)
    others = [[-1] * 6 if drawn is None else drawn.tolist(), [-1] * 6]
    found = [
        [walk(reference, [(view if d < last else x)[i : i + 1] for d in range(3)], 1, other[i]) for i in range(6)]
        for view, other in zip(views, others, strict=True)
    ]
    edges = [torch.stack([one.edges for one in walked], 1) for walked in found]
    answers, leaf = model._run_gates(*(v.t() for v in (*views, x)), settings, draws)
    for answer, expected in zip(answers, edges, strict=True):
        torch.testing.assert_close(answer, expected)
    assert leaf.t().tolist() == [slots(one, 1, other) for one, other in zip(found[0], others[0], strict=True)]
    routing = model._routing(edges, settings, None, None)
    out = model(x, view=views[0], other_view=views[1], settings=settings, generator=seeded())
    torch.testing.assert_close(out.terms["agreement"], routing.terms["agreement"])
    torch.testing.assert_close(out.terms["balance"], routing.terms["balance"])


def test_gates_in_lower_precision_and_at_a_temperature() -> None:
    model, x = wide().float(), torch.rand(8, 3)
    settings = hm.StepSettings(routes=TopK(1), gate_temperature=2.0)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(x, settings=settings, generator=seeded())
    out, dense = model(x, settings=settings), model(x, settings=hm.StepSettings(gate_temperature=2.0))
    assert out.edge_log_prob.dtype == rough.edge_log_prob.dtype == torch.float32
    torch.testing.assert_close(out.edge_log_prob[:, :3], dense.edge_log_prob[:, :3])
    torch.testing.assert_close(rough.edge_log_prob[:, :3], dense.edge_log_prob[:, :3], rtol=0.05, atol=0.05)
    assert rough.loss.isfinite()


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::hmoevae.errors.DeadLeafWarning", "ignore::hmoevae.errors.ConstantGateWarning")
@pytest.mark.parametrize("optimizer", [None, lambda p: torch.optim.SGD(p, 0.1)], ids=["RowAdam", "SGD"])
def test_gates_that_no_sample_reaches_stay_as_they_are(optimizer: object) -> None:
    """They are rows of the root's group, or a group of their own."""
    other = hm.MLP((4,), "tanh")
    tree = hm.Mixture((*[hm.Mixture.of(LEAF, 4, gate=NET)] * 3, hm.Mixture.of(LEAF, 4, gate=other)), gate=NET)
    model = build(tree, (3,)).float()
    to_child(model, 1)
    before = {name: value.clone() for name, value in model.gates.named_parameters()}
    fit(model, torch.rand(40, 3), epochs=2, batch_size=20, route=TopK(1), optimizer=optimizer)
    for name, value in model.gates.named_parameters():
        changed = [not torch.equal(*pair) for pair in zip(value, before[name], strict=True)]
        group = int(name.split(".")[1])
        assert changed[-1] is False or group == 0, name
        if group == 0:  # root, root/0, root/1, root/2
            assert not changed[1], name
            assert changed[2], name
            assert not changed[3], name
        else:
            assert changed == [False], name


@pytest.mark.filterwarnings("ignore::hmoevae.errors.DeadLeafWarning", "ignore::hmoevae.errors.ConstantGateWarning")
def test_a_training_down_the_tree_learns() -> None:
    """Explored leaves are met, so that all gates learn in the end; the loss falls."""
    model, x = wide(4).float(), torch.rand(200, 3)
    before = [value.clone() for value in model.gates.parameters()]
    history = fit(model, x, epochs=5, batch_size=50, route=TopK(2, explore=0.5), seed=0)
    assert history["loss"][-1] < history["loss"][0]
    for value, old in zip(model.gates.parameters(), before, strict=True):
        assert all(not torch.equal(*pair) for pair in zip(value, old, strict=True))


# --- predictions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2])
def test_predictions_of_levels_and_below_nodes(width: int) -> None:
    """The best node of a level that is met; the best leaf below a node, to encode and reconstruct with."""
    model, x = build(UNEVEN, (3,)), data_for(UNEVEN, (3,), 20)
    found = walks(model, x, width)
    nodes = model.paths.node_log_prob(torch.stack([one.edges for one in found], 1))
    for level in (1, 2, 3):
        members = model.plan.level(level)
        predicted = model.predict(x, level=level, beam=width, batch_size=7).tolist()
        for i, (one, index) in enumerate(zip(found, predicted, strict=True)):
            met = [m for m in members if m.path.rpartition("/")[0] in one.ran]
            assert members[index] == max(met, key=lambda m, i=i: nodes[m.index, i].item())
    leaf = model.predict(x, beam=width)
    z = model.encode(x, beam=width)
    torch.testing.assert_close(z, model.experts.encode(x, leaf)[0])
    torch.testing.assert_close(model.reconstruct(x, beam=width), model.decode(z, leaf))
    assert torch.equal(model.encode(x, node="root/0", beam=width), model.encode(x, node="root/0"))
    below = model.plan.node("root/2").leaves
    reference = Reference(model)
    for i, (mean, std) in enumerate(zip(*model.encode(x, node="root/2", beam=width, return_std=True), strict=True)):
        own = x[i : i + 1]
        above = reference.gate("root/2", own)[0]
        best = above.topk(width).indices.tolist()
        joint = {2 * j + c: (above[j] + reference.gate(f"root/2/{j}", own)[0, c]).item() for j in best for c in (0, 1)}
        chosen = torch.tensor([below.start + max(joint, key=lambda one, joint=joint: joint[one])])
        expected = model.experts.encode(own, chosen)
        torch.testing.assert_close(mean, expected[0][0])
        torch.testing.assert_close(std, expected[1][0])


def test_a_lone_leaf_and_a_large_level() -> None:
    model = build(LEAF, (3,))
    assert model.predict(data_for(LEAF, (3,), 2), beam=1).tolist() == [0, 0]
    assert Beam(model.plan).is_all(1)


@pytest.mark.usefixtures("as_users_call")
def test_errors() -> None:
    model, x = wide(), data_for(LEAF, (3,), 2)
    for run in (model.predict, model.encode, model.reconstruct):
        with pytest.raises(ArgumentError, match=r"^beam: expected an integer > 0, got 0"):
            run(x, beam=0)
    with pytest.raises((ArgumentError, ArgumentTypeError), match=r"^beam: expected an integer > 0, got 1.5"):
        model.predict(x, beam=1.5)
    with pytest.raises(ArgumentError, match=r"^level: expected an integer from 0 to the tree's depth 2, got 3"):
        model.predict(x, level=3, beam=1)

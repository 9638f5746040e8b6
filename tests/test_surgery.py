"""Surgery: what an operation does not touch stays as it was to the bit, and what is exact is exact."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import surgery as benchmark  # benchmarks/surgery.py
import torch
from conftest import Case, build, cases, data_for, fit, fixed_noise, trees
from hypothesis import assume, given
from hypothesis import strategies as st
from networks import Frozen, Laplace, Residual
from torch import Tensor, nn

import hmoevae as hm
from hmoevae.errors import ArgumentError, HMoEVAEError, SpecError
from hmoevae.spec import Tree

EXACT = {"atol": 1e-6, "rtol": 1e-6}  # fixed priors are computed in single precision


def named(case: Case) -> hm.HMoEVAE:
    """The model of a case, every node of which is named by its path."""
    return build(labelled(case.tree), case.shape, objective=case.objective, seed=case.seed)


def labelled(tree: Any, path: str = "root") -> Any:
    """A tree, every node of which is named by its path."""
    children = (labelled(child, f"{path}/{i}") for i, child in enumerate(tree.children))
    return replace(tree, name=path, **({"children": tuple(children)} if tree.children else {}))


def check_untouched(old: hm.HMoEVAE, new: hm.HMoEVAE) -> None:
    """Nodes of the same name, and mixtures of the same children, have equal weights."""
    assert (new.objective, new.input_shape, new.missing) == (old.objective, old.input_shape, old.missing)
    assert (new.dtype, new.training, type(new)) == (old.dtype, old.training, type(old))
    for before, after in benchmark.untouched(old, new):
        one, other = benchmark.rows_of(old, before), benchmark.rows_of(new, after)
        torch.testing.assert_close(other, one, rtol=0, atol=0)


def has(model: hm.HMoEVAE, prior: str) -> bool:
    return any(mixture.spec.prior == prior for mixture in model.plan.mixtures)


# --- random trees ---------------------------------------------------------------------------------------------------


@given(cases(depth=2, max_leaves=5))
def test_a_rename_changes_names_only(case: Case) -> None:
    model = case.model
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    new = hm.surgery.rename(model, {path: path for path, _ in case.tree.walk()})
    assert torch.equal(torch.get_rng_state(), state)
    assert new.tree == labelled(case.tree)
    torch.testing.assert_close(dict(new.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


@given(cases(depth=2, max_leaves=5), st.data())
def test_a_split_keeps_the_bound(case: Case, data: st.DataObject) -> None:
    model = named(case)
    leaf = data.draw(st.sampled_from(model.plan.leaves))
    new = hm.surgery.split(model, leaf.path, data.draw(st.integers(2, 3)))
    check_untouched(model, new)
    assert new.tree.at(leaf.path).name == leaf.path
    if has(model, "leaves"):  # they count the copies
        return
    with fixed_noise():
        before, after = model.evaluate(case.x), new.evaluate(case.x)
    for name in ("expected", "elbo", "marginal"):
        assert after[name] == pytest.approx(before[name], rel=1e-6, abs=1e-5), name
    if all(isinstance(leaf.spec.encoder, hm.LinearPosterior) for leaf in model.plan.leaves):
        torch.testing.assert_close(new.score_samples(case.x), model.score_samples(case.x), **EXACT)


@given(cases(depth=2, max_leaves=5, leaf_root=False), st.data())
def test_a_split_beside_shares_the_probability(case: Case, data: st.DataObject) -> None:
    model = named(case)
    leaf, into = data.draw(st.sampled_from(model.plan.leaves)), data.draw(st.integers(2, 3))
    new = hm.surgery.split(model, leaf.path, into, beside=True)
    check_untouched(model, new)
    first = leaf.leaves.start
    edge, last = leaf.edges[-1], leaf.edges[-1] + into
    parent = model.tree.at(leaf.path.rpartition("/")[0])
    if parent.prior == "learned":
        prior = new.prior.edge_log_prob()[edge:last].logsumexp(0)
        torch.testing.assert_close(prior, model.prior.edge_log_prob()[edge], **EXACT)
    if model.gates.have_posteriors:  # they follow the prior
        return
    q, old = new.predict_proba(case.x), model.predict_proba(case.x)
    torch.testing.assert_close(q[:, first : first + into], (old[:, [first]] / into).expand(-1, into), **EXACT)
    others = torch.cat([q[:, :first], q[:, first + into :]], 1)
    torch.testing.assert_close(others, torch.cat([old[:, :first], old[:, first + 1 :]], 1), **EXACT)


@given(cases(depth=2, max_leaves=5, leaf_root=False), st.data())
def test_a_merge_undoes_a_split_beside(case: Case, data: st.DataObject) -> None:
    model = named(case)
    leaf = data.draw(st.sampled_from(model.plan.leaves))
    into = data.draw(st.integers(2, 3))
    above, _, own = leaf.path.rpartition("/")
    copies = [f"{above}/{int(own) + i}" for i in range(into)]
    grown = hm.surgery.split(model, leaf.path, into, beside=True)
    new = hm.surgery.merge(grown, data.draw(st.permutations(copies)))
    check_untouched(grown, new)
    assert [node.spec.name for node in new.plan.nodes] == [node.path for node in model.plan.nodes]
    torch.testing.assert_close(new.predict_proba(case.x), model.predict_proba(case.x), **EXACT)
    torch.testing.assert_close(new.prior.leaf_log_prob(), model.prior.leaf_log_prob(), **EXACT)


@given(cases(depth=2, max_leaves=5, leaf_root=False), st.data())
def test_pruning_renormalises(case: Case, data: st.DataObject) -> None:
    model = named(case)
    nodes = data.draw(st.lists(st.sampled_from(model.plan.nodes[1:]), min_size=1, max_size=3, unique=True))
    gone = {leaf for node in nodes for leaf in node.leaves}
    assume(len(gone) < model.plan.n_leaves)
    new = hm.surgery.prune(model, [node.path for node in nodes])
    check_untouched(model, new)
    left = [model.plan.leaves[i] for i in range(model.plan.n_leaves) if i not in gone]
    assert [leaf.spec.name for leaf in new.plan.leaves] == [leaf.path for leaf in left]
    assert all(len(mixture.child_edges) > 1 for mixture in new.plan.mixtures)
    if model.gates.have_posteriors:
        return
    with torch.no_grad():
        edge = model(case.x).edge_log_prob
    prior, both = model.prior.edge_log_prob().detach(), []
    for values in (edge, prior.unsqueeze(0)):
        product = []
        for leaf in left:
            total = torch.zeros(len(values), dtype=values.dtype)
            for own in leaf.edges:
                siblings = model.plan.mixtures[model.plan.edge_mixture[own]].child_edges
                alive = [e for e in siblings if not set(model.plan.nodes[model.plan.edge_child[e]].leaves) <= gone]
                total = total + values[:, own] - values[:, alive].logsumexp(1)
            product.append(total)
        both.append(torch.stack(product, 1))
    torch.testing.assert_close(new.predict_proba(case.x).log(), both[0], **EXACT)
    if not has(model, "leaves"):
        torch.testing.assert_close(new.prior.leaf_log_prob(), both[1].squeeze(0), **EXACT)


@given(cases(depth=2, max_leaves=5, leaf_root=False), st.data())
def test_a_group_keeps_the_proportions_within(case: Case, data: st.DataObject) -> None:
    model = named(case)
    mixtures = [mixture for mixture in model.plan.mixtures if len(mixture.child_edges) > 2]
    assume(mixtures)
    mixture = data.draw(st.sampled_from(mixtures))
    n = len(mixture.child_edges)
    chosen = data.draw(st.permutations(range(n)))[: data.draw(st.integers(2, n - 1))]
    new = hm.surgery.wrap(model, [f"{mixture.path}/{i}" for i in chosen], name="group")
    check_untouched(model, new)
    group = next(node for node in new.plan.nodes if node.spec.name == "group")
    assert group.path == f"{mixture.path}/{min(chosen)}"
    assert [child.name for child in group.spec.children] == [f"{mixture.path}/{i}" for i in chosen]
    own = [mixture.child_edges[i] for i in chosen]
    if mixture.spec.prior == "learned":
        path_sum = new.prior.edge_log_prob()
        together = path_sum[list(group.child_edges)] + path_sum[group.edges[-1]]
        torch.testing.assert_close(together, model.prior.edge_log_prob()[own], **EXACT)
    if model.gates.have_posteriors:
        return
    with torch.no_grad():
        before, after = model(case.x).edge_log_prob[:, own], new(case.x).edge_log_prob
    torch.testing.assert_close(after[:, list(group.child_edges)], before.log_softmax(1), **EXACT)


@given(cases(depth=2, max_leaves=5, leaf_root=False), st.data())
def test_children_of_a_removed_mixture_share_its_probability(case: Case, data: st.DataObject) -> None:
    model = named(case)
    below = [mixture for mixture in model.plan.mixtures if mixture.depth > 0]
    assume(below)
    mixture = data.draw(st.sampled_from(below))
    new = hm.surgery.unwrap(model, mixture.path)
    check_untouched(model, new)
    assert [leaf.spec.name for leaf in new.plan.leaves] == [leaf.path for leaf in model.plan.leaves]
    by_name = {node.spec.name: node for node in new.plan.nodes}
    edges = [by_name[child.name].edges[-1] for child in mixture.spec.children]
    above = model.plan.node(mixture.path.rpartition("/")[0])
    if above.spec.prior == "learned":
        prior = model.prior.edge_log_prob()
        product = prior[list(mixture.child_edges)] + prior[mixture.edges[-1]]
        torch.testing.assert_close(new.prior.edge_log_prob()[edges], product, **EXACT)
    if model.gates.have_posteriors:
        return
    with torch.no_grad():
        before, after = model(case.x).edge_log_prob, new(case.x).edge_log_prob
    torch.testing.assert_close(after[:, edges].logsumexp(1), before[:, mixture.edges[-1]], **EXACT)


@given(cases(depth=2, max_leaves=5), trees(depth=1, max_leaves=4), st.booleans(), st.data())
def test_a_graft_brings_the_donors_weights(case: Case, tree: Tree, beside: bool, data: st.DataObject) -> None:
    model = named(case)
    donor = build(tree, case.shape, objective="marginal", seed=case.seed + 1)
    donor = hm.surgery.rename(donor, {path: f"donor {path}" for path, _ in tree.walk()})
    assume(model.plan.mixtures or not beside)
    path = data.draw(st.sampled_from(model.plan.mixtures if beside else model.plan.nodes)).path
    node = data.draw(st.sampled_from(donor.plan.nodes))
    try:
        new = hm.surgery.graft(model, path, donor, node=node.path, beside=beside)
    except SpecError:  # a posterior gate above leaves without a density
        assume(False)
        raise
    except ArgumentError:  # a learned prior, where the objective has no use for it
        assume(case.objective != "expected")
        raise
    check_untouched(model, new)
    check_untouched(donor, hm.surgery.graft(donor, "root", donor, node=node.path))
    names = [leaf.spec.name for leaf in new.plan.leaves if leaf.spec.name.startswith("donor")]
    assert names == [donor.plan.leaves[i].spec.name for i in node.leaves]
    for before, after in benchmark.untouched(donor, new):
        rows = benchmark.rows_of(new, after)
        for name, row in benchmark.rows_of(donor, before).items():
            assert torch.equal(rows[name], row)
    if beside and not new.gates.have_posteriors:
        old, q = model.predict_proba(case.x), new.predict_proba(case.x)
        own = new.plan.node(f"{path}/{len(model.plan.node(path).child_edges)}").leaves
        others = [i for i in range(new.plan.n_leaves) if i not in own]
        within = list(model.plan.node(path).leaves)
        places = [others[i] for i in within]
        ratio, before = q[:, places], old[:, within]
        proportions = ratio / ratio.sum(1, keepdim=True)
        torch.testing.assert_close(proportions, before / before.sum(1, keepdim=True), **EXACT)


# --- parts of all sorts ---------------------------------------------------------------------------------------------


def small(**fields: Any) -> hm.VAE:
    return hm.VAE(**{"latent_dim": 2, "encoder": hm.MLP((4,)), "decoder": hm.MLP((4,))} | fields)


NUMBERS = hm.Gaussian("learned", "identity")
COLUMNS = hm.Columns((NUMBERS, hm.Categorical(3), hm.Poisson(), hm.Gaussian(0.5, "identity")))
CONVOLVED = hm.VAE(2, hm.Conv((2,), hidden=()), hm.ConvTranspose((2,), hidden=()), hm.Bernoulli())
EXACT_LEAF = hm.VAE(2, hm.LinearPosterior(), hm.MLP(()), NUMBERS)
SORTS: dict[str, tuple[Tree, tuple[int, ...]]] = {
    "networks of a user": (hm.Mixture.of(small(encoder=Residual(), decoder=Residual()), 3, gate=Residual()), (2, 3)),
    "frozen": (hm.Mixture.of(small(encoder=Frozen(), decoder=Frozen()), 3, gate=Frozen(), prior="learned"), (4,)),
    "a likelihood of a user": (hm.Mixture.of(small(likelihood=Laplace()), 3, gate=hm.MLP((4,))), (4,)),
    "columns": (hm.Mixture.of(small(likelihood=COLUMNS), 3, gate=hm.MLP((4,))), (4,)),
    "convolutions": (hm.Mixture.of(CONVOLVED, 3, gate=hm.Conv((2,), norm_groups=1)), (1, 6, 6)),
    "posteriors": (hm.Mixture.of(EXACT_LEAF, 3, gate=hm.PosteriorGate()), (4,)),
}


@pytest.mark.usefixtures("as_users_call")  # a third of the time
@pytest.mark.parametrize("missing", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sort", SORTS)
def test_every_sort_of_part(sort: str, missing: bool, tmp_path: Path) -> None:
    """All operations in turn, then a training, and the way through a file."""
    tree, shape = SORTS[sort]
    x = data_for(tree, shape, 40)
    model = build(tree, shape, missing=missing)
    first = hm.surgery.rename(model, {path: path for path, _ in tree.walk()})
    steps: list[Callable[[hm.HMoEVAE], hm.HMoEVAE]] = [
        lambda m: hm.surgery.split(m, "root/0", beside=True),
        lambda m: hm.surgery.wrap(m, ["root/1", "root/2"], x=x[:2]),
        lambda m: hm.surgery.split(m, "root/1/0", 3, noise=0.1),
        lambda m: hm.surgery.graft(m, "root/1", first, node="root/2", beside=True, x=x[:2]),
        lambda m: hm.surgery.merge(m, ["root/1/0/1", "root/1/0/0"], x=x[:2]),
        lambda m: hm.surgery.unwrap(m, "root/1/0", x=x[:2]),
        lambda m: hm.surgery.prune(m, ["root/0"]),
        lambda m: hm.surgery.graft(m, "root/1", first),
    ]
    current = first
    for step in steps:
        before = copy.deepcopy(current.state_dict())
        new = step(current)
        torch.testing.assert_close(dict(current.state_dict()), dict(before), rtol=0, atol=0)
        frozen = [name for name, p in new.named_parameters() if not p.requires_grad]
        assert all(sort == "frozen" and "frozen" in name for name in frozen)
        current = new
    assert [leaf.path for leaf in current.plan.leaves][-3:] == ["root/1/0", "root/1/1", "root/1/2"]
    for i in range(3):
        grafted = benchmark.rows_of(current, f"root/1/{i}")
        torch.testing.assert_close(grafted, benchmark.rows_of(first, f"root/{i}"), rtol=0, atol=0)
    fit(current, x, epochs=1, seed=0)
    current.save_pretrained(tmp_path)
    loaded = hm.HMoEVAE.from_pretrained(tmp_path)
    assert loaded.tree == current.tree
    torch.testing.assert_close(loaded.double().predict_proba(x), current.predict_proba(x), **EXACT)
    assert "root" in current.generate_model_card().content


def test_a_network_that_counts_the_children_otherwise_is_refused() -> None:
    tree = hm.Mixture.of(small(), 3, gate=Twofold())
    with pytest.raises(ArgumentError, match=r"root\.gate: expected a gate of which one axis of network.*counts"):
        hm.surgery.prune(build(tree, (4,)), ["root/0"])


@hm.record(kind="tests.twofold")
class Twofold(hm.Network):
    """A network whose hidden layer is twice as wide as its output."""

    def build(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> nn.Module:
        n = math.prod(output_shape)
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), 2 * n), nn.Tanh(), nn.Linear(2 * n, n))


# --- what else is kept ----------------------------------------------------------------------------------------------


def test_settings_of_the_model_are_kept() -> None:
    table = hm.Table.of({"size": [1.0, 2.0, 2.5, None], "kind": ["a", "b", "a", "b"]})
    leaf = small(likelihood=table.likelihood())
    model = hm.HMoEVAE(hm.Mixture.of(leaf, 2), table, objective="marginal").eval()
    model.gates.requires_grad_(False)
    new = hm.surgery.split(model, "root/0", beside=True)
    assert (new.table, new.missing, new.objective, new.training) == (table, True, "marginal", False)
    assert not any(p.requires_grad for p in new.gates.parameters())
    assert all(p.requires_grad for p in new.experts.parameters())


def test_a_balance_that_comes_from_a_removed_mixture_stays() -> None:
    balance = hm.Balance("kl", 3.0)
    inner = hm.Mixture.of(hm.Mixture.of(small(), 2), 2, balance=balance)
    model = build(hm.Mixture((small(), inner)), (4,))
    for new in (hm.surgery.unwrap(model, "root/1"), hm.surgery.prune(model, ["root/1/0"])):
        assert new.plan.balances[-1] == balance
        assert new.plan.balances[0] == hm.Balance()


def test_noise_tells_copies_apart_and_follows_its_generator() -> None:
    model = build(hm.Mixture.of(small(), 2), (4,))
    one, other = (
        hm.surgery.split(model, "root/0", noise=0.1, generator=torch.Generator().manual_seed(0)) for _ in range(2)
    )
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=0)
    before = benchmark.rows_of(model, "root/0")
    for path in ("root/0/0", "root/0/1"):
        for name, row in benchmark.rows_of(one, path).items():
            apart = (row - before[name]).std(correction=0) / before[name].std(correction=0)
            assert 0.02 < apart < 0.3, name
    torch.testing.assert_close(benchmark.rows_of(one, "root/1"), benchmark.rows_of(model, "root/1"), rtol=0, atol=0)


def test_a_checkpoint_of_the_old_tree_is_refused_by_name(tmp_path: Path) -> None:
    model, x = build(hm.Mixture.of(small(), 2), (4,)), torch.rand(20, 4, dtype=torch.float64)
    fit(model, x, epochs=1, seed=0, checkpoint_dir=tmp_path)
    new = hm.surgery.split(model, "root/0")
    with pytest.raises(ArgumentError, match=r"tree: expected .*, got root.children\[0\]: mixture in place of vae"):
        fit(new, x, epochs=2, seed=0, checkpoint_dir=tmp_path, resume=hm.training.last_checkpoint(tmp_path))


def test_weights_in_half_precision_stay_so() -> None:
    model = hm.HMoEVAE(hm.Mixture.of(small(), 3), (4,)).to(torch.bfloat16)
    new = hm.surgery.merge(model, ["root/0", "root/1"], x=torch.rand(20, 4))
    assert new.dtype == torch.bfloat16


# --- gates that learn -----------------------------------------------------------------------------------------------


def trained_gates(tree: Tree) -> tuple[hm.HMoEVAE, Tensor]:
    """A model whose gates tell clusters of the plane apart, and samples of them."""
    model = build(tree, (2,))
    generator = torch.Generator().manual_seed(0)
    cluster = torch.arange(200) % model.plan.n_leaves
    angle = 2 * math.pi * cluster / model.plan.n_leaves
    x = 0.5 + 0.4 * torch.stack([angle.cos(), angle.sin()], 1) + 0.02 * torch.randn(200, 2, generator=generator)
    hm.surgery.fit_gates(model, x.double(), torch.eye(model.plan.n_leaves)[cluster].double(), epochs=30, lr=3e-2)
    return model, x.double()


@pytest.mark.usefixtures("as_users_call")
def test_gates_learn_what_they_said() -> None:
    flat, x = trained_gates(hm.Mixture.of(small(), 6, gate=hm.MLP((16,))))
    old = flat.predict_proba(x)
    apart: dict[bool, list[float]] = {}
    check_untouched(named_by_path(flat), hm.surgery.wrap(named_by_path(flat), ["root/1", "root/3"], x=x[:9]))
    for learn in (False, True):
        fitted = x if learn else None
        wrapped = hm.surgery.wrap(flat, ["root/1", "root/3", "root/4"], x=fitted)
        merged = hm.surgery.merge(flat, ["root/2", "root/5"], x=fitted)
        unwrapped = hm.surgery.unwrap(wrapped, "root/1", x=fitted)
        sums = torch.cat([old[:, :2], old[:, [2]] + old[:, [5]], old[:, 3:5]], 1)
        pairs = [
            (wrapped.predict_proba(x), old[:, [0, 1, 3, 4, 2, 5]]),
            (merged.predict_proba(x), sums),
            (unwrapped.predict_proba(x), wrapped.predict_proba(x)),
        ]
        apart[learn] = [(one - other).abs().mean().item() for one, other in pairs]
    assert max(apart[True]) < 0.02, apart
    assert all(after < before for after, before in zip(apart[True], apart[False], strict=True)), apart


def named_by_path(model: hm.HMoEVAE) -> hm.HMoEVAE:
    return hm.surgery.rename(model, {node.path: node.path for node in model.plan.nodes})


def test_other_gates_stay_as_they_are_to_the_bit() -> None:
    """Also those of the same group."""
    model = build(hm.Mixture.of(hm.Mixture.of(small(), 2, gate=hm.MLP((4,))), 3, gate=hm.MLP((4,))), (2,))
    model.gates.groups[0].last.bias.requires_grad_(False)
    x, before = torch.rand(50, 2, dtype=torch.float64), copy.deepcopy(model)
    target = torch.rand(50, 6, dtype=torch.float64).softmax(1)
    state = torch.get_rng_state()
    first = hm.surgery.fit_gates(model, x, target, paths=["root/1", "root/1"], epochs=1)
    again = hm.surgery.fit_gates(copy.deepcopy(before), x, target, paths=["root/1"], epochs=1)
    assert first == again >= 0
    assert torch.equal(torch.get_rng_state(), state)
    for node in model.plan.nodes:
        rows, old = benchmark.rows_of(model, node.path), benchmark.rows_of(before, node.path)
        assert all(torch.equal(rows[name], old[name]) for name in rows) == (node.path != "root/1"), node.path
    given = before.predict_proba(x)
    assert hm.surgery.fit_gates(copy.deepcopy(before), x, given, epochs=1, lr=1e-9) == pytest.approx(0, abs=1e-6)


def test_a_graft_learns_which_samples_are_its_own() -> None:
    """Two models, each of which knows one half of the samples: gates are told apart by the bounds alone."""
    leaf = hm.VAE(1, hm.LinearPosterior(), hm.MLP(()), NUMBERS)
    halves = [torch.randn(200, 2, generator=torch.Generator().manual_seed(i)) + 6 * i for i in (0, 1)]
    fitted = [hm.HMoEVAE(leaf, (2,), objective="elbo") for _ in halves]
    for model, half in zip(fitted, halves, strict=True):
        hm.fit_em(model, half, hm.EM(seed=0))
    pair = hm.HMoEVAE(hm.Mixture.of(leaf, 2, gate=hm.MLP((8,)), prior="learned"), (2,), objective="elbo")
    for path in ("root/0", "root/1"):
        pair = hm.surgery.graft(pair, path, fitted[0])
    x = torch.cat(halves)
    new = hm.surgery.graft(pair, "root", fitted[1], beside=True, x=x, share=0.5)
    q = new.predict_proba(x, level=1)
    assert q[:200, 2].mean() < 0.02
    assert q[200:, 2].mean() > 0.98
    assert new.prior.edge_log_prob()[2].exp().item() == pytest.approx(0.5)


# --- bad input ------------------------------------------------------------------------------------------------------

NESTED = hm.Mixture(
    (hm.Mixture.of(small(), 2), small(), small(latent_dim=3), hm.Mixture.of(small(), 2, prior="leaves"))
)
REFUSED: dict[str, tuple[Callable[[Any], object], str]] = {
    "no model": (lambda m: hm.surgery.prune("model", ["root/0"]), "model: expected an HMoEVAE, got str"),
    "no such node": (lambda m: hm.surgery.split(m, "root/7"), r"path: expected a node of the tree \(root has child"),
    "no path": (lambda m: hm.surgery.split(m, 3), "path: expected a path, such as 'root/0', got 3"),
    "an odd path": (lambda m: hm.surgery.prune(m, ["root/01"]), r"paths\[0\]: expected a path in its plain form"),
    "one path": (lambda m: hm.surgery.prune(m, "root/0"), "paths: expected a list of paths"),
    "no paths": (lambda m: hm.surgery.prune(m, []), "paths: expected at least 1 path, got"),
    "twice": (lambda m: hm.surgery.prune(m, ["root/0", "root/0"]), "paths: expected each path once"),
    "the root": (lambda m: hm.surgery.prune(m, ["root"]), "paths: expected nodes below the root"),
    "nothing left": (lambda m: hm.surgery.prune(m, [f"root/{i}" for i in range(4)]), "that leave at least one leaf"),
    "a mixture to split": (lambda m: hm.surgery.split(m, "root/0"), "path: expected a leaf, got 'root/0', a mixture"),
    "into one": (lambda m: hm.surgery.split(m, "root/1", 1), "into: expected an integer > 1, got 1"),
    "noise": (lambda m: hm.surgery.split(m, "root/1", noise=-1.0), "noise: expected a finite number >= 0"),
    "generator": (lambda m: hm.surgery.split(m, "root/1", generator=3), "generator: expected a torch.Generator"),
    "gate": (lambda m: hm.surgery.split(m, "root/1", gate="MLP"), r"Mixture.gate: expected"),
    "gate beside": (lambda m: hm.surgery.split(m, "root/1", beside=True, gate=hm.MLP()), "gate: expected None with"),
    "one to merge": (lambda m: hm.surgery.merge(m, ["root/0"]), "paths: expected at least 2 paths"),
    "unequal": (lambda m: hm.surgery.merge(m, ["root/1", "root/2"]), r"paths: expected .* as root/1 .*got root/2 \("),
    "unequal below": (lambda m: hm.surgery.merge(m, ["root/0", "root/3"]), "paths: expected nodes that are equal but"),
    "cousins": (lambda m: hm.surgery.merge(m, ["root/1", "root/0/1"]), "paths: expected children of one mixture"),
    "wrap all": (lambda m: hm.surgery.wrap(m, ["root/0/0", "root/0/1"]), "paths: expected some of the 2 children of"),
    "wrap name": (lambda m: hm.surgery.wrap(m, ["root/1", "root/2"], name=3), "name: expected a string or None"),
    "unwrap a leaf": (lambda m: hm.surgery.unwrap(m, "root/1"), "path: expected a mixture below the root.*a leaf"),
    "unwrap the root": (lambda m: hm.surgery.unwrap(m, "root"), "path: expected a mixture below the root.*the root"),
    "names": (lambda m: hm.surgery.rename(m, ["a"]), "names: expected names by path"),
    "a name": (lambda m: hm.surgery.rename(m, {"root/0": 3}), r"names\['root/0'\]: expected a string or None"),
    "a name of none": (lambda m: hm.surgery.rename(m, {"root/9": "a"}), "names: expected a node of the tree"),
    "no donor": (lambda m: hm.surgery.graft(m, "root/0", m.tree), "donor: expected an HMoEVAE, got Mixture"),
    "another shape": (lambda m: hm.surgery.graft(m, "root/0", build(small(), (5,))), "donor: .* input_shape .*got"),
    "another type": (lambda m: hm.surgery.graft(m, "root/0", hm.HMoEVAE(small(), (4,))), "donor: .* dtype .*float32"),
    "gaps": (lambda m: hm.surgery.graft(m, "root/0", build(small(), (4,), missing=True)), "donor: .* missing False"),
    "no such donor": (lambda m: hm.surgery.graft(m, "root/0", m, node="root/9"), "node: expected a node of the tree"),
    "beside a leaf": (lambda m: hm.surgery.graft(m, "root/1", m, beside=True), "path: expected a mixture, with beside"),
    "share": (lambda m: hm.surgery.graft(m, "root", m, beside=True, share=1.0), "share: expected a number between 0"),
    "share in place": (lambda m: hm.surgery.graft(m, "root/0", m, share=0.5), "share: expected None without beside"),
    "x": (lambda m: hm.surgery.merge(m, ["root/1", "root/1"], x=torch.rand(3, 5)), "paths: expected each path once"),
    "x of another shape": (
        lambda m: hm.surgery.wrap(m, ["root/1", "root/2"], x=torch.rand(3, 5)),
        r"x: expected \(batch, 4\), got \(3, 5\)",
    ),
    "no gate": (lambda m: fit_to(m, torch.full((3, 6), 1 / 6), paths=["root/1"]), r"paths\[0\]: expected a mixture"),
    "gate's path": (lambda m: fit_to(m, torch.full((3, 6), 1 / 6), paths="root"), "paths: expected a list of paths"),
    "few leaves": (lambda m: fit_to(m, torch.ones(3, 1)), r"leaf_prob: expected \(batch, leaf\), \(3, 6\), got \(3, 1"),
    "integers": (lambda m: fit_to(m, torch.ones(3, 6).long()), "leaf_prob: expected a floating point tensor, got"),
    "sums": (lambda m: fit_to(m, torch.ones(3, 6)), "leaf_prob: expected probabilities, of which each row sums"),
    "negative": (lambda m: fit_to(m, torch.tensor([[2.0, -1, 0, 0, 0, 0]] * 3)), "leaf_prob: expected probabilities"),
    "not a number": (lambda m: fit_to(m, torch.full((3, 6), torch.nan)), "leaf_prob: expected probabilities"),
    "epochs": (lambda m: fit_to(m, torch.full((3, 6), 1 / 6), epochs=0), "epochs: expected an integer > 0"),
    "lr": (lambda m: fit_to(m, torch.full((3, 6), 1 / 6), lr=0), "lr: expected a finite number > 0"),
}


def fit_to(model: hm.HMoEVAE, leaf_prob: Tensor, **options: Any) -> float:
    return hm.surgery.fit_gates(model, torch.rand(3, 4, dtype=model.dtype), leaf_prob, **options)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_by_name(name: str, nested: hm.HMoEVAE) -> None:
    call, words = REFUSED[name]
    with pytest.raises(HMoEVAEError, match=words) as caught:
        call(nested)
    assert isinstance(caught.value, ValueError | TypeError)


@pytest.fixture(scope="module")
def nested() -> hm.HMoEVAE:
    return build(NESTED, (4,))


def test_a_lone_leaf_splits_but_not_beside() -> None:
    model = build(small(name="all"), (4,))
    new = hm.surgery.split(model, "root")
    assert new.tree == hm.Mixture.of(small(), 2, name="all")
    with pytest.raises(ArgumentError, match="beside: expected False for the root, which has no parent, got True"):
        hm.surgery.split(model, "root", beside=True)


def test_gates_that_would_see_something_else_are_refused() -> None:
    """Gates see what the first leaf's likelihood shows: logarithms of counts, or the counts themselves."""
    tree = hm.Mixture((small(likelihood=hm.Poisson()), small(likelihood=NUMBERS), small(likelihood=NUMBERS)))
    model = build(tree, (4,))
    with pytest.raises(ArgumentError, match=r"model: expected a first leaf whose likelihood shows.* gate .* at root"):
        hm.surgery.prune(model, ["root/0"])
    assert hm.surgery.prune(model, ["root/1"]).plan.n_leaves == 2


def test_a_merge_of_all_children_takes_the_place_of_their_mixture() -> None:
    model = build(NESTED, (4,))
    new = hm.surgery.merge(model, ["root/0/1", "root/0/0"], x=torch.rand(5, 4, dtype=torch.float64))
    assert [leaf.path for leaf in new.plan.leaves][:2] == ["root/0", "root/1"]
    torch.testing.assert_close(benchmark.rows_of(new, "root/0"), benchmark.rows_of(model, "root/0/1"), rtol=0, atol=0)


@pytest.mark.slow
def test_a_thousand_operations() -> None:
    with torch.random.fork_rng():
        found = benchmark.operations(1000, seed=1)
    assert (found["untouched_equal"], found["exact"]) == (1000, 1000)

"""What a report says of nodes, against plain computations on random trees."""

import numpy as np
import pytest
import torch
from conftest import Case, build, cases, data_for, with_gaps
from hypothesis import given

import hmoevae as hm
from hmoevae.reporting.choices import odd, typical, typicality, unsure
from hmoevae.reporting.differences import apart, region
from hmoevae.reporting.effects import Group, of_node, overlap_lost, standardised, total_variation, without
from hmoevae.reporting.facts import facts
from hmoevae.reporting.gates import gates
from hmoevae.reporting.material import Feature, read
from hmoevae.reporting.moments import Bins, bins_of, histogram, moments
from hmoevae.reporting.routed import leaf_of, route


def material_of(model, x, **more):
    return read(model, x, **({"labels": None, "names": None, "table": None} | more))


@given(cases())
def test_samples_go_where_the_model_says(case: Case) -> None:
    model, x = case.model, data_for(case.tree, case.shape, 7, case.seed)
    routed, plan = route(model, x), model.plan
    q = model.predict_proba(x).numpy()
    np.testing.assert_allclose(q[np.arange(7), routed.leaf], q.max(1), atol=1e-9)
    np.testing.assert_allclose(q[np.arange(7), leaf_of(model, x)], q.max(1), atol=1e-9)
    np.testing.assert_allclose(routed.probability, q.max(1), atol=1e-9)
    with torch.no_grad():
        edges = model._edge_log_prob(x.flatten(1).t()).exp().numpy()
    for node in plan.nodes:
        own = routed.samples_of(node)
        below = (routed.leaf >= node.leaves.start) & (routed.leaf < node.leaves.stop)
        assert sorted(own) == np.flatnonzero(below).tolist()
        children = [plan.edge_child[edge] for edge in node.child_edges]
        for i in own if children else ():
            g = dict(zip(children, edges[list(node.child_edges), i].tolist(), strict=True))
            chosen = next(child for child in children if routed.leaf[i] in plan.nodes[child].leaves)
            entropy = -sum(p * np.log(p) for p in g.values() if p > 0)
            best = max(p for child, p in g.items() if child != chosen)
            other = int(routed.other[i, node.depth])
            assert other != chosen
            assert g[other] == pytest.approx(best)
            assert routed.chosen_probability[i, node.depth] == pytest.approx(g[chosen])
            assert routed.other_probability[i, node.depth] == pytest.approx(best)
            assert routed.entropy[i, node.depth] == pytest.approx(entropy)


@given(cases(max_leaves=5))
def test_the_bound_is_below_the_density_where_there_are_two_leaves_at_most(case: Case) -> None:
    """On average: its draw of z is one. With exact posteriors and two leaves it is the density."""
    model, x = case.model, data_for(case.tree, case.shape, 40, case.seed)
    bound, density = route(model, x).bound, model.score_samples(x, n_importance=64).numpy()
    assert bound.mean() <= density.mean() + 1.0
    if model.plan.n_leaves <= 2 and all(group.is_exact for group in model.experts.groups):
        np.testing.assert_allclose(bound, density, atol=1e-6)


@given(cases())
def test_moments_and_histograms_are_those_of_the_nodes_samples(case: Case) -> None:
    model = build(case.tree, case.shape, seed=case.seed, missing=True)
    x = with_gaps(data_for(case.tree, case.shape, 31, case.seed)).flatten(1)
    routed = route(model, x.unflatten(1, case.shape))
    found = moments(model.plan, routed, x.numpy())
    bins = Bins(np.array([0.0, 0.5, 1.0]))
    counts = histogram(model.plan, routed, bins, x[:, 0].numpy())
    for node in model.plan.nodes:
        own = x[routed.samples_of(node)].numpy()
        assert (found.observed[node.index] == (~np.isnan(own)).sum(0)).all()
        for i in range(own.shape[1]):
            column = own[:, i][~np.isnan(own[:, i])]
            if len(column):
                assert found.mean[node.index, i] == pytest.approx(column.mean(), abs=1e-9)
                assert found.std[node.index, i] == pytest.approx(column.std(), abs=1e-6)
        first = own[:, 0][~np.isnan(own[:, 0])]
        assert counts[node.index].tolist() == [(first < 0.5).sum(), (first >= 0.5).sum()]


def test_what_is_left_of_a_group_has_the_moments_of_the_others():
    draw = np.random.default_rng(0)
    x, is_part = draw.normal(3, 2, 50), np.arange(50) < 20

    def group(values):
        return Group(*(np.array([v]) for v in (float(len(values)), values.mean(), values.std())))

    rest = without(group(x), group(x[is_part]))
    np.testing.assert_allclose(np.concatenate(rest), [30, x[~is_part].mean(), x[~is_part].std()])
    nothing = without(group(x), group(x))
    assert nothing.observed == 0
    assert np.isnan(nothing.mean).all()
    assert standardised(group(x), nothing) == 0


def test_effects_of_numbers_and_categories_have_one_scale():
    """Two normal distributions, counted in bins, differ as `overlap_lost` says of their distance."""
    draw, edges = np.random.default_rng(0), np.linspace(-6, 8, 200)
    for d in (0.3, 1.0, 2.5):
        one, other = (np.histogram(draw.normal(mean, 1, 200_000), edges)[0].astype(float) for mean in (0, d))
        assert total_variation(one, other) == pytest.approx(overlap_lost(np.array([d]))[0], abs=0.02)


def test_bars_hold_every_cell():
    draw = np.random.default_rng(0)
    many = np.minimum(draw.geometric(0.2, 500) - 1, 39).astype(float)
    for feature, codes in (
        (Feature("a", "number"), draw.normal(size=500)),
        (Feature("b", "number"), np.ones(5)),
        (Feature("c", "count"), draw.poisson(900, 500).astype(float)),
        (Feature("d", "count"), draw.poisson(2, 500).astype(float)),
        (Feature("e", "category", categories=tuple(map(str, range(40)))), many),
        (Feature("f", "count"), np.full(3, np.nan)),
    ):
        bins, known = bins_of(feature, codes), codes[~np.isnan(codes)]
        assert 1 <= bins.n <= 16
        assert np.bincount(bins.index(known), minlength=bins.n).sum() == len(known)
    exact = bins_of(Feature("d", "count"), np.array([0.0, 3.0, 3.0]))
    assert exact.index(np.array([0.0, 1.0, 2.0, 3.0])).tolist() == [0, 1, 2, 3]


# --- samples ----------------------------------------------------------------------------------------------------------


def test_typical_is_what_lies_near_the_mean_and_was_observed():
    frame = {"a": [3.7, 3.7, 9.0, None], "b": ["u", "v", "u", None], "c": [2.5, 2.5, 2.5, 2.5]}
    table = hm.Table.of(frame, missing=True)
    model = hm.HMoEVAE(hm.VAE(1, likelihood=table.likelihood()), table)
    material = material_of(model, frame)
    rank = typicality(route(model, material.x), material.features, material.columns)
    assert rank.tolist() == [0, 1, 2, 3]


def test_the_samples_of_a_node_are_its_own_and_sorted():
    torch.manual_seed(0)
    model = hm.HMoEVAE(hm.Mixture.of(hm.Mixture.of(hm.VAE(2), 2), 3), (4,))
    x = torch.rand(200, 4) * 8
    routed, plan = route(model, x), model.plan
    rank = typicality(routed, [Feature("", "number")] * 4, x.numpy())
    for node in plan.nodes:
        own = set(routed.samples_of(node).tolist())
        assert set(typical(routed, rank, node, 5)) <= own
        worst = odd(routed, node, 5)
        assert set(worst) <= own
        assert all(routed.bound[i] >= routed.bound[worst].max() for i in own - set(worst))
        doubtful = unsure(routed, plan, node, 5)
        assert {s.sample for s in doubtful} <= own
        margins = [s.probability - s.other_probability for s in doubtful]
        assert margins == sorted(margins)
        for s in doubtful:
            below = {plan.nodes[plan.edge_child[e]].index for e in node.child_edges} or {
                leaf.index for leaf in plan.leaves
            }
            assert {s.own, s.other} <= below
            assert s.own != s.other


def test_gates_are_compared_with_experts_and_labels():
    """A gate that follows the experts' densities exactly is right as often as it is sure."""
    draw = np.random.default_rng(0)
    x = np.concatenate([draw.normal(0, 1, (2000, 1)), draw.normal(3, 1, (2000, 1))])
    mixture = hm.VAEMixture(2, random_state=0).fit(x)
    label = np.repeat([0, 1], 2000)
    material = material_of(mixture.model_, x, table=mixture.table_, labels=label)
    gate = gates(material, route(mixture.model_, material.x))[0]
    assert sum(n for *_, n in gate.experts) == len(x)
    assert all(right == 1.0 for _, right, _ in gate.experts), "the gate's posterior is the experts'"
    assert all(abs(sure - right) < 0.15 for sure, right, n in gate.labels if n > 50)
    assert gate.confidence.sum() == len(x)


# --- whole reports ----------------------------------------------------------------------------------------------------


def test_a_planted_region_is_found():
    """Two kinds of images that differ in a bar: the region is the bar."""
    draw = np.random.default_rng(0)
    x = draw.normal(0.4, 0.1, (400, 8, 8)).clip(0, 1).astype(np.float32)
    x[::2, 3:5, 1:7] += 0.3
    mean = [
        Group(
            *(
                f(part.reshape(len(part), -1))
                for f in (lambda p: np.full(64, len(p)), lambda p: p.mean(0), lambda p: p.std(0))
            )
        )
        for part in (x[::2], x[1::2])
    ]
    mask = region(*mean, np.zeros(64), (8, 8))
    wanted = np.zeros((8, 8), bool)
    wanted[3:5, 1:7] = True
    assert (mask == wanted).all()
    assert not region(*mean, np.ones(64), (8, 8)).any(), "what the tests do not find is no region"


@given(cases(max_leaves=6))
def test_every_tree_has_facts_that_add_up(case: Case) -> None:
    model, x = case.model, data_for(case.tree, case.shape, 12, case.seed)
    material = material_of(model, x, labels=np.arange(12) % 3)
    found = facts(material).data
    for node in model.plan.mixtures:
        children = [model.plan.edge_child[edge] for edge in node.child_edges]
        assert found["count"][node.index] == sum(found["count"][child] for child in children)
        assert found["prior"][node.index] == pytest.approx(sum(found["prior"][child] for child in children), abs=1e-3)
    assert sum(n for _, n in found["labelCounts"][0]) == 12
    assert len(found["drawn"]) == len(found["typical"]) == len(found["parent"]) == len(model.plan.nodes)


def test_a_column_of_gaps_and_a_constant_one_do_no_harm():
    frame = {"a": [1.0, 2.0, 3.0, 4.0] * 10, "b": [5.0] * 40, "c": [None, 1.0] + [None] * 38, "d": ["u", "v"] * 20}
    mixture = hm.VAEMixture(2, random_state=0).fit(frame)
    material = material_of(mixture.model_, frame | {"c": [None] * 40}, table=mixture.table_)
    routed = route(mixture.model_, material.x)
    effect, share = apart(material, routed, moments(mixture.model_.plan, routed, material.columns))
    assert np.isfinite(effect).all()
    assert (share[:, 1:3] == 0).all()
    assert of_node(moments(mixture.model_.plan, routed, material.columns), 0).observed[2] == 0
    facts(material)

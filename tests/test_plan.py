"""The plan: orders, paths, edges, groups, levels and the inheritance of balances."""

import dataclasses
from itertools import pairwise

import pytest
from conftest import trees
from hypothesis import given
from hypothesis import strategies as st

import hmoevae as hm
from hmoevae.errors import ArgumentError
from hmoevae.plan import compile_tree
from hmoevae.spec import Tree

A, B, C = hm.VAE(1), hm.VAE(2), hm.VAE(3)
#                 root: 0   1: 1        2: 4            3: 8
TREE = hm.Mixture((A, hm.Mixture((B, A)), hm.Mixture((A, hm.Mixture((C, C)))), B))


def test_one_tree_by_hand() -> None:
    plan = compile_tree(TREE)
    assert [node.path for node in plan.nodes] == [
        "root",
        "root/0",
        "root/1",
        "root/1/0",
        "root/1/1",
        "root/2",
        "root/2/0",
        "root/2/1",
        "root/2/1/0",
        "root/2/1/1",
        "root/3",
    ]
    assert [node.path for node in plan.leaves] == [
        "root/0",
        "root/1/0",
        "root/1/1",
        "root/2/0",
        "root/2/1/0",
        "root/2/1/1",
        "root/3",
    ]
    assert [node.path for node in plan.mixtures] == ["root", "root/1", "root/2", "root/2/1"]
    assert plan.edge_mixture == (0, 0, 0, 0, 1, 1, 2, 2, 3, 3)
    assert plan.edge_child == (1, 2, 5, 10, 3, 4, 6, 7, 8, 9)
    assert [leaf.edges for leaf in plan.leaves] == [(0,), (1, 4), (1, 5), (2, 6), (2, 7, 8), (2, 7, 9), (3,)]
    assert [group.members for group in plan.expert_groups] == [(0, 2, 3), (1, 6), (4, 5)]
    assert [group.spec for group in plan.expert_groups] == [A, B, C]
    assert [group.members for group in plan.gate_groups] == [(0,), (1, 2, 3)]
    assert (plan.n_leaves, plan.n_edges, plan.depth) == (7, 10, 3)


def test_a_lone_leaf_is_a_plan_without_gates() -> None:
    plan = compile_tree(A)
    assert plan.leaves == plan.nodes
    assert (plan.mixtures, plan.edge_child, plan.gate_groups, plan.balances) == ((), (), (), ())
    assert (plan.n_leaves, plan.n_edges, plan.depth) == (1, 0, 0)
    assert plan.level(0) == plan.level(None) == plan.leaves


@given(trees(image=True))
def test_nodes_are_the_trees_walk(tree: Tree) -> None:
    plan = compile_tree(tree)
    assert plan.tree is tree
    assert [(node.path, node.spec) for node in plan.nodes] == list(tree.walk())
    assert plan.leaves == tuple(node for node in plan.nodes if isinstance(node.spec, hm.VAE))
    assert plan.mixtures == tuple(node for node in plan.nodes if isinstance(node.spec, hm.Mixture))
    assert (plan.n_leaves, plan.depth) == (tree.n_leaves, tree.depth)
    for node in plan.nodes:
        assert plan.node(node.path) is node


@given(trees())
def test_edges_join_a_mixture_to_its_children(tree: Tree) -> None:
    plan = compile_tree(tree)
    ends = [
        (plan.mixtures[mixture].path, plan.nodes[child].path)
        for mixture, child in zip(plan.edge_mixture, plan.edge_child, strict=True)
    ]
    assert ends == [(m.path, f"{m.path}/{i}") for m in plan.mixtures for i in range(len(m.spec.children))]
    assert plan.n_edges == len(plan.nodes) - 1
    assert sorted(plan.edge_child) == list(range(1, len(plan.nodes)))


@given(trees())
def test_a_nodes_edges_lead_from_the_root_to_it(tree: Tree) -> None:
    plan = compile_tree(tree)
    for node in plan.nodes:
        way = ["root", *(plan.nodes[plan.edge_child[edge]].path for edge in node.edges)]
        assert way[-1] == node.path
        assert all(below.rpartition("/")[0] == above for above, below in pairwise(way))
        assert [plan.mixtures[plan.edge_mixture[edge]].path for edge in node.edges] == way[:-1]
        assert node.depth == node.path.count("/")


@given(trees())
def test_a_nodes_leaves_are_those_below_it(tree: Tree) -> None:
    plan = compile_tree(tree)
    for node in plan.nodes:
        below = [i for i, leaf in enumerate(plan.leaves) if f"{leaf.path}/".startswith(f"{node.path}/")]
        assert list(node.leaves) == below


@given(trees(image=True))
def test_groups_are_the_equal_nodes(tree: Tree) -> None:
    plan = compile_tree(tree)
    for nodes, groups, key in (
        (plan.leaves, plan.expert_groups, lambda leaf: dataclasses.replace(leaf, name=None)),
        (plan.mixtures, plan.gate_groups, lambda mixture: (mixture.gate, len(mixture.children))),
    ):
        assert sorted(member for group in groups for member in group.members) == list(range(len(nodes)))
        assert [group.members for group in groups] == sorted(tuple(sorted(group.members)) for group in groups)
        for group in groups:
            assert key(group.spec) == key(nodes[group.members[0]].spec)
            equal = [i for i, node in enumerate(nodes) if key(node.spec) == key(group.spec)]
            assert list(group.members) == equal


def test_names_do_not_split_groups() -> None:
    plan = compile_tree(hm.Mixture((hm.VAE(name="a"), hm.VAE(name="b"), hm.VAE())))
    assert [group.members for group in plan.expert_groups] == [(0, 1, 2)]


def test_balance_and_prior_do_not_split_gates() -> None:
    inner = hm.Mixture.of(A, 2, balance=hm.Balance("kl"), prior="learned", name="inner")
    plan = compile_tree(hm.Mixture((inner, hm.Mixture.of(B, 2))))
    assert [group.members for group in plan.gate_groups] == [(0, 1, 2)]


@given(trees())
def test_balance_is_that_of_the_nearest_mixture_that_sets_one(tree: Tree) -> None:
    plan = compile_tree(tree)
    for mixture, balance in zip(plan.mixtures, plan.balances, strict=True):
        path = mixture.path
        while path and tree.at(path).balance is None:
            path = path.rpartition("/")[0]
        nearest = tree.at(path).balance if path else hm.Balance("variance", 0.1)
        computed = isinstance(mixture.spec.gate, hm.PosteriorGate)  # and cannot learn from a balance
        assert balance == (hm.Balance(nearest.kind, 0.0) if computed else nearest)


@given(trees(), st.data())
def test_a_level_partitions_the_leaves(tree: Tree, data: st.DataObject) -> None:
    plan = compile_tree(tree)
    level = data.draw(st.integers(0, plan.depth))
    nodes = plan.level(level)
    assert [leaf for node in nodes for leaf in node.leaves] == list(range(plan.n_leaves))
    for node in nodes:
        assert node.depth == level or (node.depth < level and isinstance(node.spec, hm.VAE))


def test_levels_by_hand() -> None:
    plan = compile_tree(TREE)
    assert [node.path for node in plan.level(0)] == ["root"]
    assert [node.path for node in plan.level(1)] == ["root/0", "root/1", "root/2", "root/3"]
    assert [node.path for node in plan.level(2)] == ["root/0", "root/1/0", "root/1/1", "root/2/0", "root/2/1", "root/3"]
    assert plan.level(3) == plan.level(None) == plan.leaves


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("level", [-1, 4, 1.5, "1", True])
def test_unknown_level(level: int) -> None:
    with pytest.raises(ArgumentError) as caught:
        compile_tree(TREE).level(level)
    assert str(caught.value) == f"level: expected an integer from 0 to the tree's depth 3, got {level}"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("root/9", "path: expected a node of the tree (root has children 0 to 3), got 'root/9'"),
        ("root/0/1", "path: expected a node of the tree (root/0 has no children), got 'root/0/1'"),
        ("top", "path: expected a path that starts with 'root', such as 'root/0', got 'top'"),
        ("root/01", "path: expected a path in its plain form, such as 'root/3', got 'root/01'"),
    ],
)
def test_unknown_node(path: str, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        compile_tree(TREE).node(path)
    assert str(caught.value) == message


def test_the_plan_is_immutable_and_has_no_mutable_part() -> None:
    plan = compile_tree(TREE)
    for record in (plan, plan.nodes[0], plan.expert_groups[0]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, dataclasses.fields(record)[0].name, None)
    assert hash(plan) == hash(compile_tree(TREE))
    assert plan == compile_tree(TREE)

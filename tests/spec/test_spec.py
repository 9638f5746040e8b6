"""The tree as data: JSON, equality, drawing, look-up, and what is said about trees that make no sense."""

import copy
import dataclasses
import json
import math
import pickle
import re
from fractions import Fraction
from typing import Any

import networkx as nx
import numpy as np
import pytest
from conftest import trees
from hypothesis import given
from hypothesis import strategies as st

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, HMoEVAEError, SpecError, mismatch
from hmoevae.spec import Tree
from hmoevae.spec.record import REGISTER

LEAF = hm.VAE()
TREE = hm.Mixture(children=(hm.VAE(latent_dim=2), hm.Mixture.of(LEAF, 3), LEAF))


# --- JSON -----------------------------------------------------------------------------------------------------------


@given(trees(image=True), st.sampled_from([None, 0, 2]))
def test_json_gives_back_an_equal_tree(tree: Tree, indent: int | None) -> None:
    text = tree.to_json(indent=indent)
    back = hm.tree_from_json(text)
    assert back == tree
    assert hash(back) == hash(tree)
    assert back.to_json(indent=indent) == text
    assert hm.tree_from_json(text.encode()) == tree


@given(trees(image=True, leaf_root=False))
def test_json_is_a_record_for_every_node(tree: Tree) -> None:
    def count(record: dict) -> int:
        return 1 + sum(count(child) for child in record.get("children", ()))

    assert count(json.loads(tree.to_json())) == sum(1 for _ in tree.walk())


def test_json_fills_defaults_in() -> None:
    assert hm.tree_from_json('{"kind": "vae"}') == hm.VAE()
    record = '{"kind": "mixture", "children": [{"kind": "vae"}, {"kind": "vae"}]}'
    assert hm.tree_from_json(record) == hm.Mixture.of(hm.VAE(), 2)


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 1e-15, 9.999999999999999e14])
def test_json_keeps_floats_exactly(scale: float) -> None:
    leaf = hm.VAE(likelihood=hm.Gaussian(scale))
    assert hm.tree_from_json(leaf.to_json()).likelihood.scale == scale


def deep_tree(depth: int) -> Tree:
    """A chain of `depth` mixtures."""
    tree: Tree = LEAF
    for _ in range(depth):
        tree = hm.Mixture((tree, LEAF))
    return tree


def test_deep_trees_survive_json() -> None:
    tree = deep_tree(64)
    assert hm.tree_from_json(tree.to_json()) == tree
    assert tree.depth == 64
    assert tree.n_leaves == 65


def test_too_deep_a_tree_is_refused_not_written_for_nobody_to_read() -> None:
    with pytest.raises(SpecError, match=r"Mixture.children: expected at most 64 levels of gates, got"):
        deep_tree(65)


# --- bad trees ------------------------------------------------------------------------------------------------------

COUNT = "an integer > 0"
POSITIVE = "a finite number > 0"
ACTIVATIONS = "'relu', 'sigmoid', 'tanh', 'gelu', 'silu' or 'elu'"
KNOWN = "<kinds>"


def worded(message: str) -> str:
    """The message with what is registered now, which other tests and doctests add to."""
    families = {"<networks>": hm.Network, "<likelihoods>": hm.Likelihood}
    for placeholder, family in families.items():
        *others, last = REGISTER.calls(family)
        message = message.replace(placeholder, f"{', '.join(others)} or {last}")
    *others, last = map(repr, REGISTER.kinds(hm.Balance))
    message = message.replace("<balances>", f"{', '.join(others)} or {last}")
    kinds = sorted(REGISTER.kinds(object))
    return message.replace(KNOWN, f"known are {', '.join(map(repr, kinds))}")


def test_what_may_stand_in_a_field_is_named() -> None:
    assert "VAE.encoder: expected MLP(...), Conv(...)" in worded("VAE.encoder: expected <networks>")
    assert worded(LIKELIHOOD).startswith("Gaussian(...), LogNormal(...), Bernoulli()")
    assert {"gaussian", "kl", "mixture", "mlp"} <= set(re.findall(r"'(\w+)'", worded(KNOWN)))


def unknown(kind: str) -> str:
    return f"a registered kind: import the module that registers {kind!r} first ({KNOWN})"


LIKELIHOOD = "<likelihoods>"
NETWORK = "<networks>"
NODE = "VAE(...) or Mixture(...)"
NO_FIELD = "no such field (there are latent_dim, encoder, decoder, likelihood, name)"
WIDTHS = "a tuple such as (128, 64)"

BAD_FIELDS = [
    # sizes
    (lambda: hm.VAE(latent_dim=0), f"VAE.latent_dim: expected {COUNT}, got 0"),
    (lambda: hm.VAE(latent_dim=-3), f"VAE.latent_dim: expected {COUNT}, got -3"),
    (lambda: hm.VAE(latent_dim=2.0), f"VAE.latent_dim: expected {COUNT}, got 2.0"),
    (lambda: hm.VAE(latent_dim="3"), f"VAE.latent_dim: expected {COUNT}, got '3'"),
    (lambda: hm.VAE(latent_dim=True), f"VAE.latent_dim: expected {COUNT}, got True"),
    (lambda: hm.VAE(None), f"VAE.latent_dim: expected {COUNT}, got None"),
    (lambda: hm.MLP((0,)), f"MLP.hidden[0]: expected {COUNT}, got 0"),
    (lambda: hm.MLP((3, -1)), f"MLP.hidden[1]: expected {COUNT}, got -1"),
    (lambda: hm.MLP((3, None)), f"MLP.hidden[1]: expected {COUNT}, got None"),
    (lambda: hm.MLP(128), f"MLP.hidden: expected {WIDTHS}, got 128"),
    (lambda: hm.MLP(128, 64), f"MLP.hidden: expected {WIDTHS}, got 128"),
    (lambda: hm.MLP("128"), f"MLP.hidden: expected {WIDTHS}, got '128'"),
    (lambda: hm.Conv(16), f"Conv.channels: expected {WIDTHS}, got 16"),
    (lambda: hm.Conv(channels=()), "Conv.channels: expected at least 1 items, got 0"),
    (lambda: hm.Conv(channels=(3, 0)), f"Conv.channels[1]: expected {COUNT}, got 0"),
    (lambda: hm.Conv(kernel_size=0), f"Conv.kernel_size: expected {COUNT}, got 0"),
    (lambda: hm.Conv(stride=-1), f"Conv.stride: expected {COUNT}, got -1"),
    (lambda: hm.Conv(hidden=(4, 0)), f"Conv.hidden[1]: expected {COUNT}, got 0"),
    (lambda: hm.Conv(norm_groups=0), f"Conv.norm_groups: expected {COUNT}, got 0"),
    (
        lambda: hm.Conv((8, 12), norm_groups=8),
        "Conv.norm_groups: expected None or a divisor of each of the channels (8, 12), got 8",
    ),
    # numbers
    (lambda: hm.Gaussian(1e-200), "Gaussian.scale: expected a number from 1e-15 to 1e15, got 1e-200"),
    (lambda: hm.Gaussian(1e200), "Gaussian.scale: expected a number from 1e-15 to 1e15, got 1e+200"),
    (lambda: hm.Gaussian(0), f"Gaussian.scale: expected {POSITIVE}, got 0"),
    (lambda: hm.Gaussian(-0.5), f"Gaussian.scale: expected {POSITIVE}, got -0.5"),
    (lambda: hm.Gaussian(math.nan), f"Gaussian.scale: expected {POSITIVE}, got nan"),
    (lambda: hm.Gaussian(math.inf), f"Gaussian.scale: expected {POSITIVE}, got inf"),
    (lambda: hm.Gaussian("1"), f"Gaussian.scale: expected {POSITIVE}, got '1'"),
    (lambda: hm.Gaussian(True), f"Gaussian.scale: expected {POSITIVE}, got True"),
    (lambda: hm.Balance(weight=-1), "Balance.weight: expected a finite number >= 0, got -1"),
    (lambda: hm.Balance(weight=math.nan), "Balance.weight: expected a finite number >= 0, got nan"),
    (lambda: hm.Balance(weight=None), "Balance.weight: expected a finite number >= 0, got None"),
    # choices
    (lambda: hm.MLP(activation="swish"), f"MLP.activation: expected {ACTIVATIONS}, got 'swish'"),
    (lambda: hm.Conv(activation=None), f"Conv.activation: expected {ACTIVATIONS}, got None"),
    (lambda: hm.Gaussian(mean="relu"), "Gaussian.mean: expected 'sigmoid' or 'identity', got 'relu'"),
    (lambda: hm.Balance("none"), "Balance.kind: expected <balances>, got 'none'"),
    (
        lambda: hm.Mixture.of(LEAF, 2, prior="flat"),
        "Mixture.prior: expected 'uniform', 'leaves' or 'learned', got 'flat'",
    ),
    # records
    (lambda: hm.VAE(encoder=5), f"VAE.encoder: expected {NETWORK}, got 5"),
    (lambda: hm.VAE(decoder=(128,)), f"VAE.decoder: expected {NETWORK}, got (128,)"),
    (lambda: hm.VAE(encoder=hm.Gaussian()), f"VAE.encoder: expected {NETWORK}, got {hm.Gaussian()!r}"),
    (lambda: hm.VAE(encoder=hm.MLP), f"VAE.encoder: expected {NETWORK}, got {hm.MLP!r}"),
    (lambda: hm.VAE(likelihood="bernoulli"), f"VAE.likelihood: expected {LIKELIHOOD}, got 'bernoulli'"),
    (lambda: hm.VAE(likelihood=hm.Bernoulli), f"VAE.likelihood: expected {LIKELIHOOD}, got {hm.Bernoulli!r}"),
    (lambda: hm.VAE(likelihood=hm.MLP()), f"VAE.likelihood: expected {LIKELIHOOD}, got {hm.MLP()!r}"),
    (lambda: hm.VAE(name=3), "VAE.name: expected a string or None, got 3"),
    (lambda: hm.Mixture.of(LEAF, 2, gate=5), f"Mixture.gate: expected {NETWORK}, got 5"),
    (lambda: hm.Mixture.of(LEAF, 2, gate=LEAF), f"Mixture.gate: expected {NETWORK}, got {LEAF!r}"),
    (lambda: hm.Mixture.of(LEAF, 2, balance="kl"), "Mixture.balance: expected Balance(...), got 'kl'"),
    (lambda: hm.Mixture.of(LEAF, 2, name=2.5), "Mixture.name: expected a string or None, got 2.5"),
    # children
    (lambda: hm.Mixture(), "Mixture.children: expected a value, got nothing"),
    (lambda: hm.Mixture(()), "Mixture.children: expected at least 2 items, got 0"),
    (lambda: hm.Mixture((LEAF,)), "Mixture.children: expected at least 2 items, got 1"),
    (lambda: hm.Mixture(7), "Mixture.children: expected a tuple of nodes, got 7"),
    (lambda: hm.Mixture((LEAF, 7)), f"Mixture.children[1]: expected {NODE}, got 7"),
    (lambda: hm.Mixture((LEAF, hm.MLP())), f"Mixture.children[1]: expected {NODE}, got {hm.MLP()!r}"),
    (lambda: hm.Mixture.of(7, 3), f"Mixture.children[0]: expected {NODE}, got 7"),
    (lambda: hm.Mixture.of(hm.VAE, 3), f"Mixture.children[0]: expected {NODE}, got {hm.VAE!r}"),
    (lambda: hm.Mixture.of(LEAF, 1), "Mixture.of.n: expected an integer > 1, got 1"),
    (lambda: hm.Mixture.of(LEAF, -2), "Mixture.of.n: expected an integer > 1, got -2"),
    (lambda: hm.Mixture.of(LEAF, 2.5), "Mixture.of.n: expected an integer > 1, got 2.5"),
    (lambda: hm.Mixture.of(LEAF, True), "Mixture.of.n: expected an integer > 1, got True"),
    (lambda: hm.Mixture.of(LEAF, "3"), "Mixture.of.n: expected an integer > 1, got '3'"),
    # fields
    (
        lambda: hm.VAE(latents=3),
        f"VAE.latents: expected {NO_FIELD}, got 3",
    ),
    (
        lambda: hm.Mixture.of(LEAF, 2, gates=3),
        "Mixture.gates: expected no such field (there are children, gate, balance, prior, name), got 3",
    ),
    (lambda: hm.VAE(encoder={"widths": 3}), f"VAE.encoder: expected {NETWORK}, got {{'widths': 3}}"),
    (lambda: hm.Bernoulli(p=0.5), "Bernoulli.p: expected no such field (there are none), got 0.5"),
    (
        lambda: hm.MLP(128, 64, 32),
        "MLP: expected at most the arguments (hidden, activation), got 3",
    ),
    (lambda: hm.Bernoulli(0.5), "Bernoulli: expected at most the arguments (), got 1"),
    (
        lambda: hm.VAE(kind="mixture"),
        f"VAE.kind: expected {NO_FIELD}, got 'mixture'",
    ),
]


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(("make", "message"), BAD_FIELDS, ids=[message for _, message in BAD_FIELDS])
def test_bad_field_is_named(make, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        make()
    assert str(caught.value) == worded(message)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, HMoEVAEError)


def mixture_json(*children: str, **fields: object) -> str:
    """A mixture's JSON around the JSON of its children."""
    rest = "".join(f', "{key}": {json.dumps(value)}' for key, value in fields.items())
    return f'{{"kind": "mixture", "children": [{", ".join(children)}]{rest}}}'


V = '{"kind": "vae"}'
BAD_JSON = [
    ("3", f"root: expected {NODE}, got 3"),
    ("null", f"root: expected {NODE}, got None"),
    ("[]", f"root: expected {NODE}, got ()"),
    ("{}", "root: expected a record with a known kind, got {}"),
    ('{"kind": "gan"}', f"root: expected {unknown('gan')}, got {{'kind': 'gan'}}"),
    (
        '{"kind": "vae", "latent": 3}',
        f"root.latent: expected {NO_FIELD}, got 3",
    ),
    ('{"kind": "vae", "latent_dim": null}', f"root.latent_dim: expected {COUNT}, got None"),
    ('{"kind": "vae", "latent_dim": 3.0}', f"root.latent_dim: expected {COUNT}, got 3.0"),
    ('{"kind": "mixture"}', "root.children: expected a value, got nothing"),
    (mixture_json(V), "root.children: expected at least 2 items, got 1"),
    (mixture_json(V, "3"), f"root.children[1]: expected {NODE}, got 3"),
    (
        mixture_json(V, '{"latent_dim": 3}'),
        "root.children[1]: expected a record with a known kind, got {'latent_dim': 3}",
    ),
    (mixture_json(V, mixture_json(V)), "root.children[1].children: expected at least 2 items, got 1"),
    (
        mixture_json(V, mixture_json(V, '{"kind": "vae", "encoder": {"kind": "mlp", "hidden": [3, 0]}}')),
        f"root.children[1].children[1].encoder.hidden[1]: expected {COUNT}, got 0",
    ),
    (
        mixture_json('{"kind": "vae", "likelihood": {"kind": "gaussian", "scale": -1}}', V),
        f"root.children[0].likelihood.scale: expected {POSITIVE}, got -1",
    ),
    (
        mixture_json(V, '{"kind": "vae", "likelihood": {"kind": "gaussian", "scale": NaN}}'),
        f"root.children[1].likelihood.scale: expected {POSITIVE}, got nan",
    ),
    (
        mixture_json(V, '{"kind": "vae", "likelihood": {"kind": "no_such"}}'),
        f"root.children[1].likelihood: expected {unknown('no_such')}, got {{'kind': 'no_such'}}",
    ),
    (
        mixture_json(V, '{"kind": "vae", "encoder": {"kind": "bernoulli"}}'),
        f"root.children[1].encoder: expected {NETWORK}, got Bernoulli()",
    ),
    (
        mixture_json(V, V, gate={"kind": "conv", "channels": []}),
        "root.gate.channels: expected at least 1 items, got 0",
    ),
    (
        mixture_json(V, mixture_json(V, V, balance={"kind": "kl", "weight": -2})),
        "root.children[1].balance.weight: expected a finite number >= 0, got -2",
    ),
    (mixture_json(V, V, prior="flat"), "root.prior: expected 'uniform', 'leaves' or 'learned', got 'flat'"),
]


@pytest.mark.parametrize(("text", "message"), BAD_JSON, ids=[message for _, message in BAD_JSON])
def test_bad_json_is_located(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        hm.tree_from_json(text)
    assert str(caught.value) == worded(message)


@pytest.mark.parametrize("text", ["", "{", "VAE()", '{"kind": "vae",}', '{"kind": "vae"} x'])
def test_text_that_is_no_json(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        hm.tree_from_json(text)
    assert str(caught.value).startswith("root: expected valid JSON (")
    assert str(caught.value).endswith(f"), got {text!r}")


def test_bad_input_in_an_error_is_cut_short() -> None:
    with pytest.raises(SpecError) as caught:
        hm.Gaussian(mean="x" * 100_000)
    assert len(str(caught.value)) < 400


@pytest.mark.usefixtures("as_users_call")
def test_numbers_of_other_libraries_become_pythons() -> None:
    leaf = hm.VAE(np.int64(3), hm.MLP([np.int32(4)]), likelihood=hm.Gaussian(np.float32(0.5)))
    assert leaf == hm.VAE(3, hm.MLP((4,)), likelihood=hm.Gaussian(0.5))
    assert type(leaf.latent_dim) is int
    assert type(leaf.encoder.hidden[0]) is int
    assert type(leaf.likelihood.scale) is float
    assert hm.Balance(weight=Fraction(1, 4)).weight == 0.25
    assert hm.Mixture.of(LEAF, np.int64(3)).n_leaves == 3


# --- values ---------------------------------------------------------------------------------------------------------


@given(trees(image=True))
def test_trees_are_values(tree: Tree) -> None:
    """Equal content is equal, hashes alike and survives copying; any change makes another tree."""
    for twin in (copy.deepcopy(tree), copy.copy(tree), pickle.loads(pickle.dumps(tree))):
        assert twin == tree
        assert hash(twin) == hash(tree)
    renamed = dataclasses.replace(tree, name="another name")
    assert renamed != tree
    assert len({tree, copy.deepcopy(tree), renamed}) == 2


def test_kinds_of_the_same_content_differ() -> None:
    assert hm.Bernoulli() != hm.ContinuousBernoulli()
    assert hm.Mixture((LEAF, hm.VAE(3))) != hm.Mixture((hm.VAE(3), LEAF))
    assert hm.VAE(likelihood=hm.Gaussian(0.25)) != LEAF


@pytest.mark.parametrize("record", [LEAF, TREE, hm.MLP(), hm.Conv(), hm.Gaussian(), hm.Bernoulli(), hm.Balance()])
def test_records_are_immutable(record: object) -> None:
    field = next((field.name for field in dataclasses.fields(record)), "kind")
    before = hash(record)
    for change in (
        lambda: setattr(record, field, getattr(record, field)),
        lambda: setattr(record, "other", 1),
        lambda: delattr(record, field),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            change()
    assert hash(record) == before


def test_lists_become_tuples() -> None:
    """A list kept as it is could be changed behind the tree's back, and would have no hash."""
    children, hidden = [LEAF, LEAF], [4, 5]
    tree = hm.Mixture(children, gate=hm.MLP(hidden))
    children.append(LEAF)
    hidden.append(6)
    assert tree == hm.Mixture((LEAF, LEAF), gate=hm.MLP((4, 5)))
    assert hash(tree) == hash(hm.Mixture((LEAF, LEAF), gate=hm.MLP((4, 5))))


@given(trees(image=True))
def test_repr_makes_the_tree_again(tree: Tree) -> None:
    assert eval(repr(tree), vars(hm)) == tree


def test_defaults_are_the_documented_ones() -> None:
    leaf = hm.VAE(
        latent_dim=10, encoder=hm.MLP((128,), "relu"), decoder=hm.MLP((128,)), likelihood=hm.Gaussian(0.5, "sigmoid")
    )
    assert hm.VAE() == leaf
    mixture = hm.Mixture.of(leaf, 2)
    assert (mixture.gate, mixture.balance, mixture.prior) == (hm.MLP((128,)), None, "uniform")
    assert hm.Balance() == hm.Balance("variance", 0.1)


# --- walking and drawing --------------------------------------------------------------------------------------------


@given(trees())
def test_walk_is_depth_first_and_at_finds_what_it_yields(tree: Tree) -> None:
    def recurse(node: Tree, path: str) -> list[str]:
        return [path, *(p for i, child in enumerate(node.children) for p in recurse(child, f"{path}/{i}"))]

    walked = list(tree.walk())
    assert [path for path, _ in walked] == recurse(tree, "root")
    assert all(tree.at(path) is node for path, node in walked)


@given(trees())
def test_counts(tree: Tree) -> None:
    def recurse(node: Tree) -> tuple[int, int]:
        if isinstance(node, hm.VAE):
            return 1, 0
        below = [recurse(child) for child in node.children]
        return sum(n for n, _ in below), 1 + max(depth for _, depth in below)

    assert (tree.n_leaves, tree.depth) == recurse(tree)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "a path that starts with 'root', such as 'root/0'"),
        ("leaf/0", "a path that starts with 'root', such as 'root/0'"),
        ("root/3", "a node of the tree (root has children 0 to 2)"),
        ("root/", "a node of the tree (root has children 0 to 2)"),
        ("root/-1", "a node of the tree (root has children 0 to 2)"),
        ("root/x", "a node of the tree (root has children 0 to 2)"),
        ("root/1/3/0", "a node of the tree (root/1 has children 0 to 2)"),
        ("root/0/0", "a node of the tree (root/0 has no children)"),
        ("root/1/2/0", "a node of the tree (root/1/2 has no children)"),
        (1, "a path that starts with 'root', such as 'root/0'"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_unknown_path_says_how_far_it_leads(path: str, expected: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        TREE.at(path)
    assert str(caught.value) == mismatch("path", expected, repr(path))


@given(trees(image=True))
def test_networkx_graph_is_the_tree(tree: Tree) -> None:
    graph = tree.to_networkx()
    assert nx.is_arborescence(graph)
    assert list(graph) == [path for path, _ in tree.walk()]
    for path, node in tree.walk():
        assert graph.nodes[path] == {"spec": node, "label": node.label}
        assert list(graph.successors(path)) == [f"{path}/{i}" for i in range(len(node.children))]


def test_drawing_of_a_flat_tree() -> None:
    assert str(hm.Mixture.of(hm.VAE(4), 10)) == (
        "╙── Mixture of 10: gate MLP(128)\n"
        "    └─╼ 10 x VAE: latent 4, encoder MLP(128), decoder MLP(128), Gaussian(0.5)"
    )


def test_drawing_names_every_choice() -> None:
    tree = hm.Mixture(
        children=(
            hm.VAE(2, hm.MLP(()), hm.MLP((8, 16)), hm.Gaussian(0.25, "identity"), name="ones"),
            hm.Mixture.of(hm.VAE(3, likelihood=hm.Bernoulli()), 2, balance=hm.Balance("kl", 2)),
            hm.VAE(4, likelihood=hm.ContinuousBernoulli()),
            hm.VAE(4, likelihood=hm.ContinuousBernoulli()),
        ),
        gate=hm.Conv((4, 8), hidden=()),
        prior="learned",
        name="digits",
    )
    assert str(tree).splitlines() == [
        "╙── Mixture 'digits' of 4: gate Conv(4-8, MLP linear), learned prior",
        "    ├─╼ VAE 'ones': latent 2, encoder MLP(linear), decoder MLP(8-16), Gaussian(0.25, identity)",
        "    ├─╼ Mixture of 2: gate MLP(128), balance kl 2",
        "    │   └─╼ 2 x VAE: latent 3, encoder MLP(128), decoder MLP(128), Bernoulli",
        "    └─╼ 2 x VAE: latent 4, encoder MLP(128), decoder MLP(128), ContinuousBernoulli",
    ]


def test_drawing_joins_only_equal_neighbours() -> None:
    a, b = hm.VAE(1), hm.VAE(2)
    lines = str(hm.Mixture((a, b, a, a, hm.VAE(1, name="a")))).splitlines()[1:]
    assert [line.strip(" ├└─╼") for line in lines] == [a.label, b.label, f"2 x {a.label}", f"VAE 'a'{a.label[3:]}"]


@given(trees(image=True))
def test_drawing_has_a_line_for_every_run_of_equal_children(tree: Tree) -> None:
    def lines(node: Tree) -> int:
        runs = [c for i, c in enumerate(node.children) if i == 0 or c != node.children[i - 1]]
        return 1 + sum(lines(child) for child in runs)

    drawn = str(tree).splitlines()
    assert len(drawn) == lines(tree)
    assert drawn[0] == f"╙── {tree.label}"


# --- records of a user's own ------------------------------------------------------------------------------------------


class Undecorated(hm.MLP):
    """A class that forgot the decorator: a file would name it as the class that it comes from."""


@hm.record(kind="tests.listed")
class Listed(hm.Network):
    sizes: list[int]


@hm.record(kind="tests.anything")
class Anything(hm.Network):
    what: object


@pytest.mark.parametrize("field", ["encoder", "decoder", "gate"])
def test_a_class_without_the_decorator_is_refused_by_its_field(field: str) -> None:
    make = hm.VAE if field != "gate" else lambda gate: hm.Mixture((hm.VAE(), hm.VAE()), gate=gate)
    words = rf"\.{field}: expected a record: Undecorated needs the decorator @hmoevae\.record\(kind=\.\.\.\) itself"
    with pytest.raises(SpecError, match=words):
        make(**{field: Undecorated()})


def test_a_field_that_cannot_be_hashed_is_named() -> None:
    words = r"^Listed\.sizes: expected a tuple or another value that can be hashed, got \[1, 2\]"
    with pytest.raises(SpecError, match=words):
        hm.VAE(encoder=Listed([1, 2]))


def test_a_field_that_json_cannot_hold_is_named() -> None:
    tree = hm.Mixture.of(hm.VAE(encoder=Anything(print)), 2)
    with pytest.raises(SpecError, match=r"^root\.children\[0\]\.encoder\.what: expected a record \(.*, a seq.*, got <"):
        tree.to_json()


def test_a_field_may_not_be_called_kind() -> None:
    with pytest.raises(SpecError, match=r"^Named\.kind: expected a field of another name"):

        @hm.record(kind="tests.named")
        class Named(hm.Network):
            kind: str = "x"


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("kind", ["", 3, hm.Network])
def test_a_kind_is_a_name(kind: Any) -> None:
    """A decorator without its parentheses gets the class, or the function, in its place."""
    for register in (hm.record, hm.objective, hm.balance):
        with pytest.raises(ArgumentTypeError, match=r"^(kind|name): expected a name, as in \w+\(.*\"mine\"\), got"):
            register(kind)


def test_a_record_of_the_package_has_no_plain_module() -> None:
    """Ours run in groups; whoever calls their `build` is told so."""
    with pytest.raises(SpecError, match=r"^MLP\.build: expected a method of its own, as a user's networks have"):
        hm.MLP().build((4,), (2,))
    with pytest.raises(SpecError, match=r"^Gaussian\.build: expected a method of its own"):
        hm.Gaussian().build(1, 4)

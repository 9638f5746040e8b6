"""grow: what is planted is found and split where that gains, the limits hold, and the record tells what was done."""

import json
import random
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Case, build, cases
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, HMoEVAEError, ShapeError
from hmoevae.growth.bounds import log_joint
from hmoevae.growth.splits import Split, after_prune, chosen
from hmoevae.spec.record import read, write

LEAF = hm.VAE(1, hm.LinearPosterior(), hm.MLP(()), hm.Gaussian(1.0, "identity"))
SMALL = hm.MLP((8,))
TRAINING = hm.Training(epochs=10, lr=0.1, batch_size=10, device="cpu")


def along_the_line(x: Tensor) -> Tensor:
    """Copies at any place of the first feature, some with the other style: these make a kind hang together."""
    flip = torch.rand(len(x), 1) < 0.15
    second = torch.where(flip, -x[:, 1:2], x[:, 1:2])
    return torch.cat([16 * torch.rand(len(x), 1) - 8, second, x[:, 2:]], 1)


GROWTH = hm.Growth(held_out=0.2, gate=SMALL, style_gate=SMALL, changes=along_the_line)


def styles(n: int = 60, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Two kinds, each of two styles; along the first feature they are long, which is what a latent can explain."""
    generator = torch.Generator().manual_seed(seed)
    style = torch.arange(4).repeat(n)
    x = torch.randn(len(style), 8, generator=generator)
    x[:, 0] = 16 * torch.rand(len(style), generator=generator) - 8
    x[:, 1] += 3.0 * (2 * (style % 2) - 1)
    x[:, 2] += 8.0 * (2 * (style // 2) - 1)
    return x, style


def blobs(n_kinds: int, n: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit Gaussians, in directions of their own."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.arange(n_kinds).repeat(n)
    return torch.randn(len(kind), 8, generator=generator) + 12 * torch.eye(8)[kind], kind


def grown(
    x: Any, growth: hm.Growth = GROWTH, training: hm.Training = TRAINING, tree: Any = LEAF, **how: Any
) -> hm.Grown:
    return hm.grow(tree, x, growth, training, progress=False, **how)


@pytest.fixture(scope="module")
def nested() -> hm.Grown:
    return grown(styles()[0])


def check_record(found: hm.Grown, first: int = 1) -> None:
    """Numbers of leaves follow from the decisions, one after the other, and end with those of the model."""
    n_leaves = first
    for decision in found.decisions:
        added = {"cut": 1, "split": 1, "merge": -1, "prune": -1, "stop": 0}[decision.action]
        n_leaves += added * decision.accepted
        assert decision.n_leaves == n_leaves, decision
        assert decision.accepted or decision.reason
    assert n_leaves == found.model.plan.n_leaves
    last = found.decisions[-1]
    assert (last.action, last.path) == ("stop", "root")
    assert [decision.action for decision in found.decisions].count("stop") == 1
    rounds = [decision.round for decision in found.decisions]
    seconds = [decision.seconds for decision in found.decisions]
    assert rounds == sorted(rounds)
    assert seconds == sorted(seconds)
    assert all(isinstance(history, hm.History) and not history.interrupted for history in found.histories)
    assert found.rows == [vars_of(decision) for decision in found.decisions]


def vars_of(decision: hm.Decision) -> dict[str, Any]:
    return {name: getattr(decision, name) for name in decision.__slots__}


# --- what is planted ------------------------------------------------------------------------------------------------


def test_styles_are_split_below_their_kinds(nested: hm.Grown) -> None:
    x, style = styles()
    check_record(nested)
    assert adjusted_rand_score(style // 2, nested.model.predict(x, level=1)) == 1
    first = {d.path: d for d in nested.decisions if d.action == "split" and d.round == 1}
    assert {path for path, decision in first.items() if decision.accepted} == {"root/0", "root/1"}
    for decision in first.values():
        assert decision.gain > max(0.1, 2 * decision.error)
        assert decision.conductance > GROWTH.max_conductance
    counts = pd.crosstab(nested.model.predict(x).numpy(), style.numpy()).to_numpy()
    assert counts.max(1).sum() > 0.9 * len(x)
    assert all(leaf.depth == 2 for leaf in nested.model.plan.leaves)
    assert nested.model.objective == "elbo"
    assert nested.model.tree.prior == "learned"


@pytest.mark.parametrize("n_kinds", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_gaussians_find_their_number_and_are_not_split(n_kinds: int) -> None:
    x, kind = blobs(n_kinds, n=150 // n_kinds)
    found = grown(np.asarray(x), replace(GROWTH, changes="auto", round_epochs=2), replace(TRAINING, batch_size=20))
    check_record(found)
    assert found.model.plan.n_leaves == n_kinds
    assert adjusted_rand_score(kind, found.model.predict(x)) == 1
    assert not any(decision.accepted for decision in found.decisions if decision.action == "split")
    assert found.decisions[-1].reason == "no split gains"
    assert len(found.histories) == 3, "of the first tree, without splits and with them"
    if n_kinds > 1:
        assert found.model.prior.logits.requires_grad


@pytest.mark.slow
def test_without_kinds_a_leaf_is_split_in_two_again_and_again() -> None:
    x, kind = blobs(3, n=40)
    found = grown(x, replace(GROWTH, kinds=False, changes="auto", max_leaves=3), replace(TRAINING, epochs=3))
    check_record(found)
    assert {decision.action for decision in found.decisions} <= {"split", "merge", "prune", "stop"}
    assert found.model.plan.n_leaves in (2, 3)
    by_leaf = pd.crosstab(found.model.predict(x).numpy(), kind.numpy()).to_numpy()
    assert ((by_leaf > 0).sum(0) == 1).all(), "no kind is divided"


@pytest.mark.slow
def test_a_given_tree_is_trained_and_grows_on() -> None:
    x, _ = styles(n=30)
    tree = hm.Mixture.of(LEAF, 2, gate=SMALL, name="digits")
    found = grown(x, replace(GROWTH, max_leaves=3), replace(TRAINING, init="kmeans", epochs=3), tree=tree)
    check_record(found, first=2)
    assert not any(decision.action == "cut" for decision in found.decisions)
    assert found.model.tree.name == "digits"
    assert found.model.plan.n_leaves <= 3


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "kinds"), [(1, 1), (2, 2), (4, 3)])
def test_there_are_never_more_leaves_than_allowed(most: int, kinds: int) -> None:
    """Also of kinds: the worst of the last cuts are undone."""
    x, _ = blobs(3, n=40)
    found = grown(x, replace(GROWTH, max_leaves=most, changes="auto", round_epochs=1), replace(TRAINING, epochs=1))
    check_record(found)
    assert found.model.plan.n_leaves <= most
    cuts = [decision for decision in found.decisions if decision.action == "cut"]
    assert sum(decision.accepted for decision in cuts) == kinds - 1
    undone = [cut for cut in cuts if not cut.accepted and cut.conductance <= GROWTH.max_conductance]
    assert {cut.reason for cut in undone} <= {"no leaf is left"}
    assert bool(undone) == (kinds < 3)
    if most < 3:
        assert found.decisions[-1].reason == f"the limit of {most} leaves"


def test_no_round_begins_after_so_many_seconds() -> None:
    x, _ = blobs(2, n=40)
    found = grown(x, replace(GROWTH, max_seconds=1e-9), replace(TRAINING, epochs=1))
    assert [decision.action for decision in found.decisions if decision.round] == ["stop"]
    assert found.decisions[-1].reason == "the limit of 1e-09 seconds"
    assert len(found.histories) == 1


def test_of_too_many_splits_those_that_gain_most_over_all_samples_are_chosen() -> None:
    def split(path: str, gain: float, share: float, error: float = 0.0) -> Split:
        return Split(path, torch.arange(2), torch.tensor([True, False]), 0.1, gain, error, share)

    large, small = split("root/0", 1.0, 0.5), split("root/1", 2.0, 0.1)
    weak, unsure = split("root/2", 0.1, 0.9), split("root/3", 3.0, 0.9, error=1.5)
    every = [weak, small, unsure, large]
    assert chosen(every, 0.1, 9) == [large, small]
    assert chosen(every, 0.1, 1) == [large]
    assert chosen(every, 1.5, 9) == [small]
    assert chosen(every, 0.0, 9) == [large, small, weak]


# --- tables ---------------------------------------------------------------------------------------------------------


def test_a_table_with_categories() -> None:
    generator = np.random.default_rng(0)
    kind = np.repeat([0, 1], 60)
    columns = {f"x{i}": generator.normal(size=120) + 8 * kind for i in range(6)}
    frame = pd.DataFrame(columns | {"colour": np.where(kind == 0, "red", "blue")})
    table = hm.Table.of(frame)
    leaf = replace(LEAF, likelihood=table.likelihood())
    found = grown(
        frame, replace(GROWTH, changes="auto", round_epochs=1), replace(TRAINING, epochs=4), tree=leaf, table=table
    )
    check_record(found)
    assert found.model.table == table
    assert adjusted_rand_score(kind, found.model.predict(frame)) == 1


# --- random states --------------------------------------------------------------------------------------------------


def test_the_seed_fixes_all_and_no_global_state_moves(rng_untouched: None) -> None:
    x, _ = styles(n=25)
    growth, training = replace(GROWTH, max_leaves=4, round_epochs=1), replace(TRAINING, epochs=2)
    before = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    first = grown(x, growth, training)
    second = grown(x, growth, training)
    other = grown(x, growth, replace(training, seed=1))
    assert random.getstate() == before[0]
    assert (np.random.get_state(legacy=False)["state"]["key"] == before[1]).all()  # noqa: NPY002
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])
    assert [replace(d, seconds=0.0) for d in first.decisions] == [replace(d, seconds=0.0) for d in second.decisions]
    assert [d.gain for d in first.decisions] != [d.gain for d in other.decisions]


# --- parts ----------------------------------------------------------------------------------------------------------


@given(cases(depth=2, max_leaves=6, leaf_root=False), st.data())
def test_paths_after_a_prune_are_those_of_the_pruned_tree(case: Case, data: st.DataObject) -> None:
    model = build(case.tree, case.shape)
    assume(model.plan.n_leaves > 2)
    gone = data.draw(st.sampled_from(model.plan.leaves)).path
    n_siblings = len(model.plan.node(gone.rpartition("/")[0]).child_edges)
    left = [leaf.path for leaf in model.plan.leaves if leaf.path != gone]
    pruned = hm.surgery.prune(model, [gone])
    assert [after_prune(path, gone, n_siblings) for path in left] == [leaf.path for leaf in pruned.plan.leaves]


def test_bounds_of_leaves_sum_to_the_score() -> None:
    x, _ = styles(n=10)
    model = hm.HMoEVAE(hm.Mixture.of(hm.Mixture.of(LEAF, 2), 2), (8,))
    joint = log_joint(model, x)
    assert joint.shape == (4, 40)
    torch.testing.assert_close(joint.logsumexp(0), model.score_samples(x), rtol=1e-4, atol=1e-4)


def test_a_decision_and_a_result_print(nested: hm.Grown) -> None:
    assert repr(nested) == f"<Grown: {nested.model.plan.n_leaves} leaves, {len(nested.decisions)} decisions>"
    assert json.loads(json.dumps(nested.rows)) == nested.rows
    assert pd.DataFrame(nested.rows)["action"].tolist() == [decision.action for decision in nested.decisions]


# --- the record -----------------------------------------------------------------------------------------------------


def test_a_growth_is_data() -> None:
    neighbour = hm.views.Neighbour(k=3)
    growth = hm.Growth(max_leaves=5, gate=SMALL, balance=hm.Balance("cv2", 2.0), neighbour=neighbour, changes=None)
    assert growth == replace(growth)
    assert growth != replace(growth, n_changes=2)
    assert hash(growth) == hash(replace(growth))
    assert read(json.loads(json.dumps(write(growth))), "growth") == growth
    assert eval(repr(growth), vars(hm) | {"Neighbour": hm.views.Neighbour}) == growth
    assert repr(hm.Growth()) == "Growth()"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("max_leaves", 0, "an integer > 0, got 0"),
        ("max_seconds", 0, "None or a finite number > 0, got 0"),
        ("kinds", "yes please", "True or False, got 'yes please'"),
        ("gate", 3, "MLP(...), Conv(...), ConvTranspose(...), "),
        ("balance", None, "Balance(...), got None"),
        ("round_epochs", 1.5, "an integer > 0, got 1.5"),
        ("min_gain", -0.1, "a finite number >= 0, got -0.1"),
        ("held_out", 1.0, "a number between 0 and 1, got 1.0"),
        ("held_out", 0.0, "a number between 0 and 1, got 0.0"),
        ("neighbour", 5, "a record of type Neighbour, got 5"),
        ("changes", "all", "'auto', None, a View or a callable from samples to samples, got 'all'"),
        ("n_changes", -1, "an integer >= 0, got -1"),
        ("n_changes", 1.5, "an integer >= 0, got 1.5"),
        ("n_changes", True, "an integer >= 0, got True"),
        ("max_conductance", 1, "a number from 0 to 1, without 1, got 1"),
        ("smallest", "few", "a number from 0 to 1, without 1, got 'few'"),
        ("leaves", 3, "no such field (there are max_leaves, "),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_fields_that_cannot_be_used_are_refused(field: str, value: object, words: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"Growth.{field}: expected {words}")):
        hm.Growth(**{field: value})


# --- what is refused ------------------------------------------------------------------------------------------------

X = torch.rand(100, 3, generator=torch.Generator().manual_seed(0))
FRAME = pd.DataFrame({"a": [1.5, 2.5] * 50, "b": ["u", "v"] * 50})


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tree": 3}, ArgumentTypeError, "tree: expected a VAE or a Mixture, got int"),
        ({"growth": hm.Training()}, ArgumentTypeError, "growth: expected a Growth, got Training"),
        ({"training": hm.EM()}, ArgumentTypeError, "training: expected a Training, got EM"),
        ({"x": [1.0, 2.0]}, ArgumentTypeError, "x: expected a tensor or array in memory, or a data frame with table="),
        ({"x": X[:79]}, DataError, "x: expected at least 80 samples, got 79"),
        ({"x": X.where(X < 0.9, torch.nan)}, DataError, "x: expected "),
        ({"x": X.round().long()}, ArgumentTypeError, "x: expected "),
        ({"x": X[:, 0]}, ShapeError, "x: expected (n, *sample), got (100,)"),
        ({"x": FRAME}, HMoEVAEError, "x: expected "),
        ({"x": X, "table": hm.Table.of(FRAME)}, HMoEVAEError, "expected "),
        ({"x": FRAME, "table": 3}, ArgumentTypeError, "table: expected a Table, such as Table.of(frame), got int"),
    ],
)
def test_what_cannot_be_grown_is_refused(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"tree": LEAF, "x": X, "growth": hm.Growth(), "training": TRAINING} | change
    with pytest.raises(error, match=re.escape(message)):
        hm.grow(**arguments, progress=False)


def test_an_interrupted_training_is_no_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, on which a training ends quietly: half of it is not to be compared."""
    monkeypatch.setattr("hmoevae.growth.growing.fit_quietly", lambda *_, **__: hm.History(interrupted=True))
    with pytest.raises(KeyboardInterrupt):
        grown(X)

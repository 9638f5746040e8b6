"""Freezing: what is frozen stays as it was to the bit, all else learns, and afterwards nothing is frozen."""

import functools
import re

import pytest
import torch
from conftest import fit
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, HMoEVAEError
from hmoevae.spec import Tree
from hmoevae.training.freezing import frozen

LEAF = hm.VAE(2, hm.MLP((4,)), hm.MLP((4,)), hm.Gaussian(0.5, "identity"))
OTHER = hm.VAE(1, hm.MLP(()), hm.MLP((3,)), hm.Gaussian("learned", "identity"))
GATE = hm.MLP((4,))
TREE = hm.Mixture(
    (
        LEAF,
        hm.Mixture.of(LEAF, 2, gate=GATE, prior="learned"),
        hm.Mixture((OTHER, LEAF), gate=GATE, prior="learned"),
        OTHER,
    ),
    gate=hm.MLP((5,)),
    prior="learned",
)
X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


def model_of(tree: Tree = TREE) -> hm.HMoEVAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return hm.HMoEVAE(tree, (3,), objective="elbo")


def rows(model: hm.HMoEVAE, path: str) -> list[Tensor]:
    """Copies of all that a node holds: the rows of its group and, of a mixture, of the prior."""
    node = model.plan.node(path)
    groups = model.gates.groups if node.spec.children else model.experts.groups
    found = [parameter[node.place.row].clone() for parameter in groups[node.place.group].parameters()]
    if node.spec.children and model.prior.logits is not None:
        found.append(model.prior.logits[node.child_edges.start : node.child_edges.stop].clone())
    return found


def all_rows(model: hm.HMoEVAE) -> dict[str, list[Tensor]]:
    return {node.path: rows(model, node.path) for node in model.plan.nodes}


def moved(before: dict[str, list[Tensor]], after: dict[str, list[Tensor]]) -> set[str]:
    """The nodes of which something has changed."""
    return {
        path
        for path in before
        if not all(torch.equal(one, other) for one, other in zip(before[path], after[path], strict=True))
    }


def is_restored(model: hm.HMoEVAE) -> bool:
    return all(parameter.requires_grad and not parameter._backward_hooks for parameter in model.parameters())


@pytest.mark.parametrize(
    "paths",
    [
        ["root/0"],
        ["root"],
        ["root/1", "root/2"],
        ["root/1/0", "root/1/1", "root/0", "root/2/1"],
        ["root/0", "root/2", "root/3"],
        [],
    ],
    ids="-".join,
)
@pytest.mark.parametrize(
    "options",
    [{}, {"optimizer": functools.partial(torch.optim.Adam, lr=0.05)}, {"route": hm.TopK(1)}, {"route": hm.TopK(2)}],
    ids=["dense", "adam", "top 1", "top 2"],
)
def test_frozen_nodes_stay_and_others_learn(paths: list[str], options: dict) -> None:
    """Some leaves share a group with leaves that learn, and some groups are frozen as a whole."""
    model = model_of()
    before = all_rows(model)
    with frozen(model, paths):
        fit(model, X, epochs=2, batch_size=20, lr=0.05, **options)
    changed = moved(before, all_rows(model))
    assert not changed & set(paths)
    assert is_restored(model)
    if "route" not in options:  # by which not every leaf meets samples
        assert changed == set(before) - set(paths)
    else:
        assert changed


def test_what_was_frozen_learns_afterwards() -> None:
    model = model_of()
    with frozen(model, [node.path for node in model.plan.nodes]):
        pass
    before = all_rows(model)
    fit(model, X, epochs=1, lr=0.05)
    assert moved(before, all_rows(model)) == set(before)


@pytest.mark.parametrize("paths", [["root"], ["root/1"], ["root/0", "root/2/1", "root/2"]], ids="-".join)
def test_priors_of_gates_without_weights_stay_too(paths: list[str]) -> None:
    leaf = hm.VAE(1, hm.LinearPosterior(), hm.MLP(()), hm.Gaussian("learned", "identity"))
    inner = hm.Mixture.of(leaf, 2, gate=hm.PosteriorGate(), balance=None, prior="learned")
    model = model_of(hm.Mixture((leaf, leaf, inner), gate=hm.PosteriorGate(), balance=None, prior="learned"))
    before = all_rows(model)
    with frozen(model, paths):
        fit(model, X, epochs=2, batch_size=20, lr=0.05)
    assert moved(before, all_rows(model)) == set(before) - set(paths)


def test_frozen_rows_train_the_others_as_without_freezing() -> None:
    """A leaf that has a frozen neighbour in its group takes the same first step as one that has none."""
    free, held = model_of(hm.Mixture.of(LEAF, 3, gate=GATE)), model_of(hm.Mixture.of(LEAF, 3, gate=GATE))
    fit(free, X, epochs=1, batch_size=40)
    with frozen(held, ["root/1"]):
        fit(held, X, epochs=1, batch_size=40)
    for path in ("root", "root/0", "root/2"):
        assert all(torch.equal(one, other) for one, other in zip(rows(free, path), rows(held, path), strict=True))


def test_all_is_as_before_after_an_error() -> None:
    model = model_of()
    assert model.prior.logits is not None
    model.prior.logits.requires_grad_(False)

    def fail() -> None:
        with frozen(model, ["root/0", "root/3", "root/2/0", "root"]):
            assert not is_restored(model)
            raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        fail()
    assert not model.prior.logits.requires_grad, "it was off before"
    model.prior.logits.requires_grad_(True)
    assert is_restored(model)


def test_one_may_freeze_within_another() -> None:
    model = model_of()
    before = all_rows(model)
    with frozen(model, ["root/0"]):
        with frozen(model, ["root/1/0"]):
            fit(model, X, epochs=1, lr=0.05)
        fit(model, X, epochs=1, lr=0.05)
    changed = moved(before, all_rows(model))
    assert "root/0" not in changed
    assert "root/1/0" in changed
    assert is_restored(model)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("paths", "error", "message"),
    [
        (["root/0", "root/9"], ArgumentError, "path: expected "),
        ("root", ArgumentTypeError, "paths: expected a list of paths, got 'root'"),
        (None, ArgumentTypeError, "paths: expected a list of paths, got None"),
        ({"root"}, ArgumentTypeError, "paths: expected a list of paths, got {'root'}"),
        ([3], HMoEVAEError, "expected"),
    ],
)
def test_paths_that_are_not_there(paths: object, error: type[Exception], message: str) -> None:
    model = model_of()
    with pytest.raises(error, match=re.escape(message)), frozen(model, paths):
        pytest.fail("nothing is to run")
    assert is_restored(model)


@pytest.mark.usefixtures("as_users_call")
def test_what_is_no_model() -> None:
    with pytest.raises(ArgumentTypeError, match="model: expected an HMoEVAE, got"), frozen(hm.VAE(2), ["root"]):
        pytest.fail("nothing is to run")

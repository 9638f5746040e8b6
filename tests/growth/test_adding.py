"""add_leaf: a kind that was not there gets a leaf, and the leaves that there were stay as they are."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, HMoEVAEError

LEAF = hm.VAE(1, hm.LinearPosterior(), hm.MLP(()), hm.Gaussian(0.2, "identity"))
SMALL = hm.MLP((8,))
TRAINING = hm.Training(epochs=8, lr=0.1, batch_size=16, device="cpu")
NAMED = hm.VAE(1, hm.LinearPosterior(), hm.MLP(()), hm.Gaussian(0.2, "identity"), name="first")


def kinds(n_kinds: int = 3, n: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    kind = torch.arange(n_kinds).repeat_interleave(n)
    return 0.2 * torch.randn(len(kind), 3, generator=generator) + 2 * torch.eye(3)[kind % 3], kind


def trained(tree: Any, x: Tensor, **options: Any) -> hm.HMoEVAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hm.HMoEVAE(tree, (3,), objective="elbo")
    training = hm.Training(epochs=10, lr=0.1, batch_size=16, init="kmeans", device="cpu", **options)
    hm.fit(model, x, training, progress=False)
    return model


@pytest.fixture(scope="module")
def two() -> hm.HMoEVAE:
    """Two of three kinds, and a name."""
    return trained(hm.Mixture((NAMED, LEAF), gate=SMALL), kinds(2)[0])


def weights(model: hm.HMoEVAE, path: str) -> list[Tensor]:
    node = model.plan.node(path)
    groups = model.gates.groups if node.spec.children else model.experts.groups
    return [parameter[node.place.row].clone() for parameter in groups[node.place.group].parameters()]


def are_equal(ones: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def added(model: hm.HMoEVAE, x: Tensor, training: hm.Training = TRAINING, **how: Any) -> hm.HMoEVAE:
    return hm.add_leaf(model, x, training, progress=False, **({"quantile": 0.2} | how))


def test_a_new_kind_gets_a_leaf_and_the_others_stay(two: hm.HMoEVAE, rng_untouched: None) -> None:
    x, kind = kinds()
    before = {name: value.clone() for name, value in two.state_dict().items()}
    new = added(two, x)
    assert new.plan.n_leaves == 3
    assert new.tree.children[:2] == two.tree.children
    assert new.tree.children[2] == LEAF, "the record of the first leaf without its name"
    assert (new.predict(x)[kind == 2] == 2).all()
    assert (new.predict(x)[kind < 2] == two.predict(x)[kind < 2]).all()
    for path in ("root/0", "root/1"):
        assert are_equal(weights(two, path), weights(new, path))
    assert new.score_samples(x)[kind == 2].mean() > two.score_samples(x)[kind == 2].mean() + 5
    assert all(torch.equal(value, before[name]) for name, value in two.state_dict().items())
    again = added(two, x)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in new.state_dict().items())


@pytest.mark.slow
def test_below_a_mixture_of_its_own() -> None:
    x, kind = kinds()
    model = trained(hm.Mixture((LEAF, hm.Mixture.of(LEAF, 2, gate=SMALL)), gate=SMALL), x[kind < 2])
    below = model.plan.node("root/1").leaves
    its_own = (model.predict(x)[:, None] == torch.tensor(list(below))).any(1) | (kind == 2)
    new = added(model, x[its_own], path="root/1")
    assert [leaf.path for leaf in new.plan.leaves] == ["root/0", "root/1/0", "root/1/1", "root/1/2"]
    for path in ("root", "root/0", "root/1/0", "root/1/1"):
        assert are_equal(weights(model, path), weights(new, path)), path


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"route": hm.TopK(1)},
        {"warmup": hm.Warmup(2), "revive": True},
        {"init": "kmeans", "agreement": hm.Agreement(), "view": torch.clone},
    ],
    ids=["routed", "warmup", "agreement"],
)
def test_options_that_mean_nothing_for_one_leaf_do_no_harm(two: hm.HMoEVAE, options: dict) -> None:
    x, kind = kinds()
    new = added(two, x, hm.Training(epochs=8, lr=0.1, batch_size=16, device="cpu", **options), rounds=1)
    assert (new.predict(x)[kind == 2] == 2).all()


def test_a_leaf_that_explains_all_gets_all() -> None:
    """Old leaves that never learned lose every sample."""
    model = hm.HMoEVAE(hm.Mixture.of(LEAF, 2, gate=SMALL), (3,), objective="elbo")
    for parameter in model.experts.parameters():
        torch.nn.init.constant_(parameter, 5.0)
    new = added(model, kinds(1)[0])
    assert new.predict(kinds(1)[0]).unique().tolist() == [2]


X = kinds()[0]


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": LEAF}, ArgumentTypeError, "model: expected an HMoEVAE, got VAE"),
        ({"training": hm.EM()}, ArgumentTypeError, "training: expected a Training(...), got EM"),
        ({"rounds": 0}, ArgumentError, "rounds: expected an integer > 0, got 0"),
        ({"quantile": 0}, ArgumentError, "quantile: expected a finite number > 0, got 0"),
        ({"quantile": 1.0}, ArgumentError, "quantile: expected a number between 0 and 1, got 1.0"),
        ({"path": "root/0"}, ArgumentError, "path: expected a mixture, got 'root/0', a leaf"),
        ({"path": "root/7"}, ArgumentError, "path: expected "),
        ({"path": 3}, HMoEVAEError, "path: expected "),
        ({"x": X[:20]}, DataError, "x: expected at least 10 samples that a new leaf explains better than the others"),
        ({"x": X[:0]}, DataError, "x: expected "),
        ({"x": X[:, :2]}, HMoEVAEError, "x: expected "),
        ({"x": X.where(X < 1.9, torch.nan)}, DataError, "x: expected "),
    ],
)
def test_what_cannot_be_used_is_refused(two: hm.HMoEVAE, change: dict, error: type[Exception], message: str) -> None:
    arguments = {"model": two, "x": X, "training": TRAINING} | change
    with pytest.raises(error, match=re.escape(message)):
        hm.add_leaf(**arguments, progress=False)

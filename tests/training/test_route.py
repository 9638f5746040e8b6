"""Training over chosen leaves: k of all is the dense training, and everything else that `fit` does goes with it."""

import copy
import functools
import json
import math
import os
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import fit
from torch import Tensor, nn

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from hmoevae.nn.routes import ALL, Given, TopK
from hmoevae.training.revival import revive
from hmoevae.training.row_adam import RowAdam

NET = hm.MLP((5,))
LEAF = hm.VAE(2, NET, NET)
CONV = hm.Conv((2,), 3, hidden=(4,))
IMAGES = hm.VAE(2, CONV, CONV.transpose(), hm.Gaussian("learned"))
TREES = {
    "flat": (hm.Mixture.of(LEAF, 6, gate=NET), (4,)),
    "deep": (hm.Mixture((LEAF, hm.Mixture.of(hm.VAE(3, NET, NET), 3, gate=NET), LEAF), gate=NET), (4,)),
    "images": (hm.Mixture.of(IMAGES, 4, gate=CONV), (1, 5, 5)),
}
each_tree = pytest.mark.parametrize("name", TREES)

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::hmoevae.errors.{name}") for name in ("DeadLeafWarning", "ConstantGateWarning")
]


def new_model(name: str = "flat", objective: str = "elbo") -> hm.HMoEVAE:
    torch.manual_seed(0)
    return hm.HMoEVAE(*TREES[name], objective=objective)


def samples(name: str = "flat", n: int = 24) -> Tensor:
    return torch.rand(n, *TREES[name][1], generator=torch.Generator().manual_seed(0))


def trained(name: str = "flat", objective: str = "elbo", **options: Any) -> dict[str, Any]:
    """What a training ends with, but for the clock."""
    model = new_model(name, objective)
    history = fit(model, samples(name), **({"epochs": 2, "batch_size": 8, "lr": 0.01} | options))
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in history.rows]
    return {"rows": json.dumps(rows), "weights": {key: w.numpy().tobytes() for key, w in model.state_dict().items()}}


# --- equal to what it should be equal to ------------------------------------------------------------------------------


@each_tree
@pytest.mark.parametrize("objective", ["expected", "elbo", "marginal"])
def test_k_of_all_trains_as_without_routes_to_the_bit(name: str, objective: str) -> None:
    """Two epochs of three steps; what is drawn to explore is not drawn."""
    n = new_model(name).plan.n_leaves
    expected = trained(name, objective)
    assert trained(name, objective, route=TopK(n, explore=0.5)) == expected
    assert trained(name, objective, route=TopK(n + 5)) == expected
    assert trained(name, objective, route=TopK(n - 1)) != expected


@pytest.mark.parametrize("options", [{}, {"init": "kmeans", "revive": True}, {"max_grad_norm": 0.1}], ids=str)
def test_k_of_all_goes_with_other_options(options: dict[str, Any]) -> None:
    options = options | {"agreement": hm.Agreement(partner=hm.views.Neighbour(3), alone=0.5), "epochs": 4}
    assert trained(route=TopK(6), **options) == trained(**options)


def test_seeds_fix_what_is_explored() -> None:
    assert trained(route=TopK(2, explore=0.3)) == trained(route=TopK(2, explore=0.3))
    assert trained(route=TopK(2, explore=0.3)) != trained(route=TopK(2, explore=0.3), seed=1)


def test_weights_of_samples_are_repetitions() -> None:
    """Of leaves whose ELBO is the same for any draw, as the draws of repeated samples differ."""
    exact = hm.VAE(1, hm.LinearPosterior(), hm.MLP(()), hm.Gaussian(0.5, "identity"))
    counts = torch.arange(24) % 3
    found = []
    for x, weight in ((samples(), counts.double()), (samples().repeat_interleave(counts, dim=0), None)):
        torch.manual_seed(0)
        model = hm.HMoEVAE(hm.Mixture.of(exact, 6, gate=NET), (4,), objective="elbo").double()
        options = {"route": TopK(2), "epochs": 3, "batch_size": 24, "lr": 0.01, "max_grad_norm": 1.0}
        fit(model, x, sample_weight=weight, **options)
        found.append(model.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, msg=lambda text, name=name: f"{name}: {text}")


# --- what optimisers get ----------------------------------------------------------------------------------------------


class Spy:
    """Keeps the gradients of the first step."""

    def step(self, closure: Any = None) -> Any:
        if not hasattr(self, "seen"):
            Spy.seen = [p.grad.clone() for group in self.param_groups for p in group["params"] if p.grad is not None]
        return super().step(closure)


class SpyingRowAdam(Spy, RowAdam):
    pass


class SpyingAdam(Spy, torch.optim.Adam):
    pass


def first_gradients(optimizer: Callable[..., torch.optim.Optimizer], **options: Any) -> list[Tensor]:
    if hasattr(Spy, "seen"):
        del Spy.seen
    trained(route=TopK(1), optimizer=optimizer, batch_size=2, **options)
    return Spy.seen


def test_only_row_adam_gets_sparse_gradients() -> None:
    sparse, dense = first_gradients(SpyingRowAdam), first_gradients(SpyingAdam)
    assert any(gradient.is_sparse for gradient in sparse)
    assert not any(gradient.is_sparse for gradient in dense)
    for one, other in zip(sparse, dense, strict=True):
        assert torch.equal(one.to_dense(), other)


@pytest.mark.parametrize("max_norm", [0.01, 1e6])
def test_gradients_are_clipped_as_dense_ones(max_norm: float) -> None:
    whole = [nn.Parameter(g.to_dense()) for g in first_gradients(SpyingRowAdam)]
    for parameter in whole:
        parameter.grad = parameter.data
    nn.utils.clip_grad_norm_(whole, max_norm)
    for optimizer in (SpyingRowAdam, SpyingAdam):
        for found, parameter in zip(first_gradients(optimizer, max_grad_norm=max_norm), whole, strict=True):
            torch.testing.assert_close(found.to_dense(), parameter.grad)


def test_a_training_by_a_users_optimiser() -> None:
    """Dense gradients of zero for what was not chosen, also for groups of experts of which none was."""
    torch.manual_seed(0)
    tree = hm.Mixture((LEAF, hm.VAE(3, NET, NET), hm.VAE(4, NET, NET)), gate=NET)
    model = hm.HMoEVAE(tree, (4,), objective="elbo")
    model.gates.groups[0].last.bias.data[0, 1] = 50.0
    before = copy.deepcopy(model.experts.state_dict())
    fit(model, samples(), epochs=1, batch_size=8, route=TopK(1), optimizer=functools.partial(torch.optim.SGD, lr=0.01))
    changed = {name for name, value in model.experts.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("groups.1.") for name in changed)


# --- with all else that fit does --------------------------------------------------------------------------------------

ALL_ELSE = {
    "lr_schedule": "cosine",
    "precision": "bf16",
    "init": "kmeans",
    "agreement": hm.Agreement(partner=hm.views.Neighbour(3), alone=0.3),
    "view": hm.views.Neighbour(2),
    "warmup": hm.Warmup(2, temperature=2.0),
    "max_grad_norm": 1.0,
    "revive": True,
    "validation_data": samples(n=7),
    "sample_weight": torch.arange(24) % 5,
    "early_stopping": hm.EarlyStopping(patience=9),
}


class Killed(BaseException):
    pass


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("options", [{"epochs": 4}, ALL_ELSE | {"epochs": 6}], ids=["plain", "all else"])
def test_a_run_goes_on_to_the_bit(tmp_path: Any, options: dict[str, Any]) -> None:
    options = options | {"route": TopK(2, explore=0.1)}
    expected = trained(**options)

    def kill(end: hm.EpochEnd) -> None:
        if end.epoch == options["epochs"] - 1:
            raise Killed

    with pytest.raises(Killed):
        trained(checkpoint_dir=tmp_path, callbacks=[kill], **options)
    assert trained(checkpoint_dir=tmp_path, **options) == expected


@pytest.mark.parametrize("route", [ALL, TopK(3), TopK(2, explore=0.2)], ids=str)
def test_another_route_is_refused_on_resuming(tmp_path: Any, route: hm.routes.Routes) -> None:
    trained(checkpoint_dir=tmp_path, route=TopK(2))
    words = (
        rf"^Training.route: expected TopK\(k=2, explore=0.0\), as in the checkpoint .*, got {re.escape(str(route)[:8])}"
    )
    with pytest.raises(ArgumentError, match=words):
        trained(checkpoint_dir=tmp_path, route=route, epochs=3)


def test_only_joint_epochs_are_routed() -> None:
    """The start has a leaf for every sample, and gates that learn alone have none."""
    training = hm.Training(
        epochs=6, init="kmeans", agreement=hm.Agreement(partner=hm.views.Neighbour(3), alone=0.4), route=TopK(2)
    )
    lessons = [training.course.lesson(epoch) for epoch in range(1, 7)]
    assert {(lesson.phase, lesson.settings.routes == TopK(2)) for lesson in lessons} == {
        ("start", False),
        ("alone", False),
        ("joint", True),
    }


def test_a_start_steps_the_given_leaves_alone() -> None:
    """Of six leaves, the start has two."""
    model = new_model()
    before = [p.detach().clone() for p in model.experts.parameters()]
    start = torch.arange(24) % 2 * 3
    fit(model, samples(), epochs=1, init=start, route=TopK(1), optimizer=RowAdam)
    for was, now in zip(before, model.experts.parameters(), strict=True):
        assert (was != now).flatten(1).any(1).nonzero().flatten().tolist() == [0, 3]


def test_revival_copies_the_counts_of_steps() -> None:
    model, x = new_model(), samples()
    optimizer = RowAdam(model.parameters())
    for leaf in (torch.zeros(24, dtype=torch.long), torch.zeros(24, dtype=torch.long), torch.full((24,), 4)):
        optimizer.zero_grad()
        model(x, settings=hm.StepSettings(routes=Given(leaf))).loss.backward()
        optimizer.step()
    revive(model, optimizer, torch.tensor([0.5, 0.2, 0.0, 0.1, 0.1, 0.1]), torch.Generator())
    for parameter in model.experts.parameters():
        state = optimizer.state[parameter]
        assert state["step"].tolist() == [2, 0, 2, 0, 1, 0]
        assert torch.equal(state["exp_avg"][2], state["exp_avg"][0])


@pytest.mark.slow
@pytest.mark.skipif("HMOEVAE_DATA" not in os.environ, reason="needs MNIST")
def test_a_leaf_that_is_never_chosen_comes_back_by_revival() -> None:
    """Of ten that share 5,000 digits, one is shut out; without balance, nothing else brings it back."""
    x, net = hm.datasets.mnist()[0].x[:5000], hm.MLP((32,))
    torch.manual_seed(0)
    leaf = hm.VAE(5, net, net, hm.Gaussian(0.3))
    tree = hm.Mixture.of(leaf, 10, gate=net, balance=hm.Balance("kl", 0.0))
    model = hm.HMoEVAE(tree, (1, 28, 28), objective="elbo")
    options = {"batch_size": 128, "lr": 3e-3}
    fit(model, x, epochs=5, init="kmeans", route=TopK(2), **options)
    model.gates.groups[0].last.bias.data[0, 3] -= 80.0
    shares = []
    for way in ({"revive": False}, {"revive": True}):
        again = copy.deepcopy(model)
        fit(again, x, epochs=6, route=TopK(1, explore=0.1), **way, **options)
        shares.append((again.predict(x) == 3).double().mean().item())
    assert shares[0] == 0
    assert shares[1] > 0.05


# --- trouble ----------------------------------------------------------------------------------------------------------


def always(model: hm.HMoEVAE, leaf: int) -> None:
    """Make the gate send every sample to one leaf."""
    with torch.no_grad():
        model.gates.groups[0].last.weight.zero_()
        model.gates.groups[0].last.bias.zero_()[0, leaf] = 5.0


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_an_expert_that_is_not_finite_is_named(part: str) -> None:
    model = new_model()
    always(model, 3)
    getattr(model.experts.groups[0], part).layers[0].bias.data[3] = math.nan
    with pytest.raises(
        NonFiniteError, match=r"^loss: expected a finite loss at step 1, got .* from the expert root/3;"
    ):
        fit(model, samples(), epochs=1, route=TopK(2))


def test_an_expert_that_is_not_finite_and_not_chosen_is_named_too() -> None:
    """No loss shows it, so that the end of the epoch has to."""
    model = new_model()
    always(model, 3)
    model.experts.groups[0].decoder.layers[0].bias.data[5] = math.nan
    with pytest.raises(
        NonFiniteError, match=r"^weights: expected finite weights after step 3, .* \(the expert root/5\);"
    ):
        fit(model, samples(), epochs=1, batch_size=8, route=TopK(1))


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("route", "words"),
    [
        (TopK, "hm.routes.ALL or hm.TopK"),
        (2, "hm.routes.ALL or hm.TopK"),
        (Given(torch.zeros(24, dtype=torch.long)), "hm.routes.ALL or hm.TopK"),
        (None, "hm.routes.ALL or hm.TopK"),
    ],
)
def test_what_is_no_route_is_refused(route: object, words: str) -> None:
    with pytest.raises(ArgumentTypeError, match=rf"^Training.route: expected {words}"):
        hm.Training(route=route)  # type: ignore[arg-type]


def test_compiled_routes_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^Training.compile: expected False with the route TopK\(k=2\)"):
        hm.Training(compile=True, route=TopK(2))
    hm.Training(compile=True, route=ALL)


@pytest.mark.parametrize("route", [ALL, TopK(1), TopK(3, explore=0.25)], ids=str)
def test_a_route_is_written_and_read(route: hm.routes.Routes) -> None:
    training = hm.Training(route=route)
    again = hm.training_from_json(training.to_json())
    assert again == training
    assert again.route == route
    assert (repr(training) == "Training()") == (route == ALL)
    assert eval(repr(training), {"Training": hm.Training, "TopK": TopK}) == training


def test_a_bad_route_in_a_file_is_named() -> None:
    text = hm.Training(route=TopK(2)).to_json()
    for change, words in (('"k": 2', '"k": 0'), ("top_k", "top_p")):
        with pytest.raises(hm.errors.HMoEVAEError, match=r"Training\.route"):
            hm.training_from_json(text.replace(change, words))


# --- a start that equal experts learn as one --------------------------------------------------------------------------


def test_a_shared_start_teaches_one_expert_of_each_group_and_all_go_on_from_it():
    """After the start, equal experts are equal, one of them has seen all samples, and the gates know the start."""
    torch.manual_seed(0)
    expert = hm.VAE(2, hm.MLP((8,)), hm.MLP((8,)), hm.Gaussian(1.0, "identity"))
    other = hm.VAE(1, hm.MLP((8,)), hm.MLP((8,)), hm.Gaussian(1.0, "identity"))
    tree = hm.Mixture((expert, other, expert, expert), gate=hm.MLP((16,)))
    model = hm.HMoEVAE(tree, (4,), objective="elbo")
    x = torch.randn(400, 4) * 0.1 + 3 * torch.eye(4).repeat(100, 1)
    leaf = torch.arange(4).repeat(100)
    before = [p.detach().clone() for p in model.experts.groups[0].parameters()]
    seen = {}

    def look(end):
        seen[end.epoch] = [p.detach().clone() for p in end.model.experts.groups[0].parameters()]

    training = hm.Training(epochs=4, init=leaf, init_epochs=3, init_shared=True, lr=1e-2, batch_size=50, device="cpu")
    hm.fit(model, x, training, callbacks=[look], progress=False)
    for old, unshared, shared, joint in zip(before, seen[2], seen[3], seen[4], strict=True):
        assert torch.equal(unshared[1:], old[1:])
        assert not torch.equal(unshared[0], old[0])
        assert torch.equal(shared, shared[:1].expand_as(shared))
        assert not torch.equal(joint[0], joint[1])
    assert (model.predict(x) == leaf).float().mean() > 0.95


@pytest.mark.parametrize("init", ["random", None])
def test_a_shared_start_needs_a_start(init):
    if init is None:
        with pytest.raises(ArgumentTypeError, match=r"Training.init_shared: expected True or False, got 1"):
            hm.Training(init="kmeans", init_shared=1)
    else:
        with pytest.raises(ArgumentError, match=r"Training.init_shared: expected False where the start is random"):
            hm.Training(init=init, init_shared=True)

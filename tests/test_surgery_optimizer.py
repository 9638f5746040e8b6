"""The optimiser goes along with surgery: training goes on as if nothing had happened, and fresh rows start anew."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import build
from networks import Residual
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import ArgumentError, ArgumentTypeError

Make = Callable[[Any], torch.optim.Optimizer]
LEAF = hm.VAE(2, hm.MLP((4,)), hm.MLP((4,)))
TREE = hm.Mixture(
    children=(hm.Mixture.of(LEAF, 3, gate=hm.MLP((4,)), prior="learned"), LEAF, hm.VAE(3, hm.MLP((4,)), hm.MLP((4,)))),
    gate=hm.MLP((4,)),
    prior="learned",
)
X = torch.rand(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
OPTIMIZERS: dict[str, Make] = {
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "fused Adam": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    "AMSGrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "RowAdam": lambda p: hm.RowAdam(p, lr=1e-2),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "plain SGD": lambda p: torch.optim.SGD(p, lr=1e-2),
}


def train(model: hm.HMoEVAE, optimizer: torch.optim.Optimizer, steps: int = 3, seed: int = 0) -> list[float]:
    """Some steps; the losses."""
    losses = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(seed + step)
        loss = model(X, generator=generator).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_to_the_bit(name: str) -> None:
    model = build(TREE, (4,))
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)
    twin = copy.deepcopy(model)
    twin_optimizer = OPTIMIZERS[name](twin.parameters())
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    new = hm.surgery.rename(model, {"root/1": "b"}, optimizer=optimizer)
    assert train(new, optimizer, seed=9) == train(twin, twin_optimizer, seed=9)
    torch.testing.assert_close(dict(new.state_dict()), dict(twin.state_dict()), rtol=0, atol=0)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, new.parameters()))
    assert set(map(id, optimizer.state)) <= set(held)


def row(optimizer: torch.optim.Optimizer, model: hm.HMoEVAE, path: str, key: str) -> dict[str, Tensor]:
    """The state of one node's rows, by parameter."""
    node = model.plan.node(path)
    groups: Any = model.gates.groups if node.child_edges else model.experts.groups
    found = {}
    for name, parameter in groups[node.place.group].named_parameters():
        value = optimizer.state[parameter][key]
        found[name] = value.expand(len(parameter))[node.place.row] if value.ndim == 0 else value[node.place.row]
    return found


@pytest.mark.parametrize("name", ["Adam", "RowAdam", "SGD"])
def test_moments_go_with_the_rows(name: str) -> None:
    keys = ["momentum_buffer"] if name == "SGD" else ["exp_avg", "exp_avg_sq"]
    model = build(TREE, (4,))
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)
    before = {(path, key): row(optimizer, model, path, key) for path, _ in TREE.walk() for key in keys}
    new = hm.surgery.split(model, "root/1", optimizer=optimizer)
    same = {"root/1/0": "root/1", "root/1/1": "root/1"} | {path: path for path, _ in TREE.walk() if path != "root/1"}
    for path, old in same.items():
        for key in keys:
            torch.testing.assert_close(row(optimizer, new, path, key), before[old, key], rtol=0, atol=0)
    gate = new.gates.groups[new.plan.node("root/1").place.group]
    assert gate.last.bias.shape == (1, 2)
    assert not any(parameter in optimizer.state for parameter in gate.parameters())  # it starts at the first step
    logits = optimizer.state[new.prior.logits][keys[0]]
    fresh = list(new.plan.node("root/1").child_edges)
    assert bool((logits[fresh] == 0).all())
    assert logits.count_nonzero() == len(logits) - 2
    if name == "RowAdam":
        steps = optimizer.state[new.prior.logits]["step"]
        assert steps.tolist() == [0.0 if edge in fresh else 3.0 for edge in range(len(logits))]
    train(new, optimizer)

    pruned = hm.surgery.prune(new, ["root/0/1"], optimizer=optimizer)
    layer, old = pruned.gates.groups[pruned.plan.node("root/0").place.group], before["root/0", keys[0]]
    moments = optimizer.state[layer.last.weight][keys[0]][pruned.plan.node("root/0").place.row]
    assert moments.shape[0] == old["network.layers.1.weight"].shape[0] - 1
    train(pruned, optimizer)
    donor = build(hm.Mixture.of(LEAF, 2, gate=hm.MLP((4,)), prior="learned"), (4,), seed=1)
    grafted = hm.surgery.graft(pruned, "root", donor, beside=True, optimizer=optimizer)
    for path in ("root/3/0", "root/3/1"):
        assert all(not bool(value.any()) for value in row(optimizer, grafted, path, keys[0]).values())
    if name == "RowAdam":
        assert {value.item() for value in row(optimizer, grafted, "root/3/0", "step").values()} == {0.0}
        assert optimizer.state[grafted.prior.logits]["step"][grafted.plan.node("root/3").edges[-1]] == 0
        assert {value.item() for value in row(optimizer, grafted, "root/1/0", "step").values()} == {9.0}
    losses = train(grafted, optimizer, 40)
    assert losses[-1] < losses[0]


def test_merged_children_of_a_users_network_have_moments_too() -> None:
    model = build(hm.Mixture.of(LEAF, 4, gate=Residual()), (4,))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    train(model, optimizer)
    new = hm.surgery.merge(model, ["root/0", "root/1"], optimizer=optimizer)
    for parameter in new.parameters():
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
        assert optimizer.state[parameter]["step"] == 3
    train(new, optimizer)


def test_groups_of_parameters_keep_their_options() -> None:
    model = build(TREE, (4,))
    other = torch.nn.Parameter(torch.zeros(1))
    groups: list[dict[str, Any]] = [
        {"params": [*model.gates.parameters()], "lr": 1e-2},
        {"params": [*model.experts.groups[0].parameters(), other], "lr": 1e-3},
    ]  # neither the prior nor the second group of experts learns
    optimizer = torch.optim.Adam(groups)
    train(model, optimizer)
    new = hm.surgery.split(model, "root/2", optimizer=optimizer)
    gates, experts = ([id(p) for p in group["params"]] for group in optimizer.param_groups)
    assert sorted(gates) == sorted(map(id, new.gates.parameters()))
    assert sorted(experts) == sorted([id(other), *map(id, new.experts.groups[0].parameters())])
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 1e-3]


@pytest.mark.usefixtures("as_users_call")
def test_other_optimisers_are_refused() -> None:
    model: Any = build(TREE, (4,))
    with pytest.raises(ArgumentTypeError, match=r"optimizer: expected a torch.optim.Optimizer or None, got str"):
        hm.surgery.prune(model, ["root/0"], optimizer="Adam")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="optimizer: expected one of the model's parameters, got one of none"):
        hm.surgery.prune(model, ["root/0"], optimizer=torch.optim.Adam(build(TREE, (4,)).parameters()))
    whole = torch.optim.LBFGS([p for p in model.parameters() if p.numel()])
    train_once(model, whole)
    with pytest.raises(ArgumentError, match="optimizer: expected a state of moments and numbers of steps"):
        hm.surgery.prune(model, ["root/0"], optimizer=whole)


def train_once(model: hm.HMoEVAE, optimizer: torch.optim.Optimizer) -> None:
    def closure() -> float:
        optimizer.zero_grad()
        loss = model(X, generator=torch.Generator().manual_seed(0)).loss
        loss.backward()
        return loss.item()

    optimizer.step(closure)

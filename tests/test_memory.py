"""StepMemory: what is given out, when it is given out again, and that training with it is training without it."""

import copy
import pickle

import pytest
import torch
from torch import Tensor

import hmoevae as hm
from hmoevae.nn.grouped import GroupedLinear
from hmoevae.nn.memory import GLIBC_LARGEST

TREE = hm.Mixture.of(hm.Mixture.of(hm.VAE(2, hm.MLP((6, 5), "gelu"), hm.MLP((5,))), 2), 3)


@pytest.fixture(autouse=True)
def _blocks_for_small_tensors_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmoevae.nn.memory.SMALL", 0)


def taken(memory: hm.StepMemory, name: str = "a", dtype: torch.dtype = torch.float32, n: int = 6) -> Tensor:
    return memory.empty(name, (n,), dtype)


def test_a_block_is_given_out_once_a_step() -> None:
    memory = hm.StepMemory()
    first, fresh, other = taken(memory), taken(memory), taken(memory, "b")
    assert len({t.data_ptr() for t in (first, fresh, other)}) == 3
    memory.next_step()
    assert taken(memory).data_ptr() == first.data_ptr()


def test_another_shape_or_dtype_gets_another_block() -> None:
    memory = hm.StepMemory()
    for dtype, n in ((torch.float32, 6), (torch.float32, 7), (torch.bfloat16, 7)):
        tensor = taken(memory, dtype=dtype, n=n)
        assert (tensor.dtype, tensor.shape) == (dtype, (n,))
        memory.next_step()


def test_small_tensors_are_no_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmoevae.nn.memory.SMALL", 24)
    memory = hm.StepMemory()
    small, kept = taken(memory, "small", n=5), taken(memory, "kept", n=6)
    memory.next_step()
    assert taken(memory, "kept", n=6).data_ptr() == kept.data_ptr()
    assert taken(memory, "small", n=5).data_ptr() != small.data_ptr()


@pytest.mark.parametrize("large", [0, GLIBC_LARGEST])
def test_gradients_live_in_the_memory_and_are_those_without_it(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps, so that blocks are used again; the gates see their input twice, so that a block is wanted twice."""
    monkeypatch.setattr("hmoevae.nn.grouped.GLIBC_LARGEST", large)
    torch.manual_seed(0)
    plain = hm.HMoEVAE(TREE, (5,))
    reused = copy.deepcopy(plain)
    memory = hm.StepMemory()
    memory.attach(reused)
    places = []
    for step in range(3):
        x = torch.rand(4, 5)
        memory.next_step()
        for model in (plain, reused):
            model.zero_grad()
            twice = model.gates(x.t()).square().mean()
            (model(x, generator=torch.Generator().manual_seed(step)).loss + twice).backward()
        for a, b in zip(plain.parameters(), reused.parameters(), strict=True):
            torch.testing.assert_close(b.grad, a.grad)
        weight = reused.experts.groups[0].encoder.layers[0].weight
        places.append(weight.grad.data_ptr())
    assert len(set(places)) == 1


def test_gradients_add_up_within_a_step() -> None:
    torch.manual_seed(0)
    model = hm.HMoEVAE(TREE, (5,))
    memory = hm.StepMemory()
    x = torch.rand(6, 5)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        for part in x.split(3):
            model(part, generator=torch.Generator().manual_seed(1)).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    expected = gradients()
    memory.attach(model)
    memory.next_step()
    for a, b in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("zeroed", [True, False], ids=["zeroed", "added up"])
def test_gradients_that_outlive_a_step_are_added_to(zeroed: bool) -> None:
    """`zero_grad(set_to_none=False)` keeps the tensors of the step before, and adding up keeps their values as well."""
    torch.manual_seed(0)
    model = hm.HMoEVAE(TREE, (5,))
    memory = hm.StepMemory()
    batches = torch.rand(3, 4, 5)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        for x in batches:
            if zeroed:
                model.zero_grad(set_to_none=False)
            memory.next_step()
            model(x, generator=torch.Generator().manual_seed(1)).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    expected = gradients()
    memory.attach(model)
    for a, b in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_copy_leaves_the_memory_behind() -> None:
    model = hm.HMoEVAE(TREE, (5,))
    memory = hm.StepMemory()
    memory.attach(model)
    size = len(pickle.dumps(model))
    model(torch.rand(400, 5)).loss.backward()
    model.zero_grad()
    assert len(pickle.dumps(model)) == size
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        layers = [layer for layer in twin.modules() if isinstance(layer, GroupedLinear)]
        assert layers
        assert all(layer.memory is None for layer in layers)
    assert all(layer.memory is memory for layer in model.modules() if isinstance(layer, GroupedLinear))


def test_passes_without_gradients_keep_their_results() -> None:
    layer = GroupedLinear(2, 3, 4)
    memory = hm.StepMemory()
    memory.attach(layer)
    with torch.no_grad():
        first = layer(torch.ones(3, 5))
        kept = first.clone()
        memory.next_step()
        layer(torch.zeros(3, 5))
    assert torch.equal(first, kept)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fit_lets_go_of_it(precision: str) -> None:
    model = hm.HMoEVAE(TREE, (5,))
    hm.fit(model, torch.rand(8, 5), epochs=1, batch_size=4, precision=precision, progress=False)
    assert all(layer.memory is None for layer in model.modules() if isinstance(layer, GroupedLinear))
    assert all(p.grad is None for p in model.parameters())

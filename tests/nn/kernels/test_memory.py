"""StepMemory: what is given out, when it is given out again, and that training with it is training without it."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor

import hmoevae as hm
from hmoevae.nn import kernels
from hmoevae.nn.grouped import GroupedLinear
from hmoevae.nn.kernels.memory import GLIBC_LARGEST

TREE = hm.Mixture.of(hm.Mixture.of(hm.VAE(2, hm.MLP((6, 5), "gelu"), hm.MLP((5,))), 2), 3)


@pytest.fixture(autouse=True)
def _blocks_for_small_tensors_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmoevae.nn.kernels.memory.SMALL", 0)


def taken(memory: hm.StepMemory, name: str = "a", dtype: torch.dtype = torch.float32, n: int = 6) -> Tensor:
    return memory.empty(name, (n,), dtype)


def test_a_block_is_given_out_once_a_step() -> None:
    memory = hm.StepMemory()
    with memory.step():
        first, fresh, other = taken(memory), taken(memory), taken(memory, "b")
    assert len({t.data_ptr() for t in (first, fresh, other)}) == 3
    with memory.step():
        assert taken(memory).data_ptr() == first.data_ptr()


def test_another_shape_or_dtype_gets_another_block() -> None:
    memory = hm.StepMemory()
    for dtype, n in ((torch.float32, 6), (torch.float32, 7), (torch.bfloat16, 7)):
        with memory.step():
            tensor = taken(memory, dtype=dtype, n=n)
        assert (tensor.dtype, tensor.shape) == (dtype, (n,))


def test_small_tensors_are_no_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmoevae.nn.kernels.memory.SMALL", 24)
    memory = hm.StepMemory()
    with memory.step():
        small, kept = taken(memory, "small", n=5), taken(memory, "kept", n=6)
    with memory.step():
        assert taken(memory, "kept", n=6).data_ptr() == kept.data_ptr()
        assert taken(memory, "small", n=5).data_ptr() != small.data_ptr()


def test_blocks_that_a_step_leaves_are_let_go() -> None:
    """So that weights made anew at every step, each in another place, don't add up."""
    memory = hm.StepMemory()
    for name in "abc":
        with memory.step():
            taken(memory, name)
            taken(memory, "always")
    with memory.step():
        assert memory._blocks.keys() == {"c", "always"}


def test_a_step_inside_a_step_of_the_same_memory_is_refused() -> None:
    """It would overwrite what the outer one still needs."""
    memory = hm.StepMemory()
    with (
        memory.step(),
        pytest.raises(hm.errors.ArgumentError, match=r"memory\.step: expected no open step"),
        memory.step(),
    ):
        pass
    with memory.step():
        pass


def test_layers_use_the_memory_of_the_open_step_only() -> None:
    layer, x = GroupedLinear(2, 3, 4), torch.rand(3, 5)
    outer, inner = hm.StepMemory(), hm.StepMemory()

    def owner(y: Tensor) -> list[bool]:
        places = [{block.data_ptr() for block in memory._blocks.values()} for memory in (outer, inner)]
        return [y.data_ptr() in blocks for blocks in places]

    with outer.step():
        one = layer(x)
        with inner.step():
            two = layer(x)
    with pytest.raises(ZeroDivisionError), inner.step():
        raise ZeroDivisionError
    three = layer(x)
    assert (owner(one), owner(two), owner(three)) == ([True, False], [False, True], [False, False])


@pytest.mark.parametrize("large", [0, GLIBC_LARGEST])
def test_gradients_live_in_the_memory_and_are_those_without_it(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps, so that blocks are used again; the gates see their input twice, so that a block is wanted twice."""
    monkeypatch.setattr("hmoevae.nn.kernels.cpu.GLIBC_LARGEST", large)
    torch.manual_seed(0)
    plain = hm.HMoEVAE(TREE, (5,))
    reused = copy.deepcopy(plain)
    memory = hm.StepMemory()
    places = []
    for step in range(3):
        x = torch.rand(4, 5)
        for model, where in ((plain, nullcontext()), (reused, memory.step())):
            model.zero_grad()
            with where:
                twice = model.gates(x.t()).square().mean()
                (model(x, generator=torch.Generator().manual_seed(step)).loss + twice).backward()
        for a, b in zip(plain.parameters(), reused.parameters(), strict=True):
            assert torch.equal(b.grad, a.grad)
        weight = reused.experts.groups[0].encoder.layers[0].weight
        places.append(weight.grad.data_ptr())
    assert len(set(places)) == 1


def test_gradients_add_up_within_a_step() -> None:
    torch.manual_seed(0)
    model = hm.HMoEVAE(TREE, (5,))
    x = torch.rand(6, 5)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        for part in x.split(3):
            model(part, generator=torch.Generator().manual_seed(1)).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    expected = gradients()
    with hm.StepMemory().step():
        for a, b in zip(gradients(), expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("zeroed", [True, False], ids=["zeroed", "added up"])
def test_gradients_that_outlive_a_step_are_added_to(zeroed: bool) -> None:
    """`zero_grad(set_to_none=False)` keeps the tensors of the step before, and adding up keeps their values as well."""
    torch.manual_seed(0)
    model = hm.HMoEVAE(TREE, (5,))
    memory = hm.StepMemory()
    batches = torch.rand(3, 4, 5)

    def gradients(step: Callable[[], AbstractContextManager[None]]) -> list[Tensor]:
        model.zero_grad()
        for x in batches:
            if zeroed:
                model.zero_grad(set_to_none=False)
            with step():
                model(x, generator=torch.Generator().manual_seed(1)).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    for a, b in zip(gradients(memory.step), gradients(nullcontext), strict=True):
        torch.testing.assert_close(a, b)


def viewed(weight: Tensor) -> Tensor:
    return weight.view(2, 4, 3)


def computed(weight: Tensor) -> Tensor:
    return (weight + 0).view(2, 4, 3)


@pytest.mark.parametrize("made", [viewed, computed])
def test_weights_made_of_others_may_hold_gradients_too(made: Callable[[Tensor], Tensor]) -> None:
    """A view of a parameter, and a result that hands its gradient on as it is."""
    torch.manual_seed(0)
    weight, bias, batches = torch.rand(24, requires_grad=True), torch.zeros(2, 4), torch.rand(3, 3, 5)
    memory = hm.StepMemory()
    for x in batches:
        with memory.step():
            kernels.affine(made(weight), bias, x).square().sum().backward()
    expected = torch.zeros(24)
    for x in batches:
        loss = (viewed(weight) @ x).square().sum()
        expected += torch.autograd.grad(loss, weight)[0]
    torch.testing.assert_close(weight.grad, expected)


def test_passes_without_gradients_keep_their_results() -> None:
    layer = GroupedLinear(2, 3, 4)
    memory = hm.StepMemory()
    with torch.no_grad():
        with memory.step():
            first = layer(torch.ones(3, 5))
        kept = first.clone()
        with memory.step():
            layer(torch.zeros(3, 5))
    assert torch.equal(first, kept)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fit_lets_go_of_gradients(precision: str) -> None:
    model = hm.HMoEVAE(TREE, (5,))
    hm.fit(model, torch.rand(8, 5), hm.Training(epochs=1, batch_size=4, precision=precision), progress=False)
    assert all(p.grad is None for p in model.parameters())

"""The kernels of chosen rows: outputs and gradients are those of copied rows, wherever the rows and the numbers lie."""

from collections.abc import Callable

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import hmoevae as hm
from hmoevae.nn import kernels
from hmoevae.nn.kernels import chosen as by_row
from hmoevae.nn.kernels import plain
from hmoevae.nn.likelihoods import likelihood_module
from hmoevae.nn.rows import Chosen, rows_of, taken

GROUP, INP, OUT, BATCH = 6, 3, 4, 5
ROWS = {
    "a run": [1, 2, 3],
    "two runs": [0, 1, 4, 5],
    "one row": [4],
    "all": [0, 1, 2, 3, 4, 5],
    "repeated": [1, 3, 1, 1, 3],
    "a run whose last is repeated": [1, 2, 3, 3],
    "as packed": [0, 2, 3, 2, 2],
    "all, some of them twice": [0, 1, 2, 3, 4, 5, 5, 0],
    "backwards": [4, 2, 1],
    "all backwards": [5, 4, 3, 2, 1, 0],
    "any order": [3, 0, 3, 1, 2, 0],
}
each_choice = pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=dtype)


def operands(n_rows: int, *, input_major: bool = False, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Weight, bias and input, which take gradients."""
    shape = (GROUP, INP, OUT) if input_major else (GROUP, OUT, INP)
    made = randn(*shape, dtype=dtype), randn(GROUP, OUT, dtype=dtype), randn(n_rows, INP, BATCH, dtype=dtype)
    return [tensor.requires_grad_() for tensor in made]


def gradients(y: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    weights = randn(*y.shape, seed=7).to(y.dtype)
    return [g.to_dense() for g in torch.autograd.grad((y * weights).sum(), tensors)]


def copied(weight: Tensor, bias: Tensor, x: Tensor, chosen: Chosen, *, input_major: bool) -> Tensor:
    """The plain kernel on copies of the rows."""
    return plain.affine(weight[chosen.rows], bias[chosen.rows], x, input_major=input_major)


@each_choice
@pytest.mark.parametrize("input_major", [False, True])
def test_affine_is_that_of_copied_rows(rows: list[int], input_major: bool) -> None:
    chosen, tensors = Chosen.of(torch.tensor(rows)), operands(len(rows), input_major=input_major)
    found = by_row.affine(*tensors, chosen, input_major=input_major)
    expected = copied(*tensors, chosen, input_major=input_major)
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(one, other)


@hypothesis.given(st.lists(st.integers(0, GROUP - 1), min_size=1, max_size=9), st.booleans())
@hypothesis.settings(max_examples=60)
def test_any_rows_in_any_order(rows: list[int], by_taking: bool) -> None:
    chosen, tensors = Chosen.of(torch.tensor(rows)), operands(len(rows))
    weight, bias, x = tensors
    expected = copied(*tensors, chosen, input_major=False)
    if by_taking:
        found = plain.affine(taken(weight, chosen), taken(bias, chosen), x)
    else:
        found = by_row.affine(*tensors, chosen)
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(one, other)


@each_choice
@pytest.mark.parametrize("own", [False, True], ids=["samples of all", "samples of their own"])
@pytest.mark.parametrize("chunk", [1, 1 << 20], ids=["row by row", "at once"])
def test_readouts_are_those_of_copied_rows(
    rows: list[int], own: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hmoevae.nn.kernels.chosen.CHUNK", chunk)
    chosen, tensors = Chosen.of(torch.tensor(rows)), operands(len(rows), input_major=True)
    weight, bias, h = tensors
    x = randn(len(rows), OUT, BATCH).sigmoid() if own else randn(OUT, BATCH).sigmoid()
    coins = likelihood_module(hm.Bernoulli(), len(rows), OUT)
    found = by_row.log_prob(coins, weight, bias, h, x, chosen)
    expected = coins.log_prob(copied(weight, bias, h, chosen, input_major=True), x)
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(one, other)


@each_choice
def test_bfloat16_is_as_near_to_float32_as_the_plain_kernels_are(rows: list[int]) -> None:
    chosen = Chosen.of(torch.tensor(rows))
    tensors = operands(len(rows), dtype=torch.float32)
    exact = copied(*tensors, chosen, input_major=False)
    with torch.autocast("cpu", torch.bfloat16):
        found = by_row.affine(*tensors, chosen)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, atol=0.05, rtol=0.02)
    for one, other in zip(gradients(found, tensors), gradients(exact, tensors), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=0.15, rtol=0.03)


def transposed(tensor: Tensor) -> Tensor:
    return tensor.mT.contiguous().mT


def spread(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor + 1], -1)[..., 0]


@each_choice
@pytest.mark.parametrize("lay", [transposed, spread])
def test_operands_may_lie_anyhow(rows: list[int], lay: Callable[[Tensor], Tensor]) -> None:
    chosen, tensors = Chosen.of(torch.tensor(rows)), operands(len(rows))
    weight, bias, x = tensors
    found = by_row.affine(lay(weight), bias, lay(x), chosen)
    assert not lay(x).is_contiguous()
    expected = copied(*tensors, chosen, input_major=False)
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2)])
@pytest.mark.parametrize("of_readout", [False, True])
def test_frozen_operands_get_no_gradient(frozen: tuple[int, ...], of_readout: bool) -> None:
    chosen, tensors = Chosen.of(torch.tensor(ROWS["as packed"])), operands(5, input_major=True)
    for i in frozen:
        tensors[i].requires_grad_(False)
    learn = [tensor for tensor in tensors if tensor.requires_grad]
    coins, x = likelihood_module(hm.Bernoulli(), 5, OUT), randn(OUT, BATCH).sigmoid()
    expected = copied(*tensors, chosen, input_major=True)
    if of_readout:
        found, expected = by_row.log_prob(coins, *tensors, x, chosen), coins.log_prob(expected, x)
    else:
        found = by_row.affine(*tensors, chosen, input_major=True)
    for one, other in zip(gradients(found, learn), gradients(expected, learn), strict=True):
        torch.testing.assert_close(one, other)


# --- gradients that add up, and the memory of steps -------------------------------------------------------------------


@pytest.fixture
def _blocks_for_small_tensors_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmoevae.nn.kernels.memory.SMALL", 0)


STEPS = [[0, 2, 3, 2], [1], [2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [3, 3]]  # larger and smaller, sparse and dense


def losses(weight: Tensor, bias: Tensor, *, twice: bool, by_hand: bool) -> list[Tensor]:
    """The loss of each step, of which one layer may be used twice."""
    found = []
    for i, rows in enumerate(STEPS):
        chosen = Chosen.of(torch.tensor(rows))
        x = randn(len(rows), INP, BATCH, seed=i)

        def layer(x: Tensor, chosen: Chosen = chosen) -> Tensor:
            if by_hand:
                return kernels.affine(weight, bias, x, chosen=chosen)
            return copied(weight, bias, x, chosen, input_major=False)

        y = layer(x)
        found.append(y.square().sum() if not twice else (y + layer(y[:, :INP].tanh())).square().sum())
    return found


@pytest.mark.usefixtures("_blocks_for_small_tensors_too")
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("kept", [False, True], ids=["anew", "added up"])
def test_steps_of_one_memory_do_not_meet(twice: bool, kept: bool) -> None:
    """The sparse gradients of a step lie in memory that the next step writes to, unless the weights still hold them."""
    tensors = [randn(GROUP, OUT, INP).requires_grad_(), randn(GROUP, OUT).requires_grad_()]
    memory = hm.StepMemory()
    total = [torch.zeros_like(tensor) for tensor in tensors]
    for i, expected in enumerate(losses(*tensors, twice=twice, by_hand=False)):
        if not kept:
            for tensor, sums in zip(tensors, total, strict=True):
                tensor.grad = None
                sums.zero_()
        for sums, gradient in zip(total, torch.autograd.grad(expected, tensors), strict=True):
            sums += gradient
        with memory.step():
            step = losses(*tensors, twice=twice, by_hand=True)[i]
            step.backward()
        torch.testing.assert_close(step, expected)
        for tensor, sums in zip(tensors, total, strict=True):
            assert tensor.grad is not None
            torch.testing.assert_close(tensor.grad.to_dense(), sums)


@pytest.mark.usefixtures("_blocks_for_small_tensors_too")
def test_two_backward_passes_of_a_step_add_up() -> None:
    weight, bias = randn(GROUP, OUT, INP).requires_grad_(), randn(GROUP, OUT).requires_grad_()
    expected = torch.autograd.grad(sum(losses(weight, bias, twice=False, by_hand=False)[:3]), [weight, bias])
    memory = hm.StepMemory()
    for _ in range(2):
        weight.grad = bias.grad = None
        with memory.step():
            for loss in losses(weight, bias, twice=False, by_hand=True)[:3]:
                loss.backward()
        for tensor, gradient in zip((weight, bias), expected, strict=True):
            assert tensor.grad is not None
            torch.testing.assert_close(tensor.grad.to_dense(), gradient)


@pytest.mark.usefixtures("_blocks_for_small_tensors_too")
@pytest.mark.parametrize("made", [lambda w: w.view(GROUP, OUT, INP), lambda w: (w * 2).view(GROUP, OUT, INP)])
def test_weights_made_of_others(made: Callable[[Tensor], Tensor]) -> None:
    """A view of a parameter, and a result of one: their gradients are dense, for what is to pass them on."""
    flat, bias, memory = randn(GROUP * OUT * INP).requires_grad_(), torch.zeros(GROUP, OUT).double(), hm.StepMemory()
    expected = torch.zeros_like(flat)
    for i, rows in enumerate(STEPS):
        chosen, x = Chosen.of(torch.tensor(rows)), randn(len(rows), INP, BATCH, seed=i)
        loss = copied(made(flat), bias, x, chosen, input_major=False).square().sum()
        expected += torch.autograd.grad(loss, flat)[0]
        with memory.step():
            kernels.affine(made(flat), bias, x, chosen=chosen).square().sum().backward()
        (taken(made(flat), chosen).sum() * 0).backward()
    torch.testing.assert_close(flat.grad, expected)


def test_torch_func_looks_into_chosen_rows() -> None:
    chosen, (weight, bias, x) = Chosen.of(torch.tensor(ROWS["as packed"])), operands(5)

    def loss(weight: Tensor) -> Tensor:
        return kernels.affine(weight, bias, x, chosen=chosen).square().sum()

    expected = torch.autograd.grad(copied(weight, bias, x, chosen, input_major=False).square().sum(), weight)[0]
    torch.testing.assert_close(torch.func.grad(loss)(weight).to_dense(), expected)


# --- rows of modules --------------------------------------------------------------------------------------------------


def test_rows_keep_their_order_where_all_are_chosen() -> None:
    weight, chosen = randn(GROUP, 2), Chosen.of(torch.tensor(ROWS["all backwards"]))
    assert torch.equal(taken(weight, chosen), weight.flip(0))
    assert not chosen.is_all(GROUP)
    layer = torch.nn.Linear(2, GROUP).double()
    assert torch.equal(rows_of(layer, chosen).weight, layer.weight.flip(0))


@each_choice
def test_runs_cover_the_rows(rows: list[int]) -> None:
    chosen = Chosen.of(torch.tensor(rows))
    assert chosen.distinct[chosen.of_row].tolist() == rows
    for start in range(len(rows)):
        for stop in range(start + 1, len(rows) + 1):
            found = [run.group + i for run in chosen.within(start, stop) for i in range(run.length)]
            assert found == rows[start:stop]
            places = [run.row + i for run in chosen.within(start, stop) for i in range(run.length)]
            assert places == list(range(stop - start))

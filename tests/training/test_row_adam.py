"""RowAdam: all rows step as Adam's do, and each row as if Adam had it alone, with its own gradients and no others."""

import copy
from collections.abc import Callable, Iterable

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import hmoevae as hm
from hmoevae.errors import ArgumentError
from hmoevae.training.gradients import clip_grad_norm_, no_rows, of_rows, with_rows
from hmoevae.training.row_adam import RowAdam, rows_and_values

SHAPE = (6, 3, 5)
LR = 0.03


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(randn(*shape, seed=i)) for i, shape in enumerate(shapes)]


def sparse(rows: list[int], dense: Tensor) -> Tensor:
    """The gradient that holds some rows of a dense one."""
    return torch.sparse_coo_tensor([rows], dense[rows], dense.shape, check_invariants=True)


def equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other)


# --- all rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["dense", "sparse", "in turn"])
def test_all_rows_step_as_adams_do(form: str) -> None:
    ours, theirs = parameters(SHAPE, (6,), (2, 2)), parameters(SHAPE, (6,), (2, 2))
    optimizer, expected = RowAdam(ours, LR), torch.optim.Adam(theirs, LR, fused=True)
    for step in range(3):
        for one, other in zip(ours, theirs, strict=True):
            other.grad = randn(*one.shape, seed=10 + step)
            is_sparse = form == "sparse" or (form == "in turn" and step == 1)
            one.grad = sparse(list(range(len(one))), other.grad) if is_sparse else other.grad.clone()
        optimizer.step()
        expected.step()
        for one, other in zip(ours, theirs, strict=True):
            if form == "dense":
                assert equal(one, other)
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
            for name in ("exp_avg", "exp_avg_sq"):
                found, moment = optimizer.state[one][name], expected.state[other][name]
                torch.testing.assert_close(found, moment, rtol=1e-6, atol=1e-7)


def test_dense_gradients_of_rows_that_have_stepped_apart() -> None:
    """A dense gradient is that of all rows: each goes on from its own count."""
    (weight,) = parameters(SHAPE)
    optimizer = RowAdam([weight], LR)
    for rows in ([1], [1, 4], None):
        gradient = randn(*SHAPE, seed=3)
        weight.grad = gradient if rows is None else sparse(rows, gradient)
        optimizer.step()
    assert optimizer.state[weight]["step"].tolist() == [1, 3, 1, 1, 2, 1]


# --- each row on its own ----------------------------------------------------------------------------------------------


@st.composite
def courses(draw: st.DrawFn) -> list[list[int] | None]:
    """The rows in the gradient of each step; all of them in a dense one, none where there is no gradient."""
    some = st.lists(st.integers(0, SHAPE[0] - 1), unique=True, max_size=SHAPE[0]).map(sorted)
    return draw(st.lists(st.none() | some, min_size=1, max_size=8))


@hypothesis.given(courses(), st.sampled_from((0.0, 0.1)))
@hypothesis.settings(max_examples=40)
def test_a_row_steps_as_adam_on_it_alone(course: list[list[int] | None], weight_decay: float) -> None:
    (weight,) = parameters(SHAPE)
    alone = [nn.Parameter(row.detach().clone()) for row in weight]
    options = {"lr": LR, "weight_decay": weight_decay, "betas": (0.8, 0.95), "eps": 1e-6}
    optimizer = RowAdam([{"params": [weight], **options}])
    expected = [torch.optim.Adam([row], fused=True, **options) for row in alone]
    for step, rows in enumerate(course):
        gradient = randn(*SHAPE, seed=20 + step)
        weight.grad = gradient.clone() if rows is None else sparse(rows, gradient)
        optimizer.step()
        for i in range(len(weight)) if rows is None else rows:
            alone[i].grad = gradient[i]
            expected[i].step()
        torch.testing.assert_close(weight.detach(), torch.stack([row.detach() for row in alone]), rtol=1e-6, atol=1e-6)


def test_a_row_without_gradients_stays_and_so_do_its_moments() -> None:
    """As the docstring says, and other than Adam, whose moments decay and move the weights on."""
    (weight,), (dense,) = parameters(SHAPE), parameters(SHAPE)
    optimizer, adam = RowAdam([weight], LR), torch.optim.Adam([dense], LR)
    gradient = randn(*SHAPE, seed=1)
    for parameter, its in ((weight, optimizer), (dense, adam)):
        parameter.grad = gradient.clone()
        its.step()
    before = weight.detach().clone(), *(value.clone() for value in optimizer.state[weight].values())
    gradient[2:] = 0
    weight.grad, dense.grad = sparse([0, 1], gradient), gradient
    optimizer.step()
    was = dense.detach().clone()
    adam.step()
    assert not equal(dense[2:], was[2:])
    state = optimizer.state[weight]
    assert equal(weight[2:].detach(), before[0][2:])
    assert not equal(weight[:2].detach(), before[0][:2])
    assert equal(state["exp_avg"][2:], optimizer.state[weight]["exp_avg"][2:])
    assert state["step"].tolist() == [2, 2, 1, 1, 1, 1]


# --- gradients of all forms -------------------------------------------------------------------------------------------


def test_sums_of_sparse_gradients_are_read_once_a_row() -> None:
    (weight,), (other,) = parameters(SHAPE), parameters(SHAPE)
    gradient = randn(*SHAPE, seed=1)
    weight.grad = torch.sparse_coo_tensor([[4, 1, 4]], gradient[[0, 1, 2]], SHAPE, check_invariants=True)
    rows, values = rows_and_values(weight.grad)
    assert rows.tolist() == [1, 4]
    other.grad = torch.zeros(SHAPE)
    other.grad[rows] = values
    RowAdam([weight], LR).step()
    torch.optim.Adam([other], LR).step()
    torch.testing.assert_close(weight, other)
    torch.testing.assert_close(values, torch.stack([gradient[1], gradient[0] + gradient[2]]))


@pytest.mark.parametrize("others", [[], [(2, 2)]], ids=["alone", "beside others"])
def test_gradients_without_rows_change_nothing(others: list[tuple[int, ...]]) -> None:
    weight, *dense = parameters(SHAPE, *others)
    optimizer = RowAdam([{"params": [weight]}, {"params": dense}] if dense else [weight], LR)
    before = weight.detach().clone()
    for _ in range(2):
        weight.grad = no_rows(weight)
        for parameter in dense:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert equal(weight.detach(), before)
    assert all(optimizer.state[parameter]["step"] == 2 for parameter in dense)
    clip_grad_norm_([weight], 1.0)


def test_the_gradients_are_left_as_they_were() -> None:
    (weight, other) = parameters(SHAPE, (2,))
    weight.grad, other.grad = sparse([3], randn(*SHAPE)), torch.ones(2)
    kept = weight.grad
    RowAdam([weight, other], LR).step()
    assert weight.grad is kept
    assert equal(kept.to_dense()[3], randn(*SHAPE)[3])


def test_a_closure_computes_the_gradients() -> None:
    (weight,), (other,) = parameters(SHAPE), parameters(SHAPE)
    optimizer, expected = RowAdam([weight], LR), torch.optim.Adam([other], LR, fused=True)

    def closure() -> float:
        assert torch.is_grad_enabled()
        weight.grad = sparse(list(range(6)), 2 * weight.detach())
        return 3.0

    for _ in range(3):
        weight.grad = sparse([1], randn(*SHAPE))  # of an earlier step
        other.grad = 2 * other.detach()
        assert optimizer.step(closure) == 3.0
        expected.step()
    torch.testing.assert_close(weight, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    """Also side by side in one group."""
    weight, other = nn.Parameter(randn(*SHAPE).to(dtype)), nn.Parameter(randn(*SHAPE))
    expected = copy.deepcopy([weight, other])
    gradients = [torch.zeros(SHAPE, dtype=p.dtype).index_copy_(0, torch.tensor([2]), p[2:3].detach()) for p in expected]
    optimizer, adam = RowAdam([weight, other], LR), torch.optim.Adam(expected, LR, fused=True)
    for ours, theirs, gradient in zip((weight, other), expected, gradients, strict=True):
        ours.grad, theirs.grad = sparse([2], gradient), gradient
    optimizer.step()
    adam.step()
    for ours, theirs in zip((weight, other), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert optimizer.state[ours]["exp_avg"].dtype == ours.dtype


def test_hooks_run_once_a_step() -> None:
    torch.optim.Adam(parameters((2,)))  # torch hooks into the step of a class when it makes the first of it
    (weight,) = parameters(SHAPE)
    optimizer = RowAdam([weight], LR)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    weight.grad = sparse([1], randn(*SHAPE))
    optimizer.step()
    assert calls == ["before", "after"]


# --- states -----------------------------------------------------------------------------------------------------------


def run(optimizer: torch.optim.Optimizer, weight: nn.Parameter, course: Iterable[list[int] | None], seed: int) -> None:
    for step, rows in enumerate(course):
        gradient = randn(*SHAPE, seed=seed + step)
        weight.grad = gradient if rows is None else sparse(rows, gradient)
        optimizer.step()


def by_dict(optimizer: RowAdam, weight: nn.Parameter) -> tuple[RowAdam, nn.Parameter]:
    other = nn.Parameter(weight.detach().clone())
    made = RowAdam([other], lr=77.0)
    made.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return made, other


def by_copy(optimizer: RowAdam, weight: nn.Parameter) -> tuple[RowAdam, nn.Parameter]:
    return copy.deepcopy((optimizer, weight))


@pytest.mark.parametrize("way", [by_dict, by_copy])
@pytest.mark.parametrize("before", [[None], [[0, 2], [2]], [None, [1]]], ids=["dense", "sparse", "both"])
def test_a_state_goes_round(
    way: Callable[[RowAdam, nn.Parameter], tuple[RowAdam, nn.Parameter]], before: list[list[int] | None]
) -> None:
    (weight,) = parameters(SHAPE)
    optimizer = RowAdam([weight], LR)
    run(optimizer, weight, before, seed=5)
    other_optimizer, other = way(optimizer, weight)
    for one, its in ((weight, optimizer), (other, other_optimizer)):
        run(its, one, [[2, 5], None, [0]], seed=9)
    assert equal(weight, other)
    assert equal(optimizer.state[weight]["step"], other_optimizer.state[other]["step"])


@pytest.mark.parametrize("fused", [True, False, None])
def test_a_state_of_adam_goes_on(fused: bool | None) -> None:
    """Its one count is that of all rows."""
    (weight,), (other,) = parameters(SHAPE), parameters(SHAPE)
    adam = torch.optim.Adam([weight], LR, fused=fused)
    run(adam, weight, [None, None], seed=5)
    with torch.no_grad():
        other.copy_(weight)
    optimizer = RowAdam([other])
    optimizer.load_state_dict(copy.deepcopy(adam.state_dict()))
    run(adam, weight, [None], seed=9)
    run(optimizer, other, [list(range(6))], seed=9)
    torch.testing.assert_close(weight, other, rtol=1e-6, atol=1e-6)
    run(optimizer, other, [[1], None], seed=11)
    assert optimizer.state[other]["step"].tolist() == [4, 5, 4, 4, 4, 4]
    assert optimizer.param_groups[0]["lr"] == LR


def test_groups_have_their_own_rates_and_schedules_lower_them() -> None:
    (one, two), (first, second) = parameters(SHAPE, SHAPE), parameters(SHAPE, SHAPE)

    def groups(*pair: nn.Parameter) -> list[dict[str, object]]:
        return [{"params": [pair[0]], "lr": 0.1}, {"params": [pair[1]]}]

    optimizer, adam = RowAdam(groups(one, two), LR), torch.optim.Adam(groups(first, second), LR, fused=True)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(its, 4) for its in (optimizer, adam)]
    for step in range(4):
        for ours, theirs in ((one, first), (two, second)):
            theirs.grad = randn(*SHAPE, seed=step)
            ours.grad = sparse(list(range(6)), theirs.grad) if step % 2 else theirs.grad.clone()
        for its, schedule in zip((optimizer, adam), schedules, strict=True):
            its.step()
            schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0)
    for ours, theirs in ((one, first), (two, second)):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


# --- in a loop of one's own -------------------------------------------------------------------------------------------


def test_a_loop_of_ones_own_changes_the_chosen_experts_alone() -> None:
    torch.manual_seed(0)
    layer = hm.MLP((5,))
    model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2, layer, layer), 8), (4,))
    optimizer = RowAdam(model.parameters(), LR)
    counts = torch.zeros(8)
    before = copy.deepcopy(model)
    for step in range(3):
        optimizer.zero_grad()
        out = model(randn(2, 4, seed=step).sigmoid(), settings=hm.StepSettings(routes=hm.routes.TopK(1)))
        out.loss.backward()
        optimizer.step()
        counts[out.leaf.unique()] += 1
    assert 0 < (counts == 0).sum() < 8
    pairs = zip(before.experts.named_parameters(), model.experts.parameters(), strict=True)
    for (name, was), now in pairs:
        changed = (was != now).flatten(1).any(1)
        assert equal(changed, counts > 0), name
        assert equal(optimizer.state[now]["step"], counts)


# --- gradients of some rows: clipping, and to and fro -----------------------------------------------------------------


@hypothesis.given(st.lists(st.integers(0, 5), unique=True, min_size=1, max_size=6), st.sampled_from((0.01, 1.0, 1e3)))
def test_clipping_is_that_of_dense_gradients(rows: list[int], max_norm: float) -> None:
    ours, theirs = parameters(SHAPE, (4,)), parameters(SHAPE, (4,))
    gradient = randn(*SHAPE)
    ours[0].grad, ours[1].grad, theirs[1].grad = sparse(rows, gradient), torch.ones(4), torch.ones(4)
    theirs[0].grad = ours[0].grad.to_dense()
    clip_grad_norm_(ours, max_norm)
    nn.utils.clip_grad_norm_(theirs, max_norm)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad.to_dense(), other.grad)
    assert ours[0].grad.is_sparse


@hypothesis.given(st.lists(st.integers(0, 5), unique=True, max_size=6).map(sorted))
def test_rows_come_back_from_dense(rows: list[int]) -> None:
    (weight,) = parameters(SHAPE)
    weight.grad = sparse(rows, randn(*SHAPE)) if rows else no_rows(weight)
    dense, holds = with_rows(weight)
    assert holds.nonzero().flatten().tolist() == rows
    back = of_rows(dense, holds)
    assert equal(back.to_dense(), weight.grad.to_dense())
    assert back.is_sparse == (len(rows) < 6)


@pytest.mark.parametrize("name", ["amsgrad", "decoupled_weight_decay"])
def test_other_options_of_adam_are_refused(name: str) -> None:
    (weight,) = parameters(SHAPE)
    words = rf"^RowAdam.{name}: expected False, got True$"
    with pytest.raises(ArgumentError, match=words):
        RowAdam([{"params": [weight], name: True}])
    optimizer = RowAdam([weight])
    state = optimizer.state_dict()
    state["param_groups"][0][name] = True
    with pytest.raises(ArgumentError, match=words):
        optimizer.load_state_dict(state)


def test_a_scaler_of_gradients_skips_steps_that_are_not_finite() -> None:
    (weight,) = parameters(SHAPE)
    optimizer, scaler = RowAdam([weight], LR), torch.amp.GradScaler("cpu", init_scale=4.0)
    before = weight.detach().clone()
    for factor in (torch.inf, 1.0):
        scaler.scale(torch.zeros(()))  # so that it knows its scale
        weight.grad = sparse([1], 4.0 * factor * torch.ones(SHAPE))
        scaler.step(optimizer)
        scaler.update(4.0)
        assert equal(weight.detach(), before) == (factor != 1.0)
    torch.testing.assert_close(optimizer.state[weight]["exp_avg"][1], torch.full(SHAPE[1:], 0.1))


def test_a_weight_without_rows_steps() -> None:
    """As in a process that holds none of a group's experts."""
    weight = nn.Parameter(torch.ones(0, 3))
    weight.grad = torch.zeros(0, 3)
    RowAdam([weight]).step()
    assert weight.shape == (0, 3)

"""The tests' type checks are on: of arguments, of what is returned, and not where a test switches them off."""

import checker
import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation
from jaxtyping import Float
from torch import Tensor

import hmoevae as hm
from hmoevae.nn.grouped import GroupedLinear


def test_a_wrong_shape_is_noticed() -> None:
    with pytest.raises(BeartypeCallHintParamViolation, match="parameter x"):
        GroupedLinear(3, 5, 2)(torch.rand(1, 5, 7, 1))


def test_a_wrong_answer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = GroupedLinear(3, 5, 2)
    monkeypatch.setattr("hmoevae.nn.grouped.affine", lambda *_, **__: torch.rand(2))
    with pytest.raises(BeartypeCallHintReturnViolation, match="return"):
        layer(torch.rand(5, 7))


@checker.jaxtyped(typechecker=None)
def product(a: Float[Tensor, "row inner"], b: Float[Tensor, "inner column"]) -> Float[Tensor, "row column"]:
    return a.new_zeros(len(a), 2)


def test_axes_agree_within_a_call_and_not_between_calls() -> None:
    for n in (3, 4):
        product(torch.rand(n, n + 1), torch.rand(n + 1, 2))
    with pytest.raises(BeartypeCallHintParamViolation, match="parameter b"):
        product(torch.rand(3, 4), torch.rand(5, 2))
    with pytest.raises(BeartypeCallHintReturnViolation, match="return"):
        product(torch.rand(3, 4), torch.rand(4, 5))


@pytest.mark.usefixtures("as_users_call")
def test_they_can_be_switched_off() -> None:
    with pytest.raises(hm.errors.ArgumentError, match="expected"):
        hm.HMoEVAE(hm.VAE(), (4,), objective=3)  # type: ignore[arg-type]

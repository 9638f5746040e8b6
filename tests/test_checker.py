"""The tests' type checks are on: of arguments, of what is returned, and not where a test switches them off."""

import jaxtyping
import pytest
import torch

import hmoevae as hm
from hmoevae.nn.grouped import GroupedLinear


def test_a_wrong_shape_is_noticed() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="typechecking parameter 'x'"):
        GroupedLinear(3, 5, 2)(torch.rand(1, 5, 7, 1))


def test_a_wrong_answer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = GroupedLinear(3, 5, 2)
    monkeypatch.setattr("hmoevae.nn.grouped.affine", lambda *_, **__: torch.rand(2))
    with pytest.raises(jaxtyping.TypeCheckError, match="return"):
        layer(torch.rand(5, 7))


@pytest.mark.usefixtures("as_users_call")
def test_they_can_be_switched_off() -> None:
    with pytest.raises(hm.errors.ArgumentError, match="expected"):
        hm.HMoEVAE(hm.VAE(), (4,), objective=3)  # type: ignore[arg-type]

"""The products of grouped layers, by PyTorch's BLAS and by oneDNN, against einsum."""

import pytest
import torch

from hmoevae.nn import products

WAYS = [False] + [True] * torch.backends.mkldnn.is_available()


@pytest.fixture(params=WAYS, ids=["blas", "onednn"][: len(WAYS)])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Every product by one library, whatever the processor and the size, in pieces of two rows or three."""
    calls = []
    library = products.by_onednn

    def counted(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        calls.append(left.shape)
        return library(left, right)

    monkeypatch.setattr(products, "prefers_onednn", lambda: request.param)
    monkeypatch.setattr(products, "by_onednn", counted)
    monkeypatch.setattr(products, "LARGE", 1)
    monkeypatch.setattr(products, "PIECE", 16)
    yield request.param
    assert bool(calls) == request.param


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_forward_and_weight_gradient(shared: bool, strided: bool) -> None:
    torch.manual_seed(0)
    groups, out, inp, batch = 3, 5, 4, 7
    weight, dy = torch.randn(groups, out, inp), torch.randn(groups, out, batch)
    x = torch.randn(inp, batch) if shared else torch.randn(groups, inp, batch)
    if strided:  # as data arrive, batch-first
        x = x.mT.contiguous().mT
    letters = "ib" if shared else "gib"
    result = torch.full((groups, out, batch), torch.nan)
    products.product(weight, x, result)
    torch.testing.assert_close(result, torch.einsum(f"goi,{letters}->gob", weight, x))
    gradient = torch.full((groups, out, inp), torch.nan)
    products.weight_gradient(dy, x, gradient)
    torch.testing.assert_close(gradient, torch.einsum(f"gob,{letters}->goi", dy, x))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("strided_left", [False, True])
@pytest.mark.parametrize("strided_right", [False, True])
def test_any_operand_may_lie_transposed(strided_left: bool, strided_right: bool) -> None:
    """As the readout has them: hidden units on the left going forward, weights on the right going back."""
    torch.manual_seed(0)
    left, right, out = torch.randn(3, 5, 4), torch.randn(3, 7, 4), torch.full((3, 5, 7), torch.nan)
    expected = torch.einsum("grk,gck->grc", left, right)
    left = left.mT.contiguous().mT if strided_left else left
    right = right.mT.contiguous().mT if strided_right else right
    products.times_transposed(left, right, out)
    torch.testing.assert_close(out, expected)


def test_weight_gradient_of_a_transposed_gradient() -> None:
    torch.manual_seed(0)
    dy, x, out = torch.randn(3, 7, 5).mT, torch.randn(3, 4, 7), torch.empty(3, 5, 4)
    products.weight_gradient(dy, x, out)
    torch.testing.assert_close(out, torch.einsum("gob,gib->goi", dy, x))


def test_other_precisions_stay_with_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "prefers_onednn", lambda: pytest.fail("asked about float64"))
    monkeypatch.setattr(products, "LARGE", 1)
    weight, x, out = (torch.rand(2, 3, 3, dtype=torch.float64) for _ in range(3))
    products.product(weight, x, out)
    torch.testing.assert_close(out, weight @ x)


@pytest.mark.parametrize(
    ("capability", "vendor", "expected"),
    [("AVX512", "AuthenticAMD", True), ("AVX512", "GenuineIntel", False), ("AVX2", "AuthenticAMD", False)],
)
def test_only_amd_with_avx512_prefers_onednn(
    capability: str, vendor: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(products.Path, "exists", lambda _: True)
    monkeypatch.setattr(products.Path, "read_text", lambda _: f"vendor_id\t: {vendor}\n")
    assert products.prefers_onednn.__wrapped__() is expected

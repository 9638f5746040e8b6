"""The products of grouped layers, by PyTorch's BLAS and by oneDNN, against einsum."""

from collections.abc import Callable, Iterator

import pytest
import torch

from hmoevae.nn.kernels import products

SETTING = products.ONEDNN_MATMUL
HAS_ONEDNN = SETTING is not None and torch.backends.mkldnn.is_available()
needs_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="PyTorch without oneDNN, or before 2.9")
needs_exact_onednn = pytest.mark.skipif(
    not HAS_ONEDNN or not products.onednn_is_exact(), reason="no oneDNN, or one that rounds on this processor"
)


@pytest.fixture(params=["blas", pytest.param("onednn", marks=needs_exact_onednn)])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every product by one library, whatever the processor and the size."""
    seen = []

    def watched(product: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def watch(*args: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            seen.append("onednn" if SETTING is not None and SETTING.fp32_precision == "bf16" else "blas")
            return product(*args, out=out)

        return watch

    monkeypatch.setattr(products, "prefers_onednn", lambda: request.param == "onednn")
    monkeypatch.setattr(products, "LARGE", 1)
    for name in ("mm", "bmm"):
        monkeypatch.setattr(torch, name, watched(getattr(torch, name)))
    yield
    assert set(seen) == {request.param}
    assert SETTING is None or SETTING.fp32_precision == "none"


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("strided_left", [False, True])
@pytest.mark.parametrize("strided_right", [False, True])
@pytest.mark.parametrize(("shared", "columns"), [(False, 70), (True, 70), (True, 30)])
def test_any_operand_may_lie_transposed(shared: bool, columns: int, strided_left: bool, strided_right: bool) -> None:
    """As data arrive, batch-first, and as the readout has its hidden units and scores."""
    torch.manual_seed(0)
    left, right, out = torch.randn(3, 50, 40), torch.randn(3, 40, columns), torch.full((3, 50, columns), torch.nan)
    if shared:
        right = right[0]
    expected = torch.einsum("grk,kc->grc" if shared else "grk,gkc->grc", left, right)
    left = left.mT.contiguous().mT if strided_left else left
    right = right.mT.contiguous().mT if strided_right else right
    products.matmul(left, right, out)
    torch.testing.assert_close(out, expected)


@needs_onednn
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_what_the_user_has_set_is_left_alone(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(products.Path, "exists", lambda _: True)
    monkeypatch.setattr(products.Path, "read_text", lambda _: "vendor_id\t: AuthenticAMD\n")
    monkeypatch.setattr(products, "prefers_onednn", products.prefers_onednn.__wrapped__)  # with a trial each time
    monkeypatch.setattr(products, "LARGE", 1)
    SETTING.fp32_precision = precision
    try:
        products.matmul(torch.rand(2, 3, 3), torch.rand(2, 3, 3), torch.empty(2, 3, 3))
        assert SETTING.fp32_precision == precision
    finally:
        SETTING.fp32_precision = "none"


@needs_onednn
def test_the_setting_is_put_back_when_a_product_fails() -> None:
    with pytest.raises(RuntimeError):
        products.by_onednn(torch.rand(2, 3, 3), torch.rand(2, 3, 3), torch.empty(2, 3, 3, dtype=torch.float64))
    assert SETTING.fp32_precision == "none"


def test_other_precisions_stay_with_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "prefers_onednn", lambda: pytest.fail("asked about float64"))
    monkeypatch.setattr(products, "LARGE", 1)
    left, right, out = (torch.rand(2, 3, 3, dtype=torch.float64) for _ in range(3))
    products.matmul(left, right, out)
    torch.testing.assert_close(out, left @ right)


@pytest.mark.parametrize(
    ("capability", "vendor", "exact", "expected"),
    [
        ("AVX512", "AuthenticAMD", True, True),
        ("AVX512", "AuthenticAMD", False, False),
        ("AVX512", "GenuineIntel", True, False),
        ("AVX2", "AuthenticAMD", True, False),
    ],
)
def test_only_amd_with_avx512_prefers_onednn_and_only_where_no_bit_is_lost(
    capability: str, vendor: str, exact: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(products.Path, "exists", lambda _: True)
    monkeypatch.setattr(products.Path, "read_text", lambda _: f"vendor_id\t: {vendor}\n")
    monkeypatch.setattr(products, "onednn_is_exact", lambda: exact)
    assert products.prefers_onednn.__wrapped__() is (expected and SETTING is not None)


@needs_onednn
@pytest.mark.parametrize("bits", [7, 10])
def test_a_product_that_rounds_its_factors_is_noticed(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To bfloat16 or tf32."""

    def rounding(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
        mantissa, exponent = torch.frexp(left)
        rounded = torch.ldexp((mantissa * 2 ** (bits + 1)).round() / 2 ** (bits + 1), exponent)
        torch.matmul(rounded, right, out=out)

    monkeypatch.setattr(products, "by_onednn", rounding)
    assert not products.onednn_is_exact()

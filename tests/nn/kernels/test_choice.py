"""Every kernel against einsum and autograd: outputs and gradients; and which of them runs where."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from conftest import ACTIVATIONS
from torch import Tensor, nn

import hmoevae as hm
from hmoevae.nn import kernels
from hmoevae.nn.kernels import choice, cpu, plain, readouts
from hmoevae.nn.likelihoods import likelihood_module
from hmoevae.spec import Activation, Likelihood

GROUPS, INP, OUT, BATCH = 5, 3, 4, 6
FP32, FP64, BF16 = torch.float32, torch.float64, torch.bfloat16

each_backend = pytest.mark.parametrize("backend", [cpu, plain], ids=["cpu", "plain"])
each_precision = pytest.mark.parametrize("dtype", [FP32, FP64, BF16], ids=["fp32", "fp64", "bf16"])
shared_or_own = pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
either_layout = pytest.mark.parametrize("input_major", [True, False], ids=["input-major", "output-major"])


@pytest.fixture(
    params=[1, pytest.param(50, marks=pytest.mark.slow), 1 << 20], ids=["one a chunk", "two a chunk", "one chunk"]
)
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "CHUNK", request.param)


@pytest.fixture(params=[True, False], ids=["memory", "no memory"])
def step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """What a training step runs in; with memory, blocks for small tensors and activations too."""
    if not request.param:
        return nullcontext
    monkeypatch.setattr("hmoevae.nn.kernels.memory.SMALL", 0)
    monkeypatch.setattr(cpu, "GLIBC_LARGEST", 0)
    return hm.StepMemory().step


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=FP64)


def gradients(
    function: Callable[..., Tensor], tensors: list[Tensor], dtype: torch.dtype, step: Callable = nullcontext
) -> list[Tensor]:
    """The result, and the gradient of every tensor. Twice, so that the second finds memory used before."""
    found: list[Tensor] = []
    low = dtype == BF16
    for _ in range(2):
        leaves = [t.to(FP32 if low else dtype).detach().clone().requires_grad_() for t in tensors]
        with step():
            with torch.autocast("cpu", BF16, enabled=low):
                result = function(*leaves)
            weights = normal(*result.shape, seed=9).to(result.dtype)
            (result * weights).sum().backward()
            assert all(leaf.grad is not None for leaf in leaves)
            found = [result.detach().clone(), *(leaf.grad.clone() for leaf in leaves if leaf.grad is not None)]
    return found


def assert_near(found: list[Tensor], exact: list[Tensor], dtype: torch.dtype) -> None:
    """To rounding; in bfloat16, which keeps 8 bits, to 2 % of the largest entry."""
    for one, two in zip(found, exact, strict=True):
        assert one.shape == two.shape
        largest = two.abs().max().item()
        tolerance = {FP64: 1e-12, FP32: 1e-5, BF16: 0.02}[dtype] * max(largest, 1.0)
        torch.testing.assert_close(one.double(), two.double(), rtol=0, atol=tolerance)


def reference_affine(weight: Tensor, bias: Tensor, x: Tensor, *, input_major: bool) -> Tensor:
    rows = []
    for g in range(len(weight)):
        matrix = weight[g].t() if input_major else weight[g]
        rows.append(matrix @ (x if x.ndim == 2 else x[g]) + bias[g].unsqueeze(1))
    return torch.stack(rows)


def weight_bias(input_major: bool) -> tuple[Tensor, Tensor]:
    return normal(GROUPS, *((INP, OUT) if input_major else (OUT, INP))), normal(GROUPS, OUT, seed=1)


# --- affine maps ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("chunk")
@each_backend
@shared_or_own
@either_layout
@each_precision
def test_affine(backend, shared: bool, input_major: bool, dtype: torch.dtype, step: Callable) -> None:
    weight, bias = weight_bias(input_major)
    x = normal(INP, BATCH, seed=2) if shared else normal(GROUPS, INP, BATCH, seed=2)

    def run(affine: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda weight, bias, x: affine(weight, bias, x, input_major=input_major)

    found = gradients(run(backend.affine), [weight, bias, x], dtype, step)
    assert [t.dtype for t in found] == [dtype, *[FP32 if dtype == BF16 else dtype] * 3]
    assert_near(found, gradients(run(reference_affine), [weight, bias, x], FP64), dtype)


@each_backend
@shared_or_own
@either_layout
def test_gradients_of_weights_lie_as_weights_do(backend, shared: bool, input_major: bool) -> None:
    """Before autograd adds them up, which would copy them into that layout."""
    weight, bias = weight_bias(input_major)
    x = normal(INP, BATCH, seed=2) if shared else normal(GROUPS, INP, BATCH, seed=2)
    y = backend.affine(weight.requires_grad_(), bias, x, input_major=input_major)
    (gradient,) = torch.autograd.grad(y.square().sum(), weight)
    assert gradient.is_contiguous()


@each_backend
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_asks_for_no_gradient_gets_none(backend, frozen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And costs nothing."""
    if frozen == 0:
        monkeypatch.setattr(
            "hmoevae.nn.kernels.memory.Blocks.gradient_of", lambda *_: pytest.fail("memory for nothing")
        )
    weight, bias = weight_bias(input_major=False)
    leaves = [t.requires_grad_(i != frozen) for i, t in enumerate((weight, bias, normal(GROUPS, INP, BATCH)))]
    backend.affine(*leaves).sum().backward()
    assert [leaf.grad is None for leaf in leaves] == [i == frozen for i in range(3)]


@each_backend
@pytest.mark.parametrize("n", [0, 1])
def test_batches_of_none_and_one(backend, n: int) -> None:
    weight, bias = weight_bias(input_major=False)
    assert backend.affine(weight, bias, normal(INP, n)).shape == (GROUPS, OUT, n)
    assert backend.affine(weight, bias, normal(GROUPS, INP, n)).shape == (GROUPS, OUT, n)


# --- activations ----------------------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("activation", ACTIVATIONS)
@each_precision
def test_activate(backend, activation: Activation, dtype: torch.dtype, step: Callable) -> None:
    """After an affine map, whose output they may overwrite."""
    weight, bias = weight_bias(input_major=False)
    x = normal(GROUPS, INP, BATCH, seed=2)
    module = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU, "elu": nn.ELU}

    def run(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        return backend.activate(backend.affine(weight, bias, x), activation)

    def reference(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        return module[activation]()(reference_affine(weight, bias, x, input_major=False))

    found = gradients(run, [weight, bias, x], dtype, step)
    assert_near(found, gradients(reference, [weight, bias, x], FP64), dtype)


# --- readouts -------------------------------------------------------------------------------------------------------


LIKELIHOODS = {
    "gaussian": hm.Gaussian(0.5),
    "identity": hm.Gaussian(2.0, mean="identity"),
    "bernoulli": hm.Bernoulli(),
    "continuous": hm.ContinuousBernoulli(),
    "log normal": hm.LogNormal(0.7),
    "poisson given the total": hm.Poisson(total=5),
}
each_likelihood = pytest.mark.parametrize("spec", LIKELIHOODS.values(), ids=LIKELIHOODS)


def samples(spec: Likelihood, *shape: int) -> Tensor:
    """Data in the support, its ends included."""
    x = torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=FP64)
    x[..., 0, 0], x[..., 1, 0] = 0, 1
    if isinstance(spec, hm.LogNormal):
        return x + 0.5
    return x.round() if isinstance(spec, hm.Bernoulli | hm.Poisson) else x


class TwoNumbers:
    """A normal distribution whose mean and logarithm of the scale are outputs: its score is left to autograd."""

    score_unit = 2.0

    def log_prob(self, raw: Tensor, x: Tensor, present: Tensor | None = None) -> Tensor:
        mean, log_scale = raw.chunk(2, dim=1)
        density = torch.distributions.Normal(mean, log_scale.exp(), validate_args=False).log_prob(x)
        return (density if present is None else density.where(present, torch.zeros_like(density))).sum(1)

    def score(self, raw: Tensor, x: Tensor) -> None:
        return None

    def log_prob_and_score(self, raw: Tensor, x: Tensor, score: Tensor) -> Tensor:
        with torch.enable_grad():
            raw = raw.detach().requires_grad_()
            result = self.log_prob(raw, x)
            score.copy_(torch.autograd.grad(result.sum(), raw)[0] / self.score_unit)
        return result.detach()


class Learned(nn.Module):
    """A normal distribution with scales of its own, one an expert and feature."""

    score_unit = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(normal(GROUPS, OUT, seed=5))

    def log_prob(self, raw: Tensor, x: Tensor, present: Tensor | None = None) -> Tensor:
        density = -0.5 * ((x - raw) / self.log_scale.exp().unsqueeze(2)).square() - self.log_scale.unsqueeze(2)
        return (density if present is None else density * present).sum(1)

    def score(self, raw: Tensor, x: Tensor) -> Tensor:
        pytest.fail("the gradient of its parameters would be lost")

    def log_prob_and_score(self, raw: Tensor, x: Tensor, score: Tensor) -> Tensor:
        pytest.fail("the gradient of its parameters would be lost")


Way = Callable[..., Tensor]


def ways(likelihood: readouts.Likelihood, x: Tensor, *, input_major: bool) -> dict[str, Way]:
    """Every way to a log-density that records gradients, from weight, bias and hidden units."""

    def unfused(affine: Way) -> Way:
        return lambda w, b, h: readouts.unfused(affine, likelihood, w, b, h, x, None, input_major=input_major)

    found = {"unfused cpu": unfused(cpu.affine), "unfused plain": unfused(plain.affine)}
    found["chosen"] = lambda w, b, h: kernels.readout(likelihood, w, b, h, x, input_major=input_major)
    if input_major:
        found["fused"] = lambda w, b, h: readouts.fused(likelihood, w, b, h, x)
        found["scored"] = lambda w, b, h: readouts.scored(likelihood, w, b, h, x)
    return found


@pytest.mark.usefixtures("chunk")
@each_likelihood
@shared_or_own
@either_layout
@each_precision
def test_readout(spec: Likelihood, shared: bool, input_major: bool, dtype: torch.dtype, step: Callable) -> None:
    likelihood = likelihood_module(spec, GROUPS, OUT)
    x = samples(spec, OUT, BATCH) if shared else samples(spec, GROUPS, OUT, BATCH)
    tensors = [*weight_bias(input_major), normal(GROUPS, INP, BATCH, seed=2)]

    def reference(weight: Tensor, bias: Tensor, h: Tensor) -> Tensor:
        return likelihood.log_prob(reference_affine(weight, bias, h, input_major=input_major), x)

    exact = gradients(reference, tensors, FP64)
    own = x.to(FP32 if dtype == BF16 else dtype)
    for way in ways(likelihood, own, input_major=input_major).values():
        found = gradients(way, tensors, dtype, step)
        assert {t.dtype for t in found} == {own.dtype}
        assert_near(found, exact, dtype)
    low = [t.to(own.dtype) for t in tensors]
    with torch.no_grad(), torch.autocast("cpu", BF16, enabled=dtype == BF16):
        assert_near([kernels.readout(likelihood, *low, own, input_major=input_major)], exact[:1], dtype)


@pytest.mark.usefixtures("chunk")
@shared_or_own
def test_readout_of_two_numbers_a_feature(shared: bool, step: Callable) -> None:
    likelihood = TwoNumbers()
    x = normal(OUT, BATCH) if shared else normal(GROUPS, OUT, BATCH)
    tensors = [normal(GROUPS, INP, 2 * OUT), normal(GROUPS, 2 * OUT, seed=1), normal(GROUPS, INP, BATCH, seed=2)]

    def reference(weight: Tensor, bias: Tensor, h: Tensor) -> Tensor:
        return likelihood.log_prob(reference_affine(weight, bias, h, input_major=True), x)

    exact = gradients(reference, tensors, FP64)
    assert readouts.scored(likelihood, *tensors, x) is None
    for name, way in ways(likelihood, x, input_major=True).items():
        if name != "scored":
            assert_near(gradients(way, tensors, FP64, step), exact, FP64)
    with torch.no_grad():
        assert_near([kernels.readout(likelihood, *tensors, x, input_major=True)], exact[:1], FP64)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("likelihood", [TwoNumbers(), Learned()], ids=["two numbers", "learned"])
@shared_or_own
@either_layout
@pytest.mark.parametrize("masked", [True, False])
def test_readout_with_a_mask_or_parameters(
    likelihood: TwoNumbers | Learned, shared: bool, input_major: bool, masked: bool, step: Callable
) -> None:
    """With the gradients of the parameters, which kernels know nothing of; without gradients, each chunk its own."""
    n_raw = OUT if isinstance(likelihood, Learned) else 2 * OUT
    x = normal(OUT, BATCH) if shared else normal(GROUPS, OUT, BATCH)
    present = normal(*x.shape, seed=7) > 0 if masked else None
    weight = normal(GROUPS, *((INP, n_raw) if input_major else (n_raw, INP)))
    tensors = [weight, normal(GROUPS, n_raw, seed=1), normal(GROUPS, INP, BATCH, seed=2)]
    parameters = list(likelihood.parameters()) if isinstance(likelihood, Learned) else []
    answers = []
    for way in (
        lambda w, b, h: kernels.readout(likelihood, w, b, h, x, present, input_major=input_major),
        lambda w, b, h: likelihood.log_prob(reference_affine(w, b, h, input_major=input_major), x, present),
    ):
        for parameter in parameters:
            parameter.grad = None
        found = gradients(way, tensors, FP64, step)
        answers.append(found + [p.grad.clone() for p in parameters if p.grad is not None])
    assert len(answers[0]) == 4 + len(parameters)
    assert_near(*answers, FP64)
    with torch.no_grad():
        result = kernels.readout(likelihood, *tensors, x, present, input_major=input_major)
    assert_near([result], answers[1][:1], FP64)


@each_likelihood
@either_layout
def test_gradients_with_respect_to_the_samples(spec: Likelihood, input_major: bool) -> None:
    likelihood = likelihood_module(spec, GROUPS, OUT)
    weight, bias = weight_bias(input_major)
    h, x = normal(GROUPS, INP, BATCH, seed=2), samples(spec, OUT, BATCH).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    weights = normal(GROUPS, BATCH, seed=9)
    (kernels.readout(likelihood, weight, bias, h, x, input_major=input_major) * weights).sum().backward()
    raw = reference_affine(weight, bias, h, input_major=input_major)
    (likelihood.log_prob(raw, twin) * weights).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)


def test_a_second_derivative_is_refused() -> None:
    """Rather than wrong: the gradient that is written by hand has none of its own."""
    weight, bias = weight_bias(input_major=False)
    weight.requires_grad_()
    loss = cpu.affine(weight, bias, normal(INP, BATCH)).square().sum()
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# --- which of them runs ---------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that ran."""
    names: list[str] = []

    def watch(module: object, name: str, label: str) -> None:
        kernel = getattr(module, name)

        def watched(*args: object, **kwargs: object) -> Tensor:
            names.append(label)
            return kernel(*args, **kwargs)

        monkeypatch.setattr(module, name, watched)

    for backend, label in ((cpu, "cpu"), (plain, "plain")):
        watch(backend, "affine", f"{label} affine")
    for name in ("fused", "scored", "chunked", "unfused"):
        watch(choice, name, name)
    return names


def readout_of_ones(*, input_major: bool = True, device: str = "cpu") -> None:
    weight = torch.ones(GROUPS, *((INP, OUT) if input_major else (OUT, INP)), device=device, requires_grad=True)
    bias, h = torch.ones(GROUPS, OUT, device=device), torch.ones(GROUPS, INP, BATCH, device=device)
    model = likelihood_module(hm.Bernoulli(), GROUPS, OUT)
    kernels.readout(model, weight, bias, h, torch.ones(OUT, BATCH, device=device), input_major=input_major)


def test_a_training_step_on_a_cpu_fuses_input_major_readouts(seen: list[str]) -> None:
    readout_of_ones()
    assert seen == ["fused"]


def test_others_run_one_after_the_other(seen: list[str]) -> None:
    readout_of_ones(input_major=False)
    assert seen == ["unfused", "cpu affine"]


def test_passes_without_gradients_run_by_chunks(seen: list[str]) -> None:
    with torch.no_grad():
        readout_of_ones()
    assert seen == ["chunked", "cpu affine"]


@pytest.mark.parametrize("recorded", [True, False])
def test_other_devices_run_pytorch(seen: list[str], recorded: bool) -> None:
    with torch.set_grad_enabled(recorded):
        readout_of_ones(device="meta")
    assert seen == ["unfused", "plain affine"]


def test_torch_func_looks_into_pytorchs_own(seen: list[str]) -> None:
    weight, bias = weight_bias(input_major=False)
    torch.func.grad(lambda w: kernels.affine(w, bias, normal(INP, BATCH)).sum())(weight)
    assert seen == ["plain affine"]


@pytest.mark.parametrize(("recorded", "expected"), [(True, ["scored"]), (False, ["unfused", "plain affine"])])
def test_compiled_code_is_made_of_pytorchs_own(
    seen: list[str], recorded: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with torch.set_grad_enabled(recorded):
        readout_of_ones()
    assert seen == expected


def test_the_plain_kernels_can_be_mapped_and_differentiated_twice() -> None:
    weight, bias = weight_bias(input_major=True)
    xs = normal(7, INP, BATCH, seed=2)
    mapped = torch.func.vmap(lambda x: plain.affine(weight, bias, x, input_major=True))(xs)
    torch.testing.assert_close(mapped, torch.stack([reference_affine(weight, bias, x, input_major=True) for x in xs]))
    weight.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda w: plain.affine(w, bias, xs[0], input_major=True).square(), (weight,))

"""The fused readout against a layer and a likelihood one after the other: outputs and gradients."""

import pytest
import torch
from test_likelihoods import each_likelihood, samples
from torch import Tensor

from hmoevae.nn.grouped import GroupedLinear
from hmoevae.nn.kernels import cpu, readout
from hmoevae.nn.likelihoods import LikelihoodModule, likelihood_module
from hmoevae.spec import Gaussian, Likelihood

GROUPS, INP, FEATURES, BATCH = 5, 3, 4, 6


@pytest.fixture(params=[1, 50, 1 << 20], ids=lambda n: f"chunk {n}")
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One expert at a time, two, all."""
    monkeypatch.setattr(cpu, "CHUNK", request.param)


def log_prob(likelihood: LikelihoodModule, layer: GroupedLinear, h: Tensor, x: Tensor) -> Tensor:
    """The readout by a layer."""
    return readout(likelihood, layer.weight, layer.bias, h, x, input_major=layer.input_major)


def both_ways(
    spec: Likelihood, dtype: torch.dtype, autocast: torch.dtype | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Log-densities and the gradients of weight, bias and hidden units, fused and one after the other."""
    torch.manual_seed(0)
    layer = GroupedLinear(GROUPS, INP, FEATURES, input_major=True).to(dtype)
    likelihood = likelihood_module(spec, GROUPS, FEATURES)
    x, hidden = samples(spec, FEATURES, BATCH, dtype=dtype), torch.randn(GROUPS, INP, BATCH, dtype=dtype)
    g = torch.randn(GROUPS, BATCH, dtype=dtype)
    answers = []
    for way in (
        lambda h: log_prob(likelihood, layer, h, x),
        lambda h: likelihood.log_prob(torch.einsum("gio,gib->gob", layer.weight, h) + layer.bias.unsqueeze(-1), x),
    ):
        h = hidden.clone().requires_grad_()
        layer.zero_grad()
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            result = way(h)
        (result * g).sum().backward()
        assert layer.weight.grad is not None
        assert layer.bias.grad is not None
        assert h.grad is not None
        answers.append([result.detach(), layer.weight.grad, layer.bias.grad, h.grad])
    return answers[0], answers[1]


@pytest.mark.usefixtures("chunk")
@each_likelihood
def test_same_in_double_precision(spec: Likelihood) -> None:
    fused, plain = both_ways(spec, torch.float64)
    torch.testing.assert_close(fused, plain)


@pytest.mark.usefixtures("chunk")
@each_likelihood
def test_same_without_gradients(spec: Likelihood) -> None:
    """Where the outputs of a few experts at a time are all that is ever made."""
    torch.manual_seed(0)
    layer = GroupedLinear(GROUPS, INP, FEATURES, input_major=True).double()
    x, h = samples(spec, FEATURES, BATCH), torch.randn(GROUPS, INP, BATCH, dtype=torch.float64)
    with torch.no_grad():
        result = log_prob(likelihood_module(spec, GROUPS, FEATURES), layer, h, x)
        raw = torch.einsum("gio,gib->gob", layer.weight, h) + layer.bias.unsqueeze(-1)
    torch.testing.assert_close(result, likelihood_module(spec, GROUPS, FEATURES).log_prob(raw, x))


@pytest.mark.usefixtures("chunk")
@each_likelihood
def test_same_in_single_precision(spec: Likelihood) -> None:
    fused, plain = both_ways(spec, torch.float32)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("chunk")
@each_likelihood
def test_bf16_is_as_near_to_fp32_as_autocast_is(spec: Likelihood) -> None:
    """Within 2 % of the largest entry: bfloat16 keeps 8 bits, and the products here sum few terms."""
    exact, _ = both_ways(spec, torch.float32)
    fused, plain = both_ways(spec, torch.float32, torch.bfloat16)
    for one, two, reference in zip(fused, plain, exact, strict=True):
        assert one.dtype == reference.dtype
        tolerance = 0.02 * reference.abs().max()
        assert (one - reference).abs().max() < tolerance
        assert (two - reference).abs().max() < tolerance


@each_likelihood
def test_gradients_with_respect_to_the_samples(spec: Likelihood) -> None:
    layer = GroupedLinear(GROUPS, INP, FEATURES, input_major=True).double()
    likelihood = likelihood_module(spec, GROUPS, FEATURES)
    x, h = samples(spec, FEATURES, BATCH).requires_grad_(), torch.randn(GROUPS, INP, BATCH, dtype=torch.float64)
    twin = x.detach().clone().requires_grad_()
    log_prob(likelihood, layer, h, x).sum().backward()
    likelihood.log_prob(layer(h), twin).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)


def test_a_layer_whose_weights_lie_otherwise_is_read_as_they_lie() -> None:
    """Square, so that no product would notice."""
    torch.manual_seed(0)
    spec = Gaussian(scale=0.5)
    x, h = samples(spec, FEATURES, BATCH), torch.randn(GROUPS, FEATURES, BATCH, dtype=torch.float64)
    layers = [
        GroupedLinear(GROUPS, FEATURES, FEATURES, input_major=input_major).double() for input_major in (True, False)
    ]
    with torch.no_grad():
        layers[1].weight.copy_(layers[0].weight.mT)
        layers[1].bias.copy_(layers[0].bias)
    one, other = (log_prob(likelihood_module(spec, GROUPS, FEATURES), layer, h, x) for layer in layers)
    torch.testing.assert_close(one, other)
    one.sum().backward()
    other.sum().backward()
    torch.testing.assert_close(layers[0].weight.grad.mT, layers[1].weight.grad)


def test_a_second_derivative_is_refused() -> None:
    """Rather than wrong: the gradient that is written out has none of its own."""
    layer = GroupedLinear(GROUPS, INP, FEATURES, input_major=True)
    (gradient,) = torch.autograd.grad(layer(torch.rand(INP, BATCH)).square().sum(), layer.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()

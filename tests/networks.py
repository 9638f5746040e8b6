"""Networks and a likelihood as a user writes them, in a file of one's own: for every test that takes any."""

import math

import torch
from torch import Tensor, nn

import hmoevae as hm
from hmoevae.nn.likelihoods import LikelihoodModule


@hm.record(kind="tests.residual")
class Residual(hm.Network):
    """A dense network with a residual layer and a constant buffer; nothing in it knows of groups."""

    width: int = 6

    def build(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> nn.Module:
        return ResidualModule(input_shape, output_shape, self.width)


class ResidualModule(nn.Module):
    def __init__(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.output_shape = output_shape
        self.first = nn.Linear(math.prod(input_shape), width)
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.last = nn.Linear(width, math.prod(output_shape))
        self.register_buffer("temperature", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x.flatten(1)))
        h = h + torch.tanh(self.inner(self.norm(h)))
        return (self.last(h) * self.temperature).unflatten(1, self.output_shape)


@hm.record(kind="tests.frozen")
class Frozen(hm.Network):
    """Random features: directions that stay as they are, other ones in every network, and a layer that learns."""

    def build(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> nn.Module:
        return FrozenModule(math.prod(input_shape), math.prod(output_shape))


class FrozenModule(nn.Module):
    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.register_buffer("directions", torch.randn(n_inputs, 6))
        self.frozen = nn.Parameter(torch.randn(6, 6), requires_grad=False)
        self.last = nn.Linear(6, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(x.flatten(1) @ self.directions @ self.frozen))


@hm.record(kind="tests.laplace")
class Laplace(hm.Likelihood):
    """A likelihood with two numbers a feature and a parameter of its own: Laplace(mean, exp(log_width + offset))."""

    def build(self, n_experts: int, n_features: int) -> LikelihoodModule:
        return LaplaceModule(n_experts, n_features)


class LaplaceModule(LikelihoodModule):
    outputs = 2
    support = "finite values above -5"
    example = 1.0

    def __init__(self, n_experts: int, n_features: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(n_experts, n_features))

    def _parts(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_width = raw.chunk(2, dim=1)
        return mean, (log_width + self.offset.unsqueeze(2)).exp()

    def contains(self, x: Tensor) -> bool:
        return bool((x > -5).all())

    def log_density(self, raw: Tensor, x: Tensor) -> Tensor:
        mean, width = self._parts(raw)
        return -(x - mean).abs() / width - (2 * width).log()

    def mean(self, raw: Tensor) -> Tensor:
        return self._parts(raw)[0]

    def sample(self, raw: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, width = self._parts(raw)
        u = torch.rand(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype) - 0.5
        return mean - width * u.sign() * torch.log1p(-2 * u.abs())

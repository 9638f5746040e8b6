"""A likelihood of one's own: Laplace, whose decoders give two numbers a feature, for data with outliers.

>>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2, likelihood=Laplace()), 3), input_shape=(4,))
>>> model.sample(5, observe=True).shape, model.score_samples(torch.randn(5, 4)).shape
(torch.Size([5, 4]), torch.Size([5]))
"""

import torch
from torch import Tensor

import hmoevae as hm


@hm.record(kind="laplace")
class Laplace(hm.Likelihood):
    """p(x|z) = Laplace(mean(z), width(z)), independent over the features."""

    least_width: float = 1e-3

    def build(self, n_experts: int, n_features: int) -> hm.LikelihoodModule:  # noqa: ARG002
        """Make the module. A likelihood with parameters of its own would use these sizes."""
        return LaplaceModule(self.least_width)


class LaplaceModule(hm.LikelihoodModule):
    """Axes as in the package: (group, feature, batch)."""

    outputs = 2
    support = "finite values"

    def __init__(self, least_width: float) -> None:
        super().__init__()
        self.least_width = least_width

    def contains(self, x: Tensor) -> bool:  # noqa: ARG002
        """Whether all of the finite `x` can be modelled."""
        return True

    def mean(self, raw: Tensor) -> Tensor:
        """E[x|z]: the first half of what the decoders give."""
        return raw.chunk(2, dim=1)[0]

    def width(self, raw: Tensor) -> Tensor:
        """E|x - mean|, above a floor: a constant feature would have an infinite density."""
        return self.least_width + raw.chunk(2, dim=1)[1].exp()

    def log_density(self, raw: Tensor, x: Tensor) -> Tensor:
        """The log-density of every feature, in nats."""
        width = self.width(raw)
        return -(x - self.mean(raw)).abs() / width - (2 * width).log()

    def sample(self, raw: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw from p(x|z)."""
        mean = self.mean(raw)
        u = torch.rand(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype) - 0.5
        return mean - self.width(raw) * u.sign() * torch.log1p(-2 * u.abs())

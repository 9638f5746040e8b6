"""Posteriors q(z|x) of the experts of a group, and draws from them.

Axes: `group` counts experts, `latent` their latent features; `batch` is last.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

MIN_VARIANCE = 1e-5
"""Floor of the posterior's variance, var = MIN_VARIANCE + exp(raw)."""
LARGE_LOG_VARIANCE = 10.0
"""Above this value of raw, the variance follows the tangent of the exponential, because raw grows far from all data.

The exponential would overflow, and one infinite variance makes the scores of all leaves infinite or NaN. A clamped
variance would have no gradient and stay as large as it is. The gradient of the exponential is so large that Adam's
steps would be tiny for thousands of steps after it.
"""


class Posterior(NamedTuple):
    """q(z|x) = N(mean, diag(variance)) of every expert of a group, in single precision or more.

    >>> Posterior(mean=torch.zeros(1, 2, 3), variance=torch.ones(1, 2, 3)).kl()
    tensor([[0., 0., 0.]])
    """

    mean: Float[Tensor, "group latent batch"]
    variance: Float[Tensor, "group latent batch"]

    def sample(self, noise: Float[Tensor, "group latent batch"]) -> Float[Tensor, "group latent batch"]:
        """A draw of z from standard normal noise, differentiable in mean and variance (Kingma & Welling 2014, 2.4)."""
        return torch.addcmul(self.mean, self.variance.sqrt(), noise)

    def kl(self) -> Float[Tensor, "group batch"]:
        """KL(q(z|x) || N(0, I)) in nats (Kingma & Welling 2014, appendix B)."""
        return 0.5 * torch.addcmul(self.variance - self.variance.log() - 1, self.mean, self.mean).sum(1)

    def kl_at(
        self, z: Float[Tensor, "group latent batch"], noise: Float[Tensor, "group latent batch"]
    ) -> Float[Tensor, "group batch"]:
        """Log q(z|x) - log p(z) in nats at the draw of z from `noise`; its mean over draws is the KL."""
        return 0.5 * (z.square() - noise.square() - self.variance.log()).sum(1)


def posterior_of(raw: Float[Tensor, "group two_latent batch"]) -> Posterior:
    """The posterior that an encoder's outputs describe: the first half are means, the second half log-variances.

    >>> posterior_of(torch.tensor([[[0.5], [0.0]]])).variance  # exp(0), and the floor
    tensor([[[1.0000]]])
    """
    mean, log_variance = raw.chunk(2, dim=1)
    small = log_variance.clamp_max(LARGE_LOG_VARIANCE)
    slope = small.exp()
    return Posterior(mean, torch.addcmul(MIN_VARIANCE + slope, slope, log_variance - small))


class Draw(NamedTuple):
    """One draw of z from every expert of a group for every sample, and the likelihood of the samples given z.

    Attributes:
        posterior: q(z|x), from which z is drawn.
        noise: The standard normal noise of the draw.
        z: The draw.
        log_prob: log p(x|z) in nats.

    >>> noise = torch.zeros(1, 2, 3)
    >>> draw = Draw(Posterior(torch.zeros(1, 2, 3), torch.ones(1, 2, 3)), noise, noise, log_prob=torch.ones(1, 3))
    >>> draw.elbo(), draw.log_weight()
    (tensor([[1., 1., 1.]]), tensor([[1., 1., 1.]]))
    """

    posterior: Posterior
    noise: Float[Tensor, "group latent batch"]
    z: Float[Tensor, "group latent batch"]
    log_prob: Float[Tensor, "group batch"]

    def elbo(self, kl_weight: float = 1.0) -> Float[Tensor, "group batch"]:
        """The ELBO with the KL in closed form (Kingma & Welling 2014, equation 7); it varies less than `log_weight`."""
        return self.log_prob - _weighed(self.posterior.kl(), kl_weight)

    def log_weight(self, kl_weight: float = 1.0) -> Float[Tensor, "group batch"]:
        """Log p(x, z) - log q(z|x). Its mean is the ELBO too (equation 6); the mean of its exponential is p(x)."""
        return self.log_prob - _weighed(self.posterior.kl_at(self.z, self.noise), kl_weight)


def _weighed(kl: Float[Tensor, "group batch"], weight: float) -> Float[Tensor, "group batch"]:
    return kl if weight == 1 else weight * kl

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

    is_exact = False
    """Whether q(z|x) is known to be p(z|x)."""

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


Rows = slice | list[int]


class LinearFeatures(NamedTuple):
    """The features of a likelihood whose density is N(raw, scale^2), of which linear decoders have exact posteriors.

    Attributes:
        scale: The standard deviations.
        raw: The decoder's outputs that are the means.
        features: The features, in the order of `raw`.
        are_all: Whether there are no other features.

    >>> LinearFeatures(scale=0.5)
    LinearFeatures(scale=0.5, raw=slice(None, None, None), features=slice(None, None, None), are_all=True)
    """

    scale: float | Float[Tensor, "#group linear 1"]
    raw: Rows = slice(None)
    features: Rows = slice(None)
    are_all: bool = True


NONE = LinearFeatures(1.0, [], [], are_all=False)
"""No feature is linear, and the outcome of each can be fitted without z: q(z|x) is the prior."""


def takes_part(linear: LinearFeatures | None) -> bool:
    """Whether there are linear features.

    >>> takes_part(LinearFeatures(1.0)), takes_part(NONE), takes_part(None)
    (True, False, False)
    """
    return linear is not None and linear.features != []


def positions(rows: Rows, n: int) -> list[int]:
    """The indices of some of `n` rows.

    >>> positions(slice(None), 3), positions([2, 0], 3)
    ([0, 1, 2], [2, 0])
    """
    return list(range(n)[rows]) if isinstance(rows, slice) else rows


def joined_features(parts: list[LinearFeatures], n_raw: int, n_features: int) -> LinearFeatures:
    """The linear features of several parts of a likelihood together.

    Args:
        parts: The parts, at least one.
        n_raw: Number of outputs of the decoder.
        n_features: Number of entries of a sample.

    >>> joined_features([LinearFeatures(0.5, [0], [2]), LinearFeatures(0.1, [1], [0])], 2, 3).scale.flatten()
    tensor([0.5000, 0.1000], dtype=torch.float64)
    """
    rows = [positions(part.raw, n_raw) for part in parts]
    features = [i for part in parts for i in positions(part.features, n_features)]
    scale: float | Tensor = parts[0].scale
    if len(parts) > 1:
        learned = [part.scale for part in parts if isinstance(part.scale, Tensor)]
        like = learned[0] if learned else torch.zeros(1, 0, 1, dtype=torch.float64, device="cpu")
        scales = [
            part.scale if isinstance(part.scale, Tensor) else like.new_full((len(like), len(own), 1), part.scale)
            for part, own in zip(parts, rows, strict=True)
        ]
        scale = torch.cat(scales, 1)
    return LinearFeatures(scale, [i for own in rows for i in own], features, len(features) == n_features)


class FullPosterior(NamedTuple):
    """q(z|x) = N(mean, root root') of every expert of a group, with a full covariance.

    Attributes:
        mean: The means.
        root: Upper triangular roots of the covariances, with a positive diagonal: one for all samples of an expert, or
            one for each sample.
        is_exact: Whether q(z|x) is p(z|x), so that the log-weight of every draw is log p(x).

    >>> posterior = FullPosterior(torch.zeros(1, 2, 3), torch.tensor([[[1.0, 1.0], [0.0, 1.0]]]), is_exact=True)
    >>> posterior.variance[0, :, 0], posterior.kl()
    (tensor([2., 1.]), tensor([[0.5000, 0.5000, 0.5000]]))
    """

    mean: Float[Tensor, "group latent batch"]
    root: Float[Tensor, "group latent latent"] | Float[Tensor, "group batch latent latent"]
    is_exact: bool

    @property
    def variance(self) -> Float[Tensor, "group latent batch"]:
        """The diagonal of the covariances."""
        diagonal = self.root.square().sum(-1)
        return diagonal.unsqueeze(2).expand_as(self.mean) if self.root.ndim == 3 else diagonal.mT

    def sample(self, noise: Float[Tensor, "group latent batch"]) -> Float[Tensor, "group latent batch"]:
        """A draw of z from standard normal noise, differentiable in mean and covariance."""
        return self.mean + _times(self.root, noise)

    def kl(self) -> Float[Tensor, "group batch"]:
        """KL(q(z|x) || N(0, I)) in nats."""
        return 0.5 * ((self.variance - 1 + self.mean.square()).sum(1) - self._log_determinant())

    def kl_at(
        self, z: Float[Tensor, "group latent batch"], noise: Float[Tensor, "group latent batch"]
    ) -> Float[Tensor, "group batch"]:
        """Log q(z|x) - log p(z) in nats at the draw of z from `noise`; its mean over draws is the KL."""
        return 0.5 * ((z.square() - noise.square()).sum(1) - self._log_determinant())

    def _log_determinant(self) -> Float[Tensor, "group #batch"]:
        """Log det of the covariances."""
        by_expert = 2 * self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return by_expert.unsqueeze(1) if self.root.ndim == 3 else by_expert


AnyPosterior = Posterior | FullPosterior


def _times(
    matrix: Float[Tensor, "group out inp"] | Float[Tensor, "group batch out inp"], x: Float[Tensor, "group inp batch"]
) -> Float[Tensor, "group out batch"]:
    """The product with one matrix an expert, or one a sample."""
    return matrix @ x if matrix.ndim == 3 else torch.einsum("gboi,gib->gob", matrix, x)


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

    posterior: AnyPosterior
    noise: Float[Tensor, "group latent batch"]
    z: Float[Tensor, "group latent batch"]
    log_prob: Float[Tensor, "group batch"]

    def elbo(self, kl_weight: float = 1.0) -> Float[Tensor, "group batch"]:
        """The ELBO with the KL in closed form (Kingma & Welling 2014, equation 7); it varies less than `log_weight`.

        Where the posterior is exact, it is `log_weight`, which does not vary at all.
        """
        if self.posterior.is_exact and kl_weight == 1:
            return self.log_weight()
        return self.log_prob - _weighed(self.posterior.kl(), kl_weight)

    def log_weight(self, kl_weight: float = 1.0) -> Float[Tensor, "group batch"]:
        """Log p(x, z) - log q(z|x). Its mean is the ELBO too (equation 6); the mean of its exponential is p(x)."""
        return self.log_prob - _weighed(self.posterior.kl_at(self.z, self.noise), kl_weight)


def _weighed(kl: Float[Tensor, "group batch"], weight: float) -> Float[Tensor, "group batch"]:
    return kl if weight == 1 else weight * kl

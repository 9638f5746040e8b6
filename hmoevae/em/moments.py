"""Expected moments of samples under a factor analyser, which fills gaps by what it expects of them.

Axes: `n` counts samples, `feature` and `column` the Gaussian features, `latent` the factors.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hmoevae.samples import BATCH_SIZE


class Moments(NamedTuple):
    """The weight, the mean and the covariance of the samples of a leaf.

    Attributes:
        weight: Sum of the weights of the samples.
        mean: Weighted mean of the samples.
        covariance: Weighted covariance of the samples about their mean. Gaps add their conditional covariance.
    """

    weight: Float[Tensor, ""]
    mean: Float[Tensor, " feature"]
    covariance: Float[Tensor, "feature column"]


class Factors(NamedTuple):
    """A factor analyser: x = mean + loadings z + noise, z ~ N(0, I), noise ~ N(0, diag(noise)).

    >>> Factors(torch.zeros(2), torch.ones(2, 1), torch.ones(2)).covariance
    tensor([[2., 1.],
            [1., 2.]])
    """

    mean: Float[Tensor, " feature"]
    loadings: Float[Tensor, "feature latent"]
    noise: Float[Tensor, " feature"]

    @property
    def covariance(self) -> Float[Tensor, "feature column"]:
        """The covariance of the samples."""
        return self.loadings @ self.loadings.T + torch.diag(self.noise)


def moments(x: Float[Tensor, "n feature"], weight: Float[Tensor, " n"], before: Factors | None = None) -> Moments:
    """The moments of weighted samples.

    Args:
        x: Samples. Where there are gaps, which are NaN, `before` says what is expected there.
        weight: The weight of each sample, such as its responsibility.
        before: The current factor analyser of the leaf; only needed for gaps.

    >>> moments(torch.tensor([[0.0], [2.0], [9.0]]), torch.tensor([1.0, 1.0, 0.0]))
    Moments(weight=tensor(2.), mean=tensor([1.]), covariance=tensor([[1.0000]]))
    """
    total = weight.sum()
    if before is None:
        filled, within = x, 0.0
    else:
        filled, within = filled_in(x, weight, before)
    share = weight / total.clamp_min(torch.finfo(x.dtype).tiny)
    mean = share @ filled
    centred = (filled - mean) * share.sqrt().unsqueeze(1)
    return Moments(total, mean, centred.T @ centred + within / total.clamp_min(torch.finfo(x.dtype).tiny))


def filled_in(
    x: Float[Tensor, "n feature"], weight: Float[Tensor, " n"], factors: Factors
) -> tuple[Float[Tensor, "n feature"], Float[Tensor, "feature column"]]:
    """Fill gaps with their conditional mean.

    Returns:
        The samples without gaps, and the weighted sum of the conditional covariances of their gaps.

    >>> factors = Factors(torch.zeros(2), torch.ones(2, 1), torch.ones(2))
    >>> filled, within = filled_in(torch.tensor([[2.0, torch.nan]]), torch.ones(1), factors)
    >>> filled, within.diagonal()  # the covariance is 1, the variance 2
    (tensor([[2., 1.]]), tensor([0.0000, 1.5000]))
    """
    pairs = zip(x.split(BATCH_SIZE), weight.split(BATCH_SIZE), strict=True)
    parts = [_part_filled_in(*pair, factors) for pair in pairs]
    return torch.cat([filled for filled, _ in parts]), torch.stack([within for _, within in parts]).sum(0)


def _part_filled_in(
    x: Float[Tensor, "part feature"], weight: Float[Tensor, " part"], factors: Factors
) -> tuple[Float[Tensor, "part feature"], Float[Tensor, "feature column"]]:
    """`filled_in` of some samples, each of which takes `latent` times the memory of a sample."""
    mean, loadings, noise = factors
    present = ~x.isnan()
    scaled = loadings / noise.unsqueeze(1)
    factor = torch.linalg.cholesky(precision(present, loadings, scaled))
    apart = torch.where(present, x - mean, 0.0)
    latent = torch.cholesky_solve((apart @ scaled).unsqueeze(2), factor).squeeze(2)
    filled = torch.where(present, x, mean + latent @ loadings.T)
    # The conditional covariance of the gaps is W M^-1 W' + Psi, restricted to them; with M = L L' it is G'G + Psi.
    root = torch.linalg.solve_triangular(factor, loadings.T.expand(len(x), -1, -1), upper=False)
    root = root * (~present).unsqueeze(1) * weight.sqrt().view(-1, 1, 1)
    rows = root.flatten(0, 1)
    within = rows.T @ rows + torch.diag((weight @ (~present).to(x.dtype)) * noise)
    return filled, within


def precision(
    present: Bool[Tensor, "n feature"],
    loadings: Float[Tensor, "feature latent"],
    scaled: Float[Tensor, "feature latent"],
) -> Float[Tensor, "n latent other"]:
    """M = I + W' Psi^-1 W over the observed features of every sample.

    >>> one = torch.ones(2, 1)
    >>> precision(torch.tensor([[True, False], [True, True]]), one, one).flatten()
    tensor([2., 3.])
    """
    n_latents = loadings.shape[1]
    products = (loadings.unsqueeze(2) * scaled.unsqueeze(1)).flatten(1)
    summed = (present.to(loadings.dtype) @ products).unflatten(1, (n_latents, n_latents))
    return summed + torch.eye(n_latents, dtype=loadings.dtype, device=loadings.device)

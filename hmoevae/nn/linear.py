"""The exact posterior of linear decoders with Gaussian features, which is computed from the decoder and not learned.

With x = b + W z + noise, z ~ N(0, I) and noise ~ N(0, Psi), Psi diagonal (a factor analyser; Ghahramani & Hinton 1996,
Tipping & Bishop 1999)::

    p(z|x) = N(M^-1 W' Psi^-1 (x - b), M^-1),    M = I + W' Psi^-1 W

Axes: `group` counts experts, `raw` the outputs of a decoder, `feature` the entries of a sample, `latent` the latent
features; `batch` is last.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hmoevae.errors import SpecError, mismatch
from hmoevae.nn.grouped import GroupedMLP, GroupedNetwork
from hmoevae.nn.kernels.precision import exact_dtype, full_precision, sum_dtype
from hmoevae.nn.likelihoods.module import LikelihoodModule, Present, Sample
from hmoevae.nn.posteriors import FullPosterior, LinearFeatures
from hmoevae.spec import VAE


class Coefficients(NamedTuple):
    """The posterior as a function of x: the mean is `to_mean` x + `offset`, the covariance `root` times its transpose.

    >>> weight, bias = torch.ones(1, 2, 1, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    >>> coefficients(weight, bias, LinearFeatures(scale=1.0), n_features=2).to_mean  # M = 1 + 2
    tensor([[[0.3333, 0.3333]]], dtype=torch.float64)
    """

    to_mean: Float[Tensor, "group latent feature"]
    offset: Float[Tensor, "group latent 1"]
    root: Float[Tensor, "group latent latent"]

    def at(self, x: Sample, *, is_exact: bool) -> FullPosterior:
        """The posteriors of samples, in the precision of `x`."""
        to_mean, offset, root = (part.to(x.dtype) for part in self)
        return FullPosterior(to_mean @ x + offset, root, is_exact)


def coefficients(
    weight: Float[Tensor, "group raw latent"],
    bias: Float[Tensor, "group raw"],
    linear: LinearFeatures,
    n_features: int,
) -> Coefficients:
    """The coefficients of the posteriors of linear decoders.

    Args:
        weight: W of every expert, with rows for all outputs of its decoder.
        bias: b of every expert.
        linear: The features that take part, and their scales. The coefficients of the others are zero.
        n_features: Number of entries of a sample.
    """
    scaled, own_bias, scale = _scaled(weight, bias, linear)
    root = _root(scaled.mT @ scaled)
    to_mean = root @ (root.mT @ (scaled / scale).mT)
    offset = -to_mean @ own_bias
    if not linear.are_all:
        of_all = to_mean.new_zeros(*to_mean.shape[:2], n_features)
        of_all[..., linear.features] = to_mean
        return Coefficients(of_all, offset, root)
    if isinstance(linear.features, slice):
        return Coefficients(to_mean, offset, root)
    order = torch.tensor(linear.features, device=to_mean.device).argsort()
    return Coefficients(to_mean.index_select(2, order), offset, root)


def with_gaps(
    weight: Float[Tensor, "group raw latent"],
    bias: Float[Tensor, "group raw"],
    linear: LinearFeatures,
    x: Sample,
    present: Present,
) -> FullPosterior:
    """The posteriors of samples given those of their features that are present, with a covariance for each sample.

    Args:
        weight: As in `coefficients`.
        bias: As in `coefficients`.
        linear: As in `coefficients`.
        x: Samples. The values of absent features are not read.
        present: Which features were observed, in the shape of `x`.

    >>> x, weight = torch.tensor([[1.0], [torch.nan]]), torch.ones(1, 2, 1)
    >>> with_gaps(weight, torch.zeros(1, 2), LinearFeatures(scale=1.0), x, x.isfinite()).mean  # M = 1 + 1
    tensor([[[0.5000]]])
    """
    scaled, own_bias, scale = _scaled(weight, bias, linear)
    own, observed = x[..., linear.features, :], present[..., linear.features, :]
    apart = torch.where(observed, own - own_bias, 0.0) / scale
    products = (scaled.unsqueeze(3) * scaled.unsqueeze(2)).flatten(2)
    gain = (products.mT @ observed.to(products.dtype)).mT.unflatten(2, (weight.shape[2], -1))
    root = _root(gain)
    mean = torch.einsum("gbpq,gbrq,grb->gpb", root, root, scaled.mT @ apart)
    return FullPosterior(mean.to(x.dtype), root.to(x.dtype), linear.are_all)


def _scaled(
    weight: Float[Tensor, "group raw latent"], bias: Float[Tensor, "group raw"], linear: LinearFeatures
) -> tuple[Float[Tensor, "group linear latent"], Float[Tensor, "group linear 1"], float | Tensor]:
    """Weights in units of the scales, biases and scales of the features that take part, in the highest precision."""
    dtype, scale = exact_dtype(weight), linear.scale
    scale = scale.to(weight.device, dtype) if isinstance(scale, Tensor) else scale
    return weight[:, linear.raw].to(dtype) / scale, bias[:, linear.raw, None].to(dtype), scale


def _root(gain: Float[Tensor, "*axis latent latent"]) -> Float[Tensor, "*axis latent latent"]:
    """The upper triangular root of M^-1, M = I + `gain`."""
    identity = torch.eye(gain.shape[-1], dtype=gain.dtype, device=gain.device)
    factor = torch.linalg.cholesky_ex(identity + gain).L  # without a check: what is not finite shows in the loss
    return torch.linalg.solve_triangular(factor, identity, upper=False).mT


class LinearEncoder(nn.Module):
    """The exact posteriors of a group of experts. It has no parameters: it reads those of decoder and likelihood.

    Args:
        spec: The record of the experts.
        decoder: Their decoder.
        likelihood: Their likelihood.
        n_features: Number of entries of a sample.
        place: The first expert's name in error messages, such as `"root/0"`.

    Raises:
        SpecError: The decoder is not linear, or no feature is Gaussian with the decoder's output as the mean.

    >>> from hmoevae.nn.experts import ExpertGroup
    >>> from hmoevae.spec import MLP, Gaussian, LinearPosterior
    >>> group = ExpertGroup(VAE(2, LinearPosterior(), MLP(()), Gaussian(0.5, "identity")), 3, (4,), "root/0")
    >>> isinstance(group.encoder, LinearEncoder), group.posterior(torch.rand(4, 5)).mean.shape
    (True, torch.Size([3, 2, 5]))
    """

    to_mean: Float[Tensor, "group latent feature"] | None
    offset: Float[Tensor, "group latent 1"] | None
    root: Float[Tensor, "group latent latent"] | None

    def __init__(
        self, spec: VAE, decoder: GroupedNetwork, likelihood: LikelihoodModule, n_features: int, place: str
    ) -> None:
        super().__init__()
        if not isinstance(decoder, GroupedMLP) or len(decoder.layers) > 1:
            expected = f"MLP(()), the decoder of which {spec.encoder} is the posterior"
            raise SpecError(mismatch(f"{place}.decoder", expected, spec.decoder))
        linear = likelihood.linear_features()
        if linear is None:
            expected = f"Gaussian(..., 'identity'), of which {spec.encoder} is the posterior, or outcomes without z"
            raise SpecError(mismatch(f"{place}.likelihood", expected, spec.likelihood))
        self.is_exact = linear.are_all
        self.n_features = n_features
        for name in Coefficients._fields:
            self.register_buffer(name, None, persistent=False)

    def forward(
        self, x: Sample, decoder: GroupedNetwork, likelihood: LikelihoodModule, present: Present | None = None
    ) -> FullPosterior:
        """The posteriors of samples that all experts share (2-D) or of each expert's own (3-D).

        Args:
            x: Samples.
            decoder: The decoder of the experts.
            likelihood: Their likelihood.
            present: Which features were observed, in the shape of `x`; `None` means all.
        """
        with full_precision(x):
            x = x.to(sum_dtype(x))
            if present is not None and not _known_whole(present):
                return with_gaps(*_parts(decoder, likelihood), x, present)
            if self.to_mean is not None and self.offset is not None and self.root is not None:
                found = Coefficients(self.to_mean, self.offset, self.root)
            else:
                found = coefficients(*_parts(decoder, likelihood), self.n_features)
            return found.at(x, is_exact=self.is_exact)

    @torch.no_grad()
    def fix_(self, decoder: GroupedNetwork, likelihood: LikelihoodModule) -> None:
        """Keep the coefficients of today, for copies without the decoder and runtimes without matrix factors."""
        for name, part in coefficients(*_parts(decoder, likelihood), self.n_features)._asdict().items():
            setattr(self, name, part.to(sum_dtype(next(decoder.parameters()))))


def _parts(
    decoder: GroupedNetwork, likelihood: LikelihoodModule
) -> tuple[Float[Tensor, "group raw latent"], Float[Tensor, "group raw"], LinearFeatures]:
    linear = likelihood.linear_features()
    assert isinstance(decoder, GroupedMLP)
    assert linear is not None
    return decoder.last.matrices, decoder.last.offsets, linear


def _known_whole(present: Present) -> bool:
    """Whether it takes little to see that nothing is missing: one posterior for all samples is then enough."""
    may_look = present.device.type == "cpu" and not torch.compiler.is_compiling()
    return may_look and bool(present.all())

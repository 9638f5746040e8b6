"""Networks as data: the records of encoders, decoders and gates, the package's own and a user's."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from hmoevae.errors import SpecError, mismatch
from hmoevae.spec.record import PositiveInt, expected, record

Activation = Literal["relu", "sigmoid", "tanh", "gelu", "silu", "elu"]


class Network:
    """Base class of the records of encoders, decoders and gates.

    A network of your own is a class with the decorator `hmoevae.record`, this base class and the method `build`, which
    makes *one* plain `torch.nn.Module`. The package makes one module for every node, stacks their weights, and runs all
    of them batched (`torch.func.stack_module_state`, `vmap`). A saved model names the record's `kind`, so import the
    module that defines the record before you load the model.

    >>> import torch
    >>> from hmoevae.spec import VAE, Mixture, record
    >>> @record(kind="two_layers")
    ... class TwoLayers(Network):
    ...     width: int = 8
    ...
    ...     def build(self, input_shape, output_shape):
    ...         n_inputs, n_outputs = torch.Size(input_shape).numel(), torch.Size(output_shape).numel()
    ...         return torch.nn.Sequential(
    ...             torch.nn.Flatten(), torch.nn.Linear(n_inputs, self.width), torch.nn.Tanh(),
    ...             torch.nn.Linear(self.width, n_outputs), torch.nn.Unflatten(1, output_shape))
    >>> Mixture.of(VAE(2, TwoLayers(), TwoLayers(16)), 3, gate=TwoLayers()).at("root/0").decoder
    TwoLayers(width=16)
    """

    kind: str

    def build(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Any:  # noqa: ARG002
        """Make one network with fresh weights.

        Args:
            input_shape: Shape of one input: the shape of a sample for encoders and gates, `(latent_dim,)` for decoders.
            output_shape: Shape of one output. For encoders `(2 * latent_dim,)`: means, then log-variances. For decoders
                the shape of a sample, with the first axis multiplied by the likelihood's `outputs`. For gates
                `(children,)`.

        Returns:
            A `torch.nn.Module` from `(batch, *input_shape)` to `(batch, *output_shape)`. Its output for a sample must
            not depend on the other samples, and no call may change its buffers, as BatchNorm's running statistics do.
        """
        words = "a method of its own, as a user's networks have (the package's are built in groups)"
        raise SpecError(mismatch(f"{type(self).__name__}.build", words, "none"))

    def __str__(self) -> str:
        return repr(self)


@record(kind="mlp")
class MLP(Network):
    """A multi-layer perceptron: dense layers of the given widths, then one dense layer without activation.

    Args:
        hidden: Widths of the hidden layers; `()` makes the network a single affine map.
        activation: The nonlinearity after every hidden layer.

    >>> print(MLP((128, 64), activation="tanh")), print(MLP(()))
    MLP(128-64)
    MLP(linear)
    (None, None)
    """

    hidden: tuple[PositiveInt, ...] = (128,)
    activation: Activation = "relu"

    def __str__(self) -> str:
        return f"MLP({'-'.join(map(str, self.hidden)) or 'linear'})"


@record(kind="conv")
class Conv(Network):
    """A small strided convolutional network with a dense head, for gates and encoders of images.

    Args:
        channels: Output channels of the convolutions, one strided convolution each.
        kernel_size: Side of the square kernels, in pixels; the padding is `kernel_size // 2`.
        stride: Step of every convolution, in pixels.
        hidden: Widths of the dense hidden layers after the convolutions.
        activation: The nonlinearity after every convolution and hidden layer.
        norm_groups: Number of groups of channels that are normalised after every convolution, each over its channels
            and pixels (GroupNorm, Wu & He 2018); it divides every one of `channels`. A gate that learns clusters from
            agreement finds far better ones so. `None` normalises nothing.

    Raises:
        SpecError: A field cannot be used.

    >>> print(Conv(channels=(8, 16), kernel_size=3, hidden=(64,)))
    Conv(8-16, MLP 64)
    >>> print(Conv(channels=(8, 16), norm_groups=4))
    Conv(8-16, 4 groups, MLP 128)
    >>> Conv(channels=(8, 16)).transpose()
    ConvTranspose(channels=(16, 8))
    """

    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (16, 32)
    kernel_size: PositiveInt = 5
    stride: PositiveInt = 2
    hidden: tuple[PositiveInt, ...] = (128,)
    activation: Activation = "relu"
    norm_groups: PositiveInt | None = None

    @field_validator("norm_groups")
    @classmethod
    def _divides(cls, groups: int | None, info: Any) -> int | None:
        """Refuse groups of unequal sizes."""
        channels = info.data.get("channels", ())  # absent where they were refused
        if groups is not None and any(n % groups for n in channels):
            raise expected(f"None or a divisor of each of the channels {channels}")
        return groups

    def transpose(self) -> "ConvTranspose":
        """The decoder that mirrors this encoder; it normalises nothing."""
        return ConvTranspose(
            tuple(reversed(self.channels)),
            self.kernel_size,
            self.stride,
            tuple(reversed(self.hidden)),
            self.activation,
        )

    def __str__(self) -> str:
        norm = "" if self.norm_groups is None else f", {self.norm_groups} groups"
        return f"Conv({'-'.join(map(str, self.channels))}{norm}, MLP {'-'.join(map(str, self.hidden)) or 'linear'})"


@record(kind="conv_transpose")
class ConvTranspose(Network):
    """A decoder for images: dense layers, then strided transposed convolutions, the mirror image of `Conv`.

    Args:
        channels: Input channels of the transposed convolutions, one each. The last convolution outputs the image,
            without an activation.
        kernel_size: Side of the square kernels, in pixels; the padding is `kernel_size // 2`.
        stride: Factor by which every transposed convolution enlarges its input.
        hidden: Widths of the dense hidden layers before the convolutions.
        activation: The nonlinearity after every layer except the last.

    >>> print(ConvTranspose(channels=(16, 8), kernel_size=3, hidden=(64,)))
    ConvTranspose(MLP 64, 16-8)
    """

    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (32, 16)
    kernel_size: PositiveInt = 5
    stride: PositiveInt = 2
    hidden: tuple[PositiveInt, ...] = (128,)
    activation: Activation = "relu"

    def __str__(self) -> str:
        dense = "-".join(map(str, self.hidden)) or "linear"
        return f"ConvTranspose(MLP {dense}, {'-'.join(map(str, self.channels))})"


@record(kind="linear_posterior")
class LinearPosterior(Network):
    """The exact posterior q(z|x) of a linear decoder, in place of an encoder: it is computed, and has no parameters.

    Where the decoder is x = b + W z and the features are Gaussian with variances Psi, the leaf is a factor analyser
    and p(z|x) = N(M^-1 W' Psi^-1 (x - b), M^-1) with M = I + W' Psi^-1 W, a full covariance (Ghahramani & Hinton 1996;
    Tipping & Bishop 1999). Every ELBO then equals log p(x), and scores need one draw of z.

    It is for `VAE.encoder` only. The leaf needs the decoder `MLP(())` and a likelihood with features of
    `Gaussian(..., "identity")`. Where other features stand beside them, these play no part in the posterior, so that
    the ELBO is a lower bound, as with any encoder.

    >>> from hmoevae.spec import VAE, Gaussian
    >>> VAE(2, LinearPosterior(), MLP(()), Gaussian("learned", "identity")).label
    'VAE: latent 2, encoder LinearPosterior, decoder MLP(linear), Gaussian(learned, identity)'
    """

    def __str__(self) -> str:
        return "LinearPosterior"


@record(kind="posterior_gate")
class PosteriorGate(Network):
    """The posterior of a mixture's children, in place of a gate network: it is computed, and has no parameters.

    g(c|x) = pi_c p_c(x) / sum_k pi_k p_k(x), where p_c(x) is the density of child c: the sum over the leaves below it,
    each weighted by its prior below c. It passes no gradient, as the E-step of EM: the experts learn from the samples
    that it gives them.

    It is for `Mixture.gate` only. All leaves below the mixture need `LinearPosterior`. Where a leaf's features are all
    Gaussian, its density is exact; else p(x, z) / q(z|x) at the mean of q(z|x) stands for it, which is a Laplace
    approximation. Balance and agreement cannot teach such a gate.

    >>> from hmoevae.spec import VAE, Gaussian, Mixture
    >>> leaf = VAE(2, LinearPosterior(), MLP(()), Gaussian("learned", "identity"))
    >>> Mixture.of(leaf, 3, gate=PosteriorGate(), prior="learned").label
    'Mixture of 3: gate PosteriorGate, learned prior'
    """

    def __str__(self) -> str:
        return "PosteriorGate"

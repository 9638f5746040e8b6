"""Networks as data: what may stand as encoder, decoder or gate, the package's own and a user's."""

from typing import Annotated, Any, Literal

from pydantic import Field

from hmoevae.spec.record import PositiveInt, record

Activation = Literal["relu", "sigmoid", "tanh", "gelu", "silu", "elu"]


class Network:
    """What an encoder, a decoder or a gate may be: a record that says how a network is made.

    A network of your own is a frozen record of this family with the method `build`, which makes *one* plain
    `torch.nn.Module`. The package makes one for every node, stacks their weights, and runs all of them batched
    (`torch.func.stack_module_state`, `vmap`). It is saved by its `kind`, so the module with the record has to be
    imported before a model with it is loaded.

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

    def build(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Any:
        """Make one network with fresh weights.

        Args:
            input_shape: Shape of one input: of a sample for encoders and gates, `(latent_dim,)` for decoders.
            output_shape: Shape of one output: `(2 * latent_dim,)` for encoders, means and logarithms of variances;
                for decoders that of a sample, or of as many as the likelihood has numbers a feature, along the first
                axis; `(children,)` for gates.

        Returns:
            A `torch.nn.Module` from `(batch, *input_shape)` to `(batch, *output_shape)`. What it does to a sample must
            not depend on the others, and no call may change its buffers: BatchNorm's running statistics cannot be
            stacked.
        """
        raise NotImplementedError(f"{type(self).__name__}.build")

    def __str__(self) -> str:
        return repr(self)


@record(kind="mlp")
class MLP(Network):
    """A multi-layer perceptron: dense layers of the given widths, then one dense layer without activation.

    Args:
        hidden: Widths of the hidden layers; `()` makes the network a single affine map.
        activation: The nonlinearity behind every hidden layer.

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
    """A small strided convolutional network with a dense head, for gates and encoders that look at images.

    Args:
        channels: Output channels of the convolutions, one strided convolution each.
        kernel_size: Side of the square kernels, in pixels; the padding is `kernel_size // 2`.
        stride: Step of every convolution, in pixels.
        hidden: Widths of the dense hidden layers behind the convolutions.
        activation: The nonlinearity behind every convolution and hidden layer.

    >>> print(Conv(channels=(8, 16), kernel_size=3, hidden=(64,)))
    Conv(8-16, MLP 64)
    >>> Conv(channels=(8, 16)).transpose()
    ConvTranspose(channels=(16, 8))
    """

    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (16, 32)
    kernel_size: PositiveInt = 5
    stride: PositiveInt = 2
    hidden: tuple[PositiveInt, ...] = (128,)
    activation: Activation = "relu"

    def transpose(self) -> "ConvTranspose":
        """The decoder that mirrors this encoder."""
        return ConvTranspose(
            tuple(reversed(self.channels)),
            self.kernel_size,
            self.stride,
            tuple(reversed(self.hidden)),
            self.activation,
        )

    def __str__(self) -> str:
        return f"Conv({'-'.join(map(str, self.channels))}, MLP {'-'.join(map(str, self.hidden)) or 'linear'})"


@record(kind="conv_transpose")
class ConvTranspose(Network):
    """A decoder for images: dense layers, then strided transposed convolutions, as `Conv` backwards.

    Args:
        channels: Input channels of the transposed convolutions, one each; the last of them gives the image, without
            an activation.
        kernel_size: Side of the square kernels, in pixels; the padding is `kernel_size // 2`.
        stride: By how much every transposed convolution enlarges its input.
        hidden: Widths of the dense hidden layers in front of the convolutions.
        activation: The nonlinearity behind every layer but the last.

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

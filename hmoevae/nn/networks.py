"""From the record of a network to the grouped module that runs it: grouped layers for ours, `Stacked` for a user's."""

import functools
from typing import NamedTuple

import torch

from hmoevae.errors import SpecError, mismatch
from hmoevae.nn.conv import GroupedConv, GroupedConvTranspose
from hmoevae.nn.grouped import GroupedMLP, GroupedNetwork
from hmoevae.nn.stacked import Stacked
from hmoevae.spec import MLP, Conv, ConvTranspose, LinearPosterior, Network, PosteriorGate


def grouped_network(
    record: Network,
    groups: int,
    input_shape: tuple[int, ...],
    output_shape: tuple[int, ...],
    place: str,
    *,
    is_decoder: bool = False,
) -> GroupedNetwork:
    """Make the networks that a record describes, with fresh weights.

    Args:
        record: The record of the network.
        groups: Number of equal networks that run side by side.
        input_shape: Shape of one input.
        output_shape: Shape of one output.
        place: The network's name in error messages, such as `"root/0.encoder"`.
        is_decoder: Whether a likelihood follows, with which the last layer may be fused.

    Raises:
        SpecError: The network does not fit these shapes.

    >>> grouped_network(MLP((8,)), 3, (2, 2), (5,), "root.gate")(torch.rand(4, 7)).shape
    torch.Size([3, 5, 7])
    """
    asked = _Asked(groups, input_shape, output_shape, place, is_decoder)
    if type(record).build is not Network.build:  # also where the record's class is derived from one of ours
        return Stacked(record, groups, input_shape, output_shape, place)
    return _own(record, asked)


class _Asked(NamedTuple):
    """The arguments of `grouped_network` but for the record."""

    groups: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    place: str
    is_decoder: bool

    @property
    def n_outputs(self) -> int:
        """Entries of one output."""
        return torch.Size(self.output_shape).numel()

    @property
    def n_inputs(self) -> int:
        """Entries of one input."""
        return torch.Size(self.input_shape).numel()


@functools.singledispatch
def _own(record: Network, asked: _Asked) -> GroupedNetwork:
    """The grouped layers of one of our records."""
    raise SpecError(mismatch(asked.place, f"a method {type(record).__name__}.build, which makes the module", "none"))


@_own.register(LinearPosterior)
def _linear_posterior(record: LinearPosterior, asked: _Asked) -> GroupedNetwork:
    raise SpecError(mismatch(asked.place, "a network (LinearPosterior is for the encoder of a VAE)", record))


@_own.register(PosteriorGate)
def _posterior_gate(record: PosteriorGate, asked: _Asked) -> GroupedNetwork:
    raise SpecError(mismatch(asked.place, "a network (PosteriorGate is for the gate of a Mixture)", record))


@_own.register(MLP)
def _mlp(record: MLP, asked: _Asked) -> GroupedNetwork:
    return GroupedMLP(asked.groups, asked.n_inputs, asked.n_outputs, record, input_major=asked.is_decoder)


@_own.register(Conv)
def _conv(record: Conv, asked: _Asked) -> GroupedNetwork:
    if len(asked.input_shape) != 3:
        expected = "an MLP, or samples of shape (channels, height, width) for a Conv"
        if asked.is_decoder:
            expected = "an MLP, or a ConvTranspose for images: Conv is no decoder"
        raise SpecError(mismatch(asked.place, expected, f"{record} for samples of shape {asked.input_shape}"))
    return GroupedConv(asked.groups, asked.input_shape, asked.n_outputs, record)


@_own.register(ConvTranspose)
def _conv_transpose(record: ConvTranspose, asked: _Asked) -> GroupedNetwork:
    if len(asked.output_shape) != 3 or not asked.is_decoder:
        expected = "an MLP, or samples of shape (channels, height, width) for a ConvTranspose"
        if not asked.is_decoder:
            expected = "an MLP, or a Conv for images: ConvTranspose is a decoder"
        raise SpecError(mismatch(asked.place, expected, f"{record} for outputs of shape {asked.output_shape}"))
    return GroupedConvTranspose(asked.groups, asked.n_inputs, asked.output_shape, record)

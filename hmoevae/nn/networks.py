"""From the record of a network to the grouped module that runs it: grouped layers for ours, `Stacked` for a user's."""

import functools

import torch

from hmoevae.errors import SpecError, mismatch
from hmoevae.nn.conv import GroupedConv, GroupedConvTranspose
from hmoevae.nn.grouped import GroupedMLP, GroupedNetwork
from hmoevae.nn.stacked import Stacked
from hmoevae.spec import MLP, Conv, ConvTranspose, Network


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
    if type(record).build is not Network.build:  # also where the record's class is derived from one of ours
        return Stacked(record, groups, input_shape, output_shape, place)
    return _own(record, groups, input_shape, output_shape, place, is_decoder=is_decoder)


@functools.singledispatch
def _own(
    record: Network,
    groups: int,  # noqa: ARG001
    input_shape: tuple[int, ...],  # noqa: ARG001
    output_shape: tuple[int, ...],  # noqa: ARG001
    place: str,
    *,
    is_decoder: bool = False,  # noqa: ARG001
) -> GroupedNetwork:
    """The grouped layers of one of our records."""
    raise SpecError(mismatch(place, f"a method {type(record).__name__}.build, which makes the module", "none"))


@_own.register(MLP)
def _mlp(
    record: MLP,
    groups: int,
    input_shape: tuple[int, ...],
    output_shape: tuple[int, ...],
    place: str,  # noqa: ARG001
    *,
    is_decoder: bool = False,
) -> GroupedNetwork:
    sizes = torch.Size(input_shape).numel(), torch.Size(output_shape).numel()
    return GroupedMLP(groups, *sizes, record, input_major=is_decoder)


@_own.register(Conv)
def _conv(
    record: Conv,
    groups: int,
    input_shape: tuple[int, ...],
    output_shape: tuple[int, ...],
    place: str,
    *,
    is_decoder: bool = False,
) -> GroupedNetwork:
    if len(input_shape) != 3:
        expected = "an MLP, or samples of shape (channels, height, width) for a Conv"
        if is_decoder:
            expected = "an MLP, or a ConvTranspose for images: Conv is no decoder"
        raise SpecError(mismatch(place, expected, f"{record} for samples of shape {input_shape}"))
    return GroupedConv(groups, input_shape, torch.Size(output_shape).numel(), record)


@_own.register(ConvTranspose)
def _conv_transpose(
    record: ConvTranspose,
    groups: int,
    input_shape: tuple[int, ...],
    output_shape: tuple[int, ...],
    place: str,
    *,
    is_decoder: bool = False,
) -> GroupedNetwork:
    if len(output_shape) != 3 or not is_decoder:
        expected = "an MLP, or samples of shape (channels, height, width) for a ConvTranspose"
        if not is_decoder:
            expected = "an MLP, or a Conv for images: ConvTranspose is a decoder"
        raise SpecError(mismatch(place, expected, f"{record} for outputs of shape {output_shape}"))
    return GroupedConvTranspose(groups, torch.Size(input_shape).numel(), output_shape, record)

"""Rows: a grouped module restricted to some members of its group, or to one alone."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def rows_of(module: M, rows: Tensor | slice) -> M:
    """The same module with only some members of its group; the weights are views, or selections that pass gradients on.

    All parameters and buffers of a group have the group axis first (see `hmoevae.plan.Place`), so this holds for any
    network and any likelihood.

    Args:
        module: A grouped module.
        rows: Which members: indices, in any order and as often as wanted, or a slice.

    >>> from hmoevae.nn.grouped import GroupedLinear
    >>> layer = GroupedLinear(5, 2, 3)
    >>> torch.equal(rows_of(layer, slice(1, 3)).weight, layer.weight[1:3])
    True
    """
    some = type(module).__new__(type(module))  # `copy.copy` refuses torch's parametrized modules
    some.__dict__.update(module.__dict__)
    some._parameters = {name: None if p is None else p[rows] for name, p in module._parameters.items()}  # type: ignore[assignment]
    some._buffers = {name: None if b is None else b[rows] for name, b in module._buffers.items()}
    some._modules = {name: None if m is None else rows_of(m, rows) for name, m in module._modules.items()}
    return some


@torch.no_grad()
def alone(module: M, row: int) -> M:
    """A copy of one member, as a group of one that shares nothing with the rest.

    >>> from hmoevae.nn.grouped import GroupedLinear
    >>> alone(GroupedLinear(5, 2, 3), 4).weight.shape
    torch.Size([1, 3, 2])
    """
    some = rows_of(module, slice(row, row + 1))
    for part in some.modules():
        part._parameters = {
            name: None if p is None else nn.Parameter(p.clone()) for name, p in part._parameters.items()
        }
        part._buffers = {name: None if b is None else b.clone() for name, b in part._buffers.items()}
    return copy.deepcopy(some)

"""Rows: restrict a grouped module to some members of its group, or copy one member out of it."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def rows_of(module: M, rows: Tensor | slice) -> M:
    """The same module restricted to some members of its group. Gradients flow back to the weights of `module`.

    Every parameter and buffer of a group has the group axis first (see `hmoevae.plan.Place`), so this works for every
    network and every likelihood. A slice gives views of the weights, indices give copies.

    Args:
        module: A grouped module.
        rows: The members: a slice, or indices in any order, which may repeat.

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
def reorder_(module: nn.Module, index: Tensor) -> None:
    """Give row i the weights and buffers of row `index[i]`, in place.

    Args:
        module: A grouped module.
        index: A permutation of its rows.

    >>> from hmoevae.nn.grouped import GroupedLinear
    >>> layer = GroupedLinear(2, 3, 4)
    >>> first = layer.weight[0].clone()
    >>> reorder_(layer, torch.tensor([1, 0]))
    >>> torch.equal(layer.weight[1], first)
    True
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.copy_(tensor[index])


@torch.no_grad()
def alone(module: M, row: int) -> M:
    """Copy one member into a group of one that shares no memory with `module`.

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

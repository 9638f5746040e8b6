"""Gradients of a step that hold some rows of the weights: clipped, made dense, summed over processes."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def held(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The numbers that the gradients hold, each a view: of a sparse gradient, its values.

    >>> weight = nn.Parameter(torch.zeros(3, 1))
    >>> weight.grad = torch.sparse_coo_tensor([[1]], torch.tensor([[4.0]]), (3, 1), check_invariants=True)
    >>> held([weight])
    [tensor([[4.]])]
    """
    found: list[Tensor] = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and gradient.is_sparse:
            gradient = parameter.grad = gradient.coalesce()
            found.append(gradient._values())
        elif gradient is not None:
            found.append(gradient)
    return found


@torch.no_grad()
def clip_grad_norm_(
    parameters: Iterable[nn.Parameter],
    max_norm: float,
    *,
    cut: Iterable[nn.Parameter] = (),
    sum_of_cut: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """`torch.nn.utils.clip_grad_norm_`, for sparse gradients and cut parameters too.

    Args:
        parameters: The parameters.
        max_norm: The Euclidean norm to which the gradient is clipped.
        cut: Further parameters, of which this process holds some rows.
        sum_of_cut: Sums a number over the processes that hold the other rows; `None` if nothing is cut.

    >>> weight = nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> clip_grad_norm_([weight], 1.0)
    >>> weight.grad
    tensor([0.6000, 0.8000])
    """
    pieces, cut_pieces = held(parameters), held(cut)
    norm = nn.utils.get_total_norm(pieces)
    if sum_of_cut is not None:
        norm = (norm**2 + sum_of_cut(nn.utils.get_total_norm(cut_pieces).to(norm) ** 2)).sqrt()
    pieces = [nn.Parameter(values, requires_grad=False) for values in pieces + cut_pieces]
    for piece in pieces:
        piece.grad = piece.data
    nn.utils.clip_grads_with_norm_(pieces, max_norm, norm)


def no_rows(parameter: nn.Parameter) -> Tensor:
    """The gradient that holds no row.

    >>> no_rows(nn.Parameter(torch.zeros(3, 2)))._values().shape
    torch.Size([0, 2])
    """
    none = torch.empty(1, 0, dtype=torch.long, device=parameter.device)
    return _sparse(none, parameter.new_empty(0, *parameter.shape[1:]), parameter)


def with_rows(parameter: nn.Parameter) -> tuple[Float[Tensor, "group *axes"], Bool[Tensor, " group"]]:
    """A parameter's gradient as a dense tensor, and which rows it holds.

    >>> weight = nn.Parameter(torch.zeros(3, 1))
    >>> weight.grad = no_rows(weight)
    >>> with_rows(weight)[1]
    tensor([False, False, False])
    """
    gradient = parameter.grad
    assert gradient is not None
    if not gradient.is_sparse:
        return gradient, torch.ones(len(gradient), dtype=torch.bool, device=gradient.device)
    holds = torch.zeros(len(parameter), dtype=torch.bool, device=gradient.device)
    holds[gradient._indices()[0]] = True
    return gradient.to_dense(), holds


def of_rows(dense: Float[Tensor, "group *axes"], holds: Bool[Tensor, " group"]) -> Tensor:
    """The gradient that holds some rows of a dense one; the inverse of `with_rows`."""
    if holds.all():
        return dense
    rows = holds.nonzero().t()
    return _sparse(rows, dense[rows[0]], dense)


def _sparse(rows: Int[Tensor, "1 row"], values: Tensor, like: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(rows, values, like.shape, is_coalesced=True, check_invariants=False)


def make_dense_(parameters: Iterable[nn.Parameter]) -> None:
    """Give every parameter a dense gradient, for optimisers that take no other."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()

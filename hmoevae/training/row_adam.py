"""RowAdam: Adam that steps only the rows of a weight that a gradient holds, each row by a count of its own."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_STATE = "exp_avg", "exp_avg_sq", "step"


class RowAdam(torch.optim.Adam):
    """Adam (Kingma & Ba 2015) for gradients that hold some rows of a weight, as those of routed passes do.

    Where a gradient is sparse along its first axis, only its rows are read and written: weights, both moments, and a
    number of steps for each row, by which the bias of the row's moments is corrected. A row that is not in a gradient
    stays as it is, and its moments do not decay: it takes up where it left off. Dense gradients are those of all rows,
    and step as in `torch.optim.Adam(fused=True)`.

    Args:
        params: The parameters.
        lr: Learning rate.

    >>> weight = nn.Parameter(torch.ones(3, 2))
    >>> optimizer = RowAdam([weight], lr=0.5)
    >>> values = torch.tensor([[1.0, -1.0]])
    >>> weight.grad = torch.sparse_coo_tensor([[1]], values, (3, 2), check_invariants=True)
    >>> optimizer.step()
    >>> weight.detach(), optimizer.state[weight]["step"]
    (tensor([[1.0000, 1.0000],
            [0.5000, 1.5000],
            [1.0000, 1.0000]]), tensor([0., 1., 0.]))
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1e-3) -> None:
        super().__init__(params, lr=lr, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step."""
        groups = [[p for p in group["params"] if p.grad is not None and self._by_row(p)] for group in self.param_groups]
        gradients = [[p.grad for p in by_row] for by_row in groups]
        for by_row in groups:
            for parameter in by_row:
                parameter.grad = None
        try:
            loss = super().step(closure)
        finally:
            for by_row, grads in zip(groups, gradients, strict=True):
                for parameter, gradient in zip(by_row, grads, strict=True):
                    parameter.grad = gradient
        for group, by_row in zip(self.param_groups, groups, strict=True):
            if by_row:
                self._step_rows(group, by_row)
        return loss

    def _by_row(self, parameter: nn.Parameter) -> bool:
        """Whether a parameter's rows step by counts of their own."""
        steps = self.state[parameter].get("step")
        return (parameter.grad is not None and parameter.grad.is_sparse) or (steps is not None and steps.ndim > 0)

    def _step_rows(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        gradients: list[Tensor] = []
        lists: tuple[list[Tensor], ...] = ([], [], [], [])
        for parameter in parameters:
            state = self.state[parameter]
            steps = state.get("step", torch.zeros((), dtype=torch.float32, device=parameter.device))
            if steps.ndim == 0:
                state["step"] = steps.expand(len(parameter)).clone()
            if "exp_avg" not in state:
                state["exp_avg"], state["exp_avg_sq"] = _zeros_like(parameter), _zeros_like(parameter)
            assert parameter.grad is not None
            rows, values = rows_and_values(parameter.grad)
            state["step"][rows] += 1
            which = rows.tolist()
            for views, tensor in zip(lists, (parameter.detach(), *map(state.get, _STATE)), strict=True):
                views += tensor.unbind(0) if len(which) == len(tensor) else [tensor[row] for row in which]
            gradients += values.unbind(0)
        weights, means, squares, steps = lists
        if not weights:  # no gradient holds a row
            return
        beta1, beta2 = group["betas"]
        how = {name: group[name] for name in ("amsgrad", "lr", "weight_decay", "eps", "maximize")}
        # Not `torch.optim.adam.adam`, which counts the steps up one tensor after the other.
        torch._fused_adam_(weights, gradients, means, squares, [], steps, beta1=beta1, beta2=beta2, **how)


def _zeros_like(parameter: nn.Parameter) -> Tensor:
    """Zeros; on a CPU, rows that are never written take no memory, as the system hands out pages at the first write."""
    if parameter.device.type != "cpu" or not parameter.is_contiguous():
        return torch.zeros_like(parameter)
    kind = torch.empty(0, dtype=parameter.dtype).numpy().dtype
    return torch.from_numpy(np.zeros(tuple(parameter.shape), kind))


def rows_and_values(gradient: Tensor) -> tuple[Int[Tensor, " row"], Float[Tensor, "row *axes"]]:
    """The rows that a gradient holds, each once, and their values; all rows of a dense gradient.

    >>> rows_and_values(torch.sparse_coo_tensor([[2, 0, 2]], [1.0, 2.0, 3.0], (4,), check_invariants=True))
    (tensor([0, 2]), tensor([2., 4.]))
    """
    if not gradient.is_sparse:
        return torch.arange(len(gradient), device=gradient.device), gradient
    rows = gradient._indices()[0]
    if len(rows) > 1 and not bool((rows[1:] > rows[:-1]).all()):  # the sum of several gradients
        gradient = gradient.coalesce()
    return gradient._indices()[0], gradient._values()

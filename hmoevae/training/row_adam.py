"""RowAdam: Adam that steps only the rows of a weight that a gradient holds, each row by a count of its own."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from hmoevae.errors import ArgumentError, mismatch


class RowAdam(torch.optim.Adam):
    """Adam (Kingma & Ba 2015) for gradients that hold some rows of a weight, as those of routed passes do.

    Where a gradient is sparse along its first axis, only its rows are read and written: weights, both moments, and a
    number of steps for each row, by which the bias of the row's moments is corrected. A row that is not in a gradient
    stays as it is, also with `weight_decay`, and its moments do not decay: it takes up where it left off. Dense
    gradients are those of all rows, and step as in `torch.optim.Adam(fused=True)`; once rows have stepped apart, by the
    count of each.

    Args:
        params: The parameters; or groups of them, as in `torch.optim.Adam`, with its options `lr`, `betas`, `eps`,
            `weight_decay` and `maximize`.
        lr: Learning rate.

    Raises:
        ArgumentError: A group has another option of Adam, such as `amsgrad`.

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

    def __init__(self, params: ParamsT, lr: float = 1e-3) -> None:
        super().__init__(params, lr=lr, fused=True)
        self._step_supports_amp_scaling = False  # a GradScaler then scales the gradients itself

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step.

        Args:
            closure: Computes the gradients, and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[torch.device, torch.dtype], _Pieces] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    lists = alike.setdefault((parameter.device, parameter.dtype), ([], [], [], [], []))
                    for found, pieces in zip(lists, self._pieces(parameter, parameter.grad), strict=True):
                        found += pieces
            beta1, beta2 = group["betas"]
            how = {name: group[name] for name in ("lr", "weight_decay", "eps", "maximize")}
            for weights, gradients, means, squares, steps in alike.values():
                if weights:  # not `torch.optim.adam.adam`, which counts the steps up one tensor after the other
                    lists = weights, gradients, means, squares, [], steps
                    step = torch._fused_adam_  # pyright: ignore[reportPrivateImportUsage]
                    step(*lists, beta1=beta1, beta2=beta2, amsgrad=False, **how)
        return loss

    def _pieces(self, parameter: nn.Parameter, gradient: Tensor) -> "_Pieces":
        """Weights, gradients, both moments and counts, counted up: those of the whole parameter, or of its rows."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = _zeros_like(parameter), _zeros_like(parameter)
        weight, tensors = parameter.detach(), (state["exp_avg"], state["exp_avg_sq"])
        if not gradient.is_sparse and state["step"].ndim == 0:
            state["step"] += 1
            return [weight], [gradient], [tensors[0]], [tensors[1]], [state["step"]]
        if state["step"].ndim == 0:
            state["step"] = state["step"].expand(len(parameter)).clone()
        rows, values = rows_and_values(gradient)
        state["step"][rows] += 1
        which = rows.tolist()
        weights, means, squares = (_views(tensor, which) for tensor in (weight, *tensors))
        return weights, list(values.unbind(0)), means, squares, list(state["step"][rows].unbind(0))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with options of Adam of their own.

        Raises:
            ArgumentError: An option is none of this optimiser's.

        >>> optimizer = RowAdam([nn.Parameter(torch.ones(3))], lr=0.5)
        >>> optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "weight_decay": 0.1})
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.5, 0.5]
        """
        _check_options(param_group)
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a state, also one of `torch.optim.Adam`, whose counts may lie elsewhere."""
        super().__setstate__(state)
        for group in self.param_groups:
            _check_options(group)
            group["fused"] = True
            for parameter in group["params"]:
                if "step" in self.state.get(parameter, {}):
                    self.state[parameter]["step"] = self.state[parameter]["step"].to(parameter.device, torch.float32)


_Pieces = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


def _views(tensor: Tensor, rows: list[int]) -> list[Tensor]:
    """Views of some rows; where these are many, of all rows at once, which takes a fifth of the time of each."""
    if len(tensor) > 4 * len(rows):
        return [tensor[row] for row in rows]
    views = tensor.unbind(0)
    return [views[row] for row in rows]


def _check_options(group: dict[str, Any]) -> None:
    for name in ("amsgrad", "decoupled_weight_decay", "differentiable"):
        if group.get(name):
            raise ArgumentError(mismatch(f"RowAdam.{name}", "False", group[name]))


def _zeros_like(parameter: nn.Parameter) -> Tensor:
    """Zeros; on a CPU, rows that are never written take no memory, as the system hands out pages at the first write."""
    if parameter.device.type != "cpu" or not parameter.is_contiguous() or not parameter.numel():
        return torch.zeros_like(parameter)
    zeros = torch.from_numpy(np.zeros(parameter.nbytes, np.uint8))
    return zeros.view(parameter.dtype).view(parameter.shape)


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

"""The state of a run whose experts are cut over processes: its rows apart from the rest, and put together again."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hmoevae.nn.cut_experts import CutExperts
from hmoevae.nn.exchange import Peers

EXPERTS = "experts."
"""What the names of the experts' weights in a model begin with."""
State = dict[str, Any]
"""The state of a run, as `TrainingState.state_dict` returns it."""


def split(state: State, weights: dict[str, Tensor], model: nn.Module, optimizer: Optimizer, peers: Peers) -> State:
    """Take the rows that this process holds out of a run's state and weights, which then are those of all processes.

    Args:
        state: The state; changed in place.
        weights: The model's weights; changed in place.
        model: The model.
        optimizer: Its optimiser.
        peers: The processes that hold the other rows.

    Returns:
        The rows, by names which are the same in all processes.
    """
    rows = {f"model.{name}": weights.pop(name) for name in list(weights) if name.startswith(EXPERTS)}
    best = state["best"]
    if best is not None:
        best["weights"] = dict(best["weights"])
        for name in [name for name in best["weights"] if name.startswith(EXPERTS)]:
            rows[f"best.{name}"] = best["weights"].pop(name)
    of_optimizer: dict[str, Tensor] = {}
    kept = {index: dict(values) for index, values in state["run"]["optimizer"]["state"].items()}
    lengths = {index: len(parameter) for index, parameter in _experts(model, optimizer).items()}
    for index in lengths:
        for key, value in kept.get(index, {}).items():
            if isinstance(value, Tensor):
                of_optimizer[f"{index}.{key}"] = value
    for name, value in _alike(of_optimizer, lengths, peers).items():
        rows[f"optimizer.{name}"] = value
        index, _, key = name.partition(".")
        kept.get(int(index), {}).pop(key, None)
    state["run"]["optimizer"] = state["run"]["optimizer"] | {"state": kept}
    return rows


def _alike(values: dict[str, Tensor], lengths: dict[int, int], peers: Peers) -> dict[str, Tensor]:
    """The values that have rows in some process, with rows in every process.

    A process whose rows have not been in any gradient has no moments, which are zero; and a number of steps may be one
    for all rows here and one for each row there.
    """
    kinds = {name: (tuple(value.shape[1:]), value.dtype) for name, value in values.items() if value.ndim}
    known = {name: kind for theirs in peers.objects(kinds) for name, kind in theirs.items()}
    result: dict[str, Tensor] = {}
    for name, (shape, dtype) in sorted(known.items()):
        n, device = lengths[int(name.partition(".")[0])], _device_of(values)
        value = values.get(name, torch.zeros((), dtype=dtype, device=device))
        result[name] = value if value.ndim else value.expand(n, *shape).clone()
    return result


def _device_of(values: dict[str, Tensor]) -> torch.device:
    return next((value.device for value in values.values() if value.ndim), torch.device("cpu"))


def joined(state: State, weights: dict[str, Tensor], rows: dict[str, Tensor]) -> None:
    """Put rows back into the state and the weights that `split` took them from, in place."""
    for name, value in rows.items():
        whose, _, rest = name.partition(".")
        if whose == "model":
            weights[rest] = value
        elif whose == "best":
            state["best"]["weights"][rest] = value
        else:
            index, _, key = rest.partition(".")
            is_even = key == "step" and len(value) > 0 and bool((value == value[0]).all())
            state["run"]["optimizer"]["state"].setdefault(int(index), {})[key] = value[0] if is_even else value


def cut(state: State, weights: dict[str, Tensor], model: nn.Module, optimizer: Optimizer) -> None:
    """Keep this process's rows of the state and the weights of a run whose experts were not cut, in place."""
    experts = model.experts
    assert isinstance(experts, CutExperts)
    own: Callable[[str, Tensor], Tensor] = experts.own_rows
    best = {} if state["best"] is None else state["best"]["weights"]
    for held in (weights, best):
        for name in held:
            if name.startswith(EXPERTS):
                held[name] = own(name, held[name])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for index, parameter in _experts(model, optimizer).items():
        values = state["run"]["optimizer"]["state"].get(index, {})
        for key, value in values.items():
            if isinstance(value, Tensor) and value.ndim:
                values[key] = own(names[id(parameter)], value)


def _experts(model: nn.Module, optimizer: Optimizer) -> dict[int, nn.Parameter]:
    """The experts' parameters, by the index that an optimiser's state dict gives them."""
    own = {id(parameter) for parameter in model.experts.parameters()}  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    every = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {index: parameter for index, parameter in enumerate(every) if id(parameter) in own}

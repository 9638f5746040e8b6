"""The optimiser of a model that surgery has changed: its state is carried row by row, and training goes on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hmoevae.errors import ArgumentError, ArgumentTypeError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.surgery.moves import Move
from hmoevae.training.row_adam import RowAdam


def check_optimizer(optimizer: object, model: HMoEVAE) -> None:
    """Check that an optimiser steps parameters of a model and has a state that can be carried row by row.

    Raises:
        ArgumentTypeError: It is no optimiser.
        ArgumentError: It has none of the model's parameters, or its state is not one of moments and counts.
    """
    if not isinstance(optimizer, Optimizer):
        raise ArgumentTypeError(mismatch("optimizer", "a torch.optim.Optimizer or None", type(optimizer).__name__))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"] if id(parameter) in names]
    if not held:
        raise ArgumentError(mismatch("optimizer", "one of the model's parameters", "one of none of them"))
    for parameter in held:
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.ndim and key != "step" and value.shape != parameter.shape:
                expected = "a state of moments and numbers of steps, as that of Adam, RowAdam and SGD"
                got = f"{key} of shape {tuple(value.shape)} for {names[id(parameter)]}"
                raise ArgumentError(mismatch("optimizer", expected, got))


def move_optimizer(optimizer: Optimizer, model: HMoEVAE, new: HMoEVAE, moves: Sequence[Move]) -> None:
    """Make an optimiser of a model's parameters one of the new model's, in place.

    Moments are carried as the weights are; fresh rows have none. `RowAdam` counts the steps of each row from then on,
    where they differ; other optimisers count those of a parameter, and take the largest number.

    Args:
        optimizer: The optimiser.
        model: The old model.
        new: The new one.
        moves: The moves of the weights.
    """
    by_new: dict[int, list[Move]] = {}
    for move in moves:
        by_new.setdefault(id(move.new), []).append(move)
    group_of = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    ours = {id(parameter) for parameter in model.parameters()}
    joining: dict[int, list[nn.Parameter]] = {}
    states: dict[nn.Parameter, dict[str, Any]] = {}
    first = min(group_of[id(parameter)] for parameter in model.parameters() if id(parameter) in group_of)
    for parameter in new.parameters():
        own = by_new.get(id(parameter), [])
        groups = [group_of[id(move.old)] for move in own if id(move.old) in group_of]
        is_fresh = not any(id(move.old) in ours for move in own)
        if groups or is_fresh:  # the others are old ones that this optimiser does not step
            joining.setdefault(groups[0] if groups else first, []).append(parameter)
            states[parameter] = _state(optimizer, parameter, own)
    for i, group in enumerate(optimizer.param_groups):
        group["params"] = [p for p in group["params"] if id(p) not in ours] + joining.get(i, [])
    for parameter in model.parameters():
        optimizer.state.pop(parameter, None)
    optimizer.state.update({parameter: state for parameter, state in states.items() if state})


def _state(optimizer: Optimizer, parameter: nn.Parameter, moves: Sequence[Move]) -> dict[str, Any]:
    """The state of one new parameter, made of those of the old ones."""
    old = [(move, optimizer.state.get(move.old, {})) for move in moves]
    state: dict[str, Any] = {}
    for key in dict.fromkeys(key for _, own in old for key in own):
        having = [(move, own[key]) for move, own in old if own.get(key) is not None]
        if key != "step" and any(isinstance(value, Tensor) and value.ndim for _, value in having):
            # As fused Adam needs it: with the strides of the parameter.
            state[key] = torch.zeros_like(parameter, requires_grad=False)
            for move, value in having:
                move.carry(value, state[key], moments=True)
        elif having:
            state[key] = _steps(optimizer, parameter, having)
    return state


def _steps(optimizer: Optimizer, parameter: nn.Parameter, having: Sequence[tuple[Move, Any]]) -> Any:
    """The number of steps of a parameter, or of each of its rows."""
    by_row = torch.zeros(len(parameter), device="cpu")
    for move, value in having:
        counts = torch.as_tensor(value, dtype=by_row.dtype, device="cpu")
        counts = counts.expand(len(move.old)) if counts.ndim == 0 else counts
        by_row[move.new_rows] = counts[move.old_rows].amax() if move.change else counts[move.old_rows]
    like = having[0][1]
    if isinstance(optimizer, RowAdam) and bool((by_row != by_row[0]).any()):
        return by_row.to(like)
    largest = by_row.max()
    return largest.to(like) if isinstance(like, Tensor) else type(like)(largest.item())

"""Rebuild: the model of a tree to be, with its weights copied row by row, and the optimiser moved along.

Each parameter and buffer of a group of nodes has the group axis first, and the plan says which row is which node
(`hmoevae.plan.Place`). So a new model is a list of moves: which rows of a new tensor are which rows of an old one.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hmoevae.checks import check_number
from hmoevae.errors import ArgumentError, mismatch, unwarned
from hmoevae.model import HMoEVAE
from hmoevae.nn.draws import borrowed_random_state
from hmoevae.nn.gates import GateGroup
from hmoevae.nn.likelihoods import LikelihoodModule
from hmoevae.plan import PlannedNode
from hmoevae.spec import VAE
from hmoevae.surgery.moves import Move
from hmoevae.surgery.optimizer import check_optimizer, move_optimizer
from hmoevae.surgery.parts import Edge, Part, Source
from hmoevae.tree_module import check_generator


@torch.no_grad()
def rebuilt(
    model: HMoEVAE,
    part: Part,
    *,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    optimizer: Optimizer | None = None,
) -> HMoEVAE:
    """The model of a tree to be, with the shape, objective, type and device of `model`.

    Args:
        model: The model whose parts these are, most of them.
        part: The root of the tree to be.
        noise: Standard deviation of the noise on the rows of noisy parts, relative to that of the row's entries.
        generator: Source of the noise, on the model's device; torch's global one if `None`.
        optimizer: An optimiser of the model's parameters, which is moved to the new model's.

    Raises:
        ArgumentError: The noise is negative, or the optimiser's state cannot be moved; or gates would see something
            else than before, or cannot be given another number of children.
        SpecError: The tree does not fit.
    """
    check_number("noise", noise)
    check_generator(generator)
    if optimizer is not None:
        check_optimizer(optimizer, model)
    with borrowed_random_state(device=model.device), unwarned("input_shape"):
        shape = model.input_shape if model.table is None else model.table
        new = type(model)(part.tree, shape, objective=model.objective, missing=model.missing)
        new = new.to(model.device, model.dtype).train(model.training)
    parts = list(zip(part.walk(), new.plan.nodes, strict=True))
    _check_seen(new, parts)
    moves = [*_expert_moves(new, parts), *_gate_moves(new, parts), *_prior_moves(new, parts)]
    for move in moves:
        move.carry(move.old, move.new)
    learning = {id(move.new) for move in moves if move.old.requires_grad}
    for move in moves:
        move.new.requires_grad_(id(move.new) in learning)
    _shift_gates(new, parts)
    _set_priors(new, parts)
    if noise:
        _add_noise(new, parts, noise, generator)
    if optimizer is not None:
        move_optimizer(optimizer, model, new, moves)
    return new


Planned = Sequence[tuple[Part, PlannedNode]]
"""The parts, each with its node in the plan of the new model."""


# --- leaves ---------------------------------------------------------------------------------------------------------


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(chain(module.named_parameters(), module.named_buffers()))


def _expert_moves(new: HMoEVAE, parts: Planned) -> Iterator[Move]:
    """Rows of leaves, as many at a time as one group gives another."""
    rows: dict[tuple[int, HMoEVAE, int], list[tuple[int, int]]] = {}
    for part, node in parts:
        if isinstance(node.spec, VAE):
            source, place = _source(part), node.place
            rows.setdefault((place.group, source.model, source.node.place.group), []).append(
                (place.row, source.node.place.row)
            )
    for (group, model, old_group), pairs in rows.items():
        old = _tensors(model.experts.groups[old_group])
        for name, tensor in _tensors(new.experts.groups[group]).items():
            yield Move(tensor, old[name], [row for row, _ in pairs], [row for _, row in pairs])


def _source(part: Part) -> Source:
    assert part.source is not None  # every leaf has one, and every gate that is copied
    return part.source


# --- gates ----------------------------------------------------------------------------------------------------------


def _check_seen(new: HMoEVAE, parts: Planned) -> None:
    """Check that copied gates see what they have seen: what the first leaf's likelihood shows of samples."""
    now = new.experts.first.likelihood
    gates = [_source(part) for part, node in parts if _copies_gate(new, part, node)]
    for model, path in {source.model: source.node.path for source in gates}.items():
        if not _shows_alike(model.experts.first.likelihood, now, new):
            expected = "a first leaf whose likelihood shows the gates what they have seen so far"
            got = f"{now.support!r} of {type(now).__name__} for the gate that was at {path}"
            raise ArgumentError(mismatch("model", expected, got))


def _shows_alike(before: LikelihoodModule, now: LikelihoodModule, new: HMoEVAE) -> bool:
    """Whether networks see the same of samples, tried on small integers, which all kinds of values are coded from."""
    if before.shown_shape(new.input_shape) != now.shown_shape(new.input_shape):
        return False
    features = torch.arange(torch.Size(new.input_shape).numel(), device=new.device)
    probe = ((features.unsqueeze(1) + features.new_tensor([0, 1, 2])) % 3).to(new.dtype)
    return torch.equal(before.shown(probe).nan_to_num(), now.shown(probe).nan_to_num())


def _gate(model: HMoEVAE, node: PlannedNode) -> GateGroup:
    group = model.gates.groups[node.place.group]
    assert isinstance(group, GateGroup)
    return group


def _learns(model: HMoEVAE, node: PlannedNode) -> bool:
    """Whether a node is a mixture whose gate is a network."""
    return not isinstance(node.spec, VAE) and isinstance(model.gates.groups[node.place.group], GateGroup)


def _copies_gate(new: HMoEVAE, part: Part, node: PlannedNode) -> bool:
    """Whether a node is such a mixture, and its gate takes weights."""
    return _learns(new, node) and part.source is not None and not part.has_fresh_gate


def _gate_moves(new: HMoEVAE, parts: Planned) -> Iterator[Move]:
    """Rows of gates; a fresh gate's last layer starts at zero."""
    for part, node in parts:
        if not _learns(new, node):
            continue
        group, row = _gate(new, node), node.place.row
        if not _copies_gate(new, part, node):
            group.last.weight[row] = 0
            group.last.bias[row] = 0
            continue
        before = _source(part).node
        old = _tensors(_gate(_source(part).model, before))
        sizes = len(before.spec.children), len(node.spec.children)
        is_same = part.edges == tuple(Edge((i,)) for i in range(sizes[0]))
        for name, tensor in _tensors(group).items():
            change = None if is_same else _Remap(part.edges, sizes, old[name].shape[1:], tensor.shape[1:], name, before)
            yield Move(tensor, old[name], [row], [before.place.row], change)


class _Remap:
    """The rows of a gate's children, made of those of the old children along the axis that counts them.

    That axis is the one of `n_old` entries in the old tensor and `n_new` in the new one. The layer that is appended to
    networks of a user's own has two: the second counts the outputs of the network, which are moved in the same way.
    """

    def __init__(
        self,
        edges: Sequence[Edge],
        sizes: tuple[int, int],
        old: tuple[int, ...],
        new: tuple[int, ...],
        name: str,
        gate: PlannedNode,
    ) -> None:
        self.edges = edges
        self.times = [sum(i in edge.rows and not edge.is_new for edge in edges) for i in range(sizes[0])]
        self.axes = [axis for axis, pair in enumerate(zip(old, new, strict=True)) if pair == sizes]
        self.axes = self.axes if sizes[0] != sizes[1] else []
        other = [axis for axis, (a, b) in enumerate(zip(old, new, strict=True)) if a != b and axis not in self.axes]
        most = 2 if name == "head.weight" else 1
        if sizes[0] == sizes[1] or other or len(self.axes) > most:
            expected = f"a gate of which one axis of {name} counts the children, {sizes[0]} before and {sizes[1]} now"
            raise ArgumentError(mismatch(f"{gate.path}.gate", expected, f"rows of {tuple(old)} and {tuple(new)}"))

    def __call__(self, rows: Tensor, moments: bool) -> Tensor:
        if not self.axes:
            return rows
        outputs, *inputs = [axis + 1 for axis in self.axes]
        rows = torch.stack([self._child(rows, edge, outputs, moments=moments) for edge in self.edges], outputs)
        for axis in inputs:
            rows = torch.stack([self._input(rows, edge, axis) for edge in self.edges], axis)
        return rows

    def _child(self, rows: Tensor, edge: Edge, axis: int, *, moments: bool) -> Tensor:
        if edge.is_new and moments:
            return torch.zeros_like(rows.select(axis, 0))
        own = [rows.select(axis, i) for i in edge.rows]
        return own[0] if len(own) == 1 else torch.stack(own).mean(0)

    def _input(self, rows: Tensor, edge: Edge, axis: int) -> Tensor:
        """The weights of one output of the network: those of the old outputs it stands for, shared by equal ones."""
        if edge.is_new:
            return torch.zeros_like(rows.select(axis, 0))
        return torch.stack([rows.select(axis, i) / self.times[i] for i in edge.rows]).sum(0)


def _shift_gates(new: HMoEVAE, parts: Planned) -> None:
    for part, node in parts:
        if _copies_gate(new, part, node):
            for i, edge in enumerate(part.edges):
                if edge.shift:
                    _gate(new, node).last.bias[node.place.row, i] += edge.shift


# --- priors ---------------------------------------------------------------------------------------------------------


def _edges(parts: Planned) -> Iterator[tuple[int, Edge, Source, list[int]]]:
    """Every edge of the new tree that has a source: its index, the edge, its source, and the old edges."""
    for part, node in parts:
        if part.source is not None:
            first = part.source.node.child_edges.start
            for i, edge in zip(node.child_edges, part.edges, strict=True):
                yield i, edge, part.source, [first + row for row in edge.rows]


def _prior_moves(new: HMoEVAE, parts: Planned) -> Iterator[Move]:
    """Learned priors; that of a new child has neither moments nor steps."""
    for i, edge, source, rows in _edges(parts):
        old = source.model.prior.logits
        if new.prior.logits is not None and old is not None and not edge.is_new:
            yield Move(new.prior.logits, old, [i], rows, None if len(rows) == 1 else _mean)


def _mean(rows: Tensor, moments: bool) -> Tensor:  # noqa: ARG001
    return rows.mean(0, keepdim=True)


def _set_priors(new: HMoEVAE, parts: Planned) -> None:
    """Add up the learned priors of children that are made of several, and shift them."""
    for i, edge, source, rows in _edges(parts):
        logits, old = new.prior.logits, source.model.prior
        if logits is not None:
            if old.logits is not None and len(rows) > 1:
                logits[i] = old.logits[rows].logsumexp(0)
            logits[i] += edge.prior_shift


# --- noise ----------------------------------------------------------------------------------------------------------


def _add_noise(new: HMoEVAE, parts: Planned, noise: float, generator: torch.Generator | None) -> None:
    for part, node in parts:
        if part.is_noisy:
            for parameter in new.experts.groups[node.place.group].parameters():
                if parameter.requires_grad:
                    row = parameter[node.place.row]
                    how: dict[str, Any] = {"device": row.device, "dtype": row.dtype}
                    drawn = torch.randn(row.shape, generator=generator, **how)
                    row += noise * row.std(correction=0) * drawn

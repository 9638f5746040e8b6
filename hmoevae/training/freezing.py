"""Freezing: nodes of a tree that training leaves as they are."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from hmoevae.errors import ArgumentTypeError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.plan import PlannedNode
from hmoevae.spec import VAE


@contextmanager
def frozen(model: HMoEVAE, paths: Sequence[str]) -> Iterator[None]:
    """Keep nodes as they are, to the bit, while the rest of a model is trained: no gradient reaches them.

    Adam does not move what has no gradient. An optimiser with a weight decay would.

    Args:
        model: The model.
        paths: Paths of the nodes. Of a leaf, the expert is kept; of a mixture, its gate and its prior, but nothing
            below it.

    Raises:
        ArgumentError: The tree has no such node.
        ArgumentTypeError: `model` is no model, or `paths` is not a sequence of paths.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 2), input_shape=(4,))
    >>> x = torch.rand(64, 4)
    >>> before = model.predict_proba(x)
    >>> with frozen(model, ["root"]):
    ...     _ = hm.fit(model, x, hm.Training(epochs=1), progress=False)
    >>> torch.equal(model.predict_proba(x), before)
    True
    """
    if not isinstance(model, HMoEVAE):
        raise ArgumentTypeError(mismatch("model", "an HMoEVAE", type(model).__name__))
    if isinstance(paths, str) or not isinstance(paths, Sequence):
        raise ArgumentTypeError(mismatch("paths", "a list of paths", repr(paths)))
    plan = model.plan
    kept = [plan.node(path) for path in paths]
    rows: dict[nn.Parameter, list[int]] = {}
    for node in kept:
        for parameter, its in _rows_of(model, node):
            rows.setdefault(parameter, []).extend(its)
    switched: list[nn.Parameter] = []
    hooks = []
    for parameter, frozen_rows in rows.items():
        if not parameter.requires_grad:
            continue
        moves = torch.ones(len(parameter), dtype=torch.bool, device=parameter.device)
        moves[frozen_rows] = False
        if moves.any():
            hooks.append(parameter.register_hook(_Masked(moves)))
        else:
            parameter.requires_grad_(False)
            switched.append(parameter)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in switched:
            parameter.requires_grad_(True)


def _rows_of(model: HMoEVAE, node: PlannedNode) -> Iterable[tuple[nn.Parameter, Iterable[int]]]:
    """The parameters that hold a node, and its rows in them."""
    groups = model.experts.groups if isinstance(node.spec, VAE) else model.gates.groups
    for parameter in groups[node.place.group].parameters():
        yield parameter, (node.place.row,)
    if model.prior.logits is not None and not isinstance(node.spec, VAE):
        yield model.prior.logits, node.child_edges


class _Masked:
    """Takes the rows that do not move out of a gradient."""

    def __init__(self, moves: Bool[Tensor, " group"]) -> None:
        self.moves = moves

    def __call__(self, gradient: Tensor) -> Tensor:
        moves = self.moves.to(gradient.device)
        if not gradient.is_sparse:
            return gradient * moves.view(-1, *[1] * (gradient.ndim - 1))
        indices, values = gradient._indices(), gradient._values()
        kept = moves[indices[0]]
        how: dict[str, Any] = {"is_coalesced": gradient.is_coalesced(), "check_invariants": False}
        return torch.sparse_coo_tensor(indices[:, kept], values[kept], gradient.shape, **how)

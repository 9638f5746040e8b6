"""Carrying over: gates that do not keep their answers exactly learn from samples what the old ones said."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from hmoevae.model import HMoEVAE
from hmoevae.samples import Data
from hmoevae.surgery.parts import Part
from hmoevae.surgery.rebuild import rebuilt
from hmoevae.surgery.teaching import fit_gates, learns, samples_of


def carried(
    model: HMoEVAE,
    root: Part,
    x: Data | None,
    paths: Sequence[str],
    *,
    optimizer: Optimizer | None = None,
    also: Mapping[int, Sequence[int]] | None = None,
) -> HMoEVAE:
    """The model of a tree to be, with gates that learn from samples what the old ones said.

    Args:
        model: The old model.
        root: The tree to be, whose leaves are all of the old model.
        x: The samples; `None` to learn nothing.
        paths: The mixtures of the new tree whose gates learn.
        optimizer: An optimiser, which is moved along.
        also: For an old leaf that stays, the others whose probabilities it takes over.
    """
    new = rebuilt(model, root, optimizer=optimizer)
    if x is not None:
        samples = samples_of(model, x)
        old, also = model.predict_proba(samples), also or {}
        sources = [part.source.node.leaves.start for part in root.walk() if not part.children and part.source]
        target = torch.stack([old[:, [leaf, *also.get(leaf, ())]].sum(1) for leaf in sources], 1)
        teach(new, samples, target, paths)
    return new


def teach(new: HMoEVAE, samples: Tensor, target: Float[Tensor, "batch leaf"], paths: Sequence[str]) -> None:
    """Fit those gates among `paths` that learn."""
    paths = [path for path in paths if learns(new, new.plan.node(path))]
    if paths:
        fit_gates(new, samples, target, paths=paths)

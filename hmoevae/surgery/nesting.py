"""Nesting: a hierarchy over the leaves of a flat model becomes the tree of a new model."""

from dataclasses import replace

import torch

from hmoevae.errors import ArgumentError, ArgumentTypeError, mismatch
from hmoevae.hierarchies import Hierarchy
from hmoevae.model import HMoEVAE
from hmoevae.samples import Data
from hmoevae.spec import Mixture, Network
from hmoevae.surgery.parts import Edge, Part, parts_of
from hmoevae.surgery.rebuild import rebuilt
from hmoevae.surgery.teaching import fit_gates, samples_of


def nest(hierarchy: Hierarchy, x: Data, *, gate: Network | None = None, epochs: int = 20) -> HMoEVAE:
    """Make a model of a hierarchy: a binary tree with the leaves of its flat model, whose gates learn to agree with it.

    The leaves, and their priors, stay as they are. Every merge becomes a mixture of two, whose gate learns from `x`
    what the flat gate says (`fit_gates`), so that the leaves have nearly the probabilities that they had.

    Args:
        hierarchy: The hierarchy, of a model without inner levels.
        x: Samples, as `data` of `hmoevae.fit`, on which the gates learn.
        gate: The network of every gate; `None` takes that of the flat model.
        epochs: Number of passes over the samples.

    Returns:
        A new model on the same device; its leaves are in the order of a drawing of the hierarchy.

    Raises:
        ArgumentTypeError: `hierarchy` is no `Hierarchy`.
        ArgumentError: Its model has inner levels, or a gate that does not learn.
        SpecError: The tree is too deep.

    >>> import hmoevae as hm
    >>> x = torch.rand(50, 4)
    >>> flat = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(4,), objective="elbo")
    >>> deep = nest(hm.hierarchy(flat, x), x)
    >>> deep.plan.n_leaves, deep.plan.depth, [len(node.children) for _, node in deep.tree.walk() if node.children]
    (3, 2, [2, 2])
    """
    if not isinstance(hierarchy, Hierarchy):
        raise ArgumentTypeError(mismatch("hierarchy", "the result of hmoevae.hierarchy", type(hierarchy).__name__))
    model = hierarchy.model
    root = parts_of(model, model.plan.nodes[0])
    if model.plan.depth > 1 or not isinstance(root.spec, Mixture):
        expected = "one of a model without inner levels"
        raise ArgumentError(mismatch("hierarchy", expected, f"one of a tree of depth {model.plan.depth}"))
    prior = "learned" if root.spec.prior == "learned" else "leaves"  # with which all leaves have the same
    pair = replace(root.spec, gate=gate or root.spec.gate, prior=prior, children=root.spec.children[:2], name=None)
    parts: dict[tuple[int, ...], Part] = {(i,): part for i, part in enumerate(root.children)}
    for merge in hierarchy.merges:
        both = parts.pop(merge.left), parts.pop(merge.right)
        parts[merge.leaves] = Part(pair, None, both, (Edge(()), Edge(())))
    [(order, whole)] = parts.items()
    new = rebuilt(model, whole.named(root.spec.name))
    own = torch.tensor(order, device=model.device)
    with torch.no_grad():
        new.prior.set_shares_(model.prior.leaf_log_prob()[own].exp())
    samples = samples_of(new, x)
    fit_gates(new, samples, model.predict_proba(samples)[:, own.to(samples.device)], epochs=epochs)
    return new

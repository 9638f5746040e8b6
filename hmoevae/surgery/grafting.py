"""Grafting: put subtrees of other models into a trained tree, and levels into it or out of it."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from hmoevae.checks import is_number
from hmoevae.errors import ArgumentError, ArgumentTypeError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.plan import PlannedNode
from hmoevae.samples import BATCH_SIZE, Data
from hmoevae.spec import VAE, Mixture, Network
from hmoevae.surgery.carrying import carried, teach
from hmoevae.surgery.parts import (
    Edge,
    Part,
    Source,
    check_model,
    edited,
    inheriting,
    node_at,
    parts_of,
    siblings_at,
)
from hmoevae.surgery.rebuild import rebuilt
from hmoevae.surgery.teaching import samples_of

N_IMPORTANCE = 16
"""Number of draws from every leaf by which `graft` compares the new child with the others."""


def graft(
    model: HMoEVAE,
    path: str,
    donor: HMoEVAE,
    *,
    node: str = "root",
    beside: bool = False,
    share: float | None = None,
    x: Data | None = None,
    optimizer: Optimizer | None = None,
) -> HMoEVAE:
    """Put a subtree of another model into a tree: in place of a node, or as one more child of a mixture.

    In place of a node, it gets that node's samples, and its own gates divide them. As one more child, it is the last
    one. Its row at the gate is the mean of the other rows, with a bias such that it gets `share` of the samples where
    the gate does not tell the other children apart, and less where it does. With `x` the gate learns p(new child | x)
    by Bayes' rule from the bounds on p(x) of the new child and of the others (`HMoEVAE.score_samples`), with `share` as
    the prior, while the others keep their proportions.

    Args:
        model: A trained model, which is left as it is.
        path: Path of the node that is replaced; with `beside`, of the mixture that gets one more child.
        donor: The model that the subtree is copied from, with samples of the same shape or table, missing cells as in
            `model`, and weights of the same type. It is left as it is.
        node: Path of the subtree in the donor.
        beside: Add a child instead of replacing a node.
        share: Prior probability of the new child, with `beside`; 1/(n + 1) if `None`, beside n others. A prior that is
            not learned counts children or leaves instead.
        x: Samples, as `data` of `hmoevae.fit`, on which the gate learns, with `beside`.
        optimizer: As in `split`; rows of the donor have no moments.

    Returns:
        A new model on the device of `model`.

    Raises:
        ArgumentError: A path is not there, the models do not agree, or another argument cannot be used.

    >>> import hmoevae as hm
    >>> digits = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(4,))
    >>> letters = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=3), 2), input_shape=(4,))
    >>> [leaf.path for leaf in hm.surgery.graft(digits, "root", letters, beside=True).plan.leaves]
    ['root/0', 'root/1', 'root/2', 'root/3/0', 'root/3/1']
    >>> hm.surgery.graft(digits, "root/1", letters, node="root/0").plan.n_leaves
    3
    """
    check_model(model)
    check_model(donor, "donor")
    _check_agree(model, donor)
    here, grafted = node_at(model, path), parts_of(donor, node_at(donor, node, "node"))
    root = parts_of(model, model.plan.nodes[0])
    if not beside:
        for name, value in (("share", share), ("x", x)):
            if value is not None:
                raise ArgumentError(mismatch(name, "None without beside=True", type(value).__name__))
        return rebuilt(model, edited(root, path, lambda _: grafted), optimizer=optimizer)
    n = len(here.child_edges)
    if not n:
        raise ArgumentError(mismatch("path", "a mixture, with beside=True", f"{path!r}, a leaf"))
    if share is None:
        share = 1 / (n + 1)
    if not is_number(share, positive=True) or float(share) >= 1:
        raise ArgumentError(mismatch("share", "a number between 0 and 1", repr(share)))
    odds = math.log(share) - math.log1p(-share)
    edge = Edge(tuple(range(n)), math.log(n) + odds, odds, is_new=True)
    root = edited(root, path, lambda mixture: mixture.having([*mixture.branches, (edge, grafted)]))
    new = rebuilt(model, root, optimizer=optimizer)
    if x is not None:
        samples = samples_of(new, x, support=True)
        target = _with_graft(model.predict_proba(samples), new, samples, new.plan.node(path), odds)
        teach(new, samples, target, [path])
    return new


def _check_agree(model: HMoEVAE, donor: HMoEVAE) -> None:
    """Check that the samples and the weights of two models are of the same sort."""
    for name in ("input_shape", "missing", "dtype", "table"):
        one, other = getattr(model, name), getattr(donor, name)
        if one != other:
            raise ArgumentError(mismatch("donor", f"a model with {name} {one}, as the other's", other))


def _with_graft(
    old: Float[Tensor, "batch before"], new: HMoEVAE, samples: Tensor, mixture: PlannedNode, odds: float
) -> Float[Tensor, "batch leaf"]:
    """The old probabilities of the leaves, and those that the last child of a mixture takes from its siblings."""
    child = new.plan.nodes[new.plan.edge_child[mixture.child_edges[-1]]]
    before, after = slice(mixture.leaves.start, child.leaves.start), slice(child.leaves.start, child.leaves.stop)
    log_prior = new.prior.leaf_log_prob().detach()
    target = []
    for piece, probability in zip(samples.split(BATCH_SIZE), old.split(BATCH_SIZE), strict=True):
        with torch.no_grad():
            flat = new._features_first(piece.to(new.device, new.dtype))
            draws = new._same_draws()
            joint = new.experts.log_marginal(flat, N_IMPORTANCE, draws, shared_noise=True) + log_prior.unsqueeze(1)
        evidence = [joint[part].logsumexp(0) - log_prior[part].logsumexp(0) for part in (before, after)]
        taken = (evidence[1] - evidence[0] + odds).sigmoid().unsqueeze(1).to(probability)
        own = probability[:, before]
        each = own.sum(1, keepdim=True) * taken / len(child.leaves)
        parts = [probability[:, : before.start], own * (1 - taken), each.expand(-1, len(child.leaves))]
        target.append(torch.cat([*parts, probability[:, before.stop :]], 1))
    return torch.cat(target)


def wrap(
    model: HMoEVAE,
    paths: Sequence[str],
    *,
    name: str | None = None,
    gate: Network | None = None,
    x: Data | None = None,
    optimizer: Optimizer | None = None,
) -> HMoEVAE:
    """Put some of a mixture's children into a new mixture of their own, which takes the place of the first of them.

    The new gate is the parent's with the rows of these children, so q(child | group) is exactly what it was. The row of
    the group at the parent is the mean of theirs with a bias larger by log n, which is exact where the rows agree;
    learned priors of the group add up, and a uniform one counts the group as one child.

    Args:
        model: A trained model, which is left as it is.
        paths: Paths of two or more siblings, but not of all of them, in the order that they are to have.
        name: Name of the new mixture.
        gate: The network of its gate; `None` takes the parent's. Another one starts undecided.
        x: Samples, as `data` of `hmoevae.fit`, on which the gates that are not exact learn to keep the probabilities of
            the leaves (`fit_gates`).
        optimizer: As in `split`.

    Returns:
        A new model on the same device.

    Raises:
        ArgumentError: The paths are not those of siblings, or are those of all.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(4,))
    >>> wrapped = hm.surgery.wrap(model, ["root/0", "root/2"], name="group")
    >>> wrapped.plan.level_names(1), [leaf.path for leaf in wrapped.plan.leaves]
    (['group', '1'], ['root/0/0', 'root/0/1', 'root/1'])
    """
    check_model(model)
    if name is not None and not isinstance(name, str):
        raise ArgumentTypeError(mismatch("name", "a string or None", repr(name)))
    above, indices, nodes = siblings_at(model, paths)
    parent = model.tree.at(above)
    assert isinstance(parent, Mixture)
    if len(indices) == len(parent.children):
        raise ArgumentError(mismatch("paths", f"some of the {len(indices)} children of {above}", "all of them"))
    place = min(indices)
    spec = Mixture(
        children=tuple(node.spec for node in nodes),
        gate=parent.gate if gate is None else gate,
        prior=parent.prior,
        name=name,
    )

    def change(mixture: Part) -> Part:
        source = Source(model, model.plan.node(above))
        inner = tuple(Edge((i,)) for i in indices)
        children = tuple(mixture.children[i] for i in indices)
        group = Part(spec, source, children, inner, has_fresh_gate=spec.gate != parent.gate)
        branches: list[tuple[Edge, Part]] = []
        for i, branch in enumerate(mixture.branches):
            if i == place:
                branches.append((Edge(tuple(indices), math.log(len(indices))), group))
            elif i not in indices:
                branches.append(branch)
        return mixture.having(branches)

    root = edited(parts_of(model, model.plan.nodes[0]), above, change)
    inexact = [above, f"{above}/{place}"] if spec.gate != parent.gate else [above]
    return carried(model, root, x, inexact, optimizer=optimizer)


def unwrap(model: HMoEVAE, path: str, *, x: Data | None = None, optimizer: Optimizer | None = None) -> HMoEVAE:
    """Remove a mixture below the root: its children become children of its parent, in its place.

    Learned priors are multiplied, which is exact; others count children or leaves again. The gate of the mixture is
    lost: each of the n children gets the parent's row for the mixture with a bias smaller by log n, so that the
    sum of their probabilities is the mixture's, until the gate learns from `x` to tell them apart.

    Args:
        model: A trained model, which is left as it is.
        path: Path of the mixture.
        x: Samples, as `data` of `hmoevae.fit`, on which the parent's gate learns to keep the probabilities of
            the leaves (`fit_gates`).
        optimizer: As in `split`.

    Returns:
        A new model on the same device.

    Raises:
        ArgumentError: There is no mixture at `path`, or it is the root.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.Mixture.of(hm.VAE(latent_dim=2), 2), 2), input_shape=(4,))
    >>> [leaf.path for leaf in hm.surgery.unwrap(model, "root/1").plan.leaves]
    ['root/0/0', 'root/0/1', 'root/1', 'root/2']
    """
    check_model(model)
    node = node_at(model, path)
    if isinstance(node.spec, VAE) or node.path == "root":
        got = "the root" if node.path == "root" else "a leaf"
        raise ArgumentError(mismatch("path", "a mixture below the root", f"{path!r}, {got}"))
    above, _, last = path.rpartition("/")
    own, less = int(last), -math.log(len(node.child_edges))
    priors = model.prior.edge_log_prob().detach()[node.child_edges.start : node.child_edges.stop].tolist()

    def change(mixture: Part) -> Part:
        branches = mixture.branches
        group = branches[own][1]
        children = [
            (Edge((own,), less, log_prob), inheriting(child, group))
            for log_prob, child in zip(priors, group.children, strict=True)
        ]
        return mixture.having([*branches[:own], *children, *branches[own + 1 :]])

    root = edited(parts_of(model, model.plan.nodes[0]), above, change)
    return carried(model, root, x, [above], optimizer=optimizer)

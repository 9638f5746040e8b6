"""Cutting: split and merge, prune and rename the nodes of a trained tree."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.optim import Optimizer

from hmoevae.checks import check_integer
from hmoevae.errors import ArgumentError, ArgumentTypeError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.samples import Data
from hmoevae.spec import VAE, Mixture, Network
from hmoevae.surgery.carrying import carried
from hmoevae.surgery.parts import Edge, Part, check_model, edited, node_at, nodes_at, parts_of, siblings_at
from hmoevae.surgery.rebuild import rebuilt


def split(
    model: HMoEVAE,
    path: str,
    into: int = 2,
    *,
    beside: bool = False,
    gate: Network | None = None,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    optimizer: Optimizer | None = None,
) -> HMoEVAE:
    """Split a leaf into copies of it: a mixture of them in its place, or siblings beside it.

    Below, the new gate starts undecided, q = 1/k for each of the k copies, and so does the prior; so the bound of the
    model does not change, since log pi - log q of a copy is that of the leaf. The name goes to the mixture.

    Beside, the copies share the leaf's row of the gate, with a bias smaller by log k, and its learned prior; so the sum
    of their probabilities is that of the leaf. A prior that is not learned counts them: with a uniform one over n
    children, the share of the copies together grows from 1/n to k/(n + k - 1). A mixture above whose prior is
    `"leaves"` counts them in both cases.

    Args:
        model: A trained model, which is left as it is.
        path: Path of the leaf.
        into: Number of copies, k.
        beside: Put the copies into the leaf's parent instead of a new mixture.
        gate: The network of the new mixture's gate; `None` takes the parent's, or that of `Mixture` at the root.
        noise: Standard deviation of noise on the weights of all copies, relative to that of each row's entries. Without
            noise, copies part only by what they draw in training; revival takes 0.1.
        generator: Source of the noise, on the model's device; torch's global one if `None`.
        optimizer: An optimiser of the model's parameters, such as Adam. It becomes one of the new model's, in place:
            moments and numbers of steps go with the rows, and copies take those of the leaf.

    Returns:
        A new model on the same device.

    Raises:
        ArgumentError: There is no leaf at `path`, it has no parent to be split in, or another argument cannot be used.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(4,), objective="elbo")
    >>> x = torch.rand(5, 4)
    >>> below, beside = hm.surgery.split(model, "root/1"), hm.surgery.split(model, "root/1", beside=True)
    >>> [leaf.path for leaf in below.plan.leaves], beside.plan.n_leaves
    (['root/0', 'root/1/0', 'root/1/1', 'root/2'], 4)
    >>> for grown in (below, beside):
    ...     grown.predict_proba(x)[:, 1:3].sum(1).allclose(model.predict_proba(x)[:, 1])
    True
    True
    """
    check_model(model)
    check_integer("into", into, least=2)
    node = node_at(model, path)
    if not isinstance(node.spec, VAE):
        raise ArgumentError(mismatch("path", "a leaf", f"{path!r}, a mixture"))
    above = path.rpartition("/")[0]
    if beside and not above:
        raise ArgumentError(mismatch("beside", "False for the root, which has no parent", repr(beside)))
    if beside and gate is not None:
        raise ArgumentError(mismatch("gate", "None with beside=True, which makes no mixture", repr(gate)))
    parent: Any = model.tree.at(above) if above else None

    def below_it(leaf: Part) -> Part:
        fields: dict[str, Any] = {} if parent is None else {"gate": parent.gate, "prior": parent.prior}
        fields |= {} if gate is None else {"gate": gate}
        copies = (replace(leaf.named(None), is_noisy=True),) * int(into)
        spec = Mixture(children=tuple(copy.spec for copy in copies), name=leaf.spec.name, **fields)
        return Part(spec, None, copies, (Edge(()),) * len(copies))

    def beside_it(mixture: Part) -> Part:
        branches, i, less = mixture.branches, int(path.rpartition("/")[2]), -math.log(int(into))
        copy = Edge((i,), less, less), replace(branches[i][1], is_noisy=True)
        return mixture.having([*branches[:i], *[copy] * int(into), *branches[i + 1 :]])

    root = parts_of(model, model.plan.nodes[0])
    root = edited(root, above, beside_it) if beside else edited(root, path, below_it)
    return rebuilt(model, root, noise=noise, generator=generator, optimizer=optimizer)


def merge(
    model: HMoEVAE, paths: Sequence[str], *, x: Data | None = None, optimizer: Optimizer | None = None
) -> HMoEVAE:
    """Merge siblings into one: the first of them stays, and gets the samples of all.

    Its weights are those of the first path, so pass the best one first: weights of networks have no useful mean, as
    their hidden units are in no order. The gate's row of the merged child is the mean of their rows with a bias larger
    by log n, which gives it the sum of their probabilities where the rows agree; learned priors add up, others count
    children or leaves again. Where all children are merged, the child takes the place of the mixture.

    Args:
        model: A trained model, which is left as it is.
        paths: Paths of two or more siblings that are equal but for names, with all below them.
        x: Samples, as `data` of `hmoevae.fit`, on which the gate learns to give the sum of their probabilities
            (`fit_gates`).
        optimizer: As in `split`.

    Returns:
        A new model on the same device.

    Raises:
        ArgumentError: The paths are not those of equal siblings.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(4,))
    >>> hm.surgery.merge(model, ["root/0", "root/2"]).plan.n_leaves
    2
    """
    check_model(model)
    above, indices, nodes = siblings_at(model, paths)
    first, *others = nodes
    for node in others:
        if _unnamed(node.spec) != _unnamed(first.spec):
            expected = f"nodes that are equal but for names, as {first.path} ({first.spec.label})"
            raise ArgumentError(mismatch("paths", expected, f"{node.path} ({node.spec.label})"))

    def change(mixture: Part) -> Part:
        merged = Edge(tuple(indices), math.log(len(indices)))
        branches: list[tuple[Edge, Part]] = []
        for i, (edge, child) in enumerate(mixture.branches):
            if i == indices[0]:
                branches.append((merged, child))
            elif i not in indices:
                branches.append((edge, child))
        return mixture.having(branches)

    root = edited(parts_of(model, model.plan.nodes[0]), above, change)
    also = {here: [node.leaves[i] for node in others] for i, here in enumerate(first.leaves)}
    is_gone = len(indices) == len(model.tree.at(above).children)
    return carried(model, root, x, [] if is_gone else [above], optimizer=optimizer, also=also)


def _unnamed(node: Any) -> Any:
    """A record without the names in it."""
    if isinstance(node, Mixture):
        return replace(node, name=None, children=tuple(_unnamed(child) for child in node.children))
    return replace(node, name=None)


def prune(model: HMoEVAE, paths: Sequence[str], *, optimizer: Optimizer | None = None) -> HMoEVAE:
    """Remove nodes with all below them; the probabilities of the others are those of today, divided by their sum.

    So are learned priors; the others count children or leaves again. A mixture that is left with one child is replaced
    by it. It is exact, but for gates that are networks of your own: where the layer behind such a network has learned
    to mix its outputs, the removed output is missing from the others (`fit_gates` teaches the gate anew).

    Args:
        model: A trained model, which is left as it is.
        paths: Paths of the nodes.
        optimizer: As in `split`.

    Returns:
        A new model on the same device.

    Raises:
        ArgumentError: A path is not there, is repeated or the root's; or nothing would be left.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.Mixture.of(hm.VAE(latent_dim=2), 2), 3), input_shape=(4,))
    >>> [node.path for node in hm.surgery.prune(model, ["root/1", "root/2/0"]).plan.leaves]
    ['root/0/0', 'root/0/1', 'root/1']
    """
    check_model(model)
    removed = {node.path for node in nodes_at(model, paths)}

    def kept(part: Part, path: str) -> Part | None:
        if path in removed or not part.children:
            return None if path in removed else part
        below = [(edge, kept(child, f"{path}/{i}")) for i, (edge, child) in enumerate(part.branches)]
        branches = [(edge, child) for edge, child in below if child is not None]
        return part.having(branches) if branches else None

    root = kept(parts_of(model, model.plan.nodes[0]), "root")
    if root is None:
        raise ArgumentError(mismatch("paths", "nodes that leave at least one leaf", repr(paths)))
    return rebuilt(model, root, optimizer=optimizer)


def rename(model: HMoEVAE, names: Mapping[str, str | None], *, optimizer: Optimizer | None = None) -> HMoEVAE:
    """Give nodes other names; nothing else changes.

    Args:
        model: A model, which is left as it is.
        names: The new names, by path; `None` takes a name away.
        optimizer: As in `split`.

    Returns:
        A new model on the same device.

    Raises:
        ArgumentError: A path is not there.
        ArgumentTypeError: The names are no mapping, or a name is no string.

    >>> import hmoevae as hm
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 2), input_shape=(4,))
    >>> hm.surgery.rename(model, {"root/1": "sevens"}).plan.level_names(None)
    ['0', 'sevens']
    """
    check_model(model)
    if not isinstance(names, Mapping):
        raise ArgumentTypeError(mismatch("names", "names by path, such as {'root/0': 'ones'}", repr(names)))
    root = parts_of(model, model.plan.nodes[0])
    for path, name in names.items():
        node_at(model, path, "names")
        if name is not None and not isinstance(name, str):
            raise ArgumentTypeError(mismatch(f"names[{path!r}]", "a string or None", repr(name)))
        root = edited(root, path, lambda part, name=name: part.named(name))
    return rebuilt(model, root, optimizer=optimizer)

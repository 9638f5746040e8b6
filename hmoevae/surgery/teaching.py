"""Teaching gates: fit some gates of a model to given probabilities of its leaves, by cross-entropy.

Axes: `leaf` and `edge` as in `hmoevae.plan`; `row` counts the gates of a group that are fitted; `batch` counts samples.
"""

import copy
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from hmoevae.checks import check_integer, check_number
from hmoevae.errors import ArgumentError, ArgumentTypeError, DataError, ShapeError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.nn.gates import GateGroup
from hmoevae.plan import Plan, PlannedNode
from hmoevae.samples import BATCH_SIZE, Data
from hmoevae.surgery.parts import check_model, node_at

FIT_BATCH = 128
"""Samples of a step of `fit_gates`, at most."""
LEAST_STEPS = 16
"""Steps of an epoch of `fit_gates`, at least, unless there are fewer samples."""
ROUNDING = 1e-2
"""How far from one the probabilities of a sample may sum, which they are divided by: half precision rounds them."""


def samples_of(model: HMoEVAE, x: Data, *, support: bool = False) -> Float[Tensor, "batch *sample"]:
    """All samples of a data set, checked: for the gates of a model or, with `support`, for its leaves too."""
    return torch.cat(list(model._pieces(x, BATCH_SIZE, check=model.check_input if support else model._seen)))


def fit_gates(
    model: HMoEVAE,
    x: Data,
    leaf_prob: Float[Tensor, "batch leaf"],
    *,
    paths: Sequence[str] | None = None,
    epochs: int = 20,
    lr: float = 1e-2,
    seed: int = 0,
) -> float:
    """Fit gates to given probabilities of the leaves, in place; nothing else of the model changes.

    What is minimised is the cross-entropy, which is a sum over the mixtures m and their children c::

        - sum_l p(l|x) log q(l|x)  =  - sum_m sum_c p(m, c|x) log g_m(c|x)

    where p(m, c|x) is the probability of all leaves below c. So every gate learns by itself, from the samples that
    reach it (Jordan & Jacobs 1994, section 3, the M-step of the gates). Its network is trained by Adam in batches, with
    a learning rate that falls to zero.

    Args:
        model: The model, which is changed.
        x: Samples, as `data` of `hmoevae.fit`.
        leaf_prob: The probabilities p(l|x) that the gates are to give, a row for each sample.
        paths: The mixtures whose gates are fitted; `None` means all whose gate is a network.
        epochs: Number of passes over the samples.
        lr: Learning rate at the start.
        seed: Seed of the order of the samples.

    Returns:
        The mean over the samples of the divergence of the fitted gates' answers from those given, in nats: zero where
        they agree.

    Raises:
        ArgumentError: A path is not there, or leads to a node whose gate does not learn; a number is out of range.
        ShapeError: `leaf_prob` is not `(batch, leaf)`.
        DataError: `leaf_prob` is negative or not finite, or a row does not sum to one; or `x` cannot be modelled.

    >>> import hmoevae as hm
    >>> x = torch.cat([torch.zeros(50, 2), torch.ones(50, 2)])
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=1), 2), input_shape=(2,))
    >>> divergence = hm.surgery.fit_gates(model, x, torch.eye(2).repeat_interleave(50, 0))
    >>> divergence < 0.2, model.predict(x).bincount()
    (True, tensor([50, 50]))
    """
    check_model(model)
    check_integer("epochs", epochs)
    check_integer("seed", seed, least=0)
    check_number("lr", lr, positive=True)
    nodes = _chosen(model, paths)
    samples = samples_of(model, x)
    given = _checked(leaf_prob, len(samples), model.plan.n_leaves)
    by_group: dict[int, list[PlannedNode]] = {}
    for node in nodes:
        by_group.setdefault(node.place.group, []).append(node)
    total = 0.0
    for i, own in by_group.items():
        group = model.gates.groups[i]
        assert isinstance(group, GateGroup)
        total += _fit_group(model, group, own, samples, given, epochs=int(epochs), lr=float(lr), seed=int(seed))
    return total


def learns(model: HMoEVAE, node: PlannedNode) -> bool:
    """Whether a node is a mixture whose gate is a network."""
    return bool(node.child_edges) and isinstance(model.gates.groups[node.place.group], GateGroup)


def _chosen(model: HMoEVAE, paths: Sequence[str] | None) -> list[PlannedNode]:
    """The mixtures whose gates are fitted."""
    if paths is None:
        return [node for node in model.plan.mixtures if learns(model, node)]
    if not isinstance(paths, Sequence) or isinstance(paths, str):
        raise ArgumentTypeError(mismatch("paths", "a list of paths, such as ['root'], or None", repr(paths)))
    nodes = [node_at(model, path, f"paths[{i}]") for i, path in enumerate(dict.fromkeys(paths))]
    for i, node in enumerate(nodes):
        if not learns(model, node):
            raise ArgumentError(mismatch(f"paths[{i}]", "a mixture whose gate is a network", repr(node.path)))
    return nodes


def _checked(leaf_prob: object, n: int, n_leaves: int) -> Float[Tensor, "batch leaf"]:
    if not isinstance(leaf_prob, Tensor) or not leaf_prob.is_floating_point():
        got = leaf_prob.dtype if isinstance(leaf_prob, Tensor) else type(leaf_prob).__name__
        raise ArgumentTypeError(mismatch("leaf_prob", "a floating point tensor", got))
    if leaf_prob.shape != (n, n_leaves):
        raise ShapeError(mismatch("leaf_prob", f"(batch, leaf), ({n}, {n_leaves})", tuple(leaf_prob.shape)))
    sums = leaf_prob.detach().sum(1, keepdim=True)
    if not bool((leaf_prob >= 0).all()) or not bool(((sums - 1).abs() <= ROUNDING).all()):
        raise DataError(mismatch("leaf_prob", "probabilities, of which each row sums to one", "others"))
    return leaf_prob.detach() / sums


def _fit_group(
    model: HMoEVAE,
    group: GateGroup,
    nodes: Sequence[PlannedNode],
    samples: Float[Tensor, "batch *sample"],
    given: Float[Tensor, "batch leaf"],
    *,
    epochs: int,
    lr: float,
    seed: int,
) -> float:
    """Fit some gates of a group; the divergence that is left, summed over the gates."""
    rows = [node.place.row for node in nodes]
    some, dtype = _copied(group, rows), torch.promote_types(model.dtype, torch.float32)
    some.to(dtype)
    below = _below(model.plan, nodes).to(model.device, dtype)

    def batch(index: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            flat = model._features_first(samples[index].to(model.device, model.dtype))
            target = given[index.to(given.device)].to(model.device, dtype)
            return model._shown(flat).to(dtype), torch.einsum("bl,rcl->rcb", target, below)

    learning = [parameter for parameter in some.parameters() if parameter.requires_grad]
    if learning:
        generator = torch.Generator("cpu").manual_seed(seed)
        adam = torch.optim.Adam(learning, lr=lr)
        size = min(FIT_BATCH, -(-len(samples) // LEAST_STEPS))
        falling = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, epochs * -(-len(samples) // size))
        for index in _order(len(samples), epochs, size, generator):
            seen, target = batch(index.to(samples.device))
            with torch.enable_grad():
                loss = -(target * some(seen)).sum() / len(index)
                adam.zero_grad()
                loss.backward()
            adam.step()
            falling.step()
    left = 0.0
    with torch.no_grad():
        for index in torch.arange(len(samples), device=samples.device).split(BATCH_SIZE):
            seen, target = batch(index)
            arrived = target.sum(1, keepdim=True)
            left += (torch.xlogy(target, target) - torch.xlogy(target, arrived) - target * some(seen)).sum().item()
        for new, old in zip(some.parameters(), group.parameters(), strict=True):
            old[rows] = new.to(old)
    return left / len(samples)


def _order(n: int, epochs: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The samples of every step."""
    for _ in range(epochs):
        yield from torch.randperm(n, generator=generator, device="cpu").split(size)


def _copied(group: GateGroup, rows: list[int]) -> GateGroup:
    """A group of some of the gates, which shares no memory with the first one."""
    some = copy.deepcopy(group)
    for tensor in chain(some.parameters(), some.buffers()):
        tensor.data = tensor.data[rows]
    return some


def _below(plan: Plan, nodes: Sequence[PlannedNode]) -> Float[Tensor, "row child leaf"]:
    """One where a leaf is below a child of a mixture; the mixtures have equal numbers of children."""
    below = torch.zeros(len(nodes), len(nodes[0].child_edges), plan.n_leaves, device="cpu")
    for of_children, node in zip(below, nodes, strict=True):
        for of_child, edge in zip(of_children, node.child_edges, strict=True):
            leaves = plan.nodes[plan.edge_child[edge]].leaves
            of_child[leaves.start : leaves.stop] = 1
    return below

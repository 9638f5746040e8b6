"""Surgery: whether operations on random trees leave everything else as it was.

Question: of random operations on random trees, in how many are the weights of all nodes that the operation does not
touch equal to the bit, and are the exact properties of the operation kept: the bound of a split, the sum of the
probabilities of siblings, the proportions of the nodes that are left, and the probabilities within a new group?

    python benchmarks/surgery.py --operations 1000 --seed 0
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any
from unittest.mock import patch

import command
import torch
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import SpecError
from hmoevae.plan import PlannedNode
from hmoevae.spec import Tree

N_FEATURES = 3
GATES = (hm.MLP((5,)), hm.MLP(()), hm.MLP((4, 3), "tanh"))
PRIORS = ("uniform", "leaves", "learned")
IDENTITY = hm.Gaussian("learned", "identity")
LEAVES = (
    hm.VAE(2, hm.MLP((4,)), hm.MLP((4,)), hm.Gaussian(0.5, "identity")),
    hm.VAE(1, hm.MLP((4,)), hm.MLP(()), IDENTITY),
    hm.VAE(2, hm.LinearPosterior(), hm.MLP(()), IDENTITY),
)
ROUNDING = 1e-6
"""Largest difference of two numbers that are equal but for rounding; fixed priors are computed in single precision."""


# --- random models --------------------------------------------------------------------------------------------------


def random_tree(random: Random, depth: int = 3) -> Tree:
    """A tree of one to `depth` levels of gates; all leaves of some trees have exact posteriors, and gates too."""
    exact = random.random() < 0.25

    def node(height: int) -> Tree:
        if height == 0 or (height < depth and random.random() < 0.4):
            return LEAVES[-1] if exact else random.choice(LEAVES)
        gate = hm.PosteriorGate() if exact and random.random() < 0.5 else random.choice(GATES)
        children = tuple(node(height - 1) for _ in range(random.randint(2, 4)))
        return hm.Mixture(children=children, gate=gate, prior=random.choice(PRIORS))

    return node(depth)


def random_model(random: Random, prefix: str = "") -> hm.HMoEVAE:
    """A model in double precision with weights of its own, every node of which is named by its path."""
    torch.manual_seed(random.randrange(1 << 30))
    tree = random_tree(random, random.randint(1, 3))
    model = hm.HMoEVAE(tree, (N_FEATURES,), objective="elbo").double()
    if model.prior.logits is not None:
        torch.nn.init.normal_(model.prior.logits)
    return hm.surgery.rename(model, {path: prefix + path for path, _ in tree.walk()})


# --- what is compared -----------------------------------------------------------------------------------------------


def _prior(node: PlannedNode) -> str | None:
    return node.spec.prior if isinstance(node.spec, hm.Mixture) else None


def rows_of(model: hm.HMoEVAE, path: str) -> dict[str, Tensor]:
    """The weights of one node: its row of every parameter and buffer of its group and, of a mixture, its priors."""
    node = model.plan.node(path)
    groups: Any = model.gates.groups if node.child_edges else model.experts.groups
    group = groups[node.place.group]
    rows = {name: tensor[node.place.row] for name, tensor in group.state_dict().items()}
    if node.child_edges and model.prior.logits is not None and _prior(node) == "learned":
        rows["prior"] = model.prior.logits.detach()[node.child_edges.start : node.child_edges.stop]
    return rows


def untouched(old: hm.HMoEVAE, new: hm.HMoEVAE) -> Iterator[tuple[str, str]]:
    """The nodes of two models, whose nodes are named, that are the same: leaves, and mixtures of the same children."""
    by_name = {node.spec.name: node for node in old.plan.nodes}
    for node in new.plan.nodes:
        before = by_name.get(node.spec.name) if node.spec.name is not None else None
        if before is None or bool(before.child_edges) != bool(node.child_edges):
            continue
        if [child.name for child in before.spec.children] == [child.name for child in node.spec.children]:
            yield before.path, node.path


def are_equal(old: hm.HMoEVAE, new: hm.HMoEVAE) -> bool:
    """Whether those nodes have equal weights, to the bit."""
    for before, after in untouched(old, new):
        one, other = rows_of(old, before), rows_of(new, after)
        if one.keys() != other.keys() or not all(torch.equal(one[name], other[name]) for name in one):
            return False
    return True


@contextmanager
def same_noise() -> Iterator[None]:
    """Inside, every expert draws the same noise."""

    def noise(group: Any, x: Tensor, *_: object) -> Tensor:
        drawn = torch.randn(8, x.shape[-1], generator=torch.Generator().manual_seed(0), dtype=x.dtype)
        return drawn[: group.latent_dim].expand(group.n_experts, -1, -1)

    with patch("hmoevae.nn.experts.ExpertGroup.noise", noise):
        yield


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference."""
    return (one - other).abs().max().item()


def masses(model: hm.HMoEVAE, x: Tensor, paths: list[str]) -> Tensor:
    """The probabilities of nodes, a column each."""
    leaf = model.predict_proba(x)
    ranges = [model.plan.node(path).leaves for path in paths]
    return torch.stack([leaf[:, own.start : own.stop].sum(1) for own in ranges], 1)


def counts_leaves(model: hm.HMoEVAE) -> bool:
    """Whether the bound depends on the number of leaves, or gates do, by way of priors."""
    return any(_prior(mixture) == "leaves" for mixture in model.plan.mixtures) or model.gates.have_posteriors


# --- operations -----------------------------------------------------------------------------------------------------

Done = tuple[hm.HMoEVAE, hm.HMoEVAE, float]
"""The model operated on, the new one, and how far an exact property is from being kept; zero where there is none."""


def split_below(model: hm.HMoEVAE, x: Tensor, random: Random) -> Done | None:
    new = hm.surgery.split(model, random.choice(model.plan.leaves).path, random.randint(2, 4))
    if any(_prior(mixture) == "leaves" for mixture in model.plan.mixtures):
        return model, new, 0.0
    with same_noise():
        before, after = model.evaluate(x), new.evaluate(x)
    bounds = max(abs(before[name] - after[name]) for name in ("elbo", "expected", "marginal"))
    scores = apart(model.score_samples(x, n_importance=1), new.score_samples(x, n_importance=1))
    return model, new, max(bounds, scores if all(leaf.spec == LEAVES[-1] for leaf in model.plan.leaves) else 0.0)


def split_beside(model: hm.HMoEVAE, x: Tensor, random: Random) -> Done | None:
    leaf, into = random.choice(model.plan.leaves), random.randint(2, 4)
    new = hm.surgery.split(model, leaf.path, into, beside=True)
    if counts_leaves(model):
        return model, new, 0.0
    old, first = model.predict_proba(x), leaf.leaves.start
    q = new.predict_proba(x)
    joined = torch.cat([q[:, :first], q[:, first : first + into].sum(1, keepdim=True), q[:, first + into :]], 1)
    return model, new, apart(old, joined)


def prune(model: hm.HMoEVAE, x: Tensor, random: Random) -> Done | None:
    nodes = random.sample(model.plan.nodes[1:], random.randint(1, min(3, len(model.plan.nodes) - 1)))
    gone = {leaf for node in nodes for leaf in node.leaves}
    left = [i for i in range(model.plan.n_leaves) if i not in gone]
    if not left:
        return None
    new = hm.surgery.prune(model, [node.path for node in nodes])
    if model.gates.have_posteriors:
        return model, new, 0.0
    edges = dict(zip(model.plan.edge_child, _edge_prob(model, x).t(), strict=True))
    expected = []
    for leaf in left:  # each gate renormalises over its children that are left
        product = torch.ones(len(x), dtype=x.dtype)
        for edge in model.plan.leaves[leaf].edges:
            mixture = model.plan.mixtures[model.plan.edge_mixture[edge]]
            siblings = [model.plan.edge_child[e] for e in mixture.child_edges]
            alive = [child for child in siblings if not set(model.plan.nodes[child].leaves) <= gone]
            product = product * edges[model.plan.edge_child[edge]] / sum(edges[child] for child in alive)
        expected.append(product)
    return model, new, apart(new.predict_proba(x), torch.stack(expected, 1))


def _edge_prob(model: hm.HMoEVAE, x: Tensor) -> Tensor:
    """Every gate's answers, whatever the probability of its mixture."""
    with torch.no_grad():
        return model(x).edge_log_prob.exp()


def merge(model: hm.HMoEVAE, x: Tensor, random: Random) -> Done | None:
    """Siblings that are equal; copies of one leaf, where there are none, which is the exact case."""
    leaf = random.choice(model.plan.leaves)
    copied = hm.surgery.split(model, leaf.path, 2, beside=True)
    above, _, last = leaf.path.rpartition("/")
    new = hm.surgery.merge(copied, [f"{above}/{int(last) + 1}", leaf.path])
    return copied, new, apart(new.predict_proba(x), model.predict_proba(x))


def wrap(model: hm.HMoEVAE, x: Tensor, random: Random) -> Done | None:
    mixtures = [mixture for mixture in model.plan.mixtures if len(mixture.child_edges) > 2]
    if not mixtures:
        return None
    mixture = random.choice(mixtures)
    n = len(mixture.child_edges)
    chosen = sorted(random.sample(range(n), random.randint(2, n - 1)))
    new = hm.surgery.wrap(model, [f"{mixture.path}/{i}" for i in chosen])
    if model.gates.have_posteriors:
        return model, new, 0.0
    before = _edge_prob(model, x)[:, [mixture.child_edges[i] for i in chosen]]
    group = new.plan.node(f"{mixture.path}/{chosen[0]}")
    after = _edge_prob(new, x)[:, group.child_edges.start : group.child_edges.stop]
    return model, new, apart(before / before.sum(1, keepdim=True), after)


def unwrap(model: hm.HMoEVAE, x: Tensor, random: Random) -> Done | None:
    below = [mixture for mixture in model.plan.mixtures if mixture.depth > 0]
    if not below:
        return None
    mixture = random.choice(below)
    new = hm.surgery.unwrap(model, mixture.path)
    if model.gates.have_posteriors:
        return model, new, 0.0
    above, _, last = mixture.path.rpartition("/")
    children = [f"{above}/{int(last) + i}" for i in range(len(mixture.child_edges))]
    return model, new, apart(masses(model, x, [mixture.path]).sum(1), masses(new, x, children).sum(1))


def graft(model: hm.HMoEVAE, x: Tensor, random: Random) -> Done | None:
    donor = random_model(random, prefix="donor ")
    beside = random.random() < 0.5
    path = random.choice(model.plan.mixtures if beside else model.plan.nodes).path
    node = random.choice(donor.plan.nodes).path
    try:
        new = hm.surgery.graft(model, path, donor, node=node, beside=beside)
    except SpecError:  # a gate that is a posterior above leaves without a density
        return None
    where = f"{path}/{len(model.plan.node(path).child_edges)}" if beside else path
    there = new.plan.node(where)
    kept = are_equal(donor, new)
    if model.gates.have_posteriors or donor.gates.have_posteriors:
        return model, new, 0.0 if kept else 1.0
    within = [donor.predict_proba(x)[:, i] for i in donor.plan.node(node).leaves]
    after = new.predict_proba(x)[:, there.leaves.start : there.leaves.stop]
    before = torch.stack(within, 1)
    different = apart(before / before.sum(1, keepdim=True), after / after.sum(1, keepdim=True))
    return model, new, different if kept else 1.0


OPERATIONS: dict[str, Callable[[hm.HMoEVAE, Tensor, Random], Done | None]] = {
    "split below": split_below,
    "split beside": split_beside,
    "merge": merge,
    "prune": prune,
    "graft": graft,
    "wrap": wrap,
    "unwrap": unwrap,
}


def operations(n: int, seed: int) -> dict[str, Any]:
    """Do random operations; how many there were of each sort, kept all else to the bit, and kept their property."""
    random = Random(seed)
    done: Counter[str] = Counter()
    equal: Counter[str] = Counter()
    exact: Counter[str] = Counter()
    largest = 0.0
    while done.total() < n:
        model = random_model(random)
        x = torch.randn(7, N_FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        name = random.choice(list(OPERATIONS))
        found = OPERATIONS[name](model, x, random)
        if found is None:
            continue
        operated, new, different = found
        is_left = all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        done[name] += 1
        equal[name] += is_left and are_equal(operated, new)
        exact[name] += different < ROUNDING
        largest = max(largest, different)
    return {
        "operations": done.total(),
        "untouched_equal": equal.total(),
        "exact": exact.total(),
        "largest_difference": largest,
        "each": {name: [done[name], equal[name], exact[name]] for name in OPERATIONS},
    }


def main(argv: list[str] | None = None) -> None:
    parser = command.parser(__doc__, has_data_root=False, devices=["cpu"])
    parser.add_argument("--operations", type=int, default=1000, help="number of operations")
    parser.add_argument("--seed", type=int, default=0, help="of the trees and the operations")
    args = parser.parse_args(argv)
    command.check(parser, args, "operations")
    torch.set_num_threads(args.threads)
    print(json.dumps(operations(args.operations, args.seed)))


if __name__ == "__main__":
    main()

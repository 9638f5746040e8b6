"""The plan: a tree compiled once into flat, immutable tables, so that nothing recurses over nodes at run time.

These axes are used throughout the package: `leaf` counts the leaves and `mixture` the mixtures, both depth first;
`edge` counts the (mixture, child) edges in the order of the mixtures, the edges of one mixture side by side.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from hmoevae.checks import is_integer
from hmoevae.errors import ArgumentError, mismatch
from hmoevae.spec import VAE, Balance, Mixture, PosteriorGate, Tree

S = TypeVar("S", VAE, Mixture)


@dataclass(frozen=True, slots=True)
class Group(Generic[S]):
    """Equal nodes that run as one batched network.

    Attributes:
        spec: The first member, as a record; the networks of all members equal its networks.
        members: Indices of the members among the leaves (experts) or the mixtures (gates), ascending.

    >>> compile_tree(Mixture.of(VAE(), 3)).expert_groups == (Group(VAE(), members=(0, 1, 2)),)
    True
    """

    spec: S
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a node's weights: row `row` of every parameter and buffer of group `group` *is* the node.

    Attributes:
        group: Index of the group, among the expert groups for a leaf and among the gate groups for a mixture.
        row: Index on the group axis, which is the first axis of every parameter and buffer of the group.

    >>> compile_tree(Mixture((VAE(2), VAE(3), VAE(2)))).leaves[2].place == Place(group=0, row=1)
    True
    """

    group: int
    row: int


@dataclass(frozen=True, slots=True)
class PlannedNode:
    """One node of the tree with its indices in the tables.

    Attributes:
        path: Its path, such as `"root/3/1"`.
        spec: The node's record.
        edges: The edges from the root to this node; empty at the root.
        leaves: The leaves at or below this node, as a range of leaf indices.
        index: Its index in the plan's `nodes`.
        child_edges: The edges to its children; empty at a leaf.
        place: The place of its weights.

    >>> root, leaf, *_ = compile_tree(Mixture.of(VAE(), 3)).nodes
    >>> leaf.path, leaf.edges, leaf.leaves, leaf.index, leaf.place
    ('root/0', (0,), range(0, 1), 1, Place(group=0, row=0))
    >>> root.child_edges, root.depth, leaf.depth, isinstance(root, PlannedNode)
    (range(0, 3), 0, 1, True)
    """

    path: str
    spec: Tree
    edges: tuple[int, ...]
    leaves: range
    index: int
    child_edges: range
    place: Place

    @property
    def depth(self) -> int:
        """Number of gates above this node."""
        return len(self.edges)


@dataclass(frozen=True, slots=True)
class Plan:
    """A tree compiled: orders, paths, edges and groups.

    Attributes:
        tree: The tree.
        nodes: Every node, depth first.
        leaves: The leaves among `nodes`, in the order of every `leaf` axis.
        mixtures: The mixtures among `nodes`, in the order of every `mixture` axis.
        edge_mixture: The mixture at the upper end of each edge.
        edge_child: The node at the lower end of each edge, as an index into `nodes`.
        balances: The balance of each mixture, its own or an inherited one; of weight zero where a `PosteriorGate`
            cannot learn from it.
        expert_groups: Leaves with equal specs (names aside).
        gate_groups: Mixtures with equal gate networks and numbers of children.

    >>> plan = compile_tree(Mixture(children=(VAE(), Mixture.of(VAE(), 2))))
    >>> isinstance(plan, Plan), plan.n_leaves, plan.n_edges, plan.depth
    (True, 3, 4, 2)
    >>> plan.node("root/1").leaves, [node.path for node in plan.level(1)]
    (range(1, 3), ['root/0', 'root/1'])
    >>> plan
    <Plan of 3 leaves and 2 mixtures, depth 2>
    """

    tree: Tree
    nodes: tuple[PlannedNode, ...]
    leaves: tuple[PlannedNode, ...]
    mixtures: tuple[PlannedNode, ...]
    edge_mixture: tuple[int, ...]
    edge_child: tuple[int, ...]
    balances: tuple[Balance, ...]
    expert_groups: tuple[Group[VAE], ...]
    gate_groups: tuple[Group[Mixture], ...]

    def __repr__(self) -> str:
        """The sizes, without the tables."""
        n_mixtures = len(self.mixtures)
        leaves = "1 leaf" if self.n_leaves == 1 else f"{self.n_leaves} leaves"
        return f"<Plan of {leaves} and {n_mixtures} mixture{'' if n_mixtures == 1 else 's'}, depth {self.depth}>"

    @property
    def n_leaves(self) -> int:
        """Number of leaves."""
        return len(self.leaves)

    @property
    def n_edges(self) -> int:
        """Number of edges, which is the number of nodes other than the root."""
        return len(self.edge_child)

    @property
    def depth(self) -> int:
        """The largest number of gates on a path."""
        return max(leaf.depth for leaf in self.leaves)

    def node(self, path: str) -> PlannedNode:
        """The node at `path`.

        Raises:
            ArgumentError: The tree has no such node.
        """
        for node in self.nodes:
            if node.path == path:
                return node
        self.tree.at(path)  # raises the error for a path that is not there
        raise ArgumentError(mismatch("path", "a path in its plain form, such as 'root/3'", repr(path)))

    def level(self, level: int | None) -> tuple[PlannedNode, ...]:
        """The nodes that partition the data at a depth: those `level` gates down, and any leaf above them.

        Args:
            level: 0 is the root, 1 its children, and so on; `None` means the leaves.

        Raises:
            ArgumentError: `level` is negative or deeper than the tree.
        """
        if level is None:
            return self.leaves
        if not is_integer(level, least=0) or level > self.depth:
            raise ArgumentError(mismatch("level", f"an integer from 0 to the tree's depth {self.depth}", level))
        return tuple(n for n in self.nodes if n.depth == level or (n.depth < level and isinstance(n.spec, VAE)))

    @property
    def names(self) -> dict[str, str]:
        """The names of all nodes in pictures and tables, by path: the node's name, or its path below the root.

        A name that several nodes have is followed by the path.

        >>> compile_tree(Mixture(children=(VAE(), Mixture.of(VAE(name="style"), 2, name="digit")))).names
        {'root': 'root', 'root/0': '0', 'root/1': 'digit', 'root/1/0': 'style (1/0)', 'root/1/1': 'style (1/1)'}
        """
        paths = {node.path: node.path.removeprefix("root/") for node in self.nodes}
        names = {node.path: node.spec.name or paths[node.path] for node in self.nodes}
        times = Counter(names.values())
        return {
            path: name if times[name] == 1 or name == paths[path] else f"{name} ({paths[path]})"
            for path, name in names.items()
        }

    def level_names(self, level: int | None) -> list[str]:
        """The names of the nodes of a level, in the order of `level`: the names of the clusters of `predict`.

        Args:
            level: As in `level`.

        Raises:
            ArgumentError: `level` is negative or deeper than the tree.

        >>> plan = compile_tree(Mixture(children=(VAE(), Mixture.of(VAE(), 2, name="two styles"))))
        >>> plan.level_names(1), plan.level_names(None)
        (['0', 'two styles'], ['0', '1/0', '1/1'])
        """
        names = self.names
        return [names[node.path] for node in self.level(level)]


def are_ascending(levels: object) -> bool:
    """Whether `levels` is a sequence of ascending integers from 1 on, which may be empty.

    >>> are_ascending((1, 3)), are_ascending(range(0)), are_ascending((1, 1)), are_ascending(1)
    (True, True, False, False)
    """
    if not isinstance(levels, Sequence) or not all(map(is_integer, levels)):
        return False
    return all(a < b for a, b in itertools.pairwise((0, *levels)))


def compile_tree(tree: Tree) -> Plan:
    """Compile a tree to a plan.

    >>> plan = compile_tree(Mixture(children=(VAE(), Mixture.of(VAE(), 2))))
    >>> [leaf.path for leaf in plan.leaves]
    ['root/0', 'root/1/0', 'root/1/1']
    >>> [leaf.edges for leaf in plan.leaves]
    [(0,), (1, 2), (1, 3)]
    >>> [group.members for group in plan.expert_groups], [group.members for group in plan.gate_groups]
    ([(0, 1, 2)], [(0, 1)])
    """
    walked = list(tree.walk())
    position = {path: i for i, (path, _) in enumerate(walked)}
    edges: dict[str, tuple[int, ...]] = {"root": ()}
    balance: dict[str, Balance] = {}
    child_edges: dict[str, range] = {}
    edge_mixture: list[int] = []
    edge_child: list[int] = []
    n_mixtures = 0
    for path, node in walked:
        if not isinstance(node, Mixture):
            continue
        inherited = balance.get(path.rpartition("/")[0], Balance())
        balance[path] = node.balance if node.balance is not None else inherited
        child_edges[path] = range(len(edge_child), len(edge_child) + len(node.children))
        for i, edge in enumerate(child_edges[path]):
            child = f"{path}/{i}"
            edges[child] = (*edges[path], edge)
            edge_child.append(position[child])
            edge_mixture.append(n_mixtures)
        n_mixtures += 1

    leaf_specs = [node for _, node in walked if isinstance(node, VAE)]
    expert_groups = _group(leaf_specs, lambda leaf: replace(leaf, name=None))
    gate_specs = [node for _, node in walked if isinstance(node, Mixture)]
    gate_groups = _group(gate_specs, lambda mixture: (mixture.gate, len(mixture.children)))
    leaf_places, gate_places = iter(_places(expert_groups)), iter(_places(gate_groups))

    nodes: list[PlannedNode] = []
    n_leaves = 0
    for index, (path, node) in enumerate(walked):
        below = range(n_leaves, n_leaves + node.n_leaves)
        place = next(leaf_places if isinstance(node, VAE) else gate_places)
        nodes.append(PlannedNode(path, node, edges[path], below, index, child_edges.get(path, range(0)), place))
        n_leaves += isinstance(node, VAE)
    mixtures = tuple(node for node in nodes if isinstance(node.spec, Mixture))
    return Plan(
        tree=tree,
        nodes=tuple(nodes),
        leaves=tuple(node for node in nodes if isinstance(node.spec, VAE)),
        mixtures=mixtures,
        edge_mixture=tuple(edge_mixture),
        edge_child=tuple(edge_child),
        balances=tuple(_own_balance(node.spec, balance[node.path]) for node in mixtures),
        expert_groups=expert_groups,
        gate_groups=gate_groups,
    )


def _own_balance(mixture: Tree, balance: Balance) -> Balance:
    """The balance that a mixture has; those below it inherit `balance`."""
    computed = isinstance(mixture, Mixture) and isinstance(mixture.gate, PosteriorGate)
    return replace(balance, weight=0.0) if computed else balance


def _places(groups: Iterable[Group[S]]) -> list[Place]:
    """The places of the members of all groups, in the order of the members' indices."""
    by_member = {member: Place(g, row) for g, group in enumerate(groups) for row, member in enumerate(group.members)}
    return [by_member[member] for member in sorted(by_member)]


def _group(specs: Iterable[S], key: Callable[[S], Hashable]) -> tuple[Group[S], ...]:
    """Group the specs by key; groups and members are in order of appearance."""
    found: dict[Hashable, list[tuple[int, S]]] = {}
    for i, spec in enumerate(specs):
        found.setdefault(key(spec), []).append((i, spec))
    return tuple(Group(members[0][1], tuple(i for i, _ in members)) for members in found.values())

"""Parts: a tree to be, in which every node says which node of a model its weights come from.

An operation edits parts, which are small immutable records, and `hmoevae.surgery.rebuild` makes the model of them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from hmoevae.errors import ArgumentError, ArgumentTypeError, mismatch
from hmoevae.model import HMoEVAE
from hmoevae.plan import PlannedNode
from hmoevae.spec import Mixture, Tree


@dataclass(frozen=True, slots=True)
class Edge:
    """A child of a mixture to be, as its gate and its prior see it.

    Attributes:
        rows: The children of the old mixture whose rows it takes: their mean, at the gate's last layer, and the sum of
            their learned priors.
        shift: Added to the bias of the gate's row, in nats.
        prior_shift: Added to the logit of the learned prior, in nats.
        is_new: Whether this is a child that the old mixture did not have, so that its row has no moments.
    """

    rows: tuple[int, ...]
    shift: float = 0.0
    prior_shift: float = 0.0
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """A node of a model."""

    model: HMoEVAE
    node: PlannedNode


@dataclass(frozen=True, slots=True)
class Part:
    """A node of a tree to be.

    Attributes:
        spec: Its record; the children of a mixture are those of `children`.
        source: The node whose weights it takes; `None` for a mixture whose gate and prior are fresh.
        children: The nodes below.
        edges: One for each child, which a mixture without a source does not read.
        is_noisy: Whether noise is added to its weights.
        has_fresh_gate: Whether its gate takes no weights: it gives all children the same probability.
    """

    spec: Tree
    source: Source | None
    children: "tuple[Part, ...]" = ()
    edges: tuple[Edge, ...] = ()
    is_noisy: bool = False
    has_fresh_gate: bool = False

    @property
    def tree(self) -> Tree:
        """The record of this node with those below it."""
        if not isinstance(self.spec, Mixture):
            return self.spec
        return replace(self.spec, children=tuple(child.tree for child in self.children))

    def walk(self) -> "Iterator[Part]":
        """This part and all below it, depth first."""
        yield self
        for child in self.children:
            yield from child.walk()

    def named(self, name: str | None) -> "Part":
        """The same part under another name."""
        return replace(self, spec=replace(self.spec, name=name))

    def having(self, branches: "Sequence[tuple[Edge, Part]]") -> "Part":
        """The same mixture with other children; a single child takes its place."""
        if len(branches) == 1:
            return inheriting(branches[0][1], self)
        edges, children = zip(*branches, strict=True)
        return replace(self, edges=edges, children=children)

    @property
    def branches(self) -> "list[tuple[Edge, Part]]":
        """The children with their edges."""
        return list(zip(self.edges, self.children, strict=True))


def parts_of(model: HMoEVAE, node: PlannedNode) -> Part:
    """The subtree at a node, as it is."""
    plan = model.plan
    children = tuple(parts_of(model, plan.nodes[plan.edge_child[edge]]) for edge in node.child_edges)
    edges = tuple(Edge((i,)) for i in range(len(children)))
    return Part(node.spec, Source(model, node), children, edges)


def edited(part: Part, path: str, change: Callable[[Part], Part]) -> Part:
    """The same parts with a change at one path below `part`, whose own path is `"root"`."""
    first, *steps = path.split("/")
    if not steps:
        return change(part)
    i = int(steps[0])
    below = edited(part.children[i], "/".join([first, *steps[1:]]), change)
    return replace(part, children=(*part.children[:i], below, *part.children[i + 1 :]))


def inheriting(part: Part, above: Part) -> Part:
    """A part that takes the place of the mixture `above` it, or leaves it; it keeps the balance that it has from it."""
    spec = part.spec
    if not (isinstance(spec, Mixture) and isinstance(above.spec, Mixture) and spec.balance is None):
        return part
    return replace(part, spec=replace(spec, balance=above.spec.balance))


# --- arguments ------------------------------------------------------------------------------------------------------


def check_model(model: object, name: str = "model") -> None:
    """Check that an argument is a model, and holds all its experts.

    Raises:
        ArgumentTypeError: It is something else.
        ArgumentError: Its experts are cut over several processes.
    """
    if not isinstance(model, HMoEVAE):
        raise ArgumentTypeError(mismatch(name, "an HMoEVAE", type(model).__name__))
    model.experts.check_whole()


def node_at(model: HMoEVAE, path: str, name: str = "path") -> PlannedNode:
    """The node at a path.

    Raises:
        ArgumentTypeError: The path is no string.
        ArgumentError: There is no such node.
    """
    if not isinstance(path, str):
        raise ArgumentTypeError(mismatch(name, "a path, such as 'root/0'", repr(path)))
    try:
        return model.plan.node(path)
    except ArgumentError as error:
        raise ArgumentError(f"{name}{str(error).removeprefix('path')}") from None


def nodes_at(model: HMoEVAE, paths: Sequence[str], *, least: int = 1) -> list[PlannedNode]:
    """The nodes at some paths, of which none is the root.

    Raises:
        ArgumentTypeError: The paths are not a sequence of strings.
        ArgumentError: There are too few, one is repeated, one is not there, or one is the root.
    """
    if not isinstance(paths, Sequence) or isinstance(paths, str):
        raise ArgumentTypeError(mismatch("paths", "a list of paths, such as ['root/0']", repr(paths)))
    nodes = [node_at(model, path, f"paths[{i}]") for i, path in enumerate(paths)]
    if len(nodes) < least:
        raise ArgumentError(mismatch("paths", f"at least {least} path{'s' * (least > 1)}", repr(paths)))
    if len(set(paths)) < len(paths):
        raise ArgumentError(mismatch("paths", "each path once", repr(paths)))
    if any(node.path == "root" for node in nodes):
        raise ArgumentError(mismatch("paths", "nodes below the root", repr(paths)))
    return nodes


def siblings_at(model: HMoEVAE, paths: Sequence[str]) -> tuple[str, list[int], list[PlannedNode]]:
    """The path of the parent of at least two siblings, their indices among its children, and the nodes.

    Raises:
        ArgumentTypeError: As `nodes_at`.
        ArgumentError: As `nodes_at`, or they have several parents.
    """
    nodes = nodes_at(model, paths, least=2)
    parents = {node.path.rpartition("/")[0] for node in nodes}
    if len(parents) > 1:
        raise ArgumentError(mismatch("paths", "children of one mixture", repr(paths)))
    return parents.pop(), [int(node.path.rpartition("/")[2]) for node in nodes], nodes

"""Nodes: the tree as data, immutable, hashable and lossless as JSON."""

import itertools
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import Field, InstanceOf

from hmoevae import markup
from hmoevae.checks import is_integer
from hmoevae.errors import ArgumentError, SpecError, mismatch
from hmoevae.spec.balances import Balance
from hmoevae.spec.likelihoods import Gaussian, Likelihood
from hmoevae.spec.networks import MLP, Network
from hmoevae.spec.record import PositiveInt, Usable, arguments, call, check_family, expected, read_json, record, write

if TYPE_CHECKING:
    import networkx as nx

MAX_DEPTH = 64
"""Largest number of gates above a leaf; the JSON of deeper trees could not be read back."""


def _runs(node: Any) -> "list[tuple[VAE | Mixture, int]]":
    """The children of a node as runs of equal neighbours: the child, and the length of the run."""
    return [(child, len(list(run))) for child, run in itertools.groupby(node.children)]


class Node:
    """A node of a tree. Abstract base class of `VAE` and `Mixture`.

    >>> tree = Mixture(children=(VAE(), Mixture.of(VAE(), 2, name="two styles")))
    >>> isinstance(tree, Node), tree.n_leaves, tree.depth
    (True, 3, 2)
    >>> [path for path, node in tree.walk()]
    ['root', 'root/0', 'root/1', 'root/1/0', 'root/1/1']
    >>> tree.at("root/1").name, len(tree.children), tree.at("root/1").label
    ('two styles', 2, "Mixture 'two styles' of 2: gate MLP(128)")
    >>> tree.to_networkx().number_of_edges(), tree_from_json(tree.to_json()) == tree
    (4, True)
    >>> tree
    Mixture(children=(VAE(), Mixture.of(VAE(), 2, name='two styles')))
    """

    name: str | None
    children: "tuple[VAE | Mixture, ...]"
    """The nodes below; a leaf has none."""
    label: str
    """One line about the node alone, without its children."""

    def walk(self) -> "Iterator[tuple[str, VAE | Mixture]]":
        """Yield `(path, node)` for this node and all below it, depth first; this node's own path is `"root"`."""
        stack: list[tuple[str, Any]] = [("root", self)]
        while stack:
            path, node = stack.pop()
            yield path, node
            stack.extend((f"{path}/{i}", child) for i, child in reversed(list(enumerate(node.children))))

    def at(self, path: str) -> "VAE | Mixture":
        """The node at `path`, such as `"root"` or `"root/3/1"`.

        Raises:
            ArgumentError: There is no node at `path`; the message says how far the path leads.
        """
        found: Any = self
        first, *steps = path.split("/") if isinstance(path, str) else (path,)
        if first != "root":
            raise ArgumentError(mismatch("path", "a path that starts with 'root', such as 'root/0'", repr(path)))
        for depth, step in enumerate(steps):
            n_children = len(found.children)
            if not (step.isdecimal() and int(step) < n_children):
                here = "/".join([first, *steps[:depth]])
                has = f"children 0 to {n_children - 1}" if n_children else "no children"
                raise ArgumentError(mismatch("path", f"a node of the tree ({here} has {has})", repr(path)))
            found = found.children[int(step)]
        return found

    @property
    def n_leaves(self) -> int:
        """Number of leaves (experts)."""
        return sum(not node.children for _, node in self.walk())

    @property
    def depth(self) -> int:
        """The largest number of gates on a path to a leaf; 0 for a single leaf, 1 for a flat mixture."""
        return max(path.count("/") for path, _ in self.walk())

    def to_json(self, *, indent: int | None = 2) -> str:
        """The tree as JSON; `tree_from_json` reads it back as an equal tree."""
        return json.dumps(write(self, path="root"), indent=indent)

    def to_networkx(self) -> "nx.DiGraph":
        """The tree as a directed graph: nodes are paths, with attributes `spec` and `label`; edges go to children."""
        import networkx as nx

        graph = nx.DiGraph()
        for path, node in self.walk():
            graph.add_node(path, spec=node, label=node.label)
            if path != "root":
                graph.add_edge(path.rpartition("/")[0], path)
        return graph

    def __str__(self) -> str:
        """The tree printed as text; equal neighbours share a line."""
        import networkx as nx

        graph = nx.DiGraph()
        stack: list[tuple[str, Any, int]] = [("root", self, 1)]
        while stack:
            path, node, times = stack.pop()
            graph.add_node(path, label=f"{times} x {node.label}" if times > 1 else node.label)
            if path != "root":
                graph.add_edge(path.rpartition("/")[0], path)
            stack.extend((f"{path}/{i}", child, times) for i, (child, times) in enumerate(reversed(_runs(node))))
        return "\n".join(nx.generate_network_text(graph, sources=["root"], vertical_chains=False))

    def _repr_html_(self) -> str:
        """HTML for notebooks: the tree, with equal neighbours on one line."""

        def drawn(node: Any, times: int) -> str:
            label = f"{times} x {node.label}" if times > 1 else node.label
            return markup.branch(label, (drawn(*run) for run in _runs(node)))

        return drawn(self, 1)


@record(kind="vae")
class VAE(Node):
    """A leaf of the tree: one variational auto-encoder, the expert for one cluster (Kingma & Welling 2014).

    Args:
        latent_dim: Size of the latent z, whose prior is N(0, I).
        encoder: Network from x to the mean and log-variance of q(z|x).
        decoder: Network from z to the parameters of `likelihood`.
        likelihood: The observation model p(x|z).
        name: A label for pictures and messages; it has no effect on the model.

    Raises:
        SpecError: A field is out of range or of the wrong type.

    >>> VAE(latent_dim=0)
    Traceback (most recent call last):
    ...
    hmoevae.errors.SpecError: VAE.latent_dim: expected an integer > 0, got 0
    """

    latent_dim: PositiveInt = 10
    encoder: Annotated[Network, Usable] = MLP()
    decoder: Annotated[Network, Usable] = MLP()
    likelihood: Annotated[Likelihood, Usable] = Gaussian()
    name: str | None = None

    @property
    def children(self) -> "tuple[VAE | Mixture, ...]":  # type: ignore[override]  # a constant in place of a field
        """A leaf has no children."""
        return ()

    @property
    def label(self) -> str:  # type: ignore[override]  # computed in place of stored
        """One line about the expert."""
        title = f"VAE {self.name!r}" if self.name else "VAE"
        return f"{title}: latent {self.latent_dim}, encoder {self.encoder}, decoder {self.decoder}, {self.likelihood}"


@record(kind="mixture")
class Mixture(Node):
    """An inner node of the tree: a gate that gives each sample a probability for each of two or more children.

    Args:
        children: The nodes below, leaves or mixtures in any combination.
        gate: The network of g(child | x), whose softmax is over the children.
        balance: The term that keeps the gate from sending all samples to one child. `None` takes the balance of the
            nearest mixture above that has one; at the root it means `Balance()`.
        prior: The prior pi over the children: `"uniform"`, `"leaves"` (in proportion to the leaves below each child, so
            that in a tree of such mixtures all leaves are equally likely) or `"learned"`.
        name: A label for pictures and messages; it has no effect on the model.

    Raises:
        SpecError: A field is out of range or of the wrong type, or there are fewer than two children.

    >>> tree = Mixture.of(Mixture.of(VAE(latent_dim=4), 3), 10)
    >>> tree.n_leaves, tree.depth
    (30, 2)
    >>> tree_from_json(tree.to_json()) == tree
    True
    >>> print(tree)
    ╙── Mixture of 10: gate MLP(128)
        └─╼ 10 x Mixture of 3: gate MLP(128)
            └─╼ 3 x VAE: latent 4, encoder MLP(128), decoder MLP(128), Gaussian(0.5)
    """

    children: tuple[Node, ...] = Field(min_length=2)  # type: ignore[assignment]  # its own two kinds, that is
    gate: Annotated[Network, Usable] = MLP()
    balance: InstanceOf[Balance] | None = None
    prior: Literal["uniform", "leaves", "learned"] = "uniform"
    name: str | None = None

    @pydantic.field_validator("children")
    @classmethod
    def _not_too_deep(cls, children: "tuple[VAE | Mixture, ...]") -> "tuple[VAE | Mixture, ...]":
        if max(child.depth for child in children) >= MAX_DEPTH:
            raise expected(f"at most {MAX_DEPTH} levels of gates")
        return children

    @classmethod
    def of(cls, child: "VAE | Mixture", n: int, **fields: Any) -> "Mixture":
        """A mixture of `n` equal children; `fields` are the other arguments of `Mixture`."""
        if not is_integer(n, least=2):
            raise SpecError(mismatch("Mixture.of.n", "an integer > 1", repr(n)))
        return cls(children=(child,) * int(n), **fields)

    def __repr__(self) -> str:
        first, *others = self.children
        if any(child != first for child in others):
            return call(self)
        return f"Mixture.of({', '.join([repr(first), str(len(self.children)), *arguments(self)[1:]])})"

    @property
    def label(self) -> str:  # type: ignore[override]  # computed in place of stored
        """One line about the gate."""
        title = f"Mixture {self.name!r}" if self.name else "Mixture"
        parts = [f"{title} of {len(self.children)}: gate {self.gate}"]
        if self.balance is not None:
            parts.append(str(self.balance))
        if self.prior != "uniform":
            parts.append("prior by leaves" if self.prior == "leaves" else "learned prior")
        return ", ".join(parts)


Tree = VAE | Mixture


def tree_from_json(text: str | bytes) -> Tree:
    """Read a tree that `Node.to_json` wrote.

    Raises:
        SpecError: `text` is not JSON, or not a tree; the message starts with the path of the bad field. For a kind that
            is not registered, it says what to import.

    >>> tree_from_json('{"kind": "mixture", "children": [{"kind": "vae"}, {"kind": "vae", "latent_dim": 0}]}')
    Traceback (most recent call last):
    ...
    hmoevae.errors.SpecError: root.children[1].latent_dim: expected an integer > 0, got 0
    """
    tree = read_json(text, "root")
    check_family(tree, Node, "root")
    return tree

"""The tree as data: immutable, hashable, lossless as JSON, and free of any network code.

A tree is made of two kinds of node, `VAE` (a leaf, the expert) and `Mixture` (a gate over children), each described
by small records for its networks, its likelihood and its balance. Nothing here computes; `hmoevae.plan` compiles a
tree and `hmoevae.HMoEVAE` runs it.
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, dataclass_transform, get_args

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter
from pydantic_core import PydanticCustomError

from hmoevae import markup
from hmoevae.checks import is_number
from hmoevae.errors import ArgumentError, SpecError, mismatch

if TYPE_CHECKING:
    import networkx as nx

T = TypeVar("T")
MAX_DEPTH = 64
"""The most gates that may lie above a leaf; the JSON of deeper trees could not be read back."""

# --- validation -----------------------------------------------------------------------------------------------------


def _positive_int(value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise PydanticCustomError("expected", "an integer > 0")
    return number


def _finite_float(value: Any, *, positive: bool) -> float:
    if not is_number(value, positive=positive):
        raise PydanticCustomError("expected", "a finite number > 0" if positive else "a finite number >= 0")
    return float(value)


def _scale(value: Any) -> float:
    number = _finite_float(value, positive=True)
    if not 1e-15 <= number <= 1e15:  # so that its square and the inverse of it are numbers in single precision
        raise PydanticCustomError("expected", "a number from 1e-15 to 1e15")
    return number


PositiveInt = Annotated[int, BeforeValidator(_positive_int)]
Scale = Annotated[float, BeforeValidator(_scale)]
NonNegativeFloat = Annotated[float, BeforeValidator(functools.partial(_finite_float, positive=False))]

# pydantic's words for the errors that users meet, put into the package's one form (`errors.mismatch`).
_WORDS = {
    "literal_error": "{expected}",
    "extra_forbidden": "no such field",
    "unexpected_keyword_argument": "no such field",
    "missing": "a value",
    "missing_argument": "a value",
    "too_short": "at least {min_length} items",
    "dataclass_type": "a record of type {class_name}",
    "dataclass_exact_type": "a record of type {class_name}",
    "tuple_type": "a tuple such as (128, 64)",
    "string_type": "a string or None",
    "union_tag_invalid": "kind to be one of {expected_tags}",
    "union_tag_not_found": "a record with a known kind",
    "json_invalid": "valid JSON ({error})",
}


# A union adds the tag it chose to the place of an error; that is pydantic's own step, not a field of ours.
_TAGS = frozenset({"vae", "mixture", "mlp", "conv", "gaussian", "bernoulli", "continuous_bernoulli"})


def _fields(record: type) -> list[str]:
    """The fields that may be given by position: all but the `kind` of records that are told apart by it."""
    return [field.name for field in dataclasses.fields(record) if not field.kw_only]


def _choices(field: str | int) -> str:
    """The constructors of what may stand in a field, or as a child."""
    unions: dict[str | int, Any] = {"likelihood": get_args(Likelihood)[0], "gate": get_args(GateNetwork)[0]}
    records = get_args(unions.get(field, Tree))
    *others, last = (f"{record.__name__}({'...' if _fields(record) else ''})" for record in records)
    return f"{', '.join(others)} or {last}"


def _spec_error(root: str, error: pydantic.ValidationError, fields: Sequence[str] = ()) -> SpecError:
    """Word the first of pydantic's complaints as `root.children[1].latent_dim: expected ..., got ...`."""
    first = error.errors(include_url=False)[0]
    path = root
    for part in first["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in _TAGS:
            path += f".{part}"
    words = _WORDS.get(first["type"], first["msg"].removeprefix("Input should be "))
    context = first.get("ctx", {})
    expected = words.format(**context)
    place = first["loc"][-1] if first["loc"] else root
    if first["type"] == "model_attributes_type" or (
        first["type"] == "union_tag_invalid" and not isinstance(first["input"], dict)
    ):
        expected = _choices(place)
    elif first["type"] == "unexpected_keyword_argument" and fields and len(first["loc"]) == 1:
        expected = f"no such field (there are {', '.join(fields)})"
    elif first["type"] == "tuple_type" and place == "children":
        expected = "a tuple of nodes"
    got = f"{first['input']!r:.200}"
    if first["type"].startswith("missing"):
        got = "nothing"
    elif first["type"] == "too_short":
        got = f"{context['actual_length']}"
    return SpecError(mismatch(path, expected, got))


def _arguments(record: Any) -> list[str]:
    """The arguments that make a record, as code; those at their defaults are left out."""
    defaults = {name: field.default for name, field in type(record).__pydantic_fields__.items()}
    given = ((name, getattr(record, name)) for name in _fields(type(record)))
    return [f"{name}={value!r}" for name, value in given if value != defaults[name]]


def _call(record: Any) -> str:
    """The call that makes a record again."""
    return f"{type(record).__name__}({', '.join(_arguments(record))})"


# `kind` tells the records of a union apart in JSON; in Python it is never typed by hand: keyword-only, and not shown.
@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def _record(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, validated dataclass whose constructor raises `SpecError`."""
    made = pydantic.dataclasses.dataclass(frozen=True, repr=False, config=ConfigDict(extra="forbid"))(cls)
    construct = made.__init__
    positional = _fields(made)

    @functools.wraps(construct)
    def __init__(self: T, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        if len(args) > len(positional):
            raise SpecError(mismatch(cls.__name__, f"at most the arguments ({', '.join(positional)})", len(args)))
        try:  # by name, so that an error can say which field it is
            construct(self, **dict(zip(positional, args, strict=False)), **kwargs)  # type: ignore[arg-type]
        except pydantic.ValidationError as error:
            raise _spec_error(cls.__name__, error, positional) from None

    made.__init__ = __init__  # type: ignore[method-assign]
    if "__repr__" not in vars(cls):
        made.__repr__ = _call  # type: ignore[method-assign]
    return made  # type: ignore[return-value]


# --- networks -------------------------------------------------------------------------------------------------------

Activation = Literal["relu", "sigmoid", "tanh", "gelu", "silu", "elu"]


@_record
class MLP:
    """A multi-layer perceptron: dense layers of the given widths, then one dense layer without activation.

    Args:
        hidden: Widths of the hidden layers; `()` makes the network a single affine map.
        activation: The nonlinearity behind every hidden layer.

    >>> print(MLP((128, 64), activation="tanh")), print(MLP(()))
    MLP(128-64)
    MLP(linear)
    (None, None)
    """

    kind: Literal["mlp"] = Field(default="mlp", kw_only=True, repr=False)
    hidden: tuple[PositiveInt, ...] = (128,)
    activation: Activation = "relu"

    def __str__(self) -> str:
        return f"MLP({'-'.join(map(str, self.hidden)) or 'linear'})"


@_record
class Conv:
    """A small strided convolutional network with a dense head, for gates that look at images.

    Args:
        channels: Output channels of the convolutions, one strided convolution each.
        kernel_size: Side of the square kernels, in pixels; the padding is `kernel_size // 2`.
        stride: Step of every convolution, in pixels.
        hidden: Widths of the dense hidden layers behind the convolutions.
        activation: The nonlinearity behind every convolution and hidden layer.

    >>> print(Conv(channels=(8, 16), kernel_size=3, hidden=(64,)))
    Conv(8-16, MLP 64)
    """

    kind: Literal["conv"] = Field(default="conv", kw_only=True, repr=False)
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (16, 32)
    kernel_size: PositiveInt = 5
    stride: PositiveInt = 2
    hidden: tuple[PositiveInt, ...] = (128,)
    activation: Activation = "relu"

    def __str__(self) -> str:
        return f"Conv({'-'.join(map(str, self.channels))}, MLP {'-'.join(map(str, self.hidden)) or 'linear'})"


GateNetwork = Annotated[MLP | Conv, Field(discriminator="kind")]


# --- likelihoods ----------------------------------------------------------------------------------------------------


@_record
class Gaussian:
    """p(x|z) = N(mean(z), scale^2), independent over the features.

    Args:
        scale: The standard deviation, in the units of the data, from 1e-15 to 1e15.
        mean: `"sigmoid"` keeps the mean in (0, 1) and asks for data in [0, 1]; `"identity"` leaves both free.

    >>> print(Gaussian(scale=0.1, mean="identity"))
    Gaussian(0.1, identity)
    """

    kind: Literal["gaussian"] = Field(default="gaussian", kw_only=True, repr=False)
    scale: Scale = 0.5
    mean: Literal["sigmoid", "identity"] = "sigmoid"

    def __str__(self) -> str:
        return f"Gaussian({self.scale:g}{', identity' if self.mean == 'identity' else ''})"


@_record
class Bernoulli:
    """p(x|z) = Bernoulli(sigmoid(f(z))) for data that are 0 or 1, independent over the features.

    >>> VAE(likelihood=Bernoulli()).likelihood == Bernoulli()
    True
    """

    kind: Literal["bernoulli"] = Field(default="bernoulli", kw_only=True, repr=False)

    def __str__(self) -> str:
        return "Bernoulli"


@_record
class ContinuousBernoulli:
    """A proper density for grey levels in [0, 1] (Loaiza-Ganem & Cunningham 2019, The continuous Bernoulli).

    >>> print(VAE(latent_dim=2, likelihood=ContinuousBernoulli()))
    ╙── VAE: latent 2, encoder MLP(128), decoder MLP(128), ContinuousBernoulli
    """

    kind: Literal["continuous_bernoulli"] = Field(default="continuous_bernoulli", kw_only=True, repr=False)

    def __str__(self) -> str:
        return "ContinuousBernoulli"


Likelihood = Annotated[Gaussian | Bernoulli | ContinuousBernoulli, Field(discriminator="kind")]


# --- balance --------------------------------------------------------------------------------------------------------


@_record
class Balance:
    """How a mixture is kept from sending everything to one child; formulas in `hmoevae.nn.objectives.balance`.

    Args:
        kind: `"variance"`: population variance of the children's importance, summed over the batch, so that its
            strength grows with the batch size; `"cv2"`: squared coefficient of variation (Shazeer et al. 2017);
            `"kl"`: divergence of the mean usage from the prior, in nats.
        weight: Factor in front of the term; 0 switches it off.

    >>> print(Mixture.of(VAE(), 3, balance=Balance("kl", weight=20)).label)
    Mixture of 3: gate MLP(128), balance kl 20
    """

    kind: Literal["variance", "cv2", "kl"] = "variance"
    weight: NonNegativeFloat = 0.1

    def __str__(self) -> str:
        return f"balance {self.kind} {self.weight:g}"


# --- nodes ----------------------------------------------------------------------------------------------------------


def _runs(node: Any) -> "list[tuple[VAE | Mixture, int]]":
    """The children of a node, equal neighbours as one, and how many they are."""
    return [(child, len(list(run))) for child, run in itertools.groupby(node.children)]


class Node:
    """What a leaf and a mixture share: a place in a tree. Abstract; the two kinds are `VAE` and `Mixture`.

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
        """How many leaves (experts) the tree has."""
        return sum(not node.children for _, node in self.walk())

    @property
    def depth(self) -> int:
        """The largest number of gates between the root and a leaf; 0 for a lone leaf, 1 for a flat mixture."""
        return max(path.count("/") for path, _ in self.walk())

    def to_json(self, *, indent: int | None = 2) -> str:
        """The tree as JSON, which `tree_from_json` reads back to an equal tree."""
        return _TREE.dump_json(self, indent=indent).decode()  # type: ignore[arg-type]

    def to_networkx(self) -> "nx.DiGraph":
        """The tree as a directed graph: one node a path, with attributes `spec` and `label`, edges to the children."""
        import networkx as nx

        graph = nx.DiGraph()
        for path, node in self.walk():
            graph.add_node(path, spec=node, label=node.label)
            if path != "root":
                graph.add_edge(path.rpartition("/")[0], path)
        return graph

    def __str__(self) -> str:
        """The tree drawn as text; equal neighbours share a line."""
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
        """For notebooks: the tree drawn, equal neighbours on one line."""

        def drawn(node: Any, times: int) -> str:
            label = f"{times} x {node.label}" if times > 1 else node.label
            return markup.branch(label, (drawn(*run) for run in _runs(node)))

        return drawn(self, 1)


@_record
class VAE(Node):
    """A leaf of the tree: one variational auto-encoder, the expert for one kind of data (Kingma & Welling 2014).

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

    kind: Literal["vae"] = Field(default="vae", kw_only=True, repr=False)
    latent_dim: PositiveInt = 10
    encoder: MLP = MLP()
    decoder: MLP = MLP()
    likelihood: Likelihood = Gaussian()
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


@_record
class Mixture(Node):
    """An inner node of the tree: a gate that spreads each sample over two or more children.

    Args:
        children: The nodes below, leaves or mixtures in any combination.
        gate: The network behind g(child | x), a softmax over the children.
        balance: What keeps the gate from one-sidedness; `None` inherits from the nearest mixture above that sets one,
            and at the root means `Balance()`.
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

    kind: Literal["mixture"] = Field(default="mixture", kw_only=True, repr=False)
    children: tuple[Annotated["VAE | Mixture", Field(discriminator="kind")], ...] = Field(min_length=2)
    gate: GateNetwork = MLP()
    balance: Balance | None = None
    prior: Literal["uniform", "leaves", "learned"] = "uniform"
    name: str | None = None

    @pydantic.field_validator("children")
    @classmethod
    def _not_too_deep(cls, children: "tuple[VAE | Mixture, ...]") -> "tuple[VAE | Mixture, ...]":
        if max(child.depth for child in children) >= MAX_DEPTH:
            raise PydanticCustomError("expected", f"at most {MAX_DEPTH} levels of gates")  # type: ignore[arg-type]
        return children

    @classmethod
    def of(cls, child: "VAE | Mixture", n: int, **fields: Any) -> "Mixture":
        """A mixture of `n` equal children; `fields` are the other arguments of `Mixture`."""
        try:
            count = _positive_int(n)
        except PydanticCustomError:
            count = 0
        if count < 2:
            raise SpecError(mismatch("Mixture.of.n", "an integer > 1", repr(n)))
        return cls(children=(child,) * count, **fields)

    def __repr__(self) -> str:
        first, *others = self.children
        if any(child != first for child in others):
            return _call(self)
        return f"Mixture.of({', '.join([repr(first), str(len(self.children)), *_arguments(self)[1:]])})"

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
_TREE: TypeAdapter[Tree] = TypeAdapter(Annotated[Tree, Field(discriminator="kind")])


def tree_from_json(text: str | bytes) -> Tree:
    """Read a tree that `Node.to_json` wrote.

    Raises:
        SpecError: `text` is not JSON, or not a tree; the message starts with the path of the bad field.

    >>> tree_from_json('{"kind": "mixture", "children": [{"kind": "vae"}, {"kind": "vae", "latent_dim": 0}]}')
    Traceback (most recent call last):
    ...
    hmoevae.errors.SpecError: root.children[1].latent_dim: expected an integer > 0, got 0
    """
    try:
        return _TREE.validate_json(text)
    except pydantic.ValidationError as error:
        raise _spec_error("root", error) from None

"""Records of growth: its options, its decisions and its result."""

from dataclasses import KW_ONLY, asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, InstanceOf, PlainValidator

from hmoevae.checks import is_integer, is_number
from hmoevae.errors import ArgumentError
from hmoevae.history import History
from hmoevae.model import HMoEVAE
from hmoevae.spec import MLP, Balance, Network
from hmoevae.spec.record import NonNegativeFloat, PositiveInt, Usable, expected, record
from hmoevae.views import Neighbour, ViewLike, is_view

Action = Literal["cut", "split", "merge", "prune", "stop"]


def _seconds(value: Any) -> float | None:
    if value is not None and not is_number(value, positive=True):
        raise expected("None or a finite number > 0")
    return None if value is None else float(value)


def _rounds(value: Any) -> int | None:
    if value is not None and not is_integer(value, least=0):
        raise expected("None or an integer >= 0")
    return None if value is None else int(value)


def _share(value: Any) -> float:
    if not is_number(value) or value >= 1:
        raise expected("a number from 0 to 1, without 1")
    return float(value)


def _held_out(value: Any) -> float:
    if not is_number(value, positive=True) or value >= 1:
        raise expected("a number between 0 and 1")
    return float(value)


def _count(value: Any) -> int:
    if not is_integer(value, least=0):
        raise expected("an integer >= 0")
    return int(value)


def _changes(value: Any) -> ViewLike | str | None:
    if value is not None and value != "auto" and not is_view(value):
        raise expected("'auto', None, a View or a callable from samples to samples")
    return value


@record(kind="growth", error=ArgumentError)
class Growth:
    """Options of `hmoevae.grow`.

    Args:
        max_leaves: Largest number of leaves.
        max_rounds: Largest number of rounds of splits; 0 finds the kinds alone, `None` means no limit.
        max_seconds: No round of splits begins after so many seconds; `None` for no limit.
        kinds: Whether a tree that is one leaf first gets a level of kinds, by `hmoevae.find_kinds`.
        gate: Network of the gate of the kinds.
        style_gate: Networks of the gates below them.
        balance: Balance of the gate of the kinds, whose prior is held at the shares of the kinds while it learns.
        round_epochs: Epochs in which the leaves of a split learn, and, to compare with, the leaf without the split.
        min_gain: A split is kept if it raises log p(x) of held-out samples of the leaf by more than this, in nats per
            sample, and by more than twice the standard error. A leaf is merged into its siblings if without it log p(x)
            of its samples falls by less.
        held_out: Share of the samples by which splits are judged; they are not trained on.
        neighbour, changes, n_changes, max_conductance, smallest: As in `hmoevae.find_kinds`. A leaf is split along the
            best cut of the graph of its samples, and parts are not smaller than kinds.

    Raises:
        ArgumentError: A field cannot be used, or there is no such field.

    >>> Growth(max_leaves=20).max_leaves
    20
    """

    _: KW_ONLY
    max_leaves: PositiveInt = 30
    max_rounds: Annotated[int | None, BeforeValidator(_rounds)] = None
    max_seconds: Annotated[float | None, BeforeValidator(_seconds)] = None
    kinds: bool = True
    gate: Annotated[Network, Usable] = MLP()
    style_gate: Annotated[Network, Usable] = MLP()
    balance: InstanceOf[Balance] = Balance("kl", 20.0)
    round_epochs: PositiveInt = 5
    min_gain: NonNegativeFloat = 0.1
    held_out: Annotated[float, BeforeValidator(_held_out)] = 0.1
    neighbour: InstanceOf[Neighbour] | None = None
    changes: Annotated[Any, PlainValidator(_changes)] = "auto"
    n_changes: Annotated[int, BeforeValidator(_count)] = 4
    max_conductance: Annotated[float, BeforeValidator(_share)] = 0.06
    smallest: Annotated[float, BeforeValidator(_share)] = 0.005


USUAL = Growth()


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision of a growth.

    Attributes:
        round: 0 for the kinds, then the number of the round of splits.
        action: `"cut"` of samples into kinds; `"split"` of a leaf in two; `"merge"` of a leaf into its siblings;
            `"prune"` of a leaf that no sample goes to; `"stop"`.
        path: The node; of a cut, the set of samples in the binary tree of cuts.
        accepted: Whether it was done.
        n_samples: Number of samples of the node.
        gain: What the decision was taken by: by how much log p(x) of held-out samples of the node rises, in nats per
            sample. Of a merge, by how much it falls without the leaf, with a minus sign.
        error: Standard error of `gain`.
        conductance: Of a cut, and of the cut along which a leaf was split.
        n_leaves: Number of leaves afterwards.
        seconds: Since the start.
        reason: Words on the decision.

    >>> Decision(1, "split", "root/3", True, 600, gain=2.5, error=0.3).gain
    2.5
    """

    round: int
    action: Action
    path: str
    accepted: bool
    n_samples: int
    gain: float | None = None
    error: float | None = None
    conductance: float | None = None
    n_leaves: int = 1
    seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Grown:
    """The result of `hmoevae.grow`.

    Attributes:
        model: The model.
        decisions: Every decision, in order.
        histories: Histories of the trainings: of the first tree, then two of each round, without splits and with them.
        growth: The options of the growth.

    >>> import hmoevae as hm
    >>> grown = Grown(hm.HMoEVAE(hm.VAE(2), (4,)), [Decision(0, "stop", "root", True, 10)], [])
    >>> grown.rows[0]["action"], grown
    ('stop', <Grown: 1 leaf, 1 decision>)
    """

    model: HMoEVAE = field(repr=False)
    decisions: list[Decision]
    histories: list[History]
    growth: Growth = USUAL

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The decisions as rows of a table, for `pandas.DataFrame` or a CSV file."""
        return [asdict(decision) for decision in self.decisions]

    def __repr__(self) -> str:
        n_leaves, n = self.model.plan.n_leaves, len(self.decisions)
        leaves = "1 leaf" if n_leaves == 1 else f"{n_leaves} leaves"
        return f"<Grown: {leaves}, {n} decision{'' if n == 1 else 's'}>"

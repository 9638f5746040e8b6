"""StepSettings: the options of one pass of a model."""

from collections.abc import Sequence
from dataclasses import dataclass

from hmoevae.checks import check_number
from hmoevae.errors import ArgumentError, ArgumentTypeError, mismatch
from hmoevae.nn.routes import ALL, Routes
from hmoevae.plan import are_ascending


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """The options of one pass of a model. The defaults give the loss of the model as it is defined.

    Args:
        kl_weight: Factor of KL(q(z|x) || p(z)) in the ELBOs. They are lower bounds on log p(x) at 1 only.
        gate_temperature: The divisor of the gates' logits, > 0.
        agreement_weight: Factor of the term `"agreement"`, which is there where the pass gets another view.
        agreement_levels: The levels at which the two views should arrive at the same node, from 1 on and ascending (see
            `hmoevae.nn.agreement`). Gates below the last of these levels see the sample itself and learn from the
            objective. `None` means all levels.
        routes: Which leaves are computed for which samples: `hm.routes.ALL`, `hm.TopK(k)` or `hm.routes.Given(leaf)`.
            The gradients of some leaves are sparse tensors, which `hm.RowAdam` takes.

    Raises:
        ArgumentError: A weight or the temperature is no finite number in its range, the levels do not ascend, or
            `routes` is none.

    >>> StepSettings(kl_weight=0.5)
    StepSettings(kl_weight=0.5, gate_temperature=1.0, agreement_weight=1.0, agreement_levels=None, routes=All())
    """

    kl_weight: float = 1.0
    gate_temperature: float = 1.0
    agreement_weight: float = 1.0
    agreement_levels: Sequence[int] | None = None
    routes: Routes = ALL

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_number("kl_weight", self.kl_weight)
        check_number("gate_temperature", self.gate_temperature, positive=True)
        check_number("agreement_weight", self.agreement_weight)
        if self.agreement_levels is not None and not are_ascending(self.agreement_levels):
            expected = "None or ascending levels from 1 to the tree's depth"
            raise ArgumentError(mismatch("agreement_levels", expected, repr(self.agreement_levels)))
        if self.agreement_levels is not None:
            object.__setattr__(self, "agreement_levels", tuple(self.agreement_levels))  # hashable, and cannot change
        if not isinstance(self.routes, Routes):
            raise ArgumentError(mismatch("routes", "ALL, TopK(...) or Given(...)", repr(self.routes)))


USUAL = StepSettings()
"""The default settings."""


def check_settings(settings: object) -> None:
    """Check that the options of a pass are a record.

    Raises:
        ArgumentTypeError: They are something else.

    >>> check_settings(USUAL)
    """
    if not isinstance(settings, StepSettings):
        raise ArgumentTypeError(mismatch("settings", "a StepSettings(...)", f"{settings!r:.200}"))

"""StepSettings: what one pass is told beside the samples."""

from collections.abc import Sequence
from dataclasses import dataclass

from hmoevae.checks import check_number
from hmoevae.errors import ArgumentError, mismatch
from hmoevae.nn.routes import ALL, Routes
from hmoevae.plan import are_ascending


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """What one pass is told beside the samples; the defaults are those of the model itself.

    Args:
        kl_weight: Factor in front of KL(q(z|x) || p(z)) in the ELBOs, which only at 1 are bounds.
        gate_temperature: What the gates' logits are divided by, > 0.
        agreement_weight: Factor in front of the term `"agreement"`, where there is another view.
        agreement_levels: At which levels the two views are to arrive at the same node, from 1 on and ascending (see
            `hmoevae.nn.agreement`). Gates below the last of them see the sample itself and learn from the objective.
            `None` means all levels.
        routes: Which leaves are computed for which samples: `hmoevae.nn.routes.ALL`, `TopK(k)` or `Given(leaf)`.

    Raises:
        ArgumentError: A weight or the temperature is no finite number in its range, or the levels do not ascend.

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
            raise ArgumentError(mismatch("agreement_levels", expected, self.agreement_levels))
        if not isinstance(self.routes, Routes):
            raise ArgumentError(mismatch("routes", "ALL, TopK(...) or Given(...)", repr(self.routes)))


USUAL = StepSettings()
"""Those of the model itself."""

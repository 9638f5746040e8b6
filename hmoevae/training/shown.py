"""GateViews: what the gates are shown of a batch."""

from typing import Any

import torch
from torch import Tensor

from hmoevae.errors import ArgumentError, mismatch
from hmoevae.nn.draws import Share
from hmoevae.training.agreement import Agreement
from hmoevae.training.lending import lent
from hmoevae.views import Compose, View, ViewLike


class GateViews:
    """What the gates are shown of a batch: one view of every sample, and where they are to agree another one."""

    def __init__(self, view: ViewLike | None, agreement: Agreement | None, samples: Tensor | None) -> None:
        seen = None if view is None else Compose([view])  # which says if an answer of it is no tensor
        partner = None if agreement is None else agreement.partner
        if agreement is not None and seen is None and partner is None:
            raise ArgumentError(mismatch("Training.view", "a view, for agreement of a sample with itself", view))
        other = None
        if agreement is not None:
            other = Compose([part for part in (partner, seen) if part is not None]).prepare(samples)
        self.view: View | None = None if seen is None else seen.prepare(samples)
        self.other: View | None = other

    @torch.no_grad()
    def __call__(
        self, x: Tensor, index: Tensor | None, generator: torch.Generator, share: Share
    ) -> tuple[Tensor | None, Tensor | None]:
        """The view of samples that are at places `index` of the data set, and the other one."""
        if self.view is None and self.other is None:
            return None, None
        # Callables that know of no generator draw from the global ones: lent to them, from where `generator` is now.
        with lent(generator, share, x.device):
            # Copies, for a view that works in place: the experts model the samples themselves.
            how: dict[str, Any] = {"index": index, "generator": generator, "share": share}
            view = None if self.view is None else self.view(x.clone(), **how)
            other = None if self.other is None else self.other(x.clone(), **how)
        return view, other

"""GateViews: makes the views of a batch that the gates see."""

from typing import Any

import torch
from torch import Tensor

from hmoevae.errors import ArgumentError, mismatch
from hmoevae.nn.draws import Share
from hmoevae.training.agreement import Agreement
from hmoevae.training.random_states import seeded_random_states
from hmoevae.views import Compose, View, ViewLike


class GateViews:
    """Makes the views of a batch that the gates see: one view of every sample and, for agreement, a second one."""

    def __init__(self, view: ViewLike | None, agreement: Agreement | None, samples: Tensor | None) -> None:
        seen = None if view is None else Compose([view])  # Compose checks that the view returns a tensor
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
        """Make both views of samples; `index` are their indices in the data set."""
        if self.view is None and self.other is None:
            return None, None
        # A user's callable draws from the global generators, which are seeded from the state of `generator`.
        with seeded_random_states(generator, share, x.device):
            # Copies, because a view may work in place and the experts model the unchanged samples.
            how: dict[str, Any] = {"index": index, "generator": generator, "share": share}
            view = None if self.view is None else self.view(x.clone(), **how)
            other = None if self.other is None else self.other(x.clone(), **how)
        return view, other

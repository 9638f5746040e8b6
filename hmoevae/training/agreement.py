"""Agreement as `fit` takes it, and what the gates are shown of a batch."""

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hmoevae.checks import check_number, is_number
from hmoevae.errors import ArgumentError, mismatch
from hmoevae.nn.draws import Draws, borrowed_random_state
from hmoevae.plan import are_ascending
from hmoevae.views import Compose, Neighbour, View, ViewLike


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Gates learn that a sample and its partner are of one kind; the term is `hmoevae.nn.objectives.agreement`.

    It finds kinds from a random start without any expert, so the gates may have the first epochs to themselves, which
    the idle experts make cheap. A balance has to hold the usage: give the tree `Balance("kl", weight=20)`, twice
    `weight`. One that weighs less than the agreement does not hold, for then it pays to merge two kinds. A mixture
    below the root is reached by a share of the samples only, so its own balance may weigh as much less.

    Args:
        partner: What makes a sample's partner before the view of `fit` changes both; `None`: the sample itself.
        alone: Share of the epochs, from the first on, in which gates learn from agreement and balance alone.
        weight: Factor in front of the term.
        levels: At which levels a sample and its partner are to arrive at the same node, ascending; each is taught
            within the nodes of the one before. The gates below the last one see no views, idle while the others are
            alone, and then learn from the objective what serves the experts. `None` means all levels: every gate
            agrees by itself. The tree's depth alone means the leaves: all gates agree together, which suits a tree
            whose inner nodes stand for nothing in particular.

    >>> import torch
    >>> import hmoevae as hm
    >>> tree = hm.Mixture.of(hm.VAE(latent_dim=2), 3, balance=hm.Balance("kl", weight=20))
    >>> model = hm.HMoEVAE(tree, input_shape=(4,))
    >>> history = hm.fit(model, torch.rand(64, 4), epochs=2, agreement=Agreement(alone=0.5), progress=False)
    >>> history.columns[2:6]
    ('loss', 'agreement', 'balance', 'usage/root/0')
    """

    partner: ViewLike | None = field(default_factory=Neighbour)
    alone: float = 0.5
    weight: float = 10.0
    levels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not is_number(self.alone) or self.alone > 1:
            raise ArgumentError(mismatch("Agreement.alone", "a number from 0 to 1", repr(self.alone)))
        check_number("Agreement.weight", self.weight)
        if self.levels is not None and not (self.levels and are_ascending(self.levels)):
            raise ArgumentError(mismatch("Agreement.levels", "None or ascending integers > 0", repr(self.levels)))


class GateViews:
    """What the gates are shown of a batch: one view of every sample, and where they are to agree another one."""

    def __init__(self, view: ViewLike | None, agreement: Agreement | None, samples: Tensor | None) -> None:
        self.weight = 1.0 if agreement is None else agreement.weight
        self.levels = None if agreement is None else agreement.levels
        seen = None if view is None else Compose([view])  # which says if an answer of it is no tensor
        partner = None if agreement is None else agreement.partner
        if agreement is not None and seen is None and partner is None:
            raise ArgumentError(mismatch("view", "a view, for agreement of a sample with itself", view))
        other = None
        if agreement is not None:
            other = Compose([part for part in (partner, seen) if part is not None]).prepare(samples)
        self.view: View | None = None if seen is None else seen.prepare(samples)
        self.other: View | None = other

    @torch.no_grad()
    def __call__(
        self, x: Tensor, index: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor | None, Tensor | None]:
        """The view of samples that are at places `index` of the data set, and the other one."""
        if self.view is None and self.other is None:
            return None, None
        # Callables that know of no generator draw from the global ones: lent to them, from where `generator` is now.
        with borrowed_random_state(_seed_of(generator), x.device):
            # Copies, for a view that works in place: the experts model the samples themselves.
            view = None if self.view is None else self.view(x.clone(), index=index, generator=generator)
            other = None if self.other is None else self.other(x.clone(), index=index, generator=generator)
        return view, other


def _seed_of(generator: torch.Generator) -> int:
    """A seed for what is not drawn from the generator, another one wherever it has come to, and in each process."""
    digest = hashlib.blake2b(generator.get_state().cpu().numpy().tobytes(), digest_size=7).digest()
    share = generator.share if isinstance(generator, Draws) else None
    return int.from_bytes(digest, "big") + (0 if share is None else share.start)

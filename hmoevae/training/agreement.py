"""Agreement: gates learn that a sample and its partner are of one kind."""

from dataclasses import dataclass, field

from hmoevae.checks import check_number, is_number
from hmoevae.errors import ArgumentError, mismatch
from hmoevae.plan import are_ascending
from hmoevae.views import Neighbour, ViewLike


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Gates learn that a sample and its partner are of one kind; the term is `hmoevae.nn.objectives.agreement`.

    It finds kinds from a random start without any expert, so the gates may have the first epochs to themselves, which
    the idle experts make cheap. A balance has to hold the usage: give the tree `Balance("kl", weight=20)`, twice
    `weight`. One that weighs less than the agreement does not hold, for then it pays to merge two kinds. A mixture
    below the root is reached by a share of the samples only, so its own balance may weigh as much less.

    Args:
        partner: What makes a sample's partner before the training's `view` changes both; `None`: the sample itself.
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
    >>> training = hm.Training(epochs=2, agreement=Agreement(alone=0.5))
    >>> history = hm.fit(model, torch.rand(64, 4), training, progress=False)
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
        if self.levels is not None:
            object.__setattr__(self, "levels", tuple(map(int, self.levels)))  # as JSON gives it back

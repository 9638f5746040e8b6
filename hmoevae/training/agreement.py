"""Agreement: an option that teaches the gates to send a sample and its partner to the same node."""

from dataclasses import KW_ONLY
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainValidator

from hmoevae.checks import is_number
from hmoevae.errors import ArgumentError
from hmoevae.plan import are_ascending
from hmoevae.spec.record import NonNegativeFloat, expected, record
from hmoevae.views import Neighbour, ViewLike, is_view


def _partner(value: Any) -> ViewLike | None:
    if value is not None and not is_view(value):
        raise expected("None, a View or a callable from samples to samples")
    return value


def _share(value: Any) -> float:
    if not is_number(value) or value > 1:
        raise expected("a number from 0 to 1")
    return float(value)


def _levels(value: Any) -> tuple[int, ...] | None:
    if value is not None and not (are_ascending(value) and len(value)):
        raise expected("None or ascending integers > 0")
    return None if value is None else tuple(map(int, value))


@record(kind="agreement", error=ArgumentError)
class Agreement:
    """Teach the gates to send a sample and its partner to the same node; the term is `hmoevae.nn.agreement.agreement`.

    Agreement finds clusters from a random start and needs no experts, so the gates learn alone in the first epochs,
    which are cheap because the experts do not run. A balance has to spread the samples over the children: give the tree
    `Balance("kl", weight=20)`, twice `weight`. A balance that weighs less than the agreement is not enough, because
    merging two clusters then lowers the loss. Only a share of the samples reaches a mixture below the root, so the
    weight of its balance may be lower by the same factor.

    Args:
        partner: The view that makes a sample's partner, before the training's `view` changes both. `None` means that a
            sample is its own partner.
        alone: Share of the epochs, from the first on, in which gates learn from agreement and balance alone.
        weight: Factor of the term.
        levels: The levels at which a sample and its partner should arrive at the same node, ascending. Agreement at a
            level is taught within the nodes of the level before it. Gates below the last level see no views: they learn
            from their balance only while the other gates learn alone, and from the objective after that. `None` means
            all levels, so each gate agrees for itself. The tree's depth alone means the leaves, so all gates agree
            together: use it where the inner nodes of the tree have no meaning of their own.

    Raises:
        ArgumentError: A field cannot be used, or there is no such field.

    >>> import torch
    >>> import hmoevae as hm
    >>> tree = hm.Mixture.of(hm.VAE(latent_dim=2), 3, balance=hm.Balance("kl", weight=20))
    >>> model = hm.HMoEVAE(tree, input_shape=(4,))
    >>> training = hm.Training(epochs=2, agreement=Agreement(alone=0.5))
    >>> history = hm.fit(model, torch.rand(64, 4), training, progress=False)
    >>> history.columns[2:6]
    ('loss', 'agreement', 'balance', 'usage/root/0')
    """

    _: KW_ONLY
    partner: Annotated[ViewLike | None, PlainValidator(_partner)] = Neighbour()
    alone: Annotated[float, BeforeValidator(_share)] = 0.5
    weight: NonNegativeFloat = 10.0
    levels: Annotated[tuple[int, ...] | None, BeforeValidator(_levels)] = None

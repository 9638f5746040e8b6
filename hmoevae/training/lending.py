"""Lending: code of the user's own draws from the global random states, as the seed of a training says."""

import hashlib
from contextlib import AbstractContextManager

import torch
from torch import nn

from hmoevae.nn.draws import Share, borrowed_random_state

DRAWS_BY_ITSELF = (nn.modules.dropout._DropoutNd, nn.RReLU)
"""Modules of torch that draw as they compute."""


def lent(
    generator: torch.Generator, share: Share, device: torch.device, salt: bytes = b""
) -> AbstractContextManager[None]:
    """Inside, the global random states are those that follow from a generator, others wherever it has come to.

    Args:
        generator: From which nothing is drawn here. Those of several processes stand at the same place.
        share: What tells this process from the others.
        device: Where is drawn.
        salt: Makes different draws of two loans at one place.
    """
    digest = hashlib.blake2b(generator.get_state().cpu().numpy().tobytes() + salt, digest_size=7).digest()
    return borrowed_random_state(int.from_bytes(digest, "big") + share.start, device)


def may_draw(model: nn.Module) -> bool:
    """Whether a module of a model may draw by itself: one of dropout, or any that is neither ours nor torch's.

    >>> may_draw(nn.Sequential(nn.Linear(2, 2), nn.Dropout())), may_draw(nn.Linear(2, 2))
    (True, False)
    """
    known = ("hmoevae", "torch")
    return any(
        isinstance(module, DRAWS_BY_ITSELF) or type(module).__module__.partition(".")[0] not in known
        for module in model.modules()
    )

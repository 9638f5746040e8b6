"""Random states for code of the user's own, which draws from the global generators: the training's seed fixes them."""

import hashlib
from contextlib import AbstractContextManager

import torch
from torch import nn

from hmoevae.nn.draws import Share, borrowed_random_state

DRAWS_BY_ITSELF = (nn.modules.dropout._DropoutNd, nn.RReLU)
"""Modules of torch whose forward pass draws random numbers."""


def seeded_random_states(
    generator: torch.Generator, share: Share, device: torch.device, salt: bytes = b""
) -> AbstractContextManager[None]:
    """Inside, seed the global random states from the state of `generator`; restore them on leaving.

    Args:
        generator: The generator. Its state is read, and does not change; it is the same in all processes.
        share: The process's samples, whose first index makes its seed differ from those of other processes.
        device: The device on which numbers are drawn.
        salt: Makes the seeds of two uses at one state of the generator differ.
    """
    digest = hashlib.blake2b(generator.get_state().cpu().numpy().tobytes() + salt, digest_size=7).digest()
    return borrowed_random_state(int.from_bytes(digest, "big") + share.start, device)


def may_draw(model: nn.Module) -> bool:
    """Whether a module of a model may draw from the global generators: dropout, or a module of the user's own.

    >>> may_draw(nn.Sequential(nn.Linear(2, 2), nn.Dropout())), may_draw(nn.Linear(2, 2))
    (True, False)
    """
    known = ("hmoevae", "torch")
    return any(
        isinstance(module, DRAWS_BY_ITSELF) or type(module).__module__.partition(".")[0] not in known
        for module in model.modules()
    )

"""How many threads the steps of a training run compute in on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hmoevae.model import HMoEVAE
from hmoevae.nn.conv import GroupedConv2d, GroupedConvTranspose2d

SMALL_STEP = 1 << 24
"""Weights times samples up to which a second thread gains less than a fifth on idle cores: see docs/slow.md."""


class Threads:
    """The number of threads for the steps of a model: one for small steps on a CPU, else what the process has.

    Threads meet at the end of every operation, hundreds of times in a step. Where another program holds the core of
    one of them, the others wait for it each time.

    Args:
        model: The model, on its device.

    >>> from hmoevae import VAE, Mixture
    >>> threads = Threads(HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,)))
    >>> with threads.for_samples(64):
    ...     torch.get_num_threads()
    1
    """

    def __init__(self, model: HMoEVAE) -> None:
        # A convolution uses a weight many times for a sample.
        convolves = any(
            isinstance(module, nn.Conv2d | GroupedConv2d | GroupedConvTranspose2d) for module in model.modules()
        )
        self.may_choose = model.device.type == "cpu" and not convolves
        self.n_weights = sum(weight.numel() for weight in model.parameters())

    @contextmanager
    def for_samples(self, n_samples: int) -> Iterator[None]:
        """Inside, what is computed for `n_samples` samples runs in the number of threads that suits it.

        The number is PyTorch's own setting of the calling thread, put back on leaving. A thread of the caller's that
        computes for the first time meanwhile is left with one.
        """
        before = torch.get_num_threads()
        if before == 1 or not self.may_choose or self.n_weights * n_samples > SMALL_STEP:
            yield
            return
        try:
            torch.set_num_threads(1)
            yield
        finally:
            torch.set_num_threads(before)

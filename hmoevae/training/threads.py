"""The number of threads in which a CPU computes training steps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hmoevae.model import HMoEVAE

SMALL_STEP = 1 << 24
"""Product of weights and samples up to which a second thread gains less than a fifth on idle cores: docs/slow.md."""


class Threads:
    """The number of threads for the steps of a model: one for small steps on a CPU, else the process's own number.

    Threads synchronise at the end of every operation, hundreds of times in a step. Where another program occupies the
    core of one thread, all others wait for it each time.

    Args:
        model: The model, on its device.

    >>> from hmoevae import VAE, Mixture
    >>> threads = Threads(HMoEVAE(Mixture.of(VAE(latent_dim=2), 3), input_shape=(4,)))
    >>> with threads.for_samples(64):
    ...     torch.get_num_threads()
    1
    """

    def __init__(self, model: HMoEVAE) -> None:
        # A convolution uses each weight many times per sample, so its number of weights does not measure its work.
        convolves = any(weight.ndim > 3 for weight in model.parameters())  # the group axis and that of a kernel
        self.may_choose = model.device.type == "cpu" and not convolves
        self.n_weights = sum(weight.numel() for weight in model.parameters())

    @contextmanager
    def for_samples(self, n_samples: int) -> Iterator[None]:
        """Inside, set the number of threads for a step of `n_samples` samples.

        This is PyTorch's setting of the calling thread, and is restored on leaving. Another thread of the program that
        computes for the first time meanwhile keeps one thread.
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

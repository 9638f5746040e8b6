"""Callbacks for `hmoevae.fit`."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hmoevae.checks import check_integer
from hmoevae.errors import ArgumentError, mismatch
from hmoevae.training import EpochEnd


class SampleRecorder:
    """Decodes the same z by every leaf during training, for `hmoevae.plot.sample_grid`.

    Args:
        n_frames: Approximate number of epochs to keep, at least two. They are evenly spaced and include the first and
            the last one. Epochs that did not change the experts, such as those of gates alone, are left out.
        seed: Seed of z, which is drawn from the prior.

    Attributes:
        epochs: The epochs that were kept.

    Raises:
        ArgumentError: `n_frames` is not an integer > 1.

    >>> import hmoevae as hm
    >>> model, recorder = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2), 3), (4,)), SampleRecorder(n_frames=2)
    >>> _ = hm.fit(model, torch.rand(8, 4), hm.Training(epochs=5), callbacks=[recorder], progress=False)
    >>> recorder.epochs, recorder.frames.shape
    ([1, 5], torch.Size([2, 3, 4]))
    >>> again = SampleRecorder(n_frames=2)
    >>> again.load_state_dict(recorder.state_dict())  # as a training does that resumes from a checkpoint
    >>> torch.equal(again.frames, recorder.frames)
    True
    """

    def __init__(self, n_frames: int = 20, *, seed: int = 0) -> None:
        check_integer("n_frames", n_frames, least=2)
        self.n_frames = int(n_frames)
        self.seed = seed
        self.epochs: list[int] = []
        self._frames: list[Tensor] = []

    def __call__(self, end: EpochEnd) -> None:
        """Keep the samples of this epoch if it is one of the `n_frames`."""
        kept = torch.linspace(1, end.epochs, min(self.n_frames, end.epochs)).round().tolist()
        if end.epoch not in kept:
            return
        generator = torch.Generator().manual_seed(self.seed)
        z = torch.randn(end.model.experts.latent_dim, generator=generator)
        leaf = torch.arange(end.model.plan.n_leaves)
        frame = end.model.decode(z.expand(len(leaf), -1), leaf).cpu()
        if not self._frames or not torch.equal(frame, self._frames[-1]):
            self.epochs.append(end.epoch)
            self._frames.append(frame)

    def state_dict(self) -> dict[str, Any]:
        """The samples kept so far, for a checkpoint."""
        return {"epochs": list(self.epochs), "frames": list(self._frames)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.epochs = list(state_dict["epochs"])
        self._frames = list(state_dict["frames"])

    @property
    def frames(self) -> Float[Tensor, "epoch leaf *sample"]:
        """The samples that were kept, one row per epoch.

        Raises:
            ArgumentError: No epoch has been kept yet.
        """
        if not self._frames:
            raise ArgumentError(mismatch("SampleRecorder", "a finished epoch of fit", "none"))
        return torch.stack(self._frames)

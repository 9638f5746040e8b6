"""Callbacks for `hmoevae.fit`."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hmoevae.checks import check_integer
from hmoevae.errors import ArgumentError, mismatch
from hmoevae.training import EpochEnd


class SampleRecorder:
    """Keeps, as training goes, what every leaf makes of one shared z: the material of `hmoevae.plot.sample_grid`.

    Args:
        n_frames: About how many epochs to keep, two or more, evenly spread, the first and the last among them. Epochs
            that left the experts as they were, such as those of gates alone, are left out.
        seed: Fixes z, a draw from the prior.

    Attributes:
        epochs: The epochs kept.

    Raises:
        ArgumentError: `n_frames` is not an integer > 1.

    >>> import hmoevae as hm
    >>> model, recorder = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2), 3), (4,)), SampleRecorder(n_frames=2)
    >>> _ = hm.fit(model, torch.rand(8, 4), hm.Training(epochs=5), callbacks=[recorder], progress=False)
    >>> recorder.epochs, recorder.frames.shape
    ([1, 5], torch.Size([2, 3, 4]))
    >>> again = SampleRecorder(n_frames=2)
    >>> again.load_state_dict(recorder.state_dict())  # as training does that goes on from a checkpoint
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
        """Keep this epoch's samples if its turn has come."""
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
        """Go on from what `state_dict` gave."""
        self.epochs = list(state_dict["epochs"])
        self._frames = list(state_dict["frames"])

    @property
    def frames(self) -> Float[Tensor, "epoch leaf *sample"]:
        """The samples kept, one row an epoch.

        Raises:
            ArgumentError: There are none yet.
        """
        if not self._frames:
            raise ArgumentError(mismatch("SampleRecorder", "a finished epoch of fit", "none"))
        return torch.stack(self._frames)

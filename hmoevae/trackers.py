"""Tracking: a callback that sends the history, and pictures, to an experiment tracker."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8

from hmoevae.checks import check_choice, is_integer
from hmoevae.errors import ArgumentError, ArgumentTypeError, MissingExtraError, from_extra, mismatch
from hmoevae.training import EpochEnd

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker
    from matplotlib.figure import Figure

N_SAMPLES = 10
"""Number of samples of each leaf in a picture."""


class Tracking:
    """Sends every epoch's row of the history to a tracker, and every few epochs pictures of samples and of the tree.

    The tracker's step is the epoch. Of several processes, the main one sends. The run is opened after the first epoch,
    and closed when training ends or fails.

    Args:
        tracker: The name of an installed tracker that accelerate supports, such as `"tensorboard"` (extra `trackers`)
            or `"wandb"`; or an `accelerate.tracking.GeneralTracker` that has been started.
        run: Name of the run, or of the project for trackers that have projects.
        folder: Folder for trackers that write files; TensorBoard's are in `folder/run`.
        images_every: Number of epochs between pictures; the first and the last epoch always have some. `None` for
            trackers that take no images.

    Raises:
        ArgumentError: There is no such tracker, or it takes no images.
        ArgumentTypeError: `tracker` is neither a name nor a tracker, `run` no string, or `folder` no path.
        MissingExtraError: The tracker's library is not installed, or matplotlib, for the pictures, is not.

    >>> import hmoevae as hm, tempfile
    >>> model = hm.HMoEVAE(hm.Mixture.of(hm.VAE(2), 3), (4,))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tracking = hm.Tracking("tensorboard", run="first", folder=folder, images_every=None)
    ...     _ = hm.fit(model, torch.rand(8, 4), hm.Training(epochs=2), callbacks=[tracking], progress=False)
    ...     tracking.close()  # does nothing: `fit` has closed it
    ...     os.listdir(os.path.join(folder, "first"))
    ['events.out.tfevents...']
    """

    def __init__(
        self,
        tracker: "str | GeneralTracker" = "tensorboard",
        *,
        run: str = "hmoevae",
        folder: str | os.PathLike[str] = "runs",
        images_every: int | None = 10,
    ) -> None:
        from accelerate.tracking import GeneralTracker  # not at the top: see resolve_device

        if not isinstance(tracker, str | GeneralTracker):
            expected = "a name or a GeneralTracker of accelerate"
            raise ArgumentTypeError(mismatch("tracker", expected, type(tracker).__name__))
        if not isinstance(run, str):
            raise ArgumentTypeError(mismatch("run", "a string", type(run).__name__))
        if not isinstance(folder, str | os.PathLike):
            raise ArgumentTypeError(mismatch("folder", "a path", type(folder).__name__))
        if images_every is not None and not is_integer(images_every, least=1):
            raise ArgumentError(mismatch("images_every", "an integer > 0 or None", repr(images_every)))
        kind: Any = _class_of(tracker) if isinstance(tracker, str) else type(tracker)
        if images_every is not None:
            if not hasattr(kind, "log_images"):
                raise ArgumentError(mismatch("images_every", f"None for {kind.name!r}, which takes none", images_every))
            from hmoevae import plot  # noqa: F401  # raises now, not after an epoch, if matplotlib is not installed
        self.tracker = tracker
        self.run = run
        self.folder = folder
        self.images_every = images_every
        self._open: GeneralTracker | None = None

    def __call__(self, end: EpochEnd) -> None:
        """Send the last row and, every `images_every` epochs, the pictures."""
        if not end.is_main:
            return
        if self._open is None:
            self._open = self._start()
        row = end.history.rows[-1]
        self._open.log({name: value for name, value in row.items() if name != "epoch"}, step=end.epoch)
        every = self.images_every
        if every is not None and (end.epoch in (1, end.epochs) or end.epoch % every == 0):
            self._send_images(self._open, end)

    def close(self) -> None:
        """Finish the run, if one is open; `hmoevae.fit` calls this at the end."""
        if self._open is not None:
            self._open.finish()
            self._open = None

    def _start(self) -> "GeneralTracker":
        if not isinstance(self.tracker, str):
            return self.tracker
        from accelerate import PartialState

        PartialState()  # the trackers' logging needs it
        kind = _class_of(self.tracker)
        tracker = kind(self.run, os.fspath(self.folder)) if kind.requires_logging_directory else kind(self.run)
        if hasattr(tracker, "start"):  # older versions of accelerate start them when they are made
            tracker.start()
        return tracker

    @staticmethod
    def _send_images(tracker: Any, end: EpochEnd) -> None:
        from hmoevae import plot

        row = end.history.rows[-1]
        usage = torch.tensor([row[f"usage/{leaf.path}"] for leaf in end.model.plan.leaves], device="cpu")
        figures = {
            "samples": plot.samples(end.model, N_SAMPLES, generator=torch.Generator().manual_seed(0)),
            "tree": plot.tree(end.model, usage=usage),
        }
        images = {name: _pixels(figure)[None] for name, figure in figures.items()}
        if tracker.name == "tensorboard":
            tracker.log_images(images, step=end.epoch, dataformats="NHWC")  # not its default format
        else:
            tracker.log_images({name: list(batch) for name, batch in images.items()}, step=end.epoch)


def _class_of(name: str) -> Any:
    """The class of one of accelerate's trackers."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers  # not at the top: see resolve_device
    from accelerate.utils import LoggerType

    classes: dict[str, Any] = {str(key): kind for key, kind in LOGGER_TYPE_TO_CLASS.items()}
    check_choice("tracker", name, sorted(classes))
    if name in LoggerType.list() and name not in map(str, get_available_trackers()):
        expected = from_extra(name, "trackers") if name == "tensorboard" else f"{name} to be installed"
        raise MissingExtraError(mismatch("tracker", expected, "no such module"))
    return classes[name]


def _pixels(figure: "Figure") -> UInt8[np.ndarray, "height width rgb"]:
    """Render a figure to pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

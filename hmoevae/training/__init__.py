"""Training: `fit`, and what it takes and gives to callbacks."""

from hmoevae.training.agreement import Agreement
from hmoevae.training.batches import Data
from hmoevae.training.checkpoints import best_checkpoint, last_checkpoint
from hmoevae.training.compiled import CompiledPass
from hmoevae.training.device import Precision, has_bfloat16, resolve_device
from hmoevae.training.fitting import Callback, EpochEnd, Schedule, fit
from hmoevae.training.restarts import Best, best_of
from hmoevae.training.warmup import Warmup

__all__ = [
    "Agreement",
    "Best",
    "Callback",
    "CompiledPass",
    "Data",
    "EpochEnd",
    "Precision",
    "Schedule",
    "Warmup",
    "best_checkpoint",
    "best_of",
    "fit",
    "has_bfloat16",
    "last_checkpoint",
    "resolve_device",
]


def __dir__() -> list[str]:
    """What there is for users."""
    return __all__

"""Training: `fit`, its options and its callbacks."""

from hmoevae.training.agreement import Agreement
from hmoevae.training.batches import Data
from hmoevae.training.checkpoints import best_checkpoint, last_checkpoint
from hmoevae.training.compiled import CompiledPass
from hmoevae.training.device import Precision, has_bfloat16, resolve_device
from hmoevae.training.early import EarlyStopping
from hmoevae.training.epochs import Callback, EpochEnd
from hmoevae.training.fitting import fit
from hmoevae.training.freezing import frozen
from hmoevae.training.record import Schedule, Training, training_from_json
from hmoevae.training.restarts import Best, best_of
from hmoevae.training.row_adam import RowAdam
from hmoevae.training.warmup import Warmup

__all__ = [
    "Agreement",
    "Best",
    "Callback",
    "CompiledPass",
    "Data",
    "EarlyStopping",
    "EpochEnd",
    "Precision",
    "RowAdam",
    "Schedule",
    "Training",
    "Warmup",
    "best_checkpoint",
    "best_of",
    "fit",
    "frozen",
    "has_bfloat16",
    "last_checkpoint",
    "resolve_device",
    "training_from_json",
]


def __dir__() -> list[str]:
    """The public names."""
    return __all__

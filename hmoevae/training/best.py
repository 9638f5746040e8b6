"""The best epoch so far, with its weights, for early stopping."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hmoevae.model import HMoEVAE
from hmoevae.training.early import EarlyStopping


class BestSoFar:
    """The best epoch so far and its weights, kept in memory.

    Args:
        rule: By how much an epoch has to be better, and how many epochs to wait for that.

    Attributes:
        epoch: The best epoch; `None` before the first comparison.
        loss: Its validation loss.
        waited: Number of epochs since the best one.
        chosen: For each leaf, the share of the best epoch's samples whose most probable leaf it was.
    """

    def __init__(self, rule: EarlyStopping) -> None:
        self.rule = rule
        self.epoch: int | None = None
        self.loss = math.inf
        self.waited = 0
        self.chosen: list[float] = []
        self._weights: dict[str, Tensor] = {}

    def see(self, model: HMoEVAE, epoch: int, loss: float, chosen: list[float]) -> bool:
        """Compare an epoch with the best one; returns whether to end training."""
        if loss < self.loss - (self.rule.min_delta if self.epoch is not None else 0.0):
            self.epoch, self.loss, self.waited, self.chosen = epoch, loss, 0, list(chosen)
            self._weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
        else:
            self.waited += 1
        return self.waited >= self.rule.patience

    def put_back(self, model: HMoEVAE) -> None:
        """Load the weights of the best epoch into the model, if there is one."""
        if self.epoch is not None:
            model.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """The state, for a checkpoint."""
        about = {"epoch": self.epoch, "loss": self.loss, "waited": self.waited, "chosen": self.chosen}
        return about | {"weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.epoch, self.loss, self.waited = state["epoch"], state["loss"], state["waited"]
        self.chosen, self._weights = state["chosen"], state["weights"]

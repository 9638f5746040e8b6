"""EarlyStopping: when a training ends by itself."""

from dataclasses import dataclass

from hmoevae.checks import check_integer, check_number


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """Training ends when the objective on `validation_data` has stopped falling, and the model gets its best weights.

    What is watched is the model's own objective, `val_<objective>` of the history: no label plays a part, and
    neither do balance, agreement and a `kl_weight`. Epochs count from when gates and experts learn together at full
    weight: after a start, epochs of gates alone and a warm-up.

    Args:
        patience: Training ends when so many epochs in a row were no better than the best.
        min_delta: By how many nats a sample an epoch has to be better than the best to count as such.

    Raises:
        ArgumentError: A number is out of range.

    >>> import torch
    >>> import hmoevae as hm
    >>> model, x = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(4,)), torch.rand(64, 4)
    >>> training = hm.Training(epochs=9, early_stopping=EarlyStopping(patience=1, min_delta=100.0))
    >>> history = hm.fit(model, x[8:], training, validation_data=x[:8], progress=False)
    >>> len(history), history.best_epoch
    (2, 1)
    """

    patience: int = 5
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_integer("EarlyStopping.patience", self.patience)
        check_number("EarlyStopping.min_delta", self.min_delta)

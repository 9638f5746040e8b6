"""EarlyStopping: an option that ends a training when it no longer improves."""

from dataclasses import dataclass

from hmoevae.checks import check_integer, check_number


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """End training when the objective on `validation_data` has stopped falling, and load the best epoch's weights.

    Epochs are compared by the model's objective, the column `val_<objective>` of the history. Labels, balance,
    agreement and `kl_weight` play no part. The comparison begins when gates and experts learn together at full weight:
    after the start, the epochs of gates alone, and the warm-up.

    Args:
        patience: Training ends after this number of epochs in a row without a new best epoch.
        min_delta: A new best epoch has to be better by this number of nats per sample.

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

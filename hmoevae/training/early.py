"""EarlyStopping: an option that ends a training when it no longer improves."""

from hmoevae.errors import ArgumentError
from hmoevae.spec.record import NonNegativeFloat, PositiveInt, record


@record(kind="early_stopping", error=ArgumentError)
class EarlyStopping:
    """End training when the objective on `validation_data` has stopped falling, and load the best epoch's weights.

    Epochs are compared by the model's objective, the column `val_<objective>` of the history. Labels, balance,
    agreement and `kl_weight` play no part. The comparison begins when gates and experts learn together at full weight:
    after the start, the epochs of gates alone, and the warm-up.

    Args:
        patience: Training ends after this number of epochs in a row without a new best epoch.
        min_delta: A new best epoch has to be better by this number of nats per sample.

    Raises:
        ArgumentError: A number is out of range, or there is no such field.

    >>> import torch
    >>> import hmoevae as hm
    >>> model, x = hm.HMoEVAE(hm.Mixture.of(hm.VAE(latent_dim=2), 3), input_shape=(4,)), torch.rand(64, 4)
    >>> training = hm.Training(epochs=9, early_stopping=EarlyStopping(patience=1, min_delta=100.0))
    >>> history = hm.fit(model, x[8:], training, validation_data=x[:8], progress=False)
    >>> len(history), history.best_epoch
    (2, 1)
    """

    patience: PositiveInt = 5
    min_delta: NonNegativeFloat = 0.0

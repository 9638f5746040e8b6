"""Warmup: a schedule of the KL's weight and of the gates' temperature."""

from hmoevae.errors import ArgumentError
from hmoevae.spec.record import NonNegativeFloat, PositiveFloat, PositiveInt, record


@record(kind="warmup", error=ArgumentError)
class Warmup:
    """Lower the weight of the KL and soften the gates in the first epochs in which the experts learn.

    The weight of KL(q(z|x) || p(z)) rises linearly from `kl` to 1, so that the decoder uses the latents before they
    cost much (Bowman et al. 2016; Sonderby et al. 2016). The gates' logits are divided by a temperature that falls from
    `temperature` to 1 by equal factors, so that no expert is left out before it has learnt anything (Ueda & Nakano
    1998). Both change from epoch to epoch. The recorded training losses are computed with this weight and temperature;
    `validation_data` are always measured with both at 1.

    Args:
        epochs: Length of the warm-up, in epochs in which the experts learn. After it, both are 1.
        kl: Weight of the KL in the first of these epochs.
        temperature: Temperature of the gates in the first of these epochs; 1 does not change it.

    Raises:
        ArgumentError: A number is out of range, or there is no such field.

    >>> warmup = Warmup(4, temperature=16.0)
    >>> [warmup.at(epoch) for epoch in range(6)]
    [(0.0, 16.0), (0.25, 8.0), (0.5, 4.0), (0.75, 2.0), (1.0, 1.0), (1.0, 1.0)]
    """

    epochs: PositiveInt
    kl: NonNegativeFloat = 0.0
    temperature: PositiveFloat = 1.0

    def at(self, epoch: int) -> tuple[float, float]:
        """Weight of the KL and temperature of the gates after `epoch` epochs in which the experts have learnt."""
        left = 1 - min(epoch / self.epochs, 1.0)
        return self.kl * left + (1 - left), self.temperature**left

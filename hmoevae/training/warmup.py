"""Warm-up: schedules of the KL's weight and of the gates' temperature as `fit` takes them."""

from dataclasses import dataclass

from hmoevae.checks import check_integer, check_number


@dataclass(frozen=True, slots=True)
class Warmup:
    """While the experts learn their first epochs, the KL weighs less and the gates are softer than the model says.

    The weight of KL(q(z|x) || p(z)) goes from `kl` to 1 in a straight line, so that latents are of use before they
    have to pay for it (Bowman et al. 2016; Sonderby et al. 2016). The gates' logits are divided by a temperature that
    falls from `temperature` to 1 by equal factors, so that no expert is left out before it has learnt anything (Ueda &
    Nakano 1998). Both change from epoch to epoch, and the losses recorded until then are of that weight and
    temperature; `validation_data` are always measured as the model is.

    Args:
        epochs: How many of the epochs in which experts learn it takes; from the next one on both are 1.
        kl: Weight of the KL in the first of them.
        temperature: Temperature of the gates in the first of them; 1 leaves them as they are.

    Raises:
        ArgumentError: A number is out of range.

    >>> warmup = Warmup(4, temperature=16.0)
    >>> [warmup.at(epoch) for epoch in range(6)]
    [(0.0, 16.0), (0.25, 8.0), (0.5, 4.0), (0.75, 2.0), (1.0, 1.0), (1.0, 1.0)]
    """

    epochs: int
    kl: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_integer("Warmup.epochs", self.epochs)
        check_number("Warmup.kl", self.kl)
        check_number("Warmup.temperature", self.temperature, positive=True)

    def at(self, epoch: int) -> tuple[float, float]:
        """Weight of the KL and temperature of the gates when the experts have learnt for so many epochs."""
        left = 1 - min(epoch / self.epochs, 1.0)
        return self.kl * left + (1 - left), self.temperature**left

"""The course of a training: which phase each epoch belongs to, and its settings."""

from dataclasses import dataclass, replace
from typing import Literal

from hmoevae.errors import ArgumentError, mismatch
from hmoevae.nn.routes import ALL, Routes
from hmoevae.nn.settings import StepSettings
from hmoevae.training.agreement import Agreement
from hmoevae.training.warmup import Warmup

Phase = Literal["start", "alone", "joint"]


@dataclass(frozen=True, slots=True)
class Lesson:
    """The plan of one epoch.

    Attributes:
        phase: `"start"`: gates and experts learn given leaves; `"alone"`: gates learn from agreement and balance;
            `"joint"`: gates and experts learn from the whole loss.
        rate_falls: Whether a learning-rate schedule takes steps in this epoch.
        settings: The settings of every step.
        is_full: Whether gates and experts learn together and the warm-up is over.
    """

    phase: Phase
    rate_falls: bool
    settings: StepSettings
    is_full: bool


class Course:
    """The lessons of a training, in order.

    Args:
        epochs: Number of epochs.
        start_epochs: Number of epochs, from the first on, that teach the start.
        agreement: As in `hmoevae.Training`.
        warmup: As in `hmoevae.Training`.
        kl_weight: As in `hmoevae.Training`.
        route: As in `hmoevae.Training`.

    Attributes:
        started_by: The last epoch of the start; 0 without one.
        full_from: The first epoch in which gates and experts learn together and the warm-up is over.
        falling_epochs: Number of epochs, the last ones, in which a learning-rate schedule takes steps.

    Raises:
        ArgumentError: The warm-up would not end before the training does.

    >>> course = Course(6, 1, Agreement(alone=0.5), Warmup(2))
    >>> [(lesson.phase, lesson.settings.kl_weight) for lesson in map(course.lesson, range(1, 7))]
    [('start', 0.0), ('alone', 1.0), ('alone', 1.0), ('alone', 1.0), ('joint', 0.5), ('joint', 1.0)]
    """

    def __init__(
        self,
        epochs: int,
        start_epochs: int = 0,
        agreement: Agreement | None = None,
        warmup: Warmup | None = None,
        kl_weight: float = 1.0,
        route: Routes = ALL,
    ) -> None:
        alone = 0 if agreement is None else round(epochs * agreement.alone)
        self.started_by = start_epochs
        self.alone_by = start_epochs + alone
        self.falls_after = self.alone_by if agreement is not None and self.alone_by < epochs else 0
        self.falling_epochs = epochs - self.falls_after
        self.agreement = agreement
        self.warmup = warmup
        self.kl_weight = kl_weight
        self.route = route
        warm_by = 0 if warmup is None else warmup.epochs + alone  # experts do not learn while gates are alone
        self.full_from = 1 + max(self.alone_by, warm_by)
        if warmup is not None and warmup.epochs >= epochs - alone:
            expected = "fewer epochs than those in which the experts learn, so that the warm-up ends"
            raise ArgumentError(mismatch("Training.warmup", expected, warmup))

    def lesson(self, epoch: int) -> Lesson:
        """The plan of an epoch, counted from 1."""
        phase: Phase = "start" if epoch <= self.started_by else "alone" if epoch <= self.alone_by else "joint"
        kl_weight, temperature = 1.0, 1.0
        if self.warmup is not None and phase != "alone":  # the warm-up counts epochs in which experts learn
            before = epoch - 1
            experts_learnt = before - max(0, min(before, self.alone_by) - self.started_by)
            kl_weight, temperature = self.warmup.at(experts_learnt)
        settings = StepSettings(kl_weight=self.kl_weight * kl_weight, gate_temperature=temperature)
        if self.agreement is not None and phase != "start":
            weight, levels = self.agreement.weight, self.agreement.levels
            settings = replace(settings, agreement_weight=weight, agreement_levels=levels)
        if phase == "joint":
            settings = replace(settings, routes=self.route)
        return Lesson(phase, epoch > self.falls_after, settings, epoch >= self.full_from)

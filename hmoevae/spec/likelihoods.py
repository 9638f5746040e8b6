"""Likelihoods as data: the records of p(x|z), the package's own and a user's."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from hmoevae.checks import is_number
from hmoevae.errors import SpecError, mismatch
from hmoevae.spec.record import expected, record


def _scale(value: Any) -> float:
    if not is_number(value, positive=True):
        raise expected("a finite number > 0")
    if not 1e-15 <= float(value) <= 1e15:  # so that its square and the inverse of that are finite in float32
        raise expected("a number from 1e-15 to 1e15")
    return float(value)


def _scale_or_learned(value: Any) -> Any:
    return value if isinstance(value, str) and value == "learned" else _scale(value)


class Likelihood:
    """Base class of the records of p(x|z). A record's `build` makes the module that computes it.

    A likelihood of your own is a class with the decorator `hmoevae.record`, this base class and the method `build`.

    >>> from hmoevae import LikelihoodModule, record
    >>> @record(kind="doctest.unit")
    ... class Unit(Likelihood):
    ...     def build(self, n_experts, n_features):
    ...         return UnitModule()
    >>> class UnitModule(LikelihoodModule):
    ...     support = "finite values"
    ...
    ...     def contains(self, x):
    ...         return True
    ...
    ...     def log_density(self, raw, x):
    ...         return -0.5 * ((x - raw) ** 2 + 1.8379)
    ...
    ...     def mean(self, raw):
    ...         return raw
    ...
    ...     def sample(self, raw, generator=None):
    ...         return raw + raw.new_empty(raw.shape).normal_(generator=generator)
    >>> Unit().build(n_experts=3, n_features=4).outputs
    1
    """

    kind: str

    def build(self, n_experts: int, n_features: int) -> Any:  # noqa: ARG002
        """Make the module that computes the likelihood, a `hmoevae.nn.likelihoods.LikelihoodModule`.

        Args:
            n_experts: Number of experts of the group; the module's parameters and buffers have this as their first
                axis.
            n_features: Number of entries of a sample.
        """
        expected = "a method of its own, as a user's likelihoods have (the package's are built by likelihood_module)"
        raise SpecError(mismatch(f"{type(self).__name__}.build", expected, "none"))

    def __str__(self) -> str:
        return repr(self)


@record(kind="gaussian")
class Gaussian(Likelihood):
    """p(x|z) = N(mean(z), scale^2), independent over the features.

    Args:
        scale: The standard deviation, in the units of the data, from 1e-15 to 1e15; or `"learned"`: one parameter per
            feature and expert, with the initial value 0.5 (twice the floor, if that is more).
        mean: `"sigmoid"` keeps the mean in (0, 1) and needs data in [0, 1]; `"identity"` restricts neither.
        floor: The lower bound of a learned scale, in the units of the data. Without one, an expert that models a single
            point, or a constant column, would reach an infinite density; with it, the density of an entry is at most
            0.4 / floor.

    >>> print(Gaussian(scale=0.1, mean="identity")), print(Gaussian("learned"))
    Gaussian(0.1, identity)
    Gaussian(learned)
    (None, None)
    """

    scale: Annotated[float | Literal["learned"], BeforeValidator(_scale_or_learned)] = 0.5
    mean: Literal["sigmoid", "identity"] = "sigmoid"
    floor: Annotated[float, BeforeValidator(_scale)] = 1e-3

    def __str__(self) -> str:
        scale = self.scale if isinstance(self.scale, str) else f"{self.scale:g}"
        return f"Gaussian({scale}{', identity' if self.mean == 'identity' else ''})"


@record(kind="bernoulli")
class Bernoulli(Likelihood):
    """p(x|z) = Bernoulli(sigmoid(f(z))) for data that are 0 or 1, independent over the features.

    >>> print(Bernoulli())
    Bernoulli
    """

    def __str__(self) -> str:
        return "Bernoulli"


@record(kind="continuous_bernoulli")
class ContinuousBernoulli(Likelihood):
    """A proper density for grey levels in [0, 1] (Loaiza-Ganem & Cunningham 2019, The continuous Bernoulli).

    >>> print(ContinuousBernoulli())
    ContinuousBernoulli
    """

    def __str__(self) -> str:
        return "ContinuousBernoulli"

"""Likelihoods as data: the records of p(x|z), the package's own and a user's."""

import itertools
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from hmoevae.checks import is_integer, is_number
from hmoevae.errors import SpecError, mismatch
from hmoevae.spec.record import Usable, expected, record


def _scale(value: Any) -> float:
    if not is_number(value, positive=True):
        raise expected("a finite number > 0")
    if not 1e-15 <= float(value) <= 1e15:  # so that its square and the inverse of that are finite in float32
        raise expected("a number from 1e-15 to 1e15")
    return float(value)


def _scale_or_learned(value: Any) -> Any:
    return value if isinstance(value, str) and value == "learned" else _scale(value)


def _floor(value: Any) -> float | tuple[float, ...]:
    return tuple(_scale(part) for part in value) if isinstance(value, tuple | list) and value else _scale(value)


def _at_least_two(value: Any) -> int:
    if not is_integer(value, least=2):
        raise expected("an integer > 1")
    return int(value)


def _total(value: Any) -> float | None:
    if value is not None and not is_number(value, positive=True):
        raise expected("None or a finite number > 0")
    return None if value is None else float(value)


def _shown(scale: float | str) -> str:
    return scale if isinstance(scale, str) else f"{scale:g}"


Scale = Annotated[float | Literal["learned"], BeforeValidator(_scale_or_learned)]
LEAST_SCALE = 1e-3
"""The default lower bound of a learned scale, in the units of the data."""
Floor = Annotated[float | tuple[float, ...], BeforeValidator(_floor)]
NumberOfCodes = Annotated[int, BeforeValidator(_at_least_two)]


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
        floor: The lower bound of a learned scale, in the units of the data, or one for each feature. Without one, an
            expert that models a single point, or a constant column, would reach an infinite density; with it, the
            density of an entry is at most 0.4 / floor.

    >>> print(Gaussian(scale=0.1, mean="identity")), print(Gaussian("learned"))
    Gaussian(0.1, identity)
    Gaussian(learned)
    (None, None)
    """

    scale: Scale = 0.5
    mean: Literal["sigmoid", "identity"] = "sigmoid"
    floor: Floor = LEAST_SCALE

    def __str__(self) -> str:
        return f"Gaussian({_shown(self.scale)}{', identity' if self.mean == 'identity' else ''})"


@record(kind="log_normal")
class LogNormal(Likelihood):
    """The logarithm of a feature is N(mean(z), scale^2), for positive numbers. Networks see the logarithms.

    Args:
        scale: The standard deviation of the logarithm, or `"learned"`, as in `Gaussian`.
        floor: The lower bound of a learned scale, or one for each feature.

    >>> print(LogNormal(), LogNormal(0.1))
    LogNormal(learned) LogNormal(0.1)
    """

    scale: Scale = "learned"
    floor: Floor = LEAST_SCALE

    def __str__(self) -> str:
        return f"LogNormal({_shown(self.scale)})"


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


@record(kind="categorical")
class Categorical(Likelihood):
    """Probabilities of categories, a softmax of the decoder's outputs. Data are codes 0, 1, ..., n - 1.

    Networks see one-hot codes. Reconstructions and means are the most probable codes, since the mean of codes has no
    meaning.

    Args:
        n: Number of categories.

    >>> print(Categorical(3))
    Categorical(3)
    """

    n: NumberOfCodes

    def __str__(self) -> str:
        return f"Categorical({self.n})"


@record(kind="ordinal")
class Ordinal(Likelihood):
    """Ordered grades: p(x <= k|z) = sigmoid(c_k - f(z)) with learned cut points c_k (McCullagh 1980).

    Data are codes 0, 1, ..., n - 1. Every feature and expert has cut points of its own, and the decoder gives one
    number. Networks see the codes as numbers from -1 to 1. Reconstructions and means are the most probable codes.

    Args:
        n: Number of grades.

    >>> print(Ordinal(5))
    Ordinal(5)
    """

    n: NumberOfCodes

    def __str__(self) -> str:
        return f"Ordinal({self.n})"


def _count(name: str, total: float | None) -> str:
    return name if total is None else f"{name}(total={total:g})"


@record(kind="poisson")
class Poisson(Likelihood):
    """p(x|z) = Poisson(rate(z)) for counts. Networks see log(1 + x).

    Args:
        total: `None`: the decoder gives the logarithm of each rate (above exp(10), rates grow linearly). A number, such
            as the median of the samples' total counts: the rate is the total count of the sample times a share, the
            softmax of the decoder's outputs over the features. Then log-densities are of counts given their total,
            means and draws are those of a sample with the total of this number, and networks see the counts scaled to
            it. The total is that of the observed entries.

    >>> print(Poisson(), Poisson(total=1000))
    Poisson Poisson(total=1000)
    """

    total: Annotated[float | None, BeforeValidator(_total)] = None

    def __str__(self) -> str:
        return _count("Poisson", self.total)


@record(kind="negative_binomial")
class NegativeBinomial(Likelihood):
    """Counts that vary more than those of `Poisson`: mean m and variance m + dispersion * m^2.

    The dispersion is learned, one for each feature and expert; it starts at 1. Networks see log(1 + x).

    Args:
        total: As in `Poisson`. With a number, this is the likelihood of scVI (Lopez et al. 2018), given the observed
            library size.

    >>> print(NegativeBinomial(), NegativeBinomial(total=1e4))
    NegativeBinomial NegativeBinomial(total=10000)
    """

    total: Annotated[float | None, BeforeValidator(_total)] = None

    def __str__(self) -> str:
        return _count("NegativeBinomial", self.total)


def _counts(value: Any) -> Any:
    if type(value) not in (Poisson, NegativeBinomial):
        raise expected("Poisson(...) or NegativeBinomial(...)")
    return value


@record(kind="zero_inflated")
class ZeroInflated(Likelihood):
    """A count that is zero with probability p(z), and drawn from another likelihood otherwise (Lambert 1992).

    Args:
        count: `Poisson` or `NegativeBinomial`.

    >>> print(ZeroInflated(Poisson()))
    ZeroInflated(Poisson)
    """

    count: Annotated[Any, BeforeValidator(_counts)] = NegativeBinomial()

    def __str__(self) -> str:
        return f"ZeroInflated({self.count})"


def _of_one_column(value: Any) -> Any:
    if isinstance(value, Columns):
        raise expected("the likelihood of one column")
    if isinstance(value, Gaussian | LogNormal) and isinstance(value.floor, tuple):
        raise expected("a number as the floor of one column")
    return value


@record(kind="columns")
class Columns(Likelihood):
    """A likelihood for each column of a table, whose samples have the shape `(len(parts),)`.

    Columns with equal likelihoods are computed together; each has parameters of its own. A `total` is that of all
    columns with the same likelihood.

    Args:
        parts: The likelihood of every column, in the order of the columns.

    >>> size = Gaussian("learned", mean="identity")
    >>> likelihood = Columns.of(size, size, Categorical(3))
    >>> print(likelihood)
    Columns(2 x Gaussian(learned, identity), Categorical(3))
    >>> likelihood == Columns(parts=(size,) * 2 + (Categorical(3),))
    True
    """

    parts: Annotated[tuple[Annotated[Likelihood, Usable, AfterValidator(_of_one_column)], ...], Field(min_length=1)]

    @classmethod
    def of(cls, *parts: Likelihood) -> "Columns":
        """The likelihoods as arguments."""
        return cls(parts=parts)

    def __str__(self) -> str:
        runs = ((part, len(list(run))) for part, run in itertools.groupby(map(str, self.parts)))
        return f"Columns({', '.join(f'{n} x {part}' if n > 1 else part for part, n in runs)})"

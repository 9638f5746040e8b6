"""The columns of a table as data: what the cells of a column are, and how they become numbers and back.

Axes: `n` counts rows. A cell's number is its *code*; NaN is the code of a gap.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Float
from pydantic import BeforeValidator

from hmoevae.checks import is_number
from hmoevae.errors import DataError, mismatch
from hmoevae.spec import Bernoulli, Categorical, Gaussian, Likelihood, NegativeBinomial
from hmoevae.spec.record import PositiveFloat, expected, record
from hmoevae.tables.frames import Cells

Codes = Float[np.ndarray, " n"]

MARKERS = frozenset({"", "?", "na", "n/a", "nan", "null", "-", "."})
"""What files write for a gap, in lower case and without spaces."""


def _name(value: Any) -> str:
    if not (isinstance(value, str) and value):
        raise expected("the name of a column")
    return value


def _finite(value: Any) -> float:
    if not is_number(abs(value) if isinstance(value, int | float) else value):
        raise expected("a finite number")
    return float(value)


def _categories(value: Any, *, n: int | None = None) -> tuple[Any, ...]:
    words = f"{'a tuple of' if n is None else n} different strings, numbers or truth values"
    plain = [part.item() if isinstance(part, np.generic) else part for part in value] if _is_sequence(value) else []
    usable = all(
        isinstance(part, str | bool | int) or (isinstance(part, float) and math.isfinite(part)) for part in plain
    )
    if not (plain and usable and len(set(plain)) == len(plain) and n in (None, len(plain))):
        raise expected(words)
    return tuple(plain)


def _is_log_normal(cells: Cells) -> bool:
    """Whether numbers are positive, and a log-normal density fits them better than a normal one."""
    x = numbers_of(cells)[~cells.gaps]
    x, counts = x[cells.counts > 0], cells.counts[cells.counts > 0]
    if counts.sum() < LEAST_CELLS or x.min() <= 0 or x.min() == x.max():
        return False
    share, log_x = counts / counts.sum(), np.log(x)
    with np.errstate(over="ignore", invalid="ignore"):
        log_std, std_log = (0.5 * np.log(share @ np.square(y - share @ y)) for y in (x, log_x))
    return bool(log_std - std_log - share @ log_x > LEAST_GAIN)


def _share(value: Any) -> float:
    if not (is_number(value) and 0 <= value <= 1):
        raise expected("a number from 0 to 1")
    return float(value)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list | np.ndarray)


LEAST_FLOOR = 0.01
"""The least lower bound of a learned scale: a hundredth of a column's standard deviation."""
LEAST_GAIN = 0.05
"""By how many nats a cell a log-normal density has to fit better for the logarithm to be taken."""
LEAST_CELLS = 20
"""Number of cells from which it is clear."""
Share = Annotated[float, BeforeValidator(_share)]
Name = Annotated[str, BeforeValidator(_name)]
FiniteFloat = Annotated[float, BeforeValidator(_finite)]
Categories = Annotated[tuple[Any, ...], BeforeValidator(_categories)]
TwoCategories = Annotated[tuple[Any, ...], BeforeValidator(lambda value: _categories(value, n=2))]


class Column(ABC):
    """Base class of the records of columns: `Number`, `Category`, `Binary`, `Count`.

    >>> issubclass(Number, Column)
    True
    """

    kind: ClassVar[str]
    name: str
    missing: bool

    @property
    def codes(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Codes that cells may have, and codes that none has, by which a likelihood that does not fit is found.

        >>> Count("eggs").codes
        ((0.0, 3.0), (0.5,))
        """
        return (0.0, 3.0), (0.5,)

    def encode(self, cells: Cells) -> Codes:
        """The codes of cells.

        Raises:
            DataError: A cell is none that this column can hold; the message names it.

        >>> from hmoevae.tables.frames import cells_of
        >>> Category("island", ("Dream", "Biscoe"), missing=True).encode(cells_of("x", ["Biscoe", None])).tolist()
        [1.0, nan]
        """
        if not self.missing:
            remedy = " (Table.of(..., missing=True) makes a table whose cells may all be missing)"
            cells.refuse(cells.gaps, "no gaps, as where the table was made", remedy)
        codes = np.full(len(cells.values), np.nan)
        if cells.sort != "nothing":
            self._fill(codes, cells)
        return codes

    @abstractmethod
    def _fill(self, codes: Codes, cells: Cells) -> None:
        """Write the codes of the cells that are not missing."""

    @abstractmethod
    def decode(self, codes: Codes, path: str) -> np.ndarray:
        """The cells of codes, `(n,)`; gaps are NaN in a column of numbers, and None among other cells.

        Args:
            codes: The codes.
            path: Their name in error messages.

        Raises:
            DataError: A code is none of this column's.

        >>> Count("eggs").decode(np.array([2.0, 0.0]), "x")
        array([2, 0])
        """

    def log_jacobian(self, codes: Any) -> Any:  # noqa: ARG002
        """Log of the slope of codes over cells, which turns the log-density of a code into that of the cell.

        Args:
            codes: The codes, an array or a tensor.

        >>> Number("mass", mean=4000.0, std=math.e).log_jacobian(np.zeros(1)), Count("eggs").log_jacobian(np.zeros(1))
        (-1.0, 0.0)
        """
        return 0.0

    @abstractmethod
    def likelihood(self) -> Likelihood:
        """The likelihood of the codes.

        >>> Number("mass").likelihood(), Category("island", ("Biscoe", "Dream", "Torgersen")).likelihood()
        (Gaussian(scale='learned', mean='identity', floor=0.01), Categorical(n=3))
        """

    def describe(self) -> str:
        """What the cells are, in a few words.

        >>> Number("mass", mean=4200.0, std=800.0).describe()
        'number, 4200 ± 800'
        """
        return self.kind


@record(kind="number")
class Number(Column):
    """A column of numbers. The code is (1 - ties) (x - mean) / std, with log x in place of x where `log` is set.

    `ties` is the probability that two rows have the same value. It is close to 0 where numbers are measured finely and
    close to 1 where nearly all are equal, as at the edges of images. A Gaussian would find such a column very
    informative: its density at repeated values has no bound. So ties make the codes narrower, and the learned scale of
    the noise has the floor `floor`.

    Args:
        name: The name of the column.
        mean: What is subtracted, in the units of the column (of its logarithm).
        std: What it is divided by, in the same units.
        log: Take the logarithm first, for positive numbers of very different sizes.
        missing: Whether cells may be missing.
        ties: The probability that two rows have the same value, from 0 to 1.

    >>> from hmoevae.tables.frames import cells_of
    >>> number = Number("mass", mean=4000.0, std=500.0)
    >>> number.encode(cells_of("x", [4500.0, 3000.0])).tolist(), number.decode(np.array([2.0]), "x").tolist()
    ([1.0, -2.0], [5000.0])
    """

    name: Name
    mean: FiniteFloat = 0.0
    std: PositiveFloat = 1.0
    log: bool = False
    missing: bool = False
    ties: Share = 0.0

    @property
    def codes(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Numbers on both sides of zero."""
        return (-2.5, 0.25, 3.0), ()

    @property
    def scale(self) -> float:
        """What a number is divided by."""
        return self.std / (1 - self.ties) if self.ties < 1 else self.std

    @property
    def floor(self) -> float:
        """The lower bound of a learned scale of the codes."""
        return max(LEAST_FLOOR, self.ties)

    @classmethod
    def of(cls, name: str, cells: Cells, *, missing: bool, log: bool | None = None) -> "Number":
        """The column of these cells: their mean and standard deviation; 1 for the latter where all are equal.

        Args:
            name: The name of the column.
            cells: The cells.
            missing: Whether cells may be missing later.
            log: Whether to take the logarithm; `None` takes it where a log-normal density fits the cells better than a
                normal one, by 0.05 nats a cell.

        >>> from hmoevae.tables.frames import cells_of
        >>> Number.of("x", cells_of("x", [1.0, 5.0]), missing=False)
        Number(name='x', mean=3.0, std=2.0)
        >>> Number.of("x", cells_of("x", [1.0, 1.0, 5.0, 5.0]), missing=False).ties  # 4 of 12 pairs
        0.3333333333333333
        """
        log = _is_log_normal(cells) if log is None else log
        x = cls(name, log=log, missing=True)._plain(cells)[~cells.gaps]
        x, counts = x[cells.counts > 0], cells.counts[cells.counts > 0]
        share = counts / counts.sum()
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(share @ x)
            std = math.sqrt(share @ np.square(x - mean))
        if x.min() == x.max():
            mean, std = float(x[0]), 1.0  # what is computed may be a rounding error off
        if not (0 < std < math.inf):
            got = f"values from {x.min()} to {x.max()}"
            raise DataError(mismatch(cells.path, "numbers whose variance a float64 can hold", got))
        by_value, n = np.bincount(np.unique(x, return_inverse=True)[1], counts), counts.sum()
        ties = float((by_value * (by_value - 1).clip(0)).sum() / (n * (n - 1))) if n > 1 else 0.0
        return cls(name, mean, std, log, missing, ties)

    def _plain(self, cells: Cells) -> Codes:
        """The numbers, or their logarithms; NaN for gaps."""
        x = numbers_of(cells)
        if not self.log:
            return x
        cells.refuse(x <= 0, "numbers > 0, of which the logarithm is taken")
        return np.log(x)

    def _fill(self, codes: Codes, cells: Cells) -> None:
        codes[:] = (self._plain(cells) - self.mean) / self.scale

    def decode(self, codes: Codes, path: str) -> np.ndarray:  # noqa: ARG002
        """The numbers."""
        x = self.mean + self.scale * codes
        return np.exp(x) if self.log else x

    def log_jacobian(self, codes: Any) -> Any:
        """-log scale, less log x where the logarithm is taken."""
        return -math.log(self.scale) - ((self.mean + self.scale * codes) if self.log else 0.0)

    def likelihood(self) -> Likelihood:
        """A Gaussian with a learned scale, which `floor` bounds."""
        return Gaussian("learned", "identity", self.floor)

    def describe(self) -> str:
        """Mean and standard deviation."""
        return f"{'log ' if self.log else ''}number, {self.mean:.4g} ± {self.std:.3g}"


class _Coded(Column):
    """A column whose code is the index of its category."""

    categories: tuple[Any, ...]

    @property
    def codes(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The first and the last index."""
        return (0.0, len(self.categories) - 1.0), (0.5,)

    @classmethod
    def of(cls, name: str, cells: Cells, *, missing: bool) -> "_Coded":
        """The column of these cells: its type's categories, or those that occur, sorted."""
        found = cells.categories
        if found is None:
            if cells.sort == "others":
                raise DataError(mismatch(cells.path, "categories of one type", types_of(cells)))
            found = tuple(sorted(set(cells.observed)))
        try:
            return cls(name, found, missing=missing)  # type: ignore[call-arg]  # the record's constructor
        except ValueError as error:
            raise DataError(mismatch(cells.path, f"a column of kind {cls.kind!r}", f"{error}")) from None

    def _fill(self, codes: Codes, cells: Cells) -> None:
        index = {category: i for i, category in enumerate(self.categories)}
        known = np.array([_code(value, index) for value in cells.values.tolist()], dtype=float)
        few = ", ".join(map(repr, self.categories[:10])) + (", ..." if len(self.categories) > 10 else "")
        unseen = (known < 0) & ~cells.gaps
        cells.refuse(unseen, f"one of the {len(self.categories)} categories {few}", marker_hint(cells, unseen))
        codes[~cells.gaps] = known[~cells.gaps]

    def decode(self, codes: Codes, path: str) -> np.ndarray:
        """The categories nearest to the codes."""
        nearest = np.round(codes)
        last = max(1, len(self.categories) - 1)  # the likelihood of a lone category has a second code too
        if ((nearest < 0) | (nearest > last)).any():
            got = f"codes from {np.nanmin(codes):g} to {np.nanmax(codes):g}"
            raise DataError(mismatch(path, f"codes from 0 to {last}", got))
        nearest = np.minimum(nearest, len(self.categories) - 1)
        cells = [None if code != code else self.categories[int(code)] for code in nearest.tolist()]
        kinds = {type(cell) for cell in cells}
        return np.array(cells) if kinds in ({int}, {float}, {bool}) else _objects(cells)

    def describe(self) -> str:
        """The categories."""
        return f"{self.kind}, {', '.join(map(str, self.categories))}"


@record(kind="category")
class Category(_Coded):
    """A column of categories without an order. The code is the category's index.

    Args:
        name: The name of the column.
        categories: The categories: strings, numbers or truth values.
        missing: Whether cells may be missing.

    >>> Category("island", ("Biscoe", "Dream")).decode(np.array([1.0, 0.0]), "x").tolist()
    ['Dream', 'Biscoe']
    """

    name: Name
    categories: Categories
    missing: bool = False

    def likelihood(self) -> Likelihood:
        """A probability for each category."""
        return Categorical(max(2, len(self.categories)))


@record(kind="binary")
class Binary(_Coded):
    """A column of two categories. The code is 0 or 1.

    Args:
        name: The name of the column.
        categories: The categories with the codes 0 and 1.
        missing: Whether cells may be missing.

    >>> from hmoevae.tables.frames import cells_of
    >>> Binary("smokes", (False, True)).encode(cells_of("x", [True, False])).tolist()
    [1.0, 0.0]
    """

    name: Name
    categories: TwoCategories
    missing: bool = False

    def likelihood(self) -> Likelihood:
        """The probability of the second category."""
        return Bernoulli()


@record(kind="count")
class Count(Column):
    """A column of counts: integers >= 0. The code is the count.

    Args:
        name: The name of the column.
        missing: Whether cells may be missing.

    >>> from hmoevae.tables.frames import cells_of
    >>> Count("eggs").encode(cells_of("x", [0, 3])).tolist()
    [0.0, 3.0]
    """

    name: Name
    missing: bool = False

    @classmethod
    def of(cls, name: str, cells: Cells, *, missing: bool) -> "Count":
        """The column of these cells, after a check that they are counts."""
        column = cls(name, missing=True)
        column.encode(cells)
        return cls(name, missing)

    def _fill(self, codes: Codes, cells: Cells) -> None:
        codes[:] = numbers_of(cells)
        cells.refuse((codes < 0) | (codes != np.floor(codes)) & ~cells.gaps, "counts: integers >= 0")

    def decode(self, codes: Codes, path: str) -> np.ndarray:
        """The counts, as integers where all are."""
        if (codes < 0).any():
            raise DataError(mismatch(path, "counts >= 0", f"{np.nanmin(codes):g}"))
        return codes.astype(np.int64) if (codes == np.floor(codes)).all() else codes.copy()

    def likelihood(self) -> Likelihood:
        """A mean and a learned dispersion."""
        return NegativeBinomial()


def _code(value: Any, index: Mapping[Any, int]) -> int:
    """The index of a category; -1 if there is none."""
    try:
        return index.get(value, -1)
    except TypeError:  # a list, say, has no hash
        return -1


def _objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def numbers_of(cells: Cells) -> Codes:
    """The cells as numbers, NaN for gaps.

    Raises:
        DataError: They are no numbers, or not finite.

    >>> from hmoevae.tables.frames import cells_of
    >>> numbers_of(cells_of("x", [1, None]))
    array([ 1., nan])
    """
    if cells.sort not in ("numbers", "truth values", "nothing"):
        numeric = np.array([isinstance(value, int | float) for value in cells.values.tolist()]) | cells.gaps
        cells.refuse(~numeric, "numbers", marker_hint(cells, ~numeric) or " (astype(float) makes numbers of text)")
    x = np.full(len(cells.values), np.nan)
    x[~cells.gaps] = cells.values[~cells.gaps].astype(float)
    cells.refuse(np.isinf(x), "finite numbers")
    return x


def marker_hint(cells: Cells, wrong: np.ndarray) -> str:
    """What to do where the first wrong cell looks like a file's mark for a gap.

    >>> from hmoevae.tables.frames import cells_of
    >>> marker_hint(cells_of("x", ["a", " ?"]), np.array([False, True]))
    ' (is it a gap? Make gaps None or NaN, as with frame.replace(...) or read_csv(..., na_values=...))'
    """
    value = cells.values[int(wrong.argmax())] if wrong.any() else None
    if not (isinstance(value, str) and value.strip().lower() in MARKERS):
        return ""
    return " (is it a gap? Make gaps None or NaN, as with frame.replace(...) or read_csv(..., na_values=...))"


def types_of(cells: Cells) -> str:
    """The types of the cells, with an example of each of two."""
    examples = {type(value).__name__: value for value in reversed(cells.observed)}
    return " and ".join(f"{value!r:.40} ({name})" for name, value in list(examples.items())[:2])

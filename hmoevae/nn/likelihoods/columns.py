"""A likelihood for each column of a table.

Axes: as in `module.py`.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hmoevae.errors import SpecError, mismatch
from hmoevae.nn.likelihoods.module import (
    Constant,
    Features,
    LikelihoodModule,
    OfSample,
    Present,
    Raw,
    Sample,
    Shared,
    SharedPresent,
)
from hmoevae.nn.posteriors import LinearFeatures, joined_features, positions, takes_part


class ColumnsModule(LikelihoodModule):
    """One module for all columns with equal likelihoods, and the columns of each.

    Raw outputs, statistics and what networks see are ordered by module; samples, means and draws by column.

    Args:
        parts: The modules, each with the indices of its columns in rising order.

    Raises:
        SpecError: No value lies in the support of all columns.
    """

    parts: Sequence[LikelihoodModule]

    def __init__(self, parts: Sequence[tuple[LikelihoodModule, Sequence[int]]]) -> None:
        super().__init__()
        self.columns = [list(columns) for _, columns in parts]
        self.n_columns = sum(map(len, self.columns))
        self.parts = nn.ModuleList(part for part, _ in parts)  # type: ignore[assignment]
        self.runs = [_runs(columns) for columns in self.columns]
        # Which columns follow each other both in the table and in a part: (first column, part, place in it, length).
        self.order = sorted(
            (first, i, place, length)
            for i, runs in enumerate(self.runs)
            for (first, length), place in zip(runs, _starts([length for _, length in runs]), strict=True)
        )
        self.raw_sizes = [part.raw_shape((len(own),))[0] for part, own in zip(self.parts, self.columns, strict=True)]
        self.statistic_sizes = [
            part.n_statistics * len(own) for part, own in zip(self.parts, self.columns, strict=True)
        ]
        supports = zip(self.parts, self.runs, strict=True)
        self.support = "; ".join(f"{part.support} in {_named(runs)}" for part, runs in supports)
        self.example = self._common_value()

    def _common_value(self) -> float:
        """A value that every column may have; it stands in where there is no sample."""
        for value in dict.fromkeys([*(part.example for part in self.parts), 0.0, 1.0]):
            if self.contains(torch.full((1, self.n_columns), value, device="cpu")):
                return value
        raise SpecError(mismatch("Columns.parts", "a value that all columns may have", self.support))

    def _split(self, x: Tensor, dim: int) -> list[Tensor]:
        """The columns of each part, out of an axis of all columns."""
        pieces = ([x.narrow(dim, first, length) for first, length in runs] for runs in self.runs)
        return [own[0] if len(own) == 1 else torch.cat(own, dim) for own in pieces]

    def _joined(self, by_part: Sequence[Tensor], dim: int) -> Tensor:
        """The axis of all columns, out of the columns of each part."""
        pieces = [by_part[i].narrow(dim, place, length) for _, i, place, length in self.order]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)

    def _for_each(self, x: Sample, present: Present | None) -> list[tuple[Tensor, Tensor | None]]:
        """The columns of each part, and which of them were observed."""
        presents = [None] * len(self.parts) if present is None else self._split(present, -2)
        return list(zip(self._split(x, -2), presents, strict=True))

    # --- samples, batch first ---------------------------------------------------------------------------------------

    def contains(self, x: Tensor) -> bool:
        return all(part.contains(own) for part, own in zip(self.parts, self._split(x, 1), strict=True))

    def nearest(self, x: Tensor) -> Tensor:
        return self._joined([part.nearest(own) for part, own in zip(self.parts, self._split(x, 1), strict=True)], 1)

    def refused(self, x: Tensor) -> tuple[str, Any]:
        for part, columns in zip(self.parts, self.columns, strict=True):
            for column in columns:
                if not part.contains(x[:, column : column + 1]):
                    return f"{part.support} in column {column}", (slice(None), column)
        return self.support, ...

    # --- shapes, and what networks see ------------------------------------------------------------------------------

    def raw_shape(self, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
        self._check(sample_shape)
        return (sum(self.raw_sizes),)

    def shown_shape(self, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
        self._check(sample_shape)
        pairs = zip(self.parts, self.columns, strict=True)
        return (sum(part.shown_shape((len(columns),))[0] for part, columns in pairs),)

    def _check(self, sample_shape: tuple[int, ...]) -> None:
        if tuple(sample_shape) != (self.n_columns,):
            raise SpecError(mismatch("Columns.parts", f"samples of shape ({self.n_columns},)", tuple(sample_shape)))

    def shown(self, x: Sample, present: Present | None = None) -> Tensor:
        each = zip(self.parts, self._for_each(x, present), strict=True)
        return torch.cat([part.shown(*own) for part, own in each], -2)

    # --- the likelihood ---------------------------------------------------------------------------------------------

    def log_prob(self, raw: Raw, x: Sample, present: Present | None = None) -> Float[Tensor, "group batch"]:
        each = zip(self.parts, raw.split(self.raw_sizes, 1), self._for_each(x, present), strict=True)
        first, *others = (part.log_prob(outputs, *own) for part, outputs, own in each)
        return sum(others, first)

    def log_prob_constant(self, raw: Constant, x: Shared, present: SharedPresent = None) -> OfSample:
        each = zip(self.parts, raw.split(self.raw_sizes, 1), self._for_each(x, present), strict=True)
        first, *others = (part.log_prob_constant(outputs, *own) for part, outputs, own in each)
        return sum(others, first)

    def log_density(self, raw: Raw, x: Sample) -> Features:
        each = zip(self.parts, raw.split(self.raw_sizes, 1), self._split(x, -2), strict=True)
        return self._joined([part.log_density(outputs, own) for part, outputs, own in each], 1)

    def linear_features(self) -> LinearFeatures | None:
        found: list[LinearFeatures] = []
        starts = _starts(self.raw_sizes)
        for part, columns, first, size in zip(self.parts, self.columns, starts, self.raw_sizes, strict=True):
            linear = part.linear_features()
            if linear is not None:
                raw = [first + i for i in positions(linear.raw, size)]
                features = [columns[i] for i in positions(linear.features, len(columns))]
                found.append(LinearFeatures(linear.scale, raw, features, are_all=False))
        partly = [linear for linear in found if takes_part(linear)]
        return joined_features(partly, sum(self.raw_sizes), self.n_columns) if partly else next(iter(found), None)

    def fit_constant_(self, x: Shared, weight: OfSample, present: SharedPresent = None) -> Constant:
        each = zip(self.parts, self.raw_sizes, self._for_each(x, present), strict=True)
        raw = []
        for part, size, (own, seen) in each:
            if takes_part(part.linear_features()):  # they depend on z; a fit without z would undo their scales
                raw.append(x.new_zeros(len(weight), size))
            else:
                raw.append(part.fit_constant_(own, weight, seen))
        return torch.cat(raw, 1)

    def linear_floor(self) -> Float[Tensor, "group linear"]:
        return torch.cat([part.linear_floor() for part in self._linear_parts()], 1)

    def set_linear_scale_(self, scale: Float[Tensor, "group linear"]) -> None:
        parts = self._linear_parts()
        sizes = [part.linear_floor().shape[1] for part in parts]
        for part, own in zip(parts, scale.split(sizes, 1), strict=True):
            part.set_linear_scale_(own)

    def _linear_parts(self) -> list[LikelihoodModule]:
        return [part for part in self.parts if takes_part(part.linear_features())]

    def mean(self, raw: Raw) -> Features:
        each = zip(self.parts, raw.split(self.raw_sizes, 1), strict=True)
        return self._joined([part.mean(outputs) for part, outputs in each], 1)

    def statistics(self, raw: Raw) -> Float[Tensor, "group statistic batch"]:
        each = zip(self.parts, raw.split(self.raw_sizes, 1), strict=True)
        return torch.cat([part.statistics(outputs) for part, outputs in each], 1)

    def from_statistics(self, statistics: Float[Tensor, "group statistic batch"]) -> Features:
        each = zip(self.parts, statistics.split(self.statistic_sizes, 1), strict=True)
        return self._joined([part.from_statistics(own) for part, own in each], 1)

    def sample(self, raw: Raw, generator: torch.Generator | None = None) -> Features:
        each = zip(self.parts, raw.split(self.raw_sizes, 1), strict=True)
        return self._joined([part.sample(outputs, generator) for part, outputs in each], 1)


def _runs(columns: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours among rising column indices, as (first column, number of columns)."""
    runs: list[tuple[int, int]] = []
    for column in columns:
        if runs and column == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((column, 1))
    return runs


def _starts(lengths: Sequence[int]) -> list[int]:
    """Where pieces of these lengths begin, end to end."""
    return [0, *accumulate(lengths)][:-1]


def _named(runs: Sequence[tuple[int, int]]) -> str:
    """Column indices in words."""
    words = [f"{first}" if length == 1 else f"{first} to {first + length - 1}" for first, length in runs]
    return f"column{'s' if len(runs) > 1 or runs[0][1] > 1 else ''} {', '.join(words)}"

"""How close are filled cells to those that were there? `VAEMixture().fit(frame).impute(frame)` against scikit-learn.

    python benchmarks/imputation.py --quick                       a look, under a minute
    python benchmarks/imputation.py --json imputation.json        four tables, 30 and 50 % missing, five seeds

Of the cells that a table has, a share is taken out at random, others for each seed, and filled again.

    numbers     root of the mean squared error of the numbers taken out, in standard deviations of their column.
    categories  share of the categories taken out that come back as another, percent.
    error       mean over the columns of the one or the other: what is compared.

Every method has its defaults and sees the cells that are left. Trees see categories as codes, as missForest does
(Stekhoven & Buehlmann 2012); scikit-learn's other imputers see standardised numbers and one-hot categories, and the
largest of a column is taken. The last line is the whole report as one JSON object.
"""

import argparse
import json
import statistics
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import command
import numpy as np
import pandas as pd
from against_sklearn import begin, cost, shown, with_gaps
from real_tables import LOADERS, RealTable
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401  lets the next line import
from sklearn.impute import IterativeImputer, KNNImputer
from threadpoolctl import threadpool_limits

import hmoevae as hm

TABLES = ("adult", "breast_cancer", "penguins_mixed", "heart_disease")
DEFAULTS = {"tables": list(TABLES), "missing": [30, 50], "seeds": 5}
QUICK = {"tables": ["penguins_mixed"], "missing": [30], "seeds": 1}
N_ROUNDS = 5
"""Of the trees over all columns; they end before that where the last round changed more than the one before."""

Frame = pd.DataFrame
Imputer = Callable[[Frame, int], Frame]
"""From a frame with gaps and a seed to the frame without."""


# --- what fills gaps ------------------------------------------------------------------------------------------------


def mixture(frame: Frame, seed: int) -> Frame:
    """The package's own."""
    kinds = {name: "category" for name, column in columns(frame).items() if not is_number(column)}
    return hm.VAEMixture(random_state=seed, kinds=kinds).fit(frame).impute(frame)


def most_common(frame: Frame, seed: int) -> Frame:  # noqa: ARG001
    """Means and most frequent categories: what every other has to be better than."""
    return Frame({name: column.fillna(usual(column)) for name, column in columns(frame).items()})


def iterative(frame: Frame, seed: int) -> Frame:
    """Bayesian ridge regressions of each column on the others, in turns."""
    return by_numbers(frame, IterativeImputer(random_state=seed), without_first=True)


def neighbours(frame: Frame, seed: int) -> Frame:  # noqa: ARG001
    """The mean of the five nearest rows."""
    return by_numbers(frame, KNNImputer())


def trees(frame: Frame, seed: int) -> Frame:
    """MissForest with extremely randomised trees: columns in turns, those with the fewest gaps first."""
    given = columns(frame)
    codes = {name: as_codes(column) for name, column in given.items()}
    filled = Frame({name: codes[name].fillna(start(column)) for name, column in given.items()})
    scales = {name: scale(filled[name].to_numpy()) for name in given}
    order = sorted((name for name in given if codes[name].hasnans), key=lambda name: codes[name].isna().sum())
    last = np.inf
    for _ in range(N_ROUNDS):
        before = filled.copy()
        for name in order:
            kind = ExtraTreesRegressor if is_number(given[name]) else ExtraTreesClassifier
            others = filled.drop(columns=name).to_numpy()
            here = codes[name].notna().to_numpy()
            model = kind(random_state=seed).fit(others[here], codes[name].to_numpy()[here])
            filled.loc[~here, name] = model.predict(others[~here])
        change = sum(float(((filled[name] - before[name]) ** 2).mean()) / scales[name] ** 2 for name in order)
        if change >= last:
            filled = before
            break
        last = change
    return Frame({name: from_codes(columns(filled)[name], column) for name, column in given.items()})


IMPUTERS: dict[str, Imputer] = {
    "VAEMixture": mixture,
    "mean, most frequent": most_common,
    "IterativeImputer": iterative,
    "KNNImputer": neighbours,
    "MissForest-like": trees,
}


# --- columns --------------------------------------------------------------------------------------------------------


def columns(frame: Frame) -> dict[str, pd.Series]:
    """A frame's columns by name."""
    return {str(name): column for name, column in frame.items()}


def is_number(column: pd.Series) -> bool:
    """Whether a column is one of numbers."""
    return pd.api.types.is_numeric_dtype(column)


def usual(column: pd.Series) -> Any:
    """The mean or the most frequent category."""
    return float(np.nanmean(column)) if is_number(column) else column.mode().iloc[0]


def categories(column: pd.Series) -> list[Any]:
    """Those of a column in their order."""
    return sorted(column.dropna().unique())


def as_codes(column: pd.Series) -> pd.Series:
    """Numbers as they are, categories numbered from 0, NaN where missing."""
    if is_number(column):
        return column.astype(float)
    return column.map({value: float(i) for i, value in enumerate(categories(column))}).astype(float)


def from_codes(codes: pd.Series, column: pd.Series) -> pd.Series:
    """The way back from `as_codes(column)`."""
    if is_number(column):
        return codes
    return codes.map(dict(enumerate(categories(column))))


def start(column: pd.Series) -> float:
    """What trees see in the first round in place of a gap: the code of the usual."""
    return usual(column) if is_number(column) else float(categories(column).index(usual(column)))


def by_numbers(frame: Frame, imputer: Any, *, without_first: bool = False) -> Frame:
    """Fill gaps by an imputer of numbers: standardised columns, and one for each category.

    A regression needs them without each column's first category: from the others, which have the same gaps, it would
    tell a category exactly, and then repeat what it started from.
    """
    given = columns(frame)
    blocks = [one_hot(column, without_first and not is_number(column)) for column in given.values()]
    ends = np.cumsum([block.shape[1] for block in blocks])[:-1]
    filled = np.split(imputer.fit_transform(np.concatenate(blocks, axis=1)), ends, axis=1)
    pairs = zip(given.items(), filled, strict=True)
    return Frame({name: from_one_hot(block, column) for (name, column), block in pairs})


def one_hot(column: pd.Series, without_first: bool = False) -> np.ndarray:
    """A standardised column, or one for each category, NaN where missing."""
    codes = as_codes(column).to_numpy()[:, None]
    if is_number(column):
        return (codes - np.nanmean(codes)) / scale(codes)
    return np.where(np.isnan(codes), np.nan, codes == np.arange(int(without_first), len(categories(column))))


def from_one_hot(block: np.ndarray, column: pd.Series) -> pd.Series:
    """The way back from `one_hot(column)`; of several categories the largest."""
    if is_number(column):
        codes = as_codes(column).to_numpy()
        return pd.Series(block[:, 0] * scale(codes) + np.nanmean(codes), column.index)
    if block.shape[1] < len(categories(column)):
        block = np.column_stack([1 - block.sum(1), block])
    return from_codes(pd.Series(block.argmax(1), column.index), column)


def scale(values: np.ndarray) -> float:
    """The standard deviation, or 1 of a column that is constant."""
    return float(np.nanstd(values)) or 1.0


# --- what is measured -----------------------------------------------------------------------------------------------


def take_out(frame: Frame, percent: int, seed: int) -> tuple[Frame, np.ndarray]:
    """The frame with gaps, and which cells were taken out, `(rows, columns)`; a cell of each row and column is left."""
    chosen = with_gaps(frame.shape, percent / 100, seed) & frame.notna().to_numpy()
    numbers = {name: float for name, column in columns(frame).items() if is_number(column)}
    return frame.astype(numbers).mask(chosen), chosen


def errors(frame: Frame, filled: Frame, chosen: np.ndarray) -> dict[str, float | None]:
    """Of the cells that were taken out.

    Raises:
        ValueError: A cell is still missing.
    """
    found: dict[str, list[float]] = {"numbers": [], "categories": []}
    given = columns(filled)
    for (name, column), cells in zip(columns(frame).items(), chosen.T, strict=True):
        if not cells.any():
            continue
        was, now = column[cells], given[name][cells]
        lost = int(pd.isna(now).sum())
        if lost:
            raise ValueError(f"{name}: expected every cell to be filled, got {lost} that are not")
        if is_number(column):
            off = (now.astype(float) - was) / scale(column.to_numpy(float))
            found["numbers"].append(float(np.sqrt((off**2).mean())))
        else:
            found["categories"].append(float((now.astype(str) != was.astype(str)).mean()))
    every = found["numbers"] + found["categories"]
    return {"error": statistics.fmean(every)} | {k: statistics.fmean(v) if v else None for k, v in found.items()}


def run_one(table: RealTable, percent: int, impute: Imputer, seed: int) -> dict[str, Any]:
    """Take cells out, fill them and compare."""
    gapped, chosen = take_out(table.frame, percent, seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        filled, seconds, peak = cost(lambda: impute(gapped, seed))
    return {
        "seed": seed,
        **errors(table.frame, filled, chosen),
        "cpu_seconds": seconds,
        "peak_mb": None if peak is None else peak / 2**20,
        "warnings": sorted({warning.category.__name__ for warning in caught}),
    }


SCORES = ("error", "numbers", "categories", "cpu_seconds", "peak_mb")


def rows_of(args: argparse.Namespace, tables: list[RealTable]) -> Iterator[dict[str, Any]]:
    """Every row that was asked for."""
    for table in tables:
        for percent in args.missing:
            for name in args.methods:
                runs = [run_one(table, percent, IMPUTERS[name], seed) for seed in range(args.seeds)]
                yield {
                    "table": table.name,
                    "missing": percent,
                    "method": name,
                    "rows": len(table.frame),
                    "columns": table.frame.shape[1],
                    "mean": {score: mean([run[score] for run in runs]) for score in SCORES},
                    "runs": runs,
                }


def mean(values: list[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


# --- the command ----------------------------------------------------------------------------------------------------

LINE = "{:<16} {:>9} {:<20} {:>8} {:>9} {:>11} {:>9} {:>8}"


def line(row: dict[str, Any]) -> str:
    """A row in words."""
    means = row["mean"]
    scores = [shown(means[name], digits) for name, digits in zip(SCORES, (3, 3, 3, 2, 1), strict=True)]
    return LINE.format(row["table"], f"{row['missing']} %", row["method"], *scores)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, defaults filled in."""
    parser = command.parser(__doc__, has_data_root=False)
    parser.add_argument("--tables", nargs="+", choices=list(LOADERS), metavar="TABLE", help="see real_tables.py")
    parser.add_argument("--missing", nargs="+", type=int, metavar="PERCENT", help="of the cells that a table has")
    parser.add_argument("--methods", nargs="+", choices=list(IMPUTERS), default=list(IMPUTERS))
    parser.add_argument("--seeds", type=int, help="runs of every row")
    parser.add_argument("--json", type=Path, help="write the report to this file too, anew after every row")
    parser.add_argument("--quick", action="store_true", help="one small table, 30 % missing, one seed")
    args = parser.parse_args(argv)
    command.fill_in(args, QUICK if args.quick else DEFAULTS)
    command.check(parser, args, "seeds", "missing")
    if max(args.missing) > 90:
        parser.error(f"--missing: expected percentages up to 90, got {max(args.missing)}")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its report; what a user can mend ends with one line, not with a traceback."""
    args = parse(argv)
    with command.at_work("imputation.py", args.threads), threadpool_limits(args.threads):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Measure every row and report."""
    report, tables = begin(args)
    print(LINE.format("table", "missing", "method", "error", "numbers", "categories", "CPU s", "MB"))
    command.collect(report, rows_of(args, tables), line, args.json)
    print(json.dumps(report))


if __name__ == "__main__":
    main()

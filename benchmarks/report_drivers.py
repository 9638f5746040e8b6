"""Does a report name the column that drives a split, and no other? Of tables in which one is planted.

    python benchmarks/report_drivers.py --trees 10 --without 5          a look
    python benchmarks/report_drivers.py --json report_drivers.json      a hundred trees, and fifty of noise

A table has two kinds of rows and ten columns: numbers (normal, skewed, heavy-tailed, rounded with gaps), counts and
categories. In one, the driver, the kinds differ; in half of the tables, `alone`, in no other one, and the driver is a
number with two modes. In the other half, `followed`, driver and two other columns go together, and the driver, which
differs most, is a number, a count or a category. All other columns are noise. In further tables there is
`nothing` but noise, and the tree cuts it in two. `VAEMixture(2)` with its defaults is fitted to one half of the rows,
and `hm.report` is given the other half, or the same again for comparison.

    first   share of the trees of which the report lists the driver first.
    holds   share of the trees of which the report says that the driver's difference holds.
    false   mean over the trees of the share of noise among the columns that are said to hold: the rate of false
            discoveries, 5 % at most if the tests are honest.
    noise   share of all columns of noise that are said to hold.
    plain   `false` of a plain permutation test of each column against the clusters, at the same rate.

What is read is the file that the report writes. The last line is the whole report as one JSON object.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command
import machine
import numpy as np
import pandas as pd
import torch
from scipy.stats import false_discovery_control

import hmoevae as hm
from hmoevae.training import resolve_device

N_DRAWS = 999
RATE = 0.05
ALONE = 5.0
"""Distance of the two modes of a driver that is alone, in standard deviations of a mode."""
DRIVER, FOLLOWER = 4.0, 2.5
"""Distance of the kinds in a driver and in its followers, in the same unit."""
SCORES = ("first", "holds", "false", "noise", "plain")
Column = Callable[[np.random.Generator, np.ndarray], Any]
"""From a source of random numbers and a shift of every row, in standard deviations, to a column."""


# --- the tables -----------------------------------------------------------------------------------------------------


def number(draw: np.random.Generator, shift: np.ndarray) -> np.ndarray:
    """Normal."""
    return 50 + 8 * (shift + draw.normal(size=len(shift)))


def skewed(draw: np.random.Generator, shift: np.ndarray) -> np.ndarray:
    """Log-normal."""
    return np.exp(0.5 * (shift + draw.normal(size=len(shift))))


def heavy(draw: np.random.Generator, shift: np.ndarray) -> np.ndarray:
    """Student's t with four degrees of freedom."""
    return shift + draw.standard_t(4, size=len(shift))


def rounded(draw: np.random.Generator, shift: np.ndarray) -> np.ndarray:
    """Rounded to integers, a tenth missing."""
    values = np.round(20 + 4 * (shift + draw.normal(size=len(shift))))
    values[draw.random(len(shift)) < 0.1] = np.nan
    return values


def count(draw: np.random.Generator, shift: np.ndarray) -> np.ndarray:
    """Poisson; a standard deviation of 9 is 3."""
    return draw.poisson(9 + 3 * shift)


def category(draw: np.random.Generator, shift: np.ndarray) -> np.ndarray:
    """Three colours; the larger the shift, the more red ones, half of them without one."""
    red = 1 / (1 + np.exp(-1.8 * shift))
    chance = draw.random(len(shift))
    return np.where(chance < red, "red", np.where(chance < (1 + red) / 2, "green", "blue"))


NOISE: tuple[Column, ...] = (number, number, skewed, heavy, rounded, count, category, number, skewed, number)


def table(seed: int, planted: str, n_rows: int) -> tuple[pd.DataFrame, str | None, set[str], dict[str, str]]:
    """A table, the name of its driver, the names of the columns of noise, and the kinds of columns."""
    draw = np.random.default_rng(seed)
    kind = np.where(draw.random(n_rows) < 0.5, 0.5, -0.5)
    none = np.zeros(n_rows)
    columns: list[tuple[Column, np.ndarray]] = []
    if planted == "alone":
        columns = [(number, ALONE * kind)]
    elif planted == "followed":
        first = (number, count, category)[seed // 2 % 3]
        columns = [(first, DRIVER * kind), (number, FOLLOWER * kind), (skewed, -FOLLOWER * kind)]
    n_planted = len(columns)
    columns += [(column, none) for column in NOISE[: 10 - n_planted]]
    order = draw.permutation(len(columns))
    names = [f"{columns[i][0].__name__}_{place}" for place, i in enumerate(order)]
    frame = pd.DataFrame({name: columns[i][0](draw, columns[i][1]) for name, i in zip(names, order, strict=True)})
    noise = {name for name, i in zip(names, order, strict=True) if i >= n_planted}
    kinds = {name: "count" for name in names if name.startswith("count")}
    driver = names[int(np.flatnonzero(order == 0)[0])] if n_planted else None
    return frame, driver, noise, kinds


# --- what is measured -----------------------------------------------------------------------------------------------


def listed(mixture: hm.VAEMixture, frame: pd.DataFrame) -> list[tuple[str, float]]:
    """The columns that the report lists for the first of the two leaves, in its order, and their q-values."""
    with tempfile.TemporaryDirectory() as folder:
        path = hm.report(mixture.model_, frame, Path(folder) / "report.html", table=mixture.table_)
        island = re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    assert island is not None
    data = json.loads(island.group(1))
    return [(data["features"][feature]["name"], q) for feature, _, _, q in data["differences"][1]]


def plainly(mixture: hm.VAEMixture, frame: pd.DataFrame, seed: int) -> set[str]:
    """The columns that a permutation test against the clusters finds, which have been made of these columns."""
    draw, codes = np.random.default_rng(seed), mixture.table_.encode(frame).double().numpy()
    cluster = np.asarray(mixture.predict(frame)).astype(float)
    orders = np.stack([cluster, *(draw.permutation(cluster) for _ in range(N_DRAWS))])
    p = []
    for i, column in enumerate(mixture.table_.columns):
        known = ~np.isnan(codes[:, i])
        values = codes[known, i]
        parts = [values == code for code in np.unique(values)] if column.kind == "category" else [values]
        ones = orders[:, known]
        each = [
            np.abs(ones @ part / ones.sum(1) - (1 - ones) @ part / (1 - ones).sum(1)) for part in np.stack(parts) * 1.0
        ]
        size = np.sum(each, axis=0)
        p.append((1 + (size[1:] >= size[0] - 1e-9).sum()) / len(size))
    q = false_discovery_control(np.array(p))
    return {column.name for column, found in zip(mixture.table_.columns, q <= RATE, strict=True) if found}


def measure(seed: int, planted: str, n_rows: int) -> dict[str, Any]:
    """The scores of one tree, for rows that it has not seen and for its own."""
    whole, driver, noise, kinds = table(seed, planted, 2 * n_rows)
    train, others = whole.head(n_rows), whole.tail(n_rows)
    mixture = hm.VAEMixture(2, kinds=kinds, random_state=seed, device="cpu").fit(train)
    scores: dict[str, Any] = {"seed": seed, "planted": planted}
    for where, rows in (("held_out", others), ("training", train)):
        found = listed(mixture, rows)
        held = {name for name, q in found if q <= RATE}
        plain = plainly(mixture, rows, seed)
        scores[where] = {
            "first": None if driver is None else float(found[0][0] == driver),
            "holds": None if driver is None else float(driver in held),
            "false": len(held & noise) / max(1, len(held)),
            "noise": len(held & noise) / len(noise),
            "plain": len(plain & noise) / max(1, len(plain)),
        }
    return scores


# --- the command ----------------------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command.parser(__doc__, has_data_root=False, devices=["cpu"])
    parser.add_argument("--trees", type=int, default=100, help="number of tables, each with a tree of its own")
    parser.add_argument("--without", type=int, default=50, help="number of tables in which nothing is planted")
    parser.add_argument("--rows", type=int, default=800, help="of a table's halves")
    parser.add_argument("--json", type=Path, help="write the report to this file too, anew after every tree")
    args = parser.parse_args(argv)
    command.check(parser, args, "trees", "without", "rows")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its report; what a user can mend ends with one line, not with a traceback."""
    args = parse(argv)
    with command.at_work("report_drivers.py", args.threads):
        report: dict[str, Any] = {
            **machine.about(resolve_device("cpu"), args.threads),
            "argv": command.given(args),
            "rows": [],
        }
        torch.manual_seed(0)
        tables = [(seed, "followed" if seed % 2 else "alone") for seed in range(args.trees)]
        tables += [(args.trees + seed, "nothing") for seed in range(args.without)]
        rows = (measure(seed, planted, args.rows) for seed, planted in tables)
        print(f"seed  planted   {' '.join(f'{name:>6}' for name in SCORES)}   on training rows")
        command.collect(report, rows, shown, args.json)
        report["mean"] = means(report["rows"])
        command.write(report, args.json)
    for name, of in report["mean"].items():
        print(f"{name:20}", *(f"{score} {100 * value:.1f}" for score, value in of.items() if value is not None))
    print(json.dumps(report))


def shown(row: dict[str, Any]) -> str:
    """A line of the table."""

    def text(value: float | None) -> str:
        return "     " if value is None else f"{value:5.2f}"

    scores = ("  ".join(text(row[where][name]) for name in SCORES) for where in ("held_out", "training"))
    return f"{row['seed']:4}  {row['planted']:9} {'   '.join(scores)}"


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """The mean of every score over the trees of each sort."""

    def mean(own: list[dict[str, Any]], where: str, score: str) -> float | None:
        values = [row[where][score] for row in own if row[where][score] is not None]
        return float(np.mean(values)) if values else None

    sets = {name: [row for row in rows if row["planted"] == name] for name in ("alone", "followed", "nothing")}
    return {
        f"{name}/{where}": {score: mean(own, where, score) for score in SCORES}
        for name, own in sets.items()
        if own
        for where in ("held_out", "training")
    }


if __name__ == "__main__":
    main()

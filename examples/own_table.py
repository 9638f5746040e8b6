"""Your own table: a CSV file with numbers, categories and gaps; its clusters, described in its columns.

python examples/own_table.py                                       scikit-learn's wines, in seconds
python examples/own_table.py --csv mine.csv --label species        yours; the label is only looked at afterwards
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.cluster import KMeans
from sklearn.datasets import load_wine
from sklearn.mixture import GaussianMixture

import hmoevae as hm
from hmoevae.errors import ArgumentError, HMoEVAEError, mismatch


def read(csv: Path, others: list[str | None]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The whole table, to the letter, and the columns of it that are modelled."""
    whole = pd.read_csv(csv, dtype=str, keep_default_na=False)  # every cell as it is, for the file that comes out
    table = pd.read_csv(csv)
    for option, column in zip(("--label", "--index"), others, strict=True):
        if column is not None and column not in table:
            raise ArgumentError(mismatch(option, f"one of {', '.join(table.columns)}", column))
    # A column without a name is the index that pandas writes.
    table = table.drop(columns=[column for column in table if column in {*others, "Unnamed: 0"}])
    print(f"{csv}: {len(table)} rows, {table.shape[1]} columns, {int(table.isna().sum().sum())} gaps")
    return whole.rename(columns={"Unnamed: 0": ""}), table


def fitted(table: pd.DataFrame, clusters: list[int], kinds: dict[str, str]) -> hm.VAEMixture:
    """The mixture with the smallest Bayesian information criterion, of those with the given numbers of clusters."""
    mixtures = [hm.VAEMixture(k, kinds=kinds, n_init=3, random_state=0).fit(table) for k in clusters]
    criteria = [mixture.bic(table) for mixture in mixtures]
    for k, criterion in zip(clusters, criteria, strict=True):
        print(f"clusters: {k}, criterion: {criterion:.1f}")
    return mixtures[criteria.index(min(criteria))]


def compared(mixture: hm.VAEMixture, table: pd.DataFrame, labels: pd.Series) -> pd.DataFrame:
    """How well clusters match the labels: the mixture's, and as many of two methods that see numbers without gaps."""
    numbers = table.select_dtypes("number")
    n, codes = len(mixture.weights_), pd.factorize(labels)[0]
    found = {"hmoevae": mixture.labels_}
    if numbers.shape[1]:
        scaled = ((numbers - numbers.mean()) / numbers.std()).fillna(0)  # of gaps, and of constant columns
        found["k-means"] = KMeans(n, n_init=10, random_state=0).fit_predict(scaled)  # type: ignore[arg-type]
        found["Gaussian mixture"] = GaussianMixture(n, n_init=10, random_state=0).fit_predict(scaled)
    scores = {name: hm.metrics.clustering_scores(codes, clusters) for name, clusters in found.items()}
    rows = {name: {"NMI": score["nmi"], "purity": score["leaf_purity"]} for name, score in scores.items()}
    return pd.DataFrame.from_dict(rows, orient="index").round(3)


def described(mixture: hm.VAEMixture, table: pd.DataFrame, labels: pd.Series | None, out: Path) -> None:
    """Print the clusters in the table's own units, and plot the columns that are numbers."""
    print("\nmean row of every cluster:", mixture.means_.round(2).T.to_string(), sep="\n")
    print("\nshare of every cluster:", mixture.weights_.round(3))
    if labels is not None:
        print("\nrows of every label by cluster:", pd.crosstab(labels, mixture.labels_, colnames=["cluster"]), sep="\n")
        print("", compared(mixture, table, labels), sep="\n")
    numbers = mixture.impute(table).select_dtypes("number")
    if numbers.shape[1]:
        title = "Mean of every column by cluster"
        hm.plot.means(numbers.to_numpy(), mixture.labels_, columns=numbers.columns, title=title).savefig(
            out / "leaves.png"
        )


def main() -> None:
    """Read, fit, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="the table (default: scikit-learn's wines)")
    parser.add_argument("--label", help="column to compare the clusters with in the end")
    parser.add_argument("--index", help="column that names the rows and is no measurement, such as a number of each")
    parser.add_argument("--clusters", type=int, nargs="+", default=[3], help="number of clusters; of several, the best")
    parser.add_argument("--kinds", nargs="+", default=[], metavar="COLUMN=KIND", help="such as year=category")
    parser.add_argument("--out", type=Path, default=Path("runs/own_table"), help="folder for the results")
    parser.add_argument("--smoke", action="store_true", help="two clusters only, to see that everything works")
    args = parser.parse_args()
    if args.csv is None and (args.label or args.index):
        parser.error("--label, --index: expected --csv beside them, the table that they are columns of")
    if not all("=" in kind for kind in args.kinds):
        parser.error("--kinds: expected COLUMN=KIND, such as year=category")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.csv is None:
        args.csv, args.label = args.out / "wine.csv", "target"
        wines: Any = load_wine(as_frame=True)  # of a type that depends on the arguments
        wines.frame.to_csv(args.csv, index=False)
    try:
        whole, table = read(args.csv, [args.label, args.index])
        mixture = fitted(table, [2] if args.smoke else args.clusters, dict(kind.split("=", 1) for kind in args.kinds))
        described(mixture, table, None if args.label is None else whole.loc[:, args.label], args.out)
        mixture.save_pretrained(args.out / "model")
        labels = None if args.label is None else whole.loc[:, args.label]
        hm.report(mixture.model_, table, args.out / "report.html", labels=labels, table=mixture.table_)
        column = "cluster"
        while column in whole:  # lest one of the table's own be lost
            column += "_"
        whole.assign(**{column: mixture.labels_}).to_csv(args.out / "clustered.csv", index=False)
    except (HMoEVAEError, OSError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        sys.exit(f"{parser.prog}: {error}")
    print(f"\nmodel, report.html, clustered.csv and leaves.png are in {args.out}")


if __name__ == "__main__":
    main()

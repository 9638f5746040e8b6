"""Your own tree on your own table: a CSV file, Gaussian leaves with a linear mean, clusters described in its columns.

python examples/own_table.py                                       scikit-learn's wines, in seconds
python examples/own_table.py --csv mine.csv --label species        yours; the label is only looked at afterwards
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_wine
from sklearn.mixture import GaussianMixture
from torch import Tensor

import hmoevae as hm
from hmoevae.errors import ArgumentError, HMoEVAEError, mismatch


def make_tree() -> hm.Mixture:
    """Three kinds, one of them with two sub-kinds; change it and run again.

    Networks without a hidden layer are affine maps. A leaf is then a probabilistic principal component analysis
    (Tipping & Bishop 1999): a plane of `latent_dim` dimensions through the kind's mean, and noise around it.
    """
    linear = hm.MLP(hidden=())
    leaf = hm.VAE(2, encoder=linear, decoder=linear, likelihood=hm.Gaussian(scale=0.7, mean="identity"))
    # Kinds need not be equally common: a light balance, and priors that follow the data.
    how = {"gate": hm.MLP((16,)), "balance": hm.Balance("kl", 1.0), "prior": "learned"}
    return hm.Mixture(children=(leaf, leaf, hm.Mixture.of(leaf, 2, **how)), **how)


def read(csv: Path, label: str | None, index: str | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The whole table as the file has it, and of it the columns of numbers, without the rows that have gaps in them."""
    whole = pd.read_csv(csv, dtype=str, keep_default_na=False)  # every cell to the letter, for the file that comes out
    table = pd.read_csv(csv)
    for option, column in (("--label", label), ("--index", index)):
        if column is not None and column not in table:
            raise ArgumentError(mismatch(option, f"one of {', '.join(table.columns)}", column))
    others = {label, index, "Unnamed: 0"}  # the last is a column without a name, as the index that pandas writes
    numbers = table.drop(columns=[column for column in table if column in others]).select_dtypes("number")
    numbers = numbers.replace([math.inf, -math.inf], math.nan).dropna()
    if numbers.empty:
        expected = "rows without gaps in columns of numbers, separated by commas"
        raise ArgumentError(mismatch("--csv", expected, f"none in {csv}"))
    if len(numbers) < 3:  # one is held out, and a single one has no spread
        raise ArgumentError(mismatch("--csv", "at least 3 rows without gaps", f"{len(numbers)} in {csv}"))
    print(f"{csv}: {len(numbers)} of {len(table)} rows without gaps, {numbers.shape[1]} numeric columns")
    return whole.rename(columns={"Unnamed: 0": ""}), numbers


def standardised(train: pd.DataFrame, table: pd.DataFrame) -> Tensor:
    """Columns of mean 0 and variance 1 in `train`, as `Gaussian(scale=...)` is in the units of the data."""
    scale = train.std().replace(0, 1)  # a column that is the same everywhere stays at 0
    return torch.tensor(((table - train.mean()) / scale).to_numpy(), dtype=torch.float32)


def compared(model: hm.HMoEVAE, train: Tensor, x: Tensor, labels: pd.Series) -> pd.DataFrame:
    """How well clusters match the labels: the tree's at every level, and as many of two methods that have no levels."""
    codes, rows = pd.factorize(labels)[0], {}
    for level in range(1, model.plan.depth + 1):
        n = len(model.plan.level(level))
        others = {
            "k-means": KMeans(n, n_init=10, random_state=0),  # type: ignore[arg-type]  # or "auto"
            "Gaussian mixture": GaussianMixture(n, n_init=10, random_state=0),
        }
        found = {"tree": model.predict(x, level=level).numpy()}
        found |= {name: method.fit(train.numpy()).predict(x.numpy()) for name, method in others.items()}
        for name, clusters in found.items():
            scores = hm.metrics.clustering_scores(codes, clusters)
            rows[f"{name}, {n} clusters"] = {"NMI": scores["nmi"], "purity": scores["leaf_purity"]}
    return pd.DataFrame.from_dict(rows, orient="index").round(3)


def main() -> None:
    """Read, train, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="the table (default: scikit-learn's wines)")
    parser.add_argument("--label", help="column to compare the clusters with in the end")
    parser.add_argument("--index", help="column that names the rows and is no measurement, such as a number of each")
    parser.add_argument("--out", type=Path, default=Path("runs/own_table"), help="folder for the results")
    parser.add_argument("--smoke", action="store_true", help="two epochs, to see that everything works")
    args = parser.parse_args()
    if args.csv is None and (args.label or args.index):
        parser.error("--label, --index: expected --csv beside them, the table that they are columns of")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.csv is None:
        args.csv, args.label = args.out / "wine.csv", "target"
        wines: Any = load_wine(as_frame=True)  # of a type that depends on the arguments
        wines.frame.to_csv(args.csv, index=False)
    try:
        whole, table = read(args.csv, args.label, args.index)
        labels = None if args.label is None else whole.loc[table.index, args.label]
        leaf = run(table, labels, args.out, epochs=2 if args.smoke else 100)
        column = "leaf"
        while column in whole:  # lest one of the table's own be lost
            column += "_"
        whole.assign(**{column: leaf}).to_csv(args.out / "clustered.csv", index=False)  # no leaf where there are gaps
    except (HMoEVAEError, OSError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        sys.exit(f"{parser.prog}: {error}")
    print(f"\nmodel, history.csv, clustered.csv and leaves.png are in {args.out}")
    if args.smoke:
        print("two epochs only show that everything works: the clusters are found without --smoke")


def run(table: pd.DataFrame, labels: pd.Series | None, out: Path, epochs: int) -> pd.Series:
    """Train on four rows of five, score the fifth, describe the clusters in the table's own units; returns leaves."""
    rows = torch.randperm(len(table), generator=torch.Generator().manual_seed(0)).numpy()
    held_out, train = table.iloc[rows[::5]], table.drop(table.index[rows[::5]])

    torch.manual_seed(0)
    model = hm.HMoEVAE(make_tree(), input_shape=(table.shape[1],), objective="elbo")
    history = hm.fit(
        model,
        standardised(train, train),
        hm.Training(
            epochs=epochs,
            batch_size=32,
            lr=1e-2,
            lr_schedule="cosine",
            init="kmeans",
            init_epochs=max(1, epochs // 5),
            seed=0,
        ),
    )
    model.save_pretrained(out / "model")
    history.to_csv(out / "history.csv")

    print(f"\n{model.tree}\n")
    score = model.score_samples(standardised(train, held_out)).mean()
    print(f"held-out log-likelihood, at least: {score:.2f} nats a row")

    x = standardised(train, table)
    paths = [node.path for node in model.plan.leaves]
    cluster = model.predict(x)
    leaf = pd.Series([paths[i] for i in cluster], index=table.index, name="leaf")
    means: pd.DataFrame = table.groupby(leaf).mean()  # type: ignore[assignment]  # pandas says it may be a number
    print("\nmean of every column by leaf:", means.T.round(2), sep="\n")
    print(f"\nrows of every leaf:\n{leaf.value_counts().sort_index().to_string()}")
    if labels is not None:
        print("\nrows of every label by leaf:", pd.crosstab(labels, leaf), sep="\n")
        if len(train) >= model.plan.n_leaves:
            print("", compared(model, standardised(train, train), x, labels), sep="\n")
    names = model.plan.level_names(None)
    hm.plot.means(
        table.to_numpy(), cluster, columns=table.columns, cluster_names=names, title="Mean of every column by leaf"
    ).savefig(out / "leaves.png")
    return leaf


if __name__ == "__main__":
    main()

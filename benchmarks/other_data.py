"""What do the settings that were chosen on MNIST do on other data, against the baselines a user would try?

    python benchmarks/other_data.py --quick                        COIL-20, few steps, one seed, two baselines
    python benchmarks/other_data.py --json other_data.json         all data below DATA_ROOT, three seeds

    fashion    Fashion-MNIST; the flat tree and the training of `examples/mnist_flat.py`, unchanged.
    cifar      CIFAR-10 in colour; a tree over features that are learnt from its patches.
    coil       COIL-20, 1,440 images of 20 objects; the recipe that changes no image, from a start that is learned.
               `--unchanged`: as Fashion-MNIST, with 20 leaves. All images are trained on and scored.
    bbc        BBC news, 2,225 documents of five kinds; `VAEMixture(5, likelihood="counts")` of their word counts.
    news       20 Newsgroups, split by date; the same with 20 kinds.

For COIL-20, `our start` is what the training begins with. The baselines are those of `baselines.py` and Ward's
clustering, of pixels, or of 50 components of log tf-idf. Ward's is of at most 10,000 samples; others go to the nearest
mean. Scores are of the test split, percent. `dendrogram` is the dendrogram purity of `hm.hierarchy` of the trained
leaves. Labels are read by the scores, and to count the kinds. The last line is the whole report as one JSON object.
"""

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import command
import machine
import numpy as np
import torch
from baselines import BASELINES
from PIL import Image
from recipes import epochs_of, mnist_flat, no_augmentation_training, train
from scipy.sparse import csr_array, load_npz
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits
from torch import Tensor

import hmoevae as hm
from hmoevae.datasets import LabelledImages
from hmoevae.errors import CollapseWarning

DEFAULTS: dict[str, Any] = {
    "data": ["fashion", "cifar", "coil", "bbc", "news"],
    "seeds": [0, 1, 2],
    "against": [*BASELINES, "ward"],
}
QUICK: dict[str, Any] = {"data": ["coil"], "seeds": [0], "against": ["k-means", "ward"], "steps": 60}
MOST_FOR_WARD = 10_000
LEADING = 32
"""Number of features of photographs, the leading ones, that their start is found by."""
N_COMPONENTS = 50
START_STEPS = 240
"""Steps of a start of objects."""
TOL = 0.01
"""Of EM on words, in nats a document."""
SHOWN = ("accuracy", "nmi", "ari", "leaf_purity", "dendrogram")


@dataclass(frozen=True, slots=True)
class Split:
    """One split of a data set.

    Attributes:
        x: Images, or counts of words `(n, word)`.
        y: Labels, `(n,)`.
        features: What the baselines see, `(n, feature)`.
    """

    x: Any
    y: Tensor
    features: np.ndarray


Splits = tuple[Split, Split]


# --- the data -------------------------------------------------------------------------------------------------------


def of_images(train: LabelledImages, test: LabelledImages) -> Splits:
    """Images, whose baselines see pixels."""
    first, second = (Split(part.x, part.y, part.x.flatten(1).numpy()) for part in (train, test))
    return first, second


def fashion(root: Path) -> Splits:
    """Fashion-MNIST."""
    return of_images(*hm.datasets.fashion_mnist(root))


def cifar(root: Path) -> Splits:
    """CIFAR-10, from lossless sheets of 5,000 images."""
    folder = root / "CIFAR10"
    labels = np.load(folder / "labels.npz", allow_pickle=True)

    def part(split: str) -> LabelledImages:
        sheets = [np.asarray(Image.open(file).convert("RGB")) for file in sorted(folder.glob(f"sprites/{split}_*"))]
        tiles = np.concatenate([sheet.reshape(250, 32, 20, 32, 3).swapaxes(1, 2) for sheet in sheets])
        x = torch.from_numpy(tiles.reshape(-1, 32, 32, 3)).permute(0, 3, 1, 2).float().div(255)
        y = torch.from_numpy(np.asarray(labels[f"y_{split}"]).astype(np.int64).ravel())
        return LabelledImages("cifar10", x.contiguous(), y)

    return of_images(part("train"), part("test"))


def coil(root: Path) -> Splits:
    """COIL-20; all images are both splits."""
    data = np.load(root / "COIL20" / "coil20.npz")
    x = torch.from_numpy(data["x"]).float().div(255).reshape(-1, 1, 32, 32)
    whole = LabelledImages("coil20", x, torch.from_numpy(data["y"].astype(np.int64).ravel()))
    return of_images(whole, whole)


def bbc(root: Path) -> Splits:
    """BBC news; all documents are both splits."""
    folder = root / "words" / "bbc_news"
    kinds = np.loadtxt(folder / "split_label.csv", dtype=str, delimiter=",", skiprows=1)[:, 1]
    counts, y = load_npz(folder / "counts.npz"), np.unique(kinds, return_inverse=True)[1]
    return of_words((counts, y), (counts, y))


def news(root: Path) -> Splits:
    """20 Newsgroups, the old documents and the new ones."""
    folder = root / "words" / "newsgroups20"
    train, test = (
        (load_npz(folder / f"{part}_counts.npz"), np.loadtxt(folder / f"{part}_labels.txt"))
        for part in ("train", "test")
    )
    return of_words(train, test)


def of_words(train: tuple[Any, np.ndarray], test: tuple[Any, np.ndarray]) -> Splits:
    """Counts, whose baselines see the leading components of log tf-idf, of unit length (latent semantic analysis)."""
    weights = TfidfTransformer(sublinear_tf=True).fit(train[0])
    components = TruncatedSVD(N_COMPONENTS, random_state=0).fit(weights.transform(train[0]))

    def part(counts: Any, y: np.ndarray) -> Split:
        features = np.asarray(normalize(components.transform(weights.transform(counts))))
        return Split(csr_array(counts.astype(np.float32)), torch.from_numpy(y.astype(np.int64)), features)

    return part(*train), part(*test)


READ: dict[str, Callable[[Path], Splits]] = {"fashion": fashion, "cifar": cifar, "coil": coil, "bbc": bbc, "news": news}


# --- what is compared -----------------------------------------------------------------------------------------------


def by_images(x: Tensor, k: int, seed: int, args: argparse.Namespace) -> hm.HMoEVAE:
    """The flat example with `k` leaves."""
    flat = mnist_flat.make_tree()
    expert = flat.children[0]
    assert isinstance(expert, hm.VAE)
    tree = hm.Mixture.of(expert, k, gate=flat.gate, balance=flat.balance)
    training = replace(mnist_flat.make_training(len(x)), seed=seed, device=args.device)
    if args.steps is not None:
        training = replace(training, epochs=max(1, round(args.steps / math.ceil(len(x) / training.batch_size))))
    model, _ = train(tree, x, training, progress=False)
    return model


def start_of_objects(x: Tensor, k: int, seed: int) -> Tensor:
    """The kind of every image by cuts of the graph of neighbours, without changed copies and without training."""
    return hm.find_kinds(x, max_kinds=k, changes=None, seed=seed).labels


def by_objects(x: Tensor, k: int, seed: int, args: argparse.Namespace) -> hm.HMoEVAE:
    """The recipe that changes no image, of `recipes.py`: an object on a turntable is never rotated or sheared.

    The start takes as many steps as an epoch of MNIST; one of 1,440 images is 12, in which gates learn little. A second
    `fit` begins with a new optimiser. The moments of Adam are those of a loss that is next to zero by then, after which
    its steps would be too large.
    """
    training = replace(no_augmentation_training(len(x)), seed=seed, device=args.device)
    per_epoch = math.ceil(len(x) / training.batch_size)
    n_start, n_steps = START_STEPS, training.epochs * per_epoch
    if args.steps is not None:
        n_start, n_steps = args.steps // 4, args.steps - args.steps // 4
    first, then = (epochs_of(steps, len(x), training.batch_size) for steps in (n_start, n_steps))
    kinds = start_of_objects(x, k, seed)
    start = replace(training, epochs=first, init=kinds, init_epochs=first, agreement=None, lr_schedule="constant")
    flat = mnist_flat.make_tree()
    torch.manual_seed(seed)
    tree = hm.Mixture(children=flat.children[:1] * k, gate=flat.gate, balance=flat.balance)
    model = hm.HMoEVAE(tree, input_shape=tuple(x.shape[1:]), objective="elbo")
    for part in (start, replace(training, epochs=then, init="random")):
        hm.fit(model, x, part, progress=False)
    return model


def by_photographs(
    x: Tensor, k: int, seed: int, args: argparse.Namespace
) -> tuple[hm.HMoEVAE, Callable[[Tensor], Tensor]]:
    """A tree of `k` leaves over features of photographs that are learnt from their patches, and these features."""
    change = hm.views.Compose([hm.photographs.RandomCrop(), hm.photographs.ColourJitter()])
    features = hm.photographs.learn_patches(x, view=change, seed=seed)

    def seen(images: Tensor) -> Tensor:
        found = features(images)
        return found * math.sqrt(found.shape[1])  # of mean square one

    described = seen(x)
    start = KMeans(k, random_state=seed).fit_predict(described[:, :LEADING].numpy())
    expert = hm.VAE(10, hm.MLP((64,)), hm.MLP((64,)), hm.Gaussian(scale=1.0, mean="identity"))
    tree = hm.Mixture.of(expert, k, gate=hm.MLP((256,)), balance=hm.Balance("kl", weight=20.0))
    steps = 500 if args.steps is None else args.steps
    training = hm.Training(
        epochs=max(2, round(steps / math.ceil(len(x) / 1000))),  # 10 of all of CIFAR-10
        batch_size=1000,
        lr=2e-3,
        lr_schedule="cosine",
        init=torch.from_numpy(start.astype(np.int64)),
        agreement=hm.Agreement(partner=hm.views.Neighbour(k=20, n_components=described.shape[1]), alone=0.5),
        seed=seed,
        device=args.device,
    )
    return train(tree, described, training, progress=False)[0], seen


def by_counts(x: csr_array, k: int, seed: int, args: argparse.Namespace) -> hm.HMoEVAE:
    """The estimator for counts; its tolerance is that of samples with a few numbers, and a document has hundreds."""
    options = {"tol": TOL, "n_init": args.restarts, "random_state": seed, "device": args.device}
    return hm.VAEMixture(k, likelihood="counts", **options).fit(x).model_


def ward(train: np.ndarray, test: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Ward's clustering of some samples; the samples that are scored go to the nearest mean."""
    some = np.random.default_rng(seed).permutation(len(train))[:MOST_FOR_WARD]
    cluster = AgglomerativeClustering(k).fit_predict(train[some])
    if train is test and len(some) == len(train):
        return cluster[some.argsort()]
    return NearestCentroid().fit(train[some], cluster).predict(test)


def as_it_is(x: Any) -> Any:
    """What a model sees that has no features."""
    return x


def rows_of(name: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every method and seed."""
    first, test = READ[name](args.data_root)
    k = len(first.y.unique())

    def row(what: str, seed: int, cluster: Tensor, seconds: float, **more: float) -> dict[str, Any]:
        scores = hm.metrics.clustering_scores(test.y, cluster)
        return {"data": name, "what": what, "seed": seed, "k": k, **scores, **more, "cpu_seconds": seconds}

    fitted: Callable[..., hm.HMoEVAE] = by_images if isinstance(first.x, Tensor) else by_counts
    fitted = by_objects if name == "coil" and not args.unchanged else fitted
    ours = "ours, unchanged" if name == "coil" and args.unchanged else "ours"
    ours = f"ours, best of {args.restarts}" if args.restarts > 1 and fitted is by_counts else ours
    for seed in () if args.only_baselines else args.seeds:
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CollapseWarning)
            warnings.filterwarnings("ignore", "precision=")  # fp32 where there is no bfloat16
            if name == "cifar":
                model, seen = by_photographs(first.x, k, seed, args)
            else:
                model, seen = fitted(first.x, k, seed, args), as_it_is
        cluster = model.predict(seen(test.x))
        seconds = time.process_time() - start
        tree = hm.hierarchy(model, seen(first.x[:10_000]))
        yield row(ours, seed, cluster, seconds, dendrogram=hm.metrics.dendrogram_purity(test.y, cluster, tree))
    for seed in args.seeds if name == "coil" else ():
        start = time.process_time()
        kinds = start_of_objects(first.x, k, seed)
        yield row("our start", seed, kinds, time.process_time() - start)
    for what in args.against:
        for seed in args.seeds:
            start = time.process_time()
            found = {**BASELINES, "ward": ward}[what](first.features, test.features, k, seed)
            cluster = torch.from_numpy(np.asarray(found).astype(np.int64))
            yield row(what, seed, cluster, time.process_time() - start)


def shown(row: dict[str, Any]) -> str:
    """One line."""
    figures = (f"{name} {100 * row[name]:.1f}" for name in SHOWN if name in row)
    return (
        f"{row['data']:8} {row['what']:9} seed {row['seed']}   {'   '.join(figures)}   {row['cpu_seconds']:.0f} CPU s"
    )


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its report."""
    parser = command.parser(__doc__, has_data_root=False)
    parser.add_argument("--data-root", type=Path, required=True, help="folder with FashionMNIST/, COIL20/, words/ ...")
    parser.add_argument("--data", nargs="+", choices=list(READ))
    parser.add_argument("--against", nargs="*", choices=[*BASELINES, "ward"])
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--steps", type=int, help="steps of the training of images, in place of the example's")
    parser.add_argument("--restarts", type=int, default=1, help="fits of words, the likeliest of which is kept")
    parser.add_argument("--unchanged", action="store_true", help="COIL-20 by the recipe that was made for MNIST")
    parser.add_argument("--only-baselines", action="store_true", help="train nothing of our own")
    parser.add_argument("--json", type=Path, help="write the report to this file too, anew after every row")
    parser.add_argument("--quick", action="store_true", help="COIL-20, few steps, one seed, two baselines")
    args = parser.parse_args(argv)
    command.fill_in(args, DEFAULTS | (QUICK if args.quick else {}))
    with command.at_work("other_data.py", args.threads), threadpool_limits(args.threads):
        report: dict[str, Any] = {**machine.about(torch.device("cpu"), args.threads), "argv": command.given(args)}
        report["rows"] = []
        command.collect(report, (row for name in args.data for row in rows_of(name, args)), shown, args.json)
        print(json.dumps(report))


if __name__ == "__main__":
    main()

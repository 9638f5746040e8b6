"""What `clustering.py` compares with: methods that are fitted to some images without labels, and asked for others."""

import warnings
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import numpy as np
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from hmoevae.errors import MissingExtraError, from_extra, mismatch

Samples = Float[np.ndarray, "n feature"]
Clusters = Int[np.ndarray, " n"]

N_PCA = 50
N_STARTS = 5
"""Of k-means and of EM; the best one by its own objective is kept."""


def kmeans(train: Samples, test: Samples, n_clusters: int, seed: int) -> Clusters:
    """k-means on the pixels, from k-means++ starts."""
    fitted = KMeans(n_clusters, n_init=N_STARTS, random_state=seed).fit(train)  # type: ignore[arg-type]  # or "auto"
    return np.asarray(fitted.predict(test))


def pca_gmm(train: Samples, test: Samples, n_clusters: int, seed: int) -> Clusters:
    """A Gaussian mixture, full covariances, on 50 principal components."""
    pca = _pca(train, seed)
    return _mixture(pca.transform(train), n_clusters, seed).predict(pca.transform(test))


def umap_gmm(train: Samples, test: Samples, n_clusters: int, seed: int) -> Clusters:
    """A Gaussian mixture, full covariances, on a UMAP to ten dimensions of 50 principal components.

    `min_dist=0` packs clusters, which is what a mixture wants (McInnes et al. 2018); the rest is umap-learn's own.

    Raises:
        MissingExtraError: umap-learn is not installed.
    """
    pca = _pca(train, seed)
    # A seed means one thread; to say so spares a warning.
    reducer = import_umap().UMAP(n_components=10, min_dist=0.0, random_state=seed, n_jobs=1)
    embedded = reducer.fit_transform(pca.transform(train))
    return _mixture(embedded, n_clusters, seed).predict(reducer.transform(pca.transform(test)))


def import_umap() -> ModuleType:
    """umap-learn, imported where it is needed: it takes seconds, and few have it.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # that a part which we don't use needs TensorFlow
            return import_module("umap")
    except ImportError as error:
        raise MissingExtraError(mismatch("umap-gmm", from_extra("umap-learn", "umap"), f"{error}")) from None


def _pca(train: Samples, seed: int) -> PCA:
    return PCA(min(N_PCA, *train.shape), random_state=seed).fit(train)


def _mixture(train: Samples, n_clusters: int, seed: int) -> GaussianMixture:
    return GaussianMixture(n_clusters, n_init=N_STARTS, max_iter=500, random_state=seed).fit(train)


BASELINES: dict[str, Callable[[Samples, Samples, int, int], Clusters]] = {
    "k-means": kmeans,
    "pca-gmm": pca_gmm,
    "umap-gmm": umap_gmm,
}

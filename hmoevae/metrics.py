"""How well clusters match labels; for evaluation only, labels never touch training.

Axes: `n` counts samples. Every score is a fraction: 1 is a perfect match.
"""

import numpy as np
import torch

from hmoevae.errors import MissingExtraError, ShapeError, mismatch
from hmoevae.model import ArrayLike

try:
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix
except ImportError as missing:
    raise MissingExtraError(
        mismatch("hmoevae.metrics", "scikit-learn, as in pip install 'hmoevae[examples]'", missing)
    ) from None


def accuracy(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Share of samples in the cluster that stands for their label, under the best one-to-one match.

    The match is found by the Hungarian algorithm (Xie et al. 2016, equation 10); clusters beyond the number of labels
    stay without one and count as errors.

    Args:
        labels: `(n,)` integers.
        clusters: `(n,)` integers, such as `model.predict(x)`.

    >>> accuracy(np.array([0, 0, 1, 1]), np.array([7, 7, 3, 7]))
    0.75
    """
    table = _contingency(labels, clusters)
    matched = table[linear_sum_assignment(table, maximize=True)].sum()
    return float(matched / table.sum())


def purity(labels: ArrayLike, clusters: ArrayLike) -> float:
    """Share of samples whose label is the most frequent one in their cluster (Manning et al. 2008, section 16.3).

    It never falls when clusters are split, so compare it only between equal numbers of clusters.

    Args:
        labels: `(n,)` integers.
        clusters: `(n,)` integers.

    >>> purity(np.array([0, 0, 1, 1]), np.array([7, 7, 3, 5]))
    1.0
    """
    table = _contingency(labels, clusters)
    return float(table.max(0).sum() / table.sum())


def clustering_scores(labels: ArrayLike, clusters: ArrayLike) -> dict[str, float]:
    """Accuracy, normalised mutual information, adjusted Rand index and leaf purity in one go.

    Args:
        labels: `(n,)` integers.
        clusters: `(n,)` integers.

    >>> clustering_scores(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0]))
    {'accuracy': 1.0, 'nmi': 1.0, 'ari': 1.0, 'leaf_purity': 1.0}
    """
    y, c = _numpy(labels), _numpy(clusters)
    return {
        "accuracy": accuracy(y, c),
        "nmi": float(normalized_mutual_info_score(y, c)),
        "ari": float(adjusted_rand_score(y, c)),
        "leaf_purity": purity(y, c),
    }


def _numpy(values: ArrayLike) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else values


def _contingency(labels: ArrayLike, clusters: ArrayLike) -> np.ndarray:
    y, c = _numpy(labels), _numpy(clusters)
    if y.ndim != 1 or y.shape != c.shape or len(y) == 0:
        raise ShapeError(mismatch("clusters", f"one a label, {y.shape}", c.shape))
    return np.asarray(contingency_matrix(y, c))

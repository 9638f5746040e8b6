"""Features by which samples are compared, where nearby pixel values do not mean the same cluster.

Axes: `n` counts samples.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hmoevae.errors import MissingExtraError, ShapeError, from_extra, mismatch

__all__ = [
    "oriented_gradients",
]


def __dir__() -> list[str]:
    """The public names."""
    return __all__


N_DIRECTIONS = 8
BLUR_SD, STEP = 1.5, 3
"""Standard deviation and spacing, in pixels, of the Gaussian windows over which edges are summed."""
FILLING_ROUNDS = 10
"""Rounds in which gaps are filled, each from the principal components of the last."""
FILLING_COLUMNS = 1024
"""Largest number of columns with that many rounds; the gaps of more columns are filled with the columns' means."""
CHUNK = 4096
"""Number of images processed at a time, which bounds the memory of intermediate results."""


def oriented_gradients(images: Float[Tensor, "n channel height width"]) -> Float[Tensor, "n feature"]:
    """The strength of edges in each of eight directions, summed over Gaussian windows of an image.

    These are histograms of oriented gradients (Dalal & Triggs 2005) with Gaussian windows instead of cells, and a
    square root instead of normalisation. Two strokes that are one pixel apart have similar features but different
    pixels, and short strokes count. More of MNIST's nearest neighbours are the same digit.

    Args:
        images: Images with pixels of any range.

    Returns:
        One feature per channel, direction and window, on the device of `images`.

    Raises:
        ShapeError: `images` are not four-dimensional.

    >>> oriented_gradients(torch.rand(5, 1, 28, 28)).shape
    torch.Size([5, 800])
    """
    if images.ndim != 4:
        raise ShapeError(mismatch("images", "(n, channels, height, width)", tuple(images.shape)))
    return torch.cat([_oriented_gradients(chunk) for chunk in images.float().split(CHUNK)])


def _oriented_gradients(images: Tensor) -> Tensor:
    radius = math.ceil(2.5 * BLUR_SD)
    window = torch.arange(-radius, radius + 1, device=images.device).div(BLUR_SD).square().mul(-0.5).softmax(0)
    padded = F.pad(images, (1, 1, 1, 1))
    along = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    strength, angle = torch.hypot(along, down), torch.atan2(down, along)
    directions = torch.arange(N_DIRECTIONS, device=images.device) * (2 * math.pi / N_DIRECTIONS)
    edges = strength.unsqueeze(2) * (angle.unsqueeze(2) - directions.view(-1, 1, 1)).cos().relu().square()
    maps = edges.flatten(0, 2).unsqueeze(1)
    summed = F.conv2d(maps, torch.outer(window, window)[None, None], stride=STEP, padding=radius)
    # The constant keeps the root's slope at zero finite, so that faint noise does not count as an edge.
    return (summed + 1e-3).sqrt().view(len(images), -1)


def filled(x: Float[Tensor, "n column"]) -> Float[Tensor, "n column"]:
    """A table whose gaps, NaN, are filled so that rows can be compared; without a gap, the table itself.

    Gaps start as the columns' means. In every round they become what half of the principal components say of them,
    each shrunk by the noise, which is the mean variance of the others (Josse & Husson 2012, regularised iterative PCA).

    >>> filled(torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0], [3.0, torch.nan]]))[3, 1] > 3
    tensor(True)
    """
    if not x.sum().isnan():  # one pass, without a mask
        return x
    gaps = x.isnan()
    start = torch.where(gaps, x.nanmean(0).nan_to_num(), x)  # a column of gaps is the same for all rows
    if x.shape[1] > FILLING_COLUMNS or len(x) < 3:
        return start
    found = start.double()
    kept = max(1, min(len(x) - 1, x.shape[1]) // 2)
    for _ in range(FILLING_ROUNDS):
        mean = found.mean(0)
        variance, axes = torch.linalg.eigh((found - mean).t() @ (found - mean) / len(x))
        noise = variance[:-kept].mean() if kept < len(variance) else variance.new_zeros(())
        shrunk = (1 - noise / variance[-kept:].clamp_min(1e-12)).clamp(0, 1)
        said = mean + ((found - mean) @ axes[:, -kept:] * shrunk) @ axes[:, -kept:].t()
        found = torch.where(gaps, said, start.double())
    return found.to(x.dtype)


def principal_components(samples: Float[Tensor, "n *sample"], n_components: int) -> Float[np.ndarray, "n component"]:
    """The leading principal components of `samples`, by scikit-learn with a fixed seed; gaps are `filled` first.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    return principal_components_of(samples, n_components)[0]


def principal_components_of(
    samples: Float[Tensor, "n *sample"], n_components: int
) -> tuple[Float[np.ndarray, "n component"], Callable[[Float[Tensor, "m *sample"]], Float[np.ndarray, "m component"]]]:
    """As `principal_components`, with the function that computes those of other samples.

    Raises:
        MissingExtraError: scikit-learn is not installed.

    >>> samples = torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]])
    >>> found, project = principal_components_of(samples, 1)
    >>> np.allclose(project(samples[1:]), found[1:], atol=1e-5)
    True
    """
    try:
        from sklearn import config_context
        from sklearn.decomposition import PCA
    except ImportError as error:
        expected = from_extra("scikit-learn", "sklearn")
        raise MissingExtraError(mismatch("principal components of the data", expected, f"{error}")) from None

    flat = filled(samples.flatten(1).float().cpu()).numpy()
    # The caller's setting does not matter for a numpy array; of equal samples, shares of the variance are 0/0.
    with config_context(array_api_dispatch=False), np.errstate(invalid="ignore"):
        pca = PCA(min(n_components, *flat.shape), svd_solver="randomized", random_state=0)
        found = pca.fit_transform(flat)

    def project(others: Float[Tensor, "m *sample"]) -> Float[np.ndarray, "m component"]:
        with config_context(array_api_dispatch=False):
            return pca.transform(others.flatten(1).float().cpu().numpy())

    return found, project


def latent_semantics(
    counts: Float[Tensor, "n word"], n_components: int, sample_weight: Float[Tensor, " n"]
) -> Float[Tensor, "n component"]:
    """The leading components of log counts, by which documents are compared (Deerwester et al. 1990).

    A count c above zero becomes (1 + log c) times the logarithm of how rare samples with such counts are (tf-idf), each
    sample is divided by its length, and so are its leading singular components, so that products are cosines.

    Args:
        counts: Counts of words, most of which are zero.
        n_components: Number of components, at most that of the words.
        sample_weight: How many samples each sample counts for.

    Raises:
        MissingExtraError: scikit-learn is not installed.

    >>> found = latent_semantics(torch.tensor([[3.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 2.0, 0.0]]), 2, torch.ones(3))
    >>> (found @ found.t()).diagonal().round(decimals=3)
    tensor([1., 1., 1.])
    """
    try:
        from scipy.sparse import csr_matrix, diags
        from sklearn.decomposition import TruncatedSVD
        from sklearn.preprocessing import normalize
    except ImportError as error:
        expected = from_extra("scikit-learn", "sklearn")
        raise MissingExtraError(mismatch("latent semantics", expected, f"{error}")) from None

    weight = sample_weight.cpu().numpy()
    tf = csr_matrix(counts.cpu().numpy())
    n_with = weight @ (tf > 0)
    tf.data = 1 + np.log(tf.data)
    tf_idf = normalize(tf @ diags(1 + np.log((1 + weight.sum()) / (1 + n_with))))
    svd = TruncatedSVD(min(n_components, *counts.shape), random_state=0)
    svd.fit(diags(np.sqrt(weight)) @ tf_idf)
    return torch.from_numpy(normalize(svd.transform(tf_idf))).to(counts.dtype)

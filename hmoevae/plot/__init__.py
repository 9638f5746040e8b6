"""Plots of a training and of what a model has learned, as matplotlib figures, which notebooks show.

Axes: `leaf` as in `hmoevae.plan`; `batch` and `n` count samples, `epoch` epochs. Samples of shape `(h, w)`,
`(1, h, w)` or `(3, h, w)` are plotted as images; small ones are enlarged until a label fits beside them. Other samples
are plotted as bars, one per entry, or 50 means over neighbouring entries where there are more. pyplot is not used:
nothing outside the returned figure changes.
"""

from hmoevae.errors import MissingExtraError, from_extra, mismatch

try:
    import matplotlib as mpl  # noqa: F401  # before the modules below, which need it
except ImportError as missing:
    raise MissingExtraError(mismatch("hmoevae.plot", from_extra("matplotlib", "plot"), missing)) from None

from hmoevae.plot.clusters import contingency, misrouted
from hmoevae.plot.dendrograms import dendrogram
from hmoevae.plot.growths import growth
from hmoevae.plot.leaves import nearest, reconstructions, samples, traversals
from hmoevae.plot.tables import means
from hmoevae.plot.training import losses, sample_grid, usage
from hmoevae.plot.trees import tree

__all__ = [
    "contingency",
    "dendrogram",
    "growth",
    "losses",
    "means",
    "misrouted",
    "nearest",
    "reconstructions",
    "sample_grid",
    "samples",
    "traversals",
    "tree",
    "usage",
]


def __dir__() -> list[str]:
    """The public names."""
    return __all__

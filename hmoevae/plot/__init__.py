"""The pictures: a training's curves, and what a model has found, as matplotlib figures to save; notebooks show them.

Axes: `leaf` as in `hmoevae.plan`; `batch` and `n` count samples, `epoch` epochs. Samples of shape `(h, w)`,
`(1, h, w)` or `(3, h, w)` are shown as images, low and narrow ones stretched until a label fits beside them; others as
bars on a thin line of zero, one an entry, or 50 means over neighbours where there are more entries. pyplot is never
touched: nothing outside the returned figure changes.
"""

from hmoevae.errors import MissingExtraError, from_extra, mismatch

try:
    import matplotlib as mpl  # noqa: F401  # before the modules below, which need it
except ImportError as missing:
    raise MissingExtraError(mismatch("hmoevae.plot", from_extra("matplotlib", "plot"), missing)) from None

from hmoevae.plot.clusters import contingency, misrouted
from hmoevae.plot.drawn_tree import tree
from hmoevae.plot.leaves import nearest, reconstructions, samples, traversals
from hmoevae.plot.tables import means
from hmoevae.plot.training import losses, sample_grid, usage

__all__ = [
    "contingency",
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
    """What there is for users."""
    return __all__

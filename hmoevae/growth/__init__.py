"""Growth: from one leaf, or a given tree, to the tree that the data ask for."""

from hmoevae.growth.adding import add_leaf
from hmoevae.growth.growing import grow
from hmoevae.growth.record import Decision, Grown, Growth

__all__ = [
    "Decision",
    "Grown",
    "Growth",
    "add_leaf",
    "grow",
]


def __dir__() -> list[str]:
    """The public names."""
    return __all__

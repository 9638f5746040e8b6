"""Surgery on trained trees: split, merge, prune, graft, wrap, unwrap and rename nodes, and keep what they have learned.

Every function takes a model and returns a new one; the old one is left as it is. Nodes that an operation does not touch
keep their weights to the bit.
"""

from hmoevae.surgery.cutting import merge, prune, rename, split
from hmoevae.surgery.grafting import graft, unwrap, wrap
from hmoevae.surgery.nesting import nest
from hmoevae.surgery.teaching import fit_gates

__all__ = [
    "fit_gates",
    "graft",
    "merge",
    "nest",
    "prune",
    "rename",
    "split",
    "unwrap",
    "wrap",
]


def __dir__() -> list[str]:
    """The public names."""
    return __all__

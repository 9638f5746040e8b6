"""A report of a trained tree: one HTML file in which one walks through it."""

from hmoevae.reporting.report import report

__all__ = ["report"]


def __dir__() -> list[str]:
    """The public names."""
    return __all__

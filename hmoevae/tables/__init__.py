"""Tables as data: the schema of a frame, which turns its rows into samples and samples into rows."""

from hmoevae.tables.columns import Binary, Category, Column, Count, Number
from hmoevae.tables.table import Table, table_from_json

__all__ = ["Binary", "Category", "Column", "Count", "Number", "Table", "table_from_json"]


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)

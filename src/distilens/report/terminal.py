"""Tables for terminals."""

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text


def as_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table without lines, with a bold header. Long cells are wrapped; markup in cells is shown as it is."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table

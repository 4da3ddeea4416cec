"""Tables that lose nothing: where a terminal is too narrow for their words they grow wider than it."""

from __future__ import annotations

from rich.cells import cell_len
from rich.measure import Measurement
from rich.table import Table

from edgepack.cli.console import out

_ANY_WIDTH = 10_000


def print_table(table: Table) -> None:
    """Print `table` on stdout with every word whole: in the width that there is, or in the least that its words need.

    Rich would put an ellipsis in place of what has no room, and two names may differ just there.
    """
    for column in table.columns:
        cells = [str(column.header), *map(str, column.cells)]
        words = cells if column.no_wrap else [word for cell in cells for word in cell.split()]
        column.min_width = max(map(cell_len, words), default=0)
        column.overflow = "fold"
    least = Measurement.get(out, out.options.update(max_width=_ANY_WIDTH), table).minimum
    if least > out.width:
        table.width = least
    out.print(table)

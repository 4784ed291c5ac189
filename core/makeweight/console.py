"""Output on the terminal: a console and aligned tables, both safe for untrusted text."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from .errors import printable

PLAIN_WIDTH = 80
"""characters per line if the output is not a terminal, so that tables in logs do not depend on a window"""


class PlainConsole(Console):
    """A console that escapes control characters, since text may come from untrusted files (see `printable`)."""

    def print(self, *objects: Any, **settings: Any) -> None:
        super().print(*(printable(each) if isinstance(each, str) else each for each in objects), **settings)


def console(quiet: bool = False) -> Console:
    """A console on the current standard output. `quiet` suppresses all output."""
    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    return PlainConsole(
        file=sys.stdout, highlight=False, soft_wrap=True, quiet=quiet, width=width, markup=False, emoji=False
    )


def print_table(target: Console, header: list[str], rows: list[list[str]], numbers: bool = True) -> None:
    """Print a table. With `numbers`, all columns but the first are aligned right, and no cell wraps or is cut.

    If a table of numbers is too wide, its gaps are narrowed. If it is still too wide, the first cell of each row is
    printed on a separate line above the numbers.
    """
    header, rows = list(map(printable, header)), [list(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    if numbers and sum(widths) + 3 * len(widths) - 1 > target.width:  # with gaps of 3 and margins
        for line in _narrow(header, rows, widths, target.width):
            target.print(line)
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for number, name in enumerate(header):
        justify: Literal["left", "right"] = "right" if number and numbers else "left"
        table.add_column(name, justify=justify, no_wrap=numbers, overflow="fold")
    for row in rows:
        table.add_row(*row)
    target.print(table, soft_wrap=False)


def _narrow(header: list[str], rows: list[list[str]], widths: list[int], available: int) -> Iterator[str]:
    """The lines of a table with gaps of one character."""
    fits = sum(widths) + len(widths) - 1 <= available
    for number, (first, *cells) in enumerate([header, *rows]):
        numbers = " ".join(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        yield from [f"{first.ljust(widths[0])} {numbers}"] if fits else [first, numbers]
        if number == 0:
            yield "─" * (len(numbers) + fits * (widths[0] + 1))

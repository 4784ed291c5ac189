"""Text for people: a console, and tables that keep their columns."""

from __future__ import annotations

import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .errors import printable

PLAIN_WIDTH = 160
"""columns of the output where it is no terminal: a table in a log is not to be folded to somebody's window"""


class PlainConsole(Console):
    """A console that shows text from untrusted files as `printable` lines."""

    def print(self, *objects: Any, **settings: Any) -> None:
        super().print(*(printable(each) if isinstance(each, str) else each for each in objects), **settings)


def console(quiet: bool = False) -> Console:
    """A console on standard output as it is now."""
    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    return PlainConsole(
        file=sys.stdout, highlight=False, soft_wrap=True, quiet=quiet, width=width, markup=False, emoji=False
    )


def print_table(target: Console, header: list[str], rows: list[list[str]], numbers: bool = True) -> None:
    """A table whose columns but the first are numbers; only the first is folded where the window is narrow."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for number, name in enumerate(header):
        table.add_column(
            printable(name),
            justify="right" if number and numbers else "left",
            no_wrap=number > 0 and numbers,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(printable, row))
    target.print(table, soft_wrap=False)

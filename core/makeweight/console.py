"""Output on the terminal: a console and aligned tables, both safe for untrusted text."""

from __future__ import annotations

import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .errors import printable

PLAIN_WIDTH = 160
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
    """Print a table. With `numbers`, all columns but the first are aligned right, and only the first one wraps."""
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

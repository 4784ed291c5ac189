"""A bar on a terminal; no word elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from makeweight.plugin import console


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of `total` bytes while something is done; what is entered is called with the bytes that came."""
    target = console()
    if not target.is_terminal:
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=target, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)

"""Ctrl-C and SIGTERM: the first one lets the step end and a checkpoint be written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(Exception):  # noqa: N818  (it is no error)
    """Training was interrupted and has saved its state. `exit_code` is what a shell expects: 128 + the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}: --resume goes on")
        self.exit_code = 128 + number


class Signals:
    """`received` is the number of the first signal that came while it is open; a second one interrupts at once."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}
        self._holding = False

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Further signals wait: a launcher sends one to each process when the first has ended."""
        self._holding = True
        yield
        self._holding = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._holding:
            return
        if self.received:
            raise KeyboardInterrupt
        self.received = number

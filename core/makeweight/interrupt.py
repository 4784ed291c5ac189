"""Ctrl-C and SIGTERM: in training the first one lets the step end and a checkpoint be written."""

from __future__ import annotations

import os
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


class Stopped(KeyboardInterrupt):
    """A signal ended at once what was going on, and nothing was saved for it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class Signals:
    """`received` is the number of the first signal that came while it is open; a second one interrupts at once.

    With `at_once` the first one does, and a second one ends the process without another word. It may be opened again
    within itself, as the stages of a run do, and within another one, which has its say again when it is closed.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.received = 0
        self.at_once = at_once
        self._before: dict[int, Any] = {}
        self._holding = self._stopping = False
        self._depth = 0

    def __enter__(self) -> Signals:
        self._depth += 1
        if self._depth > 1:
            return self
        self.received, self._stopping, self._process = 0, False, os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._depth -= 1
        if self._depth:
            return
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self.received and isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            raise Stopped(self.received) from error  # the signal was sent to the workers as well, and ended them

    @contextmanager
    def held(self) -> Iterator[None]:
        """Further signals wait: a launcher sends one to each process when the first has ended."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._holding or os.getpid() != self._process:  # a forked worker ends with the process that it works for
            return
        if self.at_once and self._stopping:
            os._exit(128 + number)
        if self.received or self.at_once:
            self._stopping = True
            if self.at_once and hasattr(signal, "SIGCHLD"):  # torch's handler would raise when workers end of it too
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            raise Stopped(number)
        self.received = number


def ending() -> None:
    """From here on a signal ends the process without a word: it has said already what there is to say."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os._exit(128 + number))

"""Handles SIGINT (Ctrl-C) and SIGTERM: the first signal ends training after the current step and a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(Exception):  # noqa: N818  (not an error)
    """Training was interrupted after it saved a checkpoint. `exit_code` follows the shell: 128 + signal number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}: continue with --resume")
        self.exit_code = 128 + number


class Stopped(KeyboardInterrupt):
    """A signal stopped the work immediately, without saving a checkpoint."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class Signals:
    """A context that records the first signal in `received`, and raises Stopped at the second one.

    With `at_once`, the first signal raises Stopped and a second one ends the process silently. The context is
    reentrant: the stages of a run enter it again. Contexts may be nested; on exit, the outer handlers are restored.
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
            raise Stopped(self.received) from error  # the signal also reached the data loading workers and ended them

    @contextmanager
    def held(self) -> Iterator[None]:
        """Ignore further signals inside the context: a launcher signals all processes once the first one has ended."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._holding or os.getpid() != self._process:  # a forked worker ends when its parent process ends
            return
        if self.at_once and self._stopping:
            os._exit(128 + number)
        if self.received or self.at_once:
            self._stopping = True
            if self.at_once and hasattr(signal, "SIGCHLD"):  # torch's handler would raise when the workers end
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            raise Stopped(number)
        self.received = number


def ending() -> None:
    """Let further signals end the process silently, since the final message has already been printed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os._exit(128 + number))

"""The errors that are meant for people: one line, no traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST_MESSAGE = 2000
"""characters of an error that are shown"""


class MakeweightError(Exception):
    """Something a person can mend. The message says in one line what was given and what would be right.

    Names from untrusted files may stand in it: it is shown as `printable` text, cut in the middle where it is too long.
    """

    exit_code = 1

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > LONGEST_MESSAGE:
            half = LONGEST_MESSAGE // 2
            text = f"{text[:half]} … {text[-half:]}"
        return printable(text)


class UsageError(MakeweightError):
    """What was asked for cannot be: an unknown name, a value out of range. Nothing was written."""

    exit_code = 2


def printable(text: str) -> str:
    """Text as one line that a terminal can show: line ends, control and format characters stand as `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A clause for the end of a message: the nearest of the known names, or all of them when none is near."""
    names = sorted(known)
    if close := get_close_matches(given, names, n=1, cutoff=0.6):
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(names)}" if names else "there are none"

"""Exceptions shown to the user as one line without a traceback, and helpers for their messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST_MESSAGE = 2000
"""maximum length of a message in characters"""


class MakeweightError(Exception):
    """An error that the user can fix. The message states in one line what was given and what was expected.

    A message may contain names from untrusted files. `str` therefore escapes control characters and shortens a message
    that exceeds `LONGEST_MESSAGE`.
    """

    exit_code = 1

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > LONGEST_MESSAGE:
            half = LONGEST_MESSAGE // 2
            text = f"{text[:half]} … {text[-half:]}"
        return printable(text)


class UsageError(MakeweightError):
    """An invalid request, such as an unknown name or a value out of range. No file has been written."""

    exit_code = 2


def printable(text: str) -> str:
    """Text as one printable line: line ends, control and format characters are escaped, as in `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The last clause of a message: a suggestion of the closest known name, or the list of all known names."""
    names = sorted(known)
    if close := get_close_matches(given, names, n=1, cutoff=0.6):
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(names)}" if names else "there are none"

"""The errors that are meant for people: one line, no traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class MakeweightError(Exception):
    """Something a person can mend. The message says in one line what was given and what would be right."""

    exit_code = 1


class UsageError(MakeweightError):
    """What was asked for cannot be: an unknown name, a value out of range. Nothing was written."""

    exit_code = 2


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A clause for the end of a message: the nearest of the known names, or all of them when none is near."""
    names = sorted(known)
    if close := get_close_matches(given, names, n=1, cutoff=0.6):
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(names)}" if names else "there are none"

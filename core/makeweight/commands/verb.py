"""What a verb of `trainer` is, and the options that several verbs share."""

from __future__ import annotations

import argparse
from typing import NoReturn, Protocol

from ..errors import UsageError


class Command(Protocol):
    """A verb of `trainer`: a class in the entry-point group `makeweight.commands`. Its docstring is its help.

    One with `takes_options = True` gets the words that it does not know itself, options of training, as
    `arguments.options`.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int | None: ...


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors for people are."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ('{self.prog} --help' says more)")


def add_limit(parser: argparse.ArgumentParser) -> None:
    """Add the option of verbs that decode a file: how many bytes its tensors may take."""
    parser.add_argument(
        "--max-bytes", type=int, metavar="N",
        help="that the file's decoded tensors may take; 1 GiB or 64 times the file's size unless given",
    )  # fmt: skip

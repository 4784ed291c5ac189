"""The interface of verbs of `trainer`, their parser, and shared options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn, Protocol

from ..errors import UsageError


class Command(Protocol):
    """A verb of `trainer`: a class in the entry-point group `makeweight.commands`. Its docstring is its help.

    If the class has `takes_options = True`, arguments that are unknown to its parser (options of training) are passed
    as `arguments.options`. `run` returns the exit code, or None for 0.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int | None: ...


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see '{self.prog} --help')")


def file_of_run(path: Path) -> Path:
    """The file itself, or `model.safetensors` of a run directory. Raises UsageError for a directory without one."""
    if not path.is_dir():
        return path
    if not (path / "model.safetensors").is_file():
        raise UsageError(f"{path} is a directory without model.safetensors: expected a finished run, or a file")
    return path / "model.safetensors"


def add_limit(parser: argparse.ArgumentParser) -> None:
    """Add `--max-bytes`, the memory limit of verbs that decode a file."""
    parser.add_argument(
        "--max-bytes", type=int, metavar="N",
        help="maximum size of the decoded tensors; by default the larger of 1 GiB and 64 times the size of the file",
    )  # fmt: skip

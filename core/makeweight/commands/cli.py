"""The command `trainer`: without a verb it trains; with one it does what the verb's entry point says."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from ..discovery import COMMANDS, installed
from ..errors import MakeweightError, UsageError, did_you_mean
from ..training.interrupt import Interrupted, Signals, ending
from .verb import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `trainer` with these words, those of the process unless given. Returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    with Signals(at_once=True) as signals:
        try:
            return run(words)
        except (MakeweightError, Interrupted, KeyboardInterrupt) as error:
            with signals.held():
                return explain(error)


def run(words: list[str]) -> int:
    """Do what the words say. Returns the exit code."""
    if words == ["--version"]:
        print(f"makeweight {version('makeweight')}")
        return 0
    if words == ["help"]:
        words = ["--help"]
    if words and not words[0].startswith("-"):
        return run_verb(words[0], words[1:])
    run_training(words)
    return 0


def explain(error: BaseException) -> int:
    """Say in one line why the command ends. Returns the exit code."""
    if isinstance(error, UsageError) and os.environ.get("LOCAL_RANK", "0") != "0":
        return error.exit_code  # the machine's first process has said it
    kind = "error: " if isinstance(error, MakeweightError) else ""
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    print(f"trainer: {kind}{str(error) or 'interrupted'}{notes}", file=sys.stderr)
    return int(getattr(error, "exit_code", 130))


def command() -> NoReturn:
    """The program `trainer`: `main`, and the end of its process."""
    try:
        code: Any = main()
    except SystemExit as ended:
        code = ended.code
    ending()
    if "LOCAL_RANK" in os.environ and (code is None or isinstance(code, int)):
        # gloo's threads outlive the process group. On a busy machine one may still let go of a tensor while the
        # interpreter is torn down, which aborts a process that has done all its work: so it is not torn down.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    raise SystemExit(code)


def run_training(words: list[str]) -> None:
    """Parse and run. torch is not imported before the command line is known to be right."""
    from .arguments import parse

    configuration = parse(words)
    from .train import train

    train(configuration)


def run_verb(verb: str, words: list[str]) -> int:
    """Look up and run a verb. Raises UsageError for one that nothing brings."""
    found = installed(COMMANDS)
    if verb not in found:
        raise UsageError(f"unknown verb {verb!r}: {did_you_mean(verb, found)}")
    try:
        command: Any = found[verb].load()()
    except Exception as error:
        raise UsageError(f"verb {verb!r} cannot be imported: {type(error).__name__}: {error}") from error
    parser = Parser(prog=f"trainer {verb}", description=command.__doc__, allow_abbrev=False)
    command.add_arguments(parser)
    arguments, options = parser.parse_known_args(words)
    arguments.options = options
    if options and not getattr(command, "takes_options", False):
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    return command.run(arguments) or 0

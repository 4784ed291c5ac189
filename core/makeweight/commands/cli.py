"""The entry point of the command `trainer`. Without a verb it trains; otherwise it runs the verb's entry point."""

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
    """Run `trainer` with `argv`, by default that of the process. Prints errors in one line. Returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    with Signals(at_once=True) as signals:
        try:
            return run(words)
        except (MakeweightError, Interrupted, KeyboardInterrupt) as error:
            with signals.held():
                return explain(error)


def run(words: list[str]) -> int:
    """Run training or the verb that the arguments name. Returns the exit code. Raises UsageError, MakeweightError."""
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
    """Print an error in one line on standard error. Returns the exit code."""
    if isinstance(error, UsageError) and os.environ.get("LOCAL_RANK", "0") != "0":
        return error.exit_code  # the first process of this machine prints it
    kind = "error: " if isinstance(error, MakeweightError) else ""
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    print(f"trainer: {kind}{str(error) or 'interrupted'}{notes}", file=sys.stderr)
    return int(getattr(error, "exit_code", 130))


def command() -> NoReturn:
    """The console script `trainer`: run `main` and exit."""
    try:
        code: Any = main()
    except SystemExit as ended:
        code = ended.code
    ending()
    if "LOCAL_RANK" in os.environ and (code is None or isinstance(code, int)):
        # Threads of gloo outlive the process group. On a busy machine, one may release a tensor during interpreter
        # shutdown, which aborts a process that has finished its work. Therefore skip the shutdown.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    raise SystemExit(code)


def run_training(words: list[str]) -> None:
    """Parse the arguments, then train. torch is imported only after the arguments are valid."""
    from .arguments import parse

    configuration = parse(words)
    from .train import train

    train(configuration)


def run_verb(verb: str, words: list[str]) -> int:
    """Run a verb. Returns the exit code. Raises UsageError if the verb or one of its arguments is unknown."""
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

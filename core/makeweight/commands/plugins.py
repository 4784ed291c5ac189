"""The verb `plugins`: list what is installed, or write the folder of a new plugin."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from ..console import console, print_table
from ..discovery import COMMANDS, distribution, installed


class Plugins:
    """List the installed plugins, and the verbs that they bring. `trainer plugins new NAME` writes a new plugin."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.usage = f"{parser.prog} [new NAME]"
        verbs = parser.add_subparsers(dest="action", metavar="new", prog=parser.prog, title="writing a plugin",
                                      help="write the folder of a new plugin")  # fmt: skip
        text = "Write the folder of a plugin that works and passes its tests, to be changed into another."
        new = verbs.add_parser("new", description=text, allow_abbrev=False)
        new.add_argument("name", metavar="NAME", help="of the plugin, as in 'trainer --plugins NAME'")
        new.add_argument("--into", type=Path, default=Path(), metavar="DIR",
                         help="the folder in which the folder NAME is made; the current one unless given")  # fmt: skip

    def run(self, arguments: argparse.Namespace) -> None:
        if arguments.action == "new":
            write_new(arguments.name, arguments.into)
        else:
            list_installed()


def list_installed() -> None:
    """Print the installed plugins, each with its distribution and the verbs that this brings."""
    verbs: dict[str, list[str]] = {}
    for verb, entry in installed(COMMANDS).items():
        verbs.setdefault(distribution(entry), []).append(verb)
    rows = [
        [name, distribution(entry), ", ".join(verbs.get(distribution(entry), [])),
         (entry.dist.metadata["Summary"] or "") if entry.dist else ""]
        for name, entry in installed().items()
    ]  # fmt: skip
    print_table(console(), ["plugin", "distribution", "verbs", "what it is"], rows, numbers=False)


def write_new(name: str, into: Path) -> None:
    """Write the folder of a new plugin, and print the commands that install, test and use it."""
    from .new_plugin import new_plugin

    folder = new_plugin(name, into)
    where, option = shlex.quote(str(folder)), folder.name.replace("_", "-")
    print(f"{folder} holds a plugin that works: README.md says how to change it into yours. Next:")
    print(f"  pip install -e {where}")
    print(f"  pytest {where}")
    print(f"  trainer --plugins {folder.name} --{option}.strength 0.1")

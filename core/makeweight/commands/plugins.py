"""The verb `plugins`: lists the installed plugins, or writes the folder of a new plugin."""

from __future__ import annotations

import argparse
import shlex
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path

from ..console import console
from ..discovery import COMMANDS, distribution, installed

WIDTH = 76
"""characters in a line of a description, which is indented"""


class Plugins:
    """List the installed plugins and their verbs. `trainer plugins new NAME` writes the folder of a new plugin."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.usage = f"{parser.prog} [new NAME]"
        verbs = parser.add_subparsers(dest="action", metavar="new", prog=parser.prog, title="writing a plugin",
                                      help="write the folder of a new plugin")  # fmt: skip
        text = "Write the folder of a working plugin with tests, as a starting point for a new plugin."
        new = verbs.add_parser("new", description=text, allow_abbrev=False)
        new.add_argument("name", metavar="NAME", help="name of the plugin, as in 'trainer --plugins NAME'")
        new.add_argument("--into", type=Path, default=Path(), metavar="DIR",
                         help="parent folder of the new folder NAME; by default the current folder")  # fmt: skip

    def run(self, arguments: argparse.Namespace) -> None:
        if arguments.action == "new":
            write_new(arguments.name, arguments.into)
        else:
            list_installed()


def list_installed() -> None:
    """Print the installed plugins, each with its distribution and the verbs of that distribution."""
    verbs: dict[str, list[str]] = {}
    for verb, entry in installed(COMMANDS).items():
        verbs.setdefault(distribution(entry), []).append(verb)
    target = console()
    found = installed()
    widths = [max(map(len, found), default=0), max((len(distribution(entry)) for entry in found.values()), default=0)]
    for name, entry in found.items():
        own = verbs.get(distribution(entry), [])
        more = f"verbs: {', '.join(own)}" if own else ""
        target.print(f"{name.ljust(widths[0])}  {distribution(entry).ljust(widths[1])}  {more}".rstrip())
        for line in textwrap.wrap(_summary(entry), WIDTH):
            target.print(f"    {line}")


def _summary(entry: EntryPoint) -> str:
    """The one-line description of the distribution that an entry point comes from."""
    return (entry.dist.metadata["Summary"] or "") if entry.dist else ""


def write_new(name: str, into: Path) -> None:
    """Write the folder of a new plugin, and print the commands that install, test and use it."""
    from .new_plugin import new_plugin

    folder = new_plugin(name, into)
    where, option = shlex.quote(str(folder)), folder.name.replace("_", "-")
    print(f"{folder} contains a working plugin; its README.md explains how to adapt it. Next:")
    print(f"  pip install -e {where}")
    print(f"  pytest {where}")
    print(f"  trainer --plugins {folder.name} --{option}.strength 0.1")

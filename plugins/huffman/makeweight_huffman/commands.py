"""The verbs `pack` and `unpack`: compress any safetensors file without loss, one tensor at a time."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from makeweight import UsageError
from makeweight.plugin import add_limit

from .check import running

SUFFIX = ".huffman.safetensors"


class Pack:
    """Compress any safetensors file without loss; 'trainer unpack' and makeweight.load_tensors restore its tensors."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="any safetensors file")
        parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=f"default <file>{SUFFIX}")
        add_threads(parser)

    def run(self, arguments: argparse.Namespace) -> None:
        with running():
            from .packing import pack

        target = _target(arguments, SUFFIX)
        pack(arguments.file, target, _threads(arguments))
        _say(arguments.file, target)


class Unpack:
    """Write the tensors of a packed file to an ordinary safetensors file, which needs no makeweight."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="a packed file, or any export of makeweight")
        parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default <file>.dense.safetensors")
        add_threads(parser)
        add_limit(parser)

    def run(self, arguments: argparse.Namespace) -> None:
        with running():
            from .packing import unpack

        target = _target(arguments, ".dense.safetensors")
        unpack(arguments.file, target, _threads(arguments), arguments.max_bytes)
        _say(arguments.file, target)


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads for the blocks of large tensors; default all cores"
    )


def _threads(arguments: argparse.Namespace) -> int:
    if arguments.threads is None:
        return len(os.sched_getaffinity(0))
    if arguments.threads < 1:
        raise UsageError(f"--threads {arguments.threads}: expected 1 or more")
    return int(arguments.threads)


def _target(arguments: argparse.Namespace, suffix: str) -> Path:
    if arguments.output is not None:
        if arguments.output.exists() and arguments.output.samefile(arguments.file):
            raise UsageError(f"-o {arguments.output}: expected a file other than the input")
        return Path(arguments.output)
    stem = arguments.file.name.removesuffix(".safetensors").removesuffix(".huffman")
    target: Path = arguments.file.with_name(stem + suffix)
    if target.exists():
        raise UsageError(f"{target} exists: name another file with -o")
    return target


def _say(source: Path, target: Path) -> None:
    from makeweight.plugin import console

    before, after = source.stat().st_size, target.stat().st_size
    console().print(f"{source} {before:,} bytes -> {target} {after:,} bytes, {after / before:.4f} of the size")

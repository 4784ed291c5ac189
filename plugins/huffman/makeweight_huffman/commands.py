"""The verbs `pack` and `unpack`: the codec for any safetensors file, without training and tensor by tensor."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from makeweight import UsageError
from makeweight.plugin import add_limit

from .check import running

SUFFIX = ".huffman.safetensors"


class Pack:
    """Code any safetensors file without loss; 'trainer unpack' and makeweight.load_tensors give its tensors back."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="a safetensors file, of makeweight or of anyone")
        parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=f"<file>{SUFFIX} unless given")
        add_threads(parser)

    def run(self, arguments: argparse.Namespace) -> None:
        with running():
            from .packing import pack

        target = _target(arguments, SUFFIX)
        pack(arguments.file, target, _threads(arguments))
        _say(arguments.file, target)


class Unpack:
    """Write the tensors of a packed file as an ordinary safetensors file, for people without makeweight."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="a packed file, or any export of makeweight")
        parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="<file>.dense.safetensors unless given")
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
        "--threads", type=int, metavar="N", help="that code a large tensor's blocks; all cores' unless given"
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
            raise UsageError(f"-o {arguments.output}: expected another file than the one that is read")
        return Path(arguments.output)
    stem = arguments.file.name.removesuffix(".safetensors").removesuffix(".huffman")
    target: Path = arguments.file.with_name(stem + suffix)
    if target.exists():
        raise UsageError(f"{target} exists: name another with -o")
    return target


def _say(source: Path, target: Path) -> None:
    from makeweight.plugin import console

    before, after = source.stat().st_size, target.stat().st_size
    console().print(f"{source} {before:,} bytes -> {target} {after:,} bytes, {after / before:.4f} of it")

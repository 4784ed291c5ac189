"""The verbs `pack` and `unpack`: the codec for any safetensors file, without training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from makeweight import MakeweightError, UsageError

if TYPE_CHECKING:
    from makeweight import Artifact

SUFFIX = ".huffman.safetensors"


class Pack:
    """Code any safetensors file without loss; 'trainer unpack' and makeweight.load_tensors give its tensors back."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="a safetensors file, of makeweight or of anyone")
        parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=f"<file>{SUFFIX} unless given")

    def run(self, arguments: argparse.Namespace) -> None:
        from makeweight.artifact import write

        from .plugin import Huffman

        target = _target(arguments, SUFFIX)
        artifact = _read(arguments.file)
        Huffman().on_export(artifact=artifact)
        _say(arguments.file, target, write(artifact, target))


class Unpack:
    """Write the tensors of a packed file as an ordinary safetensors file, for people without makeweight."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="a packed file, or any export of makeweight")
        parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="<file>.dense.safetensors unless given")

    def run(self, arguments: argparse.Namespace) -> None:
        from safetensors.torch import save_file

        from makeweight.artifact import decode, read
        from makeweight.files import written_aside

        target = _target(arguments, ".dense.safetensors")
        artifact = decode(read(arguments.file), None, arguments.file)
        record = artifact.metadata.get("huffman", {})
        metadata = record.get("metadata") if isinstance(record, dict) else None
        if metadata is not None and not (
            isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
        ):
            raise MakeweightError(f"{arguments.file}: its record of metadata is no table of text")
        with written_aside(target) as aside:
            save_file(artifact.tensors, aside, metadata=metadata)
        _say(arguments.file, target, target.stat().st_size)


def _read(path: Path) -> Artifact:
    """The tensors of a file, and the metadata of one that is not ours, so that unpacking gives it back."""
    from safetensors import safe_open

    from makeweight.artifact import Artifact, is_export, load_any, read

    if is_export(path):
        artifact = read(path)
        if "huffman" in artifact.metadata:
            raise MakeweightError(f"{path} is packed already")
        return artifact
    tensors = load_any(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    return Artifact(tensors, {"huffman": {"metadata": metadata}} if metadata else {})


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


def _say(source: Path, target: Path, size: int) -> None:
    before = source.stat().st_size
    print(f"{source} {before:,} bytes -> {target} {size:,} bytes, {size / before:.4f} of it")

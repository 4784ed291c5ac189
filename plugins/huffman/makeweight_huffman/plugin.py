"""The plugin: an export writes all tensors as one coded blob; loading restores them bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from makeweight import hookimpl

from .check import check_coder, running

if TYPE_CHECKING:
    from makeweight import Artifact


@dataclass(eq=False)
class Huffman:
    """Lossless coding of the export: Huffman codes for values and exponents, Golomb codes for sparse positions."""

    codec: ClassVar[bool] = True  # must come last: other plugins need the tensors by name

    @hookimpl
    def on_check(self) -> str:
        check_coder()
        return "codes the whole export"

    @hookimpl
    def on_export(self, artifact: Artifact) -> None:
        from .tensors import BLOB, coded_sizes, encode_tensors, located_in

        artifact.tensors = {BLOB: encode_tensors(artifact.tensors)}
        artifact.sizes.update(coded_sizes(located_in(artifact.tensors)[1]))
        artifact.metadata.setdefault("huffman", {})

    @hookimpl
    def on_load(self, artifact: Artifact) -> None:
        with running():
            from .tensors import coded_sizes, decode_tensors, located_in

        blob, located = located_in(artifact.tensors, artifact.limit)
        artifact.sizes.update(coded_sizes(located))
        artifact.tensors = decode_tensors(blob, located)

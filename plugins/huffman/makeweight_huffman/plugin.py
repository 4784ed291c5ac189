"""The plugin: at export all tensors become one coded blob, and at load they come back bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from makeweight import hookimpl

from .check import check_coder, running

if TYPE_CHECKING:
    from makeweight import Artifact


@dataclass(eq=False)
class Huffman:
    """Code the export without loss: sparse positions, distinct values and exponents by Huffman codes."""

    codec: ClassVar[bool] = True  # comes last: others work on the tensors by name

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

"""The plugin: at export all tensors become one coded blob, and at load they come back bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from makeweight import MakeweightError, hookimpl

if TYPE_CHECKING:
    from makeweight import Artifact

BLOB = "huffman"
"""the name of the one tensor in a coded file"""


@dataclass(eq=False)
class Huffman:
    """Code the export without loss: sparse positions, distinct values and exponents by Huffman codes."""

    @hookimpl
    def on_export(self, artifact: Artifact) -> None:
        from .tensors import coded_sizes, encode_tensors

        blob = encode_tensors(artifact.tensors)
        artifact.sizes.update(coded_sizes(blob))
        artifact.tensors = {BLOB: blob}
        artifact.metadata.setdefault("huffman", {})

    @hookimpl
    def on_load(self, artifact: Artifact) -> None:
        import torch

        from .tensors import coded_sizes, decode_tensors

        blob = artifact.tensors.get(BLOB)
        if len(artifact.tensors) != 1 or blob is None or blob.dtype != torch.uint8 or blob.ndim != 1:
            raise MakeweightError("huffman: expected one tensor 'huffman' of bytes in the file")
        artifact.tensors = decode_tensors(blob)
        artifact.sizes.update(coded_sizes(blob))

"""A check of every small blob that a test writes: the plain reader must decode the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from weakref import WeakKeyDictionary

import numpy as np
import pytest
from numpy.typing import NDArray

from makeweight_huffman.codec.writer import BlobWriter

from . import plain_reader

MOST_ELEMENTS = 100_000  # of a checked blob; the plain reader takes up to half a second for them


@pytest.fixture(autouse=True, scope="module")
def written_blobs_are_read_as_the_page_says() -> Iterator[None]:
    add, pieces = BlobWriter.add, BlobWriter.pieces
    added: WeakKeyDictionary[BlobWriter, list[plain_reader.Tensor]] = WeakKeyDictionary()

    def recording_add(self: BlobWriter, name: str, dtype: str, shape: tuple[int, ...], data: NDArray[np.uint8]) -> None:
        add(self, name, dtype, shape, data)
        tensors = added.setdefault(self, [])
        small = sum(prod(tensor.shape) for tensor in tensors) + prod(shape) <= MOST_ELEMENTS
        tensors.append(plain_reader.Tensor(name, dtype, tuple(shape), data.tobytes() if small else b""))

    def checked_pieces(self: BlobWriter) -> Iterator[bytes]:
        written = []
        for piece in pieces(self):
            written.append(piece)
            yield piece
        tensors = added.get(self, [])
        if sum(prod(tensor.shape) for tensor in tensors) <= MOST_ELEMENTS:
            assert plain_reader.read(b"".join(written)) == tensors

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlobWriter, "add", recording_add)
        patch.setattr(BlobWriter, "pieces", checked_pieces)
        yield

"""Mapping between words and their indices in a codebook."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from makeweight_huffman.codec import words
from makeweight_huffman.codec.bits import FormatError
from makeweight_huffman.codec.coder import Words, readonly


class Codebook:
    """Distinct words, and a hash table from each word to its index.

    Args:
        values: (values,) uint64, ascending.
        dtype: dtype of the words.

    The attribute `dtype` is the dtype of indices: uint8 for up to 256 values, else uint16.
    """

    def __init__(self, values: NDArray[np.uint64], dtype: np.dtype[np.unsignedinteger]) -> None:
        self.dtype: np.dtype[np.unsignedinteger] = np.dtype("u1" if len(values) <= 256 else "u2")
        self._keys = values
        self._values = values.astype(dtype)
        self._slots: NDArray[np.int16] | None = None

    def indices(self, block: Words) -> Words:
        """Index of each word, (words,); every word must be in the codebook."""
        indices = np.zeros(block.size, self.dtype)
        if len(self._keys) > 1:
            if self._slots is None:
                self._slots = words.slots_of(self._keys)
            words.look_up(readonly(block), self._slots, self._keys, indices)
        return indices

    def values(self, indices: Words, out: Words) -> None:
        """Inverse of `indices`, into out (words,).

        Raises:
            FormatError: if an index is not below the codebook's length.
        """
        if len(self._keys) == 1:
            out.fill(self._keys[0])
        elif words.gather(indices, self._values, out) >= len(self._keys):
            raise FormatError(f"an index exceeds the codebook of {len(self._keys)} values")

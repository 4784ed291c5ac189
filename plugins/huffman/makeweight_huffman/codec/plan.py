"""Plan: the representation of one tensor, as stored in the header of its body."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from makeweight_huffman.codec.bits import BitReader, BitWriter, FormatError, Source
from makeweight_huffman.codec.fields import Field, read_ascending, write_ascending
from makeweight_huffman.codec.model import CLASSES, Model, checked_divisor, read_divisors, write_divisors

FIRST_VERSION, VERSION = 1, 2  # of the format; they differ only in the signs that select one of three codes
MAX_CODEBOOK = 1 << 12  # values
DENSE_BLOCK, SPARSE_BLOCK = 1 << 18, 1 << 20  # words


@dataclass(frozen=True)
class Sparse:
    """The omitted background word, and the coding of the positions of all other words.

    model: None if all cells belong to one class. divisors: (CLASSES,) indices of Golomb divisors, 0 for unused classes.
    """

    background: int
    model: Model | None
    divisors: NDArray[np.int64]

    def write(self, writer: BitWriter, width: int) -> None:
        writer.bits(self.background != 0, 1)
        if self.background:
            writer.bits(self.background, width)
        writer.bits(self.model is not None, 1)
        if self.model is None:
            writer.bits(int(self.divisors[0]), 7)
        else:
            self.model.write(writer)
            write_divisors(writer, self.divisors)

    @staticmethod
    def read(reader: BitReader, width: int) -> Sparse:
        background = reader.bits(width) if reader.bits(1) else 0
        if reader.bits(1):
            return Sparse(background, Model.read(reader), read_divisors(reader))
        divisors = np.zeros(CLASSES, np.int64)
        divisors[0] = checked_divisor(reader.bits(7))
        return Sparse(background, None, divisors)


@dataclass(frozen=True)
class Plan:
    """Stages from words to bits: omit the background, replace words by codebook indices, cut into fields.

    width: bits of a word. trailing: number of low bits that are zero in all words except the background.
    codebook: distinct words, ascending, (values,) uint64, or None. fields: from the lowest bit up.
    version: format version of the blob.
    """

    width: int
    trailing: int
    sparse: Sparse | None
    codebook: NDArray[np.uint64] | None
    fields: tuple[Field, ...]
    version: int = VERSION

    @property
    def block(self) -> int:
        """Number of words in each block except the last."""
        return SPARSE_BLOCK if self.sparse else DENSE_BLOCK

    @property
    def representation(self) -> str:
        """Short description for people."""
        if self.codebook is not None:
            values = "constant" if len(self.codebook) == 1 else f"codebook of {len(self.codebook)}"
        elif all(field.alphabet is None for field in self.fields):
            values = "raw"
        else:
            coded = "+".join(f"{field.width}{'' if field.alphabet is None else 'h'}" for field in self.fields[::-1])
            values = f"fields of {coded} bits" if len(self.fields) > 1 else "symbols"
        return f"sparse, {values}" if self.sparse else values

    def to_bytes(self) -> bytes:
        """The header."""
        writer = BitWriter()
        writer.bits(self.sparse is not None, 1)
        if self.sparse:
            self.sparse.write(writer, self.width)
        writer.bits(self.trailing > 0, 1)
        if self.trailing:
            writer.bits(self.trailing, 6)
        writer.bits(self.codebook is not None, 1)
        remaining = self.width - self.trailing
        if self.codebook is not None:
            writer.exp_golomb(len(self.codebook) - 1, 4)
            write_ascending(writer, self.codebook >> np.uint64(self.trailing), remaining)
            remaining = index_width(self.codebook)
        for field in self.fields:
            writer.bits(field.width == remaining, 1)
            if field.width < remaining:
                writer.bits(field.width - 1, 5)
            remaining -= field.width
            field.write_header(writer, self.has_contexts)
        assert remaining == 0, f"the fields leave {remaining} bits"
        return writer.to_bytes()

    @property
    def has_contexts(self) -> bool:
        """Whether the field's code may depend on neighbouring words."""
        return self.sparse is not None and self.sparse.model is not None and len(self.fields) == 1

    @property
    def oldest_version(self) -> int:
        """First version that decodes this plan equally; version 1 takes words with `trailing` bits as positive."""
        differs = self.trailing > 0 and self.codebook is None and self.has_contexts and self.fields[0].in_context
        return VERSION if differs and self.fields[0].has_highest_bit else FIRST_VERSION

    @staticmethod
    def read(source: Source, at: int, limit: int, width: int, version: int) -> tuple[Plan, int]:
        """Read the header at byte `at` for words of `width` bits: the plan, and the index of the byte after it.

        Raises:
            FormatError: if the header is damaged.
        """
        reader = BitReader(source, at, limit)
        sparse = Sparse.read(reader, width) if reader.bits(1) else None
        trailing = reader.bits(6) if reader.bits(1) else 0
        if trailing >= width:
            raise FormatError(f"words of {width} bits with {trailing} trailing zero bits, expected fewer")
        codebook, remaining = None, width - trailing
        if reader.bits(1):
            count = reader.exp_golomb(4) + 1
            if count > MAX_CODEBOOK:
                raise FormatError(f"a codebook has {count} values, expected at most {MAX_CODEBOOK}")
            codebook = read_ascending(reader, count, remaining) << np.uint64(trailing)
            remaining = index_width(codebook)
        fields: list[Field] = []
        shift = 0 if codebook is not None else trailing
        while remaining:
            whole = bool(reader.bits(1))
            step = remaining if whole else reader.bits(5) + 1
            if step > remaining - (not whole):
                raise FormatError(f"a field of {step} bits does not fit the remaining {remaining}")
            contexts = sparse is not None and sparse.model is not None and whole and not fields
            fields.append(Field.read_header(reader, shift, step, contexts))
            shift, remaining = shift + step, remaining - step
        return Plan(width, trailing, sparse, codebook, tuple(fields), version), reader.end()


def index_width(codebook: NDArray[np.uint64]) -> int:
    """Bits of an index into the codebook."""
    return (len(codebook) - 1).bit_length()

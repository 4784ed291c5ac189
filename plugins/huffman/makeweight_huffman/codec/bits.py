"""Bits, least significant first, and byte-aligned varints: what the headers of the format are written with."""

from __future__ import annotations

from typing import Protocol, overload

from makeweight import MakeweightError


class FormatError(MakeweightError):
    """A blob that is not ours, not whole, or not as FORMAT.md has it."""


class Source(Protocol):
    """Bytes in memory (a memoryview) or in a file, which are read when they are asked for."""

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, where: int, /) -> int: ...
    @overload
    def __getitem__(self, where: slice, /) -> memoryview: ...


class BitWriter:
    """Collects bits, the least significant first."""

    def __init__(self) -> None:
        self._value = 0
        self._count = 0

    def __len__(self) -> int:
        """The bits so far."""
        return self._count

    def bits(self, value: int, count: int) -> None:
        """Append the `count` low bits of `value`, which must fit."""
        assert 0 <= value < 1 << count, f"{value} does not fit {count} bits"
        self._value |= value << self._count
        self._count += count

    def exp_golomb(self, value: int, order: int) -> None:
        """Append value >= 0: as many ones as (value >> order) + 1 has bits after its first, a zero, these, the rest.

        Source: Teuhola, A compression method for clustered bit-vectors, 1978.
        """
        quotient = (value >> order) + 1
        extra = quotient.bit_length() - 1
        self.bits((1 << extra) - 1, extra + 1)
        self.bits(quotient - (1 << extra), extra)
        self.bits(value & ((1 << order) - 1), order)

    def signed(self, value: int) -> None:
        """Append an integer of either sign: 0, -1, 1, -2, 2, ... as Exp-Golomb of order 0."""
        self.exp_golomb(2 * value if value >= 0 else -2 * value - 1, 0)

    def to_bytes(self) -> bytes:
        """All bits, filled up with zeros to whole bytes."""
        return self._value.to_bytes((self._count + 7) // 8, "little")


class BitReader:
    """Reads what BitWriter wrote, from bytes `at` to `limit` of a source.

    Raises:
        FormatError: by every method, when the bits end too early.
    """

    CHUNK = 64  # bytes taken at a time: one shift of a long header costs more than the header's fields

    def __init__(self, source: Source, at: int = 0, limit: int | None = None) -> None:
        self._source = source
        self._next = at  # first byte not yet taken
        self._limit = len(source) if limit is None else limit
        self._value = 0
        self._count = 0  # bits in _value

    def bits(self, count: int) -> int:
        while self._count < count:
            chunk = self._source[self._next : min(self._next + self.CHUNK, self._limit)]
            if not len(chunk):
                raise FormatError("the header of a tensor ends too early")
            self._value |= int.from_bytes(chunk, "little") << self._count
            self._count += 8 * len(chunk)
            self._next += len(chunk)
        value = self._value & ((1 << count) - 1)
        self._value >>= count
        self._count -= count
        return value

    def exp_golomb(self, order: int) -> int:
        extra = 0
        while self.bits(1):
            extra += 1
            if extra > 64:
                raise FormatError("a number in the header of a tensor has more than 64 bits")
        quotient = (1 << extra) + self.bits(extra)
        return ((quotient - 1) << order) + self.bits(order)

    def signed(self) -> int:
        value = self.exp_golomb(0)
        return -(value + 1) // 2 if value & 1 else value // 2

    def end(self) -> int:
        """The byte after those read, the last one's unused bits being zero.

        Raises:
            FormatError: when they are not.
        """
        if self.bits(self._count % 8):
            raise FormatError("unused bits at the end of a header are not zero")
        return self._next - self._count // 8


def write_varint(value: int) -> bytes:
    """LEB128 of value >= 0: seven bits a byte, the lowest first, the high bit set on all but the last."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def read_varint(source: Source, at: int) -> tuple[int, int]:
    """The value at byte `at`, below 2**63, and the byte after it.

    Raises:
        FormatError: when it is cut, too large, or longer than it need be.
    """
    value = 0
    for shift in range(0, 63, 7):
        if at >= len(source):
            raise FormatError("the blob ends in the middle of a number")
        byte = source[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and shift:
                raise FormatError("a number is written longer than it need be")
            return value, at
    raise FormatError("a number in the blob does not fit 63 bits")

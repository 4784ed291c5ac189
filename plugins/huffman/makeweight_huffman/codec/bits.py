"""Bit-level reading and writing of headers, least significant bit first, and byte-aligned varints."""

from __future__ import annotations

from typing import Protocol, overload

from makeweight import MakeweightError


class FormatError(MakeweightError):
    """The blob is damaged, truncated, or violates FORMAT.md."""


class Source(Protocol):
    """Bytes in memory (a memoryview), or in a file and read on access."""

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, where: int, /) -> int: ...
    @overload
    def __getitem__(self, where: slice, /) -> memoryview: ...


class BitWriter:
    """Collects bits, least significant first."""

    def __init__(self) -> None:
        self._value = 0
        self._count = 0

    def __len__(self) -> int:
        """Number of bits written."""
        return self._count

    def bits(self, value: int, count: int) -> None:
        """Append the `count` low bits of `value`, which must fit."""
        assert 0 <= value < 1 << count, f"{value} does not fit {count} bits"
        self._value |= value << self._count
        self._count += count

    def exp_golomb(self, value: int, order: int) -> None:
        """Append value >= 0 in Exp-Golomb code (Teuhola, A compression method for clustered bit-vectors, 1978).

        With q = (value >> order) + 1 of e + 1 bits: e ones, a zero, the e low bits of q, the `order` low bits of value.
        """
        quotient = (value >> order) + 1
        extra = quotient.bit_length() - 1
        self.bits((1 << extra) - 1, extra + 1)
        self.bits(quotient - (1 << extra), extra)
        self.bits(value & ((1 << order) - 1), order)

    def signed(self, value: int) -> None:
        """Append a signed integer: 0, -1, 1, -2, 2, ... map to Exp-Golomb codes (order 0) of 0, 1, 2, 3, 4, ..."""
        self.exp_golomb(2 * value if value >= 0 else -2 * value - 1, 0)

    def to_bytes(self) -> bytes:
        """All bits, padded with zeros to whole bytes."""
        return self._value.to_bytes((self._count + 7) // 8, "little")


class BitReader:
    """Reads bits written by BitWriter from source[at:limit].

    Raises:
        FormatError: from every method, if the bits end too early.
    """

    CHUNK = 64  # bytes loaded at a time, since shifting a whole long header for each field would be slow

    def __init__(self, source: Source, at: int = 0, limit: int | None = None) -> None:
        self._source = source
        self._next = at  # first byte not yet loaded
        self._limit = len(source) if limit is None else limit
        self._value = 0
        self._count = 0  # bits in _value

    def bits(self, count: int) -> int:
        while self._count < count:
            chunk = self._source[self._next : min(self._next + self.CHUNK, self._limit)]
            if not len(chunk):
                raise FormatError("the header of a tensor is truncated")
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
                raise FormatError("a number in the header of a tensor exceeds 64 bits")
        quotient = (1 << extra) + self.bits(extra)
        return ((quotient - 1) << order) + self.bits(order)

    def signed(self) -> int:
        value = self.exp_golomb(0)
        return -(value + 1) // 2 if value & 1 else value // 2

    def end(self) -> int:
        """Index of the byte after the last one read.

        Raises:
            FormatError: if the unused bits of the last byte are not zero.
        """
        if self.bits(self._count % 8):
            raise FormatError("unused bits at the end of a header are not zero")
        return self._next - self._count // 8


def write_varint(value: int) -> bytes:
    """LEB128 of value >= 0: 7 bits per byte, lowest first; the high bit is set in all bytes but the last."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def read_varint(source: Source, at: int) -> tuple[int, int]:
    """Read the varint at byte `at`: its value, below 2**63, and the index of the byte after it.

    Raises:
        FormatError: if it is truncated, too large, or not in its shortest form.
    """
    value = 0
    for shift in range(0, 63, 7):
        if at >= len(source):
            raise FormatError("the blob is truncated within a varint")
        byte = source[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and shift:
                raise FormatError("a varint is not in its shortest form")
            return value, at
    raise FormatError("a varint exceeds 63 bits")

"""Bits, numbers and codes of FORMAT.md, read one at a time. Shares no code with the codec."""

from __future__ import annotations


class RefusedError(ValueError):
    """The blob breaks a MUST of FORMAT.md."""


def require(holds: bool, otherwise: str) -> None:
    """Refuse the blob unless the condition holds."""
    if not holds:
        raise RefusedError(otherwise)


class Bits:
    """Reads bytes in order, and bits from the lowest of each byte up."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0  # bits read so far

    def bit(self) -> int:
        at = self.place
        if at >= 8 * len(self.data):
            raise RefusedError("ends early")
        self.place = at + 1
        return self.data[at >> 3] >> (at & 7) & 1

    def number(self, width: int) -> int:
        """A number of `width` bits, the lowest first."""
        begin, self.place = self.place, self.place + width
        require(self.place <= 8 * len(self.data), "ends early")
        whole = int.from_bytes(self.data[begin >> 3 : self.place + 7 >> 3], "little")
        return whole >> (begin & 7) & (1 << width) - 1

    def ones(self) -> int:
        """Number of ones before the next zero."""
        count = 0
        while self.bit():
            count += 1
        return count

    def exp_golomb(self, order: int) -> int:
        """EG(order)."""
        after_highest = self.ones()
        q = (1 << after_highest) + self.number(after_highest)
        return (q - 1 << order) + self.number(order)

    def signed(self) -> int:
        """0, -1, 1, -2, ... as EG(0) of 0, 1, 2, 3, ..."""
        number = self.exp_golomb(0)
        return -(number + 1 >> 1) if number % 2 else number >> 1

    def ascending(self, count: int, width: int) -> list[int]:
        """`count` numbers below 2**width, each greater than the last."""
        values = [self.number(width)]
        order = self.number(6) if count > 1 else 0
        for _ in range(count - 1):
            values.append(values[-1] + 1 + self.exp_golomb(order))
        require(values[-1] < 1 << width, "an ascending number is too large")
        return values

    def golomb(self, divisor: int) -> int:
        """A Golomb code, its remainder in truncated binary."""
        quotient = self.ones()
        width = (divisor - 1).bit_length()  # of the longer remainders: ceil(log2(divisor))
        short = (1 << width) - divisor  # number of remainders that are one bit shorter
        remainder = self.number(max(width - 1, 0))
        if width and remainder >= short:
            remainder = 2 * remainder + self.bit() - short
        return quotient * divisor + remainder

    def align(self) -> None:
        """Skip to the next byte; the skipped bits must be zero."""
        require(self.number(-self.place % 8) == 0, "padding bits are not zero")

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        begin = self.place >> 3
        require(begin + size <= len(self.data), "ends early")
        self.place += 8 * size
        return self.data[begin : begin + size]

    def varint(self) -> int:
        """LEB128."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        require(byte > 0 or shift == 7, "a varint is not in its shortest form")
        require(value < 1 << 63, "a varint is too large")
        return value

    def end(self) -> None:
        """Require that all bytes are used."""
        self.align()
        require(self.place == 8 * len(self.data), "bytes are unused")

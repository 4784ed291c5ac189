"""Decoding of a body's header, as specified by FORMAT.md."""

from __future__ import annotations

from dataclasses import dataclass

from .plain_bits import Bits, require

Code = dict[tuple[int, int], int]  # (length, bits with the first bit highest) -> index in the alphabet
UNCODED = None


@dataclass
class Classes:
    """Parameters of the model that assigns classes to words."""

    lag: int
    column_weight: int
    row_weight: int
    left_weight: int
    lag_weight: int
    coarseness: int
    start: int


@dataclass
class Background:
    """The omitted word, and the coding of the positions of the others."""

    word: int
    classes: Classes | None
    divisors: dict[int, int]  # by class


@dataclass
class Field:
    """Adjacent bits of each word or index."""

    shift: int  # its lowest bit in the word or index
    width: int
    alphabet: list[int] | None  # None if it is not coded
    codes: list[Code]  # one or three; none for a single symbol


@dataclass
class Header:
    version: int
    word_bits: int
    background: Background | None
    zero_bits: int
    codebook: list[int] | None
    fields: list[Field]


def read_header(bits: Bits, word_bits: int, version: int) -> Header:
    background = read_background(bits, word_bits) if bits.bit() else None
    zero_bits = bits.number(6) if bits.bit() else 0
    require(zero_bits < word_bits, "all bits of the words are zero bits")
    codebook = None
    first, last = zero_bits, word_bits
    if bits.bit():
        count = bits.exp_golomb(4) + 1
        require(count <= 4096, "the codebook is too long")
        codebook = bits.ascending(count, word_bits - zero_bits)
        first, last = 0, (count - 1).bit_length()
    fields: list[Field] = []
    while first < last:
        fields.append(read_field(bits, first, last, background, not fields))
        first += fields[-1].width
    bits.align()
    return Header(version, word_bits, background, zero_bits, codebook, fields)


def read_background(bits: Bits, word_bits: int) -> Background:
    word = bits.number(word_bits) if bits.bit() else 0
    if not bits.bit():
        return Background(word, None, {0: divisor(bits.number(7))})
    lag = bits.exp_golomb(4) + 1
    require(lag < 1 << 32, "the lag is too large")
    classes = Classes(lag, *(bits.number(width) for width in (5, 5, 6, 6, 4, 4)))
    first, more = bits.number(5), bits.exp_golomb(2)
    require(first + more < 32, "there are more classes than 32")
    numbers = [bits.number(7)]
    for _ in range(more):
        numbers.append(numbers[-1] + bits.signed())
    return Background(word, classes, {first + at: divisor(number) for at, number in enumerate(numbers)})


def divisor(number: int) -> int:
    require(1 <= number <= 80, "a divisor number is out of range")
    return number if number < 4 else (4 + number % 4) << number // 4 - 1


def read_field(bits: Bits, first: int, last: int, background: Background | None, is_first: bool) -> Field:
    all_left = bits.bit()
    width = last - first if all_left else bits.number(5) + 1
    require(all_left == 1 or width < last - first, "a field is not narrower than the remaining bits")
    if not bits.bit():
        require(width <= 32, "a field that is not coded is too wide")
        return Field(first, width, UNCODED, [])
    require(width <= 16, "a coded field is too wide")
    count = bits.exp_golomb(4) + 1
    require(count <= 256, "the alphabet is too long")
    alphabet = list(range(count)) if bits.bit() else bits.ascending(count, width)
    require(alphabet[-1] < 1 << width, "a symbol is too large")
    if count == 1:
        return Field(first, width, alphabet, [])
    with_classes = background is not None and background.classes is not None
    only = is_first and first + width == last
    three = with_classes and only and bits.bit() == 1
    return Field(first, width, alphabet, [read_code(bits, count, three) for _ in range(3 if three else 1)])


def read_code(bits: Bits, count: int, may_lack: bool) -> Code:
    """A canonical code as in RFC 1951, from its lengths. `may_lack`: whether symbols may be absent."""
    absent = bits.bit()
    lengths: dict[int, int] = {}
    last = max((count - 1).bit_length(), 1)
    for symbol in range(count):
        if not absent or bits.bit():
            last += bits.signed()
            require(1 <= last <= 12, "a code length is out of range")
            lengths[symbol] = last
    require(may_lack or len(lengths) == count, "a single code lacks a symbol")
    require(not absent or len(lengths) < count, "no symbol of a code is absent")
    if may_lack and not lengths:
        return {}
    require(sum(1 << 12 - length for length in lengths.values()) == 1 << 12, "a code is incomplete")
    code, length_before = 0, 0
    assigned = {}
    for length, symbol in sorted((length, symbol) for symbol, length in lengths.items()):
        code <<= length - length_before
        assigned[length, code] = symbol
        code, length_before = code + 1, length
    return assigned

"""Decoding of a block, as specified by FORMAT.md."""

from __future__ import annotations

from .plain_bits import Bits, require
from .plain_header import Background, Classes, Code, Field, Header

ONE = (1 << 24) - 1  # density estimate 1: no word is the background


def read_block(bits: Bits, header: Header, count: int, columns: int) -> list[int]:
    """The `count` words of a block, background included."""
    others = read_positions(bits, header.background, count, columns) if header.background else [True] * count
    bits.align()
    values = [0] * sum(others)
    for field in header.fields:
        if len(field.codes) == 3:
            three = ThreeCodes(header, field)
            read = three.read(bits, others)
        else:
            read = read_field(bits, field, len(values))
        bits.align()
        values = [value | part << field.shift for value, part in zip(values, read, strict=True)]
    words = iter([to_word(header, value) for value in values])
    background = header.background.word if header.background else 0
    return [next(words) if other else background for other in others]


def to_word(header: Header, value: int) -> int:
    if header.codebook is None:
        return value
    require(value < len(header.codebook), "an index exceeds the codebook")
    return header.codebook[value] << header.zero_bits


def read_field(bits: Bits, field: Field, count: int) -> list[int]:
    """Values of a field, for the `count` words that are not background; without three codes."""
    if field.alphabet is None:
        return [bits.number(field.width) for _ in range(count)]
    if not field.codes:
        return field.alphabet * count
    if count < 4096:
        return [read_symbol(bits, field, field.codes[0]) for _ in range(count)]
    quarter = -(-count // 4)
    lengths = [bits.varint() for _ in range(3)]
    streams = [Bits(bits.take(length)) for length in lengths] + [bits]
    values = []
    for number, stream in enumerate(streams):
        values += [read_symbol(stream, field, field.codes[0]) for _ in range(min(quarter, count - number * quarter))]
        if stream is not bits:
            stream.end()
    return values


def read_symbol(bits: Bits, field: Field, code: Code) -> int:
    assert field.alphabet is not None
    read = 0
    for length in range(1, 13):
        read = read << 1 | bits.bit()
        if (length, read) in code:
            return field.alphabet[code[length, read]]
    raise AssertionError("a complete code has no other")


class ThreeCodes:
    """The only field of the words, with a code selected by the signs of two earlier words."""

    def __init__(self, header: Header, field: Field) -> None:
        assert header.background is not None
        assert header.background.classes is not None
        self.header, self.field = header, field
        self.lag = header.background.classes.lag
        self.highest = 1 << header.word_bits - 1
        self.all_positive = header.version == 1 and header.zero_bits > 0 and header.codebook is None

    def read(self, bits: Bits, others: list[bool]) -> list[int]:
        signs: list[int] = []
        values = []
        for at, other in enumerate(others):
            sign = 0
            if other:
                before = sum(signs[at - distance] for distance in (1, self.lag) if distance <= at)
                code = 1 + (before > 0) - (before < 0)
                require(bool(self.field.codes[code]), "a code without symbols is used")
                values.append(read_symbol(bits, self.field, self.field.codes[code]))
                sign = self.sign(values[-1])
            signs.append(sign)
        return values

    def sign(self, value: int) -> int:
        word = to_word(self.header, value << self.field.shift)
        return -1 if word & self.highest and not self.all_positive else 1


def read_positions(bits: Bits, background: Background, count: int, columns: int) -> list[bool]:
    """[count]: whether each word differs from the background."""
    model = Model(background.classes, columns) if background.classes else None
    left: dict[int, int] = {}  # by class: background words before the next other word
    others: list[bool] = []
    for at in range(count):
        number = model.class_of(others) if model else 0
        require(number in background.divisors, "a class without a divisor")
        if number not in left:
            left[number] = bits.golomb(background.divisors[number])
        others.append(left[number] == 0)
        if others[-1]:
            del left[number]
        else:
            left[number] -= 1
        if model:
            model.update(at, others[-1])
    require(not any(left.values()), "a run exceeds the block")
    return others


class Model:
    """Density estimates from row, column and two neighbours, which determine the class of a word."""

    def __init__(self, classes: Classes, columns: int) -> None:
        self.classes = classes
        self.width = columns
        self.begin = min(1 << 24 - classes.start, ONE)
        self.row = self.begin
        self.columns: dict[int, int] = {}

    def class_of(self, others: list[bool]) -> int:
        """Class of the word after `others`."""
        at, classes = len(others), self.classes
        score = classes.column_weight * logarithm(self.columns.get(at % self.width, self.begin))
        score += classes.row_weight * logarithm(self.row)
        if at and others[-1]:
            score += 8 * classes.left_weight
        if at >= classes.lag and others[at - classes.lag]:
            score += 8 * classes.lag_weight
        return min(max(-score >> classes.coarseness, 0), 31)

    def update(self, at: int, other: bool) -> None:
        target = ONE if other else 0
        column = self.columns.get(at % self.width, self.begin)
        self.row += (target - self.row) * 512 >> 16
        step = 65536 // min(5 + at // self.width, 256)
        self.columns[at % self.width] = column + ((target - column) * step >> 16)


def logarithm(estimate: int) -> int:
    """S of the page: 8 log2(estimate >> 12), rounded to nearest, minus 96."""
    high = estimate >> 12
    # round(8 log2 x) is the greatest n with 2**(2n) <= 2 x**16
    return ((2 * high**16).bit_length() - 1) // 2 - 96 if high else -8 - 96

"""A second reader of the format, written from FORMAT.md alone: simple, strict and slow."""

from __future__ import annotations

from typing import NamedTuple

from .plain_bits import Bits, RefusedError, require
from .plain_blocks import read_block
from .plain_header import read_header

DTYPES = {  # bits of an element
    **dict.fromkeys(["BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"], 8),
    **dict.fromkeys(["I16", "U16", "F16", "BF16"], 16),
    **dict.fromkeys(["I32", "U32", "F32"], 32),
    **dict.fromkeys(["I64", "U64", "F64", "C64"], 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
WORD_BITS = DTYPES | {"C64": 32, "F4": 8, "F6_E2M3": 8, "F6_E3M2": 8}


class Tensor(NamedTuple):
    """One tensor of a blob."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def read(blob: bytes) -> list[Tensor]:
    """All tensors of a blob.

    Raises:
        RefusedError: the blob breaks a MUST of the page.
    """
    bits = Bits(blob)
    version = bits.take(1)[0]
    require(version in (1, 2), "unknown version")
    tensors: list[Tensor] = []
    name = b""
    decoded = 0
    for _ in range(bits.varint()):
        shared = bits.varint()
        require(shared <= min(127, len(name)), "a name shares too many bytes")
        name = name[:shared] + bits.take(bits.varint())
        tensors.append(read_tensor(bits, name, version))
        decoded += len(name) + len(tensors[-1].data)
    require(len({tensor.name for tensor in tensors}) == len(tensors), "two tensors have the same name")
    check_padding(len(blob), bits.place // 8, decoded)
    require(not any(blob[bits.place // 8 :]), "padding is not zero")
    return tensors


def check_padding(size: int, used: int, decoded: int) -> None:
    """Require the smallest size, at least `used`, that allows `decoded` bytes."""
    needed = -(-max(decoded - 65536, 0) // 4096)
    require(size == max(used, needed), "wrong padding")


def read_tensor(bits: Bits, name: bytes, version: int) -> Tensor:
    byte = bits.take(1)[0]
    number, rank = byte % 32, byte // 32
    require(number < len(DTYPES), "unknown dtype")
    if rank == 7:
        rank = bits.varint()
        require(7 <= rank <= 64, "invalid rank")
    shape = tuple(bits.varint() for _ in range(rank))
    product = 1
    for extent in shape:
        product *= extent or 1
    require(product < 1 << 60, "too many elements")
    elements = 0 if 0 in shape else product
    dtype = list(DTYPES)[number]
    require(elements * DTYPES[dtype] % 8 == 0, "elements do not fill whole bytes")
    body = bits.take(bits.varint())
    count = elements * DTYPES[dtype] // WORD_BITS[dtype]
    columns = max(count // shape[0], 1) if rank >= 2 and count else count
    words = read_body(body, WORD_BITS[dtype], version, count, columns)
    data = b"".join(word.to_bytes(WORD_BITS[dtype] // 8, "little") for word in words)
    return Tensor(text_of(name), dtype, shape, data)


def text_of(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise RefusedError("a name is not UTF-8") from None


def read_body(body: bytes, word_bits: int, version: int, count: int, columns: int) -> list[int]:
    bits = Bits(body)
    words: list[int] = []
    if count:
        header = read_header(bits, word_bits, version)
        block_words = 1 << (20 if header.background else 18)
        blocks = -(-count // block_words)
        lengths = [bits.varint() for _ in range(blocks)] if blocks > 1 else [len(body) - bits.place // 8]
        for length in lengths:
            block = Bits(bits.take(length))
            words += read_block(block, header, min(block_words, count - len(words)), columns)
            block.end()
    bits.end()
    return words

"""Checks that the coder runs. numba compiles it, and can be missing or too old for the installed NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from makeweight import MakeweightError, UsageError


@contextmanager
def running() -> Iterator[None]:
    """Turn any exception while importing or testing the coder into a UsageError of one line."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, MakeweightError) else f"{type(error).__name__}: "
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise UsageError(
            f"huffman: the coder does not run here ({kind}{reason}): try 'pip install --upgrade numba'"
        ) from error


def check_coder() -> None:
    """Encode and decode a small tensor. Raises UsageError if that fails."""
    with running():
        import torch

        from .tensors import BLOB, decode_tensors, encode_tensors, located_in

        weight = torch.zeros(8, 16)
        weight[::3, ::5] = torch.arange(12.0).reshape(3, 4) / 7
        blob, located = located_in({BLOB: encode_tensors({"trial": weight})})
        if not torch.equal(decode_tensors(blob, located)["trial"], weight):
            raise MakeweightError("a decoded tensor differs")

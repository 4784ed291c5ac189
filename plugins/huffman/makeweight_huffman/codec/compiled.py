"""Compilation of kernels with numba, and unaligned access to byte arrays, which numba lacks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])


class DiskCache(FunctionCache):
    """numba's on-disk cache; a kernel is recompiled instead of failing if the cache cannot be read or written."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a damaged file: unpickling can raise anything
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(Exception):  # the disk is full, or a damaged index cannot be replaced
            super().save_overload(sig, data)


def kernel(function: Function) -> Function:
    """Decorator: compile on the first call, run without the GIL, and cache the machine code on disk if possible."""
    compiled = cast(Any, njit(function, nogil=True))
    with suppress(RuntimeError):  # numba finds no writable folder
        compiled._cache = DiskCache(function)
    return cast(Function, compiled)


@intrinsic
def _load64(typing_context: Any, array: Any, offset: Any) -> Any:
    """Load array[offset : offset + 8] as a little-endian number. The caller checks the bounds."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointer(context, builder, signature, arguments), align=1)

    return types.uint64(array, types.int64), generate


@intrinsic
def _store64(typing_context: Any, array: Any, offset: Any, value: Any) -> Any:
    """Store 8 bytes at array[offset]. The caller checks the bounds."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _pointer(context, builder, signature, arguments), align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint64), generate


@intrinsic
def _store32(typing_context: Any, array: Any, offset: Any, value: Any) -> Any:
    """Store 4 bytes at array[offset]. The caller checks the bounds."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature, arguments)
        builder.store(arguments[2], builder.bitcast(pointer, ir.IntType(32).as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint32), generate


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
    return builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(64).as_pointer())


# Typed without the typing context, numba's first parameter.
load64: Callable[[np.ndarray, int], np.uint64] = cast(Any, _load64)
store64: Callable[[np.ndarray, int, np.uint64], None] = cast(Any, _store64)
store32: Callable[[np.ndarray, int, np.uint32], None] = cast(Any, _store32)

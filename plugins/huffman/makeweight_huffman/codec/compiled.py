"""How kernels are compiled, and unaligned 64-bit access to arrays of bytes, which numba itself has not."""

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
    """numba's cache of machine code, but what cannot be read or written is compiled anew instead of failing."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a damaged file: whatever unpickling raises
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(Exception):  # the disk is full, or a damaged index could not be replaced
            super().save_overload(sig, data)


def kernel(function: Function) -> Function:
    """Compile at the first call, keep the machine code on disk where it can be, and let other threads run meanwhile."""
    compiled = cast(Any, njit(function, nogil=True))
    with suppress(RuntimeError):  # numba found no folder that it can write to
        compiled._cache = DiskCache(function)
    return cast(Function, compiled)


@intrinsic
def _load64(typing_context: Any, array: Any, offset: Any) -> Any:
    """The eight bytes from array[offset] on, as one little-endian number. The caller has checked the bounds."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointer(context, builder, signature, arguments), align=1)

    return types.uint64(array, types.int64), generate


@intrinsic
def _store64(typing_context: Any, array: Any, offset: Any, value: Any) -> Any:
    """Write eight bytes from array[offset] on. The caller has checked the bounds."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _pointer(context, builder, signature, arguments), align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint64), generate


@intrinsic
def _store32(typing_context: Any, array: Any, offset: Any, value: Any) -> Any:
    """Write four bytes from array[offset] on. The caller has checked the bounds."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature, arguments)
        builder.store(arguments[2], builder.bitcast(pointer, ir.IntType(32).as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint32), generate


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
    return builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(64).as_pointer())


# For type checkers, who would miss the first parameter of each.
load64: Callable[[np.ndarray, int], np.uint64] = cast(Any, _load64)
store64: Callable[[np.ndarray, int, np.uint64], None] = cast(Any, _store64)
store32: Callable[[np.ndarray, int, np.uint32], None] = cast(Any, _store32)

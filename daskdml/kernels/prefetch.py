"""Ask memory for a row before it is read.

Rows in shuffled order arrive from main memory one cache miss after another, which makes a sweep
several times slower than rows in file order; asked for a few rows ahead, they are there in time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from daskdml.kernels.compiled import inlined

AHEAD = 8  # rows between asking for a row and reading it
CACHE_LINE = 64  # bytes


@intrinsic
def _prefetch(typingctx: Any, X: Any, row: Any, j: Any) -> Any:
    """Ask for the cache line of X[row, j], without waiting for it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, args[0])
        address = cgutils.get_item_pointer(
            context, builder, signature.args[0], array, list(args[1:]), wraparound=False
        )
        byte, int32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, int32, int32, int32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        read, keep, data = int32(0), int32(3), int32(1)
        builder.call(function, [builder.bitcast(address, byte), read, keep, data])
        return context.get_dummy_value()

    return types.none(X, types.intp, types.intp), codegen


@inlined()
def prefetch_row(X: np.ndarray, row: int) -> None:
    """Start loading row `row` of the C-contiguous array `X` into cache; compiled function."""
    for j in range(0, X.shape[1], CACHE_LINE // X.itemsize):
        _prefetch(X, row, j)  # type: ignore[call-arg]

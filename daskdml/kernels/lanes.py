"""Eight numbers at a time: a Numba type for vector registers, and what can be done with them.

Loops over a few dozen numbers spend most of their time on entering and leaving: the compiler checks
that the arrays do not overlap, and ends with single numbers. Code that names its vectors keeps them
in registers from one loop to the next. LLVM fits them to what the machine has, be it narrower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

_intrinsic: Any = intrinsic  # it takes away the first argument, which mypy does not know

LANES = 8
_FAST = ("fast",)


class Lanes(types.Type):
    """Eight numbers of a dtype, float32 or float64."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        number = dmm.lookup(fe_type.dtype).get_value_type()
        super().__init__(dmm, fe_type, ir.VectorType(number, LANES))


def _vector_at(context: Any, builder: Any, signature: Any, args: Any) -> tuple[Any, int]:
    """Address of the vector that begins at X[i, j], and its alignment."""
    kind = signature.args[0]
    array = context.make_array(kind)(context, builder, args[0])
    at = cgutils.get_item_pointer(context, builder, kind, array, list(args[1:3]), wraparound=False)
    vector = ir.VectorType(context.get_value_type(kind.dtype), LANES)
    return builder.bitcast(at, vector.as_pointer()), kind.dtype.bitwidth // 8


@_intrinsic
def load(typingctx: Any, X: Any, i: Any, j: Any) -> Any:
    """X[i, j : j + 8] of a C-contiguous array; nothing checks that it is inside."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at, align = _vector_at(context, builder, signature, args)
        return builder.load(at, align=align)

    return Lanes(X.dtype)(X, types.intp, types.intp), codegen


@_intrinsic
def store(typingctx: Any, X: Any, i: Any, j: Any, x: Any) -> Any:
    """Put x into X[i, j : j + 8] of a C-contiguous array; nothing checks that it is inside."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at, align = _vector_at(context, builder, signature, args)
        builder.store(args[3], at, align=align)
        return context.get_dummy_value()

    return types.none(X, types.intp, types.intp, x), codegen


@_intrinsic
def splat(typingctx: Any, x: Any) -> Any:
    """Eight times the number x."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        int32 = ir.IntType(32)
        undefined = ir.Constant(ir.VectorType(args[0].type, LANES), ir.Undefined)
        first = builder.insert_element(undefined, args[0], int32(0))
        zeros = ir.Constant(ir.VectorType(int32, LANES), [0] * LANES)
        return builder.shuffle_vector(first, undefined, zeros)

    return Lanes(x)(x), codegen


def _elementwise(build: Callable[..., Any]) -> Callable[..., Any]:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return build(builder, *args)

    return codegen


@_intrinsic
def add(typingctx: Any, x: Any, y: Any) -> Any:
    """x + y."""
    return x(x, y), _elementwise(lambda to, x, y: to.fadd(x, y, flags=_FAST))


@_intrinsic
def mul(typingctx: Any, x: Any, y: Any) -> Any:
    """x y."""
    return x(x, y), _elementwise(lambda to, x, y: to.fmul(x, y, flags=_FAST))


@_intrinsic
def fma(typingctx: Any, x: Any, y: Any, z: Any) -> Any:
    """x y + z, fused where the machine can."""
    return x(x, y, z), _elementwise(
        lambda to, x, y, z: to.fadd(to.fmul(x, y, flags=_FAST), z, flags=_FAST)
    )


@_intrinsic
def fnma(typingctx: Any, x: Any, y: Any, z: Any) -> Any:
    """z - x y, fused where the machine can."""
    return x(x, y, z), _elementwise(
        lambda to, x, y, z: to.fsub(z, to.fmul(x, y, flags=_FAST), flags=_FAST)
    )


@_intrinsic
def rsqrt(typingctx: Any, x: Any) -> Any:
    """1 / sqrt(x), not approximated."""

    def build(to: Any, x: Any) -> Any:
        kind = x.type
        name = f"llvm.sqrt.v{LANES}{kind.element.intrinsic_name}"
        root = cgutils.get_or_insert_function(to.module, ir.FunctionType(kind, [kind]), name)
        one = ir.Constant(kind, [ir.Constant(kind.element, 1.0)] * LANES)
        return to.fdiv(one, to.call(root, [x]))

    return x(x), _elementwise(build)

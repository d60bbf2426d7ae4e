"""Vectors of bfloat16, two in a 32-bit word, on a CPU that multiplies them as they are.

Its instructions take subnormal numbers for 0 and leave 0 where a result would be one.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .emit import (
    FLOAT32_VECTOR,
    I32,
    LANES,
    BFloat,
    dot_ir,
    load_ir,
    splat_ir,
    store_ir,
    vector_ir,
)

_WORDS, _SHORTS = ir.VectorType(I32, LANES), ir.VectorType(ir.IntType(16), LANES)


def _halves(builder, floats):
    kind = ir.VectorType(BFloat(), LANES)
    name = "llvm.x86.avx512bf16.cvtneps2bf16.512"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [floats.type]), name
    )
    return builder.bitcast(builder.call(function, [floats]), _SHORTS)


def _widened(builder, halves):
    words = builder.shl(builder.zext(halves, _WORDS), splat_ir(builder, I32(16)))
    return builder.bitcast(words, vector_ir(types.float32))


@intrinsic
def rounded(typing_context, vector):
    """Sixteen floats rounded to bfloat16; subnormal ones are 0 then."""

    def codegen(context, builder, sig, args):
        return _widened(builder, _halves(builder, args[0]))

    return FLOAT32_VECTOR(FLOAT32_VECTOR), codegen


@intrinsic
def store_narrow(typing_context, address, vector):
    """Write sixteen floats as bfloat16; returns what they became."""

    def codegen(context, builder, sig, args):
        halves = _halves(builder, args[1])
        store_ir(builder, args[0], halves)
        return _widened(builder, halves)

    return FLOAT32_VECTOR(types.int64, FLOAT32_VECTOR), codegen


@intrinsic
def store_interleaved(typing_context, target, first, second):
    """Write sixteen pairs: an element of the row at `first` with one of the row at `second`."""

    def codegen(context, builder, sig, args):
        low, high = (builder.zext(load_ir(builder, row, _SHORTS), _WORDS) for row in args[1:])
        high = builder.shl(high, splat_ir(builder, I32(16)))
        store_ir(builder, args[0], builder.or_(low, high))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


@intrinsic
def dot_of_pair(typing_context, total, first, second, values, taken):
    """`total`, and of sixteen pairs at `values` one times `first` and the other times `second`.

    Weights are rounded to bfloat16. `taken` has ones where the bits of a pair are: what is not
    taken is 0, whatever it holds.
    """

    def codegen(context, builder, sig, args):
        low, high = (builder.zext(_halves(builder, weight), _WORDS) for weight in args[1:3])
        weights = builder.or_(low, builder.shl(high, splat_ir(builder, I32(16))))
        bits = splat_ir(builder, builder.trunc(args[4], I32))
        pairs = builder.and_(load_ir(builder, args[3], _WORDS), bits)
        return dot_ir(builder, weights, pairs, args[0])

    kinds = [*[FLOAT32_VECTOR] * 3, types.int64, types.int64]
    return FLOAT32_VECTOR(*kinds), codegen

"""SIMD vectors for Numba: sixteen virtual lanes, whatever the machine's width.

A `Vector` is an LLVM `<16 x float>` or `<16 x double>`. LLVM turns it into one 512-bit register or
several narrower ones, so the code above and its bits are the same on every machine. The first
argument `tag` of a function is a scalar (`np.float32(0)` or `np.float64(0)`) whose type alone
matters: it selects the element type.

Arithmetic never carries a fast-math flag. A fused multiply-add is written `fma`; `a * b + c` is two
roundings and stays two roundings.
"""

import operator

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin

from .emit import (
    I32,
    I64,
    INTEGER_BITS,
    LANES,
    TILE_VECTORS,
    VECTOR_OF,
    VectorType,
    fma_ir,
    lane_numbers,
    load_ir,
    shuffle_ir,
    splat_ir,
    vector_ir,
)


@intrinsic
def item_size(typing_context, tag):
    """Bytes of one element, a constant."""
    sig = types.int64(tag)
    size = tag.bitwidth // 8

    def codegen(context, builder, sig, args):
        return ir.Constant(I64, size)

    return sig, codegen


@intrinsic
def largest_finite(typing_context, tag):
    """The largest finite number of the tag's type, as float64."""
    sig = types.float64(tag)
    value = float(np.finfo(tag.name).max)

    def codegen(context, builder, sig, args):
        return ir.Constant(ir.DoubleType(), value)

    return sig, codegen


@intrinsic
def cast(typing_context, tag, number):
    """A number converted to the tag's float type, rounding once."""
    sig = tag(tag, number)

    def codegen(context, builder, sig, args):
        return context.cast(builder, args[1], number, tag)

    return sig, codegen


@intrinsic
def tile_width(typing_context, tag):
    """Vectors of columns that the registers of this machine hold for a tile of six rows."""
    sig = types.int64(tag)
    width = TILE_VECTORS[tag.name]

    def codegen(context, builder, sig, args):
        return ir.Constant(I64, width)

    return sig, codegen


# --- lanes ------------------------------------------------------------------------------------


@intrinsic
def splat(typing_context, scalar):
    """A scalar in all sixteen lanes."""
    sig = VECTOR_OF[scalar](scalar)

    def codegen(context, builder, sig, args):
        return splat_ir(builder, args[0])

    return sig, codegen


def _tree(builder, vector, combine):
    """Lane i with lane i + 8, then + 4, + 2, + 1: the written-out lane tree."""
    half = vector.type.count // 2
    while half >= 1:
        low = shuffle_ir(builder, vector, vector, range(half))
        high = shuffle_ir(builder, vector, vector, range(half, 2 * half))
        vector = combine(builder, low, high)
        half //= 2
    return builder.extract_element(vector, ir.Constant(I32, 0))


def _larger(builder, a, b):
    """The larger of two; where `b` is NaN, `b`."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@intrinsic
def lane_sum(typing_context, vector):
    """Sum of the lanes by the written-out tree."""
    sig = vector.element(vector)

    def codegen(context, builder, sig, args):
        return _tree(builder, args[0], lambda b, x, y: b.fadd(x, y))

    return sig, codegen


@intrinsic
def lane_max(typing_context, vector):
    """Largest lane; a NaN may be passed over."""
    sig = vector.element(vector)

    def codegen(context, builder, sig, args):
        return _tree(builder, args[0], _larger)

    return sig, codegen


@intrinsic
def first_lane(typing_context, vector):
    """Lane 0, NaN or not."""
    sig = vector.element(vector)

    def codegen(context, builder, sig, args):
        return builder.extract_element(args[0], ir.Constant(I32, 0))

    return sig, codegen


@intrinsic
def any_nan(typing_context, vector):
    """Whether a lane is NaN."""
    sig = types.boolean(vector)

    def codegen(context, builder, sig, args):
        lanes = builder.fcmp_unordered("uno", args[0], args[0])
        bits = builder.bitcast(lanes, ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return sig, codegen


@intrinsic
def same_lanes(typing_context, a, b):
    """Whether all lanes of two vectors are equal (NaN equals nothing)."""
    sig = types.boolean(a, a)

    def codegen(context, builder, sig, args):
        lanes = builder.fcmp_ordered("==", *args)
        bits = builder.bitcast(lanes, ir.IntType(LANES))
        return builder.icmp_signed("==", bits, ir.Constant(bits.type, -1))

    return sig, codegen


@intrinsic
def keep_lanes(typing_context, vector, begin, end, other):
    """Lanes begin to end (half-open, any integers) of `vector`, elsewhere the scalar `other`."""
    sig = vector(vector, types.int64, types.int64, vector.element)

    def codegen(context, builder, sig, args):
        value, begin, end, other = args
        bits = ir.IntType(INTEGER_BITS[vector.element])
        low, high = ir.Constant(I64, 0), ir.Constant(I64, LANES)
        numbers = lane_numbers(vector.element)

        def border(edge):
            edge = builder.select(builder.icmp_signed("<", edge, low), low, edge)
            edge = builder.select(builder.icmp_signed(">", edge, high), high, edge)
            return splat_ir(builder, edge if bits.width == 64 else builder.trunc(edge, bits))

        inside = builder.and_(
            builder.icmp_signed(">=", numbers, border(begin)),
            builder.icmp_signed("<", numbers, border(end)),
        )
        return builder.select(inside, value, splat_ir(builder, other))

    return sig, codegen


@intrinsic
def select_equal(typing_context, vector, probe, if_equal, otherwise):
    """Per lane: `if_equal` where `vector == probe` (a scalar), else `otherwise`."""
    sig = vector(vector, vector.element, vector, vector)

    def codegen(context, builder, sig, args):
        same = builder.fcmp_ordered("==", args[0], splat_ir(builder, args[1]))
        return builder.select(same, args[2], args[3])

    return sig, codegen


@intrinsic
def select_above(typing_context, a, b, if_above, otherwise):
    """Per lane: `if_above` where `a > b`, else `otherwise`, also where one is NaN."""
    sig = a(a, a, a, a)

    def codegen(context, builder, sig, args):
        above = builder.fcmp_ordered(">", args[0], args[1])
        return builder.select(above, args[2], args[3])

    return sig, codegen


@intrinsic
def select_bytes(typing_context, address, vector, other):
    """Per lane: `vector` where the byte at `address + lane` is not 0, else the scalar `other`."""
    sig = vector(types.int64, vector, vector.element)

    def codegen(context, builder, sig, args):
        kind = ir.VectorType(ir.IntType(8), LANES)
        flags = load_ir(builder, args[0], kind)
        seen = builder.icmp_unsigned("!=", flags, ir.Constant(kind, [0] * LANES))
        return builder.select(seen, args[1], splat_ir(builder, args[2]))

    return sig, codegen


@intrinsic
def select_same(typing_context, address, number, vector, other):
    """Per lane: `vector` where the int64 at `address + 8 lane` is `number`, else `other`."""
    sig = vector(types.int64, types.int64, vector, vector.element)

    def codegen(context, builder, sig, args):
        found = load_ir(builder, args[0], ir.VectorType(I64, LANES))
        same = builder.icmp_signed("==", found, splat_ir(builder, args[1]))
        return builder.select(same, args[2], splat_ir(builder, args[3]))

    return sig, codegen


@intrinsic
def lane_floats(typing_context, tag):
    """The numbers 0 to 15."""
    sig = VECTOR_OF[tag](tag)

    def codegen(context, builder, sig, args):
        kind = context.get_value_type(VECTOR_OF[tag])
        return ir.Constant(kind, [float(lane) for lane in range(LANES)])

    return sig, codegen


@intrinsic
def widened(typing_context, vector):
    """The lanes as float64, which is exact."""

    def codegen(context, builder, sig, args):
        kind = vector_ir(types.float64)
        return args[0] if args[0].type == kind else builder.fpext(args[0], kind)

    return VECTOR_OF[types.float64](vector), codegen


@intrinsic
def narrowed(typing_context, tag, vector):
    """The lanes, float64, as the tag's type, rounded once."""

    def codegen(context, builder, sig, args):
        kind = vector_ir(tag)
        return args[1] if args[1].type == kind else builder.fptrunc(args[1], kind)

    return VECTOR_OF[tag](tag, vector), codegen


# --- arithmetic -------------------------------------------------------------------------------


@intrinsic
def fma(typing_context, a, b, c):
    """`a * b + c` with one rounding; vectors or scalars of one type."""
    sig = a(a, a, a)

    def codegen(context, builder, sig, args):
        return fma_ir(builder, *args)

    return sig, codegen


@intrinsic
def larger(typing_context, a, b):
    """Per lane the larger of two; NaN in `b` goes through, NaN in `a` does not."""
    sig = a(a, a)

    def codegen(context, builder, sig, args):
        return _larger(builder, *args)

    return sig, codegen


@intrinsic
def unless_nan(typing_context, vector, other):
    """Per lane: `vector` where that is a number, else `other`."""
    sig = vector(vector, vector)

    def codegen(context, builder, sig, args):
        number = builder.fcmp_ordered("ord", args[0], args[0])
        return builder.select(number, args[0], args[1])

    return sig, codegen


def _lane_function(name, vector):
    """Signature and code of an LLVM intrinsic of one vector, lane by lane."""

    def codegen(context, builder, sig, args):
        kind = args[0].type
        suffix = "v16f32" if vector.element is types.float32 else "v16f64"
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind]), f"llvm.{name}.{suffix}"
        )
        return builder.call(function, [args[0]])

    return vector(vector), codegen


@intrinsic
def absolute(typing_context, vector):
    """Per lane the value without its sign."""
    return _lane_function("fabs", vector)


@intrinsic
def square_root(typing_context, vector):
    """Per lane the correctly rounded square root."""
    return _lane_function("sqrt", vector)


@intrinsic
def rounded_down(typing_context, vector):
    """Per lane the largest whole number that is not above."""
    return _lane_function("floor", vector)


@intrinsic
def whole_products(typing_context, vector, factor):
    """Per lane an int64, the whole number of a float64 times one; its bits, as if of a float64."""
    sig = vector(vector, types.int64)

    def codegen(context, builder, sig, args):
        whole = builder.fptosi(args[0], ir.VectorType(I64, LANES))
        product = builder.mul(whole, splat_ir(builder, args[1]))
        return builder.bitcast(product, args[0].type)

    return sig, codegen


class _VectorOperator(AbstractTemplate):
    def generic(self, args, kws):
        if len(args) == 2 and isinstance(args[0], VectorType) and args[0] == args[1]:
            return signature(args[0], args[0], args[1])
        return None


def _lower_operator(symbol, method):
    infer_global(symbol)(type(f"_Vector_{symbol.__name__}", (_VectorOperator,), {"key": symbol}))

    @lower_builtin(symbol, VectorType, VectorType)
    def lower(context, builder, sig, args):
        return getattr(builder, method)(*args)


for _symbol, _method in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _lower_operator(_symbol, _method)


@infer_global(operator.neg)
class _Negation(AbstractTemplate):
    def generic(self, args, kws):
        if len(args) == 1 and isinstance(args[0], VectorType):
            return signature(args[0], args[0])
        return None


@lower_builtin(operator.neg, VectorType)
def _negate(context, builder, sig, args):
    return builder.fneg(args[0])

"""Elementary functions on vectors: exp2, exp, tanh. The logarithm stands in `logarithm`.

All are the project's own, so that their bits are the same on every machine. Each reduces its
argument to an integer n and a small remainder f, evaluates a polynomial in f by Horner's rule in
fused multiply-adds, and puts n into the exponent bits. The coefficients interpolate (g(f) - 1) / f
at Chebyshev nodes, so that the value at f = 0 is exactly 1: the largest score of a row always has
the weight 1.

exp2 and exp stay within 1.0 ULP in float32 (measured over every argument).
"""

import math

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .emit import I64, LANES, SCALES, VectorType, constant, fma_ir, scaled_ir, splat_ir

# (2^f - 1) / f on [-1/2, 1/2]; relative error of the whole 9.1e-9 and 2.0e-17.
_EXP2 = {
    types.float32: (
        0.6931471824645996,
        0.24022650718688965,
        0.055503569543361664,
        0.009618082083761692,
        0.0013390874955803156,
        0.00015453173546120524,
    ),
    types.float64: (
        0.6931471805599453,
        0.24022650695910097,
        0.0555041086648216,
        0.009618129107606871,
        0.0013333558146416927,
        0.00015403530441765088,
        1.5252733829851596e-05,
        1.321544257022465e-06,
        1.0178062436412765e-07,
        7.072589488396345e-09,
        4.4549624846332125e-10,
    ),
}
# (e^f - 1) / f on [-ln 2 / 2, ln 2 / 2]; relative error of the whole 1.1e-8 and 9.8e-18.
_EXP = {
    types.float32: (
        1.0,
        0.5,
        0.16666504740715027,
        0.04166646674275398,
        0.00836915522813797,
        0.0013933649752289057,
    ),
    types.float64: (
        1.0,
        0.5000000000000006,
        0.1666666666666667,
        0.041666666666573066,
        0.008333333333326136,
        0.001388888893251478,
        0.00019841269874820627,
        2.480150431378554e-05,
        2.7557255400206422e-06,
        2.7626371065696354e-07,
        2.5105217004720745e-08,
    ),
}
# ln 2 as a short head, whose products with n are exact, and a tail.
_LN2 = {
    types.float32: (0.693145751953125, 1.428606765330187e-06),
    types.float64: (0.693147180559663, 2.8235290563031577e-13),
}
# Mantissa bits, exponent bias, and the argument below which exp is 0.
_FORMAT = {types.float32: (23, 127, -104.0), types.float64: (52, 1023, -746.0)}


def _round_product(builder, element, x, factor, bias):
    """n = round(x * factor) as a float, and the bits that shifted give 2^(n + bias)."""
    mantissa, _, _ = _FORMAT[element]
    shifter = constant(x.type, 1.5 * 2.0**mantissa + bias)
    shifted = fma_ir(builder, x, factor, shifter)
    return builder.fsub(shifted, shifter), shifted


def _power_of_two(builder, element, shifted):
    """The float whose exponent field is the low bits of `shifted`; field 0 gives 0."""
    mantissa, _, _ = _FORMAT[element]
    bits = ir.VectorType(ir.IntType(32 if element is types.float32 else 64), LANES)
    moved = builder.shl(builder.bitcast(shifted, bits), ir.Constant(bits, [mantissa] * LANES))
    return builder.bitcast(moved, shifted.type)


def _horner(builder, x, coefficients):
    total = constant(x.type, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = fma_ir(builder, total, x, constant(x.type, coefficient))
    return total


def _clamp_below(builder, x, lowest):
    """The larger of x and lowest; a NaN in x goes through."""
    return builder.select(builder.fcmp_ordered(">", lowest, x), lowest, x)


@intrinsic
def exp2_product(typing_context, x, factor, lowest):
    """2^(x * factor) for x * factor <= 0, the product unrounded; 0 from 2^-126 (2^-1022) down.

    Right of whole numbers above 0 too. `lowest` is -127 / factor in float32, -1023 / factor in
    float64: `exp2_lowest(factor)`.
    """
    element = x.element
    sig = x(x, x, x)

    def codegen(context, builder, sig, args):
        x, factor, lowest = args
        _, bias, _ = _FORMAT[element]
        x = _clamp_below(builder, x, lowest)
        whole, shifted = _round_product(builder, element, x, factor, bias)
        rest = fma_ir(builder, x, factor, builder.fneg(whole))
        value = fma_ir(builder, _horner(builder, rest, _EXP2[element]), rest, constant(x.type, 1.0))
        return builder.fmul(value, _power_of_two(builder, element, shifted))

    return sig, codegen


@intrinsic
def exp2_lowest(typing_context, factor):
    """The argument at which `exp2_product` reaches 0: minus the exponent bias over factor."""
    sig = factor(factor)
    bias = _FORMAT[factor][1]

    def codegen(context, builder, sig, args):
        return builder.fdiv(ir.Constant(args[0].type, -float(bias)), args[0])

    return sig, codegen


@intrinsic
def exp_nonpositive(typing_context, x):
    """e^x for x <= 0, gradually down to the smallest subnormal; NaN stays NaN."""
    element = x.element
    sig = x(x)

    def codegen(context, builder, sig, args):
        mantissa, bias, lowest = _FORMAT[element]
        kind = args[0].type
        x = _clamp_below(builder, args[0], constant(kind, lowest))
        whole, _ = _round_product(builder, element, x, constant(kind, 1 / math.log(2)), 0)
        head, tail = _LN2[element]
        rest = fma_ir(builder, whole, constant(kind, -head), x)
        rest = fma_ir(builder, whole, constant(kind, -tail), rest)
        value = fma_ir(builder, _horner(builder, rest, _EXP[element]), rest, constant(kind, 1.0))
        if SCALES:
            # The same bits in one instruction instead of eight: softmax takes a tenth less time,
            # logsumexp a quarter.
            return scaled_ir(builder, value, whole)
        # 2^n in two factors: the first product is exact, so a subnormal result is rounded once.
        half = constant(kind, 0.5)
        shifter = constant(kind, 1.5 * 2.0**mantissa + bias)
        low = fma_ir(builder, whole, half, shifter)
        high = builder.fadd(builder.fsub(whole, builder.fsub(low, shifter)), shifter)
        value = builder.fmul(value, _power_of_two(builder, element, low))
        return builder.fmul(value, _power_of_two(builder, element, high))

    return sig, codegen


@intrinsic
def tanh_product(typing_context, x, factor):
    """tanh(x * factor) for factor > 0, by expm1(-2 |x| factor); small arguments keep full accuracy.

    `factor` is splat and already holds the 2 log2(e) of that exponent.
    """
    element = x.element
    sig = x(x, x)

    def codegen(context, builder, sig, args):
        x, factor = args
        _, bias, _ = _FORMAT[element]
        kind = x.type
        bits = ir.VectorType(ir.IntType(32 if element is types.float32 else 64), LANES)
        width = 32 if element is types.float32 else 64
        sign_bit = ir.Constant(bits, [-(1 << (width - 1))] * LANES)
        sign = builder.and_(builder.bitcast(x, bits), sign_bit)
        negative = builder.bitcast(builder.or_(builder.bitcast(x, bits), sign_bit), kind)
        lowest = builder.fdiv(constant(kind, -(0.25 * bias)), factor)
        negative = _clamp_below(builder, negative, lowest)
        whole, shifted = _round_product(builder, element, negative, factor, bias)
        rest = fma_ir(builder, negative, factor, builder.fneg(whole))
        power = _power_of_two(builder, element, shifted)
        one, two = constant(kind, 1.0), constant(kind, 2.0)
        small = builder.fmul(_horner(builder, rest, _EXP2[element]), rest)
        minus_one = fma_ir(builder, power, small, builder.fsub(power, one))
        ratio = builder.fdiv(builder.fneg(minus_one), builder.fadd(minus_one, two))
        return builder.bitcast(builder.or_(builder.bitcast(ratio, bits), sign), kind)

    return sig, codegen


@intrinsic
def inverse_exponent(typing_context, x):
    """Per lane the power of two that brings x >= 0 into [1, 4), or up from the subnormals."""
    element = x.element
    sig = x(x)

    def codegen(context, builder, sig, args):
        mantissa, bias, _ = _FORMAT[element]
        bits = ir.VectorType(ir.IntType(32 if element is types.float32 else 64), LANES)

        def lanes(number):
            return ir.Constant(bits, [number] * LANES)

        exponent = builder.and_(builder.bitcast(args[0], bits), lanes((2 * bias + 1) << mantissa))
        highest = lanes((2 * bias - 1) << mantissa)
        below = builder.icmp_signed("<", exponent, highest)
        exponent = builder.select(below, exponent, highest)
        inverse = builder.sub(lanes((2 * bias) << mantissa), exponent)
        return builder.bitcast(inverse, args[0].type)

    return sig, codegen


@intrinsic
def alike(typing_context, like, number):
    """A float64 as it is, or in all lanes if `like` is a vector."""
    sig = like(like, types.float64)

    def codegen(context, builder, sig, args):
        return splat_ir(builder, args[1]) if isinstance(like, VectorType) else args[1]

    return sig, codegen


# Bits of sqrt(1/2), where mantissas begin.
_LEAST_MANTISSA = 0x3FE6A09E667F3BCD


@intrinsic
def order_split(typing_context, number):
    """Split normal numbers > 0: exponent n, mantissa in [sqrt(1/2), sqrt(2)), and 2^-n.

    All three are float64, or vectors of it.
    """
    sig = types.UniTuple(number, 3)(number)

    def codegen(context, builder, sig, args):
        wide = isinstance(number, VectorType)
        kind = ir.VectorType(I64, LANES) if wide else I64

        def word(value):
            return ir.Constant(kind, [value] * LANES if wide else value)

        bits = builder.bitcast(args[0], kind)
        order = builder.ashr(builder.sub(bits, word(_LEAST_MANTISSA)), word(52))
        mantissa = builder.sub(bits, builder.shl(order, word(52)))
        power = builder.shl(builder.sub(word(1023), order), word(52))
        parts = [builder.sitofp(order, args[0].type)]
        parts += [builder.bitcast(part, args[0].type) for part in (mantissa, power)]
        return context.make_tuple(builder, sig.return_type, parts)

    return sig, codegen

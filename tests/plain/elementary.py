"""Twins of `elementary`: exp2, exp, tanh, powers of two, and what a logarithm begins with.

The coefficients are the kernels' own, read from the file that they are loaded from.
"""

import functools
import math

import numpy as np

from .floats import F64, Unknown, dtype_of, fma, number
from .lanes import LANES, Vector, both, splat

# Coefficients by name and size of a number, and bits by name.
_tables = {}
_FORMAT = {4: (23, 127, -104.0, np.int32), 8: (52, 1023, -746.0, np.int64)}


def learn(module):
    """Take over the coefficients of the kernels' own file."""
    for name in ("_EXP2", "_EXP", "_LN2"):
        for kind, coefficients in getattr(module, name).items():
            _tables[name, kind.bitwidth // 8] = coefficients
    _tables["_LEAST_MANTISSA"] = np.int64(module._LEAST_MANTISSA)


def table(name, x):
    return _tables[name, x.itemsize]


@functools.cache
def lanes_of(dtype, value):
    made = np.full(LANES, value, dtype)
    made.flags.writeable = False
    return made


def constant(x, value):
    return lanes_of(x.dtype, value)


def clamp_below(x, lowest):
    return np.where(lowest > x, lowest, x)


def round_product(x, factor, bias):
    mantissa = _FORMAT[x.itemsize][0]
    shifter = constant(x, 1.5 * 2.0**mantissa + bias)
    shifted = fma(x, factor, shifter)
    return shifted - shifter, shifted


def power_of_two(shifted):
    mantissa, *_, word = _FORMAT[shifted.itemsize]
    return (shifted.view(word) << mantissa).view(shifted.dtype)


def horner(x, coefficients):
    total = constant(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = fma(total, x, constant(x, coefficient))
    return total


def exp2_product(x, factor, lowest):
    known = both(both(x.known, factor.known), lowest.known)
    x, factor = clamp_below(x.lanes, lowest.lanes), factor.lanes
    whole, shifted = round_product(x, factor, _FORMAT[x.itemsize][1])
    rest = fma(x, factor, -whole)
    value = fma(horner(rest, table("_EXP2", x)), rest, constant(x, 1.0))
    return Vector(value * power_of_two(shifted), known)


def exp2_lowest(factor):
    kind = dtype_of(factor)
    return number(kind, -float(_FORMAT[kind.itemsize][1])) / number(kind, factor)


def exp_nonpositive(x):
    x, known = x.lanes, x.known
    mantissa, bias, lowest, _ = _FORMAT[x.itemsize]
    x = clamp_below(x, constant(x, lowest))
    whole, _ = round_product(x, constant(x, 1 / math.log(2)), 0)
    head, tail = table("_LN2", x)
    rest = fma(whole, constant(x, -head), x)
    rest = fma(whole, constant(x, -tail), rest)
    value = fma(horner(rest, table("_EXP", x)), rest, constant(x, 1.0))
    shifter = constant(x, 1.5 * 2.0**mantissa + bias)
    low = fma(whole, constant(x, 0.5), shifter)
    high = (whole - (low - shifter)) + shifter
    return Vector(value * power_of_two(low) * power_of_two(high), known)


def tanh_product(x, factor):
    known = both(x.known, factor.known)
    x, factor = x.lanes, factor.lanes
    bias = _FORMAT[x.itemsize][1]
    negative = clamp_below(-np.abs(x), constant(x, -(0.25 * bias)) / factor)
    whole, shifted = round_product(negative, factor, bias)
    rest = fma(negative, factor, -whole)
    power = power_of_two(shifted)
    small = horner(rest, table("_EXP2", x)) * rest
    minus_one = fma(power, small, power - constant(x, 1.0))
    ratio = -minus_one / (minus_one + constant(x, 2.0))
    return Vector(np.where(np.signbit(x), -np.abs(ratio), ratio), known)


def inverse_exponent(x):
    x, known = x.lanes, x.known
    mantissa, bias, _, word = _FORMAT[x.itemsize]
    exponent = x.view(word) & word((2 * bias + 1) << mantissa)
    exponent = np.minimum(exponent, word((2 * bias - 1) << mantissa))
    return Vector((word((2 * bias) << mantissa) - exponent).view(x.dtype), known)


def alike(like, value):
    return splat(number(F64, value)) if type(like) is Vector else number(F64, value)


def order_split(value):
    if type(value) is Unknown:
        return value, value, value
    if type(value) is not Vector:
        return tuple(part[()] for part in _split(np.asarray(value)))
    return tuple(Vector(part, value.known) for part in _split(value.lanes))


def _split(numbers):
    """Exponents, mantissas and powers; of float64 alone."""
    bits = numbers.view(np.int64)
    order = (bits - _tables["_LEAST_MANTISSA"]) >> 52
    mantissa, power = bits - (order << 52), (1023 - order) << 52
    return order.astype(F64), mantissa.view(F64), power.view(F64)


TWINS = {
    twin.__name__: twin
    for twin in (
        exp2_product, exp2_lowest, exp_nonpositive, tanh_product, inverse_exponent, alike,
        order_split,
    )
}  # fmt: skip

"""Pairs: a number as the sum of two floats, the second at most half a last place of the first."""

from ..compiler.compile import device
from .simd import fma

__all__ = ["below", "divide", "minus", "paired", "times", "times_pair"]


@device(inlined=True)
def paired(a, b):
    """`a + b` of any two floats, exactly."""
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)


@device(inlined=True)
def below(a, a_rest, b, b_rest):
    """Whether a pair is less than another."""
    return a < b or (a == b and a_rest < b_rest)


@device(inlined=True)
def times(a, b):
    """`a * b` of two floats, exactly."""
    product = a * b
    return product, fma(a, b, -product)


@device
def times_pair(a, a_rest, b, b_rest):
    """The product of two pairs."""
    product, rest = times(a, b)
    return product, rest + (a * b_rest + a_rest * b)


@device
def minus(number, a, a_rest):
    """A number less a pair."""
    total, rest = paired(number, -a)
    return paired(total, rest - a_rest)


@device
def divide(a, a_rest, b, b_rest):
    """The quotient of two pairs."""
    first = a / b
    rest = fma(-first, b, a) + (a_rest - first * b_rest)
    return paired(first, rest / b)

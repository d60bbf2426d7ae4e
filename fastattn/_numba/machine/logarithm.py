"""The natural logarithm of a sum of two numbers, exact where the sum is near 1, in float64.

A log-sum-exp is `base + ln(large + small)`, where the large number is one weight of 1, or several,
and the small one the rest. It is near 0 where both terms are, or where they cancel: then what
counts is the rest alone, of which the rounded sum may hold nothing.
"""

import math

from ..compiler.compile import device
from .elementary import alike, order_split
from .simd import fma
from .two_floats import paired

# 2 (atanh(y) / y - 1) / y^2 in powers of y^2, |y| <= (sqrt 2 - 1) / (sqrt 2 + 1).
ATANH = (
    0.6666666666666666,
    0.4,
    0.28571428571428503,
    0.22222222222252955,
    0.181818181750467,
    0.15384616240665697,
    0.13333267554759004,
    0.11767825745236031,
    0.10437362638966984,
    0.10909707786470813,
)
# ln 2 as a short head, whose products with exponents are exact, and a tail.
LN_TWO_HEAD, LN_TWO_TAIL = 0.693147180559663, 2.8235290563031577e-13
SMALLEST_NORMAL = 2.0**-1022


@device
def log_of_sum(base, base_rest, large, small):
    """`base + base_rest + ln(large + small)`; -inf where the sum is 0, NaN where it is negative.

    Within an ulp of the result, and 2^-58 where base and logarithm cancel.
    """
    total, rest = paired(large, small)
    if not total > 0.0:
        return -math.inf if total == 0.0 else math.nan
    if not (total < math.inf and abs(base) < math.inf):
        return base + (total - 1.0)
    shift = 0.0
    if total < SMALLEST_NORMAL:
        total, rest, shift = total * 2.0**54, rest * 2.0**54, -54.0
    return log_of_normal(base, base_rest, total, rest, shift)


@device
def log_of_normal(base, base_rest, total, rest, shift):
    """As `log_of_sum`, of a pair times 2^shift, its first number normal and finite, as is the base.

    Of float64 numbers, or of vectors of them lane by lane, with the same bits.
    """
    # Exponent n so that the mantissa lies in [sqrt(1/2), sqrt(2)).
    n, mantissa, power = order_split(total)
    rest = rest * power
    # ln(mantissa + rest) = 2 atanh y; the quotient y with what its rounding left.
    one = alike(total, 1.0)
    above, above_rest = paired(mantissa - one, rest)
    below, below_rest = paired(mantissa, one)
    y = above / below
    y_rest = (fma(-y, below, above) + (above_rest - y * (below_rest + rest))) / below
    square = y * y
    series = alike(total, ATANH[9])
    for i in range(8, -1, -1):
        series = fma(series, square, alike(total, ATANH[i]))
    n = n + shift
    twice_rest = y_rest + y_rest
    low = fma(n, alike(total, LN_TWO_TAIL), y * square * series) + (twice_rest + base_rest)
    high, high_rest = paired(base, n * alike(total, LN_TWO_HEAD))
    high, last_rest = paired(high, y + y)
    return high + (high_rest + (last_rest + low))

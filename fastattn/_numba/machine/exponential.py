"""The exponential of a pair, as a pair: for sums of which only what lies below an ulp counts."""

import math

from ..compiler.compile import device
from .elementary import alike, exp2_product
from .logarithm import LN_TWO_HEAD, LN_TWO_TAIL
from .simd import fma
from .two_floats import paired, times

# 1 / k! from k = 12 down to 0, as pairs; above, from k = 24 down to 13, the first number is enough.
INVERSES = (
    2.08767569878681e-09,
    2.505210838544172e-08,
    2.755731922398589e-07,
    2.7557319223985893e-06,
    2.48015873015873e-05,
    0.0001984126984126984,
    0.001388888888888889,
    0.008333333333333333,
    0.041666666666666664,
    0.16666666666666666,
    0.5,
    1.0,
    1.0,
)
INVERSE_RESTS = (
    -1.20734505911326e-25,
    -1.448814070935912e-24,
    2.3767714622250297e-23,
    -1.858393274046472e-22,
    2.1511947866775882e-23,
    1.7209558293420705e-22,
    -5.300543954373577e-20,
    1.1564823173178714e-19,
    2.3129646346357427e-18,
    9.25185853854297e-18,
    0.0,
    0.0,
    0.0,
)
SMALL_INVERSES = (
    1.6117375710961184e-24,
    3.868170170630684e-23,
    8.896791392450574e-22,
    1.9572941063391263e-20,
    4.110317623312165e-19,
    8.22063524662433e-18,
    1.5619206968586225e-16,
    2.8114572543455206e-15,
    4.779477332387385e-14,
    7.647163731819816e-13,
    1.1470745597729725e-11,
    1.6059043836821613e-10,
)
# What head and tail of ln 2 lack.
LN_TWO_LAST = 1.94704509238075e-31


@device
def exp_pair(x, x_rest):
    """e to the power of a pair, as a pair, of vectors of float64 within 700 of 0.

    To 2^-103 of itself, or 2^-106 for each unit of x.
    """
    shifter = alike(x, 1.5 * 2.0**52)
    n = fma(x, alike(x, 1 / math.log(2)), shifter) - shifter
    # f = x - n ln 2, at most ln 2 / 2.
    high, high_rest = paired(x, n * alike(x, -LN_TWO_HEAD))
    low, low_rest = times(n, alike(x, -LN_TWO_TAIL))
    f, f_rest = paired(high, low)
    f_rest = f_rest + (high_rest + fma(n, alike(x, -LN_TWO_LAST), low_rest + x_rest))
    f, f_rest = paired(f, f_rest)
    series = alike(x, SMALL_INVERSES[0])
    for i in range(1, 12):
        series = fma(series, f, alike(x, SMALL_INVERSES[i]))
    rest = alike(x, 0.0)
    for i in range(13):
        inverse = alike(x, INVERSES[i])
        product, lost = times(f, series)
        lost = fma(f, rest, fma(f_rest, series, lost))
        series = inverse + product
        rest = (product - (series - inverse)) + (lost + alike(x, INVERSE_RESTS[i]))
    power = exp2_product(n, alike(x, 1.0), alike(x, -1023.0))
    return series * power, rest * power

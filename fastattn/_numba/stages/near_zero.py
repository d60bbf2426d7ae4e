"""Log-sum-exps near 0, where a maximum and the logarithm of a sum cancel: such rows once more.

The maximum plus that logarithm is as exact as the maximum's last place, of which a result near 0
may hold nothing. But of a number r near the result, `ln(sum of e^(x - r))` is what r lacks: a sum
near 1, whose distance from 1 has to be known. In float32 float64 knows it; in float64 exponentials
and sum are pairs.
"""

import numpy as np

from ..compiler.compile import device
from ..compiler.native import load_float64, store_float64
from ..machine.elementary import exp_nonpositive
from ..machine.emit import LANES
from ..machine.exponential import exp_pair
from ..machine.logarithm import log_of_sum
from ..machine.memory import load, load_as, load_first, native_code, store
from ..machine.simd import cast, item_size, larger, select_above, splat, widened
from ..machine.two_floats import paired, times, times_pair
from ..operands.record import FLOAT_MASK, NO_MASK

# A log-sum-exp is near 0 where it is smaller than this part of its maximum: from there on roundings
# of what cancels are a few of its own.
NEAR = 0.25
# Exponentials this far below the result are nothing.
_FAR = 700.0


@device
def is_near_zero(lse, row_max, factors):
    """Whether a log-sum-exp is one of those; factors may cancel among themselves."""
    size = abs(row_max)
    if factors != 0 and size < 1.0:
        size = 1.0
    return abs(lse) < NEAR * size


@device
def gather_exactly(call, x, mask, factors, count, room):
    """Sixteen scores or fewer with nothing lost: numbers, their rests, their factors; 0 hides."""
    for i in range(LANES):
        number, rest, factor = -np.inf, 0.0, 1.0
        if i < count:
            number = load_as(np.float64(0), call.x_code, x + i * call.x_key)
            if call.scaled:
                number, rest = times(number, call.rest)
                number = number * call.power_first * call.power_second
                rest = rest * call.power_first * call.power_second
            if call.mask_kind != NO_MASK:
                bias = load_as(np.float64(0), call.mask_code, mask + i * call.mask_step)
                if call.mask_kind == FLOAT_MASK:
                    number, lost = paired(number, bias)
                    rest += lost
                hides = bias == (-np.inf if call.mask_kind == FLOAT_MASK else 0.0)
                number = -np.inf if hides else number
            if factors != 0:
                factor = load_as(np.float64(0), call.factors_code, factors + i * call.factors_key)
                number = -np.inf if factor == 0.0 else number
        store_float64(room, i, number)
        store_float64(room, LANES + i, rest)
        store_float64(room, 2 * LANES + i, factor if number > -np.inf else 0.0)


@device
def log_again(tag, call, x, mask, factors, near, is_negative, room):
    """The logarithm of the size of a row's sum, given a number near it and the sum's sign.

    All keys of the row begin at `x`. Scratch `room` has places for 48 float64 numbers.
    """
    item, wide = item_size(tag), np.float64(0)
    is_plain = call.mask_kind == NO_MASK and call.scaled == 0 and factors == 0
    is_plain = is_plain and call.x_key == item and call.x_code == native_code(tag)
    zero, lowest, away = splat(0.0), splat(near - _FAR), splat(-near)
    total = error = zero
    for k in range(0, call.keys, LANES):
        count = min(call.keys - k, LANES)
        number, rest = zero, zero
        if is_plain:
            number = widened(load_first(x + k * item, count, cast(tag, -np.inf)))
        else:
            place, bias = x + k * call.x_key, mask + k * call.mask_step
            gather_exactly(call, place, bias, factors + k * call.factors_key, count, room)
            number, rest = load(wide, room), load(wide, room + 8 * LANES)
        rest = select_above(number, lowest, rest, zero)
        distance, lost = paired(larger(lowest, number), away)
        distance, lost = paired(distance, lost + rest)
        if item == 8:
            weight, rest = exp_pair(distance, lost)
        else:
            weight = exp_nonpositive(distance)
            rest = weight * lost
        if factors != 0:
            weight, rest = times_pair(weight, rest, load(wide, room + 16 * LANES), zero)
        total, lost = paired(total, weight)
        total, error = paired(total, error + (lost + rest))
    store(room, total)
    store(room + 8 * LANES, error)
    # What the sum lacks of 1, or of -1.
    lack, rest = 1.0 if is_negative else -1.0, 0.0
    for i in range(LANES):
        lack, lost = paired(lack, load_float64(room, i))
        rest += lost + load_float64(room, LANES + i)
    lack += rest
    return log_of_sum(near, 0.0, 1.0, -lack if is_negative else lack)

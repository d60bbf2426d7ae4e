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
from ..machine.halves import store_number
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

    All keys of the row begin at `x`. Scratch `room` has places for 80 float64 numbers.
    """
    sums = room + 48 * 8
    store(sums, splat(0.0))
    store(sums + 8 * LANES, splat(0.0))
    sum_again(tag, call, x, mask, factors, near, 0, call.keys, sums, room)
    return log_of_sums(near, is_negative, sums)


@device
def sum_again(tag, call, x, mask, factors, near, first, stop, sums, room):
    """Add exponentials of some keys of a row to its sums on the lanes, each a number and its rest.

    A row that is gone through in pieces has whole vectors of keys in all but the last.
    """
    item, wide = item_size(tag), np.float64(0)
    is_plain = call.mask_kind == NO_MASK and call.scaled == 0 and factors == 0
    is_plain = is_plain and call.x_key == item and call.x_code == native_code(tag)
    zero, lowest, away = splat(0.0), splat(near - _FAR), splat(-near)
    total, error = load(wide, sums), load(wide, sums + 8 * LANES)
    for k in range(first, stop, LANES):
        count = min(stop - k, LANES)
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
    store(sums, total)
    store(sums + 8 * LANES, error)


@device
def log_of_sums(near, is_negative, sums):
    """The logarithm of the size of a row's sum, of its sums on the lanes and the number near it."""
    # What the sum lacks of 1, or of -1.
    lack, rest = 1.0 if is_negative else -1.0, 0.0
    for i in range(LANES):
        lack, lost = paired(lack, load_float64(sums, i))
        rest += lost + load_float64(sums, LANES + i)
    lack += rest
    return log_of_sum(near, 0.0, 1.0, -lack if is_negative else lack)


@device
def add_piece(tag, call, x, mask, output, rows, place, room):
    """Go through a piece of the keys of some rows, those near 0; the last piece gives results.

    So a row of any length is left within milliseconds. The row at `x` is the one at `place` of
    the call.
    """
    for r in range(rows):
        near = load_float64(call.near, place + r)
        if near != near:
            continue
        sums = call.near_sums + (place + r) * 2 * LANES * 8
        first, stop = call.first_again, call.stop_again
        x_row, mask_row = x + r * call.x_row, mask + r * call.mask_row
        sum_again(tag, call, x_row, mask_row, 0, near, first, stop, sums, room)
        if stop == call.keys:
            lse = cast(tag, log_of_sums(near, False, sums))
            store_number(tag, call.output_code, output + r * call.output_row, lse)

"""Whole units: rounding the amounts of a row so that they add up to the budget.

Largest remainder rounds down and gives the rest to the largest remainders. The divisor methods
begin with each amount rounded by its own divisor, which is the state that handing out unit after
unit passes through when it has given that many; from there they give, or take back, in order. A
heap holds who is next.
"""

import numpy as np

from fastattn._engine.layouts import HUNTINGTON_HILL, LARGEST_REMAINDER, SAINTE_LAGUE

from ..compiler.compile import device
from ..compiler.native import load_float64, load_int64, store_float64, store_int64
from ..machine.emit import LANES
from ..machine.memory import load, store
from ..machine.simd import (
    absolute,
    fma,
    lane_max,
    lane_sum,
    larger,
    rounded_down,
    select_above,
    splat,
    whole_products,
)
from ..machine.two_floats import paired, times, times_pair
from .receivers import store_amounts

__all__ = ["BEYOND", "apportion"]

ITEM = 8
STEP = LANES * ITEM
TAG = np.float64(0)
# More than any scaled amount can be.
BEYOND = 4.0
# Claims that differ by less than this part count as equal, and remainders that differ by less than
# this much of a unit, or than the last places of a pair as large as the budget.
EQUAL = 2.0**-80
EQUAL_OF_BUDGET = 2.0**-98
# The last places of squares and products of weights below this may be lost, of more than TINY times
# LARGE none is.
TINY = 2.0**-400
LARGE = 2.0**600
# Remainders this near another number may be equal to it. So many trials find the gap between those
# of a hundred receivers; more than that are sorted no slower.
NEAR = 2.0**-40
MOST_TRIALS = 16
GIVE, TAKE = np.int64(0), np.int64(1)


@device(inlined=True)
def claims_before(method, weight, given, i, other_weight, other_given, j):
    """Whether i's claim to one unit more than `given` comes before j's."""
    if max(weight, other_weight) < TINY:
        weight, other_weight = LARGE * weight, LARGE * other_weight
    if method == HUNTINGTON_HILL:
        if given == 0.0 or other_given == 0.0:
            if given != other_given:
                return given == 0.0
            a, a_rest, b, b_rest = weight, 0.0, other_weight, 0.0
        else:
            square, square_rest = times(other_given, other_given + 1.0)
            a, a_rest = times(weight, weight)
            a, a_rest = times_pair(a, a_rest, square, square_rest)
            square, square_rest = times(given, given + 1.0)
            b, b_rest = times(other_weight, other_weight)
            b, b_rest = times_pair(b, b_rest, square, square_rest)
    else:
        step = 2.0 if method == SAINTE_LAGUE else 1.0
        a, a_rest = times(weight, step * other_given + 1.0)
        b, b_rest = times(other_weight, step * given + 1.0)
    more = (a - b) + (a_rest - b_rest)
    if abs(more) <= EQUAL * a:
        return i < j
    return more > 0.0


@device(inlined=True)
def comes_before(call, scratch, i, j, way):
    """Whether i is next before j, to be given a unit or to lose its last one."""
    if call.method == LARGEST_REMAINDER:
        rests, errors = scratch + call.at_rests, scratch + call.at_errors
        more = load_float64(rests, i) - load_float64(rests, j)
        more += load_float64(errors, i) - load_float64(errors, j)
        return i < j if abs(more) <= load_float64(scratch + call.at_spare, 0) else more > 0.0
    weights, amounts = scratch + call.at_weights, scratch + call.at_amounts
    a, b = load_float64(amounts, i), load_float64(amounts, j)
    if way == TAKE:
        # Who has the last claim loses first.
        return claims_before(
            call.method, load_float64(weights, j), b - 1.0, j, load_float64(weights, i), a - 1.0, i
        )
    return claims_before(
        call.method, load_float64(weights, i), a, i, load_float64(weights, j), b, j
    )


@device
def sift_down(call, scratch, place, size, way):
    """Let who stands at a place of the heap sink to where it belongs."""
    heap = scratch + call.at_heap
    sinking = load_int64(heap, place)
    while 2 * place + 1 < size:
        child = 2 * place + 1
        best = load_int64(heap, child)
        if child + 1 < size:
            other = load_int64(heap, child + 1)
            if comes_before(call, scratch, other, best, way):
                child += 1
                best = other
        if not comes_before(call, scratch, best, sinking, way):
            break
        store_int64(heap, place, best)
        place = child
    store_int64(heap, place, sinking)


@device
def may_change(call, scratch, i, inverse, way):
    """Whether i can be given a unit, or can lose one."""
    amount = load_float64(scratch + call.at_amounts, i)
    if way == TAKE:
        return amount > load_float64(scratch + call.at_lower, i) * inverse
    if call.method == LARGEST_REMAINDER:
        return load_float64(scratch + call.at_rests, i) > 0.0
    under = amount < load_float64(scratch + call.at_upper, i) * inverse
    return under and load_float64(scratch + call.at_weights, i) > 0.0


@device
def change(call, scratch, units, inverse, way):
    """Give units, or take them back, one after the other, in order."""
    heap, amounts = scratch + call.at_heap, scratch + call.at_amounts
    size = np.int64(0)
    for i in range(call.receivers):
        if may_change(call, scratch, i, inverse, way):
            store_int64(heap, size, i)
            size += 1
    for place in range(size // 2 - 1, -1, -1):
        sift_down(call, scratch, place, size, way)
    while units > 0.0 and size > 0:
        i = load_int64(heap, 0)
        step = -1.0 if way == TAKE else 1.0
        store_float64(amounts, i, load_float64(amounts, i) + step)
        units -= 1.0
        once = call.method == LARGEST_REMAINDER
        if once or not may_change(call, scratch, i, inverse, way):
            size -= 1
            store_int64(heap, 0, load_int64(heap, size))
        sift_down(call, scratch, 0, size, way)


@device
def parting(call, scratch, units):
    """A number that so many remainders are above, and none near; 0 if a few trials find none.

    Where they lie evenly, as most do, the next trial is where a line says; each third one halves.
    """
    rests = scratch + call.at_rests
    zero, one = splat(0.0), splat(1.0)
    low, high, above_low, above_high = 0.0, 1.0, float(call.receivers), 0.0
    for trial in range(MOST_TRIALS):
        part = 0.5
        if trial % 3 < 2:
            part = (above_low - units - part) / (above_low - above_high)
        between = low + (high - low) * part
        count, nearest = zero, splat(-1.0)
        for place in range(rests, rests + call.receivers * ITEM, STEP):
            apart = load(TAG, place) - splat(between)
            count = count + select_above(apart, zero, one, zero)
            nearest = larger(nearest, zero - absolute(apart))
        above = lane_sum(count)
        if above == units and lane_max(nearest) < -NEAR:
            return between
        if above > units:
            low, above_low = between, above
        else:
            high, above_high = between, above
    return 0.0


@device
def give_largest(call, scratch, units, inverse):
    """Give one unit each to the largest remainders; in order only where that matters."""
    between = parting(call, scratch, units)
    if between == 0.0:
        change(call, scratch, units, inverse, GIVE)
        return
    rests, amounts = scratch + call.at_rests, scratch + call.at_amounts
    wide, zero, one = splat(between), splat(0.0), splat(1.0)
    for i in range(0, call.receivers * ITEM, STEP):
        more = select_above(load(TAG, rests + i), wide, one, zero)
        store(amounts + i, load(TAG, amounts + i) + more)


@device
def is_next(call, scratch, i, found, inverse, way):
    """Whether i may change, and comes before the one found; -1: none was."""
    if not may_change(call, scratch, i, inverse, way):
        return False
    return found < 0 or comes_before(call, scratch, i, found, way)


@device
def settle(call, scratch, inverse):
    """Move units whose order rounding had hidden: from the last claim to an earlier one.

    The first amounts are rounded by theta, whose own last place may hide the order of claims that
    are nearly equal.
    """
    amounts = scratch + call.at_amounts
    for _ in range(call.receivers):
        first, last = np.int64(-1), np.int64(-1)
        for i in range(call.receivers):
            if is_next(call, scratch, i, first, inverse, GIVE):
                first = np.int64(i)
            if is_next(call, scratch, i, last, inverse, TAKE):
                last = np.int64(i)
        if first < 0 or last < 0 or first == last:
            return
        weights = scratch + call.at_weights
        given, taken = load_float64(amounts, first), load_float64(amounts, last) - 1.0
        if not claims_before(
            call.method,
            load_float64(weights, first),
            given,
            first,
            load_float64(weights, last),
            taken,
            last,
        ):
            return
        store_float64(amounts, first, given + 1.0)
        store_float64(amounts, last, taken)


@device
def round_amounts(method, whole, down, part):
    """Round amounts by the method: `down`, of which `part` is left, or one more."""
    more = down + splat(1.0)
    if method == SAINTE_LAGUE:
        return select_above(part, splat(0.5), more, down)
    if method == HUNTINGTON_HILL:
        return select_above(whole * whole, down * more, more, down)
    return down


@device
def first_amounts(call, scratch, theta, rest, at_caps, inverse):
    """Round every amount by itself; returns how many units that takes."""
    weights, amounts = scratch + call.at_weights, scratch + call.at_amounts
    lower, upper = scratch + call.at_lower, scratch + call.at_upper
    rests, errors = scratch + call.at_rests, scratch + call.at_errors
    zero, one, beyond = splat(0.0), splat(1.0), splat(BEYOND)
    theta, rest, inverse = splat(theta), splat(rest), splat(inverse)
    total = zero
    for i in range(0, call.receivers * ITEM, STEP):
        weight, low, cap = load(TAG, weights + i), load(TAG, lower + i), load(TAG, upper + i)
        least, most = low * inverse, cap * inverse
        if at_caps:
            store(amounts + i, select_above(weight, zero, most, least))
            continue
        whole = theta * weight
        whole = select_above(whole, beyond, beyond, whole)
        error = fma(theta, weight, zero - whole) + rest * weight
        over, under = (whole - cap) + error, (low - whole) - error
        whole, error = whole * inverse, error * inverse
        down = rounded_down(whole)
        above, error = paired(whole - down, error)
        part = select_above(zero, above, above + one, above)
        down = select_above(zero, above, down - one, down)
        amount = round_amounts(call.method, whole, down, part)
        amount = select_above(amount, most, most, amount)
        amount = select_above(least, amount, least, amount)
        # Who is at a bound has no remainder.
        amount = select_above(zero, over, amount, most)
        amount = select_above(zero, under, amount, least)
        part = select_above(zero, over, part, zero)
        store(rests + i, select_above(zero, under, part, zero))
        store(errors + i, error)
        store(amounts + i, amount)
        total = total + amount
    return lane_sum(total)


@device
def apportion(call, scratch, theta, rest, at_caps, inverse, budget, output):
    """Steps spend and store in whole units; `at_caps`: all that caps allow."""
    store_float64(scratch + call.at_spare, 0, max(EQUAL, EQUAL_OF_BUDGET * budget))
    amounts = scratch + call.at_amounts
    total = first_amounts(call, scratch, theta, rest, at_caps, inverse)
    if not at_caps:
        if total < budget and call.method == LARGEST_REMAINDER:
            give_largest(call, scratch, budget - total, inverse)
        elif total < budget:
            change(call, scratch, budget - total, inverse, GIVE)
        elif total > budget:
            change(call, scratch, total - budget, inverse, TAKE)
        if call.method != LARGEST_REMAINDER:
            settle(call, scratch, inverse)
    unit = splat(call.unit)
    for i in range(0, call.receivers, LANES):
        place = amounts + i * ITEM
        amount = load(TAG, place)
        if call.whole_numbers:
            amount = whole_products(amount, call.unit_whole)
        else:
            amount = amount * unit
        store_amounts(call, amount, place, output, i)

"""Rows of receivers in scratch: packing their numbers, and sums of them that no order changes.

A sum cuts each number at fixed places into three parts that add up exactly in any order, so lanes
add as they like; a sum is a pair of floats.
"""

import numpy as np

from fastattn._engine.layouts import STORAGE_CODES

from ..compiler.compile import device
from ..compiler.native import bits_of, float_of, load_float64, store_float64
from ..machine.emit import LANES
from ..machine.memory import load, load_as, load_first, native_code, prefetch, store, store_first
from ..machine.simd import any_nan, lane_max, lane_sum, larger, select_above, splat
from ..machine.two_floats import paired

__all__ = [
    "add",
    "cuts",
    "factor_near_one",
    "fill_row",
    "no_sum",
    "pack_row",
    "scale_weights",
    "store_amounts",
    "summed",
]

TAG = np.float64(0)
ITEM = 8
STEP = LANES * ITEM
BOOL = STORAGE_CODES["bool"]
# Scaled weights are at least this, lest the smallest become nothing.
LEAST_WEIGHT = 2.0**-1000
# Rows are few lines long, too short for the machine's own prefetching.
AHEAD = 2048


@device(inlined=True)
def pack_row(call, code, source, step, allowed, target):
    """One operand of a row as float64; 0 for who takes no part, and behind the row.

    Numbers are read with 0 added, which makes 0 of -0.0 and changes nothing else.
    """
    if allowed == 0 and step == ITEM and code == native_code(TAG):
        zero, stop = splat(0.0), call.receivers * ITEM
        whole = stop // STEP * STEP
        for i in range(0, whole, STEP):
            prefetch(source + i + AHEAD)
            prefetch(source + i + AHEAD + 64)
            store(target + i, load(TAG, source + i) + zero)
        if whole < stop:
            prefetch(source + whole + AHEAD)
            rest = load_first(source + whole, (stop - whole) // ITEM, 0.0)
            store(target + whole, rest + zero)
    else:
        pack_each(call, code, source, step, allowed, target)


@device
def pack_each(call, code, source, step, allowed, target):
    """As `pack_row`, number by number, of any storage type, wherever they lie."""
    receivers = call.receivers
    for i in range(receivers):
        number = 0.0
        if allowed == 0 or load_as(TAG, BOOL, allowed + i * call.allowed_step) != 0.0:
            number = load_as(TAG, code, source + i * step) + 0.0
        store_float64(target, i, number)
    while receivers % LANES:
        store_float64(target, receivers, 0.0)
        receivers += 1


@device(inlined=True)
def factor_near_one(number):
    """The power of two that brings a number of at least 0 near 1; below 4 in any case."""
    return float_of(max(2046 - (bits_of(number) >> 52), 1) << 52)


@device(inlined=True)
def no_sum():
    """The parts of an empty sum."""
    return splat(0.0), splat(0.0), splat(0.0)


@device(inlined=True)
def cuts(call):
    """What cuts numbers into the parts of a sum."""
    return splat(call.sum_first), splat(call.sum_second), splat(call.sum_third)


@device(inlined=True)
def add(parts, number, at):
    """Add to a sum in parts: the lanes of each add up exactly, in any order."""
    first = (number + at[0]) - at[0]
    number = number - first
    second = (number + at[1]) - at[1]
    third = ((number - second) + at[2]) - at[2]
    return parts[0] + first, parts[1] + second, parts[2] + third


@device(inlined=True)
def summed(parts):
    """The sum of all parts and lanes, a pair."""
    return paired(lane_sum(parts[0]), lane_sum(parts[1]) + lane_sum(parts[2]))


@device
def fill_row(call, target, number):
    """The same number for everybody."""
    for i in range(0, call.receivers * ITEM, STEP):
        store(target + i, splat(number))


@device
def scale_weights(call, weights):
    """Step pack: scale the weights; returns their sum, NaN where one makes no sense."""
    zero, nan = splat(0.0), splat(np.nan)
    wrong, largest = zero, zero
    stop = weights + call.receivers * ITEM
    for place in range(weights, stop, STEP):
        weight = load(TAG, place)
        wrong = wrong + (weight - weight) + select_above(zero, weight, nan, zero)
        largest = larger(largest, weight)
    if any_nan(wrong):
        return np.nan, 0.0
    factor, least = splat(factor_near_one(lane_max(largest))), splat(LEAST_WEIGHT)
    parts, at = no_sum(), cuts(call)
    for place in range(weights, stop, STEP):
        weight = load(TAG, place)
        scaled = larger(weight * factor, least)
        weight = select_above(weight, zero, scaled, zero)
        store(place, weight)
        parts = add(parts, weight, at)
    return summed(parts)


@device(inlined=True)
def store_amounts(call, amount, scratch, output, i):
    """Step store: the amounts of sixteen receivers, from `i` on; `scratch` has room for them.

    They are float64, or int64 that only look so.
    """
    count = call.receivers - i
    if call.output_step != ITEM:
        store(scratch, amount)
        for j in range(min(LANES, count)):
            store_float64(output + (i + j) * call.output_step, 0, load_float64(scratch, j))
    elif count >= LANES:
        store(output + i * ITEM, amount)
    else:
        store_first(output + i * ITEM, amount, count)

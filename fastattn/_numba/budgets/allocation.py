"""Handing out budgets: proportional amounts within bounds, or whole units of them.

Steps for a row: pack (into scratch, scaled by powers of two that bring the largest weight and the
budget near 1; what makes no sense is noticed), share (find theta), spend (amounts, or whole units:
`apportion`), store.

No order of the receivers changes a bit: a sum is exact to the last place of a pair (`receivers`),
and theta is a pair. Rows of real amounts without bounds are done some at a time, step by step: each
alone is one long chain of sums and two divisions, during which most of a core waits.
"""

import numpy as np

from fastattn._engine import layouts
from fastattn._engine.layouts import REAL_AMOUNTS, STORAGE_CODES

from ..compiler.compile import device, entry
from ..compiler.native import atomic_next, load_float64, store_float64
from ..machine.emit import LANES
from ..machine.memory import load, load_first, store
from ..machine.simd import any_nan, fma, lane_max, larger, same_lanes, select_above, splat
from ..machine.two_floats import below, divide, minus, paired
from ..operands.record import operand_offset, reader
from .apportion import BEYOND, apportion
from .receivers import (
    add,
    cuts,
    factor_near_one,
    fill_row,
    no_sum,
    pack_row,
    scale_weights,
    store_amounts,
    summed,
)

__all__ = ["hand_out"]

read_call = reader(layouts.ALLOCATION)
WEIGHTS, BUDGET, LOWER, UPPER, ALLOWED, OUTPUT, UNSPENT = map(np.int64, range(7))
TAG = np.float64(0)
ITEM = 8
STEP = LANES * ITEM
FLOAT64 = STORAGE_CODES["float64"]
# One last place of a scaled budget: real amounts may miss it by that, and bounds too.
SLACK = 2.0**-52
# What is missing of a budget by no more than this part is nothing: sums are no more exact, and
# where one receiver takes nearly all, only halvings would come closer.
NOTHING = 2.0**-102
# Where a receiver stands who is at a bound; those between have their weight there.
AT_CAP, AT_LOW = -1.0, -2.0
# Newton's steps are a handful, and bisection has a few hundred binary orders to search.
MOST_STEPS = 500


@device
def scale_bounds(call, weights, lower, upper, factor, budget):
    """Step pack: scale the bounds, and cut caps that no amount can reach.

    Returns the sums of the least and of the most, NaN where a bound makes no sense.
    """
    zero, nan, beyond = splat(0.0), splat(np.nan), splat(BEYOND)
    factor, budget = splat(factor), splat(budget)
    least, most, at, wrong = no_sum(), no_sum(), cuts(call), zero
    for i in range(0, call.receivers * ITEM, STEP):
        low, cap = load(TAG, lower + i), load(TAG, upper + i)
        # NaN is above nothing: 0 - 0 there becomes NaN - NaN.
        wrong = wrong + (low - low) + select_above(zero, low, nan, zero)
        wrong = (
            wrong + select_above(low, cap, nan, zero) + select_above(cap, beyond, zero, cap - cap)
        )
        low, cap = low * factor, cap * factor
        low = select_above(low, beyond, beyond, low)
        cap = select_above(cap, budget, budget, cap)
        store(lower + i, low)
        store(upper + i, cap)
        if call.lower:
            least = add(least, low, at)
        cap = select_above(load(TAG, weights + i), zero, cap, low)
        most = add(most, cap, at)
    if any_nan(wrong):
        return np.nan, 0.0, 0.0, 0.0
    total, rest = summed(least)
    highest, highest_rest = summed(most)
    return total, rest, highest, highest_rest


@device
def stand_at(call, weights, lower, upper, standing, theta, rest):
    """Where everybody stands at theta: the weight of who is between the bounds, else which bound.

    Returns the largest weight between the bounds, and whether all stand where the scratch said
    before: nothing to decide by, the first time.
    """
    zero, beyond, theta, rest = splat(0.0), splat(BEYOND), splat(theta), splat(rest)
    at_cap, at_low = splat(AT_CAP), splat(AT_LOW)
    largest, same = zero, True
    for i in range(0, call.receivers * ITEM, STEP):
        weight, low, cap = load(TAG, weights + i), load(TAG, lower + i), load(TAG, upper + i)
        amount = theta * weight
        amount = select_above(amount, beyond, beyond, amount)
        error = fma(theta, weight, zero - amount) + rest * weight
        over, under = (amount - cap) + error, (low - amount) - error
        stand = select_above(over, zero, at_cap, select_above(under, zero, at_low, weight))
        same &= same_lanes(stand, load(TAG, standing + i))
        store(standing + i, stand)
        largest = larger(largest, stand)
    return lane_max(largest), same


@device
def sums_of(call, lower, upper, standing, largest):
    """Weights of who is between the bounds, and amounts of who is at one: two pairs.

    The largest weight between them says where its sum is to be cut. Others may be heavier by any
    number of orders.
    """
    zero, beside = splat(0.0), splat(0.5 * (AT_CAP + AT_LOW))
    factor = factor_near_one(largest)
    inverse, scale = 1.0 / factor, splat(factor)
    bound, free, at = no_sum(), no_sum(), cuts(call)
    for i in range(0, call.receivers * ITEM, STEP):
        stand = load(TAG, standing + i)
        amount = select_above(stand, beside, load(TAG, upper + i), load(TAG, lower + i))
        bound = add(bound, select_above(zero, stand, amount, zero), at)
        free = add(free, larger(stand, zero) * scale, at)
    bound_sum, bound_rest = summed(bound)
    free_sum, free_rest = summed(free)
    return free_sum * inverse, free_rest * inverse, bound_sum, bound_rest


@device
def middle(low, high):
    """A point between two thetas, in few steps of any number of binary orders."""
    if high == np.inf:
        return max(16.0 * low, 2.0**-1000)
    if low == 0.0:
        return high / 16.0
    if high > 16.0 * low:
        return np.sqrt(low) * np.sqrt(high)
    return 0.5 * (low + high)


@device
def find_theta(call, weights, lower, upper, scratch, budget, theta, rest):
    """Step share: the theta that spends the budget, a pair, from a first guess.

    The sum of the amounts is piecewise linear and does not fall. Newton's step solves it for who
    is between the bounds now; where that leaves the bracket, bisect. Who is at a bound may change
    between two floats that are neighbours, hence the bracket of pairs. Nobody moved since a step
    was solved: it would be solved again.
    """
    standing = scratch + call.at_amounts
    low, low_rest, high, high_rest = 0.0, 0.0, np.inf, 0.0
    solved = False
    for _ in range(MOST_STEPS):
        largest, same = stand_at(call, weights, lower, upper, standing, theta, rest)
        if solved and same:
            break
        free, free_rest, bound, bound_rest = sums_of(call, lower, upper, standing, largest)
        open_, open_rest = minus(budget, bound, bound_rest)
        missing = open_
        following, following_rest = -1.0, 0.0
        if free > 0.0:
            following, following_rest = divide(open_, open_rest, free, free_rest)
            missing = ((following - theta) + (following_rest - rest)) * free
        if abs(missing) <= NOTHING * budget:
            break
        if missing > 0.0:
            low, low_rest = theta, rest
        else:
            high, high_rest = theta, rest
        theta, rest = following, following_rest
        solved = below(low, low_rest, theta, rest) and below(theta, rest, high, high_rest)
        if solved:
            continue
        theta, rest = middle(low, high), 0.0
        if low < theta < high:
            continue
        theta, rest = paired(low, low_rest + 0.5 * ((high - low) + (high_rest - low_rest)))
        if not (below(low, low_rest, theta, rest) and below(theta, rest, high, high_rest)):
            break
    return theta, rest


@device
def spend(call, weights, lower, upper, theta, rest, at_caps, inverse, output):
    """Steps spend and store: real amounts within bounds, rounded once, or all that caps allow."""
    zero, beyond, inverse = splat(0.0), splat(BEYOND), splat(inverse)
    theta, rest = splat(theta), splat(rest)
    for i in range(0, call.receivers, LANES):
        place = weights + i * ITEM
        weight = load(TAG, place)
        low, cap = load(TAG, lower + i * ITEM), load(TAG, upper + i * ITEM)
        amount = theta * weight
        amount = select_above(amount, beyond, beyond, amount)
        error = fma(theta, weight, zero - amount) + rest * weight
        over, under = (amount - cap) + error, (low - amount) - error
        amount = amount + error
        amount = select_above(under, zero, low, select_above(over, zero, cap, amount))
        if at_caps:
            amount = select_above(weight, zero, cap, low)
        store_amounts(call, amount * inverse, place, output, i)


@device
def spend_freely(call, weights, theta, rest, inverse, output):
    """As `spend` without bounds."""
    zero, inverse = splat(0.0), splat(inverse)
    theta, rest = splat(theta), splat(rest)
    for i in range(0, call.receivers, LANES):
        place = weights + i * ITEM
        weight = load(TAG, place)
        amount = theta * weight
        amount = amount + (fma(theta, weight, zero - amount) + rest * weight)
        store_amounts(call, amount * inverse, place, output, i)


@device(inlined=True)
def begin_row(call, row, weights):
    """Step pack: the weights of a row, scaled, to scratch.

    Returns their sum, a pair, NaN where one makes no sense; the budget; and where it stands who
    takes part, 0: everybody.
    """
    allowed = np.int64(0)
    if call.allowed:
        allowed = call.allowed + operand_offset(call, ALLOWED, row)
    source = call.weights + operand_offset(call, WEIGHTS, row)
    pack_row(call, call.weights_code, source, call.weights_step, allowed, weights)
    total, total_rest = scale_weights(call, weights)
    given = load_float64(call.budget + operand_offset(call, BUDGET, row), 0) + 0.0
    return total, total_rest, given, allowed


@device
def hand_out_freely(call, first, count, scratch):
    """All steps for up to sixteen rows without bounds, in real amounts."""
    line = call.weights_line
    weights, totals = scratch + call.at_weights, scratch + call.at_totals
    zero = splat(0.0)
    for r in range(count):
        total, total_rest, given, _ = begin_row(call, first + r, weights + r * line)
        factor = factor_near_one(given)
        store_float64(totals, r, total)
        store_float64(totals, LANES + r, total_rest)
        store_float64(totals, 2 * LANES + r, given * factor)
        store_float64(totals, 3 * LANES + r, 1.0 / factor)
    total = load_first(totals, count, 1.0)
    total_rest = load_first(totals + STEP, count, 0.0)
    budget = load_first(totals + 2 * STEP, count, 0.0)
    inverse = load_first(totals + 3 * STEP, count, 0.0)
    theta, rest = divide(budget, zero, total, total_rest)
    store(totals, select_above(total, zero, theta, zero))
    store(totals + STEP, select_above(total, zero, rest, zero))
    # What is left: nothing, or all if nobody has weight. Where the sum is NaN so is this.
    left = select_above(total, zero, zero, budget + total)
    store(totals + 2 * STEP, left * inverse)
    for r in range(count):
        row, left = first + r, load_float64(totals, 2 * LANES + r)
        if left == left:
            theta, rest = load_float64(totals, r), load_float64(totals, LANES + r)
            output = call.output + operand_offset(call, OUTPUT, row)
            inverse = load_float64(totals, 3 * LANES + r)
            spend_freely(call, weights + r * line, theta, rest, inverse, output)
        store_float64(call.unspent + operand_offset(call, UNSPENT, row), 0, left)


@device
def hand_out_row(call, row, scratch):
    """All steps for one row with bounds, or in whole units.

    Returns what is left of its budget, NaN if the row makes no sense.
    """
    weights = scratch + call.at_weights
    lower, upper = scratch + call.at_lower, scratch + call.at_upper
    total, total_rest, given, allowed = begin_row(call, row, weights)
    factor = factor_near_one(given)
    budget, inverse = given * factor, 1.0 / factor
    left, at_caps, at_least = 0.0, False, False
    if call.bounded:
        if call.lower:
            place = call.lower + operand_offset(call, LOWER, row)
            pack_row(call, FLOAT64, place, call.lower_step, allowed, lower)
        else:
            fill_row(call, lower, 0.0)
        if call.upper:
            place = call.upper + operand_offset(call, UPPER, row)
            pack_row(call, FLOAT64, place, call.upper_step, allowed, upper)
        else:
            fill_row(call, upper, np.inf)
        least, least_rest, most, most_rest = scale_bounds(
            call, weights, lower, upper, factor, budget
        )
        slack = min(SLACK, budget) if call.method == REAL_AMOUNTS else 0.0
        short_by = (least - budget) + least_rest
        if not short_by <= slack:
            return np.nan
        left, _ = minus(budget, most, most_rest)
        at_caps, at_least = left >= 0.0, short_by >= 0.0
        if left <= slack:
            left = 0.0
    else:
        at_caps = total == 0.0
        if at_caps:
            left = budget
        fill_row(call, lower, 0.0)
        fill_row(call, upper, budget)
    if not total >= 0.0:
        return np.nan
    theta, rest = 0.0, 0.0
    if total > 0.0 and not (at_caps or at_least):
        theta, rest = divide(budget, 0.0, total, total_rest)
        if call.bounded:
            theta, rest = find_theta(call, weights, lower, upper, scratch, budget, theta, rest)
    output = call.output + operand_offset(call, OUTPUT, row)
    if call.method == REAL_AMOUNTS:
        spend(call, weights, lower, upper, theta, rest, at_caps, inverse, output)
    else:
        apportion(call, scratch, theta, rest, at_caps, inverse, given, output)
    return left * inverse


@device(inlined=True)
def hand_out_rows(call, first, count, scratch):
    """All steps for the rows of a block."""
    if call.method == REAL_AMOUNTS and not call.bounded:
        hand_out_freely(call, first, count, scratch)
        return
    for row in range(first, first + count):
        left = hand_out_row(call, row, scratch)
        store_float64(call.unspent + operand_offset(call, UNSPENT, row), 0, left)


@entry
def hand_out(call_address, worker):
    """Take tasks until none is left: some blocks of rows each."""
    call = read_call(call_address)
    scratch = call.scratch + worker * call.scratch_stride
    task = atomic_next(call_address)
    while task < call.stop_task:
        first = task * call.task_rows
        stop = min(first + call.task_rows, call.rows)
        for row in range(first, stop, call.block_rows):
            hand_out_rows(call, row, min(call.block_rows, stop - row), scratch)
        task = atomic_next(call_address)

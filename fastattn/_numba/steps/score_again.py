"""Score again, feature by feature, what the power of two of scale kept from being scored well.

That power goes onto the query, where a row loses no bit by it. Then the chains of a score add the
products query * power * key of its features, each exact until it is added. That fails two ways:

- A row with a feature so small or so large that it would lose bits met the keys as it is, and its
  products may be far from those of the score: 3e38 * 2 overflows, where 3e38 * 0.125 * 2 does not.
  Here the power goes onto the key, feature by feature, or where that loses bits too, onto both: the
  same chains of the same products.
- Under a power above 1 sums of a row that took it may overflow, where those of the query as it is
  do not, nor their total times the power. Scores that are not finite tell; they are looked for
  where queries and keys are large enough for such sums, or too few to find that out first.

Either way both chains are known then, with the power and without, and a score is the first of them
that is finite: the same whichever of its two rows is the query.
"""

import numpy as np

from fastattn._core.constants import (
    BLOCK_ROWS,
    FEATURE_CHAIN,
    FEATURE_RUN,
    PANEL_KEYS,
    SCORE_STRIDE,
    SEGMENT_KEYS,
)

from ..compiler.compile import device
from ..compiler.native import load_int64, store_int64
from ..machine.emit import LANES
from ..machine.memory import load, load_scalar, store, store_scalar
from ..machine.simd import (
    absolute,
    any_nan,
    cast,
    fma,
    item_size,
    keep_lanes,
    lane_max,
    larger,
    largest_finite,
    select_above,
    select_equal,
    splat,
    unless_nan,
)
from ..machine.sums import settled
from ..machine.two_floats import paired
from ..operands.places import pack_entry_panel
from ..operands.record import factors_of
from ..operands.variant import panels_stay, query_element
from .blocks import EXACT, padded, slot

_PANELS = SEGMENT_KEYS // PANEL_KEYS


@device
def share_power(tag, factors, number, key):
    """Two factors of number * power * key, which lose no bit unless both operands would."""
    first, second = splat(cast(tag, factors.query_first)), splat(cast(tag, factors.query_second))
    back_first = splat(cast(tag, 1.0 / factors.query_first))
    back_second = splat(cast(tag, 1.0 / factors.query_second))
    zero = splat(cast(tag, 0.0))
    scaled_number, scaled_key = number * first * second, key * first * second
    lost_of_number = absolute(scaled_number * back_second * back_first - number)
    lost_of_key = absolute(scaled_key * back_second * back_first - key)
    # The number takes the power where the key would lose bits, and both a part of it where
    # either would: then their product counts for little, or overflows anyway. Which of them
    # takes which part depends on their sizes, not on whose they are.
    above = absolute(number), absolute(key)
    largest = select_above(above[0], above[1], number, key)
    smallest = select_above(above[0], above[1], key, number)
    own = select_above(lost_of_number, zero, largest * first, scaled_number)
    other = select_above(lost_of_number, zero, smallest * second, key)
    own = select_above(lost_of_key, zero, own, number)
    other = select_above(lost_of_key, zero, other, scaled_key)
    return own, other


@device
def sum_again(tag, call, factors, took, query, panel):
    """The chain that sixteen scores of a row lack: without the power if it `took` that, or with it.

    Chains, runs and their errors as in `tile` and `sums`; what comes first is not added to a zero,
    whose sign would win.
    """
    back_first = splat(cast(tag, 1.0 / factors.query_first))
    back_second = splat(cast(tag, 1.0 / factors.query_second))
    zero = splat(cast(tag, 0.0))
    total = error = run = chain = zero
    for e in range(call.features):
        number = splat(query_element(tag, call, query, e))
        key = load(tag, panel + e * PANEL_KEYS * item_size(tag))
        if took:
            own, other = number * back_second * back_first, key
        else:
            own, other = share_power(tag, factors, number, key)
        chain = fma(own, other, chain)
        ends = e + 1 == call.features
        if ends or (e + 1) % FEATURE_CHAIN == 0:
            run = chain if e % FEATURE_RUN < FEATURE_CHAIN else run + chain
            chain = zero
        if ends or (e + 1) % FEATURE_RUN == 0:
            if e < FEATURE_RUN:
                total = run
            else:
                total, lost = paired(total, run)
                error = error + lost
    return settled(total, error) if call.features > FEATURE_RUN else total


@device
def score_sixteen_again(tag, call, factors, took, query, panel, scores):
    """Scores of one row with sixteen keys, which lie there as the tiles made them.

    Those of a row that `took` the power have it. A score is the product without it, times the
    power, where the chain with it overflows and that does not; under a cap, which every score is
    below, also where both overflow.
    """
    none = cast(tag, 0.0)
    total, product = sum_again(tag, call, factors, took, query, panel), load(tag, scores)
    if took:
        total, product = product, total
    product = product * splat(cast(tag, factors.query_first))
    product = product * splat(cast(tag, factors.query_second))
    if call.softcap > 0.0:
        product = unless_nan(product, total)
    else:
        product = select_equal(product - product, none, product, total)
    store(scores, select_equal(total - total, none, total, product))


@device
def all_finite(tag, scores, count):
    """Whether the first `count` scores of a row are finite: 0 times others is NaN."""
    size = LANES * item_size(tag)
    zero = splat(cast(tag, 0.0))
    # Four sums, none of which waits for another.
    first = second = third = fourth = zero
    place = scores
    while count >= 4 * LANES:
        first = fma(load(tag, place), zero, first)
        second = fma(load(tag, place + size), zero, second)
        third = fma(load(tag, place + 2 * size), zero, third)
        fourth = fma(load(tag, place + 3 * size), zero, fourth)
        place, count = place + 4 * size, count - 4 * LANES
    while count >= LANES:
        first = fma(load(tag, place), zero, first)
        place, count = place + size, count - LANES
    if count > 0:
        second = fma(keep_lanes(load(tag, place), 0, count, cast(tag, 0.0)), zero, second)
    return not any_nan((first + second) + (third + fourth))


@device
def largest_of(tag, place, stride, rows, count):
    """The largest magnitude of the first `count` elements of each row, but of NaN."""
    size, none = LANES * item_size(tag), cast(tag, 0.0)
    # Two of them, neither of which waits for the other.
    largest = other = splat(none)
    for column in range(0, count, LANES):
        here, left = place + column // LANES * size, count - column
        for row in range(1, rows, 2):
            first, second = load(tag, here + (row - 1) * stride), load(tag, here + row * stride)
            largest = larger(absolute(keep_lanes(first, 0, left, none)), largest)
            other = larger(absolute(keep_lanes(second, 0, left, none)), other)
        if rows % 2:
            last = load(tag, here + (rows - 1) * stride)
            largest = larger(absolute(keep_lanes(last, 0, left, none)), largest)
    return np.float64(lane_max(larger(largest, other)))


@device
def may_spill(tag, call, largest_query, panel, keys):
    """Whether sums of products of queries up to that size with some keys of a panel may overflow.

    Where many rows meet a panel, that is found sooner than whether their scores are finite.
    """
    largest = largest_of(tag, panel, PANEL_KEYS * item_size(tag), call.features, keys)
    return not largest_query * largest * call.features <= largest_finite(tag) / 2.0


@device
def measure_queries(tag, call, rows, scratch):
    """Keep the size of a task's queries behind the words of its panels, which blocks share."""
    if call.task_rows > BLOCK_ROWS and panels_stay(tag, call):
        width = padded(call.features) * item_size(tag)
        largest = largest_of(tag, scratch + call.at_query, width, rows, call.features)
        store_scalar(scratch + call.at_packed + 8 * _PANELS, largest)


@device
def may_spill_here(tag, call, segment, low, high, scratch):
    """Whether sums of a block that took a power above 1 may overflow, in the columns low to high.

    The word of a panel tells of its keys, once it was asked: 2 that they are too small.
    """
    if call.enlarged == 0:
        return False
    if call.task_rows <= BLOCK_ROWS or not panels_stay(tag, call):
        return True
    packed, spilling = scratch + call.at_packed, False
    for panel in range(low // PANEL_KEYS, (high + PANEL_KEYS - 1) // PANEL_KEYS):
        if load_int64(packed, panel) == 1:
            place = scratch + call.at_panels + panel * PANEL_KEYS * call.features * item_size(tag)
            keys = min(call.keys - segment * SEGMENT_KEYS - panel * PANEL_KEYS, PANEL_KEYS)
            largest = load_scalar(np.float64(0), packed + 8 * _PANELS)
            store_int64(packed, panel, 3 if may_spill(tag, call, largest, place, keys) else 2)
        spilling |= load_int64(packed, panel) != 2
    return spilling


@device
def waits(tag, factors, took, spilling, scores, count):
    """Whether some of the first `count` scores of a row are to be scored again."""
    if took == 0:
        return True
    if not spilling:
        return False
    grown = abs(factors.query_first * factors.query_second) > 1.0
    return grown and not all_finite(tag, scores, count)


@device
def score_row_again(tag, call, factors, took, spilling, query, panel, scores, count):
    """Score again what waits among the first `count` scores of a row with the keys of a panel."""
    item = item_size(tag)
    if not waits(tag, factors, took, spilling, scores, count):
        return
    for column in range(0, count, LANES):
        place = scores + column * item
        if waits(tag, factors, took, spilling, place, min(LANES, count - column)):
            score_sixteen_again(tag, call, factors, took, query, panel + column * item, place)


@device
def find_waiting(tag, call, first_row, block, rows, spilling, low, high, scratch):
    """How many rows of a block wait, in the columns low to high."""
    item = item_size(tag)
    waiting = 0
    for r in range(rows):
        factors = factors_of(call, first_row + block + r)
        took = load_int64(slot(call, scratch, EXACT, block + r), 0)
        row = scratch + call.at_scores + r * SCORE_STRIDE * item
        waiting += waits(tag, factors, took, spilling, row + low * item, high - low)
    return waiting


@device
def score_again(tag, call, segment, first_row, block, rows, low, high, alike, scratch):
    """Score those rows of a block again that wait for it; columns as there.

    If they are `alike`, all of them took the power.
    """
    spilling = may_spill_here(tag, call, segment, low, high, scratch)
    if alike and not spilling:
        return
    if find_waiting(tag, call, first_row, block, rows, spilling, low, high, scratch) == 0:
        return
    item = item_size(tag)
    several = call.task_rows > BLOCK_ROWS
    packed, panel_bytes = scratch + call.at_packed, PANEL_KEYS * call.features * item
    for panel in range(low // PANEL_KEYS, (high + PANEL_KEYS - 1) // PANEL_KEYS):
        first, stop = max(low, panel * PANEL_KEYS), min(high, (panel + 1) * PANEL_KEYS)
        if find_waiting(tag, call, first_row, block, rows, spilling, first, stop, scratch) == 0:
            continue
        place = scratch + call.at_panels
        if several:
            place += panel * panel_bytes
        if not (several and panels_stay(tag, call) and load_int64(packed, panel)):
            pack_entry_panel(tag, call, segment * SEGMENT_KEYS + panel * PANEL_KEYS, place, scratch)
            if panels_stay(tag, call):
                store_int64(packed, panel, 1)
            else:
                # It lies where others do that are as wide as the tiles read them.
                for other in range(_PANELS):
                    store_int64(packed, other, 0)
        keys = place + (first - panel * PANEL_KEYS) * item
        for r in range(rows):
            query = scratch + call.at_query + (block + r) * padded(call.features) * item
            factors = factors_of(call, first_row + block + r)
            took = load_int64(slot(call, scratch, EXACT, block + r), 0)
            row = scratch + call.at_scores + (r * SCORE_STRIDE + first) * item
            score_row_again(tag, call, factors, took, spilling, query, keys, row, stop - first)

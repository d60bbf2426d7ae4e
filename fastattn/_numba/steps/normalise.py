"""Normalise, fuse and fold: the arithmetic of softmax over one segment, row by row."""

import numpy as np

from fastattn._core.constants import BLOCK_ROWS, FUSE_KEYS, SCORE_STRIDE, SEGMENT_KEYS

from ..compiler.compile import device
from ..compiler.native import load_int64
from ..machine.elementary import exp2_lowest, exp2_product
from ..machine.emit import LANES
from ..machine.memory import load, load_scalar, store, store_scalar
from ..machine.simd import (
    any_nan,
    cast,
    first_lane,
    fma,
    item_size,
    lane_max,
    lane_sum,
    larger,
    select_equal,
    splat,
)
from ..operands.places import stage_values
from ..operands.prefetch import all_asked, next_lines
from ..operands.record import VALUES_IN_PLACE, VALUES_LATE
from .score import product_columns, rows_at_once

# Values are fetched this many keys before their turn where a task has few rows: they come straight
# from memory then. More rows find them in a cache, and lose 5 % by asking.
AHEAD = 32


@device
def row_maximum(tag, scores, low, high):
    """Largest score of columns low to high; NaN if nothing but hidden keys and NaN stands there."""
    item = item_size(tag)
    hidden = splat(cast(tag, -np.inf))
    first, second = hidden, hidden
    column = low
    while column + 2 * LANES <= high:
        first = larger(first, load(tag, scores + column * item))
        second = larger(second, load(tag, scores + (column + LANES) * item))
        column += 2 * LANES
    if column < high:
        first = larger(first, load(tag, scores + column * item))
    largest = lane_max(larger(first, second))
    if largest == -np.inf:
        for column in range(low, high, LANES):
            if any_nan(load(tag, scores + column * item)):
                return cast(tag, np.nan)
    return largest


@device
def normalise_row(tag, call, scores, low, high, row_max, factor, least):
    """Step normalise: scores become weights 2^((score - row_max) factor); returns their sum.

    `least` is `exp2_lowest(factor)`.
    """
    item = item_size(tag)
    maximum, wide, lowest = splat(row_max), splat(factor), splat(least)
    total = splat(cast(tag, 0.0))
    for place in range(scores + low * item, scores + high * item, LANES * item):
        weight = exp2_product(load(tag, place) - maximum, wide, lowest)
        store(place, weight)
        total = total + weight
    return lane_sum(total)


@device
def rest_of_weights(tag, weights, low, high):
    """The sum of the weights of columns low to high that are not 1, added as the others are.

    A row's logarithm is that of one maximum, whose weight is 1, and the rest: added to 1, a rest
    below its last place would be lost, and with it the log-sum-exp near the maximum.
    """
    item = item_size(tag)
    zero = splat(cast(tag, 0.0))
    total = zero
    for place in range(weights + low * item, weights + high * item, LANES * item):
        weight = load(tag, place)
        total = total + select_equal(weight, cast(tag, 1.0), zero, weight)
    return lane_sum(total)


@device
def normalise_apart(tag, call, scores, low, high, row_max, factor, least):
    """As `normalise_row`; returns the sum, and the rest of it but for one maximum."""
    row_sum = normalise_row(tag, call, scores, low, high, row_max, factor, least)
    # From 2 on the rest keeps its digits beside the 1; below, a single weight is 1.
    rest = row_sum - cast(tag, 1.0)
    if row_sum < cast(tag, 2.0):
        rest = rest_of_weights(tag, scores, low, high)
    return row_sum, rest


@device
def zero_columns(tag, call, scores, low, high):
    """Weights of a row that sees no key of the segment."""
    zero = splat(cast(tag, 0.0))
    item = item_size(tag)
    for place in range(scores + low * item, scores + high * item, LANES * item):
        store(place, zero)


@device
def fuse_listed(tag, call, segment, rows, low, high, begin, values, value_stride, block, scratch):
    """Step fuse with values that `place_values` has listed, see `blocks.fuse_block`.

    Those that are staged late are staged where the first would lie, by strips of
    columns. Meanwhile the tiles ask for memory: few rows for their own values, which come straight
    from there; many rows, who find theirs in a cache, for what the next task needs.
    """
    item = item_size(tag)
    scores = scratch + call.at_scores
    score_stride = SCORE_STRIDE * item
    vectors = (call.value_features + LANES - 1) // LANES
    block_stride = vectors * LANES * item
    late = call.value_way == VALUES_LATE
    reading = call.value_way == VALUES_IN_PLACE and call.task_rows <= BLOCK_ROWS
    first = low
    while first < high:
        keys = min(high, (first // FUSE_KEYS + 1) * FUSE_KEYS) - first
        chunk = load_int64(values, first // FUSE_KEYS)
        b = chunk + first % FUSE_KEYS * value_stride
        ahead = AHEAD * value_stride
        if call.entry_value_pages != 0:
            # Behind a page lies something else.
            ahead = load_int64(values, first // FUSE_KEYS + 1) - chunk
        for start in range(0, vectors, 4):
            count = min(vectors - start, 4)
            offset = start * LANES * item
            strip, strip_stride = b + offset, value_stride
            if late:
                strip, strip_stride = load_int64(values, 0), count * LANES * item
                key = segment * SEGMENT_KEYS + first
                stage_values(
                    tag, call, key, keys, start * LANES, count * LANES, strip, strip_stride
                )
            group = rows_at_once(tag, rows, count)
            groups = 1
            if reading or all_asked(call, scratch):
                groups = (rows + group - 1) // group
            for row in range(0, rows, group * groups):
                fetch, fetch_stride = strip + ahead, strip_stride
                if not reading:
                    fetch, fetch_stride = next_lines(call, scratch)
                product_columns(
                    tag,
                    group,
                    groups,
                    scores + row * score_stride + first * item,
                    score_stride,
                    strip,
                    strip_stride,
                    block + row * block_stride + offset,
                    block_stride,
                    keys,
                    FUSE_KEYS,
                    count,
                    first > begin,
                    reading,
                    fetch,
                    fetch_stride,
                )
        first += keys


@device
def fuse_visible_row(
    tag, call, scores, low, high, row_max, factor, values, value_stride, width, target
):
    """Step fuse for one row whose plain product met a NaN: only visible keys take part.

    `scores` holds scores, not weights. The chains are those of `fuse_listed` without the hidden
    keys, so that 0 * inf and 0 * NaN of a hidden key never happen.
    """
    item = item_size(tag)
    wide, lowest = splat(factor), splat(exp2_lowest(factor))
    for offset in range(0, width, LANES * item):
        total = chain = splat(cast(tag, 0.0))
        for column in range(low, high):
            if column % FUSE_KEYS == 0:
                total, chain = total + chain, splat(cast(tag, 0.0))
            score = load_scalar(tag, scores + column * item)
            if score != -np.inf:
                weight = exp2_product(splat(score - row_max), wide, lowest)
                chunk = load_int64(values, column // FUSE_KEYS) + offset
                value = load(tag, chunk + column % FUSE_KEYS * value_stride)
                chain = fma(weight, value, chain)
        total = total + chain
        store(target + offset, total)


@device
def any_nan_in_row(tag, row, width):
    """Whether a padded row of `width` bytes holds a NaN."""
    for place in range(row, row + width, LANES * item_size(tag)):
        if any_nan(load(tag, place)):
            return True
    return False


@device
def correction(tag, row_max, new_max, factor):
    """2^((row_max - new_max) factor), the weight of an older maximum under a newer one."""
    power = exp2_product(splat(row_max - new_max), splat(factor), splat(exp2_lowest(factor)))
    return first_lane(power)


@device
def fold_rest(
    tag, max_place, sum_place, rest_place, segment_max, segment_sum, segment_rest, factor
):
    """Fold one segment's rest into the running one, before `fold_row` folds its sum."""
    if segment_max == -np.inf:
        return
    old_max, old_sum = load_scalar(tag, max_place), load_scalar(tag, sum_place)
    rest = segment_rest
    if old_max >= segment_max:
        gain = correction(tag, segment_max, old_max, factor)
        rest = fma(segment_sum, gain, load_scalar(tag, rest_place))
    elif old_max != -np.inf:
        rest = fma(old_sum, correction(tag, old_max, segment_max, factor), segment_rest)
    store_scalar(rest_place, rest)


@device
def fold_row(tag, max_place, sum_place, running, segment_max, segment_sum, row, width, factor):
    """Fold one segment's (maximum, sum, output) of a row into the running state, in order.

    An empty segment leaves the state as it is, bit for bit; the first one is copied.
    """
    if segment_max == -np.inf:
        return
    item = item_size(tag)
    old_max = load_scalar(tag, max_place)
    if old_max == -np.inf:
        store_scalar(max_place, segment_max)
        store_scalar(sum_place, segment_sum)
        for offset in range(0, width, LANES * item):
            store(running + offset, load(tag, row + offset))
        return
    new_max = old_max if old_max > segment_max else segment_max
    keep = correction(tag, old_max, new_max, factor)
    gain = correction(tag, segment_max, new_max, factor)
    old_sum = load_scalar(tag, sum_place)
    store_scalar(max_place, new_max)
    store_scalar(sum_place, fma(old_sum, keep, segment_sum * gain))
    wide_keep, wide_gain = splat(keep), splat(gain)
    for offset in range(0, width, LANES * item):
        old = load(tag, running + offset)
        store(running + offset, fma(old, wide_keep, load(tag, row + offset) * wide_gain))

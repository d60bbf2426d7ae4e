"""Maximum and sum of exponentials of scores, keys on the lanes or rows on the lanes.

Both ways add a row in the same order: sixteen virtual lanes over a segment of 512 keys, the written
tree of lanes, segments from left to right.
"""

import numpy as np

from fastattn._core.plan import SEGMENT_KEYS
from fastattn._engine.layouts import SOFTMAX_RESULT

from .compile import device
from .elementary import exp_nonpositive
from .emit import LANES
from .memory import load, load_first, prefetch, store, store_first, store_scalar, stream
from .simd import cast, item_size, lane_max, lane_sum, larger, splat
from .softmax_finish import final


@device
def find_max(tag, place, keys):
    """Step maximum, keys on the lanes; a NaN may be passed over."""
    item = item_size(tag)
    hidden = cast(tag, -np.inf)
    first = splat(hidden)
    second, third, fourth = first, first, first
    whole = keys // LANES * LANES
    k = 0
    while k + 4 * LANES <= whole:
        first = larger(load(tag, place + k * item), first)
        second = larger(load(tag, place + (k + LANES) * item), second)
        third = larger(load(tag, place + (k + 2 * LANES) * item), third)
        fourth = larger(load(tag, place + (k + 3 * LANES) * item), fourth)
        k += 4 * LANES
    while k < whole:
        first = larger(load(tag, place + k * item), first)
        k += LANES
    if whole < keys:
        second = larger(load_first(place + whole * item, keys - whole, hidden), second)
    return lane_max(larger(larger(first, second), larger(third, fourth)))


@device
def weigh(tag, place, keys, row_max, weights, sums, sums_stride, ahead):
    """Step weigh, keys on the lanes: the sum of exponentials, which go to `weights` if not 0.

    Each segment's own sum goes to `sums` if not 0. `ahead` bytes further lies what is read next.
    """
    item = item_size(tag)
    maximum = splat(row_max)
    total = cast(tag, 0.0)
    for segment in range(0, keys, SEGMENT_KEYS):
        stop = min(segment + SEGMENT_KEYS, keys)
        whole = stop // LANES * LANES
        lanes = splat(cast(tag, 0.0))
        for k in range(segment, whole, LANES):
            weight = exp_nonpositive(load(tag, place + k * item) - maximum)
            prefetch(place + k * item + ahead)
            lanes = lanes + weight
            if weights:
                store(weights + k * item, weight)
        if whole < stop:
            scores = load_first(place + whole * item, stop - whole, cast(tag, -np.inf))
            weight = exp_nonpositive(scores - maximum)
            lanes = lanes + weight
            if weights:
                store(weights + whole * item, weight)
        segment_sum = lane_sum(lanes)
        total = total + segment_sum
        if sums:
            store_scalar(sums + segment // SEGMENT_KEYS * sums_stride, segment_sum)
    return total


@device
def weigh_and_finish(tag, place, keys, row_max, block, stats, pending, ahead):
    """Step weigh, and step finish of the row before, whose weights `block` still holds.

    That row's statistics stand at `stats`; it goes to `pending`, past the caches. Exponentials wait
    for arithmetic, stores for memory: side by side they take the time of the slower alone.
    """
    item = item_size(tag)
    zero, hidden = cast(tag, 0.0), cast(tag, -np.inf)
    first, second = load(tag, stats), load(tag, stats + LANES * item)
    begin = -pending % 64 // item
    late = (keys - begin) // LANES * LANES
    if begin:
        value = final(SOFTMAX_RESULT, load_first(block, begin, zero), first, second)
        store_first(pending, value, begin)
    # What comes next reads a vector of old weights at or behind where it writes a new one.
    old, pending = block + begin * item, pending + begin * item
    rest = keys - begin - late
    if rest:
        value = final(SOFTMAX_RESULT, load_first(old + late * item, rest, zero), first, second)
        store_first(pending + late * item, value, rest)
    maximum = splat(row_max)
    total = zero
    for segment in range(0, keys, SEGMENT_KEYS):
        stop = min(segment + SEGMENT_KEYS, keys)
        both = max(segment, min(stop, late))
        lanes = splat(zero)
        for k in range(segment, both, LANES):
            weight = exp_nonpositive(load(tag, place + k * item) - maximum)
            prefetch(place + k * item + ahead)
            stream(
                pending + k * item, final(SOFTMAX_RESULT, load(tag, old + k * item), first, second)
            )
            store(block + k * item, weight)
            lanes = lanes + weight
        for k in range(both, stop, LANES):
            scores = load_first(place + k * item, stop - k, hidden)
            weight = exp_nonpositive(scores - maximum)
            store(block + k * item, weight)
            lanes = lanes + weight
        total = total + lane_sum(lanes)
    return total


@device
def find_max_sideways(tag, place, keys, stride):
    """Step maximum for sixteen rows on the lanes."""
    first = splat(cast(tag, -np.inf))
    second = first
    for k in range(0, keys - 1, 2):
        first = larger(load(tag, place + k * stride), first)
        second = larger(load(tag, place + (k + 1) * stride), second)
    if keys % 2:
        first = larger(load(tag, place + (keys - 1) * stride), first)
    return larger(first, second)


@device
def weigh_sideways(tag, place, keys, stride, maximum, keep, lanes, sums, sums_stride, count):
    """Step weigh for `count` rows on the lanes; scratch `lanes` holds the virtual lanes of each."""
    step = LANES * item_size(tag)
    zero = splat(cast(tag, 0.0))
    total = zero
    for segment in range(0, keys, SEGMENT_KEYS):
        for lane in range(lanes, lanes + LANES * step, step):
            store(lane, zero)
        for k in range(segment, min(segment + SEGMENT_KEYS, keys)):
            weight = exp_nonpositive(load(tag, place + k * stride) - maximum)
            lane = lanes + k % LANES * step
            store(lane, load(tag, lane) + weight)
            if keep:
                store(place + k * stride, weight)
        half = LANES // 2
        while half:
            for lane in range(lanes, lanes + half * step, step):
                store(lane, load(tag, lane) + load(tag, lane + half * step))
            half //= 2
        segment_sum = load(tag, lanes)
        total = total + segment_sum
        if sums:
            store_first(sums + segment // SEGMENT_KEYS * sums_stride, segment_sum, count)
    return total

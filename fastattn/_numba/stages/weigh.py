"""Maximum and sum of exponentials of scores, keys on the lanes or rows on the lanes.

Both ways add a row in the same order: sixteen virtual lanes over a segment of 512 keys, the written
tree of lanes, segments from left to right.
"""

import numpy as np

from fastattn._core.constants import SEGMENT_KEYS
from fastattn._engine.layouts import SOFTMAX_RESULT

from ..compiler.compile import device
from ..machine.elementary import exp_nonpositive
from ..machine.emit import LANES
from ..machine.memory import (
    load,
    load_first,
    prefetch,
    store,
    store_first,
    store_scalar,
    stream,
)
from ..machine.simd import (
    cast,
    item_size,
    keep_lanes,
    lane_max,
    lane_sum,
    larger,
    select_above,
    select_equal,
    splat,
    widened,
)
from .softmax_finish import final

# From here on a sum is as good as its parts: what is small beside it counts for little. Below, the
# maximum is told from the rest, of which the logarithm is made. Rows that are not very peaked have
# sums above it, and are gone through once.
WHOLE_SUM = 2.0


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
def weigh_segment(tag, place, keys, maximum, keep, weights, ahead):
    """Step weigh for one segment, or a part of it: the sum of exponentials.

    They go to `weights` if `keep`. `ahead` bytes further lies what is read next.
    """
    # Two loops: one that tests for every vector whether to store it is 3 % slower.
    if keep:
        return _weigh_vectors(tag, place, keys, maximum, True, weights, ahead)
    return _weigh_vectors(tag, place, keys, maximum, False, weights, ahead)


@device(inlined=True)
def _weigh_vectors(tag, place, keys, maximum, keep, weights, ahead):
    """As `weigh_segment`; `keep` is a constant."""
    item = item_size(tag)
    whole = keys // LANES * LANES
    lanes = splat(cast(tag, 0.0))
    for k in range(0, whole, LANES):
        weight = exp_nonpositive(load(tag, place + k * item) - maximum)
        prefetch(place + k * item + ahead)
        lanes = lanes + weight
        if keep:
            store(weights + k * item, weight)
    if whole < keys:
        scores = load_first(place + whole * item, keys - whole, cast(tag, -np.inf))
        weight = exp_nonpositive(scores - maximum)
        lanes = lanes + weight
        if keep:
            store(weights + whole * item, weight)
    return lane_sum(lanes)


@device
def weigh(tag, place, keys, row_max, weights, sums, sums_stride, ahead):
    """Step weigh, keys on the lanes: the sum of exponentials, which go to `weights` if not 0.

    Each segment's own sum goes to `sums` if not 0. `ahead` bytes further lies what is read next.
    """
    item = item_size(tag)
    maximum = splat(row_max)
    total = cast(tag, 0.0)
    for segment in range(0, keys, SEGMENT_KEYS):
        own = min(SEGMENT_KEYS, keys - segment)
        offset = segment * item
        segment_sum = weigh_segment(
            tag, place + offset, own, maximum, weights != 0, weights + offset, ahead
        )
        total = total + segment_sum
        if sums:
            store_scalar(sums + segment // SEGMENT_KEYS * sums_stride, segment_sum)
    return total


@device
def weigh_apart(tag, place, keys, row_max, factors, weights, sums, rests, sums_stride, ahead):
    """As `weigh`, for logarithms: the sum in two numbers, of the maxima and of the rest.

    Each exponential is taken times its factor, if there are `factors`; scratch `weights` holds
    those of a segment. Without factors, a sum from `WHOLE_SUM` on is taken whole, as the rest. Each
    segment's own numbers go to `sums` and `rests` if not 0.
    """
    item = item_size(tag)
    maximum = splat(row_max)
    total, rest = 0.0, 0.0
    # Few segments of a long row hold its maximum: their exponentials are taken once more.
    keep = factors != 0 or keys <= SEGMENT_KEYS
    for segment in range(0, keys, SEGMENT_KEYS):
        stop = min(segment + SEGMENT_KEYS, keys)
        at_max = cast(tag, 0.0)
        scores, own = place + segment * item, stop - segment
        others = weigh_segment(tag, scores, own, maximum, keep, weights, ahead)
        if factors or (others >= cast(tag, 1.0) and others < cast(tag, WHOLE_SUM)):
            if not keep:
                weigh_segment(tag, scores, own, maximum, True, weights, ahead)
            at_max, others = set_apart(tag, weights, factors, segment, stop)
        total += np.float64(at_max)
        rest += np.float64(others)
        if sums:
            offset = segment // SEGMENT_KEYS * sums_stride
            store_scalar(sums + offset, at_max)
            store_scalar(rests + offset, others)
    return total, rest


@device
def set_apart(tag, weights, factors, begin, stop):
    """The sums of one segment's exponentials, times their factors, that are 1 and that are not."""
    item = item_size(tag)
    one, zero = cast(tag, 1.0), splat(cast(tag, 0.0))
    factor = splat(one)
    at_max, rest = zero, zero
    for k in range(begin, stop, LANES):
        weight = load(tag, weights + (k - begin) * item)
        if factors:
            factor = load_first(factors + k * item, stop - k, cast(tag, 0.0))
        at_max = at_max + select_equal(weight, one, factor, zero)
        rest = rest + select_equal(weight, one, zero, weight * factor)
    return lane_sum(at_max), lane_sum(rest)


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


@device(inlined=True)
def clear_lanes(tag, lanes, keys):
    """Empty the virtual lanes of sixteen rows that no key of a segment is the first of."""
    step = LANES * item_size(tag)
    for lane in range(lanes + keys * step, lanes + LANES * step, step):
        store(lane, splat(cast(tag, 0.0)))


@device(inlined=True)
def add_to_lane(tag, lanes, k, weight):
    """Add key `k` of a segment to its virtual lane; the first sixteen keys begin one."""
    place = lanes + k % LANES * (LANES * item_size(tag))
    if k >= LANES:
        weight = load(tag, place) + weight
    store(place, weight)


@device(inlined=True)
def fold_quarter(tag, lanes):
    """Four virtual lanes of sixteen rows, each four behind the one before, by the written tree."""
    step = 4 * LANES * item_size(tag)
    first = load(tag, lanes) + load(tag, lanes + 2 * step)
    return first + (load(tag, lanes + step) + load(tag, lanes + 3 * step))


@device(inlined=True)
def fold_lanes(tag, lanes):
    """Add up the virtual lanes of sixteen rows, by the written tree."""
    step = LANES * item_size(tag)
    even = fold_quarter(tag, lanes) + fold_quarter(tag, lanes + 2 * step)
    return even + (fold_quarter(tag, lanes + step) + fold_quarter(tag, lanes + 3 * step))


@device
def weigh_sideways(tag, place, keys, stride, maximum, keep, lanes, sums, sums_stride, count):
    """Step weigh for `count` rows on the lanes; scratch `lanes` holds the virtual lanes of each."""
    total = splat(cast(tag, 0.0))
    for segment in range(0, keys, SEGMENT_KEYS):
        first = place + segment * stride
        own = min(SEGMENT_KEYS, keys - segment)
        clear_lanes(tag, lanes, own)
        for k in range(own):
            weight = exp_nonpositive(load(tag, first + k * stride) - maximum)
            add_to_lane(tag, lanes, k, weight)
            if keep:
                store(first + k * stride, weight)
        segment_sum = fold_lanes(tag, lanes)
        total = total + segment_sum
        if sums:
            store_first(sums + segment // SEGMENT_KEYS * sums_stride, segment_sum, count)
    return total


@device
def weigh_sideways_apart(
    tag, place, keys, stride, maximum, weights, lanes, sums, rests, sums_stride, count, parts
):
    """As `weigh_apart` without factors, for `count` rows on the lanes.

    The two numbers of each row go to `parts`, float64, those of the maxima first. Returns the plain
    sums, which tell rows of NaN.
    """
    step = LANES * item_size(tag)
    zero, bound = splat(cast(tag, 0.0)), splat(cast(tag, WHOLE_SUM))
    total = zero
    maxima, rest = splat(0.0), splat(0.0)
    for segment in range(0, keys, SEGMENT_KEYS):
        first = place + segment * stride
        own = min(SEGMENT_KEYS, keys - segment)
        clear_lanes(tag, lanes, own)
        for k in range(own):
            weight = exp_nonpositive(load(tag, first + k * stride) - maximum)
            add_to_lane(tag, lanes, k, weight)
            store(weights + k * step, weight)
        others, at_max = fold_lanes(tag, lanes), zero
        total = total + others
        # Behind the last row lies whatever the scratch held.
        below = keep_lanes(select_above(bound, others, others, zero), 0, count, cast(tag, 0.0))
        if lane_max(below) >= cast(tag, 1.0):
            apart, ones = set_apart_sideways(tag, weights, own, lanes)
            at_max = select_above(bound, others, ones, zero)
            others = select_above(bound, others, apart, others)
        maxima, rest = maxima + widened(at_max), rest + widened(others)
        if sums:
            offset = segment // SEGMENT_KEYS * sums_stride
            store_first(sums + offset, at_max, count)
            store_first(rests + offset, others, count)
    store(parts, maxima)
    store(parts + LANES * 8, rest)
    return total


@device
def set_apart_sideways(tag, weights, keys, lanes):
    """As `set_apart` without factors, of sixteen rows: the sums that are not 1, and the ones."""
    step = LANES * item_size(tag)
    one, zero = cast(tag, 1.0), splat(cast(tag, 0.0))
    ones = zero
    clear_lanes(tag, lanes, keys)
    for k in range(keys):
        weight = load(tag, weights + k * step)
        add_to_lane(tag, lanes, k, select_equal(weight, one, zero, weight))
        ones = ones + select_equal(weight, one, splat(one), zero)
    return fold_lanes(tag, lanes), ones

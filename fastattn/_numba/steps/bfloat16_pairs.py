"""The variant of bfloat16 as it is: products of pairs, where the CPU is faster with them.

Queries, keys and values stay bfloat16, two neighbours of the sum in one 32-bit word: pairs of
features for scores, pairs of keys for the output. Weights are rounded to bfloat16. A segment's
output is a mean under the rounded weights, times the sum of the exact ones: so constant values stay
what they are, and the log-sum-exp is as exact as in float32. Everything that does not touch
operands is the float32 pipeline.
"""

import numpy as np

from fastattn._core.constants import (
    BLOCK_ROWS,
    DECODE_ROWS,
    FUSE_KEYS,
    PANEL_KEYS,
    SCORE_STRIDE,
    SEGMENT_KEYS,
)

from ..compiler.compile import device
from ..compiler.native import load_int64, store_int64
from ..machine.bfloat16 import dot_of_pair, rounded, store_interleaved, store_narrow
from ..machine.elementary import exp2_lowest, exp2_product
from ..machine.emit import LANES
from ..machine.memory import load, load_as, load_scalar, native_code, store, store_scalar
from ..machine.simd import (
    absolute,
    any_nan,
    cast,
    lane_max,
    lane_sum,
    larger,
    same_lanes,
    select_equal,
    splat,
)
from ..machine.storage import BFLOAT
from ..machine.tile_small import STRIP, small_pair_fused, small_pair_scores
from ..operands.pack import PREFETCH_KEYS, pack_ahead
from ..operands.places import row_place
from ..operands.prefetch import all_asked, next_lines
from ..operands.record import PANELS_IN_PLACE, VALUES_LATE, VALUES_STAGED
from ..operands.variant import VariantSteps, never_scores
from .decode_small import GROUP_KEYS, chunk_of_values, group_of_keys, runs_of, strip_ahead
from .score import product_columns, rows_at_once, score_columns

PAIR = np.int32(0)
HALF, BYTE = np.uint16(0), np.uint8(0)
BYTES = 2
# A row of scores has room behind it.
_CORRECTION = 4 * SEGMENT_KEYS
# The bits of the second half of a pair.
_SECOND = 0xFFFF0000


# --- queries and keys ----------------------------------------------------------------------------


@device
def scale_pairs(tag, target, length, call, factors, always, most):
    """As `pack.scale_row`, if no element but subnormal ones loses a bit as bfloat16 either."""
    first, second = splat(cast(tag, factors.query_first)), splat(cast(tag, factors.query_second))
    back_first = splat(cast(tag, 1.0 / factors.query_first))
    back_second = splat(cast(tag, 1.0 / factors.query_second))
    exact = True
    largest = splat(cast(tag, 0.0))
    for place in range(target, target + 4 * length, 4 * LANES):
        value = rounded(load(tag, place))
        scaled = value * first * second
        exact &= same_lanes(scaled * back_second * back_first, value)
        exact &= same_lanes(rounded(scaled), scaled)
        largest = larger(largest, absolute(scaled))
    exact &= lane_max(largest) <= most
    exact |= always
    if not exact:
        for place in range(target, target + 4 * length, 4 * LANES):
            exact |= any_nan(load(tag, place))
    if exact:
        for place in range(target, target + 4 * length, 4 * LANES):
            store(place, load(tag, place) * first * second)
    return exact


@device
def narrow_pairs(tag, call, row, width):
    """Turn a padded row of floats, each a bfloat16, into one of bfloat16 where it begins."""
    for i in range(0, width, LANES):
        store_narrow(row + BYTES * i, load(tag, row + 4 * i))


@device
def query_half(tag, call, row, i):
    """As `floats.query_number`."""
    return load_as(tag, BFLOAT, row + BYTES * i)


@device
def panels_replaced(tag, call):
    """Panels of floats are not what the tiles read."""
    return 0


@device
def copy_half(code, source, target):
    """Copy one bfloat16 of either byte order; nothing is made of it, for it may be of no key."""
    if code == BFLOAT:
        store_scalar(target, load_scalar(HALF, source))
    else:
        store_scalar(target, load_scalar(BYTE, source + 1))
        store_scalar(target + 1, load_scalar(BYTE, source))


@device
def copy_key(tag, call, source, target):
    """Copy a row of keys, with a zero behind an odd number of features."""
    i = 0
    if call.key_feature == BYTES and call.key_code == BFLOAT:
        while i + 2 * LANES <= call.features:
            store(target + BYTES * i, load(tag, source + BYTES * i))
            i += 2 * LANES
    while i < call.features:
        copy_half(call.key_code, source + i * call.key_feature, target + BYTES * i)
        i += 1
    if call.features % 2:
        store_scalar(target + BYTES * i, HALF)


@device
def pack_pairs(tag, call, first, target, scratch):
    """Pack keys first to first + 64 (fewer at the end) into a panel `[pairs][64 keys]`."""
    keys, pairs = min(call.keys - first, PANEL_KEYS), (call.features + 1) // 2
    row_stride, ahead = call.key_row, 0
    base, pages = call.entry_key, call.entry_key_pages
    if call.panel_way == PANELS_IN_PLACE:
        source, ahead = row_place(call, base, pages, row_stride, first), PREFETCH_KEYS * row_stride
        if pages != 0:
            # Behind a page lies something else.
            following = min(first + PANEL_KEYS, call.keys - 1) // PANEL_KEYS * PANEL_KEYS
            ahead = row_place(call, base, pages, row_stride, following) - source
    else:
        source = scratch + call.at_stage
        for r in range(keys):
            place = row_place(call, base, pages, row_stride, first + r)
            copy_key(tag, call, place, source + r * 4 * pairs)
        row_stride = 4 * pairs
    # A pair is moved as one float, which nobody computes with.
    code = native_code(tag)
    pack_ahead(tag, code, source, 4, row_stride, pairs, keys, target, 4 * PANEL_KEYS, ahead)


@device
def score_pairs_tile(
    code, rows, source, stride, scales, queries, query_stride, c, c_stride, size, is_run, fetch
):  # fmt: skip
    """As `decode_small.score_tile`."""
    small_pair_scores(rows, source, stride, queries, query_stride, c, c_stride, size, is_run, fetch)


score_pairs_runs = runs_of(score_pairs_tile)


@device
def score_small_pairs(tag, call, segment, queries, rows, low, high, scratch):
    """As `decode_small.score_decode_small`."""
    size = call.features * BYTES
    query_stride = (call.features + LANES - 1) // LANES * LANES * 4
    for column in range(low // GROUP_KEYS * GROUP_KEYS, high, GROUP_KEYS):
        source, stride, fetch = group_of_keys(call, segment * SEGMENT_KEYS + column, size, scratch)
        c = scratch + call.at_scores + column * 4
        score_pairs_runs(
            0, DECODE_ROWS if rows > 1 else 1, source, stride, 0, queries,
            query_stride, c, call.features // 2, size, fetch,
        )  # fmt: skip


@device
def score_pairs(tag, call, segment, queries, rows, low, high, scratch):
    """As `score.score_packed`."""
    scores, packed = scratch + call.at_scores, scratch + call.at_packed
    pairs = (call.features + 1) // 2
    query_stride = (call.features + LANES - 1) // LANES * LANES * 4
    several = call.task_rows > BLOCK_ROWS
    for panel in range(low // PANEL_KEYS, (high + PANEL_KEYS - 1) // PANEL_KEYS):
        place = scratch + call.at_panels
        if several:
            place += panel * PANEL_KEYS * pairs * 4
        if not several or load_int64(packed, panel) == 0:
            pack_pairs(tag, call, segment * SEGMENT_KEYS + panel * PANEL_KEYS, place, scratch)
            store_int64(packed, panel, 1)
        first = max(low, panel * PANEL_KEYS)
        vectors = (min(high, (panel + 1) * PANEL_KEYS) - first + LANES - 1) // LANES
        place += (first - panel * PANEL_KEYS) * 4
        group = rows_at_once(PAIR, rows, vectors)
        groups = (rows + group - 1) // group
        score_columns(
            tag, PAIR, None, group, groups, queries, query_stride, place, PANEL_KEYS * 4,
            scores + first * 4, SCORE_STRIDE * 4, pairs, vectors, False, place, 0,
        )  # fmt: skip


# --- weights and values --------------------------------------------------------------------------


@device
def normalise_pairs(tag, call, scores, low, high, row_max, factor, least):
    """As `normalise.normalise_row`; weight j goes, rounded, to the j-th half of the row.

    What the rounding took off the sum goes behind the row.
    """
    maximum, wide, lowest = splat(row_max), splat(factor), splat(least)
    exact = total = splat(cast(tag, 0.0))
    for column in range(low, high, LANES):
        weight = exp2_product(load(tag, scores + 4 * column) - maximum, wide, lowest)
        exact = exact + weight
        total = total + store_narrow(scores + BYTES * column, weight)
    row_sum = lane_sum(exact)
    store_scalar(scores + _CORRECTION, row_sum / lane_sum(total))
    return row_sum


@device
def normalise_pairs_apart(tag, call, scores, low, high, row_max, factor, least):
    """As `normalise.normalise_apart`, from the weights before they are rounded."""
    maximum, wide, lowest = splat(row_max), splat(factor), splat(least)
    zero = splat(cast(tag, 0.0))
    total = zero
    for column in range(low, high, LANES):
        weight = exp2_product(load(tag, scores + 4 * column) - maximum, wide, lowest)
        total = total + select_equal(weight, cast(tag, 1.0), zero, weight)
    row_sum = normalise_pairs(tag, call, scores, low, high, row_max, factor, least)
    rest = row_sum - cast(tag, 1.0)
    if row_sum < cast(tag, 2.0):
        rest = lane_sum(total)
    return row_sum, rest


@device
def zero_pairs(tag, call, scores, low, high):
    """Weights of a row that sees no key of the segment."""
    zero = splat(cast(tag, 0.0))
    for column in range(low, high, LANES):
        store_narrow(scores + BYTES * column, zero)
    store_scalar(scores + _CORRECTION, cast(tag, 1.0))


@device
def correct_sums(tag, call, rows, result, scratch):
    """Bring the outputs of a block from the sums of rounded weights to those of the exact ones."""
    width = (call.value_features + LANES - 1) // LANES * LANES * 4
    for r in range(rows):
        scores = scratch + call.at_scores + r * SCORE_STRIDE * 4
        factor = splat(load_scalar(tag, scores + _CORRECTION))
        for place in range(result + r * width, result + (r + 1) * width, 4 * LANES):
            store(place, load(tag, place) * factor)


@device
def stage_pairs(tag, call, first, count, column, columns, target, stride):
    """As `places.stage_values`: pairs of keys, the first one even; `stride` is that of one key."""
    features = min(columns, call.value_features - column)
    step, row_stride = call.value_feature, call.value_row
    base, pages = call.entry_value, call.entry_value_pages
    for r in range(0, count, 2):
        a = row_place(call, base, pages, row_stride, first + r)
        b = row_place(call, base, pages, row_stride, first + min(r + 1, count - 1))
        a, b = a + column * step, b + column * step
        place, e = target + r * stride, 0
        if step == BYTES and call.value_code == BFLOAT and r + 1 < count:
            while e + LANES <= features:
                store_interleaved(place + 4 * e, a + BYTES * e, b + BYTES * e)
                e += LANES
        while e < features:
            copy_half(call.value_code, a + e * step, place + 4 * e)
            if r + 1 < count:
                copy_half(call.value_code, b + e * step, place + 4 * e + BYTES)
            else:
                store_scalar(place + 4 * e + BYTES, HALF)
            e += 1
        while e % LANES:
            store_scalar(place + 4 * e, np.uint32(0))
            e += 1


@device
def place_pairs(tag, call, segment, low, high, scratch):
    """As `places.place_values`."""
    stride = (call.value_features + LANES - 1) // LANES * LANES * BYTES
    packed = scratch + call.at_values
    for chunk in range(SEGMENT_KEYS // FUSE_KEYS + 1):
        store_int64(scratch + call.at_chunks, chunk, packed + chunk * FUSE_KEYS * stride)
    if call.value_way == VALUES_STAGED:
        first, columns = segment * SEGMENT_KEYS + low, call.value_features
        stage_pairs(tag, call, first, high - low, 0, columns, packed + low * stride, stride)
    return stride


@device
def fuse_small_pairs(tag, call, segment, rows, low, high, begin, block, scratch):
    """As `decode_small.fuse_decode_small`."""
    stride, c_stride = call.value_row, call.value_features * 4
    first = low
    while first < high:
        keys = min(high, (first // FUSE_KEYS + 1) * FUSE_KEYS) - first
        b, later = chunk_of_values(call, segment * SEGMENT_KEYS + first)
        a = scratch + call.at_scores + first * BYTES
        for vector in range(0, call.value_features // LANES, STRIP):
            offset = vector * LANES * BYTES
            fetch, fetch_stride = strip_ahead(call, later, offset, keys)
            small_pair_fused(
                DECODE_ROWS if rows > 1 else 1, a, SCORE_STRIDE * 4, b + offset, stride,
                block + vector * LANES * 4, c_stride, keys, first > begin, fetch, fetch_stride,
            )  # fmt: skip
        first += keys


@device
def fuse_pairs(tag, call, segment, rows, low, high, begin, values, value_stride, block, scratch):
    """As `normalise.fuse_listed`."""
    scores, score_stride = scratch + call.at_scores, SCORE_STRIDE * 4
    vectors = (call.value_features + LANES - 1) // LANES
    block_stride = vectors * LANES * 4
    late = call.value_way == VALUES_LATE
    first = low
    while first < high:
        keys = min(high, (first // FUSE_KEYS + 1) * FUSE_KEYS) - first
        b = load_int64(values, first // FUSE_KEYS) + first % FUSE_KEYS * value_stride
        for start in range(0, vectors, 4):
            count = min(vectors - start, 4)
            offset = start * LANES * 4
            strip, strip_stride = b + offset, value_stride
            if late:
                strip, strip_stride = load_int64(values, 0), count * LANES * BYTES
                key, columns = segment * SEGMENT_KEYS + first, count * LANES
                stage_pairs(tag, call, key, keys, start * LANES, columns, strip, strip_stride)
            group = rows_at_once(PAIR, rows, count)
            groups = 1
            if all_asked(call, scratch):
                groups = (rows + group - 1) // group
            for row in range(0, rows, group * groups):
                fetch, fetch_stride = next_lines(call, scratch)
                a = scores + row * score_stride + first * BYTES
                c = block + row * block_stride + offset
                product_columns(
                    PAIR, group, groups, a, score_stride, strip, 2 * strip_stride, c, block_stride,
                    (keys + 1) // 2, FUSE_KEYS, count, first > begin, False, fetch, fetch_stride,
                )  # fmt: skip
        first += keys


@device
def fuse_visible_pairs(
    tag, call, scores, low, high, row_max, factor, values, value_stride, width, target
):
    """As `normalise.fuse_visible_row`, by the dot too."""
    wide, lowest = splat(factor), splat(exp2_lowest(factor))
    zero = splat(cast(tag, 0.0))
    for offset in range(0, width, LANES * 4):
        total = chain = zero
        for column in range(low, high, 2):
            if column % FUSE_KEYS == 0:
                total, chain = total + chain, zero
            first, second = load_scalar(tag, scores + 4 * column), cast(tag, -np.inf)
            if column + 1 < high:
                second = load_scalar(tag, scores + 4 * column + 4)
            weight, other, taken = zero, zero, 0
            if first != -np.inf:
                weight, taken = exp2_product(splat(first - row_max), wide, lowest), 0xFFFF
            if second != -np.inf:
                other, taken = exp2_product(splat(second - row_max), wide, lowest), taken | _SECOND
            if taken:
                place = load_int64(values, column // FUSE_KEYS) + offset
                place += column % FUSE_KEYS * value_stride
                chain = dot_of_pair(chain, weight, other, place, taken)
        store(target + offset, total + chain)


PAIRS = VariantSteps(
    name="pairs",
    tag=np.float32(0),
    features="avx512bf16",
    scale_row=scale_pairs,
    narrow_query=narrow_pairs,
    score_packed=score_pairs,
    score_decode=never_scores,
    score_decode_small=score_small_pairs,
    query_element=query_half,
    panels_stay=panels_replaced,
    normalise_row=normalise_pairs,
    normalise_apart=normalise_pairs_apart,
    zero_columns=zero_pairs,
    place_values=place_pairs,
    stage_values=stage_pairs,
    fuse_listed=fuse_pairs,
    fuse_decode_small=fuse_small_pairs,
    fuse_visible_row=fuse_visible_pairs,
    settle_sums=correct_sums,
)

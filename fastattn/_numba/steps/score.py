"""Score, shape and reveal: one block of rows against the keys of one segment.

A block holds at most 24 rows and the columns `low` to `high` of one segment (`low` a multiple of
sixteen), in scratch rows `SCORE_STRIDE` apart.
"""

import numpy as np

from fastattn._core.constants import (
    BLOCK_ROWS,
    FEATURE_CHAIN,
    FEATURE_RUN,
    PANEL_KEYS,
    SCORE_STRIDE,
    SEGMENT_KEYS,
    TILE_ROWS,
)

from ..compiler.compile import device
from ..compiler.native import load_int64, store_int64
from ..machine.elementary import tanh_product
from ..machine.emit import LANES
from ..machine.memory import load, load_as, load_scalar, native_code, store, store_scalar
from ..machine.simd import (
    absolute,
    cast,
    fma,
    item_size,
    keep_lanes,
    lane_floats,
    larger,
    largest_finite,
    select_above,
    select_bytes,
    select_equal,
    select_same,
    splat,
    tile_width,
)
from ..machine.sums import end_run, room_for_sums, run_target
from ..machine.tile import distance_tile, product_tile
from ..operands.places import lines_ahead, pack_entry_panel
from ..operands.record import BOOL_MASK, EUCLIDEAN, FLOAT_MASK, factors_of


@device
def rows_at_once(tag, rows, vectors):
    """How many rows `product_columns` takes of `rows`: one, four, six or eight.

    Four where that leaves fewer idle, if it takes all columns four vectors at a time. Eight where
    one or two vectors leave registers and steps of the multipliers free, if that saves a tile.
    """
    fours, sixes = (rows + 3) // 4 * 4, (rows + 5) // 6 * 6
    if rows == 1:
        return 1
    if vectors <= 2 and tile_width(tag) >= 4 and (rows + 7) // 8 < (rows + 5) // 6:
        return 8
    return 4 if fours < sixes and tile_width(tag) >= 4 and vectors % 4 == 0 else 6


@device
def product_columns(
    tag, rows, groups, a, a_stride, b, b_stride, c, c_stride, depth, chain, vectors, accumulate,
    whole, fetch, fetch_stride,
):  # fmt: skip
    """`groups` of `rows` (see `rows_at_once`) times any number of vectors, in the widest tiles.

    Their sums are cut in chains of `chain` steps.

    Beside it cache lines are asked for, a line a step or a row of B a step (`whole`), from `fetch`
    on, `fetch_stride` apart.
    """
    step = LANES * item_size(tag)
    width = tile_width(tag)
    wide = 1
    while vectors > 0:
        if rows == 1 and vectors >= 4:
            wide = 4
            product_tile(
                tag, 1, 4, 1, a, a_stride, b, b_stride, c, c_stride, depth, chain, groups,
                accumulate, fetch, fetch_stride,
            )  # fmt: skip
        elif rows == 1:
            wide = 1
            product_tile(
                tag, 1, 1, 1, a, a_stride, b, b_stride, c, c_stride, depth, chain, groups,
                accumulate, fetch, fetch_stride,
            )  # fmt: skip
        elif rows == 4:
            wide = 4
            if whole:
                product_tile(
                    tag, 4, 4, 1, a, a_stride, b, b_stride, c, c_stride, depth, chain, groups,
                    accumulate, fetch, fetch_stride,
                )  # fmt: skip
            else:
                product_tile(
                    tag, 4, 4, 0, a, a_stride, b, b_stride, c, c_stride, depth, chain, groups,
                    accumulate, fetch, fetch_stride,
                )  # fmt: skip
        elif rows == 8 and vectors == 2:
            wide = 2
            product_tile(
                tag, 8, 2, 0, a, a_stride, b, b_stride, c, c_stride, depth, chain, groups,
                accumulate, fetch, fetch_stride,
            )  # fmt: skip
        elif rows == 8:
            wide = 1
            product_tile(
                tag, 8, 1, 0, a, a_stride, b, b_stride, c, c_stride, depth, chain, groups,
                accumulate, fetch, fetch_stride,
            )  # fmt: skip
        elif width >= 4 and vectors >= 4:
            wide = 4
            if whole:
                product_tile(
                    tag, 6, 4, 1, a, a_stride, b, b_stride, c, c_stride, depth, chain, groups,
                    accumulate, fetch, fetch_stride,
                )  # fmt: skip
            else:
                product_tile(
                    tag, 6, 4, 0, a, a_stride, b, b_stride, c, c_stride, depth, chain, groups,
                    accumulate, fetch, fetch_stride,
                )  # fmt: skip
        elif width >= 4 and vectors == 3:
            wide = 3
            product_tile(
                tag, 6, 3, 0, a, a_stride, b, b_stride, c, c_stride, depth, chain, groups,
                accumulate, fetch, fetch_stride,
            )  # fmt: skip
        elif width >= 2 and vectors >= 2:
            wide = 2
            product_tile(
                tag, 6, 2, 0, a, a_stride, b, b_stride, c, c_stride, depth, chain, groups,
                accumulate, fetch, fetch_stride,
            )  # fmt: skip
        else:
            wide = 1
            product_tile(
                tag, 6, 1, 0, a, a_stride, b, b_stride, c, c_stride, depth, chain, groups,
                accumulate, fetch, fetch_stride,
            )  # fmt: skip
        vectors -= wide
        b += wide * step
        c += wide * step
        if whole:
            fetch += wide * step


@device
def _score_run(
    tag, kind, factor, rows, groups, a, a_stride, b, b_stride, c, c_stride, depth, vectors,
    whole, fetch, fetch_stride,
):  # fmt: skip
    if factor is None:
        product_columns(
            kind, rows, groups, a, a_stride, b, b_stride, c, c_stride, depth, FEATURE_CHAIN,
            vectors, False, whole, fetch, fetch_stride,
        )  # fmt: skip
    else:
        for row in range(0, groups * rows, rows):
            here, there = a + row * a_stride, c + row * c_stride
            for o in range(0, vectors * LANES * item_size(tag), LANES * item_size(tag)):
                distance_tile(
                    tag, 6, factor, here, a_stride, b + o, b_stride, there + o, c_stride, depth
                )  # fmt: skip


@device
def _score_runs(
    tag, kind, factor, rows, a, a_stride, b, b_stride, c, c_stride, depth, vectors, whole,
    fetch, fetch_stride,
):  # fmt: skip
    item = item_size(tag)
    width = vectors * LANES * item
    room = room_for_sums()
    for first in range(0, depth, FEATURE_RUN):
        stop = min(first + FEATURE_RUN, depth)
        _score_run(
            tag, kind, factor, rows, 1, a + first * item, a_stride, b + first * b_stride, b_stride,
            run_target(room, first), width, stop - first, vectors, whole,
            fetch + first * fetch_stride, fetch_stride,
        )  # fmt: skip
        end_run(tag, room, rows, width, depth, stop, c, c_stride)


@device
def score_columns(
    tag, kind, factor, rows, groups, a, a_stride, b, b_stride, c, c_stride, depth, vectors,
    whole, fetch, fetch_stride,
):  # fmt: skip
    """Scores of `groups` of `rows` queries (see `rows_at_once`) and up to a panel of keys.

    `kind` tells the elements of both, if not the tag's own. Distances, their differences times
    `factor`, are of six rows; None means products, beside which
    lines of the cache are asked for as in `product_columns`.
    """
    if depth <= FEATURE_RUN:
        _score_run(
            tag, kind, factor, rows, groups, a, a_stride, b, b_stride, c, c_stride, depth, vectors,
            whole, fetch, fetch_stride,
        )  # fmt: skip
        return
    for row in range(0, groups * rows, rows):
        _score_runs(
            tag, kind, factor, rows, a + row * a_stride, a_stride, b, b_stride, c + row * c_stride,
            c_stride, depth, vectors, whole, fetch, fetch_stride,
        )  # fmt: skip


@device
def score_packed(tag, call, segment, queries, rows, low, high, scratch):
    """Steps pack and score against panels of packed keys, see `blocks.score_block`.

    Packs the panels it needs that no block of this task has packed before (a flag a panel tells);
    a task of one block has all its panels take turns in one place, which stays in the nearest
    cache. Requires scratch for whole groups of six rows.
    """
    item = item_size(tag)
    scores, packed = scratch + call.at_scores, scratch + call.at_packed
    query_stride = (call.features + LANES - 1) // LANES * LANES * item
    panel_bytes = PANEL_KEYS * call.features * item
    several = call.task_rows > BLOCK_ROWS
    for panel in range(low // PANEL_KEYS, (high + PANEL_KEYS - 1) // PANEL_KEYS):
        place = scratch + call.at_panels
        if several:
            place += panel * panel_bytes
        if not several or load_int64(packed, panel) == 0:
            pack_entry_panel(tag, call, segment * SEGMENT_KEYS + panel * PANEL_KEYS, place, scratch)
            store_int64(packed, panel, 1)
        first = max(low, panel * PANEL_KEYS)
        vectors = (min(high, (panel + 1) * PANEL_KEYS) - first + LANES - 1) // LANES
        place += (first - panel * PANEL_KEYS) * item
        group = rows_at_once(tag, rows, vectors)
        if call.metric == EUCLIDEAN:
            group = TILE_ROWS
        groups = (rows + group - 1) // group
        c = scores + first * item
        if call.metric == EUCLIDEAN:
            factor = cast(tag, factors_of(call, 0).difference_factor)
            score_columns(
                tag, tag, factor, group, groups, queries, query_stride, place, PANEL_KEYS * item, c,
                SCORE_STRIDE * item, call.features, vectors, False, place, 0,
            )  # fmt: skip
        else:
            fetch, fetch_stride, whole = place, 0, False
            if not several:
                # Keys that come straight from memory come while others are scored, too. Two groups
                # have too few steps to ask for a line in each.
                fetch, fetch_stride = lines_ahead(call, segment * SEGMENT_KEYS + panel * PANEL_KEYS)
                whole = groups <= 2
                fetch_stride *= 4 if whole else 1
            score_columns(
                tag, tag, None, group, groups, queries, query_stride, place, PANEL_KEYS * item, c,
                SCORE_STRIDE * item, call.features, vectors, whole, fetch, fetch_stride,
            )  # fmt: skip


@device
def shape_row(tag, call, factors, scores, low, high):
    """Step shape: what the operands did not take of scale, and softcap; columns low to high."""
    item = item_size(tag)
    rest = splat(cast(tag, factors.rest))
    first = splat(cast(tag, factors.power_first))
    second = splat(cast(tag, factors.power_second))
    cap = splat(cast(tag, call.softcap))
    slope = splat(cast(tag, 2.8853900817779268 / call.softcap))
    for place in range(scores + low * item, scores + high * item, LANES * item):
        score = load(tag, place) * first * second * rest
        if call.softcap > 0.0:
            score = tanh_product(score, slope) * cap
        store(place, score)


@device
def largest_cosine(tag, factors):
    """1, times the power of two that goes onto the query."""
    return cast(tag, factors.query_first) * cast(tag, factors.query_second)


@device
def clamp_row(tag, most, scores, low, high):
    """Keep one row's cosines, columns low to high, within plus and minus `most`.

    Rounding takes some beyond, where an arc cosine is NaN. NaN stays NaN.
    """
    item = item_size(tag)
    upper = absolute(splat(most))
    lower = splat(cast(tag, 0.0)) - upper
    for place in range(scores + low * item, scores + high * item, LANES * item):
        score = larger(lower, load(tag, place))
        store(place, select_above(score, upper, upper, score))


@device
def mask_row(tag, call, mask, scores, low, high):
    """Steps shape and reveal by an array: add a float mask, hide what a bool mask hides.

    `mask` is the address of the mask's element for column 0; only columns low to high are read.
    """
    item = item_size(tag)
    hidden = cast(tag, -float("inf"))
    if call.mask_kind == BOOL_MASK and call.mask_key == 1:
        whole = low + (high - low) // LANES * LANES
        for column in range(low, whole, LANES):
            place = scores + column * item
            store(place, select_bytes(mask + column, load(tag, place), hidden))
        low = whole
    elif (
        call.mask_kind == FLOAT_MASK
        and call.mask_key == item
        and call.mask_code == native_code(tag)
    ):
        whole = low + (high - low) // LANES * LANES
        for column in range(low, whole, LANES):
            place = scores + column * item
            bias = load(tag, mask + column * item)
            score = load(tag, place) + bias
            store(place, select_equal(bias, hidden, bias, score))
        low = whole
    for column in range(low, high):
        place = scores + column * item
        bias = load_as(np.float64(0), call.mask_code, mask + column * call.mask_key)
        if call.mask_kind == BOOL_MASK:
            if bias == 0.0:
                store_scalar(place, hidden)
        elif bias == -np.inf:
            store_scalar(place, hidden)
        else:
            # A finite float64 that float32 cannot hold stays finite: it must not hide its key.
            if abs(bias) < np.inf:
                bias = min(max(bias, -largest_finite(tag)), largest_finite(tag))
            store_scalar(place, load_scalar(tag, place) + cast(tag, bias))


@device
def bias_row(tag, scores, low, high, distance, slope):
    """Step shape by ALiBi: subtract slope times distance from the columns low to high.

    `distance` is the query's position less the key's of column 0. A hidden score stays hidden.
    """
    item = item_size(tag)
    hidden = cast(tag, -np.inf)
    steepness = splat(cast(tag, 0.0) - slope)
    for column in range(low, high, LANES):
        place = scores + column * item
        score = load(tag, place)
        away = absolute(splat(cast(tag, distance - column)) - lane_floats(tag))
        store(place, select_equal(score, hidden, score, fma(steepness, away, score)))


@device
def documents_row(tag, scores, low, high, query_id, key_ids):
    """Step reveal by documents: hide columns low to high whose id differs from the query's."""
    item = item_size(tag)
    hidden = cast(tag, -np.inf)
    whole = low + (high - low) // LANES * LANES
    for column in range(low, whole, LANES):
        place = scores + column * item
        store(place, select_same(key_ids + 8 * column, query_id, load(tag, place), hidden))
    for column in range(whole, high):
        if load_int64(key_ids, column) != query_id:
            store_scalar(scores + column * item, hidden)


@device
def reveal_row(tag, scores, low, high, begin, end):
    """Step reveal by range: hide columns of low to high that lie outside begin to end."""
    item = item_size(tag)
    hidden = cast(tag, -float("inf"))
    if begin > low:
        for column in range(low, min(begin, high), LANES):
            place = scores + column * item
            store(place, keep_lanes(load(tag, place), begin - column, LANES, hidden))
    if end < high:
        first = low + max(0, end - low) // LANES * LANES
        for column in range(first, high, LANES):
            place = scores + column * item
            store(place, keep_lanes(load(tag, place), 0, end - column, hidden))

"""Scores of few rows against keys read where they lie, transposed in registers and never packed.

A panel of packed keys pays where many rows read it. One row spends as long on storing and loading
the panel as on its scores. Here four columns of sixteen keys become four vectors, meet the rows at
once and are forgotten. Each score is the same chains of fused multiply-adds as those of the tile.
"""

from fastattn._core.constants import (
    DECODE_ROWS,
    FEATURE_RUN,
    PAGE_KEYS,
    SCORE_STRIDE,
    SEGMENT_KEYS,
)

from ..compiler.compile import device
from ..machine.emit import LANES
from ..machine.simd import item_size
from ..machine.sums import end_run, room_for_sums, run_target
from ..machine.tile import score_sixteen
from ..operands.places import copy_last_keys, row_place

# How far ahead keys are asked for, in bytes: they then wait in the nearest cache.
_AHEAD_BYTES = 8192


@device
def keys_from(call, j, segment):
    """Where to begin instead of key j so as to read sixteen keys that exist, or -1.

    Some before the last ones may be read once more, if they are of the same segment and page.
    """
    if j + LANES <= call.keys:
        return j
    j, last = call.keys - LANES, call.keys - 1
    if j < segment * SEGMENT_KEYS:
        return -1
    if call.entry_key_pages != 0 and j // PAGE_KEYS != last // PAGE_KEYS:
        return -1
    return j


@device
def score_decode(tag, call, segment, queries, rows, low, high, scratch):
    """Steps pack and score in one; columns behind the last key hold anything.

    They are hidden before anybody reads them.
    """
    item = item_size(tag)
    start, stride = segment * SEGMENT_KEYS, call.key_row
    query_stride = (call.features + LANES - 1) // LANES * LANES * item
    width = call.features * item
    ahead = max(_AHEAD_BYTES // width // LANES, 1) * LANES
    line_stride, step_stride = 64, 256
    if stride != width:
        line_stride, step_stride = stride, 4 * stride
    for column in range(low, high, LANES):
        j = keys_from(call, start + column, segment)
        fetch = beyond = ahead * stride
        row_stride = stride
        if j < 0:
            # Fewer than sixteen keys of this segment or page.
            j = start + column
            source, row_stride = scratch + call.at_panels, width
            copy_last_keys(call, j, LANES, width, source)
            fetch += source
        elif call.entry_key_pages != 0:
            # Behind a page lies something else.
            source = row_place(call, 0, call.entry_key_pages, stride, j)
            later = min(j + ahead, call.keys - 1) // LANES * LANES
            fetch = row_place(call, 0, call.entry_key_pages, stride, later)
            later = min(j + 2 * ahead, call.keys - 1) // LANES * LANES
            beyond = row_place(call, 0, call.entry_key_pages, stride, later) - fetch
        else:
            source = call.entry_key + j * stride
            fetch += source
        target = scratch + call.at_scores + (j - start) * item
        score_sixteen_runs(
            tag, 1 if rows == 1 else DECODE_ROWS, queries, query_stride, source, row_stride, target,
            call.features, fetch, beyond, line_stride, step_stride,
        )  # fmt: skip


@device
def _score_run(
    tag, rows, a, a_stride, b, b_stride, c, c_stride, depth, fetch, beyond, line_stride, step_stride
):
    if rows == 1:
        score_sixteen(
            tag, 1, a, a_stride, b, b_stride, c, c_stride, depth, fetch, beyond, line_stride,
            step_stride,
        )  # fmt: skip
    else:
        score_sixteen(
            tag, 4, a, a_stride, b, b_stride, c, c_stride, depth, fetch, beyond, line_stride,
            step_stride,
        )  # fmt: skip


@device
def score_sixteen_runs(
    tag, rows, a, a_stride, b, b_stride, c, depth, fetch, beyond, line_stride, step_stride
):  # fmt: skip
    """`score_sixteen` over any number of features, run by run, see `sums`."""
    item = item_size(tag)
    c_stride = SCORE_STRIDE * item
    if depth <= FEATURE_RUN:
        _score_run(
            tag, rows, a, a_stride, b, b_stride, c, c_stride, depth, fetch, beyond, line_stride,
            step_stride,
        )  # fmt: skip
        return
    room, width = room_for_sums(), LANES * item
    # Four steps of sixteen rows without gaps ask for sixteen lines in a row, else for one of each.
    moved = 4 * step_stride if line_stride == 64 else 64
    for first in range(0, depth, FEATURE_RUN):
        stop = min(first + FEATURE_RUN, depth)
        here, there, ahead = a + first * item, b + first * item, fetch + first // LANES * moved
        _score_run(
            tag, rows, here, a_stride, there, b_stride, run_target(room, first), width,
            stop - first, ahead, beyond, line_stride, step_stride,
        )  # fmt: skip
        end_run(tag, room, rows, width, depth, stop, c, c_stride)

"""Few rows against keys and values of a small storage type, read where they lie.

As `score_block` and `fuse_block`, with the bits of both, for what the tiles of `tile_small` read.
"""

import numpy as np

from fastattn._core.constants import (
    DECODE_ROWS,
    FEATURE_RUN,
    FUSE_KEYS,
    SCORE_STRIDE,
    SEGMENT_KEYS,
)

from ..compiler.compile import device
from ..machine.emit import LANES
from ..machine.sums import end_run, room_for_sums, run_target
from ..machine.tile_small import (
    RUN_AHEAD,
    STRIP,
    small_fused,
    small_scores,
)
from ..operands.places import copy_last_keys, row_place, scale_place

# Keys and values are asked for this many rows before their turn.
AHEAD_KEYS = 64
AHEAD_VALUES = 128

# Keys of a score tile.
GROUP_KEYS = 2 * LANES


@device
def group_of_keys(call, j, size, scratch):
    """Where keys j to j + 32 lie, how far apart, and what to ask for meanwhile."""
    pages, stride = call.entry_key_pages, call.key_row
    source = row_place(call, call.entry_key, pages, stride, j)
    fetch = source + AHEAD_KEYS * stride
    if pages != 0:
        # Behind a page lies something else.
        later = min(j + AHEAD_KEYS, call.keys - 1) // GROUP_KEYS * GROUP_KEYS
        fetch = row_place(call, call.entry_key, pages, stride, later)
    if j + GROUP_KEYS > call.keys:
        source, stride = scratch + call.at_panels, size
        copy_last_keys(call, j, GROUP_KEYS, size, source)
    return source, stride, fetch


def runs_of(tile):
    """Make the function that scores two sixteens of keys by a tile, run by run, see `sums`.

    The tile is its own, not an argument: a function that is one is found by its address, which is
    another in every process, so that no kernel could be kept on disk.
    """

    @device
    def score_runs(
        code, rows, source, stride, scales, queries, query_stride, c, depth, size, fetch
    ):  # fmt: skip
        """Scores of keys of `depth` features, or words of them, in `size` bytes."""
        is_run = stride == size
        if depth <= FEATURE_RUN:
            tile(
                code, rows, source, stride, scales, queries, query_stride, c, SCORE_STRIDE * 4,
                size, is_run, fetch,
            )  # fmt: skip
            return
        room, width = room_for_sums(), GROUP_KEYS * 4
        for first in range(0, depth, FEATURE_RUN):
            stop = min(first + FEATURE_RUN, depth)
            skip, count = first * size // depth, (stop - first) * size // depth
            # Where the steps before have come to.
            ahead = fetch + (skip * RUN_AHEAD if is_run else skip)
            tile(
                code, rows, source + skip, stride, scales, queries + 4 * first, query_stride,
                run_target(room, first), width, count, is_run, ahead,
            )  # fmt: skip
            end_run(np.float32(0), room, rows, width, depth, stop, c, SCORE_STRIDE * 4)

    return score_runs


@device
def score_tile(
    code, rows, source, stride, scales, queries, query_stride, c, c_stride, size, is_run, fetch
):  # fmt: skip
    """The tile of halves and int8, which are widened."""
    small_scores(
        code, rows, source, stride, scales, queries, query_stride, c, c_stride, size, is_run, fetch
    )


score_small_runs = runs_of(score_tile)


@device
def score_decode_small(tag, call, segment, queries, rows, low, high, scratch):
    """Steps pack and score for a block of few rows, columns low to high and some around them."""
    size = call.features * call.key_feature
    query_stride = (call.features + LANES - 1) // LANES * LANES * 4
    for column in range(low // GROUP_KEYS * GROUP_KEYS, high, GROUP_KEYS):
        j = segment * SEGMENT_KEYS + column
        source, stride, fetch = group_of_keys(call, j, size, scratch)
        scales = scale_place(call.entry_key_scales, j)
        if j + GROUP_KEYS > call.keys:
            scales = source + GROUP_KEYS * size
        c = scratch + call.at_scores + column * 4
        score_small_runs(
            call.key_code, DECODE_ROWS if rows > 1 else 1, source, stride, scales,
            queries, query_stride, c, call.features, size, fetch,
        )  # fmt: skip


@device
def chunk_of_values(call, j):
    """Where the values of key j and the following ones lie, and those to ask for meanwhile."""
    pages, stride = call.entry_value_pages, call.value_row
    place = row_place(call, call.entry_value, pages, stride, j)
    later = place + AHEAD_VALUES * stride
    if pages != 0:
        # Behind a page lies something else.
        following = min(j + FUSE_KEYS, call.keys - 1) // FUSE_KEYS * FUSE_KEYS
        later = row_place(call, call.entry_value, pages, stride, following)
    return place, later


@device
def strip_ahead(call, later, offset, keys):
    """What a strip of `keys` values, `offset` bytes into their rows, asks for, and the stride.

    Rows without gaps are asked for in the order of memory, each strip's share of them: the machine
    then guesses what is next.
    """
    if call.value_row == call.value_features * call.value_feature:
        return later + offset * keys, STRIP * LANES * call.value_feature
    return later + offset, call.value_row


@device
def fuse_decode_small(tag, call, segment, rows, low, high, begin, block, scratch):
    """Step fuse for a block of few rows, into the output rows at `block`."""
    vectors = call.value_features // LANES
    c_stride = call.value_features * 4
    stride = call.value_row
    first = low
    while first < high:
        keys = min(high, (first // FUSE_KEYS + 1) * FUSE_KEYS) - first
        j = segment * SEGMENT_KEYS + first
        b, later = chunk_of_values(call, j)
        scales = scale_place(call.entry_value_scales, j)
        a = scratch + call.at_scores + first * 4
        for vector in range(0, vectors, STRIP):
            offset = vector * LANES * call.value_feature
            fetch, fetch_stride = strip_ahead(call, later, offset, keys)
            c = block + vector * LANES * 4
            small_fused(
                call.value_code, DECODE_ROWS if rows > 1 else 1, a, SCORE_STRIDE * 4, b + offset,
                stride, scales, c, c_stride, keys, first > begin, fetch, fetch_stride,
            )  # fmt: skip
        first += keys

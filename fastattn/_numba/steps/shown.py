"""What a mask shows to a block of rows, found before any score: what it hides is skipped.

Each sixteen columns of a segment are looked at for all rows of a block. Panels of 64 keys that are
hidden from all of them are neither scored nor fused, and where the mask changes no score it is not
asked again. Weights of hidden keys are 0, so that no bit depends on what is skipped.
"""

import numpy as np

from fastattn._core.constants import BLOCK_ROWS, PANEL_KEYS, SCORE_STRIDE, SEGMENT_KEYS

from ..compiler.compile import device
from ..compiler.native import load_int64, store_int64
from ..machine.emit import LANES
from ..machine.flags import next_run, nonzero_bytes
from ..machine.memory import load, load_as, native_code, store, store_first
from ..machine.simd import cast, item_size, same_lanes, splat
from ..operands.record import BOOL_MASK
from .blocks import BEGIN, END, fuse_block, place_of_row, reveal_block, score_block, slot
from .score_again import score_again
from .spans import segment_span

_ALL_LANES = (1 << LANES) - 1
# The first sixteen of each panel of a segment, a bit each, and all of one panel.
_PANEL = (1 << PANEL_KEYS // LANES) - 1
_FIRST_OF_PANELS = ((1 << SEGMENT_KEYS // LANES) - 1) // _PANEL

# What is known of a block, a word each: its columns low to high; the sixteens of them, a bit each,
# whose panels it sees; and those in which the mask changes scores. As in `record`, not Python's.
LOW, HIGH, SEEN, CHANGED = map(np.int64, range(4))
_WORDS = 4


@device
def span_of(call, scratch, block):
    """Address of what is known of a block of a task, given its first row."""
    return scratch + call.at_spans + 8 * _WORDS * (block // BLOCK_ROWS)


@device
def find_spans(
    tag, call, entry_index, segment, first_row, rows, narrowing, alike, scratch
):  # fmt: skip
    """Find what each block of a task sees of a segment, and the columns that any of them sees."""
    lowest, highest = SEGMENT_KEYS, 0
    for block in range(0, rows, BLOCK_ROWS):
        stop = min(rows, block + BLOCK_ROWS)
        low, high = segment_span(call, segment, first_row, block, stop, narrowing, alike, scratch)
        seen, changed = find_shown(tag, call, segment, first_row, block, stop, low, high)
        while low < high and not seen >> low // LANES & 1:
            low += LANES
        while low < high and not seen >> (high - 1) // LANES & 1:
            high = (high - 1) // LANES * LANES
        span = span_of(call, scratch, block)
        store_int64(span, LOW, low)
        store_int64(span, HIGH, high)
        store_int64(span, SEEN, whole_panels(seen))
        store_int64(span, CHANGED, changed)
        if call.weights:
            hide_weights(
                tag, call, entry_index, segment, first_row, block, stop, low, high, scratch
            )
        if low < high:
            lowest, highest = min(lowest, low), max(highest, high)
    return lowest, highest


@device
def find_shown(tag, call, segment, first_row, first, stop, low, high):
    """Sixteens of columns low to high, a bit each: those that a mask shows to some row of a block.

    And those in which it changes some score.
    """
    start = segment * SEGMENT_KEYS
    seen = changed = 0
    r = first
    while r < stop:
        head, i = place_of_row(call, first_row + r)
        count = min(stop - r, call.queries - i)
        rows = 1 if call.mask_row == 0 else count
        place = call.entry_mask + head * call.mask_head + i * call.mask_row
        place += start * call.mask_key
        for column in range(low, high, LANES):
            here = place + column * call.mask_key
            columns = min(call.keys - start - column, LANES)
            shows, changes = look_at_mask(tag, call, here, rows, columns)
            seen |= shows << column // LANES
            changed |= changes << column // LANES
        r += count
    return seen, changed


@device(inlined=True)
def look_at_mask(tag, call, mask, rows, columns):
    """Whether up to sixteen columns of a mask show a key to some row, and change some score.

    They do where they hide, and where what they add is not 0. (Adding 0 turns a score of -0 into 0,
    which no weight tells apart.)
    """
    hides_only, contiguous = call.mask_kind == BOOL_MASK, False
    if columns == LANES and hides_only:
        contiguous = call.mask_key == 1
    elif columns == LANES and call.mask_code == native_code(tag):
        contiguous = call.mask_key == item_size(tag)
    hidden, zero = splat(cast(tag, -np.inf)), splat(cast(tag, 0.0))
    shows = changes = False
    for _ in range(rows):
        if contiguous and hides_only:
            flags = nonzero_bytes(mask)
            shows |= flags != 0
            changes |= flags != _ALL_LANES
        elif contiguous:
            bias = load(tag, mask)
            shows = shows or not same_lanes(bias, hidden)
            changes = changes or not same_lanes(bias, zero)
        else:
            for column in range(1 if call.mask_key == 0 else columns):
                bias = load_as(np.float64(0), call.mask_code, mask + column * call.mask_key)
                hides = bias == 0.0 if hides_only else bias == -np.inf
                shows |= not hides
                changes |= hides or (not hides_only and bias != 0.0)
        # Nobody looks further where a mask has no tiles.
        if shows and changes:
            break
        mask += call.mask_row
    return shows, changes


@device
def whole_panels(seen):
    """All sixteens of those panels of which some are seen."""
    some = seen | seen >> 1
    return ((some | some >> 2) & _FIRST_OF_PANELS) * _PANEL


@device
def next_seen(seen, column, high):
    """The next columns, from `column` to `high`, of panels that are seen; there are some."""
    first, stop = next_run(seen, column // LANES)
    return max(column, first * LANES), min(high, stop * LANES)


@device
def hide_weights(tag, call, entry_index, segment, first_row, first, stop, low, high, scratch):
    """Hide, where weights will be, what rows see by range, but for the columns low to high."""
    start, item = segment * SEGMENT_KEYS, item_size(tag)
    hidden = splat(cast(tag, -np.inf))
    for r in range(first, stop):
        begin = max(load_int64(slot(call, scratch, BEGIN, r), 0) - start, 0)
        end = min(load_int64(slot(call, scratch, END, r), 0) - start, SEGMENT_KEYS)
        index = entry_index * call.groups_of_heads * call.queries + first_row + r
        row = call.weights + (index * call.keys + start) * item
        for column in range(begin, min(low, end), LANES):
            store_first(row + column * item, hidden, min(low, end) - column)
        for column in range(max(begin, high), end, LANES):
            store_first(row + column * item, hidden, end - column)


@device
def hide_columns(tag, call, rows, low, high, scratch):
    """Hide the scores of a block in some columns, sixteen at a time."""
    item = item_size(tag)
    hidden = splat(cast(tag, -np.inf))
    for r in range(rows):
        row = scratch + call.at_scores + r * SCORE_STRIDE * item
        for place in range(row + low * item, row + high * item, LANES * item):
            store(place, hidden)


@device
def score_shown(tag, call, segment, queries, first_row, block, rows, low, high, alike, scratch):
    """Steps score, shape and reveal: columns low to high, of panels that a mask shows to the block.

    What lies between is hidden.
    """
    span = span_of(call, scratch, block)
    seen, changed = load_int64(span, SEEN), load_int64(span, CHANGED)
    stop = low
    while stop < high:
        skipped = stop
        first, stop = next_seen(seen, stop, high)
        score_block(tag, call, segment, queries, rows, first, stop, scratch)
        if call.enlarged or not alike:
            score_again(tag, call, segment, first_row, block, rows, first, stop, alike, scratch)
        reveal_block(
            tag, call, segment, first_row, block, rows, first, stop, changed, alike, scratch
        )
        if skipped < first:
            # Only now: scores of the last keys may have been written a few columns too early.
            hide_columns(tag, call, rows, skipped, first, scratch)


@device
def fuse_shown(tag, call, segment, block, rows, low, high, values, value_stride, result, scratch):
    """Step fuse: columns low to high, of panels that a mask shows to the block."""
    seen = load_int64(span_of(call, scratch, block), SEEN)
    stop = low
    while stop < high:
        first, stop = next_seen(seen, stop, high)
        fuse_block(
            tag, call, segment, rows, first, stop, low, values, value_stride, result, scratch
        )

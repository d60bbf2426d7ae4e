"""What happens to one block of rows over one segment, in the words of the pipeline.

A block holds at most 24 rows. Its scores stand in scratch rows `SCORE_STRIDE` apart and become
weights in place. `low` (a multiple of sixteen) to `high` are the columns that some row sees.
"""

import numpy as np

from fastattn._core.constants import SCORE_STRIDE, SEGMENT_KEYS

from ..compiler.compile import device
from ..compiler.native import load_int64
from ..machine.elementary import exp2_lowest
from ..machine.emit import LANES
from ..machine.flags import next_run
from ..machine.memory import load, load_scalar, store, store_first, store_scalar
from ..machine.simd import cast, item_size
from ..operands.record import (
    COSINE,
    KEYS_DECODE,
    KEYS_DECODE_SMALL,
    VALUES_DECODE_SMALL,
    factors_of,
)
from ..operands.variant import (
    fuse_decode_small,
    fuse_listed,
    fuse_visible_row,
    normalise_apart,
    normalise_row,
    score_decode,
    score_decode_small,
    score_packed,
    zero_columns,
)
from .normalise import any_nan_in_row, fold_rest, fold_row, row_maximum
from .score import (
    bias_row,
    clamp_row,
    documents_row,
    largest_cosine,
    mask_row,
    reveal_row,
    shape_row,
)

LOG2_E = 1.4426950408889634

# Words of eight bytes, one array a name over the rows of a task. As in `record`, not Python's.
BEGIN, END, EXACT, RUNNING_MAX, RUNNING_SUM, RUNNING_REST = map(np.int64, range(6))
# No columns that a mask has a say in.
UNCHANGED = np.int64(0)


@device
def padded(length):
    """The next multiple of sixteen."""
    return (length + LANES - 1) // LANES * LANES


@device
def slot(call, scratch, name, row):
    """Address of a row's word in the scratch of one worker."""
    return scratch + call.at_rows + 8 * (name * call.task_rows + row)


@device
def segment_state(call, scratch, row):
    """Address of a row's maximum over one segment; its sum and the rest of it stand behind."""
    return scratch + call.at_state + 24 * row


@device
def keeps_rest(call):
    """Whether somebody wants the logarithm of the sums: see `normalise.rest_of_weights`."""
    return call.lse != 0 or call.keeps_rest != 0


@device
def place_of_row(call, row):
    """Query head (of those that read the entry's key head) and query of a row of an entry."""
    if row < call.queries:
        return 0, row
    return divmod(row, call.queries)


@device
def row_factor(tag, factors):
    """What turns score differences into exponents of two."""
    return cast(tag, LOG2_E * factors.late_rest)


@device
def partial_row(call, entry_index, row, segment):
    """Index of a row's partial state of one segment."""
    rows = call.groups_of_heads * call.queries
    return ((entry_index - call.first_entry) * rows + row) * call.segment_tasks + (
        segment - call.first_segment
    )


@device
def visible_span(call, scratch, first, stop):
    """Smallest begin and largest end over rows that see any key; (0, 0) when none does."""
    low, high = call.keys, 0
    for r in range(first, stop):
        begin = load_int64(slot(call, scratch, BEGIN, r), 0)
        end = load_int64(slot(call, scratch, END, r), 0)
        if begin < end:
            low = min(low, begin)
            high = max(high, end)
    return min(low, high), high


@device
def score_block(tag, call, segment, queries, rows, low, high, scratch):
    """Steps pack and score: similarities of a block, columns low to high, before any scale."""
    if call.key_way == KEYS_DECODE_SMALL:
        score_decode_small(tag, call, segment, queries, rows, low, high, scratch)
    elif call.key_way == KEYS_DECODE:
        score_decode(tag, call, segment, queries, rows, low, high, scratch)
    else:
        score_packed(tag, call, segment, queries, rows, low, high, scratch)


@device
def fuse_block(tag, call, segment, rows, low, high, begin, values, value_stride, block, scratch):
    """Step fuse: weights times values, columns low to high, into the output rows at `block`.

    They are added to what stands there, but for the column `begin`, which is the first of all.
    `values` is the address of a list: where the value rows of each 128 keys of the segment begin,
    and those behind it.
    """
    if call.value_way == VALUES_DECODE_SMALL:
        fuse_decode_small(tag, call, segment, rows, low, high, begin, block, scratch)
    else:
        fuse_listed(
            tag, call, segment, rows, low, high, begin, values, value_stride, block, scratch
        )


@device
def reveal_block(tag, call, segment, first_row, block, rows, low, high, changed, alike, scratch):
    """Steps shape and reveal; `changed` are the sixteens of columns that a mask has a say in."""
    high_padded = padded(high)
    changed &= (1 << high_padded // LANES) - (1 << low // LANES)
    biased = changed != 0 or call.alibi != 0 or call.query_ids != 0
    if biased or call.rescaled or call.metric == COSINE:
        shape_block(tag, call, segment, first_row, block, rows, low, high, changed, scratch)
    elif not alike or high < high_padded or begin_of(call, segment, block, scratch) > low:
        for r in range(rows):
            reveal_span(tag, call, segment, block, r, low, high_padded, scratch)


@device
def begin_of(call, segment, row, scratch):
    """The column of a segment from where on a row of the task sees keys."""
    return load_int64(slot(call, scratch, BEGIN, row), 0) - segment * SEGMENT_KEYS


@device
def reveal_span(tag, call, segment, block, r, low, high, scratch):
    """Step reveal by the range of keys that row r of a block sees; columns low to high."""
    begin = begin_of(call, segment, block + r, scratch)
    end = load_int64(slot(call, scratch, END, block + r), 0) - segment * SEGMENT_KEYS
    if begin > low or end < high:
        row = scratch + call.at_scores + r * SCORE_STRIDE * item_size(tag)
        reveal_row(tag, row, low, high, begin, end)


@device
def shape_block(tag, call, segment, first_row, block, rows, low, high, changed, scratch):
    """Steps shape and reveal where scores are not just revealed by ranges of keys."""
    item = item_size(tag)
    start = segment * SEGMENT_KEYS
    high_padded = padded(high)
    first_run = next_run(changed, low // LANES)
    for r in range(rows):
        row = scratch + call.at_scores + r * SCORE_STRIDE * item
        factors = factors_of(call, first_row + block + r)
        if call.metric == COSINE:
            clamp_row(tag, largest_cosine(tag, factors), row, low, high_padded)
        if call.rescaled:
            shape_row(tag, call, factors, row, low, high_padded)
        if changed != 0 or call.alibi != 0 or call.query_ids != 0:
            head, i = divmod(first_row + block + r, call.queries)
            place = call.entry_mask + head * call.mask_head + i * call.mask_row
            first, stop = first_run
            while changed:
                begin, end = first * LANES, min(stop * LANES, high)
                mask_row(tag, call, place + start * call.mask_key, row, begin, end)
                if not changed >> stop:
                    break
                first, stop = next_run(changed, stop)
            if call.alibi:
                slope = load_scalar(tag, call.entry_alibi + head * call.alibi_head)
                position = i + load_int64(call.entry_offsets + head * call.offsets_head, 0)
                bias_row(tag, row, low, high_padded, position - start, slope)
            if call.query_ids:
                own = load_int64(call.entry_query_ids + head * call.query_ids_head, i)
                ids = call.entry_key_ids + head * call.key_ids_head + 8 * start
                documents_row(tag, row, low, high, own, ids)
        reveal_span(tag, call, segment, block, r, low, high_padded, scratch)


@device
def normalise_block(tag, call, entry_index, segment, first_row, block, rows, low, high, scratch):
    """Step normalise: scores become weights; maxima and sums go to the state words."""
    item = item_size(tag)
    high_padded = padded(high)
    factor = row_factor(tag, factors_of(call, first_row + block))
    lowest = exp2_lowest(factor)
    keeping = keeps_rest(call)
    for r in range(rows):
        row = scratch + call.at_scores + r * SCORE_STRIDE * item
        row_max = row_maximum(tag, row, low, high_padded)
        store_scalar(segment_state(call, scratch, r), row_max)
    # In a loop of its own: the maxima of all rows are known, so that no row waits for its own.
    for r in range(rows):
        row = scratch + call.at_scores + r * SCORE_STRIDE * item
        if call.weights:
            # Scores, until `finish_weights` knows the maximum and the sum of the whole row. Here
            # they reach memory while exponentials keep the core busy.
            index = entry_index * call.groups_of_heads * call.queries + first_row + block + r
            target = call.weights + (index * call.keys + segment * SEGMENT_KEYS) * item
            for column in range(low, high, LANES):
                score = load(tag, row + column * item)
                store_first(target + column * item, score, high - column)
        state = segment_state(call, scratch, r)
        row_max = load_scalar(tag, state)
        row_sum = rest = cast(tag, 0.0)
        if row_max == -np.inf:
            zero_columns(tag, call, row, low, high_padded)
        else:
            if call.factors_head != 0:
                factor = row_factor(tag, factors_of(call, first_row + block + r))
                lowest = exp2_lowest(factor)
            if keeping:
                row_sum, rest = normalise_apart(
                    tag, call, row, low, high_padded, row_max, factor, lowest
                )
            else:
                row_sum = normalise_row(tag, call, row, low, high_padded, row_max, factor, lowest)
        store_scalar(state + 8, row_sum)
        store_scalar(state + 16, rest)


@device
def fuse_visible_block(
    tag, call, first_row, block, rows, low, high, values, value_stride, result, scratch
):
    """Fuse again, from scores, the rows whose output holds a NaN: only visible keys take part."""
    item = item_size(tag)
    width = padded(call.value_features) * item
    for r in range(rows):
        target = result + r * width
        row_max = load_scalar(tag, segment_state(call, scratch, r))
        if row_max != -np.inf and any_nan_in_row(tag, target, width):
            fuse_visible_row(
                tag,
                call,
                scratch + call.at_scores + r * SCORE_STRIDE * item,
                low,
                high,
                row_max,
                row_factor(tag, factors_of(call, first_row + block + r)),
                values,
                value_stride,
                width,
                target,
            )


@device
def settle_block(tag, call, entry_index, segment, first_row, block, rows, result, fresh, scratch):
    """Fold the segment's state of each row into the running state, or store it as a partial one.

    Where it is `fresh`, the output is the running one already.
    """
    item = item_size(tag)
    keeping = keeps_rest(call)
    width = padded(call.value_features) * item
    for r in range(rows):
        state = segment_state(call, scratch, r)
        segment_max = load_scalar(tag, state)
        segment_sum, segment_rest = load_scalar(tag, state + 8), load_scalar(tag, state + 16)
        row = result + r * width
        if fresh:
            store_scalar(slot(call, scratch, RUNNING_MAX, block + r), segment_max)
            store_scalar(slot(call, scratch, RUNNING_SUM, block + r), segment_sum)
            store_scalar(slot(call, scratch, RUNNING_REST, block + r), segment_rest)
        elif call.split:
            place = partial_row(call, entry_index, first_row + block + r, segment)
            store_scalar(call.partial_max + place * item, segment_max)
            store_scalar(call.partial_sum + place * item, segment_sum)
            store_scalar(call.partial_rest + place * item, segment_rest)
            for offset in range(0, width, LANES * item):
                store(call.partial_output + place * width + offset, load(tag, row + offset))
        else:
            factor = row_factor(tag, factors_of(call, first_row + block + r))
            max_place = slot(call, scratch, RUNNING_MAX, block + r)
            sum_place = slot(call, scratch, RUNNING_SUM, block + r)
            if keeping:
                rest_place = slot(call, scratch, RUNNING_REST, block + r)
                fold_rest(
                    tag, max_place, sum_place, rest_place, segment_max, segment_sum, segment_rest,
                    factor,
                )  # fmt: skip
            running = scratch + call.at_running + (block + r) * width
            fold_row(
                tag, max_place, sum_place, running, segment_max, segment_sum, row, width, factor
            )

"""The fused attention kernel: pack, score, shape, reveal, normalise, fuse, finish.

A task is a block of rows of one (batch, key head) entry, and its segments of 512 keys; the rows are
all queries of all query heads that read this key head, so grouped heads read each key once. For each
segment the rows go by in blocks of 24: their scores, then weights, stay in the caches nearest to the
core. Where rows are too few to keep every core busy, a task is a block of rows and one segment, and
`fold_partials` folds the segments afterwards, in the same order and with the same bits.
"""

import numpy as np

from fastattn._core.plan import BLOCK_ROWS, PANEL_KEYS, SCORE_STRIDE, SEGMENT_KEYS, TILE_ROWS

from .compile import device, entry
from .elementary import natural_log
from .native import atomic_next, load_int64, store_int64
from .pack import clear_row, normalise_query, pack_matrix, scale_row
from .record import (
    COSINE,
    EUCLIDEAN,
    KEY,
    LENGTHS,
    MASK,
    NO_MASK,
    OFFSETS,
    OUTPUT,
    QUERY,
    VALUE,
    read_record,
)
from .rows import (
    clear_columns,
    correction,
    fold_row,
    fuse_block,
    fuse_visible,
    normalise_row,
    row_has_nan,
    row_maximum,
)
from .scores import mask_row, reveal_row, score_block, shape_row
from .simd import LANES, cast, item_size, load, load_scalar, splat, store, store_scalar

LOG2_E = 1.4426950408889634

# Words of eight bytes, one array a name over the rows of a task.
BEGIN, END, EXACT, RUNNING_MAX, RUNNING_SUM = range(5)


@device
def padded(length):
    """The next multiple of sixteen."""
    return (length + LANES - 1) // LANES * LANES


@device
def slot(call, scratch, name, row):
    """Address of a row's word in the scratch of one worker."""
    return scratch + call.at_rows + 8 * (name * call.task_rows + row)


@device
def operand_offset(call, operand, entry_index):
    """Byte offset of one entry in an operand with any batch strides."""
    offset = 0
    rest = entry_index
    for axis in range(call.entry_rank - 1, -1, -1):
        size = load_int64(call.entry_shape, axis)
        offset += rest % size * load_int64(call.entry_strides, operand * call.entry_rank + axis)
        rest //= size
    return offset


@device
def prepare_rows(tag, call, entry_index, first_row, rows, scratch):
    """Step pack for queries, and each row's visible key range, in keys of this call."""
    item = item_size(tag)
    width = padded(call.features)
    query = call.query + operand_offset(call, QUERY, entry_index)
    lengths = call.lengths + operand_offset(call, LENGTHS, entry_index)
    offsets = call.offsets + operand_offset(call, OFFSETS, entry_index)
    for r in range(rows):
        head, i = divmod(first_row + r, call.queries)
        target = scratch + call.at_query + r * width * item
        pack_matrix(
            tag,
            call.query_code,
            query + head * call.query_head + i * call.query_row,
            0,
            call.query_feature,
            1,
            call.features,
            target,
            0,
        )
        clear_row(tag, target, call.features, width)
        exact = True
        if call.metric == COSINE:
            normalise_query(tag, target, width)
        if call.query_factor != 1.0:
            exact = scale_row(tag, target, width, call.query_factor, call.metric == EUCLIDEAN)
        position = i + load_int64(offsets + head * call.offsets_head, 0)
        length = load_int64(lengths + head * call.lengths_head, 0)
        begin = max(0, position - call.left)
        end = min(length, position + call.right + 1)
        begin = min(max(begin, 0), call.keys)
        end = max(min(end, call.keys), begin)
        store_int64(slot(call, scratch, BEGIN, r), 0, begin)
        store_int64(slot(call, scratch, END, r), 0, end)
        store_int64(slot(call, scratch, EXACT, r), 0, exact)
        store_scalar(slot(call, scratch, RUNNING_MAX, r), cast(tag, -np.inf))
        store_scalar(slot(call, scratch, RUNNING_SUM, r), cast(tag, 0.0))
    # The tile reads whole groups of six rows.
    whole = (rows + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    clear_row(tag, scratch + call.at_query, rows * width, whole * width)


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
def reveal_block(tag, call, key, mask, segment, first_row, block, rows, low, high, scratch):
    """Steps pack to reveal for one block of rows and the columns low to high of one segment."""
    item = item_size(tag)
    scores = scratch + call.at_scores
    queries = scratch + call.at_query + block * padded(call.features) * item
    packed = scratch + call.at_packed
    high_padded = padded(high)
    score_block(
        tag,
        call,
        key,
        segment,
        queries,
        rows,
        low,
        high,
        scratch + call.at_panels,
        packed,
        scores,
    )
    start = segment * SEGMENT_KEYS
    for r in range(rows):
        row = scores + r * SCORE_STRIDE * item
        exact = load_int64(slot(call, scratch, EXACT, block + r), 0) != 0
        if call.rescaled or not exact:
            shape_row(tag, call, row, low, high_padded, exact)
        begin = load_int64(slot(call, scratch, BEGIN, block + r), 0) - start
        end = load_int64(slot(call, scratch, END, block + r), 0) - start
        if call.mask_kind != NO_MASK:
            head, i = divmod(first_row + block + r, call.queries)
            place = mask + head * call.mask_head + i * call.mask_row + start * call.mask_key
            mask_row(tag, call, place, row, low, high)
        if begin > low or end < high_padded:
            reveal_row(tag, row, low, high_padded, begin, end)


@device
def row_factor(tag, call, exact):
    """What turns score differences into exponents of two."""
    if call.shaped or not exact:
        return cast(tag, LOG2_E)
    return cast(tag, LOG2_E * call.rest)


@device
def attend_block(
    tag,
    call,
    key,
    mask,
    values,
    value_stride,
    segment,
    first_row,
    block,
    rows,
    low,
    high,
    entry_index,
    scratch,
):
    """One block of rows over one segment: leaves the segment's state of each row folded or stored."""
    item = item_size(tag)
    scores = scratch + call.at_scores
    columns = padded(call.value_features)
    width = columns * item
    target = scratch + call.at_block
    high_padded = padded(high)
    reveal_block(tag, call, key, mask, segment, first_row, block, rows, low, high, scratch)
    state = scratch + call.at_state
    for r in range(rows):
        row = scores + r * SCORE_STRIDE * item
        factor = row_factor(tag, call, load_int64(slot(call, scratch, EXACT, block + r), 0) != 0)
        row_max = row_maximum(tag, row, low, high_padded)
        row_sum = cast(tag, 0.0)
        if row_max == -np.inf:
            clear_columns(tag, row, low, high_padded)
        else:
            row_sum = normalise_row(tag, row, low, high_padded, row_max, factor)
        store_scalar(state + 16 * r, row_max)
        store_scalar(state + 16 * r + 8, row_sum)
        if call.weights:
            keep_weights(tag, call, entry_index, first_row + block + r, segment, row, low, high)
            place = scratch + call.at_segment_max
            segments = (call.keys + SEGMENT_KEYS - 1) // SEGMENT_KEYS
            store_scalar(place + 8 * ((block + r) * segments + segment), row_max)
    fuse_block(tag, scores, rows, low, high, values, value_stride, columns, target, width)
    broken = False
    for r in range(rows):
        if row_has_nan(tag, target + r * width, columns):
            broken = True
    if broken:
        reveal_block(tag, call, key, mask, segment, first_row, block, rows, low, high, scratch)
    for r in range(rows):
        segment_max = load_scalar(tag, state + 16 * r)
        segment_sum = load_scalar(tag, state + 16 * r + 8)
        result = target + r * width
        factor = row_factor(tag, call, load_int64(slot(call, scratch, EXACT, block + r), 0) != 0)
        if broken and segment_max != -np.inf and row_has_nan(tag, result, columns):
            fuse_visible(
                tag,
                scores + r * SCORE_STRIDE * item,
                low,
                high,
                segment_max,
                factor,
                values,
                value_stride,
                columns,
                result,
            )
        if call.split:
            place = partial_row(call, entry_index, first_row + block + r, segment)
            store_scalar(call.partial_max + place * item, segment_max)
            store_scalar(call.partial_sum + place * item, segment_sum)
            for offset in range(0, width, LANES * item):
                store(call.partial_output + place * width + offset, load(tag, result + offset))
        else:
            fold_row(
                tag,
                slot(call, scratch, RUNNING_MAX, block + r),
                slot(call, scratch, RUNNING_SUM, block + r),
                scratch + call.at_running + (block + r) * width,
                segment_max,
                segment_sum,
                result,
                columns,
                factor,
            )


@device
def partial_row(call, entry_index, row, segment):
    """Index of a row's partial state of one segment."""
    rows = call.groups_of_heads * call.queries
    return ((entry_index - call.first_entry) * rows + row) * call.segment_tasks + (
        segment - call.first_segment
    )


@device
def keep_weights(tag, call, entry_index, row, segment, weights, low, high):
    """Store a row's unnormalised weights of one segment, for `finish_weights`."""
    item = item_size(tag)
    rows = call.groups_of_heads * call.queries
    start = segment * SEGMENT_KEYS
    target = call.weights + ((entry_index * rows + row) * call.keys + start) * item
    for column in range(low, high):
        store_scalar(target + column * item, load_scalar(tag, weights + column * item))


@device
def finish_weights(tag, call, entry_index, row, segment_max, row_max, row_sum, factor):
    """Step finish for returned weights: one maximum for all segments, divided by the sum."""
    item = item_size(tag)
    rows = call.groups_of_heads * call.queries
    target = call.weights + (entry_index * rows + row) * call.keys * item
    segments = (call.keys + SEGMENT_KEYS - 1) // SEGMENT_KEYS
    for segment in range(segments):
        maximum = load_scalar(tag, segment_max + 8 * segment)
        first = segment * SEGMENT_KEYS
        stop = min(first + SEGMENT_KEYS, call.keys)
        if maximum == -np.inf:
            continue
        power = correction(tag, maximum, row_max, factor)
        for column in range(first, stop):
            place = target + column * item
            weight = load_scalar(tag, place)
            # Zero stays zero: a hidden key has no weight even in a row of NaN.
            if weight != 0.0:
                store_scalar(place, weight * power / row_sum)


@device
def finish_row(tag, call, entry_index, row, row_max, row_sum, running, exact):
    """Step finish: divide by the sum; an empty row gives 0 and -inf. Writes output and lse."""
    item = item_size(tag)
    columns = padded(call.value_features)
    head, i = divmod(row, call.queries)
    empty = row_max == -np.inf
    for offset in range(0, columns * item, LANES * item):
        result = splat(cast(tag, 0.0))
        if not empty:
            result = load(tag, running + offset) / splat(row_sum)
        store(running + offset, result)
    target = call.output + operand_offset(call, OUTPUT, entry_index)
    target += head * call.output_head + i * call.output_row
    if call.output_feature == item:
        whole = call.value_features // LANES * LANES
        for e in range(0, whole, LANES):
            store(target + e * item, load(tag, running + e * item))
    else:
        whole = 0
    for e in range(whole, call.value_features):
        value = load_scalar(tag, running + e * item)
        store_scalar(target + e * call.output_feature, value)
    if call.lse:
        lse = -np.inf
        if not empty:
            lse = natural_log(np.float64(row_sum)) + np.float64(row_max) * lse_factor(call, exact)
        rows = call.groups_of_heads * call.queries
        store_scalar(call.lse + (entry_index * rows + row) * item, cast(tag, lse))


@device
def lse_factor(call, exact):
    """What turns a row's maximum, as scored, into a final score."""
    if call.shaped or not exact:
        return 1.0
    return call.rest


@device
def attend_rows(tag, call, entry_index, first_row, rows, first_segment, stop_segment, scratch):
    """One task: a block of rows over segments first to stop."""
    item = item_size(tag)
    prepare_rows(tag, call, entry_index, first_row, rows, scratch)
    key = call.key + operand_offset(call, KEY, entry_index)
    value = call.value + operand_offset(call, VALUE, entry_index)
    mask = call.mask + operand_offset(call, MASK, entry_index)
    columns = padded(call.value_features)
    if call.split:
        forget_partials(
            tag, call, entry_index, first_row, rows, first_segment, stop_segment, scratch
        )
    elif call.weights:
        forget_segments(tag, call, rows, scratch)
    low, high = visible_span(call, scratch, 0, rows)
    first_segment = max(first_segment, low // SEGMENT_KEYS)
    stop_segment = min(stop_segment, (high + SEGMENT_KEYS - 1) // SEGMENT_KEYS)
    packed = scratch + call.at_packed
    for segment in range(first_segment, stop_segment):
        start = segment * SEGMENT_KEYS
        keys = min(SEGMENT_KEYS, call.keys - start)
        for panel in range(SEGMENT_KEYS // PANEL_KEYS):
            store_int64(packed, panel, 0)
        values = value + start * call.value_row
        value_stride = call.value_row
        if not call.value_in_place:
            values = scratch + call.at_values
            value_stride = columns * item
            pack_matrix(
                tag,
                call.value_code,
                value + start * call.value_row,
                call.value_row,
                call.value_feature,
                keys,
                call.value_features,
                values,
                value_stride,
            )
        for block in range(0, rows, BLOCK_ROWS):
            block_rows = min(rows - block, BLOCK_ROWS)
            low, high = visible_span(call, scratch, block, block + block_rows)
            low = max(low - start, 0) // LANES * LANES
            high = min(high - start, keys)
            if low < high:
                attend_block(
                    tag,
                    call,
                    key,
                    mask,
                    values,
                    value_stride,
                    segment,
                    first_row,
                    block,
                    block_rows,
                    low,
                    high,
                    entry_index,
                    scratch,
                )


@device
def forget_partials(tag, call, entry_index, first_row, rows, first_segment, stop_segment, scratch):
    """Mark partial states as empty before a task fills those that see a key."""
    for r in range(rows):
        for segment in range(first_segment, stop_segment):
            place = partial_row(call, entry_index, first_row + r, segment)
            store_scalar(call.partial_max + place * item_size(tag), cast(tag, -np.inf))
        exact = load_int64(slot(call, scratch, EXACT, r), 0)
        index = (entry_index - call.first_entry) * call.groups_of_heads * call.queries
        store_int64(call.state_exact, index + first_row + r, exact)


@device
def forget_segments(tag, call, rows, scratch):
    """Mark the segment maxima of returned weights as empty."""
    segments = (call.keys + SEGMENT_KEYS - 1) // SEGMENT_KEYS
    for i in range(rows * segments):
        store_scalar(scratch + call.at_segment_max + 8 * i, cast(tag, -np.inf))


@device
def finish_task(tag, call, entry_index, first_row, rows, scratch):
    """Step finish for all rows of a task."""
    item = item_size(tag)
    width = padded(call.value_features) * item
    segments = (call.keys + SEGMENT_KEYS - 1) // SEGMENT_KEYS
    for r in range(rows):
        row_max = load_scalar(tag, slot(call, scratch, RUNNING_MAX, r))
        row_sum = load_scalar(tag, slot(call, scratch, RUNNING_SUM, r))
        exact = load_int64(slot(call, scratch, EXACT, r), 0) != 0
        running = scratch + call.at_running + r * width
        if call.weights and row_max != -np.inf:
            maxima = scratch + call.at_segment_max + 8 * r * segments
            factor = row_factor(tag, call, exact)
            finish_weights(tag, call, entry_index, first_row + r, maxima, row_max, row_sum, factor)
        finish_row(tag, call, entry_index, first_row + r, row_max, row_sum, running, exact)


@device
def attend(tag, call_address, worker):
    """Take tasks until none is left. Whole rows; with `split`, one segment of a block of rows."""
    call = read_record(call_address)
    scratch = call.scratch + worker * call.scratch_stride
    total_rows = call.groups_of_heads * call.queries
    while True:
        task = atomic_next(call_address)
        if task >= call.stop_task:
            return
        segment_task = task % call.segment_tasks
        task //= call.segment_tasks
        entry_index = call.first_entry + task // call.row_tasks
        # Under a causal mask the last rows see most: the long tasks go first.
        first_row = (call.row_tasks - 1 - task % call.row_tasks) * call.task_rows
        rows = min(call.task_rows, total_rows - first_row)
        if call.split:
            segment = call.first_segment + segment_task
            attend_rows(tag, call, entry_index, first_row, rows, segment, segment + 1, scratch)
        else:
            attend_rows(
                tag,
                call,
                entry_index,
                first_row,
                rows,
                call.first_segment,
                call.stop_segment,
                scratch,
            )
            finish_task(tag, call, entry_index, first_row, rows, scratch)


@device
def fold_rows(tag, call, first, stop, scratch):
    """Fold the partial states of rows first to stop into their running states; finish them."""
    item = item_size(tag)
    columns = padded(call.value_features)
    width = columns * item
    total_rows = call.groups_of_heads * call.queries
    for index in range(first, stop):
        row_max, row_sum = call.state_max + index * item, call.state_sum + index * item
        running = call.state_output + index * width
        exact = load_int64(call.state_exact, index) != 0
        factor = row_factor(tag, call, exact)
        if not call.resume:
            store_scalar(row_max, cast(tag, -np.inf))
            store_scalar(row_sum, cast(tag, 0.0))
        for segment in range(call.segment_tasks):
            place = index * call.segment_tasks + segment
            fold_row(
                tag,
                row_max,
                row_sum,
                running,
                load_scalar(tag, call.partial_max + place * item),
                load_scalar(tag, call.partial_sum + place * item),
                call.partial_output + place * width,
                columns,
                factor,
            )
        if not call.suspend:
            entry_index, row = divmod(index, total_rows)
            store_row = scratch + call.at_block
            for offset in range(0, width, LANES * item):
                store(store_row + offset, load(tag, running + offset))
            finish_row(
                tag,
                call,
                call.first_entry + entry_index,
                row,
                load_scalar(tag, row_max),
                load_scalar(tag, row_sum),
                store_row,
                exact,
            )


@device
def fold(tag, call_address, worker):
    """Take blocks of rows until none is left; fold what `attend` left with `split`."""
    call = read_record(call_address)
    scratch = call.scratch + worker * call.scratch_stride
    while True:
        task = atomic_next(call_address)
        if task >= call.stop_task:
            return
        rows = call.entries * call.groups_of_heads * call.queries
        first = task * BLOCK_ROWS
        fold_rows(tag, call, first, min(first + BLOCK_ROWS, rows), scratch)


@entry
def fold_float32(call_address, worker):
    """Fold and finish partial states in float32."""
    fold(np.float32(0), call_address, worker)


@entry
def fold_float64(call_address, worker):
    """Fold and finish partial states in float64."""
    fold(np.float64(0), call_address, worker)


@entry
def attend_float32(call_address, worker):
    """Fused attention in float32."""
    attend(np.float32(0), call_address, worker)


@entry
def attend_float64(call_address, worker):
    """Fused attention in float64."""
    attend(np.float64(0), call_address, worker)

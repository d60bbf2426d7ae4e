"""The fused attention kernel: pack, score, shape, reveal, normalise, fuse, finish.

A task is a block of rows of one (batch, key head) entry, and its segments of 512 keys. The rows of
an entry are all queries of all query heads that read its key head, so grouped heads read each key
once. For each segment the rows go by in blocks of 24: their scores, then weights, stay in the
nearest caches. Where rows are too few to keep every core busy, a task is a block of rows and one
segment, and `fold` folds the segments afterwards, in the same order and with the same bits.
"""

import numpy as np

from fastattn._core.constants import BLOCK_ROWS, PANEL_KEYS, SEGMENT_KEYS, TILE_ROWS

from ..compiler.compile import device, entry
from ..compiler.native import atomic_next, load_int64, store_int64
from ..machine.emit import LANES
from ..machine.memory import load, load_scalar, native_code, prefetch, store, store_scalar
from ..machine.simd import cast, item_size, largest_finite, same_lanes, splat
from ..machine.storage import widen_row
from ..operands.heads import enter_entry, enter_sequence, find_sequence, own_record
from ..operands.pack import clear_row, normalise_query
from ..operands.prefetch import following_task, look_ahead, place_of_task
from ..operands.record import (
    COSINE,
    EUCLIDEAN,
    NO_MASK,
    OUTPUT,
    QUERY,
    VALUES_LATE,
    factors_of,
    operand_offset,
)
from ..operands.variant import (
    narrow_query,
    place_values,
    read_record_of,
    scale_row,
    settle_sums,
    stage_values,
    tag_of,
)
from ..steps.bfloat16_pairs import PAIRS
from ..steps.blocks import (
    BEGIN,
    END,
    EXACT,
    RUNNING_MAX,
    RUNNING_REST,
    RUNNING_SUM,
    UNCHANGED,
    fuse_block,
    fuse_visible_block,
    normalise_block,
    padded,
    partial_row,
    place_of_row,
    reveal_block,
    row_factor,
    score_block,
    settle_block,
    slot,
    visible_span,
)
from ..steps.finish import finish_row, finish_weights, write_output
from ..steps.floats import FLOAT32, FLOAT64
from ..steps.normalise import any_nan_in_row
from ..steps.score_again import measure_queries, score_again
from ..steps.shown import HIGH, LOW, find_spans, fuse_shown, score_shown, span_of
from ..steps.spans import find_documents, segment_span


@device
def prepare_query(tag, call, factors, source, target):
    """Step pack for one query of any layout; whether the exact part of scale went onto it."""
    width = padded(call.features)
    widen_row(tag, call.query_code, source, call.query_feature, call.features, target)
    clear_row(tag, target, call.features, width)
    if call.metric == COSINE:
        normalise_query(tag, target, width)
    if factors.query_first * factors.query_second == 1.0:
        return True
    # Under a cap any score is final: sums on the way to it must not overflow.
    most = np.sqrt(largest_finite(tag)) if call.softcap > 0.0 else np.inf
    always = call.metric == EUCLIDEAN or factors.query_first == 0.0
    return scale_row(tag, target, width, call, factors, always, most)


@device
def query_powers(tag, factors):
    """The power of two of scale that goes onto queries, and its inverse, in one number each."""
    power = factors.query_first * factors.query_second
    return cast(tag, power), cast(tag, 1.0 / power)


@device
def prepare_rows(tag, call, entry_index, first_row, rows, scratch):
    """Step pack for queries, and each row's visible key range.

    Returns whether the rows are alike: they see the same keys, and the exact part of scale went
    onto each of them. Most rows are, and then need no look at each one's words.
    """
    item = item_size(tag)
    width = padded(call.features)
    query = call.query + operand_offset(call, QUERY, entry_index)
    native = call.query_code == native_code(tag) and call.query_feature == item
    native = native and call.metric != COSINE and call.softcap == 0.0 and width == call.features
    words, step = slot(call, scratch, BEGIN, 0), call.task_rows
    head, i = place_of_row(call, first_row)
    power, back = query_powers(tag, factors_of(call, first_row))
    alike = True
    first_begin, first_end = -1, -1
    for r in range(rows):
        source = query + head * call.query_head + i * call.query_row
        target = scratch + call.at_query + r * width * item
        # Both in range: one factor does what `scale_row` does with two.
        exact = native and power * back == 1.0
        if exact:
            wide_power, wide_back = splat(power), splat(back)
            for place in range(0, width * item, LANES * item):
                # The next task's queries mostly lie behind these, and it begins with them.
                prefetch(source + place + rows * width * item)
                value = load(tag, source + place)
                scaled = value * wide_power
                exact &= same_lanes(scaled * wide_back, value)
                store(target + place, scaled)
        if not exact:
            exact = prepare_query(tag, call, factors_of(call, first_row + r), source, target)
            narrow_query(tag, call, target, width)
        position = i + load_int64(call.entry_offsets + head * call.offsets_head, 0)
        length = load_int64(call.entry_lengths + head * call.lengths_head, 0)
        begin = min(max(0, position - call.left), call.keys)
        end = max(min(length, position + call.right + 1, call.keys), begin)
        if r == 0:
            first_begin, first_end = begin, end
        alike &= exact and begin == first_begin and end == first_end
        store_int64(words, BEGIN * step + r, begin)
        store_int64(words, END * step + r, end)
        store_int64(words, EXACT * step + r, exact)
        store_scalar(words + 8 * (RUNNING_MAX * step + r), cast(tag, -np.inf))
        store_scalar(words + 8 * (RUNNING_SUM * step + r), cast(tag, 0.0))
        i += 1
        if i == call.queries:
            head, i = head + 1, 0
            if call.factors_head != 0 and r + 1 < rows:
                power, back = query_powers(tag, factors_of(call, first_row + r + 1))
    # The tile reads whole groups of six rows, or a single one.
    if rows > 1 or call.metric == EUCLIDEAN:
        zero = splat(cast(tag, 0.0))
        whole = (rows + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
        for element in range(rows * width, whole * width, LANES):
            store(scratch + call.at_query + element * item, zero)
    return alike


@device
def forget_partials(tag, call, entry_index, first_row, rows, first_segment, stop_segment):
    """Mark partial states as empty, which this task fills only where a row sees a key."""
    hidden = cast(tag, -np.inf)
    for r in range(rows):
        for segment in range(first_segment, stop_segment):
            place = partial_row(call, entry_index, first_row + r, segment)
            store_scalar(call.partial_max + place * item_size(tag), hidden)


@device
def attend_block(
    tag, call, values, value_stride, entry_index, segment, first_row, block, rows, low, high,
    fresh, alike, scratch,
):  # fmt: skip
    """One block of rows over one segment, from scores to the folded state.

    `fresh`: the segment is the first of a task that folds its own. `alike`: see `prepare_rows`.
    """
    item = item_size(tag)
    queries = scratch + call.at_query + block * padded(call.features) * item
    result = scratch + call.at_block
    if fresh:
        # The first segment's output is the running one: nothing is left to copy.
        result = scratch + call.at_running + block * padded(call.value_features) * item
    repairing = False
    while True:
        if call.mask_kind != NO_MASK:
            score_shown(
                tag, call, segment, queries, first_row, block, rows, low, high, alike, scratch
            )
        else:
            score_block(tag, call, segment, queries, rows, low, high, scratch)
            if call.enlarged or not alike:
                score_again(tag, call, segment, first_row, block, rows, low, high, alike, scratch)
            reveal_block(
                tag, call, segment, first_row, block, rows, low, high, UNCHANGED, alike, scratch
            )
        if repairing:
            if call.value_way >= VALUES_LATE:
                place = load_int64(values, 0) + low * value_stride
                first, columns = segment * SEGMENT_KEYS + low, call.value_features
                stage_values(tag, call, first, high - low, 0, columns, place, value_stride)
            fuse_visible_block(
                tag, call, first_row, block, rows, low, high, values, value_stride, result, scratch
            )
            break
        normalise_block(tag, call, entry_index, segment, first_row, block, rows, low, high, scratch)
        if call.mask_kind != NO_MASK:
            fuse_shown(
                tag, call, segment, block, rows, low, high, values, value_stride, result, scratch
            )
        else:
            fuse_block(
                tag, call, segment, rows, low, high, low, values, value_stride, result, scratch
            )
        # 0 times inf or NaN of a hidden key may have come in. It shows as a NaN, and only then
        # the block is done again with its hidden keys left out.
        if not any_nan_in_row(tag, result, rows * padded(call.value_features) * item):
            break
        repairing = True
    settle_sums(tag, call, rows, result, scratch)
    settle_block(tag, call, entry_index, segment, first_row, block, rows, result, fresh, scratch)


@device
def attend_rows(
    tag, call, entry_index, first_row, rows, first_segment, stop_segment, alike, scratch
):
    """A block of rows over segments first to stop."""
    low, high = visible_span(call, scratch, 0, 1 if alike else rows)
    first_segment = max(first_segment, low // SEGMENT_KEYS)
    stop_segment = min(stop_segment, (high + SEGMENT_KEYS - 1) // SEGMENT_KEYS)
    narrowing = call.query_ids != 0 and call.key_ids_head == 0 and call.weights == 0
    masked = call.mask_kind != NO_MASK
    for segment in range(first_segment, stop_segment):
        if call.task_rows > BLOCK_ROWS:
            for panel in range(SEGMENT_KEYS // PANEL_KEYS):
                store_int64(scratch + call.at_packed, panel, 0)
        if narrowing:
            find_documents(call, segment, scratch)
        if masked:
            low, high = find_spans(
                tag, call, entry_index, segment, first_row, rows, narrowing, alike, scratch
            )
        else:
            low, high = segment_span(call, segment, first_row, 0, rows, narrowing, alike, scratch)
        if low >= high:
            continue
        value_stride = place_values(tag, call, segment, low, high, scratch)
        values = scratch + call.at_chunks
        fresh = segment == first_segment and not call.split
        for block in range(0, rows, BLOCK_ROWS):
            stop = min(rows, block + BLOCK_ROWS)
            if masked:
                span = span_of(call, scratch, block)
                low, high = load_int64(span, LOW), load_int64(span, HIGH)
            elif block > 0 or stop < rows:
                low, high = segment_span(
                    call, segment, first_row, block, stop, narrowing, alike, scratch
                )
            if low < high:
                attend_block(
                    tag, call, values, value_stride, entry_index, segment, first_row, block,
                    stop - block, low, high, fresh, alike, scratch,
                )  # fmt: skip


@device
def finish_rows(tag, call, entry_index, first_row, rows, scratch):
    """Step finish for all rows of a task."""
    width = padded(call.value_features) * item_size(tag)
    head, i = place_of_row(call, first_row)
    plain = call.lse == 0 and call.sinks == 0 and call.weights == 0
    output = call.output + operand_offset(call, OUTPUT, entry_index)
    for r in range(rows):
        row_max = load_scalar(tag, slot(call, scratch, RUNNING_MAX, r))
        row_sum = load_scalar(tag, slot(call, scratch, RUNNING_SUM, r))
        running = scratch + call.at_running + r * width
        if plain:
            target = output + head * call.output_head + i * call.output_row
            write_output(tag, call, row_max, row_sum, running, target)
            i += 1
            if i == call.queries:
                head, i = head + 1, 0
            continue
        factors = factors_of(call, first_row + r)
        rest = load_scalar(tag, slot(call, scratch, RUNNING_REST, r))
        row_sum, share = finish_row(
            tag, call, entry_index, head, i, row_max, row_sum, rest, running, factors.late_rest
        )
        if call.weights:
            index = entry_index * call.groups_of_heads * call.queries + first_row + r
            place = call.weights + index * call.keys * item_size(tag)
            begin = load_int64(slot(call, scratch, BEGIN, r), 0)
            end = load_int64(slot(call, scratch, END, r), 0)
            factor = row_factor(tag, factors)
            finish_weights(tag, call, place, begin, end, row_max, row_sum, share, factor)
        i += 1
        if i == call.queries:
            head, i = head + 1, 0


@device
def attend_task(tag, call, task, scratch):
    """One task: whole rows or, with `split`, one segment of a block of rows."""
    first_segment, stop_segment = call.first_segment, call.stop_segment
    if call.split:
        first_segment += task % call.segment_tasks
        stop_segment = first_segment + 1
    entry_index, first_row = place_of_task(call, task)
    rows = min(call.task_rows, call.groups_of_heads * call.queries - first_row)
    enter_entry(call, entry_index)
    alike = prepare_rows(tag, call, entry_index, first_row, rows, scratch)
    if call.enlarged:
        measure_queries(tag, call, rows, scratch)
    if call.split:
        forget_partials(tag, call, entry_index, first_row, rows, first_segment, stop_segment)
    attend_rows(
        tag, call, entry_index, first_row, rows, first_segment, stop_segment, alike, scratch
    )
    if not call.split:
        finish_rows(tag, call, entry_index, first_row, rows, scratch)


@device(inlined=True)
def attend(variant, call_address, worker):
    """Take bundles of consecutive tasks until none is left.

    Neighbours on one worker read memory in order, which is what prefetching relies on.
    """
    tag = tag_of(variant)
    shared = read_record_of(variant, call_address)
    call = own_record(variant, call_address, worker)
    scratch = shared.scratch + worker * shared.scratch_stride
    sequence = -1
    while True:
        bundle = atomic_next(call_address)
        if bundle >= shared.stop_task:
            break
        first, stop = bundle * call.bundle, min((bundle + 1) * call.bundle, call.tasks)
        if call.ragged:
            first, stop = load_int64(call.borders, bundle), load_int64(call.borders, bundle + 1)
        for task in range(first, stop):
            look_ahead(tag, call, following_task(shared, task, stop), scratch)
            if call.ragged:
                here = find_sequence(shared, sequence, task)
                if here != sequence:
                    enter_sequence(call, shared, here)
                    sequence = here
                task -= load_int64(shared.first_task, here)
            attend_task(tag, call, task, scratch)


@entry
def attend_float32(call_address, worker):
    """Fused attention in float32."""
    attend(FLOAT32, call_address, worker)


@entry
def attend_float64(call_address, worker):
    """Fused attention in float64."""
    attend(FLOAT64, call_address, worker)


@entry(features=PAIRS.features)
def attend_pairs(call_address, worker):
    """Fused attention in float32 of bfloat16 that is multiplied as it is, pair by pair."""
    attend(PAIRS, call_address, worker)

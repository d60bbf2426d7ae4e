"""Softmax, log_softmax and logsumexp along one axis, as a kernel of their own.

Steps: gather (scores of a block, read in place where they can be), maximum, weigh (exponentials
and their sum), settle (rows of inf and NaN), finish (divide or subtract, store). A block is one row
with its keys on the lanes, or rows side by side on the lanes, key after key. Both add in the same
order: sixteen virtual lanes over a segment of 512 keys, the written tree, segments from left to
right. For logarithms the sum is two numbers, that of the maxima and the rest, or what is near 0
would be lost. Rows whose exponentials have factors are done whole, keys on the lanes.

Rows too long for a core's cache, or too few for the cores, are cut into chunks of whole segments:
each step then is a phase of its own over all chunks, with the same bits.
"""

import numpy as np

from fastattn._core.constants import SEGMENT_KEYS
from fastattn._engine import layouts
from fastattn._engine.layouts import (
    FIND_MAX,
    FIND_SUM,
    FINISH,
    LOGSUMEXP_RESULT,
    LOOK_AGAIN,
    SOFTMAX_RESULT,
    WHOLE,
)

from ..compiler.compile import device, entry
from ..compiler.native import store_float64
from ..machine.emit import LANES
from ..machine.memory import (
    load,
    load_as,
    load_first,
    load_scalar,
    native_code,
    store,
    store_first,
    store_scalar,
)
from ..machine.simd import any_nan, cast, first_lane, item_size, keep_lanes, narrowed, splat
from ..operands.record import NO_MASK, operand_offset, reader
from ..operands.tasks import take_tasks
from .gather import gather, gather_factors, score_at
from .near_zero import add_piece
from .softmax_finish import finish_line, finish_logarithms, round_out, turn_out
from .weigh import (
    find_max,
    find_max_sideways,
    weigh,
    weigh_and_finish,
    weigh_apart,
    weigh_sideways,
    weigh_sideways_apart,
)

read_call = reader(layouts.SOFTMAX)
X, MASK, OUTPUT, FACTORS = range(4)


@device
def settle(tag, call, x, mask, scan, fill, row_max, target, target_key):
    """Step settle, for a row whose sum is NaN or whose maximum is not finite.

    Returns what stands for it, after a scan of `scan` keys: -inf (empty), +inf, or NaN. Then writes
    the final values of `fill` keys.
    """
    masked = call.mask_kind != NO_MASK
    hidden, shift = cast(tag, np.nan), row_max
    for step in range(scan + fill):
        k = step
        if step >= scan:
            k = step - scan
            shift = row_max
            if call.operation == SOFTMAX_RESULT:
                shift = cast(tag, np.nan)
                hidden = cast(tag, 0.0 if masked else np.nan)
            elif masked or row_max == np.inf:
                hidden = cast(tag, -np.inf)
        score = score_at(tag, call, x + k * call.x_key, mask + k * call.mask_step)
        if step >= scan:
            value = hidden if score == -np.inf else score - shift
            store_scalar(target + k * target_key, value)
        elif score != score:
            row_max = score
    return row_max


@device
def settle_factors(tag, call, x, mask, factors, keys, max_place, parts, row):
    """Step settle for a row of exponentials with factors: +inf with its sign, NaN, or nothing."""
    seen, infinite, total = False, False, 0.0
    for k in range(keys):
        factor = load_as(np.float64(0), call.factors_code, factors + k * call.factors_key)
        score = np.float64(score_at(tag, call, x + k * call.x_key, mask + k * call.mask_step))
        if factor != 0.0 and score != -np.inf:
            seen = True
            if not (abs(score) < np.inf and abs(factor) < np.inf):
                # Of both signs, or with a NaN among them, the sum is NaN.
                infinite = True
                total += np.inf * factor if score < np.inf else score * factor
    if seen and not infinite:
        total = np.nan  # sums of finite terms that overflow both ways
    largest = np.inf if seen else -np.inf
    store_scalar(max_place, cast(tag, largest))
    store_float64(parts, row, total)
    store_float64(parts, LANES + row, 0.0)


@device(inlined=True)
def weigh_group(tag, call, place, keys, maximum, first, here, count, block, own, scratch):
    """Step weigh for softmax, of up to sixteen rows: exponentials to the block, sums to `own`."""
    keep = call.phase != FIND_SUM
    sums = 0
    if call.phase == FIND_SUM:
        sums = call.sums + first // SEGMENT_KEYS * call.sums_stride + here
    if call.sideways:
        lanes = scratch + call.at_lanes
        stride = call.block_stride
        total = weigh_sideways(
            tag, place, keys, stride, maximum, keep, lanes, sums, call.sums_stride, count
        )
    else:
        weights = block if keep else 0
        ahead = call.x_row if call.phase == WHOLE else 0
        row_max = first_lane(maximum)
        row_sum = weigh(tag, place, keys, row_max, weights, sums, call.sums_stride, ahead)
        total = splat(row_sum)
    if call.phase == FINISH:
        total = load_first(call.state_sum + here, count, cast(tag, 0.0))
    store(own, maximum)
    store(own + LANES * item_size(tag), total)


@device
def weigh_group_apart(tag, call, place, keys, maximum, first, here, count, factors, own, scratch):
    """Step weigh for logarithms, of up to sixteen rows: their sums in two numbers go to scratch.

    The plain sums, which tell rows of NaN, go behind the maxima at `own`.
    """
    item = item_size(tag)
    parts, weights = scratch + call.at_parts, scratch + call.at_weights
    sums = rests = 0
    if call.phase == FIND_SUM:
        offset = first // SEGMENT_KEYS * call.sums_stride + here
        sums, rests = call.sums + offset, call.rests + offset
    if call.phase == FINISH:
        offset = here // item * 8
        store(parts, load_first(call.state_sum + offset, count, 0.0))
        store(parts + LANES * 8, load_first(call.state_rest + offset, count, 0.0))
    elif call.sideways:
        weigh_sideways_apart(
            tag, place, keys, call.block_stride, maximum, weights, scratch + call.at_lanes,
            sums, rests, call.sums_stride, count, parts,
        )  # fmt: skip
    else:
        ahead = call.x_row if call.phase == WHOLE else 0
        at_max, rest = weigh_apart(
            tag, place, keys, first_lane(maximum), factors, weights, sums, rests,
            call.sums_stride, ahead,
        )  # fmt: skip
        store_float64(parts, 0, at_max)
        store_float64(parts, LANES, rest)
    store(own, maximum)
    total = load_first(parts, count, 0.0) + load_first(parts + LANES * 8, count, 0.0)
    store(own + LANES * item, narrowed(tag, total))


@device
def normalise_block(tag, call, entry_index, row, rows, chunk, scratch):
    """All steps of one phase for one block: some rows by one chunk of keys."""
    item = item_size(tag)
    step = LANES * item
    zero = cast(tag, 0.0)
    phase, operation, stride = call.phase, call.operation, call.block_stride
    sideways = call.sideways != 0
    x = call.x + operand_offset(call, X, entry_index) + row * call.x_row
    mask = call.mask + operand_offset(call, MASK, entry_index) + row * call.mask_row
    output = call.output + operand_offset(call, OUTPUT, entry_index) + row * call.output_row
    first = chunk * call.chunk_keys
    keys = min(call.chunk_keys, call.keys - first)
    x += first * call.x_key
    mask += first * call.mask_step
    output += first * call.output_key
    state = (entry_index * call.padded_rows + row) * item
    if phase == LOOK_AGAIN:
        add_piece(tag, call, x, mask, output, rows, state // item, scratch + call.at_lanes)
        return
    near = 0
    if call.near != 0:
        near = call.near + state // item * 8
    maxima = call.maxima + chunk * call.sums_stride + state
    block, stats = scratch + call.at_block, scratch + call.at_stats
    parts, factors = scratch + call.at_parts, 0
    lines, lanes = (keys, rows) if sideways else (1, keys)
    place = x
    if not call.direct:
        gather(tag, call, x, mask, lines, lanes, block, scratch + call.at_turned)
        place = block
    given = call.factors
    if given:
        given += operand_offset(call, FACTORS, entry_index) + row * call.factors_row
        factors = scratch + call.at_factors
        gather_factors(tag, call, given, keys, block, factors)
    source = block if operation == SOFTMAX_RESULT else place
    for group in range(0, rows, LANES):
        count = min(rows - group, LANES)
        here = state + group * item
        own = stats + 2 * group * item
        if phase == WHOLE or phase == FIND_MAX:
            if sideways:
                maximum = find_max_sideways(tag, place + group * item, keys, stride)
            else:
                maximum = splat(find_max(tag, place, keys))
            if phase == FIND_MAX:
                store_first(maxima + group * item, maximum, count)
                continue
        else:
            maximum = load_first(call.state_max + here, count, zero)
        where = place + group * item if sideways else place
        if operation == SOFTMAX_RESULT:
            weigh_group(tag, call, where, keys, maximum, first, here, count, block, own, scratch)
        else:
            weigh_group_apart(
                tag, call, where, keys, maximum, first, here, count, factors, own, scratch
            )
        total = load(tag, own + step)
        doubtful = (maximum - maximum) + (total - total)
        # Behind the last row lies whatever the scratch held.
        if any_nan(keep_lanes(doubtful, 0, count, zero)):
            if settle_rows(tag, call, x, mask, given, group, count, keys, own, block, parts):
                source = block
            maximum, total = load(tag, own), load(tag, own + step)
        if phase == FIND_SUM:
            # From here on the chunk's maximum only tells whether it holds a NaN.
            store_first(maxima + group * item, maximum, count)
            continue
        if operation == SOFTMAX_RESULT:
            store(own, splat(cast(tag, 1.0)) / total)
            store(own + step, splat(zero) - total)
        else:
            finish_logarithms(
                tag, call, x, mask, given, output, near, group, count, own, parts,
                scratch + call.at_lanes,
            )  # fmt: skip
        if not sideways:
            store(own, splat(load_scalar(tag, own)))
            store(own + step, splat(load_scalar(tag, own + step)))
    if phase == FIND_MAX or phase == FIND_SUM or operation == LOGSUMEXP_RESULT:
        return
    rounded = call.output_code != native_code(tag)
    there = call.output_lane == item and not rounded
    target, target_line = block, stride
    if there:
        target, target_line = output, call.output_line
    streamed = there and call.streamed != 0
    stats_step = 2 * step if sideways else 0
    for _ in range(lines):
        finish_line(tag, call, source, lanes, stats, stats_step, target, streamed)
        source += stride
        target += target_line
    if rounded:
        round_out(tag, call, block, rows, keys, scratch, output)
    elif not there:
        turn_out(tag, call, block, rows, keys, scratch + call.at_lanes, output)


@device
def settle_rows(tag, call, x, mask, factors, group, count, keys, own, block, parts):
    """Step settle for some rows of a group: their statistics become those of final values.

    Returns whether it settled any.
    """
    item = item_size(tag)
    found = False
    for r in range(count):
        place = own + r * item
        row_max = load_scalar(tag, place)
        row_sum = load_scalar(tag, place + LANES * item)
        if row_sum == row_sum and abs(row_max) < np.inf:
            continue
        found = True
        if call.factors:
            settle_factors(tag, call, x, mask, factors, keys, place, parts, r)
            continue
        row = group + r
        scan = 0 if call.phase == FINISH else keys
        final = call.operation != LOGSUMEXP_RESULT and call.phase != FIND_SUM
        fill = keys if final else 0
        target = block + row * item
        target_key = call.block_stride if call.sideways else item
        row_max = settle(
            tag,
            call,
            x + row * call.x_row,
            mask + row * call.mask_row,
            scan,
            fill,
            row_max,
            target,
            target_key,
        )
        # log 1 and a shift of 0 leave final values as they are, and so does a division by 1.
        store_scalar(place, cast(tag, 0.0) if final else row_max)
        store_scalar(place + LANES * item, cast(tag, 1.0))
        if call.operation != SOFTMAX_RESULT:
            store_float64(parts, r, 1.0)
            store_float64(parts, LANES + r, 0.0)
    return found


@device(inlined=True)
def normalise_late(tag, call, entry_index, row, pending, scratch):
    """All steps for one row, read in place, but its own finish: the row at `pending` has that.

    Returns where this row is to be stored. Nothing is pending where that is 0.
    """
    x = call.x + operand_offset(call, X, entry_index) + row * call.x_row
    block, stats = scratch + call.at_block, scratch + call.at_stats
    step = LANES * item_size(tag)
    row_max = find_max(tag, x, call.keys)
    if pending:
        row_sum = weigh_and_finish(tag, x, call.keys, row_max, block, stats, pending, call.x_row)
    else:
        row_sum = weigh(tag, x, call.keys, row_max, block, 0, 0, call.x_row)
    store(stats, splat(row_max))
    store(stats + step, splat(row_sum))
    if not abs(row_sum - row_max) < np.inf:
        settle_rows(tag, call, x, call.mask, 0, 0, 1, call.keys, stats, block, 0)
    total = splat(load_scalar(tag, stats + step))
    store(stats, splat(cast(tag, 1.0)) / total)
    store(stats + step, splat(cast(tag, 0.0)) - total)
    return call.output + operand_offset(call, OUTPUT, entry_index) + row * call.output_row


@device(inlined=True)
def normalise_task(tag, call, task, scratch):
    """Some blocks of one phase."""
    pending = 0
    begin = task * call.task_blocks
    for index in range(begin, min(begin + call.task_blocks, call.blocks)):
        block, chunk = divmod(index, call.chunks)
        entry_index, block = divmod(block, call.row_blocks)
        # Blocks side by side begin where lines of the cache do.
        row = block * call.block_rows - call.row_shift
        stop = min(row + call.block_rows, call.rows)
        row = max(row, 0)
        if call.late:
            pending = normalise_late(tag, call, entry_index, row, pending, scratch)
        else:
            normalise_block(tag, call, entry_index, row, stop - row, chunk, scratch)
    if pending:
        block, stats = scratch + call.at_block, scratch + call.at_stats
        finish_line(tag, call, block, call.keys, stats, 0, pending, True)


@device
def normalise(tag, call_address, worker):
    """Take tasks until none is left: some blocks of rows each, or some rows between phases."""
    take_tasks(tag, read_call(call_address), call_address, worker, normalise_task)


@entry
def normalise_float32(call_address, worker):
    """Softmax and its relatives in float32."""
    normalise(np.float32(0), call_address, worker)


@entry
def normalise_float64(call_address, worker):
    """Softmax and its relatives in float64."""
    normalise(np.float64(0), call_address, worker)

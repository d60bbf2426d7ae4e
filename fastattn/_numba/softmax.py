"""Softmax, log_softmax and logsumexp along one axis, as a kernel of their own.

Steps: gather (scores of a block, read in place where they can be), maximum, weigh (exponentials
and their sum), settle (rows of inf and NaN), finish (divide or subtract, store). A block is one row
with its keys on the lanes, or rows side by side on the lanes, key after key. Both add in the same
order: sixteen virtual lanes over a segment of 512 keys, the written tree, segments from left to
right.

Rows too long for a core's cache, or too few for the cores, are cut into chunks of whole segments:
each step then is a phase of its own over all chunks, with the same bits.
"""

import numpy as np

from fastattn._core.plan import SEGMENT_KEYS
from fastattn._engine import layouts
from fastattn._engine.layouts import (
    FIND_MAX,
    FIND_SUM,
    FINISH,
    LOGSUMEXP_RESULT,
    SOFTMAX_RESULT,
    WHOLE,
)

from .compile import device, entry
from .elementary import natural_log
from .emit import LANES
from .halves import (
    add_halves,
    is_half,
    store_number,
    widen_lines,
)
from .memory import (
    load,
    load_as,
    load_first,
    load_scalar,
    native_code,
    prefetch,
    store,
    store_first,
    store_scalar,
)
from .pack import pack_matrix
from .record import FLOAT_MASK, NO_MASK, operand_offset, reader
from .scores import mask_row
from .simd import any_nan, cast, first_lane, item_size, splat
from .softmax_finish import finish_line, round_out, turn_out
from .tasks import take_tasks
from .weigh import find_max, find_max_sideways, weigh, weigh_sideways

read_call = reader(layouts.SOFTMAX)
X, MASK, OUTPUT = range(3)
# Lines that are fetched before their turn.
COPY_AHEAD = 24


@device
def copy_lines(tag, source, source_stride, lines, lanes, target, target_stride):
    """Copy lines that lie too far apart for the machine to fetch them ahead by itself."""
    item = item_size(tag)
    whole = lanes // LANES * LANES
    zero = cast(tag, 0.0)
    for _ in range(lines):
        ahead = source + COPY_AHEAD * source_stride
        for offset in range(0, lanes * item, 64):
            prefetch(ahead + offset)
        for lane in range(0, whole, LANES):
            store(target + lane * item, load(tag, source + lane * item))
        if whole < lanes:
            rest = load_first(source + whole * item, lanes - whole, zero)
            store(target + whole * item, rest)
        source += source_stride
        target += target_stride


@device(inlined=True)
def gather(tag, call, x, mask, lines, lanes, target, turned):
    """Step gather: scale and mask `lines` x `lanes` scores into scratch rows.

    Halves whose keys lie side by side are widened into scratch `turned` before they are turned.
    """
    item = item_size(tag)
    stride = call.block_stride
    if call.sideways and call.x_lane == item and call.x_code == native_code(tag):
        copy_lines(tag, x, call.x_line, lines, lanes, target, stride)
    elif call.x_lane == 2 and is_half(call.x_code):
        widen_lines(tag, call.x_code, x, call.x_line, lines, lanes, target, stride)
    elif call.sideways and call.x_line == 2 and is_half(call.x_code):
        row = lines * item
        widen_lines(tag, call.x_code, x, call.x_lane, lanes, lines, turned, row)
        pack_matrix(tag, native_code(tag), turned, item, row, lines, lanes, target, stride)
    else:
        pack_matrix(tag, call.x_code, x, call.x_line, call.x_lane, lines, lanes, target, stride)
    first, second = splat(cast(tag, call.power_first)), splat(cast(tag, call.power_second))
    rest = splat(cast(tag, call.rest))
    for line in range(lines):
        row = target + line * stride
        if call.scaled:
            for place in range(row, row + lanes * item, LANES * item):
                store(place, load(tag, place) * first * second * rest)
        if call.mask_kind != NO_MASK:
            biases = mask + line * call.mask_line
            done = 0
            if call.mask_kind == FLOAT_MASK and call.mask_key == 2 and is_half(call.mask_code):
                done = add_halves(tag, call.mask_code, biases, row, lanes)
            mask_row(tag, call, biases, row, done, lanes)


@device(inlined=True)
def score_at(tag, call, x, mask):
    """One score, with the arithmetic of `gather`."""
    score = load_as(tag, call.x_code, x)
    if call.scaled:
        score = score * cast(tag, call.power_first) * cast(tag, call.power_second)
        score = score * cast(tag, call.rest)
    if call.mask_kind != NO_MASK:
        bias = load_as(np.float64(0), call.mask_code, mask)
        if call.mask_kind == FLOAT_MASK:
            score = cast(tag, -np.inf if bias == -np.inf else score + bias)
        elif bias == 0.0:
            score = cast(tag, -np.inf)
    return score


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
    maxima = call.maxima + chunk * call.sums_stride + state
    block, stats = scratch + call.at_block, scratch + call.at_stats
    lines, lanes = (keys, rows) if sideways else (1, keys)
    place = x
    if not call.direct:
        gather(tag, call, x, mask, lines, lanes, block, scratch + call.at_turned)
        place = block
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
        total = maximum
        if phase != FINISH or operation == SOFTMAX_RESULT:
            keep = operation == SOFTMAX_RESULT and phase != FIND_SUM
            sums = 0
            if phase == FIND_SUM:
                sums = call.sums + first // SEGMENT_KEYS * call.sums_stride + here
            if sideways:
                total = weigh_sideways(
                    tag,
                    place + group * item,
                    keys,
                    stride,
                    maximum,
                    keep,
                    scratch + call.at_lanes,
                    sums,
                    call.sums_stride,
                    count,
                )
            else:
                weights = block if keep else 0
                ahead = call.x_row if phase == WHOLE else 0
                row_max = first_lane(maximum)
                row_sum = weigh(tag, place, keys, row_max, weights, sums, call.sums_stride, ahead)
                total = splat(row_sum)
        if phase == FINISH:
            total = load_first(call.state_sum + here, count, zero)
        store(own, maximum)
        store(own + step, total)
        if any_nan((maximum - maximum) + (total - total)):
            if settle_rows(tag, call, x, mask, group, count, keys, own, block):
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
            for r in range(count):
                logarithm = natural_log(np.float64(load_scalar(tag, own + step + r * item)))
                if operation == LOGSUMEXP_RESULT:
                    lse = logarithm + np.float64(load_scalar(tag, own + r * item))
                    target = output + (group + r) * call.output_row
                    store_number(tag, call.output_code, target, cast(tag, lse))
                else:
                    store_scalar(own + step + r * item, cast(tag, logarithm))
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
def settle_rows(tag, call, x, mask, group, count, keys, own, block):
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
        found = True
        # log 1 and a shift of 0 leave final values as they are, and so does a division by 1.
        store_scalar(place, cast(tag, 0.0) if final else row_max)
        store_scalar(place + LANES * item, cast(tag, 1.0))
    return found


@device(inlined=True)
def normalise_task(tag, call, task, scratch):
    """Some blocks of one phase."""
    begin = task * call.task_blocks
    for index in range(begin, min(begin + call.task_blocks, call.blocks)):
        block, chunk = divmod(index, call.chunks)
        entry_index, block = divmod(block, call.row_blocks)
        # Blocks side by side begin where lines of the cache do.
        row = block * call.block_rows - call.row_shift
        stop = min(row + call.block_rows, call.rows)
        row = max(row, 0)
        normalise_block(tag, call, entry_index, row, stop - row, chunk, scratch)


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

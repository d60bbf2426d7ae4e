"""Softmax, log_softmax and logsumexp along one axis, as a kernel of their own.

Steps: gather (scores of a block, read in place where they can be), maximum, weigh (exponentials and
their sum), settle (rows of inf and NaN), finish (divide or subtract, store). A block is one row with
its keys on the lanes, or rows side by side on the lanes, key after key. Both add in the same order:
sixteen virtual lanes over a segment of 512 keys, the written tree, segments from left to right.

Rows too long for a core's cache, or too few for the cores, are cut into chunks of whole segments:
each step then is a phase of its own over all chunks, with the same bits.
"""

import numpy as np

from fastattn._core.plan import SEGMENT_KEYS

from .compile import device, entry
from .elementary import exp_nonpositive, natural_log
from .native import atomic_next
from .pack import pack_matrix
from .record import FLOAT_MASK, NO_MASK, Layout, operand_offset, reader
from .scores import mask_row
from .simd import (
    LANES,
    cast,
    fma,
    item_size,
    lane_max,
    lane_sum,
    larger,
    load,
    load_as,
    load_first,
    load_scalar,
    native_code,
    prefetch,
    splat,
    store,
    store_first,
    store_scalar,
    stream,
)

SOFTMAX, LOG_SOFTMAX, LOGSUMEXP = 0, 1, 2
WHOLE, FIND_MAX, FOLD_MAX, FIND_SUM, FOLD_SUM, FINISH = range(6)

LAYOUT = Layout(
    "SoftmaxCall",
    """
    next_task stop_task workers
    phase operation sideways streamed direct scaled
    rows padded_rows keys entry_rank entry_shape entry_strides
    block_rows row_blocks blocks task_blocks chunk_keys chunks
    x x_row x_key x_line x_lane x_code
    mask mask_row mask_line mask_key mask_code mask_kind
    output output_row output_key output_lane
    maxima sums sums_stride state_max state_sum
    scratch scratch_stride at_stats at_lanes at_strip at_block block_stride
    """.split(),
    ("rest", "power_first", "power_second"),
)
read_call = reader(LAYOUT)
X, MASK, OUTPUT = range(3)

# Rows by keys of the strip in which sideways results are turned before they are stored.
STRIP_KEYS = 64


@device
def gather(tag, call, x, mask, lines, lanes, target):
    """Step gather: scale and mask `lines` x `lanes` scores into scratch rows."""
    item = item_size(tag)
    stride = call.block_stride
    pack_matrix(tag, call.x_code, x, call.x_line, call.x_lane, lines, lanes, target, stride)
    first, second = splat(cast(tag, call.power_first)), splat(cast(tag, call.power_second))
    rest = splat(cast(tag, call.rest))
    for line in range(lines):
        row = target + line * stride
        if call.scaled:
            for place in range(row, row + lanes * item, LANES * item):
                store(place, load(tag, place) * first * second * rest)
        if call.mask_kind != NO_MASK:
            mask_row(tag, call, mask + line * call.mask_line, row, 0, lanes)


@device
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
def find_max(tag, place, keys):
    """Step maximum, keys on the lanes; a NaN may be passed over."""
    item = item_size(tag)
    hidden = cast(tag, -np.inf)
    first = splat(hidden)
    second, third, fourth = first, first, first
    whole = keys // LANES * LANES
    k = 0
    while k + 4 * LANES <= whole:
        first = larger(load(tag, place + k * item), first)
        second = larger(load(tag, place + (k + LANES) * item), second)
        third = larger(load(tag, place + (k + 2 * LANES) * item), third)
        fourth = larger(load(tag, place + (k + 3 * LANES) * item), fourth)
        k += 4 * LANES
    while k < whole:
        first = larger(load(tag, place + k * item), first)
        k += LANES
    if whole < keys:
        second = larger(load_first(place + whole * item, keys - whole, hidden), second)
    return lane_max(larger(larger(first, second), larger(third, fourth)))


@device
def weigh(tag, place, keys, row_max, weights, sums, sums_stride, ahead):
    """Step weigh, keys on the lanes: the sum of exponentials, which go to `weights` if not 0.

    Each segment's own sum goes to `sums` if not 0. `ahead` bytes further lies what is read next.
    """
    item = item_size(tag)
    maximum = splat(row_max)
    total = cast(tag, 0.0)
    for segment in range(0, keys, SEGMENT_KEYS):
        stop = min(segment + SEGMENT_KEYS, keys)
        whole = stop // LANES * LANES
        lanes = splat(cast(tag, 0.0))
        for k in range(segment, whole, LANES):
            weight = exp_nonpositive(load(tag, place + k * item) - maximum)
            prefetch(place + k * item + ahead)
            lanes = lanes + weight
            if weights:
                store(weights + k * item, weight)
        if whole < stop:
            scores = load_first(place + whole * item, stop - whole, cast(tag, -np.inf))
            weight = exp_nonpositive(scores - maximum)
            lanes = lanes + weight
            if weights:
                store(weights + whole * item, weight)
        segment_sum = lane_sum(lanes)
        total = total + segment_sum
        if sums:
            store_scalar(sums + segment // SEGMENT_KEYS * sums_stride, segment_sum)
    return total


@device
def find_max_sideways(tag, place, keys, stride):
    """Step maximum for sixteen rows on the lanes."""
    first = splat(cast(tag, -np.inf))
    second = first
    for k in range(0, keys - 1, 2):
        first = larger(load(tag, place + k * stride), first)
        second = larger(load(tag, place + (k + 1) * stride), second)
    if keys % 2:
        first = larger(load(tag, place + (keys - 1) * stride), first)
    return larger(first, second)


@device
def weigh_sideways(tag, place, keys, stride, maximum, keep, lanes, sums, sums_stride):
    """Step weigh for sixteen rows on the lanes: `lanes` holds the virtual lanes of each."""
    step = LANES * item_size(tag)
    zero = splat(cast(tag, 0.0))
    total = zero
    for segment in range(0, keys, SEGMENT_KEYS):
        for lane in range(lanes, lanes + LANES * step, step):
            store(lane, zero)
        for k in range(segment, min(segment + SEGMENT_KEYS, keys)):
            weight = exp_nonpositive(load(tag, place + k * stride) - maximum)
            lane = lanes + k % LANES * step
            store(lane, load(tag, lane) + weight)
            if keep:
                store(place + k * stride, weight)
        half = LANES // 2
        while half:
            for lane in range(lanes, lanes + half * step, step):
                store(lane, load(tag, lane) + load(tag, lane + half * step))
            half //= 2
        segment_sum = load(tag, lanes)
        total = total + segment_sum
        if sums:
            store(sums + segment // SEGMENT_KEYS * sums_stride, segment_sum)
    return total


@device
def settle(tag, call, x, mask, row_max, row_sum):
    """Step settle: a finite maximum, or what stands for the row: -inf empty, +inf, NaN."""
    if row_sum == row_sum and abs(row_max) < np.inf:
        return row_max
    for k in range(call.keys):
        score = score_at(tag, call, x + k * call.x_key, mask + k * lane_of_mask(call))
        if score != score:
            return score
    return row_max


@device
def lane_of_mask(call):
    """Bytes from one key of the mask to the next."""
    return call.mask_line if call.sideways else call.mask_key


@device
def fill_special(tag, call, x, mask, keys, row_max, target, target_key):
    """Final values of a row whose maximum is not finite."""
    masked = call.mask_kind != NO_MASK
    hidden = cast(tag, np.nan)
    if call.operation == SOFTMAX:
        if masked:
            hidden = cast(tag, 0.0)
        row_max = cast(tag, np.nan)
    elif masked or row_max == np.inf:
        hidden = cast(tag, -np.inf)
    for k in range(keys):
        score = score_at(tag, call, x + k * call.x_key, mask + k * lane_of_mask(call))
        value = hidden if score == -np.inf else score - row_max
        store_scalar(target + k * target_key, value)


@device
def put_stats(tag, call, row_max, row_sum, stats):
    """What `finish_line` needs of one row, as two scalars a vector apart."""
    first, second = cast(tag, 1.0), cast(tag, -1.0)
    if call.operation == SOFTMAX:
        if abs(row_max) < np.inf:
            first, second = cast(tag, 1.0) / row_sum, -row_sum
    else:
        first, second = cast(tag, 0.0), cast(tag, 0.0)
        if abs(row_max) < np.inf:
            first, second = row_max, cast(tag, natural_log(np.float64(row_sum)))
    store_scalar(stats, first)
    store_scalar(stats + LANES * item_size(tag), second)


@device
def put_logsumexp(tag, target, row_max, row_sum):
    """Step finish of logsumexp."""
    lse = np.float64(row_max)
    if abs(row_max) < np.inf:
        lse += natural_log(np.float64(row_sum))
    store_scalar(target, cast(tag, lse))


@device(inlined=True)
def final(operation, value, first, second):
    """Step finish: the quotient, correctly rounded but for subnormals, or the logarithm."""
    if operation == SOFTMAX:
        quotient = value * first
        return fma(fma(quotient, second, value), first, quotient)
    return value - first - second


@device
def finish_line(tag, call, source, lanes, stats, stats_step, target, streamed):
    """Step finish for one line of scratch; statistics are `stats_step` bytes apart a vector."""
    item = item_size(tag)
    step = LANES * item
    operation = call.operation
    begin = 0
    if streamed:
        begin = min(-target % 64 // item, lanes)
        streamed = (begin == 0 or stats_step == 0) and target % item == 0
        if not streamed:
            begin = 0
    zero = cast(tag, 0.0)
    if begin:
        first, second = load(tag, stats), load(tag, stats + step)
        value = final(operation, load_first(source, begin, zero), first, second)
        store_first(target, value, begin)
    stop = begin + (lanes - begin) // LANES * LANES
    for i in range(begin, stop, LANES):
        first, second = load(tag, stats), load(tag, stats + step)
        value = final(operation, load(tag, source + i * item), first, second)
        if streamed:
            stream(target + i * item, value)
        else:
            store(target + i * item, value)
        stats += stats_step
    if stop < lanes:
        first, second = load(tag, stats), load(tag, stats + step)
        rest = load_first(source + stop * item, lanes - stop, zero)
        store_first(target + stop * item, final(operation, rest, first, second), lanes - stop)


@device
def row_block(tag, call, entry_index, row, first, scratch):
    """One row, or a chunk of it, keys on the lanes."""
    item = item_size(tag)
    x = call.x + operand_offset(call, X, entry_index) + row * call.x_row
    mask = call.mask + operand_offset(call, MASK, entry_index) + row * call.mask_row
    output = call.output + operand_offset(call, OUTPUT, entry_index) + row * call.output_row
    x += first * call.x_key
    mask += first * call.mask_key
    output += first * call.output_key
    keys = min(call.chunk_keys, call.keys - first)
    state = (entry_index * call.padded_rows + row) * item
    block = scratch + call.at_block
    place = x
    if not call.direct:
        gather(tag, call, x, mask, 1, keys, block)
        place = block
    row_max, row_sum = cast(tag, 0.0), cast(tag, 0.0)
    if call.phase == WHOLE or call.phase == FIND_MAX:
        row_max = find_max(tag, place, keys)
    else:
        row_max = load_scalar(tag, call.state_max + state)
    if call.phase == FIND_MAX:
        store_scalar(call.maxima + first // call.chunk_keys * call.sums_stride + state, row_max)
        return
    if call.phase == WHOLE or call.phase == FIND_SUM or call.operation == SOFTMAX:
        weights = block if call.operation == SOFTMAX and call.phase != FIND_SUM else 0
        sums = 0
        if call.phase == FIND_SUM:
            sums = call.sums + first // SEGMENT_KEYS * call.sums_stride + state
        ahead = call.x_row if call.phase == WHOLE else 0
        row_sum = weigh(tag, place, keys, row_max, weights, sums, call.sums_stride, ahead)
    if call.phase == FIND_SUM:
        return
    if call.phase == WHOLE:
        row_max = settle(tag, call, x, mask, row_max, row_sum)
    else:
        row_sum = load_scalar(tag, call.state_sum + state)
    if call.operation == LOGSUMEXP:
        put_logsumexp(tag, output, row_max, row_sum)
        return
    source = place if call.operation == LOG_SOFTMAX else block
    if not abs(row_max) < np.inf:
        fill_special(tag, call, x, mask, keys, row_max, block, item)
        source = block
    stats = scratch + call.at_stats
    step = LANES * item
    put_stats(tag, call, row_max, row_sum, stats)
    store(stats + step, splat(load_scalar(tag, stats + step)))
    store(stats, splat(load_scalar(tag, stats)))
    if call.output_lane == item:
        finish_line(tag, call, source, keys, stats, 0, output, call.streamed != 0)
    else:
        finish_line(tag, call, source, keys, stats, 0, block, False)
        for k in range(keys):
            store_scalar(output + k * call.output_lane, load_scalar(tag, block + k * item))


@device
def turn_out(tag, call, block, rows, keys, strip, output):
    """Store a sideways block whose output has another order of axes."""
    item = item_size(tag)
    if call.output_key != item:
        for k in range(keys):
            for r in range(rows):
                value = load_scalar(tag, block + k * call.block_stride + r * item)
                store_scalar(output + k * call.output_key + r * call.output_row, value)
        return
    width = STRIP_KEYS * item
    for first in range(0, keys, STRIP_KEYS):
        many = min(keys - first, STRIP_KEYS)
        for row in range(0, rows, LANES):
            source = block + first * call.block_stride + row * item
            # Rows beyond the last are scratch as well: sixteen always can be turned.
            pack_matrix(
                tag, native_code(tag), source, item, call.block_stride, LANES, many, strip, width
            )
            target = output + row * call.output_row + first * item
            for r in range(min(rows - row, LANES)):
                for k in range(0, many, LANES):
                    value = load(tag, strip + r * width + k * item)
                    place = target + r * call.output_row + k * item
                    store_first(place, value, min(many - k, LANES))


@device
def side_block(tag, call, entry_index, row, first, scratch):
    """Rows side by side on the lanes, or a chunk of their keys."""
    item = item_size(tag)
    step = LANES * item
    x = call.x + operand_offset(call, X, entry_index) + row * call.x_row
    mask = call.mask + operand_offset(call, MASK, entry_index) + row * call.mask_key
    output = call.output + operand_offset(call, OUTPUT, entry_index) + row * call.output_row
    rows = min(call.block_rows, call.rows - row)
    keys = min(call.chunk_keys, call.keys - first)
    x += first * call.x_key
    mask += first * call.mask_line
    output += first * call.output_key
    state = (entry_index * call.padded_rows + row) * item
    block, stats = scratch + call.at_block, scratch + call.at_stats
    stride = call.block_stride
    gather(tag, call, x, mask, keys, rows, block)
    softmax = call.operation == SOFTMAX
    for group in range(0, rows, LANES):
        place = block + group * item
        here = state + group * item
        if call.phase == WHOLE or call.phase == FIND_MAX:
            maximum = find_max_sideways(tag, place, keys, stride)
        else:
            maximum = load(tag, call.state_max + here)
        if call.phase == FIND_MAX:
            store(call.maxima + first // call.chunk_keys * call.sums_stride + here, maximum)
            continue
        sums = 0
        if call.phase == FIND_SUM:
            sums = call.sums + first // SEGMENT_KEYS * call.sums_stride + here
        total = maximum
        if call.phase == WHOLE or call.phase == FIND_SUM or softmax:
            keep = softmax and call.phase != FIND_SUM
            lanes = scratch + call.at_lanes
            total = weigh_sideways(
                tag, place, keys, stride, maximum, keep, lanes, sums, call.sums_stride
            )
        if call.phase == FINISH:
            total = load(tag, call.state_sum + here)
        store(stats + 2 * group * item, maximum)
        store(stats + 2 * group * item + step, total)
    if call.phase == FIND_MAX or call.phase == FIND_SUM:
        return
    for r in range(rows):
        own = stats + (r // LANES * 2 * LANES + r % LANES) * item
        row_max, row_sum = load_scalar(tag, own), load_scalar(tag, own + step)
        x_row, mask_row_ = x + r * call.x_row, mask + r * call.mask_key
        if call.phase == WHOLE:
            row_max = settle(tag, call, x_row, mask_row_, row_max, row_sum)
        if call.operation == LOGSUMEXP:
            put_logsumexp(tag, output + r * call.output_row, row_max, row_sum)
            continue
        if not abs(row_max) < np.inf:
            fill_special(tag, call, x_row, mask_row_, keys, row_max, block + r * item, stride)
        put_stats(tag, call, row_max, row_sum, own)
    if call.operation == LOGSUMEXP:
        return
    there = call.output_row == item
    for k in range(keys):
        line = block + k * stride
        target = output + k * call.output_key if there else line
        streamed = there and call.streamed != 0
        finish_line(tag, call, line, rows, stats, 2 * step, target, streamed)
    if not there:
        turn_out(tag, call, block, rows, keys, scratch + call.at_strip, output)


@device
def fold_row_state(tag, call, index):
    """Phases between the chunks: one row's maximum, or its sum, from those of its chunks."""
    item = item_size(tag)
    entry_index, row = divmod(index, call.rows)
    state = (entry_index * call.padded_rows + row) * item
    if call.phase == FOLD_MAX:
        row_max = cast(tag, -np.inf)
        for chunk in range(call.chunks):
            one = load_scalar(tag, call.maxima + chunk * call.sums_stride + state)
            row_max = one if one > row_max else row_max
        store_scalar(call.state_max + state, row_max)
        return
    row_sum = cast(tag, 0.0)
    for segment in range((call.keys + SEGMENT_KEYS - 1) // SEGMENT_KEYS):
        row_sum = row_sum + load_scalar(tag, call.sums + segment * call.sums_stride + state)
    x = call.x + operand_offset(call, X, entry_index) + row * call.x_row
    row_of_mask = call.mask_key if call.sideways else call.mask_row
    mask = call.mask + operand_offset(call, MASK, entry_index) + row * row_of_mask
    row_max = settle(tag, call, x, mask, load_scalar(tag, call.state_max + state), row_sum)
    store_scalar(call.state_max + state, row_max)
    store_scalar(call.state_sum + state, row_sum)
    if call.operation == LOGSUMEXP:
        output = call.output + operand_offset(call, OUTPUT, entry_index) + row * call.output_row
        put_logsumexp(tag, output, row_max, row_sum)


@device
def normalise(tag, call_address, worker):
    """Take tasks until none is left: some blocks of rows each, or some rows between phases."""
    call = read_call(call_address)
    scratch = call.scratch + worker * call.scratch_stride
    while True:
        task = atomic_next(call_address)
        if task >= call.stop_task:
            return
        first = task * call.task_blocks
        for index in range(first, min(first + call.task_blocks, call.blocks)):
            if call.phase == FOLD_MAX or call.phase == FOLD_SUM:
                fold_row_state(tag, call, index)
                continue
            block, chunk = divmod(index, call.chunks)
            entry_index, block = divmod(block, call.row_blocks)
            row, key = block * call.block_rows, chunk * call.chunk_keys
            if call.sideways:
                side_block(tag, call, entry_index, row, key, scratch)
            else:
                row_block(tag, call, entry_index, row, key, scratch)


@entry
def normalise_float32(call_address, worker):
    """Softmax and its relatives in float32."""
    normalise(np.float32(0), call_address, worker)


@entry
def normalise_float64(call_address, worker):
    """Softmax and its relatives in float64."""
    normalise(np.float64(0), call_address, worker)

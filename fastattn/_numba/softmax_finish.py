"""Step finish of softmax and its relatives: divide or subtract, and store blocks in any layout."""

from fastattn._engine.layouts import SOFTMAX_RESULT

from .compile import device
from .emit import LANES
from .halves import round_line, round_lines
from .memory import (
    load,
    load_first,
    load_scalar,
    store,
    store_first,
    store_scalar,
    stream,
    transpose_four,
)
from .simd import cast, fma, item_size


@device(inlined=True)
def final(operation, value, first, second):
    """Step finish: the quotient, correctly rounded but for subnormals, or the logarithm."""
    if operation == SOFTMAX_RESULT:
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
def turn_out(tag, call, block, rows, keys, strip, output):
    """Store a finished block into a result whose lanes do not lie side by side."""
    item = item_size(tag)
    if call.sideways and call.output_key == item:
        turn_rows(tag, call, block, rows, keys, strip, output, call.output_row)
        return
    block_key = call.block_stride if call.sideways else item
    for k in range(keys):
        for r in range(rows):
            value = load_scalar(tag, block + k * block_key + r * item)
            store_scalar(output + k * call.output_key + r * call.output_row, value)


@device
def round_out(tag, call, block, rows, keys, scratch, output):
    """Store a finished block into a result of halves, wherever they lie."""
    code = call.output_code
    if call.sideways and call.output_key == 2:
        turned, row = scratch + call.at_turned, keys * item_size(tag)
        turn_rows(tag, call, block, rows, keys, scratch + call.at_lanes, turned, row)
        round_lines(tag, code, turned, rows, keys, output, call.output_row)
        return
    lines, lanes = (keys, rows) if call.sideways else (1, keys)
    for line in range(lines):
        source, target = block + line * call.block_stride, output + line * call.output_line
        round_line(tag, code, source, lanes, target, call.output_lane)


@device
def turn_rows(tag, call, block, rows, keys, strip, target, target_row):
    """Write a finished block, whose lanes are rows, as rows of contiguous keys."""
    item = item_size(tag)
    step = LANES * item
    for row in range(0, rows, 4):
        for k in range(0, keys, LANES):
            count = min(keys - k, LANES)
            source = block + k * call.block_stride + row * item
            transpose_four(tag, 0, source, call.block_stride, count - 1, strip, step)
            place = target + row * target_row + k * item
            for r in range(min(rows - row, 4)):
                store_first(place + r * target_row, load(tag, strip + r * step), count)

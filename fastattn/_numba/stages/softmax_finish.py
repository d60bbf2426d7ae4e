"""Step finish of softmax and its relatives: divide or subtract, and store blocks in any layout."""

import numpy as np

from fastattn._engine.layouts import LOGSUMEXP_RESULT, SOFTMAX_RESULT

from ..compiler.compile import device
from ..compiler.native import load_float64, store_float64
from ..machine.emit import LANES
from ..machine.halves import round_line, round_lines, store_number
from ..machine.logarithm import SMALLEST_NORMAL, log_of_normal, log_of_sum
from ..machine.memory import (
    load,
    load_first,
    load_scalar,
    native_code,
    store,
    store_first,
    store_scalar,
    stream,
    transpose_four,
)
from ..machine.simd import (
    absolute,
    any_nan,
    cast,
    fma,
    item_size,
    narrowed,
    select_above,
    splat,
    widened,
)
from ..machine.two_floats import paired
from .near_zero import NEAR, is_near_zero, log_again


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
def finish_logarithms(tag, call, x, mask, factors, output, near, group, count, own, parts, room):
    """The logarithms of up to sixteen rows: results of logsumexp, or what log_softmax subtracts.

    Side by side as far as the sums of all are ordinary numbers. Results near 0 are computed again,
    from the rows at `x`, `mask` and `factors`, or noted at `near` for later.
    """
    item = item_size(tag)
    results = call.operation == LOGSUMEXP_RESULT
    if count > 1:
        large, small = load_first(parts, count, 1.0), load_first(parts + LANES * 8, count, 0.0)
        total, rest = paired(large, small)
        zero, base = splat(0.0), splat(0.0)
        if results:
            base = widened(load_first(own, count, cast(tag, 0.0)))
        # NaN where a sum or a base is no ordinary number.
        odd = select_above(splat(SMALLEST_NORMAL), total, splat(np.nan), zero)
        if not any_nan(odd + ((total - total) + (base - base))):
            logarithms = log_of_normal(base, zero, total, rest, zero)
            store(own + LANES * item, narrowed(tag, logarithms))
            if results:
                bound = absolute(base) * splat(NEAR)
                if any_nan(select_above(bound, absolute(logarithms), splat(np.nan), zero)):
                    store(parts, logarithms)
                    for r in range(count):
                        lse = load_float64(parts, r)
                        lse = look_again(
                            tag, call, x, mask, 0, near, group + r, lse, False, own, r, room
                        )
                        store_scalar(own + (LANES + r) * item, cast(tag, lse))
                store_results(tag, call, output, group, count, own + LANES * item)
            return
    for r in range(count):
        at_max, rest = load_float64(parts, r), load_float64(parts, LANES + r)
        if not results:
            logarithm = log_of_sum(0.0, 0.0, at_max, rest)
            store_scalar(own + (LANES + r) * item, cast(tag, logarithm))
            continue
        total = at_max + rest
        if call.sign:
            target = output + (group + r) * call.output_row + call.sign
            sign = np.nan if total != total else np.float64(total > 0.0) - np.float64(total < 0.0)
            store_number(tag, call.output_code, target, cast(tag, sign))
            if total < 0.0:
                at_max, rest = -at_max, -rest
        lse = log_of_sum(np.float64(load_scalar(tag, own + r * item)), 0.0, at_max, rest)
        lse = look_again(
            tag, call, x, mask, factors, near, group + r, lse, total < 0.0, own, r, room
        )
        store_scalar(own + (LANES + r) * item, cast(tag, lse))
    if results:
        store_results(tag, call, output, group, count, own + LANES * item)


@device
def look_again(tag, call, x, mask, factors, near, row, lse, is_negative, own, r, room):
    """The log-sum-exp of a row, computed again if near 0; its maximum is the r-th at `own`.

    It is only noted where keys were cut into chunks: the row may be long.
    """
    row_max = np.float64(load_scalar(tag, own + r * item_size(tag)))
    if not is_near_zero(lse, row_max, factors):
        return lse
    if near != 0:
        store_float64(near, row, lse)
        return lse
    if factors != 0:
        factors += row * call.factors_row
    x, mask = x + row * call.x_row, mask + row * call.mask_row
    return log_again(tag, call, x, mask, factors, lse, is_negative, room)


@device(inlined=True)
def store_results(tag, call, output, group, count, source):
    """Store the results of logsumexp for up to sixteen rows."""
    item = item_size(tag)
    target = output + group * call.output_row
    if call.output_row == item and call.output_code == native_code(tag):
        store_first(target, load(tag, source), count)
        return
    for r in range(count):
        number = load_scalar(tag, source + r * item)
        store_number(tag, call.output_code, target + r * call.output_row, number)


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
            place = target + row * target_row + k * item
            if count == LANES and row + 4 <= rows:
                transpose_four(tag, 1, source, call.block_stride, LANES - 1, place, target_row)
                continue
            transpose_four(tag, 0, source, call.block_stride, count - 1, strip, step)
            for r in range(min(rows - row, 4)):
                store_first(place + r * target_row, load(tag, strip + r * step), count)

"""Finish: divide by the sum, write output, log-sum-exp and weights."""

import numpy as np

from .blocks import LOG2_E, padded
from .compile import device
from .elementary import exp2_lowest, exp2_product, natural_log
from .emit import LANES
from .memory import load, load_first, load_scalar, native_code, store, store_first, store_scalar
from .pack import clear_row
from .record import LSE, OUTPUT, SINKS, operand_offset
from .rows import fold_row
from .simd import cast, fma, item_size, select_equal, splat, unless_nan
from .storage import round_row


@device
def finish_row(tag, call, entry_index, head, i, max_place, sum_place, running, exact, zeros):
    """Write the output and the log-sum-exp of query i of a head, from its state.

    The state at the two places takes the sink in, its maximum as scored again; overwrites the rows
    `running` and `zeros`.
    """
    # What turns a maximum, as scored, into a final score.
    scale = unit = 1.0
    if not call.shaped and exact:
        scale = call.rest
    if call.sinks:
        place = call.sinks + operand_offset(call, SINKS, entry_index) + head * call.sinks_head
        sink = load_scalar(tag, place)
        if sink != -np.inf:
            # A sink is a final score: fold in that unit.
            final = cast(tag, np.float64(load_scalar(tag, max_place)) * scale)
            store_scalar(max_place, final)
            fold_sink(tag, call, max_place, sum_place, running, sink, zeros)
            unit, scale = scale, 1.0
    row_max, row_sum = load_scalar(tag, max_place), load_scalar(tag, sum_place)
    target = call.output + operand_offset(call, OUTPUT, entry_index)
    target += head * call.output_head + i * call.output_row
    write_output(tag, call, row_max, row_sum, running, target)
    if call.lse:
        lse = -np.inf
        if row_max != -np.inf:
            lse = natural_log(np.float64(row_sum)) + np.float64(row_max) * scale
        target = call.lse + operand_offset(call, LSE, entry_index)
        store_scalar(target + head * call.lse_head + i * call.lse_row, cast(tag, lse))
    store_scalar(max_place, cast(tag, np.float64(row_max) / unit))


@device
def write_output(tag, call, row_max, row_sum, running, target):
    """Divide by the sum and round; an empty row gives 0. Overwrites `running`."""
    item = item_size(tag)
    features = call.value_features
    zero = splat(cast(tag, 0.0))
    if row_max == -np.inf:
        row_sum = cast(tag, 1.0)
        for e in range(0, features, LANES):
            store(running + e * item, zero)
    total, inverse = splat(row_sum), splat(cast(tag, 1.0) / row_sum)
    in_place = call.output_feature == item and call.output_code == native_code(tag)
    whole = features // LANES * LANES if in_place else 0
    for e in range(0, whole, LANES):
        store(target + e * item, divided(load(tag, running + e * item), total, inverse, zero))
    for e in range(whole, features, LANES):
        result = divided(load(tag, running + e * item), total, inverse, zero)
        if in_place:
            store_first(target + e * item, result, features - e)
        else:
            store(running + e * item, result)
    if not in_place:
        round_row(tag, call.output_code, running, features, target, call.output_feature)


@device
def divided(weighted, total, inverse, zero):
    """`weighted / total`, rounded once, given the rounded inverse of the total.

    Newton's correction of the quotient: as exact as a division (Markstein), and a fifth of the time
    of one of vectors. An infinite quotient needs none and would become NaN.
    """
    quotient = weighted * inverse
    remainder = fma(zero - quotient, total, weighted)
    return unless_nan(fma(remainder, inverse, quotient), quotient)


@device
def fold_sink(tag, call, max_place, sum_place, running, sink, zeros):
    """Fold a sink into a row's running state: weight without a value. Overwrites `zeros`."""
    width = padded(call.value_features)
    clear_row(tag, zeros, 0, width)
    one, factor = cast(tag, 1.0), cast(tag, LOG2_E)
    wide = width * item_size(tag)
    fold_row(tag, max_place, sum_place, running, sink, one, zeros, wide, factor)


@device
def finish_weights(tag, call, target, begin, end, row_max, row_sum, factor):
    """Turn the scores of a row, keys begin to end, into weights; other keys have none.

    A hidden key has the weight 0 even in a row of NaN.
    """
    item = item_size(tag)
    hidden = cast(tag, -np.inf)
    zero = splat(cast(tag, 0.0))
    if row_max == -np.inf:
        end = begin
    for column in range(0, begin, LANES):
        store_first(target + column * item, zero, begin - column)
    for column in range(end, call.keys, LANES):
        store_first(target + column * item, zero, call.keys - column)
    maximum, total = splat(row_max), splat(row_sum)
    wide, lowest = splat(factor), splat(exp2_lowest(factor))
    for column in range(begin, end, LANES):
        place = target + column * item
        score = load_first(place, end - column, hidden)
        weight = exp2_product(score - maximum, wide, lowest) / total
        store_first(place, select_equal(score, hidden, zero, weight), end - column)

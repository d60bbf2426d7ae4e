"""Finish: divide by the sum, write output, log-sum-exp and weights."""

import numpy as np

from ..compiler.compile import device
from ..machine.elementary import exp2_lowest, exp2_product
from ..machine.emit import LANES
from ..machine.logarithm import log_of_sum
from ..machine.memory import (
    load,
    load_first,
    load_scalar,
    native_code,
    store,
    store_first,
    store_scalar,
)
from ..machine.simd import cast, fma, item_size, select_equal, splat, unless_nan
from ..machine.storage import round_row
from ..machine.two_floats import times
from ..operands.record import LSE, OUTPUT, SINKS, operand_offset
from .blocks import LOG2_E, padded
from .normalise import correction


@device
def finish_row(tag, call, entry_index, head, i, row_max, row_sum, rest, running, late_rest):
    """Write the output and the log-sum-exp of query i of a head, from its state.

    `late_rest` turns a maximum, as scored, into a final score; it is never rounded to one. Returns
    the sum with the sink's weight, and the share of itself that the sink leaves to every weight:
    what `finish_weights` needs. `running` is brought to that share.
    """
    scale = late_rest
    base, share = np.float64(row_max), cast(tag, 1.0)
    if call.sinks:
        place = call.sinks + operand_offset(call, SINKS, entry_index) + head * call.sinks_head
        sink = load_scalar(tag, place)
        if sink != -np.inf:
            lead = fma(base, scale, -np.float64(sink))
            row_sum, rest, share = fold_sink(tag, call, lead, row_sum, rest, running)
            if not lead >= 0.0:
                base, scale = np.float64(sink), 1.0
    target = call.output + operand_offset(call, OUTPUT, entry_index)
    target += head * call.output_head + i * call.output_row
    write_output(tag, call, row_max, row_sum, running, target)
    if call.lse:
        lse = -np.inf
        if base != -np.inf:
            base, base_rest = times(base, scale)
            lse = log_of_sum(base, base_rest, 1.0, np.float64(rest))
        target = call.lse + operand_offset(call, LSE, entry_index)
        store_scalar(target + head * call.lse_head + i * call.lse_row, cast(tag, lse))
    return row_sum, share


@device
def fold_sink(tag, call, lead, row_sum, rest, running):
    """Fold a sink into a row's state: a key of weight 1 without a value, as the last segment.

    `lead` is the row's maximum less the sink, both final scores; -inf for an empty row, whose
    output is not read. Returns the sum, the rest of it but for the maximum, and the row's share.
    """
    zero, one, factor = cast(tag, 0.0), cast(tag, 1.0), cast(tag, LOG2_E)
    if lead >= 0.0:
        weight = correction(tag, cast(tag, -lead), zero, factor)
        return row_sum + weight, rest + weight, one
    share = correction(tag, cast(tag, lead), zero, factor)
    wide, item = splat(share), item_size(tag)
    for place in range(running, running + padded(call.value_features) * item, LANES * item):
        store(place, load(tag, place) * wide)
    return fma(row_sum, share, one), row_sum * share, share


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
def finish_weights(tag, call, target, begin, end, row_max, row_sum, share, factor):
    """Turn the scores of a row, keys begin to end, into weights; other keys have none.

    `row_max` is the largest of the scores, whatever the sink: all are as scored, and only their
    distances turn into final ones. A hidden key has the weight 0 even in a row of NaN.
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
    maximum, total, left = splat(row_max), splat(row_sum), splat(share)
    wide, lowest = splat(factor), splat(exp2_lowest(factor))
    if share == cast(tag, 1.0):
        # Most rows have no sink: whole vectors without a share or a mask.
        for place in range(target + begin * item, target + (end - LANES + 1) * item, LANES * item):
            score = load(tag, place)
            weight = exp2_product(score - maximum, wide, lowest) / total
            store(place, select_equal(score, hidden, zero, weight))
        if begin < end:
            begin += (end - begin) // LANES * LANES
    for column in range(begin, end, LANES):
        place = target + column * item
        score = load_first(place, end - column, hidden)
        weight = exp2_product(score - maximum, wide, lowest) * left / total
        store_first(place, select_equal(score, hidden, zero, weight), end - column)

"""Finish: divide by the sum, write output, log-sum-exp and weights."""

import numpy as np

from .blocks import padded
from .compile import device
from .elementary import exp2_lowest, exp2_product, natural_log
from .emit import LANES
from .memory import load, load_first, load_scalar, store, store_first, store_scalar
from .pack import clear_row
from .record import SINKS, operand_offset
from .rows import fold_row
from .simd import cast, fma, item_size, select_equal, splat, unless_nan
from .storage import round_row


@device
def finish_row(tag, call, row_max, row_sum, running, exact, target, lse_target):
    """Write a row's output and, unless that address is 0, its lse; an empty one gives 0 and -inf.

    Overwrites `running`.
    """
    item = item_size(tag)
    empty = row_max == -np.inf
    zero, total = splat(cast(tag, 0.0)), splat(row_sum)
    inverse = splat(cast(tag, 1.0) / row_sum)
    for offset in range(0, padded(call.value_features) * item, LANES * item):
        result = zero
        if not empty:
            # Division by Newton's correction of the quotient: as exact (Markstein), and a fifth of
            # the time of dividing a vector. An infinite quotient needs none and would become NaN.
            weighted = load(tag, running + offset)
            quotient = weighted * inverse
            remainder = fma(zero - quotient, total, weighted)
            result = unless_nan(fma(remainder, inverse, quotient), quotient)
        store(running + offset, result)
    round_row(tag, call.output_code, running, call.value_features, target, call.output_feature)
    if lse_target != 0:
        lse = -np.inf
        if not empty:
            # What turns the maximum, as scored, into a final score.
            scale = 1.0 if call.shaped or not exact else call.rest
            lse = natural_log(np.float64(row_sum)) + np.float64(row_max) * scale
        store_scalar(lse_target, cast(tag, lse))


@device
def fold_sink(tag, call, max_place, sum_place, running, head, entry_index, factor, zeros):
    """Fold the sink of a head into a row's running state: weight without a value.

    Overwrites the row `zeros`.
    """
    width = padded(call.value_features)
    place = call.sinks + operand_offset(call, SINKS, entry_index) + head * call.sinks_head
    clear_row(tag, zeros, 0, width)
    one, bytes_wide = cast(tag, 1.0), width * item_size(tag)
    sink = load_scalar(tag, place)
    fold_row(tag, max_place, sum_place, running, sink, one, zeros, bytes_wide, factor)


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

"""Finish: divide by the sum, write output, log-sum-exp and weights."""

import numpy as np

from fastattn._core.plan import SEGMENT_KEYS

from .blocks import padded
from .compile import device
from .elementary import natural_log
from .emit import LANES
from .memory import load, load_scalar, store, store_scalar
from .rows import correction
from .simd import cast, item_size, splat


@device
def finish_row(tag, call, index, row_max, row_sum, running, exact, target):
    """Write row `index` of all rows and its lse; an empty one gives 0 and -inf.

    `target` is the address of its output. Overwrites `running`.
    """
    item = item_size(tag)
    empty = row_max == -np.inf
    for offset in range(0, padded(call.value_features) * item, LANES * item):
        result = splat(cast(tag, 0.0))
        if not empty:
            result = load(tag, running + offset) / splat(row_sum)
        store(running + offset, result)
    whole = 0
    if call.output_feature == item:
        whole = call.value_features // LANES * LANES
        for e in range(0, whole, LANES):
            store(target + e * item, load(tag, running + e * item))
    for e in range(whole, call.value_features):
        value = load_scalar(tag, running + e * item)
        store_scalar(target + e * call.output_feature, value)
    if call.lse:
        lse = -np.inf
        if not empty:
            # What turns the maximum, as scored, into a final score.
            scale = 1.0 if call.shaped or not exact else call.rest
            lse = natural_log(np.float64(row_sum)) + np.float64(row_max) * scale
        store_scalar(call.lse + index * item, cast(tag, lse))


@device
def finish_weights(tag, call, entry_index, row, segment_max, row_max, row_sum, factor):
    """Bring the weights of all segments to one maximum, and divide by the sum."""
    item = item_size(tag)
    rows = call.groups_of_heads * call.queries
    target = call.weights + (entry_index * rows + row) * call.keys * item
    for first in range(0, call.keys, SEGMENT_KEYS):
        maximum = load_scalar(tag, segment_max + 8 * (first // SEGMENT_KEYS))
        if maximum == -np.inf:
            continue
        power = correction(tag, maximum, row_max, factor)
        for column in range(first, min(first + SEGMENT_KEYS, call.keys)):
            place = target + column * item
            weight = load_scalar(tag, place)
            # Zero stays zero: a hidden key has no weight even in a row of NaN.
            if weight != 0.0:
                store_scalar(place, weight * power / row_sum)

"""Score again, feature by feature, what could not be scored with the power of two of scale.

That power goes onto the query, where a row loses no bit by it. Then the chains of a score add the
products query * power * key of its features, each exact until it is added. A row with a feature so
small or so large that it would lose some met the keys as it is, and its products may be far from
those of the score: 3e38 * 2 overflows, where 3e38 * 0.125 * 2 does not. Here the power goes onto
the key, feature by feature, or where that loses bits too, onto both: the same chains of the same
products, so that a score is the same whichever of its two rows is the query.
"""

from fastattn._core.constants import (
    BLOCK_ROWS,
    FEATURE_CHAIN,
    FEATURE_RUN,
    PANEL_KEYS,
    SCORE_STRIDE,
    SEGMENT_KEYS,
)

from ..compiler.compile import device
from ..compiler.native import load_int64, store_int64
from ..machine.emit import LANES
from ..machine.memory import load, store
from ..machine.simd import (
    absolute,
    cast,
    fma,
    item_size,
    select_above,
    select_equal,
    splat,
    unless_nan,
)
from ..machine.sums import settled
from ..machine.two_floats import paired
from ..operands.places import pack_entry_panel
from ..operands.record import factors_of
from ..operands.variant import panels_stay, query_element
from .blocks import EXACT, padded, slot


@device
def score_sixteen_again(tag, call, factors, query, panel, scores):
    """Scores of one row, which lie there as products with the query as it is, of sixteen keys.

    A score is that product times the power where the chain overflows and that does not; under a
    cap, which every score is below, also where both overflow.
    """
    item = item_size(tag)
    first, second = splat(cast(tag, factors.query_first)), splat(cast(tag, factors.query_second))
    back_first = splat(cast(tag, 1.0 / factors.query_first))
    back_second = splat(cast(tag, 1.0 / factors.query_second))
    zero = splat(cast(tag, 0.0))
    # Chains, runs and their errors as in `tile` and `sums`.
    total = error = run = chain = zero
    for e in range(call.features):
        number = splat(query_element(tag, call, query, e))
        key = load(tag, panel + e * PANEL_KEYS * item)
        scaled_number, scaled_key = number * first * second, key * first * second
        lost_of_number = absolute(scaled_number * back_second * back_first - number)
        lost_of_key = absolute(scaled_key * back_second * back_first - key)
        # The number takes the power where the key would lose bits, and both a part of it where
        # either would: then their product counts for little, or overflows anyway. Which of them
        # takes which part depends on their sizes, not on whose they are.
        above = absolute(number), absolute(key)
        largest = select_above(above[0], above[1], number, key)
        smallest = select_above(above[0], above[1], key, number)
        own = select_above(lost_of_number, zero, largest * first, scaled_number)
        other = select_above(lost_of_number, zero, smallest * second, key)
        own = select_above(lost_of_key, zero, own, number)
        other = select_above(lost_of_key, zero, other, scaled_key)
        chain = fma(own, other, chain)
        ends = e + 1 == call.features
        if ends or (e + 1) % FEATURE_CHAIN == 0:
            run, chain = run + chain, zero
        if ends or (e + 1) % FEATURE_RUN == 0:
            total, lost = paired(total, run)
            error, run = error + lost, zero
    if call.features > FEATURE_RUN:
        total = settled(total, error)
    none = cast(tag, 0.0)
    product = load(tag, scores) * first * second
    if call.softcap > 0.0:
        product = unless_nan(product, total)
    else:
        product = select_equal(product - product, none, product, total)
    store(scores, select_equal(total - total, none, total, product))


@device
def score_again(tag, call, segment, first_row, block, rows, low, high, scratch):
    """Score those rows of a block again which did not take the power of two; columns as there."""
    waiting = 0
    for r in range(rows):
        waiting += load_int64(slot(call, scratch, EXACT, block + r), 0) == 0
    if waiting == 0:
        return
    item = item_size(tag)
    several = call.task_rows > BLOCK_ROWS
    packed, panel_bytes = scratch + call.at_packed, PANEL_KEYS * call.features * item
    for panel in range(low // PANEL_KEYS, (high + PANEL_KEYS - 1) // PANEL_KEYS):
        place = scratch + call.at_panels
        if several:
            place += panel * panel_bytes
        if not (several and panels_stay(tag, call) and load_int64(packed, panel)):
            pack_entry_panel(tag, call, segment * SEGMENT_KEYS + panel * PANEL_KEYS, place, scratch)
            store_int64(packed, panel, panels_stay(tag, call))
        first, stop = max(low, panel * PANEL_KEYS), min(high, (panel + 1) * PANEL_KEYS)
        for r in range(rows):
            if load_int64(slot(call, scratch, EXACT, block + r), 0) == 0:
                query = scratch + call.at_query + (block + r) * padded(call.features) * item
                factors = factors_of(call, first_row + block + r)
                row = scratch + call.at_scores + r * SCORE_STRIDE * item
                for column in range(first, stop, LANES):
                    keys = place + (column - panel * PANEL_KEYS) * item
                    score_sixteen_again(tag, call, factors, query, keys, row + column * item)

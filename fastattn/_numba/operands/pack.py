"""Pack: what the tiles read, whatever layout and storage type the caller has.

Keys become panels `[features][64 keys]`, one vector load a feature for sixteen keys; queries become
rows; values are used where they lie unless their layout forbids it. Conversion of storage types,
cosine norms and the exact part of scale happen here, so that the tiles never see them.
"""

from fastattn._core.constants import FEATURE_RUN, PANEL_KEYS

from ..compiler.compile import device
from ..machine.elementary import inverse_exponent
from ..machine.emit import LANES
from ..machine.memory import (
    load,
    native_code,
    prefetch,
    stack_room,
    store,
    store_first,
    transpose_four,
)
from ..machine.simd import (
    absolute,
    any_nan,
    cast,
    fma,
    item_size,
    lane_max,
    lane_sum,
    larger,
    same_lanes,
    select_equal,
    splat,
    square_root,
)
from ..machine.storage import widen_row
from ..machine.sums import settled
from ..machine.two_floats import paired
from .record import COSINE

# How many rows ahead of packing keys are fetched.
PREFETCH_KEYS = 32
# Bytes of sixteen vectors.
_CHAINS = 8 * LANES * LANES


@device
def pack_matrix(
    tag, code, source, outer_stride, inner_stride, outers, inners, target, target_stride
):
    """Write `target[outer][inner]` from strided storage; strides in bytes.

    What stands between `inners` and its next multiple of sixteen is left or filled with anything
    finite or not: the caller hides or clears it. Requires that `target` has room for it.
    """
    ahead = PREFETCH_KEYS * inner_stride
    pack_ahead(
        tag, code, source, outer_stride, inner_stride, outers, inners, target, target_stride, ahead
    )


@device
def pack_ahead(
    tag, code, source, outer_stride, inner_stride, outers, inners, target, target_stride, ahead
):
    """As `pack_matrix`; transposing asks for what lies `ahead` bytes beyond what it reads."""
    item = item_size(tag)
    native = code == native_code(tag)
    if native and inner_stride != item and outer_stride == item and outers >= 4:
        for first in range(0, inners, LANES):
            start = source + first * inner_stride
            end = target + first * item
            last = min(inners - first, LANES) - 1
            for outer in range(0, outers, 4):
                # The last four overlap the ones before when `outers` is no multiple of four.
                outer = min(outer, outers - 4)
                # Four cache lines a step: those of sixteen rows, line by line.
                later = start + ahead + outer // 16 * 64
                for row in range(outer % 16, outer % 16 + 4):
                    prefetch(later + row * inner_stride)
                place = end + outer * target_stride
                if last == LANES - 1:
                    transpose_four(
                        tag, 1, start + outer * item, inner_stride, last, place, target_stride
                    )
                else:
                    transpose_four(
                        tag, 0, start + outer * item, inner_stride, last, place, target_stride
                    )
    else:
        for outer in range(outers):
            row = source + outer * outer_stride
            widen_row(tag, code, row, inner_stride, inners, target + outer * target_stride)


@device
def clear_row(tag, target, begin, end):
    """Zeros at elements begin to end of a row."""
    item = item_size(tag)
    zero = splat(cast(tag, 0.0))
    for i in range(begin, end, LANES):
        store_first(target + i * item, zero, end - i)


@device
def scale_row(tag, target, length, call, factors, always, most):
    """Multiply a padded row by the power of two in `query_first * query_second` of the factors.

    Only if no element loses a bit, overflows or gets beyond `most`, or `always`, or if the row
    holds a NaN, which comes out of every score; returns whether it was done. There are two factors
    because one may lie beyond the range of the type.
    """
    item = item_size(tag)
    first, second = splat(cast(tag, factors.query_first)), splat(cast(tag, factors.query_second))
    back_first = splat(cast(tag, 1.0 / factors.query_first))
    back_second = splat(cast(tag, 1.0 / factors.query_second))
    exact = True
    largest = splat(cast(tag, 0.0))
    for i in range(0, length, LANES):
        value = load(tag, target + i * item)
        scaled = value * first * second
        exact &= same_lanes(scaled * back_second * back_first, value)
        largest = larger(largest, absolute(scaled))
    exact &= lane_max(largest) <= most
    exact |= always
    if not exact:
        for i in range(0, length, LANES):
            exact |= any_nan(load(tag, target + i * item))
    if exact:
        for i in range(0, length, LANES):
            store(target + i * item, load(tag, target + i * item) * first * second)
    return exact


@device
def normalise_query(tag, row, length):
    """Divide a padded row by its Euclidean norm; a zero row stays zero. No overflow on the way.

    Feature e's square goes to chain e % 16 of its run of features; the lane tree adds the chains.
    """
    item = item_size(tag)
    largest = total = error = splat(cast(tag, 0.0))
    for i in range(0, length, LANES):
        largest = larger(largest, absolute(load(tag, row + i * item)))
    exponent = inverse_exponent(splat(lane_max(largest)))
    for first in range(0, length, FEATURE_RUN):
        squares = splat(cast(tag, 0.0))
        for i in range(first, min(first + FEATURE_RUN, length), LANES):
            value = load(tag, row + i * item) * exponent
            squares = fma(value, value, squares)
        total, lost = paired(total, splat(lane_sum(squares)))
        error = error + lost
    inverse = _inverse_norm(tag, settled(total, error))
    for i in range(0, length, LANES):
        store(row + i * item, load(tag, row + i * item) * exponent * inverse)


@device
def _inverse_norm(tag, squares):
    zero = splat(cast(tag, 0.0))
    return select_equal(squares, cast(tag, 0.0), zero, splat(cast(tag, 1.0)) / square_root(squares))


@device
def _squares_of_keys(tag, place, exponent, first, stop):
    """The sums of squares of sixteen keys over the features first to stop.

    As `normalise_query` adds those of a run: features and lanes have changed places.
    """
    item = item_size(tag)
    chains, size = stack_room(_CHAINS), LANES * item
    for i in range(LANES):
        store(chains + i * size, splat(cast(tag, 0.0)))
    for e in range(first, stop):
        value = load(tag, place + e * PANEL_KEYS * item) * exponent
        chain = chains + e % LANES * size
        store(chain, fma(value, value, load(tag, chain)))
    half = LANES // 2
    while half >= 1:
        for i in range(half):
            low, high = chains + i * size, chains + (i + half) * size
            store(low, load(tag, low) + load(tag, high))
        half //= 2
    return load(tag, chains)


@device
def normalise_keys(tag, panel, features):
    """Divide each key of a panel by its Euclidean norm, with the bits of `normalise_query`.

    As far as operands are alike, similarities are then symmetric.
    """
    item = item_size(tag)
    stride = PANEL_KEYS * item
    for place in range(panel, panel + stride, LANES * item):
        largest = total = error = splat(cast(tag, 0.0))
        for e in range(features):
            largest = larger(largest, absolute(load(tag, place + e * stride)))
        exponent = inverse_exponent(largest)
        for first in range(0, features, FEATURE_RUN):
            stop = min(first + FEATURE_RUN, features)
            squares = _squares_of_keys(tag, place, exponent, first, stop)
            total, lost = paired(total, squares)
            error = error + lost
        inverse = _inverse_norm(tag, settled(total, error))
        for e in range(features):
            store(place + e * stride, load(tag, place + e * stride) * exponent * inverse)


@device
def finish_panel(tag, call, factors, target):
    """Cosine norms and the exact part of scale go onto a panel of packed keys."""
    stride = PANEL_KEYS * item_size(tag)
    if call.metric == COSINE:
        normalise_keys(tag, target, call.features)
    elif factors.key_factor != 1.0:
        factor = splat(cast(tag, factors.key_factor))
        for place in range(target, target + call.features * stride, LANES * item_size(tag)):
            store(place, load(tag, place) * factor)

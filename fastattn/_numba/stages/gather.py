"""Step gather of softmax and its relatives: scores, and their factors, into scratch."""

import numpy as np

from ..compiler.compile import device
from ..machine.emit import LANES
from ..machine.halves import add_halves, is_half, widen_lines
from ..machine.memory import load, load_as, load_first, native_code, prefetch, store
from ..machine.simd import cast, item_size, select_equal, splat
from ..operands.pack import pack_matrix
from ..operands.record import FLOAT_MASK, NO_MASK
from ..steps.score import mask_row

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


@device
def gather_factors(tag, call, factors, keys, scores, target):
    """Step gather: the factors of a row's exponentials.

    A factor of 0 hides its key, and a hidden key has the factor 0, whatever they hold.
    """
    item = item_size(tag)
    pack_matrix(
        tag, call.factors_code, factors, 0, call.factors_key, 1, keys, target, call.block_stride
    )
    zero, hidden = cast(tag, 0.0), cast(tag, -np.inf)
    for offset in range(0, keys * item, LANES * item):
        score = load(tag, scores + offset)
        factor = load(tag, target + offset)
        store(target + offset, select_equal(score, hidden, splat(zero), factor))
        store(scores + offset, select_equal(factor, zero, splat(hidden), score))


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

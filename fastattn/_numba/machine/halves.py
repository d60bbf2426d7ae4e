"""Halves in the stages: lines widened on their way in, rounded on their way out, by sixteens.

A line of at least sixteen has no slow end: its last sixteen elements overlap the ones before.
"""

import numpy as np

from ..compiler.compile import device
from .emit import LANES
from .memory import load, native_code, prefetch, store, store_scalar
from .simd import cast, item_size, select_equal, splat
from .storage import (
    BFLOAT,
    HALF,
    load_widened,
    round_row,
    store_first_rounded,
    widen_row,
)

# Lines that are fetched before their turn.
LINES_AHEAD = 24


@device
def is_half(code):
    """Whether a storage code is that of float16 or bfloat16 in the machine's byte order."""
    return code == HALF or code == BFLOAT


@device
def widen_line(tag, code, source, count, target):
    """Write contiguous halves as the tag's type; reads and writes nothing beyond."""
    whole = count if count < LANES else count // LANES * LANES
    widen_row(tag, code, source, 2, whole, target)
    if whole < count:
        last = count - LANES
        widen_row(tag, code, source + 2 * last, 2, LANES, target + last * item_size(tag))


@device
def widen_lines(tag, code, source, source_stride, lines, count, target, target_stride):
    """Write lines of contiguous halves as the tag's type; what follows on, as one line."""
    if source_stride == 2 * count and target_stride == count * item_size(tag):
        lines, count = 1, lines * count
    for line in range(lines):
        here = source + line * source_stride
        for offset in range(0, 2 * count, 64):
            prefetch(here + LINES_AHEAD * source_stride + offset)
        widen_line(tag, code, here, count, target + line * target_stride)


@device
def round_line(tag, code, source, count, target, stride):
    """As `round_row`, but reads nothing beyond."""
    whole = count
    if stride == 2 and count > LANES:
        whole = count // LANES * LANES
    round_row(tag, code, source, whole, target, stride)
    if whole < count:
        last = count - LANES
        round_row(tag, code, source + last * item_size(tag), LANES, target + 2 * last, 2)


@device
def round_lines(tag, code, source, lines, count, target, target_stride):
    """Write contiguous lines as halves; what follows on, as one line."""
    source_stride = count * item_size(tag)
    if target_stride == 2 * count:
        lines, count = 1, lines * count
    for line in range(lines):
        place = target + line * target_stride
        round_line(tag, code, source + line * source_stride, count, place, 2)


@device
def store_number(tag, code, place, number):
    """Write one number as the tag's type or a half."""
    if code == native_code(tag):
        store_scalar(place, number)
    elif code == HALF:
        store_first_rounded(HALF, place, splat(number))
    else:
        store_first_rounded(BFLOAT, place, splat(number))


@device
def add_halves(tag, code, mask, scores, count):
    """Add a mask of contiguous halves to a row of scores, whole sixteens only; returns how many.

    Where the mask is -inf the score is, whatever it was.
    """
    item = item_size(tag)
    hidden = cast(tag, -np.inf)
    whole = count // LANES * LANES
    for i in range(0, whole, LANES):
        if code == HALF:
            bias = load_widened(tag, HALF, mask + 2 * i)
        else:
            bias = load_widened(tag, BFLOAT, mask + 2 * i)
        place = scores + i * item
        store(place, select_equal(bias, hidden, bias, load(tag, place) + bias))
    return whole

"""Twins of the vectors of small storage types: float16, bfloat16, int8, and pairs of bfloat16."""

import numpy as np

from .floats import F32, dtype_of, wide_sum
from .lanes import LANES, Vector, both, splat
from .words import read_known, read_rows, write_array, write_rows

HALF, BFLOAT, INT8 = 11, 12, 3
ITEMS = {HALF: np.dtype(np.float16), BFLOAT: np.dtype(np.uint16), INT8: np.dtype(np.int8)}
U16, U32 = np.dtype(np.uint16), np.dtype(np.uint32)


def widened(stored, code):
    """Stored elements as float32, exactly."""
    if code == BFLOAT:
        return (stored.astype(U32) << 16).view(F32)
    return stored.astype(F32)


def load_widened(tag, code, address):
    stored, known = read_known(ITEMS[code], address, LANES)
    return Vector(widened(stored, code).astype(dtype_of(tag)), known)


def transpose_widened(tag, code, source, row_stride, scales, target, target_stride):
    count = 16 // ITEMS[code].itemsize
    columns, known = small_rows(code, source, row_stride, LANES, count, scales)
    known = None if known is None else known.T
    write_rows(target, target_stride, columns.T.astype(dtype_of(tag)), known)


def small_rows(code, address, stride, rows, count, scales):
    """Rows of a small storage type as float32, int8 times the scale of their row; what is known."""
    stored, known = read_rows(ITEMS[code], address, stride, rows, count)
    floats = widened(stored, code)
    if code != INT8:
        return floats, known
    scale, scale_known = read_known(F32, scales, rows)
    if scale_known is not None:
        known = both(known, np.broadcast_to(scale_known[:, None], floats.shape))
    return floats * scale[:, None], known


def to_bfloat(floats):
    """float32 rounded to bfloat16, as 16-bit words, ties to even; NaN stays NaN."""
    bits = floats.view(U32)
    rounded = bits + U32.type(0x7FFF) + (bits >> 16 & 1)
    chosen = np.where(np.isnan(floats), bits | U32.type(0x400000), rounded)
    return (chosen >> 16).astype(U16)


def _rounded_to(code, vector):
    floats = vector.lanes.astype(F32)
    return floats.astype(np.float16) if code == HALF else to_bfloat(floats)


def store_rounded(code, address, vector):
    write_array(address, _rounded_to(code, vector), vector.known)


def store_first_rounded(code, address, vector):
    known = None if vector.known is None else vector.known[:1]
    write_array(address, _rounded_to(code, vector)[:1], known)


def dequantised(tag, address, scale):
    stored, known = read_known(ITEMS[INT8], address, LANES)
    factor = splat(scale)
    product = widened(stored, INT8) * factor.lanes
    return Vector(product.astype(dtype_of(tag)), both(known, factor.known))


# --- bfloat16 in pairs --------------------------------------------------------------------------


def _flushed_to_bfloat(floats):
    """As the machine rounds: subnormal numbers are 0 before, and the result is none then."""
    tiny = np.abs(floats) < np.float32(2.0**-126)
    return to_bfloat(np.where(tiny, np.copysign(np.float32(0), floats), floats))


def rounded(vector):
    return Vector(widened(_flushed_to_bfloat(vector.lanes), BFLOAT), vector.known)


def store_narrow(address, vector):
    halves = _flushed_to_bfloat(vector.lanes)
    write_array(address, halves, vector.known)
    return Vector(widened(halves, BFLOAT), vector.known)


def store_interleaved(target, first, second):
    (low, low_known), (high, high_known) = (read_known(U16, row, LANES) for row in (first, second))
    write_array(target, low.astype(U32) | high.astype(U32) << 16, both(low_known, high_known))


def _no_subnormals(floats):
    return np.where(np.abs(floats) < np.float32(2.0**-126), np.copysign(0, floats), floats)


def _link(a, b, total):
    """One product of bfloat16 added with one rounding, without subnormal numbers."""
    exact = wide_sum(a, b, total)
    # A result is subnormal if it were one when rounded without a bound of the exponent.
    tiny = np.abs(exact) < 2.0**-126 - 2.0**-151
    return np.where(tiny, np.copysign(0.0, exact), exact).astype(F32)


def dot(a, b, total):
    """`total` and the products of pairs in 32-bit words: the second ones first, then the first."""
    high = [_no_subnormals((word & U32.type(0xFFFF0000)).view(F32)) for word in (a, b)]
    low = [_no_subnormals((word << 16).view(F32)) for word in (a, b)]
    high, low = ([one.astype(F32) for one in pair] for pair in (high, low))
    total = _link(*high, _no_subnormals(total).astype(F32))
    return _link(*low, total)


def dot_of_pair(total, first, second, values, taken):
    low, high = (_flushed_to_bfloat(weight.lanes).astype(U32) for weight in (first, second))
    pairs, known = read_known(U32, values, LANES)
    for one in (total, first, second):
        known = both(known, one.known)
    pairs = pairs & U32.type(taken & 0xFFFFFFFF)
    return Vector(dot(low | high << 16, pairs, total.lanes), known)


TWINS = {
    function.__name__: function
    for function in (
        load_widened, transpose_widened, store_rounded, store_first_rounded, dequantised, rounded,
        store_narrow, store_interleaved, dot_of_pair,
    )
}  # fmt: skip

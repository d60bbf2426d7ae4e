"""Twins of `tile` and `tile_small`: products and distances, each element the chains of the tile.

A link of a chain is taken by all elements of a tile at once, which changes none of them.
"""

import numpy as np

from fastattn._core.constants import FEATURE_CHAIN, SQUARE_CHAIN

from .floats import F32, dtype_of, fma, number
from .floats import number as number_of
from .lanes import LANES, both, raw
from .storage import BFLOAT, HALF, INT8, ITEMS, U32, dot, small_rows
from .words import read_rows, write_rows

_ROWS, _STRIP = 4, 4  # of `tile_small`


def _chains(depth, length=FEATURE_CHAIN):
    return (range(first, min(first + length, depth)) for first in range(0, depth, length))


def _put(c, c_stride, values, known, accumulate):
    if accumulate:
        rows, columns = values.shape
        old, old_known = read_rows(values.dtype, c, c_stride, rows, columns)
        values, known = old + values, both(known, old_known)
    write_rows(c, c_stride, values, known)


def _known_cells(left, right):
    """Which elements of a product are known: those of whole rows times whole columns."""
    (a, a_known), (b, b_known) = left, right
    if a_known is None and b_known is None:
        return None
    rows = np.ones(len(a), bool) if a_known is None else a_known.all(axis=1)
    columns = np.ones(b.shape[1], bool) if b_known is None else b_known.all(axis=0)
    return rows[:, None] & columns


def _multiplied(link, left, right, c, c_stride, accumulate, length=FEATURE_CHAIN):
    """C (+)= A [rows, depth] times B [depth, columns]; each chain is put or added when it ends."""
    (a, _), (b, _), known = left, right, _known_cells(left, right)
    for chain in _chains(len(b), length):
        sums = np.zeros((len(a), b.shape[1]), F32 if a.dtype == U32 else a.dtype)
        for step in chain:
            sums = link(a[:, step, None], b[step], sums)
        _put(c, c_stride, sums, known, accumulate)
        accumulate = True


def _turned(rows):
    values, known = rows
    return values.T, None if known is None else known.T


def _dot(a, b, total):
    a, b = np.broadcast_arrays(a, b)
    return dot(np.ascontiguousarray(a), np.ascontiguousarray(b), total)


def product_tile(
    tag, rows, vectors, whole, a, a_stride, b, b_stride, c, c_stride, depth, chain, groups,
    accumulate, fetch, fetch_stride,
):  # fmt: skip
    pairs = type(tag) is np.int32
    kind, link = (U32, _dot) if pairs else (dtype_of(tag), fma)
    rows, columns = rows * groups, vectors * LANES
    if depth <= 0:
        if not accumulate:
            write_rows(c, c_stride, np.zeros((rows, columns), F32 if pairs else kind))
        return
    left = read_rows(kind, a, a_stride, rows, depth)
    right = read_rows(kind, b, b_stride, depth, columns)
    _multiplied(link, left, right, c, c_stride, accumulate, chain)


def final_tile(
    tag, rows, vectors, a, a_stride, b, b_stride, c, c_stride, depth, groups, most, streamed
):
    kind, rows, columns = dtype_of(tag), rows * groups, vectors * LANES
    if streamed and (c % 64 or c_stride % 64):
        raise AssertionError(f"streams to rows from {c}, {c_stride} apart: no multiples of 64")
    left = read_rows(kind, a, a_stride, rows, max(depth, 0))
    right = read_rows(kind, b, b_stride, max(depth, 0), columns)
    total, known = np.zeros((rows, columns), kind), None
    if depth > 0:
        (x, _), (y, _), known = left, right, _known_cells(left, right)
        for number, chain in enumerate(_chains(depth)):
            sums = np.zeros((rows, columns), kind)
            for step in chain:
                sums = fma(x[:, step, None], y[step], sums)
            total = total + sums if number else sums
        most = raw(number_of(kind, most))
        total = np.where(total < -most, -most, total)
        total = np.where(total > most, most, total)
    write_rows(c, c_stride, total, known)


def distance_tile(tag, rows, factor, a, a_stride, b, b_stride, c, c_stride, depth):
    kind = dtype_of(tag)
    if depth <= 0:
        write_rows(c, c_stride, np.zeros((rows, LANES), kind))
        return
    left = read_rows(kind, a, a_stride, rows, depth)
    right = read_rows(kind, b, b_stride, depth, LANES)
    known, factor = _known_cells(left, right), raw(number(kind, factor))
    (a_rows, _), (b_rows, _), accumulate = left, right, False
    for chain in _chains(depth):
        sums = np.zeros((rows, LANES), kind)
        for first in range(chain.start, chain.stop, SQUARE_CHAIN):
            total = np.zeros((rows, LANES), kind)
            for step in range(first, min(first + SQUARE_CHAIN, chain.stop)):
                difference = (a_rows[:, step, None] - b_rows[step]) * factor
                total = fma(difference, difference, total)
            sums = sums + total
        _put(c, c_stride, 0 - sums, known, accumulate)
        accumulate = True


def score_sixteen(
    tag, rows, a, a_stride, b, b_stride, c, c_stride, depth, fetch, beyond, line_stride, step_stride
):
    if depth % 4 or depth <= 0:
        raise AssertionError(f"{depth} features are no multiple of four")
    kind = dtype_of(tag)
    left = read_rows(kind, a, a_stride, rows, depth)
    right = _turned(read_rows(kind, b, b_stride, LANES, depth))
    _multiplied(fma, left, right, c, c_stride, False)


# --- of small storage types ---------------------------------------------------------------------


def _check(code, rows):
    if code not in (HALF, BFLOAT, INT8) or rows not in (1, _ROWS):
        raise AssertionError(f"there is no tile of storage type {code} and {rows} rows")


def small_scores(
    code, rows, source, row_stride, scales, a, a_stride, c, c_stride, size, run, fetch
):  # fmt: skip
    _check(code, rows)
    count = size // ITEMS[code].itemsize
    keys = small_rows(code, source, row_stride, 2 * LANES, count, scales)
    left = read_rows(F32, a, a_stride, rows, count)
    _multiplied(fma, left, _turned(keys), c, c_stride, False)


def small_fused(
    code, rows, a, a_stride, b, b_stride, scales, c, c_stride, depth, accumulate, fetch,
    fetch_stride,
):  # fmt: skip
    _check(code, rows)
    values = small_rows(code, b, b_stride, depth, _STRIP * LANES, scales)
    left = read_rows(F32, a, a_stride, rows, depth)
    _multiplied(fma, left, values, c, c_stride, accumulate, depth)


def small_pair_scores(rows, source, row_stride, a, a_stride, c, c_stride, size, run, fetch):
    keys = read_rows(U32, source, row_stride, 2 * LANES, size // 4)
    left = read_rows(U32, a, a_stride, rows, size // 4)
    _multiplied(_dot, left, _turned(keys), c, c_stride, False)


def small_pair_fused(
    rows, a, a_stride, b, b_stride, c, c_stride, depth, accumulate, fetch, fetch_stride
):  # fmt: skip
    halves, known = read_rows(ITEMS[BFLOAT], b, b_stride, depth, _STRIP * LANES)
    if depth % 2:
        halves = np.vstack([halves, np.zeros_like(halves[:1])])
        known = None if known is None else np.vstack([known, np.ones_like(known[:1])])
    values = halves[::2].astype(U32) | halves[1::2].astype(U32) << 16
    known = None if known is None else known[::2] & known[1::2]
    left = read_rows(U32, a, a_stride, rows, len(values))
    _multiplied(_dot, left, (values, known), c, c_stride, accumulate, len(values))


TWINS = {
    function.__name__: function
    for function in (
        product_tile, final_tile, distance_tile, score_sixteen, small_scores, small_fused,
        small_pair_scores, small_pair_fused,
    )
}  # fmt: skip

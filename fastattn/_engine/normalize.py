"""Softmax and its relatives: from arrays to call records, scratch and launches."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastattn._core.arrays import computed
from fastattn._core.constants import LANES, SEGMENT_KEYS, padded

from .addresses import address, storage_code
from .kernels import Kernels
from .layouts import (
    BOOL_MASK,
    FIND_MAX,
    FIND_SUM,
    FINISH,
    FLOAT_MASK,
    LOG_SOFTMAX_RESULT,
    LOGSUMEXP_RESULT,
    LOOK_AGAIN,
    NO_MASK,
    SOFTMAX,
    SOFTMAX_RESULT,
    WHOLE,
)
from .record import Record, merge_dims
from .template import Template, describe_entries, lay_out

__all__ = ["log_softmax", "logsumexp", "softmax"]

# Rows this short lie side by side on the lanes even where their keys are contiguous.
_SHORT_KEYS = 128
# One worker's block of scores stays in the second-level cache.
_BLOCK_BYTES = 1 << 20
_SIDE_ROWS = 64
_CHUNK_BYTES = 1 << 16
# Results larger than the caches are stored past them: reading each line before it is overwritten
# costs a third of the memory traffic.
_STREAM_BYTES = 1 << 25
# Smaller results do not care where their blocks begin.
_SHIFT_BYTES = 1 << 16
_TASK_NUMBERS = 1 << 15
# Tasks of a large result are as large as a huge page: threads that touch a fresh one at once clear
# it each for itself, all but one for nothing, which doubled the time of a fresh result.
_PAGE_BYTES = 1 << 21
_SECONDS_PER_NUMBER = 3e-9
# Long rows near 0 are gone through once more, each by one worker, in pieces of 30 ms, between which
# Ctrl-C is seen. A number takes four times as long as elsewhere.
_AGAIN_NUMBERS = 1 << 21
_AGAIN_WORK = 4


def softmax(
    kernels: Kernels,
    x: np.ndarray,
    mask: np.ndarray | None,
    out: np.ndarray,
    scale: float,
    threads: int,
) -> Template | None:
    """Fill out (*rows, n) from x and mask (*rows, n)."""
    return _normalise(kernels, SOFTMAX_RESULT, x, mask, out, scale, threads)


def log_softmax(
    kernels: Kernels,
    x: np.ndarray,
    mask: np.ndarray | None,
    out: np.ndarray,
    scale: float,
    threads: int,
) -> Template | None:
    """Fill out (*rows, n) from x and mask (*rows, n)."""
    return _normalise(kernels, LOG_SOFTMAX_RESULT, x, mask, out, scale, threads)


def logsumexp(
    kernels: Kernels,
    x: np.ndarray,
    mask: np.ndarray | None,
    out: np.ndarray,
    scale: float,
    threads: int,
    factors: np.ndarray | None = None,
    sign: np.ndarray | None = None,
) -> Template | None:
    """Fill out (*rows), and sign too, from x, mask and factors (*rows, n)."""
    if x.shape[-1] == 0:
        out[...] = -np.inf
        if sign is not None:
            sign[...] = 0.0
        return None
    signed = _Factors(factors, sign) if factors is not None else None
    return _normalise(kernels, LOGSUMEXP_RESULT, x, mask, out[..., None], scale, threads, signed)


class _Factors(NamedTuple):
    """Factors (*rows, n) of the exponentials, and where the signs of the sums go, if anywhere."""

    factors: np.ndarray
    sign: np.ndarray | None  # the strides of the result


class _Rows:
    """The rows of one call: entries of rows at one stride, and how their keys lie."""

    def __init__(
        self,
        x: np.ndarray,
        mask: np.ndarray | None,
        out: np.ndarray,
        factors: np.ndarray | None,
    ) -> None:
        self.operands = [x, x if mask is None else mask, out, x if factors is None else factors]
        strides = [one.strides[:-1] for one in self.operands]
        order = sorted(range(x.ndim - 1), key=lambda axis: -abs(x.strides[axis]))
        shape = tuple(x.shape[axis] for axis in order)
        sizes, steps = merge_dims(shape, [tuple(one[axis] for axis in order) for one in strides])
        if not sizes:
            sizes, steps = [1], [[0] for _ in steps]
        self.shape = sizes[:-1]
        self.rows = sizes[-1]
        self.row_steps = [one[-1] for one in steps]
        self.entry_steps = [one[:-1] for one in steps]
        self.keys = x.shape[-1]
        self.key_steps = [one.strides[-1] for one in self.operands]


class _Way(NamedTuple):
    """How the kernel goes through the rows of one call."""

    sideways: bool  # rows, not keys, lie on the lanes
    direct: bool  # x is read as it is
    rounded: bool  # results are halves
    shifted: bool  # blocks begin where cache lines of the result do
    streamed: bool  # results are stored past the caches
    late: bool  # and only when a row is finished
    block_rows: int
    chunk_keys: int
    chunks: int


def _normalise(
    kernels: Kernels,
    operation: int,
    x: np.ndarray,
    mask: np.ndarray | None,
    out: np.ndarray,
    scale: float,
    threads: int,
    signed: _Factors | None = None,
) -> Template | None:
    if x.size == 0:
        return None
    dtype = computed(out.dtype)
    view = _Rows(x, mask, out, None if signed is None else signed.factors)
    as_it_is = mask is None and scale == 1.0 and signed is None
    way = _choose_way(view, operation, threads, as_it_is, signed is not None)
    record = Record(SOFTMAX)
    row_shift = address(out) % 64 // dtype.itemsize % way.block_rows if way.shifted else 0
    row_blocks = -(-(view.rows + row_shift) // way.block_rows)
    record.set(
        row_shift=row_shift,
        operation=operation,
        sideways=way.sideways,
        direct=way.direct,
        scaled=scale != 1.0,
        streamed=way.streamed,
        late=way.late,
        rows=view.rows,
        padded_rows=padded(view.rows),
        keys=view.keys,
        block_rows=way.block_rows,
        row_blocks=row_blocks,
        chunk_keys=way.chunk_keys,
        chunks=way.chunks,
        **_scale_factors(scale, dtype),
    )
    describe_entries(record, view.shape, view.entry_steps)
    _describe(record, view, mask, way.sideways)
    if signed is not None:
        _describe_factors(record, view, signed, out)
    _lay_out(record, way, operation, dtype.itemsize, signed is not None)
    entry, names = kernels.of("normalise", dtype), ("x", "mask", "output")
    plan = functools.partial(Template, kernels, entry, record, names)
    entries = math.prod(view.shape)
    blocks = entries * row_blocks * way.chunks
    workers = min(threads, blocks)
    numbers = way.block_rows * way.chunk_keys
    operands = (x, mask, out)
    if way.chunks > 1:
        _run_phases(
            plan, record, operation, operands, entries * view.rows, blocks, numbers, workers
        )
        return None
    paged = out.nbytes >= _STREAM_BYTES and not way.sideways
    most = _PAGE_BYTES // out.itemsize if paged else _TASK_NUMBERS
    planned = _phase(plan, record, WHOLE, blocks, numbers, workers, most)
    planned(*operands)
    if signed is not None:
        return None
    # Where a result lies decides nothing: the same plan serves other arrays.
    return None if way.shifted or (out.nbytes >= _STREAM_BYTES and not way.rounded) else planned


def _choose_way(
    view: _Rows, operation: int, threads: int, as_it_is: bool, has_factors: bool
) -> _Way:
    """Decide what changes no bit: blocks, lanes, and how results are stored."""
    x, out, rows, keys = view.operands[0], view.operands[2], view.rows, view.keys
    dtype = computed(out.dtype)
    item = dtype.itemsize
    in_place = x.dtype == dtype and x.dtype.isnative
    rounded = out.dtype != dtype
    columns = (
        (in_place or (x.dtype == out.dtype and rounded))
        and view.row_steps[0] == x.itemsize
        and view.key_steps[0] != x.itemsize
    )
    sideways = rows > 1 and (keys <= _SHORT_KEYS or columns) and not has_factors
    direct = not sideways and in_place and as_it_is and view.key_steps[0] == item
    block_rows = 1
    if sideways:
        block_rows = _SIDE_ROWS
        while block_rows > LANES and block_rows * keys * item > _BLOCK_BYTES:
            block_rows //= 2
        block_rows = min(block_rows, padded(rows))
    too_few = math.prod(view.shape) * -(-rows // block_rows) < 2 * threads and threads > 1
    chunk_keys = keys
    largest = _CHUNK_BYTES if too_few else _BLOCK_BYTES
    if block_rows * keys * item > largest and not has_factors:
        chunk_keys = max(SEGMENT_KEYS, _CHUNK_BYTES // (block_rows * item))
    chunks = -(-keys // chunk_keys)
    shifted = sideways and not rounded and view.row_steps[2] == item and out.nbytes >= _SHIFT_BYTES
    streamed = not rounded and out.nbytes >= _STREAM_BYTES and address(out) != address(x)
    late = streamed and direct and operation == SOFTMAX_RESULT and chunks == 1
    late = late and view.key_steps[2] == item
    late = late and not any(step % item for step in (address(out), *out.strides))
    return _Way(sideways, direct, rounded, shifted, streamed, late, block_rows, chunk_keys, chunks)


def _lay_out(record: Record, way: _Way, operation: int, item: int, has_factors: bool) -> None:
    """Lay out a worker's scratch."""
    width = way.block_rows if way.sideways else padded(way.chunk_keys)
    lines = way.chunk_keys if way.sideways else 1
    lay_out(
        record,
        at_stats=2 * max(way.block_rows, LANES) * item,
        at_parts=2 * LANES * 8,
        at_lanes=LANES * LANES * item,
        at_weights=_weights_numbers(operation, way.chunk_keys, way.sideways) * item,
        at_block=lines * width * item,
        at_turned=lines * width * item if way.rounded and way.sideways else 0,
        at_factors=width * item if has_factors else 0,
    )
    record.set(block_stride=width * item)


def _weights_numbers(operation: int, keys: int, sideways: bool) -> int:
    """Numbers of scratch for the exponentials of a segment, which logarithms go through twice."""
    if operation == SOFTMAX_RESULT:
        return 0
    return padded(min(keys, SEGMENT_KEYS)) * (LANES if sideways else 1)


def _describe_factors(record: Record, view: _Rows, signed: _Factors, out: np.ndarray) -> None:
    record.point(factors=signed.factors)
    record.set(
        factors_row=view.row_steps[3],
        factors_key=view.key_steps[3],
        factors_code=storage_code(signed.factors.dtype),
        sign=0 if signed.sign is None else address(signed.sign) - address(out),
    )


def _scale_factors(scale: float, dtype: np.dtype) -> dict[str, float]:
    """Split a factor so that no product on the way leaves the range of the dtype.

    Each of the three is within it. All of them together bring any number beyond it that the factor
    does; a larger one would be infinite, or 0, by itself, and make NaN of 0 or inf.
    """
    mantissa, exponent = math.frexp(scale)
    most = int(np.finfo(dtype).maxexp) - 3

    def within(power: int) -> int:
        return min(max(power, -most), most)

    first, second = within(exponent // 2), within(exponent - exponent // 2)
    return dict(
        rest=math.ldexp(mantissa, within(exponent - first - second)),
        power_first=math.ldexp(1.0, first),
        power_second=math.ldexp(1.0, second),
    )


def _describe(record: Record, view: _Rows, mask: np.ndarray | None, sideways: bool) -> None:
    x = view.operands[0]
    x_row, mask_row, out_row, _ = view.row_steps
    x_key, mask_key, out_key, _ = view.key_steps
    record.set(
        x_row=x_row,
        x_key=x_key,
        x_line=x_key if sideways else 0,
        x_lane=x_row if sideways else x_key,
        x_code=storage_code(x.dtype),
        output_row=out_row,
        output_key=out_key,
        output_line=out_key if sideways else 0,
        output_lane=out_row if sideways else out_key,
        output_code=storage_code(view.operands[2].dtype),
        mask_kind=NO_MASK,
    )
    if mask is not None:
        record.set(
            mask_kind=BOOL_MASK if mask.dtype == np.bool_ else FLOAT_MASK,
            mask_code=storage_code(mask.dtype),
            mask_row=mask_row,
            mask_step=mask_key,
            mask_line=mask_key if sideways else 0,
            mask_key=mask_row if sideways else mask_key,
        )


def _phase(
    plan: Callable[..., Template],
    record: Record,
    phase: int,
    blocks: int,
    numbers: int,
    workers: int,
    most: int = _TASK_NUMBERS,
) -> Template:
    task_blocks = max(1, min(most // max(numbers, 1), -(-blocks // (4 * workers))))
    record.set(phase=phase, blocks=blocks, task_blocks=task_blocks)
    seconds = task_blocks * (numbers * _SECONDS_PER_NUMBER + 1e-7)
    return plan(-(-blocks // task_blocks), seconds, workers)


def _run_phases(
    plan: Callable[..., Template],
    record: Record,
    operation: int,
    operands: tuple[np.ndarray, np.ndarray | None, np.ndarray],
    rows: int,
    blocks: int,
    numbers: int,
    workers: int,
) -> None:
    word = record.layout.word
    dtype = computed(operands[2].dtype)
    keys, chunks = (int(record.words[word[field]]) for field in ("keys", "chunks"))
    entries = rows // int(record.words[word["rows"]])
    state = entries * int(record.words[word["padded_rows"]])
    maxima = np.empty((chunks, state), dtype)
    # Logarithms have the sum in two numbers, which add up in float64.
    parts = ("sum",) if operation == SOFTMAX_RESULT else ("sum", "rest")
    wide = dtype if operation == SOFTMAX_RESULT else np.dtype(np.float64)
    sums = {part: np.empty((-(-keys // SEGMENT_KEYS), state), dtype) for part in parts}
    record.set(sums_stride=state * dtype.itemsize)
    record.point(maxima=maxima, **{f"{part}s": sums[part] for part in parts})
    _phase(plan, record, FIND_MAX, blocks, numbers, workers)(*operands)
    state_max = np.fmax.reduce(maxima, axis=0)
    record.point(state_max=state_max)
    _phase(plan, record, FIND_SUM, blocks, numbers, workers)(*operands)
    # Sums of segments from left to right: `cumsum` cannot take another order, `sum` would.
    states = {
        f"state_{part}": np.cumsum(sums[part], axis=0, dtype=wide)[-1].copy() for part in parts
    }
    state_max[np.isnan(maxima).any(axis=0)] = np.nan
    record.point(**states)
    near = np.full(state, np.nan)  # log-sum-exps that have to be looked at again
    if operation == LOGSUMEXP_RESULT:
        record.set(chunk_keys=0, chunks=1)
        record.point(near=near)
        blocks //= chunks
    _phase(plan, record, FINISH, blocks, numbers, workers)(*operands)
    if np.isnan(near).all():
        return
    again = np.zeros((state, 2 * LANES))
    record.point(near_sums=again)
    block_rows = int(record.words[word["block_rows"]])
    most = max(LANES, _AGAIN_NUMBERS // block_rows // LANES * LANES)
    for first in range(0, keys, most):
        record.set(first_again=first, stop_again=min(first + most, keys))
        numbers = _AGAIN_WORK * block_rows * most
        _phase(plan, record, LOOK_AGAIN, blocks, numbers, workers)(*operands)

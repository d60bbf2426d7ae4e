"""The three stages on their own: from arrays to call records, scratch and launches."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastattn._core.plan import LANES, PANEL_KEYS, SEGMENT_KEYS, TILE_ROWS, padded

from . import compile, launch
from . import fuse as fusing
from . import similarity as comparing
from . import softmax as kernel
from .calls import Record, address, merge_dims, split_scale
from .memory import storage_code as _storage_code
from .record import BOOL_MASK, FLOAT_MASK, NO_MASK

__all__ = ["ENTRIES", "fuse", "log_softmax", "logsumexp", "similarity", "softmax"]

# A dtype's name costs microseconds.
storage_code = functools.cache(_storage_code)

_NORMALISE = {
    np.dtype(np.float32): kernel.normalise_float32,
    np.dtype(np.float64): kernel.normalise_float64,
}
_COMPARE = {
    np.dtype(np.float32): comparing.compare_float32,
    np.dtype(np.float64): comparing.compare_float64,
}
_FUSE = {
    np.dtype(np.float32): fusing.fuse_float32,
    np.dtype(np.float64): fusing.fuse_float64,
}
ENTRIES = (*_NORMALISE.values(), *_COMPARE.values(), *_FUSE.values())

# Rows this short lie side by side on the lanes even where their keys are contiguous.
_SHORT_KEYS = 32
# One worker's block of scores stays in the second-level cache.
_BLOCK_BYTES = 1 << 20
_SIDE_ROWS = 64
_CHUNK_BYTES = 1 << 16
# Results larger than the caches are stored past them: reading each line before it is overwritten
# costs a third of the memory traffic.
_STREAM_BYTES = 1 << 25
_TASK_NUMBERS = 1 << 15
_SECONDS_PER_NUMBER = 3e-9


def softmax(
    x: np.ndarray, mask: np.ndarray | None, out: np.ndarray, scale: float, threads: int
) -> None:
    """Fill out (*rows, n) from x and mask (*rows, n)."""
    _normalise(kernel.SOFTMAX, x, mask, out, scale, threads)


def log_softmax(
    x: np.ndarray, mask: np.ndarray | None, out: np.ndarray, scale: float, threads: int
) -> None:
    """Fill out (*rows, n) from x and mask (*rows, n)."""
    _normalise(kernel.LOG_SOFTMAX, x, mask, out, scale, threads)


def logsumexp(
    x: np.ndarray, mask: np.ndarray | None, out: np.ndarray, scale: float, threads: int
) -> None:
    """Fill out (*rows) from x and mask (*rows, n)."""
    if x.shape[-1] == 0:
        out[...] = -np.inf
        return
    _normalise(kernel.LOGSUMEXP, x, mask, out[..., None], scale, threads)


class _Rows:
    """The rows of one call: entries of rows at one stride, and how their keys lie."""

    def __init__(self, x: np.ndarray, mask: np.ndarray | None, out: np.ndarray) -> None:
        self.operands = [x, x if mask is None else mask, out]
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


def _normalise(
    operation: int,
    x: np.ndarray,
    mask: np.ndarray | None,
    out: np.ndarray,
    scale: float,
    threads: int,
) -> None:
    if x.size == 0:
        return
    dtype = out.dtype
    item = dtype.itemsize
    view = _Rows(x, mask, out)
    rows, keys = view.rows, view.keys
    entries = math.prod(view.shape)
    in_place = x.dtype == dtype and x.dtype.isnative
    columns = in_place and view.row_steps[0] == item and view.key_steps[0] != item
    sideways = rows > 1 and (keys <= _SHORT_KEYS or columns)
    direct = not sideways and in_place and mask is None and scale == 1.0
    direct = direct and view.key_steps[0] == item
    record = Record(kernel.LAYOUT)
    block_rows = 1
    if sideways:
        block_rows = _SIDE_ROWS
        while block_rows > LANES and block_rows * keys * item > _BLOCK_BYTES:
            block_rows //= 2
        block_rows = min(block_rows, padded(rows))
    too_few = entries * -(-rows // block_rows) < 2 * threads and threads > 1
    chunk_keys = keys
    if block_rows * keys * item > (_CHUNK_BYTES if too_few else _BLOCK_BYTES):
        chunk_keys = max(SEGMENT_KEYS, _CHUNK_BYTES // (block_rows * item))
    chunks = -(-keys // chunk_keys)
    row_shift = address(out) % 64 // item if sideways and view.row_steps[2] == item else 0
    row_shift %= block_rows
    row_blocks = -(-(rows + row_shift) // block_rows)
    record.set(
        row_shift=row_shift,
        operation=operation,
        sideways=sideways,
        direct=direct,
        scaled=scale != 1.0,
        streamed=out.nbytes >= _STREAM_BYTES and address(out) != address(x),
        rows=rows,
        padded_rows=padded(rows),
        keys=keys,
        block_rows=block_rows,
        row_blocks=row_blocks,
        chunk_keys=chunk_keys,
        chunks=chunks,
        entry_rank=len(view.shape),
        **_factors(scale),
    )
    record.point(
        entry_shape=np.array([*view.shape, 1], np.int64),
        entry_strides=np.array([*np.ravel(view.entry_steps), 0], np.int64),
    )
    _describe(record, view, mask, sideways)
    width = block_rows if sideways else padded(chunk_keys)
    lines = chunk_keys if sideways else 1
    workers = min(threads, entries * row_blocks * chunks)
    scratch = _lay_out(
        record,
        workers,
        at_stats=2 * max(block_rows, LANES) * item,
        at_lanes=LANES * LANES * item,
        at_block=lines * width * item,
    )
    record.set(block_stride=width * item)
    entry = _NORMALISE[dtype]
    blocks = entries * row_blocks * chunks
    numbers = block_rows * chunk_keys
    if chunks == 1:
        _launch(entry, record, kernel.WHOLE, blocks, numbers, workers)
    else:
        _run_phases(entry, record, operation, dtype, entries * rows, blocks, numbers, workers)
    del scratch


def _factors(scale: float) -> dict[str, float]:
    """Split a factor so that no product on the way leaves the range of the dtype."""
    mantissa, exponent = math.frexp(scale)
    return dict(
        rest=mantissa,
        power_first=math.ldexp(1.0, exponent // 2),
        power_second=math.ldexp(1.0, exponent - exponent // 2),
    )


def _describe(record: Record, view: _Rows, mask: np.ndarray | None, sideways: bool) -> None:
    x, _, out = view.operands
    (x_row, mask_row, out_row), (x_key, mask_key, out_key) = view.row_steps, view.key_steps
    record.point(x=x, output=out)
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
        mask_kind=NO_MASK,
    )
    if mask is not None:
        record.point(mask=mask)
        record.set(
            mask_kind=BOOL_MASK if mask.dtype == np.bool_ else FLOAT_MASK,
            mask_code=storage_code(mask.dtype),
            mask_row=mask_row,
            mask_step=mask_key,
            mask_line=mask_key if sideways else 0,
            mask_key=mask_row if sideways else mask_key,
        )


def _lay_out(record: Record, workers: int, **sizes: int) -> np.ndarray:
    """Give every worker scratch of these parts; the record learns where they begin."""
    size = 0
    for field, part in sizes.items():
        record.set(**{field: size})
        size += padded(part, 64)
    scratch = np.empty(workers * size + 64, np.uint8)
    record.point(scratch=scratch)
    record.words[record.layout.word["scratch"]] += -address(scratch) % 64
    record.set(scratch_stride=size)
    return scratch


def _launch(
    entry: compile.Entry, record: Record, phase: int, blocks: int, numbers: int, workers: int
) -> None:
    task_blocks = max(1, min(_TASK_NUMBERS // max(numbers, 1), -(-blocks // (4 * workers))))
    record.set(phase=phase, blocks=blocks, task_blocks=task_blocks)
    seconds = task_blocks * (numbers * _SECONDS_PER_NUMBER + 1e-7)
    launch.run(entry, record.words, -(-blocks // task_blocks), seconds, workers)


def _run_phases(
    entry: compile.Entry,
    record: Record,
    operation: int,
    dtype: np.dtype[Any],
    rows: int,
    blocks: int,
    numbers: int,
    workers: int,
) -> None:
    word = record.layout.word
    keys, chunks = (int(record.words[word[field]]) for field in ("keys", "chunks"))
    entries = rows // int(record.words[word["rows"]])
    state = entries * int(record.words[word["padded_rows"]])
    maxima = np.empty((chunks, state), dtype)
    sums = np.empty((-(-keys // SEGMENT_KEYS), state), dtype)
    record.set(sums_stride=state * dtype.itemsize)
    record.point(maxima=maxima, sums=sums)
    _launch(entry, record, kernel.FIND_MAX, blocks, numbers, workers)
    with np.errstate(all="ignore"):
        state_max = np.fmax.reduce(maxima, axis=0)
        record.point(state_max=state_max)
        _launch(entry, record, kernel.FIND_SUM, blocks, numbers, workers)
        # Sums of segments from left to right: `cumsum` cannot take another order, `sum` would.
        state_sum = np.cumsum(sums, axis=0, dtype=dtype)[-1].copy()
        state_max[np.isnan(maxima).any(axis=0)] = np.nan
    record.point(state_sum=state_sum)
    if operation == kernel.LOGSUMEXP:
        record.set(chunk_keys=0, chunks=1)
        blocks //= chunks
    _launch(entry, record, kernel.FINISH, blocks, numbers, workers)


# Rows of a task: enough that packing its keys once costs a few per cent, in a cache's size.
_MOST_TASK_ROWS = 480
_TASK_KEYS = 1024
_FUSE_ROWS = 192
_FUSE_COLUMNS = 64
_FLOPS_PER_SECOND = {4: 4e10, 8: 2e10}


def _entries(record: Record, operands: list[np.ndarray], inner: list[int]) -> int:
    """Describe the batch dims that all operands share in front of their last `inner` ones."""
    strides = [one.strides[: one.ndim - own] for one, own in zip(operands, inner, strict=True)]
    batch = operands[0].shape[: operands[0].ndim - inner[0]]
    shape, steps = merge_dims(batch, strides)
    record.set(entry_rank=len(shape))
    record.point(
        entry_shape=np.array([*shape, 1], np.int64),
        entry_strides=np.array([*np.ravel(steps), 0], np.int64),
    )
    return math.prod(batch)


def _halve(most: int, least: int, size: int, enough: Callable[[int], bool]) -> int:
    """Largest block of at most `most` that leaves enough tasks; multiples of `least`."""
    block = min(most, padded(size, least))
    while block > least and not enough(block):
        block = padded(block // 2, least)
    return block


def similarity(
    query: np.ndarray,
    key: np.ndarray,
    out: np.ndarray,
    metric: str,
    scale: float,
    threads: int,
) -> None:
    """Fill out (*batch, L, S) from (*batch, L, E) and (*batch, S, E)."""
    if out.size == 0:
        return
    item = out.dtype.itemsize
    rows, features = query.shape[-2:]
    keys = key.shape[-2]
    record = Record(comparing.LAYOUT)
    entries = _entries(record, [query, key, out], [2, 2, 2])
    words = split_scale(metric, scale, None, shaped=True)
    del words["shaped"], words["softcap"]
    record.set(**words)
    record.point(query=query, key=key, output=out)

    def tasks(task_rows: int, task_keys: int) -> int:
        return entries * -(-rows // task_rows) * -(-keys // task_keys)

    wanted = 4 * threads if threads > 1 else 1
    task_keys = _halve(_TASK_KEYS, PANEL_KEYS, keys, lambda n: tasks(_MOST_TASK_ROWS, n) >= wanted)
    task_rows = _halve(_MOST_TASK_ROWS, TILE_ROWS, rows, lambda n: tasks(n, task_keys) >= wanted)
    task_rows = max(task_rows, min(48, padded(rows, TILE_ROWS)))
    record.set(
        queries=rows,
        keys=keys,
        features=features,
        task_rows=task_rows,
        row_tasks=-(-rows // task_rows),
        task_keys=task_keys,
        key_tasks=-(-keys // task_keys),
        query_row=query.strides[-2],
        query_feature=query.strides[-1],
        query_code=storage_code(query.dtype),
        key_row=key.strides[-2],
        key_feature=key.strides[-1],
        key_code=storage_code(key.dtype),
        output_row=out.strides[-2],
        output_key=out.strides[-1],
    )
    many = tasks(task_rows, task_keys)
    workers = min(threads, many)
    _lay_out(
        record,
        workers,
        at_query=task_rows * padded(features) * item,
        at_exact=task_rows * 8,
        at_panel=PANEL_KEYS * features * item,
        at_tile=TILE_ROWS * PANEL_KEYS * item,
    )
    numbers = task_rows * task_keys * (features + 16)
    seconds = numbers * 2 / _FLOPS_PER_SECOND[item] + 1e-7
    launch.run(_COMPARE[out.dtype], record.words, many, seconds, workers)


def fuse(
    weights: np.ndarray, value: np.ndarray, out: np.ndarray, reduce: bool, threads: int
) -> None:
    """Fill out (*batch, L, Ev), or (*batch, L, S, Ev) where not reduced."""
    if out.size == 0:
        return
    item = out.dtype.itemsize
    rows, keys = weights.shape[-2:]
    features = value.shape[-1]
    record = Record(fusing.LAYOUT)
    entries = _entries(record, [weights, value, out], [2, 2, 2 if reduce else 3])
    record.point(weights=weights, value=value, output=out)

    def tasks(task_rows: int, task_columns: int) -> int:
        return entries * -(-rows // task_rows) * -(-features // task_columns)

    wanted = 4 * threads if threads > 1 else 1
    columns = _FUSE_COLUMNS
    task_rows = _halve(_FUSE_ROWS, TILE_ROWS, rows, lambda n: tasks(n, columns) >= wanted)
    task_rows = max(task_rows, min(24, padded(rows, TILE_ROWS)))
    columns = _halve(_FUSE_COLUMNS, LANES, features, lambda n: tasks(task_rows, n) >= threads)
    native = [one.dtype == out.dtype and one.dtype.isnative for one in (weights, value)]
    output_key = 0 if reduce else out.strides[-2]
    record.set(
        reduced=reduce,
        rows=rows,
        keys=keys,
        features=features,
        task_rows=task_rows,
        row_tasks=-(-rows // task_rows),
        task_columns=columns,
        column_tasks=-(-features // columns),
        weights_row=weights.strides[-2],
        weights_key=weights.strides[-1],
        weights_code=storage_code(weights.dtype),
        weights_in_place=native[0] and weights.strides[-1] == item,
        value_row=value.strides[-2],
        value_feature=value.strides[-1],
        value_code=storage_code(value.dtype),
        value_in_place=native[1] and value.strides[-1] == item,
        output_row=out.strides[-2 if reduce else -3],
        output_key=output_key,
        output_feature=out.strides[-1],
    )
    many = tasks(task_rows, columns)
    workers = min(threads, many)
    width = padded(columns) * item
    _lay_out(
        record,
        workers,
        at_weights=TILE_ROWS * fusing.FUSE_KEYS * item,
        at_values=SEGMENT_KEYS * width,
        at_block=task_rows * width,
        at_running=task_rows * width,
    )
    seconds = task_rows * keys * (columns + 16) * 2 / _FLOPS_PER_SECOND[item] + 1e-7
    launch.run(_FUSE[out.dtype], record.words, many, seconds, workers)

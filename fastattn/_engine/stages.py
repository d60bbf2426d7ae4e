"""Similarity and fuse on their own: from arrays to call records, scratch and launches."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fastattn._core.arrays import LINE, computed
from fastattn._core.constants import FUSE_KEYS, LANES, PANEL_KEYS, TILE_ROWS, padded

from .addresses import address, storage_code
from .describe import METRICS, split_scales
from .kernels import Kernels
from .layouts import FACTORS, FUSE, SIMILARITY, STRIP
from .record import Record, merge_dims
from .template import Template, describe_entries, lay_out

__all__ = ["fuse", "similarity"]

# Rows of a task: enough that packing its keys once costs a few per cent, as long as their queries
# leave room in the second-level cache.
_QUERY_BYTES = 1 << 19
_LEAST_TASK_ROWS = 48
_TASK_KEYS = 4096
# Results larger than the caches are stored past them, whole lines at a time: 72 % of the fused
# multiply-adds' ceiling become 86 % (4096 x 32768, 128 features).
_STREAM_BYTES = 1 << 25
_STREAM_ROW = 1 << 11
# The weights of this task and of the next lie in the second-level cache side by side.
_FUSE_ROWS = 96
# Columns of a task share one reading of the weights; two rows of them, in bytes, a row of scratch.
_FUSE_COLUMN_BYTES = 1024
_FLOPS_PER_SECOND = {4: 4e10, 8: 2e10}


def _entries(record: Record, operands: list[np.ndarray], inner: list[int]) -> int:
    """Describe the batch dims that all operands share in front of their last `inner` ones."""
    strides = [one.strides[: one.ndim - own] for one, own in zip(operands, inner, strict=True)]
    batch = operands[0].shape[: operands[0].ndim - inner[0]]
    shape, steps = merge_dims(batch, strides)
    describe_entries(record, shape, steps)
    return math.prod(batch)


def _halve(most: int, least: int, size: int, enough: Callable[[int], bool]) -> int:
    """Largest block of at most `most` that leaves enough tasks; multiples of `least`."""
    block = min(most, padded(size, least))
    while block > least and not enough(block):
        block = padded(block // 2, least)
    return block


def _is_streamed(out: np.ndarray) -> bool:
    """Whether a result is large, and all its rows begin at the same place of a cache line."""
    return (
        out.dtype == computed(out.dtype)
        and out.nbytes >= _STREAM_BYTES
        and out.shape[-1] * out.itemsize >= _STREAM_ROW
        and out.strides[-1] == out.itemsize
        and not any(stride % LINE for stride in out.strides[:-1])
    )


def similarity(
    kernels: Kernels,
    query: np.ndarray,
    key: np.ndarray,
    out: np.ndarray,
    metric: str,
    scale: float | np.ndarray,
    threads: int,
) -> Template | None:
    """Fill out (*batch, L, S) from (*batch, L, E) and (*batch, S, E); scale is one or (*batch)."""
    if out.size == 0:
        return None
    dtype = computed(out.dtype)
    item = dtype.itemsize
    rows, features = map(int, query.shape[-2:])
    keys = int(key.shape[-2])
    record = Record(SIMILARITY)
    factors, table, rescaled, enlarged = split_scales(metric, scale, True, dtype)
    if table is None:
        entries = _entries(record, [query, key, out], [2, 2, 2])
    else:
        entries = _entries(record, [query, key, out, table], [2, 2, 2, 1])
        record.point_tables(factors=table)
    record.set(
        metric=METRICS[metric],
        rescaled=int(rescaled),
        enlarged=int(enlarged),
        **dict(zip(FACTORS.floats, factors, strict=True)),
    )

    streamed = _is_streamed(out)
    key_shift = address(out) % LINE // item if streamed else 0

    def tasks(task_rows: int, task_keys: int) -> int:
        return entries * -(-rows // task_rows) * -(-(keys + key_shift) // task_keys)

    # Each task packs its queries once and its keys once: blocks near a square pack least.
    wanted = 4 * threads if threads > 1 else 1
    most_rows = max(_LEAST_TASK_ROWS, _QUERY_BYTES // (padded(features) * item + 1))
    task_rows = min(most_rows // TILE_ROWS * TILE_ROWS, padded(rows, TILE_ROWS))
    task_keys = min(_TASK_KEYS, padded(keys + key_shift, PANEL_KEYS))
    while tasks(task_rows, task_keys) < wanted:
        if task_rows >= max(task_keys, 2 * _LEAST_TASK_ROWS):
            task_rows = padded(task_rows // 2, TILE_ROWS)
        elif task_keys > PANEL_KEYS:
            task_keys = padded(task_keys // 2, PANEL_KEYS)
        else:
            break
    record.set(
        queries=rows,
        keys=keys,
        features=features,
        task_rows=task_rows,
        row_tasks=-(-rows // task_rows),
        task_keys=task_keys,
        key_tasks=-(-(keys + key_shift) // task_keys),
        key_shift=key_shift,
        streamed=streamed,
        query_row=query.strides[-2],
        query_feature=query.strides[-1],
        query_code=storage_code(query.dtype),
        key_row=key.strides[-2],
        key_feature=key.strides[-1],
        key_code=storage_code(key.dtype),
        output_row=out.strides[-2],
        output_key=out.strides[-1],
        output_code=storage_code(out.dtype),
    )
    many = tasks(task_rows, task_keys)
    workers = min(threads, many)
    lay_out(
        record,
        at_query=task_rows * padded(features) * item,
        at_exact=task_rows * 8,
        at_panel=PANEL_KEYS * features * item,
        at_tile=TILE_ROWS * PANEL_KEYS * item,
    )
    numbers = task_rows * task_keys * (features + 16)
    seconds = numbers * 2 / _FLOPS_PER_SECOND[item] + 1e-7
    operands = ("query", "key", "output")
    entry = kernels.of("compare", dtype)
    planned = Template(kernels, entry, record, operands, many, seconds, workers)
    planned(query, key, out)
    return None if streamed else planned


def fuse(
    kernels: Kernels,
    weights: np.ndarray,
    value: np.ndarray,
    out: np.ndarray,
    reduce: bool,
    threads: int,
) -> Template | None:
    """Fill out (*batch, L, Ev), or (*batch, L, S, Ev) where not reduced."""
    if out.size == 0:
        return None
    dtype = computed(out.dtype)
    item = dtype.itemsize
    rows, keys = map(int, weights.shape[-2:])
    features = int(value.shape[-1])
    record = Record(FUSE)
    entries = _entries(record, [weights, value, out], [2, 2, 2 if reduce else 3])

    def tasks(task_rows: int, task_columns: int) -> int:
        return entries * -(-rows // task_rows) * -(-features // task_columns)

    wanted = 4 * threads if threads > 1 else 1
    columns = min(_FUSE_COLUMN_BYTES // item, padded(features, STRIP))
    task_rows = _halve(_FUSE_ROWS, TILE_ROWS, rows, lambda n: tasks(n, columns) >= wanted)
    task_rows = max(task_rows, min(24, padded(rows, TILE_ROWS)))
    columns = _halve(columns, LANES, features, lambda n: tasks(task_rows, n) >= threads)
    native = [one.dtype == dtype and one.dtype.isnative for one in (weights, value)]
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
        output_code=storage_code(out.dtype),
    )
    many = tasks(task_rows, columns)
    workers = min(threads, many)
    width = padded(columns) * item
    lay_out(
        record,
        at_weights=TILE_ROWS * FUSE_KEYS * item,
        at_values=FUSE_KEYS * width,
        at_block=task_rows * width,
        at_running=task_rows * width,
    )
    seconds = task_rows * keys * (columns + 16) * 2 / _FLOPS_PER_SECOND[item] + 1e-7
    operands = ("weights", "value", "output")
    entry = kernels.of("fuse", dtype)
    planned = Template(kernels, entry, record, operands, many, seconds, workers)
    planned(weights, value, out)
    return planned

"""Linear maps: from arrays to a call record, scratch and a launch."""

from __future__ import annotations

import math

import numpy as np

from fastattn._core.arrays import LINE, computed
from fastattn._core.constants import DECODE_ROWS, LANES, LINEAR_RUN, PANEL_KEYS, TILE_ROWS, padded

from .addresses import give_scratch, storage_code, take_scratch
from .kernels import Kernels
from .layouts import LINEAR, WEIGHTS_DECODE, WEIGHTS_IN_PANELS, WEIGHTS_IN_ROWS
from .record import Record, merge_dims
from .template import Template, describe_entries, lay_out

__all__ = ["linear"]

# Rows of a task, and its columns: their sums lie in the second-level cache beside the rows over a
# stretch of features and the panel that meets them.
_TASK_ROWS = 96
_TASK_COLUMNS = 512
# Rows of a task that packs its weights: packing them costs the less the more rows they meet.
_PACKING_ROWS = 384
_STRETCH = 512
_PACKING_STRETCH = 256
# Weights that are widened meanwhile lie in the nearest cache.
_WIDENED_STRETCH = 64
# Fewer rows than these are copied for so many weights, where that takes at most so many numbers for
# each of the result. A call with a copy is planned each time, in some 25 µs.
_MANY_ROWS = 64
_WORTH_A_COPY = 1 << 14
_COPIED = 4
# Ctrl-C is answered between tasks: products of a task, some hundredths of a second.
_TASK_PRODUCTS = 1e9
_FLOPS_PER_SECOND = {4: 4e10, 8: 2e10}
_BYTES_PER_SECOND = 1.2e10


def _copies(x: np.ndarray, weight: np.ndarray, out: np.ndarray) -> bool:
    """Tell whether rows are laid side by side first.

    Where they are not all equally far apart, each batch entry goes through the weights anew, which
    a few rows do not outweigh.
    """
    if weight.size < _WORTH_A_COPY or x.size > _COPIED * out.size or not out.flags.c_contiguous:
        return False
    sizes, _ = merge_dims(x.shape[:-1], [x.strides[:-1]])
    return len(sizes) > 1 and sizes[-1] < _MANY_ROWS


def _weight_way(rows: int, weight: np.ndarray, dtype: np.dtype) -> int:
    """Decide how weights are read."""
    if weight.ndim == 3:
        return WEIGHTS_IN_PANELS
    in_place = weight.dtype == dtype and weight.dtype.isnative
    in_place = in_place and weight.strides[1] == dtype.itemsize
    if rows <= DECODE_ROWS and in_place and weight.shape[1] % 4 == 0 and weight.shape[1] > 0:
        return WEIGHTS_DECODE
    return WEIGHTS_IN_ROWS


def _task_size(
    rows: int, columns: int, depth: int, entries: int, way: int, threads: int
) -> tuple[int, int]:
    """Choose rows and columns of a task, so that all threads have something to do."""
    most_rows = _PACKING_ROWS if way == WEIGHTS_IN_ROWS else _TASK_ROWS
    # Tasks alike, so that none is left over.
    task_rows = padded(-(-rows // -(-rows // most_rows)), TILE_ROWS)
    task_columns = padded(-(-columns // -(-columns // _TASK_COLUMNS)), PANEL_KEYS)
    wanted = 4 * threads if threads > 1 else 1

    def tasks() -> int:
        return entries * -(-rows // task_rows) * -(-columns // task_columns)

    while (large := task_rows * task_columns * depth > _TASK_PRODUCTS) or tasks() < wanted:
        if task_columns > PANEL_KEYS and (task_columns >= task_rows or task_rows <= TILE_ROWS):
            task_columns = padded(task_columns // 2, PANEL_KEYS)
        elif task_rows > (TILE_ROWS if large else 4 * TILE_ROWS):
            task_rows = padded(task_rows // 2, TILE_ROWS)
        else:
            break
    return task_rows, task_columns


def _as_matrices(record: Record, x: np.ndarray, out: np.ndarray) -> tuple[int, int, int, int]:
    """Describe batch dims as few entries of many rows; returns entries, rows and row strides."""
    shape, steps = merge_dims(x.shape[:-1], [x.strides[:-1], out.strides[:-1]])
    rows, x_row, out_row = 1, 0, 0
    if shape:
        rows, (x_row, out_row) = shape.pop(), (one.pop() for one in steps)
    describe_entries(record, shape, steps)
    return math.prod(shape), rows, x_row, out_row


def _stretch(rows: int, depth: int, weight: np.ndarray, way: int, dtype: np.dtype) -> int:
    """Choose over how many features at a time rows meet panels."""
    stretch = _PACKING_STRETCH if way == WEIGHTS_IN_ROWS else _STRETCH
    if way == WEIGHTS_IN_PANELS and weight.dtype != dtype:
        stretch = _WIDENED_STRETCH
    elif way == WEIGHTS_DECODE or (way == WEIGHTS_IN_PANELS and rows <= TILE_ROWS):
        # Weights are read in the order of their addresses.
        stretch = LINEAR_RUN
    return min(stretch, max(padded(depth), LANES))


def _panel_features(
    columns: int, stretch: int, weight: np.ndarray, way: int, dtype: np.dtype
) -> int:
    """Say of how many features a task makes panels, if it makes any."""
    if way == WEIGHTS_IN_PANELS:
        return 0 if weight.dtype == dtype else stretch
    return 0 if way == WEIGHTS_DECODE and columns % PANEL_KEYS == 0 else stretch


def linear(
    kernels: Kernels,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    out: np.ndarray,
    threads: int,
) -> Template | None:
    """Fill out (*batch, N) from x (*batch, K), weight (N, K) or its panels, and bias (N,)."""
    if out.size == 0 or _is_done_on_a_copy(kernels, x, weight, bias, out, threads):
        return None
    dtype = computed(out.dtype)
    item = dtype.itemsize
    columns, depth = int(out.shape[-1]), int(x.shape[-1])
    record = Record(LINEAR)
    entries, rows, x_row, output_row = _as_matrices(record, x, out)
    way = _weight_way(rows, weight, dtype)
    stretch = _stretch(rows, depth, weight, way, dtype)
    task_rows, task_columns = _task_size(rows, columns, depth, entries, way, threads)
    row_tasks, column_tasks = -(-rows // task_rows), -(-columns // task_columns)
    # Rows a power of two apart would fall into the same few cache sets.
    x_stride, sums_stride = stretch * item + LINE, task_columns * item + LINE
    record.set(
        rows=rows,
        depth=depth,
        columns=columns,
        stretch=stretch,
        weight_way=way,
        task_rows=task_rows,
        row_tasks=row_tasks,
        task_columns=task_columns,
        column_tasks=column_tasks,
        x_row=x_row,
        x_feature=x.strides[-1],
        x_code=storage_code(x.dtype),
        weight_row=weight.strides[0],
        weight_feature=weight.strides[1],
        weight_code=storage_code(weight.dtype),
        bias_step=0 if bias is None else bias.strides[0],
        bias_code=0 if bias is None else storage_code(bias.dtype),
        output_row=output_row,
        output_column=out.strides[-1],
        output_code=storage_code(out.dtype),
        x_stride=x_stride,
        sums_stride=sums_stride,
    )
    whole_rows = padded(task_rows, TILE_ROWS)
    lay_out(
        record,
        at_x=whole_rows * x_stride,
        at_panel=_panel_features(columns, stretch, weight, way, dtype) * PANEL_KEYS * item,
        at_bias=task_columns * item,
        at_sums=whole_rows * sums_stride,
        at_run=whole_rows * sums_stride if depth > LINEAR_RUN else 0,
    )
    many = entries * row_tasks * column_tasks
    reading = task_columns * depth * weight.itemsize / _BYTES_PER_SECOND
    computing = task_rows * task_columns * (depth + LANES) * 2 / _FLOPS_PER_SECOND[item]
    planned = Template(
        kernels,
        kernels.of("apply", dtype),
        record,
        ("x", "weight", "bias", "output"),
        many,
        max(reading, computing) + 1e-7,
        min(threads, many),
    )
    planned(x, weight, bias, out)
    return planned


def _is_done_on_a_copy(
    kernels: Kernels,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    out: np.ndarray,
    threads: int,
) -> bool:
    """Map rows that are laid side by side in scratch, if that is worth it; tell whether it was."""
    if not _copies(x, weight, out):
        return False
    scratch = take_scratch(x.nbytes)
    copy: np.ndarray = np.ndarray(x.shape, x.dtype, scratch[2])
    copy[...] = x
    linear(kernels, copy, weight, bias, out, threads)
    give_scratch(scratch)
    return True

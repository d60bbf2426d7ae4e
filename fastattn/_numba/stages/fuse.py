"""Weights times values, added up or kept apart, as a kernel of its own.

An element of the sum is a sum of chains of fused multiply-adds, each over 128 keys and from zero:
the chains of a segment of 512 keys are added from left to right, then the segments. A task is a
block of rows and a block of value features.
"""

import numpy as np

from fastattn._core.constants import FUSE_KEYS, SEGMENT_KEYS, TILE_ROWS
from fastattn._engine import layouts
from fastattn._engine.layouts import STRIP

from ..compiler.compile import device, entry
from ..machine.emit import LANES
from ..machine.memory import load, load_scalar, native_code, prefetch, store, store_first
from ..machine.simd import item_size, splat
from ..operands.pack import clear_row, pack_matrix
from ..operands.record import operand_offset, reader
from ..operands.tasks import put_row, take_tasks
from ..steps.score import product_columns

read_call = reader(layouts.FUSE)
WEIGHTS, VALUE, OUTPUT = range(3)
# Weights of a task up to this size are asked for a task ahead: half a second-level cache.
AHEAD_BYTES = 1 << 20


@device
def put_products(
    tag, call, weights, stride, values, value_stride, rows, keys, columns, strip, output
):
    """Step fuse without a sum: each weight times its value row, straight into the result."""
    item = item_size(tag)
    plain = call.output_feature == item and call.output_code == native_code(tag)
    for r in range(rows):
        for k in range(keys):
            weight = splat(load_scalar(tag, weights + r * stride + k * item))
            value = values + k * value_stride
            target = output + r * call.output_row + k * call.output_key
            place = target if plain else strip
            for e in range(0, columns, LANES):
                product = weight * load(tag, value + e * item)
                store_first(place + e * item, product, min(columns - e, LANES))
            if not plain:
                put_row(tag, call.output_code, strip, columns, target, call.output_feature, False)


@device
def fuse_strip(
    tag,
    call,
    weights,
    values,
    value_stride,
    output,
    rows,
    keys,
    columns,
    block,
    width,
    accumulate,
    first,
    ahead,
    scratch,
):
    """Step fuse for all rows of a task over one chain of keys and one strip of columns.

    `first` tells the first strip that reads these weights. Beside the products those at `ahead`, of
    the next task, are asked for; without it (0) those of the next rows.
    """
    item = item_size(tag)
    pace = call.weights_row // call.keys
    step = TILE_ROWS * pace if first and ahead else 0
    vectors = (columns + LANES - 1) // LANES
    whole = 0
    if call.reduced and call.weights_in_place and (ahead or not first):
        whole = rows // TILE_ROWS
    if whole:
        product_columns(
            tag,
            TILE_ROWS,
            whole,
            weights,
            call.weights_row,
            values,
            value_stride,
            block,
            width,
            keys,
            FUSE_KEYS,
            vectors,
            accumulate,
            False,
            ahead,
            step,
        )
    for row in range(whole * TILE_ROWS, rows, TILE_ROWS):
        group = min(rows - row, TILE_ROWS)
        a, a_stride = weights + row * call.weights_row, call.weights_row
        if not (call.weights_in_place and group == TILE_ROWS):
            source, a, a_stride = a, scratch + call.at_weights, FUSE_KEYS * item
            pack_matrix(
                tag,
                call.weights_code,
                source,
                call.weights_row,
                call.weights_key,
                group,
                keys,
                a,
                a_stride,
            )
        elif first and not ahead:
            # Rows of weights lie far apart: without a word ahead each is a cache miss.
            for following in range(TILE_ROWS, 2 * TILE_ROWS):
                for offset in range(0, keys * item, 64):
                    prefetch(a + following * a_stride + offset)
        if call.reduced:
            clear_row(tag, a + group * a_stride, 0, (TILE_ROWS - group) * FUSE_KEYS)
            product_columns(
                tag,
                TILE_ROWS,
                1,
                a,
                a_stride,
                values,
                value_stride,
                block + row * width,
                width,
                keys,
                FUSE_KEYS,
                vectors,
                accumulate,
                False,
                ahead + row * keys * pace,
                step,
            )
        else:
            target = output + row * call.output_row
            put_products(
                tag, call, a, a_stride, values, value_stride, group, keys, columns, block, target
            )


@device
def fuse_segment(tag, call, weights, value, output, segment, rows, columns, width, scratch):
    """Step fuse for all rows of a task over one segment."""
    item = item_size(tag)
    start = segment * SEGMENT_KEYS
    keys = min(SEGMENT_KEYS, call.keys - start)
    # Values of one strip and chain stay in the first-level cache while all rows meet them. Strips
    # are of one width: a narrow one at the end would not fill the tile.
    strips = (columns + STRIP - 1) // STRIP
    strip = ((columns + LANES - 1) // LANES + strips - 1) // strips * LANES
    for first in range(0, keys, FUSE_KEYS):
        chain = min(keys - first, FUSE_KEYS)
        values, value_stride = value + (start + first) * call.value_row, call.value_row
        if not (call.value_in_place and columns % LANES == 0):
            source, values, value_stride = values, scratch + call.at_values, width
            pack_matrix(
                tag,
                call.value_code,
                source,
                call.value_row,
                call.value_feature,
                chain,
                columns,
                values,
                width,
            )
        ahead = 0
        if 0 < rows * call.weights_row <= AHEAD_BYTES:
            # In the order of addresses, which is what the machine's own prefetching follows.
            ahead = weights + call.workers * rows * call.weights_row
            ahead += (start + first) * rows * (call.weights_row // call.keys)
        for column in range(0, columns, strip):
            fuse_strip(
                tag,
                call,
                weights + (start + first) * call.weights_key,
                values + column * item,
                value_stride,
                output + (start + first) * call.output_key + column * call.output_feature,
                rows,
                chain,
                min(columns - column, strip),
                scratch + call.at_block + column * item,
                width,
                first > 0,
                column == 0,
                ahead,
                scratch,
            )


@device(inlined=True)
def fuse_task(tag, call, task, scratch):
    """All segments of one task, added from left to right."""
    item = item_size(tag)
    block, column_task = divmod(task, call.column_tasks)
    entry_index, row_task = divmod(block, call.row_tasks)
    first_row = row_task * call.task_rows
    first_column = column_task * call.task_columns
    rows = min(call.task_rows, call.rows - first_row)
    columns = min(call.task_columns, call.features - first_column)
    width = (columns + LANES - 1) // LANES * LANES * item
    weights = call.weights + operand_offset(call, WEIGHTS, entry_index)
    weights += first_row * call.weights_row
    value = call.value + operand_offset(call, VALUE, entry_index)
    value += first_column * call.value_feature
    output = call.output + operand_offset(call, OUTPUT, entry_index)
    output += first_row * call.output_row + first_column * call.output_feature
    block, running = scratch + call.at_block, scratch + call.at_running
    clear_row(tag, running, 0, rows * width // item)
    if columns % LANES:
        # Subnormal numbers that the scratch held before would slow the padding's products down.
        for key in range(min(FUSE_KEYS, call.keys)):
            clear_row(tag, scratch + call.at_values + key * width, columns, width // item)
    for segment in range((call.keys + SEGMENT_KEYS - 1) // SEGMENT_KEYS):
        fuse_segment(tag, call, weights, value, output, segment, rows, columns, width, scratch)
        if call.reduced:
            for place in range(0, rows * width, LANES * item):
                store(running + place, load(tag, running + place) + load(tag, block + place))
    if call.reduced:
        for r in range(rows):
            target = output + r * call.output_row
            source, step = running + r * width, call.output_feature
            put_row(tag, call.output_code, source, columns, target, step, False)


@device
def fuse(tag, call_address, worker):
    """Take tasks until none is left."""
    take_tasks(tag, read_call(call_address), call_address, worker, fuse_task)


@entry
def fuse_float32(call_address, worker):
    """Weighted values in float32."""
    fuse(np.float32(0), call_address, worker)


@entry
def fuse_float64(call_address, worker):
    """Weighted values in float64."""
    fuse(np.float64(0), call_address, worker)

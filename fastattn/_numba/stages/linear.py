"""Linear maps: rows times the transpose of weights, plus a bias.

A task is a block of rows and some columns of the result, panels of 64. Over a stretch of features
its rows are copied once, side by side, and met by each panel; the sums wait in scratch. Weights
come as they are, and are packed panel by panel, or for few rows transposed in registers; or they
were packed before. Each element is a sum of chains over `FEATURE_CHAIN` features, added in order
within a run of `LINEAR_RUN`, and of runs: stretches and tasks change no bit.
"""

from fastattn._core.constants import FEATURE_CHAIN, LINEAR_RUN, PANEL_KEYS, TILE_ROWS
from fastattn._engine import layouts
from fastattn._engine.layouts import WEIGHTS_DECODE, WEIGHTS_IN_PANELS

from ..compiler.compile import device, entry
from ..machine.emit import LANES
from ..machine.halves import is_half
from ..machine.memory import load, native_code, store
from ..machine.simd import item_size
from ..machine.storage import pack_small, widen_row
from ..machine.tile import score_sixteen
from ..operands.pack import PREFETCH_KEYS, clear_row, pack_matrix
from ..operands.record import operand_offset
from ..operands.tasks import put_row, take_tasks
from ..operands.variant import reader_of, tag_of
from ..steps.floats import FLOAT32, FLOAT64
from ..steps.score import product_columns, rows_at_once

read_call = reader_of(layouts.LINEAR)
X, OUTPUT = range(2)
_VECTORS = PANEL_KEYS // LANES
# How far ahead, in bytes of a row, weights are asked for that are read where they lie.
_AHEAD_BYTES = 512


@device
def pack_rows(tag, call, weight, first, depth, columns, panel):
    """A panel of up to 64 rows of weights over `depth` features from `first` on."""
    item = item_size(tag)
    source = weight + first * call.weight_feature
    stride = PANEL_KEYS * item
    whole = 0
    if is_half(call.weight_code) and call.weight_feature == 2 and depth >= LANES // 2:
        whole = columns // LANES * LANES
        ahead = PREFETCH_KEYS * call.weight_row
        pack_small(
            tag, call.weight_code, source, call.weight_row, whole, depth, 0, panel, stride, ahead
        )
    pack_matrix(
        tag, call.weight_code, source + whole * call.weight_row, call.weight_feature,
        call.weight_row, depth, columns - whole, panel + whole * item, stride,
    )  # fmt: skip


@device
def panel_of(tag, call, column, first, depth, scratch):
    """Where the panel of the columns from `column` on lies, ready for the tile."""
    panel = scratch + call.at_panel
    if call.weight_way == WEIGHTS_IN_PANELS:
        # Whole panels, of all features, one after the other.
        line = call.weight_feature
        source = call.weight + (column // PANEL_KEYS * call.depth + first) * line
        if call.weight_code == native_code(tag):
            return source
        size = line // PANEL_KEYS
        widen_row(tag, call.weight_code, source, size, depth * PANEL_KEYS, panel)
        return panel
    columns = min(call.columns - column, PANEL_KEYS)
    weight = call.weight + column * call.weight_row
    pack_rows(tag, call, weight, first, depth, columns, panel)
    return panel


@device
def apply_panel(tag, call, rows, column, first, depth, target, accumulate, scratch):
    """The rows of a task times one panel of packed weights."""
    item = item_size(tag)
    panel = panel_of(tag, call, column, first, depth, scratch)
    vectors = (min(call.columns - column, PANEL_KEYS) + LANES - 1) // LANES
    group = rows_at_once(tag, rows, _VECTORS)
    if group == 4 and vectors < _VECTORS:
        group = TILE_ROWS
    groups = (rows + group - 1) // group
    # What comes next is asked for meanwhile: what follows in the panel.
    fetch, fetch_stride, whole = panel, 0, False
    if call.weight_way == WEIGHTS_IN_PANELS:
        fetch += depth * PANEL_KEYS * item
        whole = groups <= 2
        fetch_stride = PANEL_KEYS * item if whole else 64
    product_columns(
        tag, group, groups, scratch + call.at_x, call.x_stride, panel, PANEL_KEYS * item, target,
        call.sums_stride, depth, FEATURE_CHAIN, vectors, accumulate, whole, fetch, fetch_stride,
    )  # fmt: skip


@device
def apply_decode(tag, call, rows, column, first, depth, target, scratch):
    """Few rows times the 64 rows of weights from `column` on, which are read where they lie."""
    item = item_size(tag)
    stride = call.weight_row
    for start in range(0, PANEL_KEYS, LANES):
        source = call.weight + (column + start) * stride + first * item
        place = target + start * item
        fetch = source + _AHEAD_BYTES
        if rows == 1:
            score_sixteen(
                tag, 1, scratch + call.at_x, call.x_stride, source, stride, place,
                call.sums_stride, depth, fetch, _AHEAD_BYTES, stride, 4 * stride,
            )  # fmt: skip
        else:
            score_sixteen(
                tag, 4, scratch + call.at_x, call.x_stride, source, stride, place,
                call.sums_stride, depth, fetch, _AHEAD_BYTES, stride, 4 * stride,
            )  # fmt: skip


@device
def apply_run(tag, call, x, rows, first_column, columns, run, stop, target, scratch):
    """The sums of one run of features, `run` to `stop`, for all rows and columns of a task."""
    for first in range(run, max(stop, 1), call.stretch):
        depth = min(stop - first, call.stretch)
        pack_matrix(
            tag, call.x_code, x + first * call.x_feature, call.x_row, call.x_feature, rows, depth,
            scratch + call.at_x, call.x_stride,
        )  # fmt: skip
        for column in range(0, columns, PANEL_KEYS):
            place = target + column * item_size(tag)
            if call.weight_way == WEIGHTS_DECODE and columns - column >= PANEL_KEYS:
                apply_decode(tag, call, rows, first_column + column, first, depth, place, scratch)
            else:
                apply_panel(
                    tag, call, rows, first_column + column, first, depth, place, first > run,
                    scratch,
                )  # fmt: skip


@device
def add_row(tag, target, source, columns):
    """Add a padded row of scratch to another."""
    size = item_size(tag)
    for offset in range(0, columns * size, LANES * size):
        store(target + offset, load(tag, target + offset) + load(tag, source + offset))


@device(inlined=True)
def apply_task(tag, call, task, scratch):
    """All steps of one task."""
    block, row_task = divmod(task, call.row_tasks)
    entry_index, column_task = divmod(block, call.column_tasks)
    first_row, first_column = row_task * call.task_rows, column_task * call.task_columns
    rows = min(call.task_rows, call.rows - first_row)
    columns = min(call.task_columns, call.columns - first_column)
    x = call.x + operand_offset(call, X, entry_index) + first_row * call.x_row
    for row in range(rows, (rows + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS):
        clear_row(tag, scratch + call.at_x + row * call.x_stride, 0, call.stretch)
    sums = scratch + call.at_sums
    for run in range(0, max(call.depth, 1), LINEAR_RUN):
        target = sums if run == 0 else scratch + call.at_run
        stop = min(run + LINEAR_RUN, call.depth)
        apply_run(tag, call, x, rows, first_column, columns, run, stop, target, scratch)
        if run > 0:
            for offset in range(0, rows * call.sums_stride, call.sums_stride):
                add_row(tag, sums + offset, target + offset, columns)
    bias = scratch + call.at_bias
    if call.bias != 0:
        place = call.bias + first_column * call.bias_step
        widen_row(tag, call.bias_code, place, call.bias_step, columns, bias)
    output = call.output + operand_offset(call, OUTPUT, entry_index)
    output += first_row * call.output_row + first_column * call.output_column
    for row in range(rows):
        source = sums + row * call.sums_stride
        if call.bias != 0:
            add_row(tag, source, bias, columns)
        place = output + row * call.output_row
        put_row(tag, call.output_code, source, columns, place, call.output_column, False)


@device
def apply(variant, call_address, worker):
    """Take tasks until none is left."""
    call = read_call(variant, call_address)
    take_tasks(tag_of(variant), call, call_address, worker, apply_task)


@entry
def apply_float32(call_address, worker):
    """Linear maps in float32."""
    apply(FLOAT32, call_address, worker)


@entry
def apply_float64(call_address, worker):
    """Linear maps in float64."""
    apply(FLOAT64, call_address, worker)

"""The kernel that folds partial states of segments into running ones, in order, and finishes them.

For calls whose segments are tasks of their own, and for states.
"""

import numpy as np

from fastattn._core.constants import BLOCK_ROWS

from ..compiler.compile import device, entry
from ..compiler.native import atomic_next
from ..machine.emit import LANES
from ..machine.memory import load, load_scalar, store, store_scalar
from ..machine.simd import cast, item_size
from ..operands.record import factors_in
from ..operands.variant import read_record_of, tag_of
from ..steps.blocks import keeps_rest, padded, row_factor
from ..steps.finish import finish_row
from ..steps.floats import FLOAT32, FLOAT64
from ..steps.normalise import fold_rest, fold_row


@device
def finish_folded(
    tag, call, entry_index, head, i, max_place, sum_place, rest_place, state, factors, scratch
):
    """Step finish for query i of a head in a fold; its state stays as it is."""
    item = item_size(tag)
    running = scratch + call.at_running
    for offset in range(0, padded(call.value_features) * item, LANES * item):
        store(running + offset, load(tag, state + offset))
    row_max, row_sum = load_scalar(tag, max_place), load_scalar(tag, sum_place)
    rest = load_scalar(tag, rest_place)
    finish_row(tag, call, entry_index, head, i, row_max, row_sum, rest, running, factors.late_rest)


@device(inlined=True)
def fold(variant, call_address, worker):
    """Take blocks of rows until none is left; fold what `attend` left with `split`, and finish."""
    tag, call = tag_of(variant), read_record_of(variant, call_address)
    item = item_size(tag)
    scratch = call.scratch + worker * call.scratch_stride
    width = padded(call.value_features) * item
    rows = call.groups_of_heads * call.queries
    keeping = keeps_rest(call)
    while True:
        first = atomic_next(call_address) * BLOCK_ROWS
        if first >= call.stop_task * BLOCK_ROWS:
            break
        for index in range(first, min(first + BLOCK_ROWS, call.entries * rows)):
            row_max, row_sum = call.state_max + index * item, call.state_sum + index * item
            rest = call.state_rest + index * item
            state = call.state_output + index * width
            entry_index, entry_row = divmod(call.first_entry * rows + index, rows)
            head, i = divmod(entry_row, call.queries)
            factors = factors_in(call, entry_index, head)
            factor = row_factor(tag, factors)
            if not call.resume:
                store_scalar(row_max, cast(tag, -np.inf))
                store_scalar(row_sum, cast(tag, 0.0))
            for place in range(index * call.segment_tasks, (index + 1) * call.segment_tasks):
                segment_max = load_scalar(tag, call.partial_max + place * item)
                segment_sum = load_scalar(tag, call.partial_sum + place * item)
                row = call.partial_output + place * width
                if keeping:
                    segment_rest = load_scalar(tag, call.partial_rest + place * item)
                    fold_rest(
                        tag, row_max, row_sum, rest, segment_max, segment_sum, segment_rest, factor
                    )
                fold_row(tag, row_max, row_sum, state, segment_max, segment_sum, row, width, factor)
            if not call.suspend:
                finish_folded(
                    tag, call, entry_index, head, i, row_max, row_sum, rest, state, factors, scratch
                )


@entry
def fold_float32(call_address, worker):
    """Fold and finish partial states in float32."""
    fold(FLOAT32, call_address, worker)


@entry
def fold_float64(call_address, worker):
    """Fold and finish partial states in float64."""
    fold(FLOAT64, call_address, worker)

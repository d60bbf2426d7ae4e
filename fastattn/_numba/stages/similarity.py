"""Similarity of every query with every key, as a kernel of its own.

Steps: pack, score, shape, with the panels, tile and scaling of attention, so that each entry
has the bits that attention scores with. A task is a block of rows and some panels of keys: its
queries are packed once, then each panel is packed once and met by all of them.
"""

import numpy as np

from fastattn._core.constants import FEATURE_RUN, PANEL_KEYS, TILE_ROWS
from fastattn._engine import layouts

from ..compiler.compile import device, entry
from ..compiler.native import load_int64, store_int64
from ..machine.emit import LANES
from ..machine.halves import is_half
from ..machine.memory import native_code
from ..machine.simd import cast, item_size, tile_width
from ..machine.storage import pack_small
from ..machine.tile import final_tile
from ..operands.pack import (
    PREFETCH_KEYS,
    clear_row,
    finish_panel,
    normalise_query,
    pack_matrix,
    scale_row,
)
from ..operands.record import (
    COSINE,
    EUCLIDEAN,
    operand_offset,
    read_factors,
    record_address,
)
from ..operands.tasks import put_row, take_tasks
from ..operands.variant import reader_of, tag_of
from ..steps.floats import FLOAT32, FLOAT64
from ..steps.score import clamp_row, largest_cosine, score_columns, shape_row
from ..steps.score_again import largest_of, may_spill, score_row_again

read_call = reader_of(layouts.SIMILARITY)
QUERY, KEY, OUTPUT, FACTORS = range(4)
_OWN_FACTORS = layouts.SIMILARITY.word[layouts.FACTORS.floats[0]]


@device
def pack_queries(tag, call, factors, query, rows, scratch):
    """Step pack for the queries of a task, up to whole groups of six.

    Returns whether the power of two of scale went onto all of them.
    """
    item = item_size(tag)
    width = (call.features + LANES - 1) // LANES * LANES
    target = scratch + call.at_query
    stride = width * item
    pack_matrix(
        tag,
        call.query_code,
        query,
        call.query_row,
        call.query_feature,
        rows,
        call.features,
        target,
        stride,
    )
    whole = (rows + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
    all_exact = True
    for r in range(whole):
        row = target + r * stride
        clear_row(tag, row, call.features if r < rows else 0, width)
        exact = True
        if call.metric == COSINE:
            normalise_query(tag, row, width)
        if factors.query_first * factors.query_second != 1.0:
            always = call.metric == EUCLIDEAN or factors.query_first == 0.0
            exact = scale_row(tag, row, width, call, factors, always, np.inf)
        store_int64(scratch + call.at_exact, r, exact)
        all_exact &= exact
    return all_exact


@device
def pack_panel(tag, call, factors, key, keys, panel):
    """Step pack for up to 64 keys."""
    item = item_size(tag)
    stride = PANEL_KEYS * item
    whole = 0
    if is_half(call.key_code) and call.key_feature == 2 and call.features >= LANES // 2:
        whole = keys // LANES * LANES
        ahead = PREFETCH_KEYS * call.key_row
        pack_small(
            tag, call.key_code, key, call.key_row, whole, call.features, 0, panel, stride, ahead
        )
    pack_matrix(
        tag,
        call.key_code,
        key + whole * call.key_row,
        call.key_feature,
        call.key_row,
        call.features,
        keys - whole,
        panel + whole * item,
        stride,
    )
    finish_panel(tag, call, factors, panel)


@device
def score_tile(tag, call, factors, queries, panel, target, stride, vectors):
    """Step score: six rows against the vectors of one panel."""
    item = item_size(tag)
    features = call.features
    query_stride = (features + LANES - 1) // LANES * LANES * item
    panel_stride = PANEL_KEYS * item
    if call.metric == EUCLIDEAN:
        score_columns(
            tag, tag, cast(tag, factors.difference_factor), TILE_ROWS, 1, queries, query_stride,
            panel, panel_stride, target, stride, features, vectors, False, panel, 0,
        )  # fmt: skip
    else:
        score_columns(
            tag, tag, None, TILE_ROWS, 1, queries, query_stride, panel, panel_stride, target,
            stride, features, vectors, False, panel, 0,
        )  # fmt: skip


@device
def score_finally(tag, call, factors, queries, panel, groups, output):
    """Step score: groups of six rows against a whole panel, straight into a plain result."""
    item = item_size(tag)
    query_stride = (call.features + LANES - 1) // LANES * LANES * item
    panel_stride = PANEL_KEYS * item
    most = cast(tag, np.inf)
    if call.metric == COSINE:
        most = abs(largest_cosine(tag, factors))
    streamed = call.streamed != 0 and output % 64 == 0
    width = min(tile_width(tag), PANEL_KEYS // LANES)
    for offset in range(0, panel_stride, width * LANES * item):
        if width >= 4:
            final_tile(
                tag, 6, 4, queries, query_stride, panel + offset, panel_stride, output + offset,
                call.output_row, call.features, groups, most, streamed,
            )  # fmt: skip
        elif width >= 2:
            final_tile(
                tag, 6, 2, queries, query_stride, panel + offset, panel_stride, output + offset,
                call.output_row, call.features, groups, most, streamed,
            )  # fmt: skip
        else:
            final_tile(
                tag, 6, 1, queries, query_stride, panel + offset, panel_stride, output + offset,
                call.output_row, call.features, groups, most, streamed,
            )  # fmt: skip


@device
def score_panel(tag, call, factors, panel, rows, keys, exact, spilling, scratch, output):
    """Steps score and shape for all rows of a task and one panel.

    `exact`: nothing is left to do for scores but to keep them within bounds, or to rescale them;
    unless they are `spilling`: some may have to be scored again.
    """
    item = item_size(tag)
    query_stride = (call.features + LANES - 1) // LANES * LANES * item
    vectors = (keys + LANES - 1) // LANES
    whole = 0
    final = exact and not spilling and keys == PANEL_KEYS
    final = final and call.output_key == item and call.rescaled == 0
    final = final and call.metric != EUCLIDEAN and call.features <= FEATURE_RUN
    if final and call.output_code == native_code(tag) and rows >= TILE_ROWS:
        whole = rows // TILE_ROWS
        queries = scratch + call.at_query
        score_finally(tag, call, factors, queries, panel, whole, output)
    for row in range(whole * TILE_ROWS, rows, TILE_ROWS):
        count = min(rows - row, TILE_ROWS)
        place = output + row * call.output_row
        # Whole groups of a plain result are written by the tile itself.
        plain = call.output_key == item and count == TILE_ROWS and keys % LANES == 0
        plain = plain and call.streamed == 0 and call.output_code == native_code(tag)
        target, stride = scratch + call.at_tile, PANEL_KEYS * item
        if plain:
            target, stride = place, call.output_row
        queries = scratch + call.at_query + row * query_stride
        score_tile(tag, call, factors, queries, panel, target, stride, vectors)
        for r in range(TILE_ROWS):
            scores = target + r * stride
            took = load_int64(scratch + call.at_exact, row + r)
            if r < count and (spilling or took == 0):
                query = queries + r * query_stride
                score_row_again(tag, call, factors, took, spilling, query, panel, scores, keys)
            if call.metric == COSINE:
                clamp_row(tag, largest_cosine(tag, factors), scores, 0, vectors * LANES)
            if call.rescaled:
                shape_row(tag, call, factors, scores, 0, vectors * LANES)
        if not plain:
            streamed = call.streamed != 0 and place % 64 == 0
            for r in range(count):
                source = target + r * stride
                end, step = place + r * call.output_row, call.output_key
                put_row(tag, call.output_code, source, keys, end, step, streamed)


@device(inlined=True)
def compare_task(tag, call, task, scratch):
    """All steps of one task."""
    # Threads are at work on tasks next to each other. Those lie in other rows, so in other pages: a
    # fresh huge page that two threads touch at once is cleared by each of them.
    block, row_task = divmod(task, call.row_tasks)
    entry_index, key_task = divmod(block, call.key_tasks)
    first_row = row_task * call.task_rows
    rows = min(call.task_rows, call.queries - first_row)
    query = call.query + operand_offset(call, QUERY, entry_index)
    factors = read_factors(record_address(call) + 8 * _OWN_FACTORS)
    if call.factors:
        factors = read_factors(call.factors + operand_offset(call, FACTORS, entry_index))
    query += first_row * call.query_row
    exact = pack_queries(tag, call, factors, query, rows, scratch)
    largest = 0.0
    if call.enlarged:
        width = (call.features + LANES - 1) // LANES * LANES * item_size(tag)
        largest = largest_of(tag, scratch + call.at_query, width, rows, call.features)
    key = call.key + operand_offset(call, KEY, entry_index)
    output = call.output + operand_offset(call, OUTPUT, entry_index)
    output += first_row * call.output_row
    # Panels of a streamed result begin where lines of the cache do.
    begin = key_task * call.task_keys - call.key_shift
    panel = scratch + call.at_panel
    for start in range(begin, min(begin + call.task_keys, call.keys), PANEL_KEYS):
        first = max(start, 0)
        keys = min(start + PANEL_KEYS, call.keys) - first
        pack_panel(tag, call, factors, key + first * call.key_row, keys, panel)
        place = output + first * call.output_key
        # Of few rows all scores are looked at, which takes less than to look at the keys.
        spilling = call.enlarged != 0
        if spilling and rows >= TILE_ROWS:
            spilling = may_spill(tag, call, largest, panel, keys)
        score_panel(tag, call, factors, panel, rows, keys, exact, spilling, scratch, place)


@device
def compare(variant, call_address, worker):
    """Take tasks until none is left."""
    call = read_call(variant, call_address)
    take_tasks(tag_of(variant), call, call_address, worker, compare_task)


@entry
def compare_float32(call_address, worker):
    """Similarities in float32."""
    compare(FLOAT32, call_address, worker)


@entry
def compare_float64(call_address, worker):
    """Similarities in float64."""
    compare(FLOAT64, call_address, worker)

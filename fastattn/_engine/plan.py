"""How one attention call is cut into tasks: pure functions of sizes and thread count.

No bit of a result depends on a plan; `fastattn._core.constants` has what bits depend on.
"""

import functools
from typing import NamedTuple

from fastattn._core.constants import (
    BLOCK_ROWS,
    PAGE_KEYS,
    PANEL_KEYS,
    SCORE_STRIDE,
    SEGMENT_KEYS,
    TILE_ROWS,
    padded,
)

from .layouts import ATTENTION
from .way import Operands, Way, choose

# A worker's own copy of the call record.
RECORD_BYTES = padded(8 * len(ATTENTION.word), 64)
# The cursor of what the next task needs.
_AHEAD_BYTES = 19 * 8

# Rows of a task, largest first. Keys are packed once a task and segment, which at 240 rows costs
# about one per cent; smaller tasks balance better.
TASK_ROWS = (240, 120, 48, 24)
TASKS_PER_WORKER = 8
# Partial states of split tasks are folded whenever they would take more than this.
_PARTIAL_BYTES = 8 << 20
# What a core does at least, for the length of a task.
FLOPS_PER_SECOND = {4: 4e10, 8: 2e10}
BYTES_PER_SECOND = 4e9
LONGEST_TASK = 0.08


# Below this a call has its rows cut evenly among the workers, and no finer: packing the same keys
# in every task costs it more than an uneven end.
_SHORT_CALL = 1e-3

_SECONDS_PER_BUNDLE = 2e-5


def _bundle(tasks: int, workers: int, seconds: float) -> int:
    """Tasks to take at once: worth some microseconds, and still enough bundles to balance."""
    return max(1, min(int(_SECONDS_PER_BUNDLE / seconds), tasks // (TASKS_PER_WORKER * workers)))


def _even_rows(entries: int, rows: int, workers: int) -> int:
    """Rows of a task so that every worker has equally many tasks, at least two, if blocks allow."""
    pieces = 1
    while entries and (entries * pieces % workers or entries * pieces < 2 * workers):
        pieces += 1
    even = padded(-(-rows // pieces), TILE_ROWS)
    return max(1, min(rows, max(even, BLOCK_ROWS)))


class AttentionPlan(NamedTuple):
    """The task grid of one attention call.

    Attributes
    ----------
    workers
        Threads that take tasks, at most.
    task_rows
        Rows of a task; all query heads of a key head count.
    row_tasks
        Blocks of rows in one (batch, key head) entry.
    tasks
        Tasks of the whole call, or of one wave if `split_keys`.
    bundle
        Consecutive tasks that a worker takes at once: small ones, so that it reads memory in order.
    segments
        Segments of 512 keys.
    split_keys
        Whether segments are tasks of their own, folded afterwards.
    wave_entries, wave_segments
        How many entries and segments run before their partial states are folded.
    seconds_per_task
        A cautious estimate, for answering Ctrl-C in time.
    scratch_bytes
        Memory the call needs beside its operands and results.
    way
        How keys and values are read, and why so.
    """

    workers: int
    task_rows: int
    row_tasks: int
    tasks: int
    bundle: int
    segments: int
    split_keys: bool
    wave_entries: int
    wave_segments: int
    seconds_per_task: float
    scratch_bytes: int
    way: Way


class Scratch(NamedTuple):
    """Byte offsets of the parts of one worker's scratch, and its size."""

    at_query: int
    at_scores: int
    at_block: int
    at_running: int
    at_panels: int
    at_values: int
    at_rows: int
    at_packed: int
    at_state: int
    at_stage: int
    at_chunks: int
    at_ids: int
    at_spans: int
    at_record: int
    at_ahead: int
    size: int


@functools.lru_cache(maxsize=128)  # plan and record of a call both ask
def scratch_layout(
    task_rows: int,
    keys: int,
    features: int,
    value_features: int,
    item: int,
    copies_keys: bool,
    copies_values: bool,
) -> Scratch:
    """Lay out one worker's scratch; the last two as a call's `Way` says."""
    rows = padded(task_rows, TILE_ROWS)
    block = min(rows, BLOCK_ROWS)
    segment = min(SEGMENT_KEYS, padded(keys, PANEL_KEYS))
    columns = padded(value_features)
    sizes = (
        rows * padded(features) * item,
        block * SCORE_STRIDE * item,
        block * columns * item,
        rows * columns * item,
        segment * features * item,
        segment * columns * item if copies_values else 0,
        task_rows * 6 * 8,
        (SEGMENT_KEYS // PANEL_KEYS + 1) * 8,  # behind the panels' words, the size of queries
        block * 24,
        PANEL_KEYS * features * item if copies_keys else 0,
        padded(SEGMENT_KEYS // PAGE_KEYS) * 8,
        2 * (SEGMENT_KEYS // PANEL_KEYS) * 8,
        -(-task_rows // BLOCK_ROWS) * 4 * 8,
        RECORD_BYTES,
        _AHEAD_BYTES,
    )
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + padded(size, 64))
    return Scratch(*offsets)


def plan_attention(
    *,
    entries: int,
    rows: int,
    keys: int,
    features: int,
    value_features: int,
    item: int,
    workers: int,
    operands: Operands,
    weights: bool,
    split_always: bool = False,
    keep_partials: bool = False,
) -> AttentionPlan:
    """Cut `entries` (batch x key heads) of `rows` (query heads of a key head x queries) into tasks.

    `split_always` makes segments tasks of their own; `keep_partials` runs them in one wave.
    """
    segments = max(1, -(-keys // SEGMENT_KEYS))
    flops_per_row = 2.0 * keys * (features + value_features)

    def seconds(task_rows: int, task_segments: int) -> float:
        share = task_segments / segments
        compute = task_rows * flops_per_row / FLOPS_PER_SECOND[item]
        memory = keys * (features + value_features) * item / BYTES_PER_SECOND
        return share * (compute + memory) + 1e-7

    task_rows = max(1, min(rows, TASK_ROWS[-1]))
    candidates: tuple[int, ...] = TASK_ROWS
    if workers > 1 and entries * seconds(rows, segments) < _SHORT_CALL:
        candidates = ()
        task_rows = _even_rows(entries, rows, workers)
    for candidate in candidates:
        candidate = max(1, min(rows, candidate))
        enough = entries * -(-rows // candidate) >= TASKS_PER_WORKER * workers
        if (enough or workers == 1) and seconds(candidate, segments) <= LONGEST_TASK:
            task_rows = candidate
            break
    row_tasks = -(-rows // task_rows)
    tasks = entries * row_tasks
    starved = tasks < 2 * workers and workers > 1
    too_long = seconds(task_rows, segments) > LONGEST_TASK
    split = split_always or (segments > 1 and not weights and (starved or too_long))
    wave_entries, wave_segments = entries, segments
    way = choose(operands, task_rows)
    scratch = scratch_layout(
        task_rows, keys, features, value_features, item, way.copies_keys, way.copies_values
    )
    partial_bytes = 0
    if split:
        row_bytes = (padded(value_features) + 3) * item
        if not keep_partials:
            wave_entries = max(1, min(entries, _PARTIAL_BYTES // max(1, rows * row_bytes)))
            partial = wave_entries * rows * row_bytes
            wave_segments = max(1, min(segments, _PARTIAL_BYTES // max(1, partial)))
        partial_bytes = wave_entries * rows * (row_bytes * (1 + wave_segments) + 8)
        tasks = wave_entries * row_tasks * wave_segments
    busy = max(1, min(workers, tasks))
    return AttentionPlan(
        workers=busy,
        task_rows=task_rows,
        row_tasks=row_tasks,
        tasks=tasks,
        bundle=1 if split else _bundle(tasks, workers, seconds(task_rows, segments)),
        segments=segments,
        split_keys=split,
        wave_entries=wave_entries,
        wave_segments=wave_segments,
        seconds_per_task=seconds(task_rows, 1 if split else segments),
        scratch_bytes=scratch.size * busy + partial_bytes,
        way=way,
    )

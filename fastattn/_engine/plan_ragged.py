"""How a ragged call is cut into tasks: pure functions of splits, sizes and thread count.

A task is a block of rows of one sequence and key head, over all keys of the sequence. Tasks are
numbered sequence by sequence, and taken in bundles of about equal cost, so that work is balanced by
keys, whatever the lengths are. A sequence that alone would keep one thread busy while the others
wait is left out and becomes a call of its own, whose segments are shared among threads.
"""

from typing import NamedTuple

import numpy as np

from fastattn._core.constants import SEGMENT_KEYS

from .plan import (
    BYTES_PER_SECOND,
    FLOPS_PER_SECOND,
    LONGEST_TASK,
    TASK_ROWS,
    TASKS_PER_WORKER,
    scratch_layout,
)
from .way import Operands, Way, choose

__all__ = ["RaggedPlan", "plan_ragged"]

# What a task costs beside its arithmetic.
_SECONDS_PER_TASK = 4e-7
# Bundles are worth this much, or less where that would be too few of them to balance.
_SECONDS_PER_BUNDLE = 5e-5


class RaggedPlan(NamedTuple):
    """The task grid of one ragged call.

    Attributes
    ----------
    workers
        Threads that take bundles, at most.
    task_rows
        Rows of a task, at most; all query heads of a key head count.
    first_task
        int64 (batch + 1,): sequence b has the tasks ``first_task[b] .. first_task[b + 1]``.
    borders
        int64 (bundles + 1,): bundle i has the tasks ``borders[i] .. borders[i + 1]``.
    alone
        Sequences that are calls of their own; they have no tasks here.
    longest
        Keys of the longest sequence that has tasks.
    seconds_per_bundle
        A cautious estimate, for answering Ctrl-C in time.
    scratch_bytes
        Memory the call needs beside its operands and results.
    way
        How keys and values of these sequences are read: all alike, by the rows of a task. The
        sequences that are `alone` have ways of their own.
    """

    workers: int
    task_rows: int
    first_task: np.ndarray
    borders: np.ndarray
    alone: np.ndarray
    longest: int
    seconds_per_bundle: float
    scratch_bytes: int
    way: Way

    def __repr__(self) -> str:
        return (
            f"RaggedPlan(workers={self.workers}, task_rows={self.task_rows}, sequences="
            f"{len(self.first_task) - 1}, tasks={self.borders[-1]}, bundles="
            f"{len(self.borders) - 1}, alone={self.alone.tolist()}, way={self.way})"
        )


def plan_ragged(
    *,
    queries: np.ndarray,
    keys: np.ndarray,
    kv_heads: int,
    groups: int,
    features: int,
    value_features: int,
    item: int,
    workers: int,
    operands: Operands,
) -> RaggedPlan:
    """Cut sequences of `queries[b]` queries and `keys[b]` keys into tasks and bundles."""
    rows = queries * groups
    flops = 2.0 * (features + value_features) / FLOPS_PER_SECOND[item]
    memory = (features + value_features) * item / BYTES_PER_SECOND
    # A row of a key costs `flops`, a key of a task `memory`.
    task_rows, per_sequence = _task_rows(rows, kv_heads, workers)
    block = np.minimum(rows, task_rows)
    seconds = block * keys * flops + keys * memory + _SECONDS_PER_TASK
    total = float(np.dot(per_sequence, seconds))
    starving = (seconds > total / (4 * workers)) if workers > 1 else np.zeros(len(rows), bool)
    alone = np.flatnonzero(
        (keys > SEGMENT_KEYS) & (rows > 0) & (starving | (seconds > LONGEST_TASK))
    )
    per_sequence[alone] = 0
    first_task = np.concatenate([[0], np.cumsum(per_sequence)])
    borders, longest_bundle = _borders(first_task, per_sequence * seconds, workers)
    shared = np.delete(keys, alone) if len(alone) else keys
    longest = int(shared.max(initial=0))
    way = choose(operands, task_rows)
    scratch = scratch_layout(
        task_rows, longest, features, value_features, item, way.copies_keys, way.copies_values
    )
    workers = max(1, min(workers, len(borders) - 1))
    return RaggedPlan(
        workers=workers,
        task_rows=task_rows,
        first_task=first_task,
        borders=borders,
        alone=alone,
        longest=longest,
        seconds_per_bundle=longest_bundle,
        scratch_bytes=scratch.size * workers + first_task.nbytes + borders.nbytes,
        way=way,
    )


def _task_rows(rows: np.ndarray, kv_heads: int, workers: int) -> tuple[int, np.ndarray]:
    """Rows of a task, and tasks of each sequence: large blocks where enough of them are left."""
    most = max(1, int(rows.max(initial=0)))
    for candidate in TASK_ROWS:
        candidate = min(most, candidate)
        tasks = -(-rows // candidate) * kv_heads
        if workers == 1 or int(tasks.sum()) >= TASKS_PER_WORKER * workers:
            break
    return candidate, tasks


def _borders(first_task: np.ndarray, seconds: np.ndarray, workers: int) -> tuple[np.ndarray, float]:
    """Cut all tasks into bundles of about equal cost; returns the cost of the dearest, too."""
    tasks = int(first_task[-1])
    if not tasks:
        return np.zeros(1, np.int64), 0.0
    spent = np.concatenate([[0.0], np.cumsum(seconds)])
    total = float(spent[-1])
    worth = min(_SECONDS_PER_BUNDLE, total / (TASKS_PER_WORKER * workers))
    bundles = max(1, min(tasks, int(total / worth)))
    aims = np.arange(1, bundles) * (total / bundles)
    sequence = np.searchsorted(spent, aims, side="right") - 1
    inside = (aims - spent[sequence]) / seconds[sequence]
    own = np.diff(first_task)[sequence]
    cuts = first_task[sequence] + np.rint(inside * own).astype(np.int64)
    borders = np.unique(np.concatenate([[0], cuts, [tasks]]))
    dearest = total / bundles + float((seconds / np.maximum(np.diff(first_task), 1)).max())
    return borders, dearest

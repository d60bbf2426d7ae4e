"""The Numba backend: plans a problem, finds scratch, and launches the kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np

from fastattn._core.plan import (
    BLOCK_ROWS,
    AttentionPlan,
    Scratch,
    padded,
    plan_attention,
    scratch_layout,
)
from fastattn._core.problem import Problem
from fastattn._core.ragged import RaggedProblem

from . import attention, cache, compile, launch, normalize, repeat, stages
from .calls import Record, describe, give_scratch, key_staged, take_scratch, value_in_place
from .normalize import log_softmax, logsumexp, softmax
from .ragged import RaggedExecution
from .record import WORD
from .stages import fuse, similarity

__all__ = [
    "Execution",
    "about",
    "attention_state",
    "finish_state",
    "fuse",
    "log_softmax",
    "logsumexp",
    "merge_states",
    "name",
    "prepare_attention",
    "prepare_varlen",
    "refusal",
    "similarity",
    "softmax",
    "warmup",
]

name = "numba"

_ENTRIES = {
    np.dtype(np.float32): (attention.attend_float32, attention.fold_float32),
    np.dtype(np.float64): (attention.attend_float64, attention.fold_float64),
}


def _run(entry: compile.Entry, record: Record, tasks: int, seconds: float, workers: int) -> None:
    """Launch with scratch of the record's size."""
    words = record.words
    buffer = take_scratch(workers * int(words[WORD["scratch_stride"]]))
    words[WORD["scratch"]] = buffer[1]
    launch.run(entry, words, tasks, seconds, workers)
    give_scratch(buffer)


class Execution:
    """One planned attention call."""

    backend = "numba"

    def __init__(self, problem: Problem, plan: AttentionPlan) -> None:
        self.problem = problem
        self.plan = plan
        self.scratch_bytes = plan.scratch_bytes
        self.refusals: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Execution on {self.backend}: {self.plan}, refusals {self.refusals}>"

    def run(self, output: np.ndarray, lse: np.ndarray | None, weights: np.ndarray | None) -> None:
        """Fill (*batch, Hkv, G, L, Ev), (*batch, Hkv, G, L) and (*batch, Hkv, G, L, S)."""
        if math.prod(self.problem.query.shape[:-1]) == 0:
            return
        record = _record(self.problem, self.plan, output, lse)
        if weights is not None:
            record.point(weights=weights)
        self._launch(record)

    def repeat(self) -> Callable[..., None] | None:
        """Return a cheap `run` for other arrays of the same strides, or None."""
        problem, plan = self.problem, self.plan
        rows = problem.query.shape[:-1]
        if plan.split_keys or problem.return_weights or math.prod(rows) == 0:
            return None
        output = np.empty((*rows, problem.value.shape[-1]), problem.output_dtype)
        record = _record(problem, plan, output)
        return repeat.repeating(_ENTRIES[problem.dtype][0], record, *_bundles(plan), plan.workers)

    def _launch(self, record: Record) -> None:
        problem, plan = self.problem, self.plan
        if not plan.split_keys:
            entry = _ENTRIES[problem.dtype][0]
            bundles, seconds = _bundles(plan)
            _run(entry, record, bundles, seconds, plan.workers)
            return
        entries = math.prod(problem.query.shape[:-3])
        rows = _rows(problem)
        partial = _Partials.empty(plan.wave_entries * rows, plan.wave_segments, problem)
        state = _Partials.empty(plan.wave_entries * rows, 1, problem)
        for entry in range(0, entries, plan.wave_entries):
            here = min(plan.wave_entries, entries - entry)
            _attend_waves(record, problem, plan, entry, here, partial, state, suspend=False)


def _rows(problem: Problem) -> int:
    return problem.query.shape[-3] * problem.query.shape[-2]


def _bundles(plan: AttentionPlan) -> tuple[int, float]:
    """How many bundles of tasks there are, and the seconds of each."""
    return -(-plan.tasks // plan.bundle), plan.seconds_per_task * plan.bundle


def _layout(problem: Problem, plan: AttentionPlan) -> Scratch:
    return scratch_layout(
        plan.task_rows,
        problem.key.shape[-2],
        problem.query.shape[-1],
        problem.value.shape[-1],
        problem.dtype.itemsize,
        value_in_place(problem),
        key_staged(problem),
    )


def _record(
    problem: Problem, plan: AttentionPlan, output: np.ndarray, lse: np.ndarray | None = None
) -> Record:
    """Everything a kernel needs to know, but scratch and weights."""
    record = describe(problem, output, lse)
    places = _layout(problem, plan)._asdict()
    record.set(
        scratch_stride=places.pop("size"),
        tasks=plan.tasks,
        bundle=plan.bundle,
        task_rows=plan.task_rows,
        row_tasks=plan.row_tasks,
        stop_segment=plan.segments,
        segment_tasks=1,
        **places,
    )
    return record


class _Partials(NamedTuple):
    """Unfinished rows: maximum, sum and output of one or more segments (or of a fold of many)."""

    row_max: np.ndarray  # (rows, segments)
    row_sum: np.ndarray  # (rows, segments)
    output: np.ndarray  # (rows, segments, Ev rounded up to lanes)
    exact: np.ndarray  # (rows,), whether the power-of-two part of scale went onto the query

    @classmethod
    def empty(cls, rows: int, segments: int, problem: Problem) -> _Partials:
        width = padded(problem.value.shape[-1])
        return cls(
            np.empty((rows, segments), problem.dtype),
            np.empty((rows, segments), problem.dtype),
            np.empty((rows, segments, width), problem.dtype),
            np.empty(rows, np.int64),
        )


def _attend_waves(
    record: Record,
    problem: Problem,
    plan: AttentionPlan,
    entry: int,
    entries: int,
    partial: _Partials,
    state: _Partials,
    suspend: bool,
) -> None:
    """Attend some entries, segments as tasks, and fold each wave of segments into `state`."""
    record.set(first_entry=entry, entries=entries, split=1)
    _point_partials(record, partial, state)
    for segment in range(0, plan.segments, plan.wave_segments):
        stop = min(segment + plan.wave_segments, plan.segments)
        record.set(first_segment=segment, stop_segment=stop, segment_tasks=stop - segment)
        tasks = entries * plan.row_tasks * (stop - segment)
        record.set(tasks=tasks)
        _run(_ENTRIES[problem.dtype][0], record, tasks, plan.seconds_per_task, plan.workers)
        _fold(
            record,
            problem,
            entries * _rows(problem),
            plan.workers,
            resume=segment > 0,
            suspend=suspend or stop < plan.segments,
        )


def _point_partials(record: Record, partial: _Partials, state: _Partials) -> None:
    record.point(
        partial_max=partial.row_max,
        partial_sum=partial.row_sum,
        partial_output=partial.output,
        state_max=state.row_max,
        state_sum=state.row_sum,
        state_output=state.output,
        state_exact=state.exact,
    )


def _fold(
    record: Record, problem: Problem, rows: int, workers: int, resume: bool, suspend: bool
) -> None:
    """Fold partial states into running ones; write the results unless suspended."""
    record.set(resume=int(resume), suspend=int(suspend))
    width = padded(problem.value.shape[-1])
    segments = int(record.words[WORD["segment_tasks"]])
    seconds = BLOCK_ROWS * (segments + 1) * (width + 32) * 1e-9
    _run(_ENTRIES[problem.dtype][1], record, -(-rows // BLOCK_ROWS), seconds, workers)


class _State(NamedTuple):
    """One part of the keys: folded, if it begins at key 0, else a partial state a segment.

    Folding is a left fold from the first segment on, so a later part can only be folded into the
    one before it.
    """

    problem: Problem
    threads: int
    folded: bool
    parts: _Partials


def about() -> dict[str, str | None]:
    """Say where compiled kernels are kept and what runs threads, which it does not start."""
    kept = cache.describe()
    try:
        layer = numba.threading_layer()
    except ValueError:
        layer = "not started yet"
    return {"kernel cache": kept["folder"] or f"none: {kept['refusal']}", "threading layer": layer}


def refusal(problem: Problem | RaggedProblem) -> str | None:
    """Say why this backend cannot do a call, or None."""
    return compile.refusal()


def _plan(problem: Problem, threads: int, **options: Any) -> AttentionPlan:
    return plan_attention(
        entries=math.prod(problem.query.shape[:-3]),
        rows=_rows(problem),
        keys=problem.key.shape[-2],
        features=problem.query.shape[-1],
        value_features=problem.value.shape[-1],
        item=problem.dtype.itemsize,
        workers=threads,
        value_in_place=value_in_place(problem),
        weights=problem.return_weights,
        key_staged=key_staged(problem),
        **options,
    )


def prepare_attention(problem: Problem, threads: int) -> Execution:
    """Plan one attention call; runs nothing."""
    return Execution(problem, _plan(problem, threads))


def prepare_varlen(problem: RaggedProblem, threads: int) -> RaggedExecution:
    """Plan one ragged call; runs nothing."""
    entry = _ENTRIES[problem.dtype][0]

    def launch(record: Record, bundles: int, seconds: float, workers: int) -> None:
        _run(entry, record, bundles, seconds, workers)

    return RaggedExecution(problem, threads, launch, _attend_alone)


def _attend_alone(
    problem: Problem, threads: int, output: np.ndarray, lse: np.ndarray | None
) -> None:
    """Attend in one long sequence of a ragged call, whose segments are shared among threads."""
    prepare_attention(problem, threads).run(output, lse, None)


def _any_output(problem: Problem) -> np.ndarray:
    """Stand in for the output of a call that writes none."""
    shape = (*problem.query.shape[:-1], problem.value.shape[-1])
    return np.broadcast_to(np.empty(1, problem.output_dtype), shape)


def _sizes_alone(problem: Problem) -> Problem:
    """Let go of the operands: a state outlives its part, and only folds and finishes.

    What stands in for them has their shapes and dtypes; that there was a float mask, say, tells in
    which unit the state's maxima are.
    """
    operands = {
        name: np.broadcast_to(np.zeros((), array.dtype), array.shape)
        for name in ("query", "key", "value", "mask")
        if (array := getattr(problem, name)) is not None
    }
    return problem._replace(**operands, query_segments=None, key_segments=None)


def attention_state(problem: Problem, key_start: int, threads: int) -> _State:
    """Attend over one part of the keys."""
    folded = key_start == 0
    plan = _plan(problem, threads, keep_partials=not folded, split_always=True)
    entries = math.prod(problem.query.shape[:-3])
    rows = entries * _rows(problem)
    sizes = _sizes_alone(problem)
    state = _Partials.empty(rows, 1 if folded else plan.segments, problem)
    if rows == 0:
        return _State(sizes, threads, folded, state)
    record = _record(problem, plan, _any_output(problem))
    if not folded:
        record.set(entries=entries, split=1, segment_tasks=plan.segments)
        _point_partials(record, state, state)
        tasks = entries * plan.row_tasks * plan.segments
        record.set(tasks=tasks)
        _run(_ENTRIES[problem.dtype][0], record, tasks, plan.seconds_per_task, plan.workers)
        return _State(sizes, threads, folded, state)
    partial = _Partials.empty(plan.wave_entries * _rows(problem), plan.wave_segments, problem)
    for entry in range(0, entries, plan.wave_entries):
        here = min(plan.wave_entries, entries - entry)
        chosen = slice(entry * _rows(problem), (entry + here) * _rows(problem))
        into = _Partials(*(array[chosen] for array in state))
        _attend_waves(record, problem, plan, entry, here, partial, into, suspend=True)
    return _State(sizes, threads, folded, state)


def merge_states(state: _State, following: _State) -> _State:
    """Fold two states, the left one's keys first; neither is changed."""
    left, right = state.parts, following.parts
    if not state.folded:
        joined = (np.concatenate(pair, 1) for pair in zip(left[:3], right[:3], strict=True))
        return state._replace(parts=_Partials(*joined, left.exact))
    merged = _Partials(*(array.copy() for array in left))
    if len(left.exact):
        _fold_parts(following, merged, _any_output(state.problem), None, resume=True, suspend=True)
    return state._replace(parts=merged)


def finish_state(
    state: _State, output: np.ndarray, lse: np.ndarray | None, sinks: np.ndarray | None
) -> None:
    """Fill (*batch, Hkv, G, L, Ev) and (*batch, Hkv, G, L)."""
    if sinks is not None:
        state = state._replace(problem=state.problem._replace(sinks=sinks))
    rows = len(state.parts.exact)
    if rows:
        scratch = _Partials.empty(rows, 1, state.problem)
        scratch.exact[...] = state.parts.exact
        _fold_parts(state, scratch, output, lse, resume=False, suspend=False)


def _fold_parts(
    state: _State,
    into: _Partials,
    output: np.ndarray,
    lse: np.ndarray | None,
    resume: bool,
    suspend: bool,
) -> None:
    problem = state.problem
    record = _record(problem, _plan(problem, state.threads), output, lse)
    _point_partials(record, state.parts, into)
    segments = state.parts.row_max.shape[1]
    record.set(entries=math.prod(problem.query.shape[:-3]), segment_tasks=segments)
    _fold(record, problem, len(into.exact), state.threads, resume, suspend)


def warmup() -> None:
    """Compile every kernel, or load it from the disk cache."""
    own = [entry for entries in _ENTRIES.values() for entry in entries]
    drivers = (*launch.DRIVERS, *repeat.DRIVERS)
    compile.warm([*own, *normalize.ENTRIES, *stages.ENTRIES, *drivers])

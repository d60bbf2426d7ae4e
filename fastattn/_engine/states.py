"""States: one part of the keys attended to and not finished, merged in order."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fastattn._core.problem import Problem

from .apart import apart, in_entries
from .attention import (
    Partials,
    attend_waves,
    fold,
    make_record,
    plan_problem,
    point_partials,
    rows_of,
    sizes_alone,
)
from .kernels import Kernels

__all__ = ["attention_state", "finish_state", "merge_states"]


class _State(NamedTuple):
    """One part of the keys: folded, if it begins at key 0, else a partial state a segment.

    Folding is a left fold from the first segment on, so a later part can only be folded into the
    one before it.
    """

    problem: Problem
    threads: int
    folded: bool
    parts: Partials


def _any_output(problem: Problem) -> np.ndarray:
    """Stand in for the output of a call that writes none."""
    shape = (*problem.query.shape[:-1], problem.value.shape[-1])
    return np.broadcast_to(np.empty(1, problem.output_dtype), shape)


def attention_state(kernels: Kernels, problem: Problem, key_start: int, threads: int) -> _State:
    """Attend over one part of the keys."""
    problem = apart(problem)
    folded = key_start == 0
    plan = plan_problem(kernels, problem, threads, keep_partials=not folded, split_always=True)
    entries = math.prod(problem.query.shape[:-3])
    rows = entries * rows_of(problem)
    sizes = sizes_alone(problem)
    state = Partials.empty(rows, 1 if folded else plan.segments, problem)
    if rows == 0:
        return _State(sizes, threads, folded, state)
    record = make_record(problem, plan, _any_output(problem))
    record.set(keeps_rest=1)  # `finish` may ask for the log-sum-exp
    if not folded:
        record.set(entries=entries, split=1, segment_tasks=plan.segments)
        point_partials(record, state, state)
        tasks = entries * plan.row_tasks * plan.segments
        record.set(tasks=tasks)
        kernel = kernels.attending(plan.way)
        kernels.run(kernel, record, tasks, plan.seconds_per_task, plan.workers)
        return _State(sizes, threads, folded, state)
    partial = Partials.empty(plan.wave_entries * rows_of(problem), plan.wave_segments, problem)
    for entry in range(0, entries, plan.wave_entries):
        here = min(plan.wave_entries, entries - entry)
        chosen = slice(entry * rows_of(problem), (entry + here) * rows_of(problem))
        into = Partials(*(array[chosen] for array in state))
        attend_waves(kernels, record, problem, plan, entry, here, partial, into, suspend=True)
    return _State(sizes, threads, folded, state)


def merge_states(kernels: Kernels, state: _State, following: _State) -> _State:
    """Fold two states, the left one's keys first; neither is changed."""
    left, right = state.parts, following.parts
    if not state.folded:
        row_max, row_sum, row_rest, output = (
            np.concatenate(pair, 1) for pair in zip(left, right, strict=True)
        )
        return state._replace(parts=Partials(row_max, row_sum, row_rest, output))
    merged = Partials(*(array.copy() for array in left))
    if len(left.row_max):
        _fold_parts(
            kernels, following, merged, _any_output(state.problem), None, resume=True, suspend=True
        )
    return state._replace(parts=merged)


def finish_state(
    kernels: Kernels,
    state: _State,
    output: np.ndarray,
    lse: np.ndarray | None,
    sinks: np.ndarray | None,
) -> None:
    """Fill (*batch, Hkv, G, L, Ev) and (*batch, Hkv, G, L)."""
    if sinks is not None:
        extras = state.problem.extras._replace(sinks=in_entries(state.problem, sinks, 0))
        state = state._replace(problem=state.problem._replace(extras=extras))
    rows = len(state.parts.row_max)
    if rows:
        scratch = Partials.empty(rows, 1, state.problem)
        output, lse = in_entries(state.problem, output, 2), in_entries(state.problem, lse, 1)
        _fold_parts(kernels, state, scratch, output, lse, resume=False, suspend=False)


def _fold_parts(
    kernels: Kernels,
    state: _State,
    into: Partials,
    output: np.ndarray,
    lse: np.ndarray | None,
    resume: bool,
    suspend: bool,
) -> None:
    problem = state.problem
    plan = plan_problem(kernels, problem, state.threads)
    record = make_record(problem, plan, output, lse)
    point_partials(record, state.parts, into)
    segments = state.parts.row_max.shape[1]
    record.set(keeps_rest=1)
    record.set(entries=math.prod(problem.query.shape[:-3]), segment_tasks=segments)
    fold(kernels, record, problem, len(into.row_max), state.threads, resume, suspend)

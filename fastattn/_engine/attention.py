"""Attention: a problem planned, its record, and its launches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastattn._core.constants import BLOCK_ROWS, padded
from fastattn._core.places import Pages
from fastattn._core.problem import Problem

from .apart import apart, in_entries
from .describe import describe
from .kernels import Kernels
from .plan import AttentionPlan, Scratch, plan_attention, scratch_layout
from .record import Record
from .template import Template, stepping
from .way import Way, operands_of

__all__ = [
    "Execution",
    "Partials",
    "attend_waves",
    "fold",
    "make_record",
    "plan_problem",
    "point_partials",
    "prepare_attention",
    "rows_of",
    "sizes_alone",
]


def prepare_attention(kernels: Kernels, problem: Problem, threads: int) -> Execution:
    """Plan one attention call; runs nothing."""
    problem = apart(problem)
    return Execution(kernels, problem, plan_problem(kernels, problem, threads))


class Execution:
    """One planned attention call."""

    def __init__(self, kernels: Kernels, problem: Problem, plan: AttentionPlan) -> None:
        self.backend = kernels.name
        self._kernels = kernels
        self.problem = problem
        self.plan = plan
        self.scratch_bytes = plan.scratch_bytes
        self.refusals: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Execution on {self.backend}: {self.plan}, refusals {self.refusals}>"

    @property
    def way(self) -> Way:
        """How keys and values are read, and why so."""
        return self.plan.way

    def run(self, output: np.ndarray, lse: np.ndarray | None, weights: np.ndarray | None) -> None:
        """Fill (*batch, Hkv, G, L, Ev), (*batch, Hkv, G, L) and (*batch, Hkv, G, L, S)."""
        if math.prod(self.problem.query.shape[:-1]) == 0:
            return
        output, lse = in_entries(self.problem, output, 2), in_entries(self.problem, lse, 1)
        record = make_record(self.problem, self.plan, output, lse)
        if weights is not None:
            record.point(weights=weights)
        self._launch(record)

    def repeat(self, output: np.ndarray) -> Callable[..., None] | None:
        """Return a cheap `run` for other arrays of the same strides, without weights, or None."""
        problem, plan = self.problem, self.plan
        rows = problem.query.shape[:-1]
        if plan.split_keys or problem.options.return_weights or math.prod(rows) == 0:
            return None
        record = make_record(problem, plan, in_entries(problem, output, 2))
        operands = "query", "key", "value", "mask", "output", "lse"
        entry = self._kernels.attending(plan.way)
        return Template(self._kernels, entry, record, operands, *_bundles(plan), plan.workers)

    def step(self) -> Callable[..., None] | None:
        """Return a cheap `run` for the same pages at any length that ends in the last, or None."""
        problem, plan = self.problem, self.plan
        rows, in_pages = problem.query.shape[:-1], isinstance(problem.place, Pages)
        if not in_pages or problem.options.return_weights or math.prod(rows) == 0:
            return None
        output = np.empty((*rows, problem.value.shape[-1]), problem.output_dtype)
        record = make_record(problem, plan, output)
        record.forget_arrays()
        return stepping(Execution(self._kernels, sizes_alone(problem), plan)._launch, record)

    def _launch(self, record: Record) -> None:
        problem, plan = self.problem, self.plan
        if not plan.split_keys:
            kernel = self._kernels.attending(plan.way)
            self._kernels.run(kernel, record, *_bundles(plan), plan.workers)
            return
        entries = math.prod(problem.query.shape[:-3])
        rows = rows_of(problem)
        partial = Partials.empty(plan.wave_entries * rows, plan.wave_segments, problem)
        state = Partials.empty(plan.wave_entries * rows, 1, problem)
        for entry in range(0, entries, plan.wave_entries):
            here = min(plan.wave_entries, entries - entry)
            attend_waves(
                self._kernels, record, problem, plan, entry, here, partial, state, suspend=False
            )


def rows_of(problem: Problem) -> int:
    """Count the rows of a (batch, key head) entry: the queries of all heads that share its keys."""
    return int(problem.query.shape[-3] * problem.query.shape[-2])


def sizes_alone(problem: Problem) -> Problem:
    """Let go of the operands: what outlives its call only plans, launches, folds and finishes.

    What stands in for them has their shapes and dtypes; that there was a float mask, say, tells in
    which unit the maxima of a state are.
    """
    operands: dict[str, Any] = {
        name: np.broadcast_to(np.zeros((), array.dtype), array.shape)
        for name in ("query", "key", "value", "mask")
        if (array := getattr(problem, name)) is not None
    }
    place = problem.place
    if isinstance(place, Pages):
        nowhere = np.empty(0, np.int64)
        place = Pages(place.dtype, nowhere, nowhere, None, None, ())
    extras = problem.extras._replace(query_segments=None, key_segments=None)
    return problem._replace(**operands, place=place, extras=extras)


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
        plan.way.copies_keys,
        plan.way.copies_values,
    )


def make_record(
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
        **plan.way.words(),
        **places,
    )
    return record


class Partials(NamedTuple):
    """Unfinished rows: maximum, sum and output of one or more segments (or of a fold of many)."""

    row_max: np.ndarray  # (rows, segments)
    row_sum: np.ndarray  # (rows, segments)
    row_rest: np.ndarray  # (rows, segments), the sum but for one maximum, where an lse may be asked
    output: np.ndarray  # (rows, segments, Ev rounded up to lanes)

    @classmethod
    def empty(cls, rows: int, segments: int, problem: Problem) -> Partials:
        width = padded(problem.value.shape[-1])
        return cls(
            np.empty((rows, segments), problem.dtype),
            np.empty((rows, segments), problem.dtype),
            np.empty((rows, segments), problem.dtype),
            np.empty((rows, segments, width), problem.dtype),
        )


def attend_waves(
    kernels: Kernels,
    record: Record,
    problem: Problem,
    plan: AttentionPlan,
    entry: int,
    entries: int,
    partial: Partials,
    state: Partials,
    suspend: bool,
) -> None:
    """Attend some entries, segments as tasks, and fold each wave of segments into `state`."""
    record.set(first_entry=entry, entries=entries, split=1)
    point_partials(record, partial, state)
    for segment in range(0, plan.segments, plan.wave_segments):
        stop = min(segment + plan.wave_segments, plan.segments)
        record.set(first_segment=segment, stop_segment=stop, segment_tasks=stop - segment)
        tasks = entries * plan.row_tasks * (stop - segment)
        record.set(tasks=tasks)
        kernel = kernels.attending(plan.way)
        kernels.run(kernel, record, tasks, plan.seconds_per_task, plan.workers)
        fold(
            kernels,
            record,
            problem,
            entries * rows_of(problem),
            plan.workers,
            resume=segment > 0,
            suspend=suspend or stop < plan.segments,
        )


def point_partials(record: Record, partial: Partials, state: Partials) -> None:
    record.point(
        partial_max=partial.row_max,
        partial_sum=partial.row_sum,
        partial_rest=partial.row_rest,
        partial_output=partial.output,
        state_max=state.row_max,
        state_sum=state.row_sum,
        state_rest=state.row_rest,
        state_output=state.output,
    )


def fold(
    kernels: Kernels,
    record: Record,
    problem: Problem,
    rows: int,
    workers: int,
    resume: bool,
    suspend: bool,
) -> None:
    """Fold partial states into running ones; write the results unless suspended."""
    record.set(resume=int(resume), suspend=int(suspend))
    width = padded(problem.value.shape[-1])
    segments = int(record.words[record.layout.word["segment_tasks"]])
    seconds = BLOCK_ROWS * (segments + 1) * (width + 32) * 1e-9
    kernel = kernels.of("fold", problem.dtype)
    kernels.run(kernel, record, -(-rows // BLOCK_ROWS), seconds, workers)


def plan_problem(kernels: Kernels, problem: Problem, threads: int, **options: Any) -> AttentionPlan:
    """Plan one attention call; runs nothing."""
    return plan_attention(
        entries=math.prod(problem.query.shape[:-3]),
        rows=rows_of(problem),
        keys=problem.key.shape[-2],
        features=problem.query.shape[-1],
        value_features=problem.value.shape[-1],
        item=problem.dtype.itemsize,
        workers=threads,
        operands=operands_of(kernels.products, problem),
        weights=problem.options.return_weights,
        **options,
    )

"""Ragged calls: one record for many sequences, and long sequences as calls of their own."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from fastattn._core.options import KEY, QUERY, rows_of
from fastattn._core.places import DENSE, Gathered, Packed, Place
from fastattn._core.problem import Problem

from .apart import apart, in_entries
from .attention import Execution, plan_problem
from .describe import describe
from .kernels import Kernels
from .plan import scratch_layout
from .plan_ragged import RaggedPlan, plan_ragged
from .record import Record
from .way import Way, operands_of

__all__ = ["WAVE", "RaggedExecution", "prepare_varlen"]

# Sequences planned at a time: the planner's arrays then stay in the caches. Planning a million at
# once takes a fifth of the time of attending to them, this way a thirtieth.
WAVE = 16384


def prepare_varlen(kernels: Kernels, problem: Problem, threads: int) -> RaggedExecution:
    """Plan one ragged call; runs nothing."""
    return RaggedExecution(kernels, apart(problem), threads)


class RaggedExecution:
    """One planned ragged call.

    Attributes
    ----------
    plan
        That of the first 16384 sequences; the rest is planned when its turn comes.
    """

    def __init__(self, kernels: Kernels, problem: Problem, threads: int) -> None:
        self.backend = kernels.name
        self._kernels = kernels
        self.problem = problem
        self.threads = threads
        self.plan = plan_wave(kernels, problem, slice(0, WAVE), threads)
        self.scratch_bytes = self.plan.scratch_bytes
        self.refusals: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Execution on {self.backend}: {self.plan}, refusals {self.refusals}>"

    @property
    def way(self) -> Way:
        """How keys and values are read, and why so: of those sequences that the plan tells of."""
        return self.plan.way

    def run(self, output: np.ndarray, lse: np.ndarray | None, weights: None = None) -> None:
        """Fill (Hkv, G, rows, Ev) and (Hkv, G, rows) where a sequence has rows."""
        problem = self.problem
        output, lse = in_entries(problem, output, 2), in_entries(problem, lse, 1)
        template = _describe(problem, output, lse)
        for wave in waves(problem):
            plan = self.plan
            if wave.start > 0:
                plan = plan_wave(self._kernels, problem, wave, self.threads)
            if len(plan.borders) > 1:
                record = _point_wave(template, problem, wave, plan)
                bundles, seconds = len(plan.borders) - 1, plan.seconds_per_bundle
                entry = self._kernels.attending(plan.way)
                self._kernels.run(entry, record, bundles, seconds, plan.workers)
            for sequence in plan.alone + wave.start:
                rows = slice(*packed(problem).query_splits[sequence : sequence + 2])
                rows_lse = None if lse is None else lse[..., rows]
                self._attend_alone(_one(problem, sequence), output[..., rows, :], rows_lse)

    def _attend_alone(self, problem: Problem, output: np.ndarray, lse: np.ndarray | None) -> None:
        """Attend in one long sequence, whose segments are shared among threads."""
        plan = plan_problem(self._kernels, problem, self.threads)
        Execution(self._kernels, problem, plan).run(output, lse, None)


def packed(problem: Problem) -> Packed:
    """Return where the sequences of a ragged call lie."""
    assert isinstance(problem.place, Packed)
    return problem.place


def waves(problem: Problem) -> Iterator[slice]:
    """Cut the sequences into what is planned at a time."""
    batch = len(packed(problem).query_splits) - 1
    for first in range(0, batch, WAVE):
        yield slice(first, min(first + WAVE, batch))


def plan_wave(kernels: Kernels, problem: Problem, wave: slice, threads: int) -> RaggedPlan:
    """Plan some sequences."""
    ends, place = slice(wave.start, wave.stop + 1), packed(problem)
    return plan_ragged(
        queries=np.diff(place.query_splits[ends]),
        keys=np.diff(place.key_splits[ends]),
        kv_heads=math.prod(problem.query.shape[:-3]),
        groups=problem.query.shape[-3],
        features=problem.query.shape[-1],
        value_features=problem.value.shape[-1],
        item=problem.dtype.itemsize,
        workers=threads,
        operands=operands_of(kernels.products, problem),
    )


def _one(problem: Problem, sequence: int) -> Problem:
    """Describe one sequence as a dense call."""
    place = packed(problem)
    rows = slice(*(int(n) for n in place.query_splits[sequence : sequence + 2]))
    keys = slice(*(int(n) for n in place.key_splits[sequence : sequence + 2]))
    offset = problem.extras.query_offset
    return _as_dense(
        problem, rows, keys, int(offset[sequence]) if isinstance(offset, np.ndarray) else offset
    )


def _as_dense(problem: Problem, rows: slice, keys: slice, offset: int) -> Problem:
    """Describe a stretch of query rows and of keys as a dense call."""
    query, key, value = problem.query[..., rows, :], problem.key, problem.value
    indices = packed(problem).indices
    place: Place = DENSE
    if indices is None:
        key, value = key[..., keys, :], value[..., keys, :]
    else:
        place = Gathered(indices[keys], key.shape[-2])
        key, value = (_as_long(table, keys.stop - keys.start) for table in (key, value))
    heads, extras = query.shape[:-2], problem.extras._replace(query_offset=offset)
    for row in rows_of(QUERY, KEY):
        ids = getattr(extras, row.name)
        if ids is not None:
            ids = ids[rows if row.kind == QUERY else keys]
            extras = extras._replace(**{row.name: np.broadcast_to(ids, (*heads, len(ids)))})
    return problem._replace(
        query=query,
        key=key,
        value=value,
        extras=extras,
        place=place,
        output_shape=(*query.shape[:-1], value.shape[-1]),
    )


def _as_long(table: np.ndarray, keys: int) -> np.ndarray:
    """Take a table for an array of as many rows as there are keys: nobody reads it that way."""
    shape = (*table.shape[:-2], keys, table.shape[-1])
    return np.lib.stride_tricks.as_strided(table, shape, table.strides, writeable=False)


def _describe(problem: Problem, output: np.ndarray, lse: np.ndarray | None) -> Record:
    """Make the record that all sequences share; each one has its own words in the worker's copy."""
    indices = packed(problem).indices
    listed = problem.key.shape[-2] if indices is None else len(indices)
    everything = slice(0, problem.query.shape[-2]), slice(0, listed)
    record = describe(_as_dense(problem, *everything, offset=0), output, lse)
    record.set(ragged=1, segment_tasks=1)
    return record


def _point_wave(record: Record, problem: Problem, wave: slice, plan: RaggedPlan) -> Record:
    """Point the shared record at the splits, offsets and tasks of some sequences."""
    ends, place = slice(wave.start, wave.stop + 1), packed(problem)
    offset = problem.extras.query_offset
    several = isinstance(offset, np.ndarray)
    offsets = np.array(offset[wave] if isinstance(offset, np.ndarray) else [offset], np.int64)
    places = scratch_layout(
        plan.task_rows,
        plan.longest,
        problem.query.shape[-1],
        problem.value.shape[-1],
        problem.dtype.itemsize,
        plan.way.copies_keys,
        plan.way.copies_values,
    )._asdict()
    record.set(
        scratch_stride=places.pop("size"),
        task_rows=plan.task_rows,
        sequences=wave.stop - wave.start,
        offsets_step=int(several),
        **plan.way.words(),
        **places,
    )
    record.point(
        query_splits=place.query_splits[ends],
        key_splits=place.key_splits[ends],
        offsets=offsets,
        first_task=plan.first_task,
        borders=plan.borders,
    )
    return record

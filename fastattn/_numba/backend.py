"""The Numba backend: from a problem to call records, scratch and launches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastattn._core.plan import (
    BLOCK_ROWS,
    AttentionPlan,
    padded,
    plan_attention,
    scratch_layout,
)
from fastattn._core.problem import Problem

from . import attention, launch
from .record import (
    BOOL_MASK,
    COSINE,
    DOT,
    EUCLIDEAN,
    FLOAT_MASK,
    NO_MASK,
    OPERANDS,
    RECORD,
    UNBOUNDED,
    WORD,
)
from .simd import storage_code

name = "numba"
_METRICS = {"dot": DOT, "scaled_dot": DOT, "cosine": COSINE, "euclidean": EUCLIDEAN}
_ENTRIES = {
    np.dtype(np.float32): (attention.attend_float32, attention.fold_float32),
    np.dtype(np.float64): (attention.attend_float64, attention.fold_float64),
}


def address(array: np.ndarray) -> int:
    """Where an array's first element lies."""
    return int(array.__array_interface__["data"][0])


def _split_scale(problem: Problem) -> dict[str, Any]:
    """Divide scale into a power of two, exact on the operands, and a rest in [1, 4).

    The sign goes onto the query too, so that scores rise with the product; a negative factor of
    distances, and 0, are applied to the scores.
    """
    scale = problem.scale
    metric = _METRICS[problem.similarity]
    shaped = problem.softcap is not None or (
        problem.mask is not None and problem.mask.dtype != np.bool_
    )
    words: dict[str, Any] = dict(
        metric=metric,
        query_factor=1.0,
        key_factor=1.0,
        difference_factor=1.0,
        power_first=1.0,
        power_second=1.0,
        softcap=problem.softcap or 0.0,
    )
    if scale == 0.0:
        return words | dict(rest=0.0, shaped=1, rescaled=1)
    mantissa, exponent = math.frexp(abs(scale))
    rest, exponent = 2.0 * mantissa, exponent - 1
    if metric == EUCLIDEAN:
        half, odd = divmod(exponent, 2)
        rest *= 2.0**odd
        if half > 0:
            # On the operands it might overflow where their differences do not.
            words["difference_factor"] = math.ldexp(1.0, half)
        else:
            words["query_factor"] = words["key_factor"] = math.ldexp(1.0, half)
        if scale < 0.0:
            rest, shaped = -rest, True
    else:
        words["query_factor"] = math.copysign(math.ldexp(1.0, exponent), scale)
        words["power_first"] = math.copysign(math.ldexp(1.0, exponent // 2), scale)
        words["power_second"] = math.ldexp(1.0, exponent - exponent // 2)
    rescaled = problem.softcap is not None or (shaped and rest != 1.0)
    return words | dict(rest=rest, shaped=int(shaped), rescaled=int(rescaled))


def _merge_dims(shape: tuple[int, ...], strides: list[tuple[int, ...]]) -> tuple[list, list]:
    """Join neighbouring batch dims that every operand walks as one."""
    kept = [axis for axis, size in enumerate(shape) if size != 1]
    sizes = [shape[axis] for axis in kept]
    steps = [[one[axis] for axis in kept] for one in strides]
    axis = len(sizes) - 1
    while axis > 0:
        if all(one[axis - 1] == one[axis] * sizes[axis] for one in steps):
            sizes[axis - 1 : axis + 1] = [sizes[axis - 1] * sizes[axis]]
            for one in steps:
                del one[axis - 1]
        axis -= 1
    return sizes, steps


class Record:
    """A call record under construction; keeps what its addresses point to."""

    def __init__(self) -> None:
        self.words = np.zeros(len(RECORD), np.int64)
        self._floats = self.words.view(np.float64)
        self.kept: list[np.ndarray] = []

    def set(self, **words: float) -> None:
        for field, value in words.items():
            target = self._floats if RECORD[field].kind == "f" else self.words
            target[WORD[field]] = value

    def point(self, **arrays: np.ndarray) -> None:
        for field, array in arrays.items():
            self.kept.append(array)
            self.words[WORD[field]] = address(array)


def _describe(problem: Problem, output: np.ndarray) -> Record:
    """Everything of a record that does not depend on the plan."""
    query, key, value, mask = problem.query, problem.key, problem.value, problem.mask
    groups, rows = query.shape[-3:-1]
    lengths = problem.key_lengths
    if lengths is None:
        lengths = np.broadcast_to(np.int64(key.shape[-2]), query.shape[:-2])
    offsets = np.broadcast_to(np.asarray(problem.query_offset, np.int64), query.shape[:-2])
    record = Record()
    left, right = problem.window
    right = UNBOUNDED if right is None else right
    item = problem.dtype.itemsize
    record.set(
        groups_of_heads=groups,
        queries=rows,
        keys=key.shape[-2],
        features=query.shape[-1],
        value_features=value.shape[-1],
        left=UNBOUNDED if left is None else left,
        right=min(right, 0) if problem.causal else right,
        query_code=storage_code(query.dtype),
        key_code=storage_code(key.dtype),
        value_code=storage_code(value.dtype),
        value_in_place=int(value_in_place(problem)),
        mask_kind=NO_MASK,
        **_split_scale(problem),
    )
    for field, array in (("query", query), ("output", output)):
        head, row, feature = array.strides[-3:]
        record.set(**{f"{field}_head": head, f"{field}_row": row, f"{field}_feature": feature})
    for field, array in (("key", key), ("value", value)):
        record.set(**{f"{field}_row": array.strides[-2], f"{field}_feature": array.strides[-1]})
    record.set(lengths_head=lengths.strides[-1], offsets_head=offsets.strides[-1])
    record.point(query=query, key=key, value=value, output=output, lengths=lengths, offsets=offsets)
    operands = [query, key, value, key, lengths, offsets, output]
    if mask is not None:
        kind = BOOL_MASK if mask.dtype == np.bool_ else FLOAT_MASK
        head, row, column = mask.strides[-3:]
        record.set(mask_head=head, mask_row=row, mask_key=column, mask_kind=kind)
        record.set(mask_code=storage_code(mask.dtype))
        record.point(mask=mask)
        operands[OPERANDS.index("mask")] = mask
    batch = query.shape[:-3]
    shape, steps = _merge_dims(batch, [one.strides[: len(batch)] for one in operands])
    record.set(entries=math.prod(batch), entry_rank=len(shape))
    record.point(
        entry_shape=np.array([*shape, 1], np.int64),
        entry_strides=np.array([*np.ravel(steps), 0], np.int64),
    )
    return record


def value_in_place(problem: Problem) -> bool:
    """Whether the tile can read value rows where they lie."""
    value = problem.value
    return (
        value.dtype == problem.dtype
        and value.dtype.isnative
        and value.shape[-1] % 16 == 0
        and (value.strides[-1] == value.itemsize or value.shape[-1] == 0)
    )


class Execution:
    """One planned attention call."""

    backend = "numba"

    def __init__(self, problem: Problem, plan: AttentionPlan) -> None:
        self.problem = problem
        self.plan = plan
        self.scratch_bytes = plan.scratch_bytes
        self.refusals: dict[str, str] = {}

    def run(
        self, output: np.ndarray, lse: np.ndarray | None = None, weights: np.ndarray | None = None
    ) -> None:
        problem, plan = self.problem, self.plan
        record = _describe(problem, output)
        entries = int(record.words[WORD["entries"]])
        if entries == 0 or output.size == 0 and lse is None and weights is None:
            return
        rows = problem.query.shape[-3] * problem.query.shape[-2]
        if rows == 0:
            return
        layout = scratch_layout(
            plan.task_rows,
            problem.key.shape[-2],
            problem.query.shape[-1],
            problem.value.shape[-1],
            problem.dtype.itemsize,
            value_in_place(problem),
            weights is not None,
        )
        scratch = np.empty(plan.workers * layout.size + 64, np.uint8)
        record.point(scratch=scratch)
        record.words[WORD["scratch"]] += -address(scratch) % 64
        fields = layout._asdict()
        record.set(scratch_stride=fields.pop("size"), **fields)
        record.set(
            task_rows=plan.task_rows,
            row_tasks=plan.row_tasks,
            stop_segment=plan.segments,
            segment_tasks=1,
        )
        if lse is not None:
            record.point(lse=lse)
        if weights is not None:
            record.point(weights=weights)
        attend, fold = _ENTRIES[problem.dtype]
        if not plan.split_keys:
            launch.run(attend, record.words, plan.tasks, plan.seconds_per_task, plan.workers)
            return
        self._run_waves(record, entries, rows)

    def _run_waves(self, record: Record, entries: int, rows: int) -> None:
        problem, plan = self.problem, self.plan
        attend, fold = _ENTRIES[problem.dtype]
        width = padded(problem.value.shape[-1])
        many = plan.wave_entries * rows
        dtype = problem.dtype
        record.point(
            state_output=np.empty((many, width), dtype),
            state_max=np.empty(many, dtype),
            state_sum=np.empty(many, dtype),
            state_exact=np.empty(many, np.int64),
            partial_output=np.empty((many * plan.wave_segments, width), dtype),
            partial_max=np.empty(many * plan.wave_segments, dtype),
            partial_sum=np.empty(many * plan.wave_segments, dtype),
        )
        for entry in range(0, entries, plan.wave_entries):
            here = min(plan.wave_entries, entries - entry)
            for segment in range(0, plan.segments, plan.wave_segments):
                stop = min(segment + plan.wave_segments, plan.segments)
                record.set(
                    first_entry=entry,
                    entries=here,
                    first_segment=segment,
                    stop_segment=stop,
                    segment_tasks=stop - segment,
                    split=1,
                    resume=int(segment > 0),
                    suspend=int(stop < plan.segments),
                )
                tasks = here * plan.row_tasks * (stop - segment)
                launch.run(attend, record.words, tasks, plan.seconds_per_task, plan.workers)
                folds = -(-here * rows // BLOCK_ROWS)
                seconds = BLOCK_ROWS * (stop - segment) * (width + 16) * 1e-9
                launch.run(fold, record.words, folds, seconds, plan.workers)


def refusal(problem: Problem) -> str | None:
    """Why this backend cannot do a call, or None."""
    from .compile import refusal

    return refusal()


def prepare_attention(problem: Problem, threads: int) -> Execution:
    """Plan one attention call; runs nothing."""
    query, key, value = problem.query, problem.key, problem.value
    plan = plan_attention(
        entries=math.prod(query.shape[:-3]),
        rows=query.shape[-3] * query.shape[-2],
        keys=key.shape[-2],
        features=query.shape[-1],
        value_features=value.shape[-1],
        item=problem.dtype.itemsize,
        workers=threads,
        value_in_place=value_in_place(problem),
        weights=problem.return_weights,
    )
    return Execution(problem, plan)

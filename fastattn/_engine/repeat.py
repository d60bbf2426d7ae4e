"""A planned call once more, on other arrays: what a loop of small calls costs beside the kernel.

The record of the first call is kept as a template. One compiled call copies it, fills in where the
arrays of this call lie and, if the work is small, runs it. Done from Python, with a copy by NumPy
and a store per address, the same costs 3 µs instead of 0.8.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastattn._core.pages import Pages
from fastattn._core.problem import Problem

from .addresses import ADDRESS_IN_OBJECT, address, give_scratch, take_scratch
from .kernels import Kernels
from .launcher import is_small
from .layouts import ATTENTION, RECORD_STRIDE
from .record import Record

__all__ = ["repeating", "stepping"]


def repeating(
    kernels: Kernels,
    problem: Problem,
    record: Record,
    tasks: int,
    seconds_per_task: float,
    workers: int,
) -> Callable[..., None] | None:
    """Return a function that runs a call as `record` describes it on other arrays, or None.

    It holds no array but the record and its tables, and may run in many threads at once: the
    record of a call stands in front of its scratch, which belongs to one call at a time.
    """
    if not ADDRESS_IN_OBJECT:
        return None
    template = address(record.words)
    size = RECORD_STRIDE + workers * int(record.words[ATTENTION.word["scratch_stride"]])
    small = tasks if is_small(tasks, seconds_per_task, workers) else 0
    record.forget_arrays()
    entry, launcher, again = kernels.attending(problem), kernels.launcher, kernels.again

    def repeat(
        query: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
        mask: np.ndarray | None,
        output: np.ndarray,
        lse: np.ndarray | None,
        weights: np.ndarray | None,
        kept: Record = record,  # its words, and the tables they point to
    ) -> None:
        buffer = take_scratch(size)
        call = buffer[1]
        again.run(
            entry.address,
            small,
            template,
            call,
            id(query),
            id(key),
            id(value),
            0 if mask is None else id(mask),
            id(output),
            0 if lse is None else id(lse),
        )
        if not small:
            launcher.run_at(entry, call, tasks, seconds_per_task, workers)
        give_scratch(buffer)

    return repeat


def stepping(launch: Callable[[Record], None], template: Record) -> Callable[..., None]:
    """Return a function that attends to a cache as `template` describes it, at other lengths.

    It holds no array but the record's tables, and may run in many threads at once.
    """

    def step(
        query: np.ndarray,
        pages: Pages,
        keys: int,
        lengths: np.ndarray,
        offsets: np.ndarray | None,
        alibi: np.ndarray | None,
        sinks: np.ndarray | None,
        output: np.ndarray,
        lse: np.ndarray | None,
    ) -> None:
        record = template.copy()
        record.set(keys=keys)
        record.point(
            query=query,
            key_pages=pages.key,
            value_pages=pages.value,
            lengths=lengths,
            output=output,
        )
        optional = {
            "key_scales": pages.key_scale,
            "value_scales": pages.value_scale,
            "offsets": offsets,
            "alibi": alibi,
            "sinks": sinks,
            "lse": lse,
        }
        for field, array in optional.items():
            if array is not None:
                record.point(**{field: array})
        launch(record)

    return step

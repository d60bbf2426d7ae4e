"""A planned call once more, on other arrays: what a loop of small calls costs beside the kernel.

The record of the first call is kept as a template. One compiled call copies it, fills in where the
arrays of this call lie and, if the work is small, runs it. Done from Python, with a copy by NumPy
and a store per address, the same costs 3 µs instead of 0.8.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import compile, launch
from .calls import Record, give_scratch, take_scratch
from .native import ADDRESS_IN_OBJECT, DATA_OFFSET, address, load_int64, store_int64
from .record import RECORD, WORD

_QUERY, _KEY, _VALUE, _MASK, _OUTPUT, _LSE, _SCRATCH = (
    WORD[field] for field in ("query", "key", "value", "mask", "output", "lse", "scratch")
)
_WORDS = len(RECORD.word)
_RECORD_BYTES = -(-8 * _WORDS // 64) * 64


@compile.device
def _place(call, word, array_object):
    """Store where the array begins whose Python object is there; 0: no array, nothing stored."""
    if array_object != 0:
        store_int64(call, word, load_int64(array_object + DATA_OFFSET, 0))


@compile.driver("void(int64, int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def _again(entry_address, tasks, template, call, query, key, value, mask, output, lse):
    """Fill the record at `call`, the workers' scratch right behind it, and run `tasks` tasks."""
    for word in range(_WORDS):
        store_int64(call, word, load_int64(template, word))
    _place(call, _QUERY, query)
    _place(call, _KEY, key)
    _place(call, _VALUE, value)
    _place(call, _MASK, mask)
    _place(call, _OUTPUT, output)
    _place(call, _LSE, lse)
    store_int64(call, _SCRATCH, call + _RECORD_BYTES)
    if tasks > 0:
        launch.run_serially(entry_address, call, 0, tasks)


DRIVERS = (_again,)


def repeating(
    entry: compile.Entry, record: Record, tasks: int, seconds_per_task: float, workers: int
) -> Callable[..., None] | None:
    """Return a function that runs a call as `record` describes it on other arrays, or None.

    It holds no array but the record and its tables, and may run in many threads at once: the
    record of a call stands in front of its scratch, which belongs to one call at a time.
    """
    if not ADDRESS_IN_OBJECT:
        return None
    template = address(record.words)
    size = _RECORD_BYTES + workers * int(record.words[WORD["scratch_stride"]])
    small = tasks if launch.is_small(tasks, seconds_per_task, workers) else 0
    record.forget_arrays()

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
        _again.run(
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
            launch.run_at(entry, call, tasks, seconds_per_task, workers)
        give_scratch(buffer)

    return repeat

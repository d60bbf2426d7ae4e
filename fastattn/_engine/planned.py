"""A planned call of a stage: its record without the addresses, run on any arrays of one layout."""

from __future__ import annotations

import numpy as np

from fastattn._core.plan import padded

from .addresses import address, give_scratch, take_scratch
from .launcher import Entry, Launcher
from .record import Record

__all__ = ["Planned", "describe_entries", "lay_out"]


class Planned:
    """What one call does, whatever arrays it does it to; runs in many threads at once."""

    def __init__(
        self,
        launcher: Launcher,
        entry: Entry,
        record: Record,
        operands: tuple[str, ...],
        tasks: int,
        seconds_per_task: float,
        workers: int,
    ) -> None:
        word = record.layout.word
        self._launcher = launcher
        self._entry = entry
        self._record = record  # keeps the tables that its words point to
        self._places = tuple(word[field] for field in operands)
        self._scratch = word["scratch"]
        self._size = workers * int(record.words[word["scratch_stride"]])
        self._plan = tasks, seconds_per_task, workers

    def __call__(self, *operands: np.ndarray | None) -> None:
        """Run on arrays in the order of the names it was made with; None where there is none."""
        words = self._record.words.copy()
        for place, array in zip(self._places, operands, strict=True):
            if array is not None:
                words[place] = address(array)
        buffer = take_scratch(self._size)
        words[self._scratch] = buffer[1]
        self._launcher.run(self._entry, words, *self._plan)
        give_scratch(buffer)


def lay_out(record: Record, **sizes: int) -> None:
    """Tell the record where the parts of a worker's scratch begin."""
    size = 0
    for field, part in sizes.items():
        record.set(**{field: size})
        size += padded(part, 64)
    record.set(scratch_stride=size)


def describe_entries(record: Record, shape: list[int], steps: list[list[int]]) -> None:
    """Tell the record the batch dims, and by how much each operand's address moves along them."""
    record.set(entry_rank=len(shape))
    record.point(
        entry_shape=np.array([*shape, 1], np.int64),
        entry_strides=np.array([*np.ravel(steps), 0], np.int64),
    )

"""A planned call without its addresses: its record, run on any arrays that are laid out alike.

One compiled call copies the record, fills in where the arrays of this call lie and, if the work is
small, runs it. Done from Python, with a copy by NumPy and a store per address, the same costs 3 µs
instead of 0.8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fastattn._core.constants import padded
from fastattn._core.pages import Pages

from .addresses import ADDRESS_IN_OBJECT, address, give_scratch, take_scratch
from .describe import EXTRA_WORDS
from .kernels import Kernels
from .launcher import Entry, is_small
from .layouts import FORM, FORM_PLACES
from .record import Record

__all__ = ["Template", "describe_entries", "lay_out", "stepping"]

_HEAD = len(FORM.word)


class Template:
    """What one call does, whatever arrays it does it to; runs in many threads at once.

    It holds no array but the record and its tables. The record of a call stands in front of its
    scratch, which belongs to one call at a time.

    Attributes
    ----------
    form : ndarray of int64
        The words of `layouts.FORM`, and behind them those of the record.
    size : int
        Bytes that a call takes: its record and the scratch of its workers.
    operands : tuple of str
        The fields of the record that are addresses of a call's arrays, in their order.
    small : int
        How many tasks a call runs on the thread it is on; 0: the launcher runs it.
    """

    def __init__(
        self,
        kernels: Kernels,
        entry: Entry,
        record: Record,
        operands: tuple[str, ...],
        tasks: int,
        seconds_per_task: float,
        workers: int,
    ) -> None:
        word = record.layout.word
        record_bytes = padded(8 * len(record.words), 64)
        record.forget_arrays()
        self.operands = operands
        self._tables = record.tables
        self.fill = kernels.again.run
        self.launcher = kernels.launcher
        self.entry = entry
        self.plan = tasks, seconds_per_task, workers
        self.size = record_bytes + workers * int(record.words[word["scratch_stride"]])
        self.small = tasks if is_small(tasks, seconds_per_task, workers) else 0
        places = [word[field] for field in operands]
        places += [0] * (FORM_PLACES - len(places))
        head = [len(record.words), word["scratch"], record_bytes, *places]
        self.form = np.array([*head, *record.words], np.int64)
        self._address = address(self.form)

    def __call__(
        self,
        first: np.ndarray | None,
        second: np.ndarray | None = None,
        third: np.ndarray | None = None,
        fourth: np.ndarray | None = None,
        fifth: np.ndarray | None = None,
        sixth: np.ndarray | None = None,
    ) -> None:
        """Run on arrays in the order of the names it was made with; None where there is none."""
        buffer = take_scratch(self.size)
        if ADDRESS_IN_OBJECT:
            # Written out: a list of them costs a small call 0.4 µs.
            self.fill(
                self.entry.address,
                self.small,
                self._address,
                buffer[1],
                0 if first is None else id(first),
                0 if second is None else id(second),
                0 if third is None else id(third),
                0 if fourth is None else id(fourth),
                0 if fifth is None else id(fifth),
                0 if sixth is None else id(sixth),
            )
            if not self.small:
                self.launcher.run_at(self.entry, buffer[1], *self.plan)
        else:
            self._run_slowly(buffer[1], (first, second, third, fourth, fifth, sixth))
        give_scratch(buffer)

    def _run_slowly(self, scratch: int, operands: tuple[np.ndarray | None, ...]) -> None:
        """Do the same where only NumPy knows an array's address."""
        words = self.form[_HEAD:].copy()
        for place, array in zip(self.form[FORM.word["place_0"] :], operands, strict=False):
            if array is not None:
                words[place] = address(array)
        words[self.form[FORM.word["scratch_word"]]] = scratch
        self.launcher.run(self.entry, words, *self.plan)


def stepping(launch: Callable[[Record], None], template: Record) -> Callable[..., None]:
    """Return a function that attends to a cache as `template` describes it, at other lengths.

    It holds no array but the record's tables, and may run in many threads at once.
    """

    def step(
        query: np.ndarray,
        pages: Pages,
        keys: int,
        extras: Mapping[str, np.ndarray],
        output: np.ndarray,
        lse: np.ndarray | None,
    ) -> None:
        record = template.copy()
        record.set(keys=keys)
        fields = {EXTRA_WORDS[name]: array for name, array in extras.items()}
        if lse is not None:
            fields["lse"] = lse
        if pages.key_scale is not None and pages.value_scale is not None:
            fields |= {"key_scales": pages.key_scale, "value_scales": pages.value_scale}
        fields |= {"key_pages": pages.key, "value_pages": pages.value}
        record.point(query=query, output=output, **fields)
        launch(record)

    return step


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
    record.point_tables(
        entry_shape=np.array([*shape, 1], np.int64),
        entry_strides=np.array([*np.ravel(steps), 0], np.int64),
    )

"""What a backend brings to the engine: native kernels, and what runs their tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from fastattn._core.problem import Problem
from fastattn._core.ragged import RaggedProblem

from .addresses import give_scratch, take_scratch
from .bfloat16 import takes_pairs
from .launcher import Entry, Launcher
from .record import Record

__all__ = ["Again", "Kernels"]


class Again(Protocol):
    """Runs a small call once more on other arrays."""

    @property
    def run(self) -> Callable[..., None]:
        """Fill a copy of a record and run it.

        ``run(entry_address, tasks, form, call, first, second, third, fourth, fifth, sixth)``: copy
        the record of the form (`layouts.FORM`) to `call`, store where the arrays begin whose
        objects stand at the addresses `first` to `sixth` (0: none), let scratch begin behind the
        record, and run `tasks` tasks on this thread; no task: leave that to the caller.
        """


class Kernels(NamedTuple):
    """The kernels of a backend, per compute dtype.

    Attributes
    ----------
    name
        That of the backend.
    attend, fold
        Fused attention, and folding its partial states.
    attend_pairs
        Fused attention of bfloat16 multiplied as it is, for problems that are `in_pairs`; None
        where this CPU cannot, or is faster with float32.
    compare, fuse, normalise
        Similarity; weights times values; softmax and its relatives.
    hand_out
        Allocating budgets, always in float64.
    share
        The steps of shared allocation, always in float64.
    launcher
        Runs tasks.
    again
        Runs a small call once more.
    """

    name: str
    attend: Mapping[np.dtype, Entry]
    fold: Mapping[np.dtype, Entry]
    attend_pairs: Entry | None
    compare: Mapping[np.dtype, Entry]
    fuse: Mapping[np.dtype, Entry]
    normalise: Mapping[np.dtype, Entry]
    hand_out: Entry
    share: Entry
    launcher: Launcher
    again: Again

    @classmethod
    def named(
        cls, name: str, entries: Mapping[str, Entry], launcher: Launcher, again: Again
    ) -> Kernels:
        """Sort a backend's entries by operation and compute dtype, which their names say."""

        def of(operation: str) -> dict[np.dtype, Entry]:
            return {
                np.dtype(dtype): entries[f"{operation}_{dtype}"] for dtype in ("float32", "float64")
            }

        pairs = entries.get("attend_pairs")
        return cls(
            name=name,
            attend=of("attend"),
            fold=of("fold"),
            attend_pairs=pairs if takes_pairs(able=pairs is not None) else None,
            compare=of("compare"),
            fuse=of("fuse"),
            normalise=of("normalise"),
            hand_out=entries["hand_out"],
            share=entries["share"],
            launcher=launcher,
            again=again,
        )

    def attending(self, problem: Problem | RaggedProblem) -> Entry:
        """Return the kernel of fused attention that a problem takes."""
        if problem.in_pairs and self.attend_pairs is not None:
            return self.attend_pairs
        return self.attend[problem.dtype]

    def about(self) -> dict[str, str | None]:
        """Say what `show_config` tells of every backend's kernels."""
        return {"bfloat16": "widened" if self.attend_pairs is None else "multiplied in pairs"}

    def run(self, entry: Entry, record: Record, tasks: int, seconds: float, workers: int) -> None:
        """Launch with scratch of the record's size; `seconds` are those of a task."""
        word, words = record.layout.word, record.words
        buffer = take_scratch(workers * int(words[word["scratch_stride"]]))
        words[word["scratch"]] = buffer[1]
        self.launcher.run(entry, words, tasks, seconds, workers)
        give_scratch(buffer)

"""What a backend brings to the engine: native kernels, and what runs their tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from fastattn._core.problem import Problem
from fastattn._core.ragged import RaggedProblem

from .addresses import give_scratch, take_scratch
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
    """The kernels of a backend.

    Attributes
    ----------
    name
        That of the backend.
    entries
        By kernel and compute dtype, None where there is but one (`operations` says which are).
    attend_pairs
        Fused attention of bfloat16 multiplied as it is, for problems that are `in_pairs`; None
        where this CPU cannot, or is faster with float32.
    launcher
        Runs tasks.
    again
        Runs a small call once more.
    """

    name: str
    entries: Mapping[tuple[str, np.dtype | None], Entry]
    attend_pairs: Entry | None
    launcher: Launcher
    again: Again

    def of(self, kernel: str, dtype: np.dtype | None = None) -> Entry:
        """Return the kernel of this name that computes in a dtype."""
        return self.entries[kernel, dtype]

    def attending(self, problem: Problem | RaggedProblem) -> Entry:
        """Return the kernel of fused attention that a problem takes."""
        if problem.in_pairs and self.attend_pairs is not None:
            return self.attend_pairs
        return self.entries["attend", problem.dtype]

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

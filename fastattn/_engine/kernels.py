"""What a backend brings to the engine: native kernels, and what runs their tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from .addresses import give_scratch, take_scratch
from .launcher import Entry, Launcher
from .record import Record
from .variants import KERNEL
from .way import Way

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
        By kernel and compute dtype, None where there is but one (`operations` says which are);
        those of fused attention by variant.
    products
        The variants in use on this machine: what the `products` of a way may be.
    launcher
        Runs tasks.
    again
        Runs a small call once more.
    """

    name: str
    entries: Mapping[tuple[str, np.dtype | str | None], Entry]
    products: tuple[str, ...]
    launcher: Launcher
    again: Again

    def of(self, kernel: str, dtype: np.dtype | None = None) -> Entry:
        """Return the kernel of this name that computes in a dtype."""
        return self.entries[kernel, dtype]

    def attending(self, way: Way) -> Entry:
        """Return the kernel of fused attention that goes a way."""
        return self.entries[KERNEL, way.products]

    def about(self) -> dict[str, str | None]:
        """Say what `show_config` tells of every backend's kernels."""
        return {"bfloat16": "multiplied in pairs" if "pairs" in self.products else "widened"}

    def run(self, entry: Entry, record: Record, tasks: int, seconds: float, workers: int) -> None:
        """Launch with scratch of the record's size; `seconds` are those of a task."""
        word, words = record.layout.word, record.words
        buffer = take_scratch(workers * int(words[word["scratch_stride"]]))
        words[word["scratch"]] = buffer[1]
        self.launcher.run(entry, words, tasks, seconds, workers)
        give_scratch(buffer)

"""What ran here, what was left to torch and why, and what may depend on the batch: counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Counted", "counting", "note_left", "note_taken"]


class Counted:
    """Counts of one `patch` or `batch_invariant`, as far as the program has come.

    Attributes
    ----------
    taken : int
        Calls that fastattn computed.
    left : Counter
        Calls that torch computed, by reason: ``{"dropout": 2}``. What a compiled program leaves is
        counted while it is compiled, and not again when it runs.
    unsure : Counter
        Of `batch_invariant`: operations whose results may depend on the batch, by torch's names for
        them. Empty: the promise holds for all that ran.
    """

    def __init__(self) -> None:
        self.taken = 0
        self.left: Counter[str] = Counter()
        self.unsure: Counter[str] = Counter()

    def __repr__(self) -> str:
        text = f"taken: {self.taken}"
        for name, counts in (("left", self.left), ("unsure", self.unsure)):
            if counts:
                told = ", ".join(f"{count} {word}" for word, count in counts.most_common())
                text += f"; {name}: {told}"
        return text


class _Active(threading.local):
    def __init__(self) -> None:
        self.counts: tuple[Counted, ...] = ()


_active = _Active()


@contextmanager
def counting() -> Iterator[Counted]:
    """Count what this thread does within, on top of those who count already."""
    counted = Counted()
    _active.counts = (*_active.counts, counted)
    try:
        yield counted
    finally:  # perhaps not in the order in which they began
        _active.counts = tuple(other for other in _active.counts if other is not counted)


def note_taken() -> None:
    """Count a call that fastattn computed."""
    for counted in _active.counts:
        counted.taken += 1


def note_left(reason: str) -> None:
    """Count a call that torch computes, for all who count: while a program is compiled."""
    for counted in _active.counts:
        counted.left[reason] += 1

"""Calls on the threads of another library of this process: of an OpenMP team, such as PyTorch's.

Its threads look out for work after theirs, for a while, and ours would share the cores with them.
On the team itself nobody is in the way. It is entered by the `GOMP_parallel` that the library uses,
which `_core.threads.in_company` has been given: all of its threads enter a function, each takes
tasks, and whoever is one too many leaves at once. More or fewer are never asked for, as a team that
changes its size ends threads and starts others.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

from fastattn._core.threads import Team, team

__all__ = ["Masters", "OnTeam", "company", "has_lost"]

_MOST_MASTERS = 4

# Where teams are entered that this process has met, and those of them that it has lost: a forked
# child has none of the threads that its parent's OpenMP counts on, and would wait for them.
_met: set[int] = set()
_lost: set[int] = set()


def _after_fork_in_child() -> None:
    _lost.update(_met)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def has_lost() -> bool:
    """Tell whether this process was forked after a team had been entered."""
    return bool(_lost)


class Masters:
    """The threads that start parallel regions of OpenMP: the main one, and a few others.

    Each of them has a team of its own there, so that a thread pool of 64 would leave 64 × 63
    sleeping threads behind.
    """

    def __init__(self) -> None:
        self.others: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    def admit(self) -> bool:
        """Tell whether this thread is one of them; a place that is free is taken."""
        thread = threading.current_thread()
        if thread is threading.main_thread() or thread in self.others:
            return True
        if len(self.others) >= _MOST_MASTERS:
            return False
        self.others.add(thread)
        return True


_masters = Masters()


class Layer(Protocol):
    """What a backend's own layer does for others' teams."""

    def takes(self, token: list[bool]) -> bool:
        """Whether the call of ``token`` may run in parallel now, on whatever threads."""

    def run_serially(self, entry_address: int, call: int, first: int, stop: int) -> None:
        """Run tasks ``first`` to ``stop`` on this thread."""

    def run_on_team(
        self, parallel: int, entry_address: int, call: int, first: int, stop: int, workers: int
    ) -> None:
        """Run tasks ``first`` to ``stop`` on the team that is entered there."""


class OnTeam:
    """A layer whose parallel runs are on a team."""

    def __init__(self, layer: Layer, team: Team) -> None:
        self._layer = layer
        self._team = team
        self.admits = layer.takes
        self.run_serially = layer.run_serially

    def threads(self) -> int:
        """How many threads the team has."""
        return self._team.threads

    def run_parallel(
        self, entry_address: int, call: int, first: int, stop: int, workers: int
    ) -> None:
        """Run tasks ``first`` to ``stop`` on as many of them as told."""
        self._layer.run_on_team(self._team.parallel, entry_address, call, first, stop, workers)


def company() -> Team | None:
    """Return the team that this call is to run on; None: on our own threads."""
    there = team()
    if there is None or there.threads < 2 or there.parallel == 0 or there.parallel in _lost:
        return None
    _met.add(there.parallel)
    return there if _masters.admit() else None

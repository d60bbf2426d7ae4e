"""Run the tasks of one kernel call: on the threads of a backend, or on this one.

Every kernel entry takes the address of its call record, an int64 array whose first words are the
next task (an atomic counter), the task to stop at, and the number of workers. A worker takes tasks
until none is left, so any number of real threads gives the same result.

A call runs on one thread when its work is small, when another thread's call holds the parallel
layer (a pool's threads are busy anyway), or where the layer refuses. Whatever is chosen, no bit
changes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from .addresses import address
from .company import OnTeam, company

__all__ = ["Entry", "Launcher", "Layer", "Turns", "is_small"]

# A parallel region costs 2 µs, and 40 to 120 where the other threads have gone to sleep, which they
# do after a millisecond (the compiled kernels' own) or some (Numba's). In a loop of calls two
# threads draw level with one at 13 to 18 µs of kernel, which the cautious estimates take for
# anything from 20 (many rows) to 90 (one row).
_PARALLEL_SECONDS = 40e-6
# Ctrl-C must be answered within a quarter of a second, and estimates may be wrong by a factor of
# two. A slice ends with idle threads, up to one task long: no more slices than that needs.
_UNSLICED_SECONDS = 0.125
_FIRST_SLICE_SECONDS = 0.1
_SLICE_SECONDS = 0.2


class Entry(Protocol):
    """A kernel: native code ``void(int64 call_address, int64 worker)``."""

    @property
    def address(self) -> int:
        """Where the code is; a backend may compile it when it is first asked for."""


class Layer(Protocol):
    """What runs tasks on threads, in this process."""

    def admits(self, token: list[bool]) -> bool:
        """Whether the call of ``token`` may run in parallel now; if so it holds the layer."""

    def takes(self, token: list[bool]) -> bool:
        """Whether it may on the threads of somebody else."""

    def threads(self) -> int:
        """How many threads a parallel run has at most."""

    def run_serially(self, entry_address: int, call: int, first: int, stop: int) -> None:
        """Run tasks ``first`` to ``stop`` on this thread."""

    def run_parallel(
        self, entry_address: int, call: int, first: int, stop: int, workers: int
    ) -> None:
        """Run tasks ``first`` to ``stop`` on as many workers as told."""

    def run_on_team(
        self, parallel: int, entry_address: int, call: int, first: int, stop: int, workers: int
    ) -> None:
        """Run them on the threads of a team of somebody else."""


class Turns:
    """Whose turn it is to run in parallel: one call at a time.

    A call stays the owner until it empties its token. That is one step, where an interrupt could
    come between the steps of any other way to let go, and keep everybody serial for ever.
    """

    def __init__(self) -> None:
        self.owner: list[bool] = []  # the token of the call that holds the layer; empty: free
        self.lock = threading.RLock()

    def takes(self, token: list[bool]) -> bool:
        """Make the call of ``token`` the owner, if there is none; say whether it is."""
        with self.lock:
            if not self.owner:
                self.owner = token
            return self.owner is token


def is_small(tasks: int, seconds_per_task: float, workers: int) -> bool:
    """Tell whether a call is best run on this thread, and short enough to need no slices."""
    seconds = tasks * seconds_per_task
    few = workers < 2 or tasks < 2 or seconds < _PARALLEL_SECONDS
    return few and seconds <= _UNSLICED_SECONDS


class Launcher:
    """Runs tasks on the layer that `layer` returns: another one in a forked child."""

    def __init__(self, layer: Callable[[], Layer]) -> None:
        self._layer = layer

    def run(
        self, entry: Entry, call: np.ndarray, tasks: int, seconds_per_task: float, workers: int
    ) -> None:
        """Run tasks 0 to ``tasks`` of one call; returns when all are done.

        Parameters
        ----------
        entry
            The kernel; called once per worker and slice.
        call
            The call record, a contiguous int64 array. Words 0 to 2 are written here.
        tasks
            Number of tasks. Each should take less than a tenth of a second.
        seconds_per_task
            What one task takes on one thread, roughly; only the length of the first slice depends
            on it.
        workers
            How many workers take tasks, at most. The entry sees worker numbers below it.

        Raises
        ------
        KeyboardInterrupt
            Between two slices. What the call writes is then undefined; the next call works.
        """
        self.run_at(entry, address(call), tasks, seconds_per_task, workers)

    def run_at(
        self, entry: Entry, call: int, tasks: int, seconds_per_task: float, workers: int
    ) -> None:
        """Run as `run` does, the record given by its address."""
        layer = self._layer()
        if is_small(tasks, seconds_per_task, workers):
            layer.run_serially(entry.address, call, 0, tasks)
            return
        seconds = tasks * seconds_per_task
        workers = min(workers, tasks)
        team = company()
        threads = layer if team is None else OnTeam(layer, team)
        token = [True]
        try:
            if seconds <= _UNSLICED_SECONDS and threads.admits(token):
                threads.run_parallel(entry.address, call, 0, tasks, workers)
            else:
                _run_slices(threads, token, entry.address, call, tasks, seconds_per_task, workers)
        finally:
            token.clear()


def _run_slices(
    layer: Layer | OnTeam,
    token: list[bool],
    entry_address: int,
    call: int,
    tasks: int,
    estimate: float,
    workers: int,
) -> None:
    """Run the tasks in slices, between which Python sees a Ctrl-C."""
    first = 0
    target = _FIRST_SLICE_SECONDS
    per_task = max(estimate, 1e-9)
    while first < tasks:
        # Asked anew for each slice: the thread that held the layer may have finished.
        parallel = workers > 1 and layer.admits(token)
        threads = min(workers, layer.threads()) if parallel else 1
        size = threads * max(1, int(target / per_task))
        # A last slice of a few tasks is not worth the idle threads at its border.
        stop = tasks if tasks - first <= size + size // 4 else first + size
        start = time.perf_counter()
        if parallel:
            layer.run_parallel(entry_address, call, first, stop, workers)
        else:
            layer.run_serially(entry_address, call, first, stop)
        elapsed = time.perf_counter() - start
        # Early tasks may be far lighter than later ones, so the estimate keeps a say.
        per_task = max(elapsed * threads / (stop - first), 0.5 * estimate, 1e-9)
        target = _SLICE_SECONDS
        first = stop

"""Run the tasks of one kernel call: on the threads of Numba, or on this one.

Every kernel entry takes the address of its call record, an int64 array whose first words are the
next task (an atomic counter), the task to stop at, and the number of workers. A worker takes tasks
until none is left, so any number of real threads gives the same result, and Numba's own thread
mask is never touched.

A call runs on one thread when its work is small, when another thread's call holds the parallel
layer (a pool's threads are busy anyway, and `workqueue` would abort the process), in a child
forked after the layer had started, and where there is no layer. Whatever is chosen, no bit changes.
"""

import ctypes
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np

from fastattn._numba import compile, native

# A parallel region costs 2 µs, and 40 to 120 where the other threads have gone to sleep, which they
# do after some milliseconds. In a loop of calls two threads draw level with one at 13 to 18 µs of
# kernel, which the cautious estimates take for anything from 20 (many rows) to 90 (one row).
_PARALLEL_SECONDS = 40e-6
# Ctrl-C must be answered within a quarter of a second, and estimates may be wrong by a factor of
# two. A slice ends with idle threads, up to one task long: no more slices than that needs.
_UNSLICED_SECONDS = 0.125
_FIRST_SLICE_SECONDS = 0.1
_SLICE_SECONDS = 0.2
# Each thread that ever starts a parallel region keeps a pool of its own in OpenMP, so that a
# thread pool of 64 would leave 64 × 63 sleeping threads behind.
_MOST_MASTERS = 4


@compile.device
def _enter(entry_address, call_address, worker):
    saved = native.default_float_environment()
    native.call_entry(entry_address, call_address, worker)
    native.restore_float_environment(saved)


@compile.device
def _assign(call_address, first, stop, workers):
    native.store_int64(call_address, 0, first)
    native.store_int64(call_address, 1, stop)
    native.store_int64(call_address, 2, workers)


@compile.device
def run_serially(entry_address, call_address, first, stop):
    """Run tasks ``first`` to ``stop`` on this thread; for compiled callers."""
    _assign(call_address, first, stop, 1)
    _enter(entry_address, call_address, 0)


@compile.driver("void(int64, int64, int64, int64)")
def _serial(entry_address, call_address, first, stop):
    """Run tasks ``first`` to ``stop`` on this thread."""
    run_serially(entry_address, call_address, first, stop)


@compile.driver("void(int64, int64, int64, int64, int64)", parallel=True)
def _parallel(entry_address, call_address, first, stop, workers):
    """Run tasks ``first`` to ``stop`` on as many workers as told."""
    _assign(call_address, first, stop, workers)
    for worker in numba.prange(workers):
        _enter(entry_address, call_address, worker)


# What `warmup` compiles. Not the parallel one: that starts the threads, and a child forked later
# could not use its own.
DRIVERS = (_serial,)


@contextmanager
def _openmp_nesting_kept() -> Iterator[None]:
    """Leave OpenMP's nesting as it is.

    Numba's omp layer allows nested parallel regions when it starts, for all of the process:
    PyTorch, if it shares the library, then runs its own attention five times slower.
    """
    try:
        openmp = ctypes.CDLL("libgomp.so.1")
        levels = openmp.omp_get_max_active_levels()
    except (OSError, AttributeError):  # another OpenMP, or none: nothing to keep
        yield
        return
    try:
        yield
    finally:
        openmp.omp_set_max_active_levels(levels)


class _Layer:
    """What this process knows of the parallel layer; a forked child gets a fresh one."""

    def __init__(self, refusal: str | None) -> None:
        self.refusal = refusal  # why this process runs everything on one thread
        self.name: str | None = None  # known once it has started
        self.owner: list[bool] = []  # the token of the call that holds the layer; empty: free
        self.lock = threading.RLock()
        self.masters: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    def start(self) -> None:
        """Start Numba's threads, and find out which layer they belong to."""
        if numba.config.NUMBA_NUM_THREADS < 2:
            self.refusal = "Numba has one thread (NUMBA_NUM_THREADS or the affinity mask)"
            return
        try:
            with _openmp_nesting_kept():
                numba.get_num_threads()  # the public function that starts the layer
            self.name = numba.threading_layer()
        except ValueError as error:
            self.refusal = f"Numba found no threading layer: {error}"

    def admits(self, token: list[bool]) -> bool:
        """Whether the call of ``token`` may start a parallel region now; if so it is the owner.

        It stays the owner until it empties its token. That is one step, where an interrupt could
        come between the steps of any other way to let go, and keep everybody serial for ever.
        """
        if self.refusal is None and self.name is None:
            self.start()
        if self.refusal is not None:
            return False
        if self.name == "workqueue" and threading.active_count() > 1:
            # Two threads inside this layer, ours or anybody's, abort the process.
            return False
        if not self._admits_thread():
            return False
        with self.lock:
            if not self.owner:
                self.owner = token
            return self.owner is token

    def _admits_thread(self) -> bool:
        thread = threading.current_thread()
        if thread is threading.main_thread() or thread in self.masters:
            return True
        if len(self.masters) >= _MOST_MASTERS:
            return False
        self.masters.add(thread)
        return True


_layer = _Layer(None)


def _after_fork_in_child() -> None:
    global _layer
    refusal = _layer.refusal
    try:
        name = numba.threading_layer()
    except ValueError:
        name = None
    if name is not None and (name != "tbb" or _layer.owner):
        # Numba ends a child that enters GNU OpenMP after its parent did (whoever asked for it),
        # and the threads of workqueue exist in the parent only. TBB starts anew, unless its
        # threads were at work.
        refusal = f"this process was forked after the {name} threads had started"
    _layer.refusal = refusal  # for a call that a signal handler forked in the middle of
    _layer = _Layer(refusal)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def serial_reason() -> str | None:
    """Why this process runs every call on one thread, or None if it need not."""
    if _layer.refusal is None and _layer.name is None:
        _layer.start()
    return _layer.refusal


def _run_slices(
    layer: _Layer,
    token: list[bool],
    address: int,
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
        threads = min(workers, numba.get_num_threads()) if parallel else 1
        size = threads * max(1, int(target / per_task))
        # A last slice of a few tasks is not worth the idle threads at its border.
        stop = tasks if tasks - first <= size + size // 4 else first + size
        start = time.perf_counter()
        if parallel:
            _parallel.run(address, call, first, stop, workers)
        else:
            _serial.run(address, call, first, stop)
        elapsed = time.perf_counter() - start
        # Early tasks may be far lighter than later ones, so the estimate keeps a say.
        per_task = max(elapsed * threads / (stop - first), 0.5 * estimate, 1e-9)
        target = _SLICE_SECONDS
        first = stop


def is_small(tasks: int, seconds_per_task: float, workers: int) -> bool:
    """Tell whether a call is best run on this thread, and short enough to need no slices."""
    seconds = tasks * seconds_per_task
    few = workers < 2 or tasks < 2 or seconds < _PARALLEL_SECONDS
    return few and seconds <= _UNSLICED_SECONDS


def run(
    entry: compile.Entry, call: np.ndarray, tasks: int, seconds_per_task: float, workers: int
) -> None:
    """Run tasks 0 to ``tasks`` of one call; returns when all are done.

    Parameters
    ----------
    entry
        The compiled entry; called once per worker and slice.
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
    run_at(entry, native.address(call), tasks, seconds_per_task, workers)


def run_at(
    entry: compile.Entry, call: int, tasks: int, seconds_per_task: float, workers: int
) -> None:
    """Run as `run` does, the record given by its address."""
    if is_small(tasks, seconds_per_task, workers):
        _serial.run(entry.address, call, 0, tasks)
        return
    seconds = tasks * seconds_per_task
    workers = min(workers, tasks)
    layer = _layer
    token = [True]
    try:
        if seconds <= _UNSLICED_SECONDS and layer.admits(token):
            _parallel.run(entry.address, call, 0, tasks, workers)
        else:
            _run_slices(layer, token, entry.address, call, tasks, seconds_per_task, workers)
    finally:
        token.clear()

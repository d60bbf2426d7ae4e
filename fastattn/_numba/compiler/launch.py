"""Run tasks on the threads of Numba, or on this one.

Numba's own thread mask is never touched. A call runs on one thread when another thread's call holds
the parallel layer (`workqueue` would abort the process), in a child forked after the layer had
started, and where there is no layer.
"""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numba

from fastattn._engine.company import Masters
from fastattn._engine.launcher import Turns
from fastattn._numba.compiler import compile, native


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


@compile.entry
def _take_part(run, nothing):
    """Take part as the next worker, if there is one left, of `_Layer.run_on_team`."""
    worker = native.atomic_next(run)
    if worker < native.load_int64(run, 1):
        _enter(native.load_int64(run, 2), native.load_int64(run, 3), worker)


# `GOMP_parallel`, which calls its function with one argument: `_take_part` reads no second one.
_ENTER_TEAM = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)


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


class _Layer(Turns):
    """What this process knows of the parallel layer; a forked child gets a fresh one."""

    def __init__(self, refusal: str | None) -> None:
        super().__init__()
        self.refusal = refusal  # why this process runs everything on one thread
        self.name: str | None = None  # known once it has started
        self.masters = Masters()

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

    def run_serially(self, entry_address: int, call: int, first: int, stop: int) -> None:
        """Run tasks ``first`` to ``stop`` on this thread."""
        _serial.run(entry_address, call, first, stop)

    def run_parallel(
        self, entry_address: int, call: int, first: int, stop: int, workers: int
    ) -> None:
        """Run tasks ``first`` to ``stop`` on as many workers as told."""
        _parallel.run(entry_address, call, first, stop, workers)

    def run_on_team(
        self, parallel: int, entry_address: int, call: int, first: int, stop: int, workers: int
    ) -> None:
        """Run tasks ``first`` to ``stop`` on the team that the function at `parallel` enters."""
        (ctypes.c_int64 * 3).from_address(call)[:] = first, stop, workers
        run = (ctypes.c_int64 * 4)(0, workers, entry_address, call)
        _ENTER_TEAM(parallel)(_take_part.address, ctypes.addressof(run), 0, 0)

    def threads(self) -> int:
        """How many threads Numba has."""
        return numba.get_num_threads()

    def admits(self, token: list[bool]) -> bool:
        """Whether the call of ``token`` may start a parallel region now; if so it is the owner."""
        if self.refusal is None and self.name is None:
            self.start()
        if self.refusal is not None:
            return False
        if self.name == "workqueue" and threading.active_count() > 1:
            # Two threads inside this layer, ours or anybody's, abort the process.
            return False
        return self.masters.admit() and self.takes(token)


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


def layer() -> _Layer:
    """Return what this process knows of its threads."""
    return _layer

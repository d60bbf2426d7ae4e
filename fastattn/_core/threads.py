"""How many threads a call may use: asked for, set, from the environment, or what the machine gives;
and whose they are.

This only counts. The engine owns the threads, and no bit of a result depends on their number.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from time import monotonic as _now
from typing import NamedTuple

from .arrays import is_bool

_REFRESH_SECONDS = 1.0  # reading masks and quotas costs more than a small call may

_chosen: int | None = None


class Team(NamedTuple):
    """The threads of another library of this process, on which calls may run."""

    threads: int  # how many it has, the calling one included
    parallel: int  # where its `GOMP_parallel` is, which has them all enter a function


# What blocks say that a call is in: how many threads, and whose. A plain tuple.
_Scope = tuple[int | None, Team | None]
_scope: ContextVar[_Scope | None] = ContextVar("fastattn_threads", default=None)
_scope_here = _scope.get  # looked up once: a small call feels it

# When it was read, how many processors there are to run on, how many threads are the default, and
# whether that was said to us. A plain tuple: names cost a small call 20 ns each.
_Machine = tuple[float, int, int, bool]
_machine: _Machine | None = None


def _forget() -> None:
    global _machine
    _machine = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # pools give their children masks of their own


def set_threads(threads: int | None) -> None:
    """Set how many threads calls use from now on, in this process.

    Results do not depend on it, to the last bit.

    Parameters
    ----------
    threads
        At least 1; more than there are processors to run on counts as all of them. None goes back
        to the default: ``NUMBA_NUM_THREADS`` if set, else ``OMP_NUM_THREADS`` (of a list, its first
        number; what is no number is passed over, as OpenMP does), else the processors this process
        may run on (affinity mask), or the container's CPU quota if that is less.

    Raises
    ------
    TypeError
        If ``threads`` is no integer.
    ValueError
        If ``threads`` is less than 1.

    Notes
    -----
    ``threads=`` of a single call comes before this setting, and so does a block of
    `fastattn.threads`. Numba's own settings are neither used for this nor changed.

    Worker processes of Dask and joblib are given an ``OMP_NUM_THREADS`` that shares the machine out
    among them: calls in them keep to it.

    Examples
    --------
    >>> import fastattn
    >>> fastattn.set_threads(1)
    >>> fastattn.set_threads(None)
    """
    global _chosen
    _chosen = None if threads is None else _validated(threads, "threads")


@contextmanager
def threads(threads: int | None) -> Iterator[None]:
    """Let every call in a ``with`` block use at most so many threads.

    Results do not depend on it, to the last bit.

    Parameters
    ----------
    threads
        At least 1; more than there are processors to run on counts as all of them. None: as
        without a block, `set_threads` and what follows.

    Raises
    ------
    TypeError
        If ``threads`` is no integer.
    ValueError
        If ``threads`` is less than 1.

    Notes
    -----
    This is a context variable: other threads and other asyncio tasks do not see it. ``threads=`` of
    a single call comes before it, and it comes before `set_threads`. Without ``with`` it does
    nothing.

    Examples
    --------
    >>> import fastattn
    >>> with fastattn.threads(1):
    ...     weights = fastattn.softmax([1.0, 1.0])
    >>> weights
    array([0.5, 0.5])
    """
    count = None if threads is None else _validated(threads, "threads")
    token = _scope.set((count, team()))
    try:
        yield
    finally:
        _scope.reset(token)


class in_company:
    """Let calls in a ``with`` block run on the threads of another library; in half a microsecond.

    How many those are is the default in there: it comes after all that was said to fastattn, and
    before ``OMP_NUM_THREADS`` and the machine.
    """

    __slots__ = ("_team", "_token")

    def __init__(self, team: Team | None) -> None:
        self._team = team

    def __enter__(self) -> None:
        scope = _scope_here()
        self._token: Token[_Scope | None] = _scope.set((scope and scope[0], self._team))

    def __exit__(self, *error: object) -> None:
        _scope.reset(self._token)


def team() -> Team | None:
    """Return the threads that calls are to run on here, of another library; None: our own."""
    scope = _scope_here()
    return None if scope is None else scope[1]


def resolve(threads: int | None = None) -> int:
    """Return how many threads a call may use.

    The first that is given counts: ``threads``, a block of `threads`, `set_threads`, the variable
    ``NUMBA_NUM_THREADS``, the library whose threads serve, ``OMP_NUM_THREADS``, and the machine:
    affinity mask and container quota.
    """
    machine = _machine
    if machine is None or _now() - machine[0] > _REFRESH_SECONDS:
        machine = _read_machine()
    wanted = _chosen
    scope = _scope_here()
    if scope is not None:
        if scope[0] is not None:
            wanted = scope[0]
        elif wanted is None and scope[1] is not None and not machine[3]:
            wanted = scope[1].threads
    if threads is not None:
        wanted = threads if type(threads) is int and threads > 0 else _validated(threads, "threads")
    if wanted is None:
        return machine[2]
    return wanted if wanted < machine[1] else machine[1]


def _validated(threads: object, name: str) -> int:
    if is_bool(threads):
        raise TypeError(f"{name} must be an integer of at least 1 or None, got {threads!r}")
    try:
        count = operator.index(threads)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"{name} must be an integer of at least 1 or None, got {threads!r}"
        ) from None
    if count < 1:
        raise ValueError(f"{name} must be at least 1 (or None for the default), got {count}")
    return count


def _read_machine() -> _Machine:
    """Read what the machine gives, and keep it for a second."""
    global _machine
    existing = _affinity()
    ours = os.environ.get("NUMBA_NUM_THREADS", "").strip()
    shared = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if ours:
        default = _from_environment(ours)
    elif shared.isdecimal() and int(shared) > 0:
        default = int(shared)
    else:
        quota = cpu_quota()
        default = existing if quota is None else max(1, math.ceil(quota))
    machine = _machine = _now(), existing, min(default, existing), bool(ours)
    return machine


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _from_environment(setting: str) -> int:
    try:
        count = int(setting)
    except ValueError:
        count = 0
    if count < 1:
        raise ValueError(
            f"the environment variable NUMBA_NUM_THREADS must be an integer of at least 1, "
            f"got {setting!r}"
        )
    return count


def cpu_quota(proc: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup") -> float | None:
    """Return how many processors' time the container may use, or None where nothing limits it.

    Reads control groups of version 2 (``cpu.max``) and 1 (``cpu.cfs_quota_us``), this process's
    group and all above it: the smallest counts.
    """
    try:
        lines = _read(proc).splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    quotas = []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            quotas += _quotas(mount, path, _quota_version_2)
        elif "cpu" in controllers.split(","):
            for folder in (controllers, "cpu"):
                quotas += _quotas(os.path.join(mount, folder), path, _quota_version_1)
    return min(quotas, default=None)


def _read(*path: str) -> str:
    # Without pathlib, which takes 4 ms to import.
    with open(os.path.join(*path)) as file:
        return file.read()


def _quotas(mount: str, path: str, read: Callable[[str], float | None]) -> list[float]:
    """Return the quotas from a group up to the mount; inside a container the path may not exist."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    groups = [os.path.join(mount, *parts[:depth]) for depth in range(len(parts) + 1)]
    found = [read(group) for group in groups]
    return [quota for quota in found if quota is not None]


def _quota_version_2(group: str) -> float | None:
    try:
        quota, period = _read(group, "cpu.max").split()[:2]
        return None if quota == "max" else _ratio(int(quota), int(period))
    except (OSError, ValueError):
        return None


def _quota_version_1(group: str) -> float | None:
    try:
        quota = int(_read(group, "cpu.cfs_quota_us"))
        period = int(_read(group, "cpu.cfs_period_us"))
        return _ratio(quota, period)
    except (OSError, ValueError):
        return None


def _ratio(quota: int, period: int) -> float | None:
    return quota / period if quota > 0 and period > 0 else None

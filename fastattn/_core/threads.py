"""How many threads a call may use: asked for, set, from the environment, or what the machine gives.

This only counts. The engine owns the threads, and no bit of a result depends on their number.
"""

import math
import operator
import os
from collections.abc import Callable
from time import monotonic as _now

from .arrays import is_bool

_REFRESH_SECONDS = 1.0  # reading masks and quotas costs more than a small call may

_chosen: int | None = None


# When it was read, how many processors there are to run on, and how many threads are the default.
# A plain tuple: names cost a small call 20 ns each.
_Machine = tuple[float, int, int]
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
        to the default: ``NUMBA_NUM_THREADS`` if set, otherwise the processors this process may run
        on (affinity mask), or the container's CPU quota if that is less.

    Raises
    ------
    TypeError
        If ``threads`` is no integer.
    ValueError
        If ``threads`` is less than 1.

    Notes
    -----
    ``threads=`` of a single call comes before this setting. Numba's own settings are neither used
    for this nor changed.

    Examples
    --------
    >>> import fastattn
    >>> fastattn.set_threads(1)
    >>> fastattn.set_threads(None)
    """
    global _chosen
    _chosen = None if threads is None else _validated(threads, "threads")


def resolve(threads: int | None = None) -> int:
    """Return how many threads a call may use.

    The first that is given counts: ``threads``, `set_threads`, the environment variable
    ``NUMBA_NUM_THREADS``, and the machine: affinity mask and container quota.
    """
    machine = _machine
    if machine is None or _now() - machine[0] > _REFRESH_SECONDS:
        machine = _read_machine()
    _, existing, default = machine
    wanted = _chosen
    if threads is not None:
        wanted = threads if type(threads) is int and threads > 0 else _validated(threads, "threads")
    if wanted is None:
        return default
    return wanted if wanted < existing else existing


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
    setting = os.environ.get("NUMBA_NUM_THREADS", "").strip()
    if setting:
        default = min(_from_environment(setting), existing)
    else:
        quota = cpu_quota()
        default = existing if quota is None else max(1, min(existing, math.ceil(quota)))
    machine = _machine = _now(), existing, default
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

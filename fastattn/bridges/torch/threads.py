"""Which threads a bridged call takes: torch's own, and as many as torch would.

A program that computes by turns in torch and here has one team then, and neither's threads are in
the other's way. Torch's OpenMP is found in the process, where torch itself finds it, and entered as
torch enters it; where there is none, or in a forked child, which has none of its threads, ours
serve. ``threads=``, `fastattn.threads`, `fastattn.set_threads` and ``NUMBA_NUM_THREADS`` come
before torch's number.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

import torch

from fastattn._core.threads import Team, in_company

__all__ = ["run"]


def _find_openmp() -> int:
    """Return where the `GOMP_parallel` is that torch calls; 0: there is none to be seen."""
    if "parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return 0
    core = os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so")
    # As the loader looks for it: among what all may use, then among what torch depends on.
    for path, mode in ((None, 0), (core, getattr(os, "RTLD_NOLOAD", 0))):
        try:
            entry = ctypes.CDLL(path, mode=mode | getattr(os, "RTLD_NOW", 0)).GOMP_parallel
        except (OSError, AttributeError, TypeError):
            continue
        return ctypes.cast(entry, ctypes.c_void_p).value or 0
    return 0


def _lose_openmp() -> None:
    global _team, _parallel
    _parallel = 0
    _team = Team(1, 0)


_parallel = _find_openmp()
_team = Team(1, _parallel)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lose_openmp)


def _team_here() -> Team:
    global _team
    team, threads = _team, torch.get_num_threads()
    if team.threads != threads:
        team = _team = Team(threads, _parallel)
    return team


def run(function: Callable[..., Any], *operands: Any, **options: Any) -> Any:
    """Call a function of fastattn on torch's threads. Every bridged call passes here."""
    with in_company(_team_here()):
        return function(*operands, **options)

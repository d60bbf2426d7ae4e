"""The compiled backend: the engine on kernels compiled ahead, and threads that run them.

The kernels were compiled for several kinds of x86-64 when the package was built; the best one that
this CPU is serves (``FASTATTN_CYTHON_LEVEL`` names another). Results have the bits of the Numba
backend.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from fastattn._core import plan
from fastattn._core.problem import Problem
from fastattn._core.ragged import RaggedProblem
from fastattn._engine import layouts
from fastattn._engine.engine import Engine
from fastattn._engine.kernels import Kernels
from fastattn._engine.launcher import Launcher, Turns

from . import words

try:
    import fastattn._cython._native as _native
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "fastattn was installed without its compiled kernels (no C compiler was found, or building "
        f"them failed, or FASTATTN_CYTHON=0 said so): {error}. With a compiler, install it again "
        "with FASTATTN_REQUIRE_CYTHON=1, which says what is missing",
        name=error.name,
    ) from error
except ImportError as error:
    raise ImportError(
        f"the compiled kernels are there and cannot be loaded: {error}. Install fastattn again, "
        "where it is to run, with FASTATTN_REQUIRE_CYTHON=1",
        name=error.name,
        path=error.path,
    ) from error

__all__ = [
    "about",
    "allocate",
    "allocate_shared",
    "attention_state",
    "engine",
    "finish_state",
    "fuse",
    "log_softmax",
    "logsumexp",
    "merge_states",
    "name",
    "prepare_attention",
    "prepare_varlen",
    "refusal",
    "similarity",
    "softmax",
    "warmup",
]

name = "cython"


class _Entry(NamedTuple):
    """A compiled kernel."""

    address: int


def _check_sources() -> None:
    """Refuse kernels that were built from other sources: those of a clone change under them.

    They would read records otherwise than the engine writes them, or compute other bits.
    """
    built = _native.built_from() if hasattr(_native, "built_from") else None
    sources = words.sources(Path(__file__).parents[1])
    if built is None or built != (words.digest(vars(layouts), vars(plan)), sources or built[1]):
        raise ImportError(
            f"the compiled kernels ({_native.__file__}) were built from other sources than these: "
            "build them again, `FASTATTN_REQUIRE_CYTHON=1 pip install -e .` in a clone"
        )


def _choose_level() -> str:
    supported = _native.supported_levels()
    wanted = os.environ.get("FASTATTN_CYTHON_LEVEL", "").strip()
    if wanted and wanted not in supported:
        raise ImportError(
            f"FASTATTN_CYTHON_LEVEL is {wanted!r}: the compiled kernels are there for "
            f"{', '.join(_native.built_levels())}, and this CPU is {', '.join(supported) or 'none'}"
        )
    if not supported:  # as good as not there: on this CPU they are nobody's mistake
        raise ModuleNotFoundError(
            f"the compiled kernels are for {', '.join(_native.built_levels())}, which this CPU is "
            "not; backend='numba' compiles for it"
        )
    return wanted or supported[0]


class _Pool(Turns):
    """The threads of this process; a forked child gets a fresh one."""

    def admits(self, token: list[bool]) -> bool:
        """Whether the call of ``token`` may use the threads now; if so it holds them."""
        return self.takes(token)

    def threads(self) -> int:
        """As many as a call asks for; `set_threads` knows what the machine has."""
        return 1 << 30

    run_serially = staticmethod(_native.run_serially)
    run_parallel = staticmethod(_native.run_parallel)


_pool = _Pool()


def _after_fork_in_child() -> None:
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _kernels(level: str) -> Kernels:
    entries = {name: _Entry(address) for name, address in _native.entry_addresses(level).items()}
    return Kernels.named(name, entries, Launcher(lambda: _pool), SimpleNamespace(run=_native.again))


_check_sources()
level = _choose_level()
engine = Engine(_kernels(level))
prepare_attention = engine.prepare_attention
allocate = engine.allocate
prepare_varlen = engine.prepare_varlen
attention_state = engine.attention_state
merge_states = engine.merge_states
finish_state = engine.finish_state
similarity = engine.similarity
fuse = engine.fuse
softmax = engine.softmax
log_softmax = engine.log_softmax
logsumexp = engine.logsumexp
allocate_shared = engine.allocate_shared


def about() -> dict[str, str | None]:
    """Say what the kernels in use were compiled for."""
    return {"kernels": f"compiled for {level}", **engine.kernels.about()}


def refusal(problem: Problem | RaggedProblem) -> str | None:
    """Say why this backend cannot do a call, or None."""
    return None


def warmup() -> None:
    """Nothing is left to compile."""

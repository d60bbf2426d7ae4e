"""The compiled backend: the engine on kernels compiled ahead, and threads that run them.

The kernels were compiled for several kinds of x86-64 when the package was built; the best one that
this CPU is serves (``FASTATTN_CYTHON_LEVEL`` names another). Results have the bits of the Numba
backend.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from types import SimpleNamespace
from typing import NamedTuple

from fastattn._core import constants, kept
from fastattn._core.problem import Problem
from fastattn._engine import layouts
from fastattn._engine.engine import Engine
from fastattn._engine.launcher import Launcher, Turns
from fastattn._engine.operations import name_kernels

from . import words

_HERE = os.path.dirname(os.path.realpath(__file__))


def _hidden_kernels() -> str | None:
    """Find another fastattn on Python's path whose kernels this one hides: in a clone, say."""
    for entry in sys.path:
        room = os.path.realpath(os.path.join(entry, "fastattn", "_cython"))
        files = (os.path.join(room, f"_native{suffix}") for suffix in EXTENSION_SUFFIXES)
        if room != _HERE and any(map(os.path.isfile, files)):
            return os.path.dirname(room)
    return None


def _say_missing(error: ModuleNotFoundError) -> ImportError:
    """Say why there are no kernels, and the way to some; worth a warning where others are hidden.

    What was never built is missing by somebody's choice, or for want of a compiler.
    """
    import shlex

    package, elsewhere = os.path.dirname(_HERE), _hidden_kernels()
    tree = os.path.dirname(package)
    clone = os.path.isfile(os.path.join(tree, "setup.py"))
    command = shlex.join([sys.executable, "-m", "pip", "install", "-e", tree])
    build = f"`{command}` builds them there"
    if elsewhere is not None:
        ways = [build] if clone else []
        ways += ["Python started with -P, or in another folder, imports that one"]
        return ImportError(
            f"fastattn was imported from {package}, which has no compiled kernels, and hides the "
            f"one installed in {elsewhere}, which has: {'; '.join(ways)}",
            name=error.name,
        )
    if clone:
        return ModuleNotFoundError(
            f"fastattn was imported from {package}, where its compiled kernels were not built (or "
            f"no C compiler was found, or building them failed, or FASTATTN_CYTHON=0 said so): "
            f"{build}, and with FASTATTN_REQUIRE_CYTHON=1 says what is missing",
            name=error.name,
        )
    return ModuleNotFoundError(
        "fastattn was installed without its compiled kernels (no C compiler was found, or building "
        f"them failed, or FASTATTN_CYTHON=0 said so): {error}. With a compiler, install it again "
        "with FASTATTN_REQUIRE_CYTHON=1, which says what is missing",
        name=error.name,
    )


try:
    import fastattn._cython._native as _native
except ModuleNotFoundError as error:
    raise _say_missing(error) from error
except ImportError as error:
    raise ImportError(
        f"the compiled kernels are there and cannot be loaded: {error}. Install fastattn again, "
        "where it is to run, with FASTATTN_REQUIRE_CYTHON=1",
        name=error.name,
        path=error.path,
    ) from error

__all__ = ["backend"]


class _Entry(NamedTuple):
    """A compiled kernel."""

    address: int


def _check_sources() -> None:
    """Refuse kernels that were built from other sources: those of a clone change under them.

    They would read records otherwise than the engine writes them, or compute other bits.
    """
    built = _native.built_from() if hasattr(_native, "built_from") else None
    sources = words.sources(os.path.dirname(_HERE))
    tables = words.digest(vars(layouts), vars(constants))
    if built is None or built != (tables, sources or built[1]):
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
            "not; the backend numba compiles for it"
        )
    return wanted or supported[0]


class _Pool(Turns):
    """The threads of this process; a forked child gets a fresh one."""

    def admits(self, token: list[bool]) -> bool:
        """Whether the call of ``token`` may use the threads now, which BLAS may use too."""
        return not _native.is_busy() and self.takes(token)

    def threads(self) -> int:
        """As many as a call asks for; `set_threads` knows what the machine has."""
        return 1 << 30

    run_serially = staticmethod(_native.run_serially)
    run_parallel = staticmethod(_native.run_parallel)
    run_on_team = staticmethod(_native.run_together)


_pool = _Pool()


def _after_fork_in_child() -> None:
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class _Backend(Engine):
    def __init__(self, level: str) -> None:
        places = _native.entry_addresses(level).items()
        entries = {name: _Entry(address) for name, address in places}
        fill = SimpleNamespace(run=_native.again)
        super().__init__(name_kernels("cython", entries, Launcher(lambda: _pool), fill))
        self.level = level

    def about(self) -> dict[str, str | None]:
        """Say what the kernels in use were compiled for."""
        return {"kernels": f"compiled for {self.level}", **self.kernels.about()}

    def refusal(self, problem: Problem) -> str | None:
        """Say why this backend cannot do a call, or None."""
        return None

    def warmup(self) -> None:
        """Nothing is left to compile."""


_check_sources()
backend = _Backend(_choose_level())
if _native.knows_arrays():
    kept.use(_native.Calls())

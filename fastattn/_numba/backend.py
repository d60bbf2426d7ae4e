"""The Numba backend: the engine on kernels that are compiled when they are first needed."""

from __future__ import annotations

from typing import Any

try:
    import numba
except ModuleNotFoundError as error:
    if error.name not in ("numba", "llvmlite"):
        raise
    raise ModuleNotFoundError(
        "the backend numba compiles its kernels with Numba, which is not installed: "
        "`pip install numba` (compiled kernels, backend cython, do without)",
        name=error.name,
    ) from error

from fastattn._core.problem import Problem
from fastattn._engine import company
from fastattn._engine.engine import Engine
from fastattn._engine.launcher import Launcher
from fastattn._engine.operations import name_kernels

from .compiler import compile, disk, launch, repeat
from .entry_points import ENTRIES

__all__ = ["backend"]


class _Backend(Engine):
    def about(self) -> dict[str, str | None]:
        """Say where compiled kernels are kept, and what runs threads, which it does not start."""
        kept = disk.describe()
        try:
            layer = numba.threading_layer()
        except ValueError:
            layer = "not started yet"
        place = kept["folder"] or f"none: {kept['refusal']}"
        return {"kernel cache": place, "threading layer": layer, **self.kernels.about()}

    def refusal(self, problem: Problem) -> str | None:
        """Say why this backend cannot do a call, or None."""
        return compile.refusal()

    def warmup(self) -> None:
        """Compile every kernel, or load it from the disk cache."""
        used = dict.fromkeys(self.kernels.entries.values())  # some do several operations
        compile.warm([*used, *launch.DRIVERS, *repeat.DRIVERS])


def _layer() -> Any:
    """Return Numba's threads: none in a child whose parent entered an OpenMP that may be theirs."""
    layer = launch.layer()
    if layer.refusal is None and company.has_lost():
        layer.refusal = "this process was forked after another library's OpenMP threads had started"
    return layer


backend = _Backend(name_kernels("numba", ENTRIES, Launcher(_layer), repeat.again))

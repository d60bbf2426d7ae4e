"""The Numba backend: the engine on kernels that are compiled when they are first needed."""

from __future__ import annotations

import numba

from fastattn._core.problem import Problem
from fastattn._core.ragged import RaggedProblem
from fastattn._engine.engine import Engine
from fastattn._engine.kernels import Kernels
from fastattn._engine.launcher import Launcher

from . import cache, compile, launch, repeat
from .entry_points import ENTRIES

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

name = "numba"

engine = Engine(Kernels.named(name, ENTRIES, Launcher(launch.layer), repeat.again))
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
    """Say where compiled kernels are kept, and what runs threads, which it does not start."""
    kept = cache.describe()
    try:
        layer = numba.threading_layer()
    except ValueError:
        layer = "not started yet"
    place = kept["folder"] or f"none: {kept['refusal']}"
    return {"kernel cache": place, "threading layer": layer, **engine.kernels.about()}


def refusal(problem: Problem | RaggedProblem) -> str | None:
    """Say why this backend cannot do a call, or None."""
    return compile.refusal()


def warmup() -> None:
    """Compile every kernel, or load it from the disk cache."""
    unused = [] if engine.kernels.attend_pairs else ["attend_pairs"]
    entries = [entry for name, entry in ENTRIES.items() if name not in unused]
    compile.warm([*entries, *launch.DRIVERS, *repeat.DRIVERS])

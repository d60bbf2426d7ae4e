"""The Numba backend: the engine on kernels that are compiled when they are first needed."""

from __future__ import annotations

import numba
import numpy as np

from fastattn._core.problem import Problem
from fastattn._core.ragged import RaggedProblem
from fastattn._engine.bfloat16 import takes_pairs
from fastattn._engine.engine import Engine
from fastattn._engine.kernels import Kernels
from fastattn._engine.launcher import Launcher

from . import allocation, attention, cache, compile, launch, repeat, shared
from . import fuse as fusing
from . import similarity as comparing
from . import softmax as normalising
from .emit import DOTS_PAIRS

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

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

engine = Engine(
    Kernels(
        name=name,
        attend={_FLOAT32: attention.attend_float32, _FLOAT64: attention.attend_float64},
        fold={_FLOAT32: attention.fold_float32, _FLOAT64: attention.fold_float64},
        attend_pairs=attention.attend_pairs if takes_pairs(DOTS_PAIRS) else None,
        compare={_FLOAT32: comparing.compare_float32, _FLOAT64: comparing.compare_float64},
        fuse={_FLOAT32: fusing.fuse_float32, _FLOAT64: fusing.fuse_float64},
        normalise={
            _FLOAT32: normalising.normalise_float32,
            _FLOAT64: normalising.normalise_float64,
        },
        hand_out=allocation.hand_out,
        share=shared.share,
        launcher=Launcher(launch.layer),
        again=repeat.again,
    )
)
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
    kernels = engine.kernels
    tables = (kernels.attend, kernels.fold, kernels.normalise, kernels.compare, kernels.fuse)
    entries = [entry for table in tables for entry in table.values()]
    entries += [kernels.hand_out, kernels.share]
    entries += [kernels.attend_pairs] if kernels.attend_pairs else []
    compile.warm([*entries, *launch.DRIVERS, *repeat.DRIVERS])

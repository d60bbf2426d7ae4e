"""Every operation of a backend: its name, what does it on given kernels, and which kernels.

A new one is a row here, a record in `layouts`, an entry in the kernels' room, a function in this
one, its meaning in the reference, and a face. Backends, what they compile and what is compiled
ahead of time follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from . import allocation, attention, normalize, ragged, shared, stages, states
from .bfloat16 import takes_pairs
from .kernels import Again, Kernels
from .launcher import Entry, Launcher

__all__ = ["OPERATIONS", "PAIRS", "Operation", "entry_names", "name_kernels"]

_EITHER = np.dtype(np.float32), np.dtype(np.float64)
# What else the kernel of fused attention is there for, on some CPUs.
PAIRS = "attend_pairs"


class Operation(NamedTuple):
    """An operation of a backend.

    Attributes
    ----------
    name
        Of the backend's function.
    function
        Does it: what the backend's function is given comes behind the kernels.
    kernels
        The entries it runs, by name: each for either compute dtype, unless it is `fixed`.
    fixed
        Whether its kernels compute in one dtype, whatever the operands have.
    """

    name: str
    function: Callable[..., Any]
    kernels: tuple[str, ...]
    fixed: bool = False


OPERATIONS = (
    Operation("prepare_attention", attention.prepare, ("attend", "fold")),
    Operation("prepare_varlen", ragged.prepare, ("attend",)),
    Operation("attention_state", states.attention_state, ("attend", "fold")),
    Operation("merge_states", states.merge_states, ("fold",)),
    Operation("finish_state", states.finish_state, ("fold",)),
    Operation("similarity", stages.similarity, ("compare",)),
    Operation("fuse", stages.fuse, ("fuse",)),
    Operation("softmax", normalize.softmax, ("normalise",)),
    Operation("log_softmax", normalize.log_softmax, ("normalise",)),
    Operation("logsumexp", normalize.logsumexp, ("normalise",)),
    Operation("allocate", allocation.allocate, ("hand_out",), fixed=True),
    Operation("allocate_shared", shared.allocate_shared, ("share",), fixed=True),
)


def name_kernels(
    name: str, entries: Mapping[str, Entry], launcher: Launcher, again: Again
) -> Kernels:
    """Sort a backend's entries by kernel and compute dtype, which their names say."""
    pairs = entries.get(PAIRS)
    found = {
        place: entries[entry]
        for operation in OPERATIONS
        for entry, place in entry_names(operation).items()
    }
    pairs = pairs if takes_pairs(able=pairs is not None) else None
    return Kernels(name, found, pairs, launcher, again)


def entry_names(operation: Operation) -> dict[str, tuple[str, np.dtype | None]]:
    """Name the entries of an operation, and say which kernel of which compute dtype each is."""
    if operation.fixed:
        return {kernel: (kernel, None) for kernel in operation.kernels}
    return {
        f"{kernel}_{dtype}": (kernel, dtype) for kernel in operation.kernels for dtype in _EITHER
    }

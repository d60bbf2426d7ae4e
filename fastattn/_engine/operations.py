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
from .kernels import Again, Kernels
from .launcher import Entry, Launcher
from .variants import KERNEL, VARIANTS, in_use

__all__ = ["OPERATIONS", "Operation", "entry_names", "name_kernels"]

_EITHER = np.dtype(np.float32), np.dtype(np.float64)


class Operation(NamedTuple):
    """An operation of a backend.

    Attributes
    ----------
    name
        Of the backend's function.
    function
        Does it: what the backend's function is given comes behind the kernels.
    kernels
        The entries it runs, by name: each for either compute dtype, unless it is `fixed`; that of
        fused attention for each of `variants`.
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
    """Sort a backend's entries by kernel and compute dtype, or variant, which their names say."""
    products = in_use(entries)
    found = {
        place: entries[entry]
        for operation in OPERATIONS
        for entry, place in entry_names(operation).items()
        if place[0] != KERNEL or place[1] in products
    }
    return Kernels(name, found, products, launcher, again)


def entry_names(operation: Operation) -> dict[str, tuple[str, np.dtype | str | None]]:
    """Name the entries of an operation, and say which kernel each is, of which dtype or variant."""
    if operation.fixed:
        return {kernel: (kernel, None) for kernel in operation.kernels}
    of_variants = [variant.name for variant in VARIANTS]
    return {
        f"{kernel}_{kind}": (kernel, kind)
        for kernel in operation.kernels
        for kind in (of_variants if kernel == KERNEL else _EITHER)
    }

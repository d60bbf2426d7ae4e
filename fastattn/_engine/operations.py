"""Every operation of a backend: its name, what does it on given kernels, and which kernels.

A new one is a row here, a record in `layouts`, an entry in the kernels' room, a function in this
one, its meaning in the reference, and a face. Backends, what they compile and what is compiled
ahead of time follow. The file of a function is imported when it is first called: a process that
attends has no use for the rest, and a first call takes 2 ms less.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

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
        Of the backend's function, and of the one here that does it.
    file
        Where that stands in this room.
    kernels
        The entries it runs, by name: each for either compute dtype, unless it is `fixed`; that of
        fused attention for each of `variants`.
    fixed
        Whether its kernels compute in one dtype, whatever the operands have.
    """

    name: str
    file: str
    kernels: tuple[str, ...]
    fixed: bool = False

    @property
    def function(self) -> Callable[..., Any]:
        """Does it: what the backend's function is given comes behind the kernels."""
        found: Callable[..., Any] = getattr(import_module(f".{self.file}", __package__), self.name)
        return found


OPERATIONS = (
    Operation("prepare_attention", "attention", ("attend", "fold")),
    Operation("prepare_varlen", "ragged", ("attend",)),
    Operation("attention_state", "states", ("attend", "fold")),
    Operation("merge_states", "states", ("fold",)),
    Operation("finish_state", "states", ("fold",)),
    Operation("similarity", "stages", ("compare",)),
    Operation("fuse", "stages", ("fuse",)),
    Operation("linear", "linear", ("apply",)),
    Operation("softmax", "normalize", ("normalise",)),
    Operation("log_softmax", "normalize", ("normalise",)),
    Operation("logsumexp", "normalize", ("normalise",)),
    Operation("allocate", "allocation", ("hand_out",), fixed=True),
    Operation("allocate_shared", "shared", ("share",), fixed=True),
)


def _import_all() -> None:
    for operation in OPERATIONS:
        import_module(f".{operation.file}", __package__)


# A child that is forked while another thread imports a file would wait for that thread for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_import_all)


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

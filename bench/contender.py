"""What a contender is: the calls it offers for a case, what it needs, how its threads are set.

Adapters stand on this file alone; contenders.py, the table of them all, stands above them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from bench.cases import Arrays, Case


class Refused(Exception):
    """The contender cannot do this case; the text says why."""


class Variant(NamedTuple):
    """One way to do a case: the timed call, and how to read its result as NumPy arrays."""

    run: Callable[[], Any]
    read: Callable[[Any], Any] = np.asarray


Prepare = Callable[[Case, Arrays, int], dict[str, Variant]]


class Contender(NamedTuple):
    """A library: what must be installed, what it can do, how its thread count is set.

    fastattn in its several forms also says on which of its backends it runs.
    """

    requires: tuple[str, ...]
    prepare: Mapping[str, Prepare]
    set_threads: Callable[[int], Any] = lambda threads: None
    backend: Callable[[], str] | None = None

    def missing(self) -> str | None:
        """The first required module that is not installed, or None."""
        return next((name for name in self.requires if not is_installed(name)), None)


def is_installed(module: str) -> bool:
    """Whether a module could be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package it would be in
        return False

"""The functions of a backend, made of its kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .kernels import Kernels
from .operations import OPERATIONS

__all__ = ["Engine"]

_BY_NAME = {operation.name: operation for operation in OPERATIONS}


class Engine:
    """What the face asks of a backend (`fastattn._core.execution.Backend`), on given kernels.

    Its functions are the rows of `operations.OPERATIONS`. What only a backend knows (what it says
    of itself, what it cannot do, how it warms up) is its own to add.
    """

    def __init__(self, kernels: Kernels) -> None:
        self.name = kernels.name
        self.kernels = kernels
        self._functions: dict[str, Callable[..., Any]] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return the function of an operation."""
        functions = self.__dict__.get("_functions")  # a copy in the making has none
        if functions is None or name not in _BY_NAME:
            raise AttributeError(f"no operation is called {name!r}")
        if name not in functions:
            functions[name] = functools.partial(_BY_NAME[name].function, self.kernels)
        return functions[name]  # type: ignore[no-any-return]

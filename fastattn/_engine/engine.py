"""The functions of a backend, made of its kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .kernels import Kernels
from .operations import OPERATIONS

__all__ = ["Engine"]


class Engine:
    """What the face asks of a backend (`fastattn._core.execution.Backend`), on given kernels.

    Its functions are the rows of `operations.OPERATIONS`. What only a backend knows (what it says
    of itself, what it cannot do, how it warms up) is its own to add.
    """

    def __init__(self, kernels: Kernels) -> None:
        self.name = kernels.name
        self.kernels = kernels
        self._functions = {
            operation.name: functools.partial(operation.function, kernels)
            for operation in OPERATIONS
        }

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return the function of an operation."""
        try:
            return self.__dict__["_functions"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(f"no operation is called {name!r}") from None

"""The float environment of NumPy's work on the face: the default one, which kernels set themselves.

What surrounds a call changes no bit of it and raises nothing: neither flush-to-zero or a rounding
mode that another library has set on the thread, nor the caller's own `np.errstate`. Overflow and
underflow have their meaning here (inf, 0), and what is wrong is checked by value.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

__all__ = ["default_environment"]

P = ParamSpec("P")
T = TypeVar("T")

# Numbers, not constants in the code below: what is written out there, Python computes beforehand.
_ONE, _HALF, _LITTLE, _SMALLEST_NORMAL = 1.0, 0.5, 2.0**-60, 2.0**-1022

# What C's `fegetenv` fills is 32 bytes on x86-64 and 8 on aarch64.
_ENVIRONMENT_BYTES = 64
_FE_DFL_ENV = -1  # glibc's and musl's


def _is_default() -> bool:
    """Tell whether arithmetic keeps subnormals and rounds to nearest, in 80 ns."""
    kept = _SMALLEST_NORMAL * _HALF != 0.0  # also where subnormals only count as zeros
    return kept and _ONE + _LITTLE == _ONE - _LITTLE


@functools.cache
def _library() -> ctypes.CDLL | None:
    """Find C's `fegetenv` and `fesetenv`; None where they, or what we know of them, are missing."""
    if not sys.platform.startswith("linux"):
        return None
    for name in ("libm.so.6", None):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        if hasattr(library, "fegetenv") and hasattr(library, "fesetenv"):
            return library
    return None


def _set_default(library: ctypes.CDLL) -> Any:
    """Set the default environment on this thread; returns what there was, for C to set again."""
    saved = ctypes.create_string_buffer(_ENVIRONMENT_BYTES)
    library.fegetenv(saved)
    library.fesetenv(ctypes.c_void_p(_FE_DFL_ENV))
    return saved


class default_environment:
    """Compute as kernels do, in a ``with`` block or as a decorator of a function.

    It costs more than a microsecond: repeated small calls pass it only where they need it.
    """

    __slots__ = ("_errors", "_library", "_saved")

    def __enter__(self) -> None:
        self._library = None if _is_default() else _library()
        if self._library is not None:
            self._saved = _set_default(self._library)
        self._errors = np.errstate(all="ignore")
        self._errors.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._errors.__exit__(*error)
        if self._library is not None:
            self._library.fesetenv(self._saved)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """Let every call of a function be such a block, of its own."""

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            with default_environment():
                return function(*args, **kwargs)

        return run

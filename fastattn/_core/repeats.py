"""Small calls of the stages: what layouts and options decide is worked out once per signature.

A stage of a backend may return a function that does the same to other arrays of the same shapes,
strides and dtypes. It is kept under the signature of the call, and later calls go straight from a
dict lookup to it: validation, views and plan are those of the first. Attention has its own form of
this (`fastattn._core.problem`), since there values inside the arrays take part.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

__all__ = ["Repeat", "find", "keep", "signature"]

Repeat = Callable[..., None]  # of the operands (None where absent) and the result

_ndarray = np.ndarray
_KEPT = 1024
# signature -> the function, and shape and dtype of the result. Emptied when full.
_repeats: dict[Hashable, tuple[Repeat, tuple[int, ...], np.dtype]] = {}


def signature(
    options: tuple[Hashable, ...], first: Any, second: Any, out: Any
) -> tuple[Hashable, ...] | None:
    """Describe a call of up to two operands; None where it is no call of plain arrays.

    Options come in one spelling each: 1, 1.0 and True are equal and hash alike.
    """
    if type(first) is not _ndarray:
        return None
    call = (*options, first.shape, first.strides, first.dtype)
    for array in (second, out):
        if array is not None:
            if type(array) is not _ndarray:
                return None
            call = (*call, array.shape, array.strides, array.dtype)
        else:
            call = (*call, None)
    return call if out is None else (*call, out is first, out.flags.writeable)


def find(call: tuple[Hashable, ...] | None, first: Any, second: Any, out: Any) -> np.ndarray | None:
    """Do a call that was done before on arrays of the same layout, or return None."""
    kept = _repeats.get(call)
    if kept is None:
        return None
    repeat, shape, dtype = kept
    if out is None:
        result = np.empty(shape, dtype)
    else:
        result = out
        if out is not first and np.may_share_memory(out, first):
            return None
        if second is not None and np.may_share_memory(out, second):
            return None
    repeat(first, second, result)
    return result


def keep(
    call: tuple[Hashable, ...] | None,
    repeat: Repeat | None,
    given: tuple[np.ndarray | None, ...],
    seen: tuple[np.ndarray | None, ...],
    out: Any,
) -> None:
    """Keep a function for later calls, if it reads and writes the caller's arrays themselves.

    `given` are the operands and the result as the caller knows them, `seen` as the backend does.
    """
    result = given[-1]
    if call is None or repeat is None or result is None:
        return
    if not (result.flags.c_contiguous if out is None else result is out):
        return
    for one, other in zip(given, seen, strict=True):
        if one is not None and other is not None and one.ctypes.data != other.ctypes.data:
            return  # a copy stands between
    if len(_repeats) >= _KEPT:
        _repeats.clear()
    _repeats[call] = repeat, result.shape, result.dtype

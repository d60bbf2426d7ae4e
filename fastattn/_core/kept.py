"""Kept calls: what layouts and options decide is worked out once, for all arrays laid out alike.

A backend may return a `Repeat` with a planned call: a function that does the same to other arrays
of the same shapes, strides and dtypes. It is kept under the options and the layouts, and later
calls go from one lookup to it: validation, views and plan are those of the first. Calls in which
values inside the arrays take part (lengths, offsets, slopes) are not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

__all__ = [
    "Bounded",
    "DictCalls",
    "Kept",
    "Repeat",
    "calls",
    "clear",
    "find",
    "keep",
    "use",
]

# repeat(*operands, *results): None where an operand is absent.
Repeat = Callable[..., None]
Operand = np.ndarray | None
Made = tuple[tuple[int, ...], np.dtype]  # shape and dtype of a result

_MOST_OPERANDS = 4
_ndarray = np.ndarray
_empty = np.empty
T = TypeVar("T")


class Bounded(dict[Hashable, T], Generic[T]):
    """A dict that is emptied when it is full, instead of evicting one by one.

    So it is safe from many threads at once; and a decode loop, whose keys grow by one a call, would
    gain nothing from a cleverer order.
    """

    def __init__(self, most: int = 1024) -> None:
        super().__init__()
        self.most = most

    def keep(self, key: Hashable, value: T) -> None:
        """Add an entry."""
        if len(self) >= self.most:
            self.clear()
        self[key] = value


class Kept(NamedTuple):
    """What is done with so many operands, laid out as those of the first call."""

    repeat: Repeat
    operands: int
    results: tuple[Made, ...]


class DictCalls:
    """Kept calls, found by their options, their threads and the layouts of their arrays.

    Options come checked and in one spelling each: 1, 1.0 and True are equal and hash alike. A dict
    does it for any backend; compiled kernels bring a class of their own with these methods.
    """

    def __init__(self, most: int = 1024) -> None:
        self._kept: Bounded[Kept] = Bounded(most)

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()

    def find(
        self,
        options: tuple[Hashable, ...],
        threads: int,
        out: Any,
        first: Any,
        second: Any = None,
        third: Any = None,
        fourth: Any = None,
    ) -> Any:
        """Do a call that was kept on these arrays.

        Returns the result, or a tuple of two; None if there is no such call.
        """
        operands = first, second, third, fourth
        kept = self._kept.get(_signature(options, threads, out, operands))
        if kept is None:
            return None
        if out is not None:
            for array in operands:
                if array is not None and array is not first and np.may_share_memory(out, array):
                    return None
            if out is not first and np.may_share_memory(out, first):
                return None
        made = kept.results
        result = _empty(*made[0]) if out is None else out
        if len(made) == 1:
            kept.repeat(*operands[: kept.operands], result)
            return result
        results = result, *[_empty(*each) for each in made[1:]]
        kept.repeat(*operands[: kept.operands], *results)
        return results

    def keep(
        self,
        options: tuple[Hashable, ...],
        threads: int,
        out: Any,
        operands: tuple[Operand, ...],
        kept: Kept,
    ) -> None:
        """Keep a call. It reads and writes the very arrays that are given, `out` being one."""
        # As `find` describes it: what is not there counts.
        absent = (None,) * (_MOST_OPERANDS - len(operands))
        call = _signature(options, threads, out, (*operands, *absent))
        if call is not None:
            self._kept.keep(call, kept)


def _signature(
    options: tuple[Hashable, ...], threads: int, out: Any, operands: tuple[Any, ...]
) -> tuple[Hashable, ...] | None:
    """Describe a call; None where it is not one of plain arrays."""
    call: list[Hashable] = [options, threads]
    for array in operands if out is None else (*operands, out):
        if type(array) is _ndarray:
            # No strides where the shape says them: making, hashing, comparing them costs 0.1 µs.
            strides = None if array.flags.c_contiguous else array.strides
            call += array.shape, strides, array.dtype
        elif array is None:
            call.append(None)
        else:
            return None
    if out is not None:
        call += out is operands[0], out.flags.writeable
    return tuple(call)


calls = DictCalls()
find = calls.find


def use(other: DictCalls) -> None:
    """Let a backend's own, which does the same faster, take the place of the dict."""
    global calls, find
    calls, find = other, other.find


def clear() -> None:
    """Forget all kept calls."""
    calls.clear()


def keep(
    options: tuple[Hashable, ...],
    threads: int,
    out: Any,
    repeat: Repeat | None,
    operands: tuple[Operand, ...],
    results: tuple[np.ndarray, ...],
    seen: tuple[Operand, ...],
) -> None:
    """Keep a call for later ones, if it reads and writes the caller's arrays themselves.

    Parameters
    ----------
    operands, results
        The arrays as the caller knows them.
    seen
        The same as the backend knows them; where it was another array, a copy stands between.
    """
    if repeat is None:
        return
    if not (results[0].flags.c_contiguous if out is None else results[0] is out):
        return
    for one, other in zip((*operands, *results), seen, strict=True):
        if one is not None and other is not None and one.ctypes.data != other.ctypes.data:
            return
    made = tuple((result.shape, result.dtype) for result in results)
    calls.keep(options, threads, out, operands, Kept(repeat, len(operands), made))

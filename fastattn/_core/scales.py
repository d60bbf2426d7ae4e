"""The scale of a call, one number or one for each head, as part of a signature.

An array is copied and taken by value: it is small, options are hashed anyway, and so whatever is
kept for later calls of a signature, tables of factors among it, holds for scales by head too. So is
a subnormal number, or 0: where another library lets subnormals count as zeros, all of them are
equal and hash alike, and a call would be taken for one of another scale.
"""

from __future__ import annotations

import math
import struct
import sys
from typing import Any, NamedTuple

import numpy as np

from fastattn._core.arrays import as_array, as_numbers, finite_number
from fastattn._core.foreign import is_only_exported

__all__ = [
    "LARGEST",
    "LEAST_NORMAL",
    "Scales",
    "broadcast_scales",
    "is_positive",
    "is_small",
    "scale_of",
]

# What lies between them is told apart in any float environment.
LEAST_NORMAL, LARGEST = sys.float_info.min, sys.float_info.max

_HINT = "None means 1 over the root of E for scaled_dot, else 1; an array has one for each head"
# What has more numbers is not kept.
_MOST_NUMBERS = 4096


class Scales(NamedTuple):
    """Scales by value: float64, in C order; of shape () one number."""

    shape: tuple[int, ...]
    data: bytes


def scale_of(x: Any) -> float | Scales:
    """Return a finite number, or an array of them, as what a signature can hold."""
    if type(x) is float and LEAST_NORMAL <= x <= LARGEST:
        return x
    if is_only_exported(x):
        x = as_array("scale", x)
    if not (isinstance(x, (list, tuple)) or getattr(x, "ndim", 0) > 0):
        number = finite_number("scale", x, _HINT)
        is_normal = number >= LEAST_NORMAL or number <= -LEAST_NORMAL
        return number if is_normal else Scales((), struct.pack("d", number))
    array = as_numbers("scale", x)
    shape = array.shape
    numbers = np.array(array, dtype=np.float64, order="C")
    wrong = np.argwhere(~np.isfinite(numbers))
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        raise ValueError(
            f"scale of shape {shape} holds {numbers[at]} at {at}, head {at[-1]}: every entry must "
            "be finite"
        )
    return Scales(shape, numbers.tobytes())


def broadcast_scales(scale: float | Scales, batch: tuple[int, ...]) -> float | np.ndarray:
    """Return one number, or an array of as many dims as the batch, size 1 where shared."""
    if not isinstance(scale, Scales):
        return scale
    shape = scale.shape
    if not shape:
        return float(np.frombuffer(scale.data, np.float64)[0])
    if len(shape) != len(batch) or any(
        size not in (1, full) for size, full in zip(shape, batch, strict=True)
    ):
        raise ValueError(
            f"scale of shape {shape} must be one number, or have exactly the {len(batch)} dims of "
            f"the batch {batch} (heads included), with size 1 where shared{_way_out(shape, batch)}"
        )
    return np.frombuffer(scale.data, np.float64).reshape(shape)


def _way_out(shape: tuple[int, ...], batch: tuple[int, ...]) -> str:
    """Spell the dims that are missing, or those that are too many."""
    filled = tuple(size for size in shape if size != 1)
    shared = (1,) * (len(batch) - 1)
    if not filled and 0 not in shape:
        return ": one number for all is `np.reshape(scale, ())`"
    ways = []
    if filled == batch[-1:]:
        ways.append(f"one per head is `np.reshape(scale, {shared + filled})`")
    if len(batch) > 1 and filled == batch[:1]:
        ways.append(f"one per batch element is `np.reshape(scale, {filled + shared})`")
    if not ways and batch:
        ways.append(f"one per head has shape {shared + batch[-1:]}")
    return ": " + ", ".join(ways) if ways else ""


def is_small(scale: float | np.ndarray) -> bool:
    """Tell whether what a call's scale is part of may be kept."""
    if not isinstance(scale, np.ndarray):
        return True
    own: list[int] = [n for n, step in zip(scale.shape, scale.strides, strict=True) if step]
    return math.prod(own) <= _MOST_NUMBERS


def is_positive(x: float) -> bool:
    """Tell whether a number is above 0, also where it may count as 0."""
    return x > 0.0 or struct.unpack("q", struct.pack("d", x))[0] > 0

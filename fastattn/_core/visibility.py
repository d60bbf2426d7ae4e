"""Who sees whom, as ranges: causal, window, key lengths and query offsets, checked and resolved.

Key ``j`` is visible to query row ``i`` when ``j < length``, ``j <= i + offset`` (causal) and
``i + offset - left <= j <= i + offset + right`` (window). No L×S array is ever made of it.
"""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np

from fastattn._core.annotations import Alignment, Causal, Window
from fastattn._core.arrays import as_array, given_dtype

__all__ = [
    "LARGEST_POSITION",
    "alignment_of",
    "check_causal",
    "check_together",
    "check_window",
    "positions",
    "segment_ids",
]

# Positions are int64 in the kernels; sums of three of these stay far from wrapping, and every one
# of them is exact in float64.
LARGEST_POSITION = 2**53


def check_causal(causal: Any) -> Causal:
    """Return `causal` as False, True or one of the two words."""
    if isinstance(causal, (bool, np.bool_)):
        return bool(causal)
    if isinstance(causal, str) and causal in get_args(Alignment):
        return causal  # type: ignore[return-value]
    raise ValueError(
        f'causal must be False, True, "top_left" (offset 0) or "bottom_right" (offset S - L), '
        f"not {causal!r}"
    )


def check_window(window: Any) -> Window | None:
    """Return `window` as two ints or Nones, or None when neither side is bounded."""
    try:
        left, right = window
    except (TypeError, ValueError):
        raise ValueError(
            f"window must be a pair (left, right), None meaning unbounded, not {window!r}; "
            "e.g. (128, 0) for the last 128 keys and the query's own"
        ) from None
    sides = (_side("left", left, window), _side("right", right, window))
    return None if sides == (None, None) else sides


def _side(name: str, side: Any, window: Any) -> int | None:
    if side is None:
        return None
    if not isinstance(side, (int, np.integer)) or isinstance(side, bool):
        raise TypeError(f"window's {name} side must be an integer or None, not {side!r}")
    if not 0 <= side <= LARGEST_POSITION:
        raise ValueError(
            f"window {window!r}: the {name} side is a distance from 0 to 2**53; "
            "use None where it is unbounded"
        )
    return int(side)


def alignment_of(
    causal: bool | str, windowed: bool, offset_given: bool, rows: int, keys: int | None
) -> str:
    """Say where query row 0 stands: "zero", "given" or "bottom_right" ("zero" if nobody asks).

    `keys` is None when only a part of the keys is here, so that S is not known.
    """
    if isinstance(causal, str):
        if offset_given:
            raise ValueError(
                f"causal is {causal!r}, which fixes the offset already: leave query_offset out, or "
                "write `causal=True` beside it"
            )
        return "zero" if causal == "top_left" else "bottom_right"
    if offset_given:
        return "given" if causal or windowed else "zero"
    if causal and rows != keys:
        size = "S unknown (a part of the keys)" if keys is None else f"S = {keys} keys"
        raise ValueError(
            f"causal is ambiguous for L = {rows} queries and {size}: write "
            '`causal="top_left"` (query row 0 sees key 0 only), `causal="bottom_right"` (the last '
            "query sees the last key), or `causal=True, query_offset=n`, with n the position of "
            "query row 0"
        )
    return "zero"


def positions(
    name: str, x: Any, batch: tuple[int, ...], smallest: int, largest: int, bound: str
) -> np.ndarray:
    """Return `x` as an int64 copy of () or `len(batch)` dims, every entry in the given range.

    A copy, though tiny: another thread that changed lengths after the check would make a kernel
    read outside its arrays.
    """
    array = as_array(name, x)
    shape = array.shape
    if array.ndim not in (0, len(batch)) or any(
        size not in (1, full) for size, full in zip(shape, batch, strict=False)
    ):
        show = ""
        if array.ndim == 1 and len(batch) == 2 and len(array) in (1, batch[0]):
            show = f": `np.asarray({name})[:, None]`"
        elif array.size == 1 or (array.size and array.size == math.prod(batch)):
            show = f": `np.reshape({name}, {batch if array.size > 1 else ()})`"
        raise ValueError(
            f"{name} of shape {shape} must be one integer, or have exactly the {len(batch)} dims "
            f"of the batch {batch} (heads included), with size 1 where shared{show}"
        )
    dtype = given_dtype(x, array)
    if dtype.kind not in "iu":
        if array.dtype.kind == "O" and all(isinstance(n, int) for n in array.flat):
            _raise_range(name, array, smallest, largest, bound)
        holds = " and holds NaN" if array.dtype.kind == "f" and np.isnan(array).any() else ""
        raise TypeError(
            f"{name} of shape {shape} has dtype {dtype}{holds}; it must hold integers: "
            f"`np.asarray({name}).astype(np.int64)`, once every entry is a whole number"
        )
    if array.size and (int(array.min()) < smallest or int(array.max()) > largest):
        _raise_range(name, array, smallest, largest, bound)
    return array.astype(np.int64)


def _raise_range(name: str, array: np.ndarray, smallest: int, largest: int, bound: str) -> None:
    wrong = next(int(n) for n in array.flat if not smallest <= n <= largest)
    raise ValueError(
        f"{name} holds {wrong}, outside {smallest}..{bound}"
        + (
            ""
            if array.dtype.kind == "O"
            else f": `np.clip({name}, {smallest}, {largest})` if that is what is meant"
        )
    )


def check_together(query_segments: Any, key_segments: Any) -> None:
    """Raise ValueError where only one of the two arrays of segment ids is given."""
    if (query_segments is None) != (key_segments is None):
        given, missing = "query_segments", "key_segments"
        if query_segments is None:
            given, missing = missing, given
        raise ValueError(
            f"{given} without {missing}: a query attends to the keys whose id equals its own, so "
            "both are needed (for self-attention pass the same ids twice)"
        )


def segment_ids(name: str, x: Any, batch: tuple[int, ...], length: int) -> np.ndarray:
    """Return ids of documents along an axis as int64 (..., length), leading dims as given.

    Dims that a zero stride repeats are not repeated in the copy.
    """
    array = as_array(name, x)
    shape = array.shape
    full = (*batch, length)
    padded = (1,) * (len(full) - len(shape)) + shape
    if (
        len(shape) not in range(1, len(full) + 1)
        or padded[-1] != length
        or any(n not in (1, size) for n, size in zip(padded[:-1], batch, strict=True))
    ):
        raise ValueError(
            f"{name} of shape {shape} does not broadcast to {full} (batch, {length} ids): its last "
            "dim must be that long, and every other equal or 1"
            + f"; one row of ids per batch entry is `np.asarray({name})[:, None]`"
            * (len(batch) == 2 and shape == (batch[0], length))
        )
    dtype = given_dtype(x, array)
    if dtype.kind not in "iu":
        raise TypeError(
            f"{name} of shape {shape} has dtype {dtype}; ids are integers: "
            f"`np.asarray({name}).astype(np.int64)`"
        )
    if array.dtype == np.uint64 and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{name} holds {int(array.max())}, beyond int64")
    repeated = [stride == 0 for stride in array.strides[:-1]]
    return np.array(
        array[tuple(slice(1) if again else slice(None) for again in repeated)], np.int64, order="C"
    )

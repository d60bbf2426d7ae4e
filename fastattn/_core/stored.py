"""What a cache is made of and what it is asked, checked in the cache's own words."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastattn._core.arrays import as_array, given_dtype
from fastattn._core.foreign import bfloat16
from fastattn._core.options import Options
from fastattn._core.visibility import LARGEST_POSITION, positions

__all__ = ["check_kept", "check_query", "sequences", "size", "stand_in", "storage", "tokens"]

_STORAGE = ("float32", "float64", "float16", "bfloat16", "int8")
# 127 times a scale, rounded up, is still a float32.
_LARGEST_IN_INT8 = 3.4028e38
_EVERYTHING = 2**60  # beyond every position


def check_kept(
    dropped: np.ndarray,
    lengths: np.ndarray,
    batch: tuple[int, ...],
    query: np.ndarray,
    options: tuple[Any, ...],
    query_offset: Any,
) -> None:
    """Raise ValueError where a query sees one of the first `dropped` keys of its sequence."""
    asked, rows = Options(*options), query.shape[-2]
    left, right = asked.window or (None, None)
    before = _EVERYTHING if left is None else left
    behind = 0 if asked.causal else _EVERYTHING if right is None else right
    entries = (*batch, 1)
    gone, offset = dropped.reshape(entries), np.zeros(entries, np.int64)
    if asked.causal == "bottom_right":
        offset = lengths.reshape(entries) - rows
    elif query_offset is not None:
        heads, most = (*batch, query.shape[-3]), LARGEST_POSITION
        offset = positions("query_offset", query_offset, heads, -most, most, "2**53")
    # Rows that see a key at all, up to the last one that sees one of those.
    first, stop = np.maximum(-offset - behind, 0), np.minimum(gone + before - offset, rows)
    seen = np.any((gone > 0) & (first < stop), axis=-1)
    if seen.any():
        b, nearest = int(np.flatnonzero(seen)[0]), int((lengths - dropped).min()) - rows
        hint = f": `window=({nearest}, 0)` leaves them out"
        raise ValueError(
            f"query of shape {query.shape} with window {asked.window} sees keys of sequence {b} "
            f"that were given back, the first {dropped[b]} of its {lengths[b]}"
            + hint
            * (nearest >= 0 and asked.causal == "bottom_right")
        )


def check_query(query: np.ndarray, batch: tuple[int, ...], heads: int, features: int) -> None:
    """Raise ValueError for a query that does not fit a cache of this batch, heads and features."""
    shape = query.shape
    if len(shape) != len(batch) + 3 or shape[:-3] != batch:
        want = ", ".join(map(str, (*batch, "H", "L", features)))
        raise ValueError(
            f"query of shape {shape} does not fit this cache: it must be ({want}), "
            "(batch, heads, queries, features)"
        )
    if shape[-1] != features:
        raise ValueError(
            f"query of shape {shape} has {shape[-1]} features, and the keys of this cache have "
            f"{features}: its last axis must match"
        )
    if shape[-3] % heads if heads else shape[-3]:
        raise ValueError(
            f"query of shape {shape} has {shape[-3]} heads (axis -3), and must have a multiple of "
            f"the {heads} of this cache"
        )


def sequences(
    indices: Any, entries: int, batch: tuple[int, ...], *, selecting: bool = False
) -> np.ndarray:
    """Return for each sequence the number of one, as an int64 copy.

    `selecting`: there may be any number of them, and -1 is a new sequence.
    """
    array = as_array("indices", indices)
    if not selecting and (array.size != entries or array.shape not in (batch, (entries,))):
        raise ValueError(
            f"indices of shape {array.shape} must say for each of the {batch} sequences which one "
            "it goes on from: one number each"
        )
    dtype = given_dtype(indices, array)
    if dtype.kind not in "iu" and array.size:
        raise TypeError(
            f"indices of shape {array.shape} have dtype {dtype}; numbers of sequences are "
            "integers: `np.asarray(indices).astype(np.int64)`"
        )
    found = np.array(array, order="C")  # a copy, which no other thread changes
    wrong = (found < (-1 if selecting else 0)) | (found >= entries)
    if wrong.any():
        raise ValueError(
            f"indices hold {found[wrong][0]}, and this cache has the sequences 0 to {entries - 1}, "
            f"counted in C order of its batch dims {batch}"
            + (", and -1 is a new one" if selecting else "")
        )
    return found.astype(np.int64)


def size(name: str, n: Any) -> int:
    """Return a size as an int that is not negative."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, not {n!r}")
    if n < 0:
        raise ValueError(f"{name} must not be negative: {n}")
    return int(n)


def stand_in(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Make an array of which only shape and dtype are ever looked at."""
    return np.ndarray(shape, dtype, np.zeros(1, dtype), 0, (0,) * len(shape))


def storage(dtype: Any) -> np.dtype:
    """Return the dtype that keys and values are stored in."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
        if dtype == "bfloat16":
            if bfloat16() is None:
                raise ImportError(
                    "storing bfloat16 needs the package ml_dtypes: `pip install ml_dtypes`"
                ) from None
            found = np.dtype(bfloat16())
    if found is None or found.name not in _STORAGE:
        raise ValueError(f"a cache cannot store {dtype!r}: one of {', '.join(_STORAGE)}")
    native: np.dtype = found.newbyteorder("=")
    return native


def tokens(
    name: str, x: Any, batch: tuple[int, ...], heads: int, features: int, dtype: np.dtype
) -> np.ndarray:
    """Return new tokens (*batch, heads, n, features) that a cache of this dtype can store."""
    array = as_array(name, x)
    if array.shape[:-2] != (*batch, heads) or array.shape[-1] != features:
        want = ", ".join(map(str, (*batch, heads, "n", features)))
        raise ValueError(
            f"{name} of shape {array.shape} does not fit this cache, whose new tokens are "
            f"({want}): (batch, heads, tokens, features)"
        )
    if array.dtype.kind not in "f" and array.dtype.name != "bfloat16":
        raise TypeError(
            f"{name} of shape {array.shape} has dtype {array.dtype}; real floats are needed: "
            f"`np.asarray({name}).astype(np.float32)`"
        )
    if dtype == np.int8 and not float(np.abs(array).max(initial=0)) <= _LARGEST_IN_INT8:
        if np.isfinite(array).all():
            raise ValueError(
                f"{name} of shape {array.shape} holds numbers beyond {_LARGEST_IN_INT8}, where "
                "float32 ends, in which int8 storage keeps its scales: make the cache with "
                '`dtype="float64"`'
            )
        raise ValueError(
            f"{name} of shape {array.shape} holds NaN or inf, which int8 storage cannot keep: "
            'make the cache with `dtype="float16"` or a wider one'
        )
    return array

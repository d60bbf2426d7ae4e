"""What a cache is made of and what it is asked, checked in the cache's own words."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastattn._core.arrays import as_array
from fastattn._core.foreign import bfloat16

__all__ = ["check_query", "sequences", "size", "stand_in", "storage"]

_STORAGE = ("float32", "float64", "float16", "bfloat16", "int8")


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


def sequences(indices: Any, entries: int, batch: tuple[int, ...]) -> np.ndarray:
    """Return for each sequence the number of one, as a flat int64 copy."""
    array = as_array("indices", indices)
    if array.size != entries or array.shape not in (batch, (entries,)):
        raise ValueError(
            f"indices of shape {array.shape} must say for each of the {batch} sequences which one "
            "it goes on from: one number each"
        )
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"indices of shape {array.shape} have dtype {array.dtype}; numbers of sequences are "
            "integers: `np.asarray(indices).astype(np.int64)`"
        )
    flat = np.array(array, order="C").reshape(-1)  # a copy, which no other thread changes
    wrong = (flat < 0) | (flat >= entries)
    if wrong.any():
        raise ValueError(
            f"indices hold {flat[wrong][0]}, and this cache has the sequences 0 to {entries - 1}, "
            f"counted in C order of its batch dims {batch}"
        )
    return flat.astype(np.int64)


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

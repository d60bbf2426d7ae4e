"""Keys and values that lie in pages, as a cache keeps them, gathered into plain arrays."""

import ctypes
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PAGE_KEYS", "from_pages"]

PAGE_KEYS = 128

Array = NDArray[Any]


def from_pages(problem: Any) -> tuple[Array, Array]:
    """Gather keys and values (*batch, Hkv, S, .); 0 beyond an entry's length and without a page.

    ``problem.place`` holds the address of each head's first row in each page, and for int8 that of
    its float32 scales, one per token: a number is then the float32 product of both.
    """
    pages = problem.place
    lengths = np.full(pages.key.shape[:-2], problem.key.shape[-2])
    if problem.extras.key_lengths is not None:
        per_entry = problem.extras.key_lengths.reshape(*lengths.shape, -1)
        lengths = np.max(per_entry, axis=-1, initial=0)
    return (
        _gather(problem.key.shape, pages.dtype, pages.key, pages.key_scale, lengths),
        _gather(problem.value.shape, pages.dtype, pages.value, pages.value_scale, lengths),
    )


def _gather(
    shape: tuple[int, ...], stored: Any, addresses: Array, scales: Array | None, lengths: Array
) -> Array:
    """Copy pages, (PAGE_KEYS, features) a head, into one array (*batch, Hkv, S, features)."""
    features = shape[-1]
    dtype = stored if scales is None else np.dtype(np.float32)
    gathered = np.zeros((*addresses.shape[:-1], *shape[-2:]), dtype)
    for head in np.ndindex(addresses.shape[:-1]):
        length = int(lengths[head[:-1]])
        for first in range(0, length, PAGE_KEYS):
            page = (*head, first // PAGE_KEYS)
            if not addresses[page]:
                continue  # given back, since no query sees it
            used = slice(min(PAGE_KEYS, length - first))
            rows = _at(int(addresses[page]), (PAGE_KEYS, features), stored)[used]
            if scales is not None:
                rows = rows * _at(int(scales[page]), (PAGE_KEYS, 1), dtype)[used]
            gathered[head][first : first + len(rows)] = rows
    return gathered


def _at(address: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """View memory by its address."""
    if not math.prod(shape):
        return np.zeros(shape, dtype)
    memory = (ctypes.c_char * (math.prod(shape) * dtype.itemsize)).from_address(address)
    return np.ndarray(shape, dtype, memory)

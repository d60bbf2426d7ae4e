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
    """Gather keys and values (*batch, Hkv, S, .); what lies beyond an entry's length is 0.

    ``problem.pages`` holds the address of each page's first row of head 0, and for int8 that of its
    float32 scales, one per token and head: a number is then the float32 product of both.
    """
    pages = problem.pages
    lengths = np.full(pages.key.shape[:-1], problem.key.shape[-2])
    if problem.key_lengths is not None:
        per_entry = problem.key_lengths.reshape(*lengths.shape, -1)
        lengths = np.max(per_entry, axis=-1, initial=0)
    return (
        _gather(problem.key, pages.dtype, pages.key, pages.key_scale, lengths),
        _gather(problem.value, pages.dtype, pages.value, pages.value_scale, lengths),
    )


def _gather(
    form: Array, stored: Any, addresses: Array, scales: Array | None, lengths: Array
) -> Array:
    """Copy pages into an array of the shape of `form`, whose strides a page has."""
    heads, keys, features = form.shape[-3:]
    dtype = stored if scales is None else np.dtype(np.float32)
    gathered = np.zeros((*addresses.shape[:-1], heads, keys, features), dtype)
    for entry in np.ndindex(addresses.shape[:-1]):
        for first in range(0, int(lengths[entry]), PAGE_KEYS):
            shape = (heads, min(PAGE_KEYS, int(lengths[entry]) - first), features)
            page = (*entry, first // PAGE_KEYS)
            rows = _at(int(addresses[page]), shape, form.strides[-3:], stored)
            if scales is not None:
                strides = (PAGE_KEYS * dtype.itemsize, dtype.itemsize, 0)
                rows = rows * _at(int(scales[page]), (*shape[:2], 1), strides, dtype)
            gathered[entry][:, first : first + shape[1]] = rows
    return gathered


def _at(address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> Array:
    """View memory by its address."""
    size = dtype.itemsize + sum(step * (n - 1) for step, n in zip(strides, shape, strict=True))
    if not math.prod(shape):
        return np.zeros(shape, dtype)
    memory = (ctypes.c_char * size).from_address(address)
    return np.ndarray(shape, dtype, memory, strides=strides)

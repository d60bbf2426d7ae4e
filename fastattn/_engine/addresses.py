"""Where arrays begin, how their elements are stored, and scratch for the length of a call."""

from __future__ import annotations

import ctypes
import functools
import sys

import numpy as np

from fastattn._core.arrays import on_lines

from .layouts import DATA_OFFSET, STORAGE_CODES, SWAPPED

__all__ = [
    "ADDRESS_IN_OBJECT",
    "address",
    "give_scratch",
    "storage_code",
    "take_scratch",
]


def _slow_address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _fast_address(array: np.ndarray) -> int:
    return _word_at(id(array) + DATA_OFFSET).value or 0


_word_at = ctypes.c_void_p.from_address
_SAMPLES = (np.zeros(3), np.zeros((2, 3))[::-1, 1:], np.zeros(0))
ADDRESS_IN_OBJECT = sys.implementation.name == "cpython" and all(
    _fast_address(sample) == _slow_address(sample) for sample in _SAMPLES
)
address = _fast_address if ADDRESS_IN_OBJECT else _slow_address


@functools.cache  # a dtype's name costs microseconds
def storage_code(dtype: np.dtype) -> int:
    """Return the code by which kernels read a NumPy dtype."""
    return STORAGE_CODES[dtype.name] + (0 if dtype.isnative else SWAPPED)


# Scratch is kept for the next call: fresh pages cost more than a small call. What is kept at most.
_KEPT_BUFFERS = 8
_KEPT_BYTES = 4 << 20
Buffer = tuple[int, int, np.ndarray]  # bytes, and where they begin, on a line of the cache
_BYTES = np.dtype(np.uint8)
_buffers: list[Buffer] = []


def take_scratch(size: int) -> Buffer:
    """Return scratch of at least `size` bytes, this call's own until it is given back."""
    try:
        buffer = _buffers.pop()
        if buffer[0] >= size:
            return buffer
    except IndexError:
        pass
    scratch = on_lines((size,), _BYTES)
    return size, address(scratch), scratch


def give_scratch(buffer: Buffer) -> None:
    """Keep scratch for the next call."""
    if buffer[0] <= _KEPT_BYTES and len(_buffers) < _KEPT_BUFFERS:
        _buffers.append(buffer)

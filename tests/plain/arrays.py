"""From arrays to regions: the bytes of their elements, and which of them were never written."""

import ctypes

import numpy as np

from .memory import Region

__all__ = ["Mapped", "poison", "poisoned", "regions_of"]

# What fresh memory is filled with here; as a number it is NaN.
POISON = np.frombuffer(b"\xe1\xc3\xa5\x7f", np.uint32)[0]


def poison(array):
    """Fill fresh memory, whatever it is for, so that what is never written can be told."""
    flat = array.reshape(-1).view(np.uint8) if array.size else array
    if array.size:
        words = flat[: flat.size // 4 * 4].view(np.uint32)
        words[...] = POISON
        flat[flat.size // 4 * 4 :] = 0xA5
    return array


def poisoned(size):
    """So many bytes of fresh memory."""
    return np.resize(POISON.reshape(1).view(np.uint8), size)


def is_poison(bytes_of_rows):
    """Which rows of whole words, as bytes, hold nothing but poison."""
    words = np.ascontiguousarray(bytes_of_rows).view(np.uint32)
    return (words == POISON).all(axis=-1)


class Mapped:
    """The bytes of an array's elements: where they begin, a mask over them, what is fresh.

    In what kernels write each element may be fresh, in pages (`fresh_rows`) each row.
    """

    def __init__(self, name, array, writable=False, is_result=False, fresh_rows=False):
        self.name, self.is_writable, self.is_result = name, writable, is_result
        item = array.itemsize
        low, high = np.lib.array_utils.byte_bounds(array)
        self.start, size = low, high - low
        first = array.__array_interface__["data"][0] - low
        shape, strides = (*array.shape, item), (*array.strides, 1)
        self.owned = bytearray(size)
        if array.size == 0:
            self.start, self.owned = first + low, bytearray()
            self.readable = self.owned
            return

        def over(buffer):
            return np.ndarray(shape, np.uint8, buffer, first, strides)

        over(self.owned)[...] = 1
        self.readable = bytearray(self.owned)
        unit = item * array.shape[-1] if fresh_rows else item
        if (writable or fresh_rows) and unit % 4 == 0:
            found = over((ctypes.c_char * size).from_address(low))
            found = found.reshape(*array.shape[:-1], unit) if fresh_rows else found
            over(self.readable)[is_poison(found)] = 0


def regions_of(mapped):
    """Regions without overlap; where arrays share memory, each may do there what it may."""
    mapped = sorted((one for one in mapped if one.owned), key=lambda one: one.start)
    groups, stop = [], -1
    for one in mapped:
        if one.start >= stop:
            groups.append([])
            stop = one.start
        groups[-1].append(one)
        stop = max(stop, one.start + len(one.owned))
    return [_merged(group) for group in groups]


def _merged(group):
    start = group[0].start
    stop = max(one.start + len(one.owned) for one in group)
    owned, readable, writable = np.zeros((3, stop - start), np.uint8)
    for one in group:
        here = slice(one.start - start, one.start - start + len(one.owned))
        own = np.frombuffer(one.owned, np.uint8)
        owned[here] |= own
        readable[here] |= np.frombuffer(one.readable, np.uint8)
        if one.is_writable:
            writable[here] |= own
    name = " and ".join(dict.fromkeys(one.name for one in group))
    owned, readable, writable = (bytearray(x.tobytes()) for x in (owned, readable, writable))
    is_result = any(one.is_result for one in group)
    allowed = writable if any(writable) else None
    return Region(name, start, owned, readable, allowed, is_result=is_result)

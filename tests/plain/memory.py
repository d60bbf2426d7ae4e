"""Memory that knows its extents: which bytes may be read, which written, which never were.

A kernel's addresses are those of real arrays. Each access is looked up first; what lies in no
region, between the elements of an array, in another worker's scratch, or was never written, is an
error, and nothing is read or written then.
"""

import ctypes
from bisect import bisect_right

import numpy as np

from .floats import Fault

__all__ = ["RECORD", "Memory", "Region", "current", "use"]

RECORD = "the record"

# Stack rooms that live at once: a function has one, and none of those it calls has more.
_ROOMS = 4


class Region:
    """A stretch of bytes at its real address, and what may be done with each of them.

    Of bytearrays, 1 where it is so: bytes of an element (`owned`), that have been written
    (`readable`), that may be (`writable`; None: none of them).
    """

    def __init__(
        self, name, start, owned, readable=None, writable=None, worker=None, is_result=False
    ):
        self.name = name
        self.start, self.stop = start, start + len(owned)
        self.owned = owned
        self.readable = bytearray(owned) if readable is None else readable
        self.writable = writable
        self.worker = worker  # whose scratch it is
        self.is_result = is_result  # the caller reads it
        self.writers = None  # who wrote each byte: a worker's number and 1
        place = (ctypes.c_char * len(owned)).from_address(start)
        self.data = memoryview(place).cast("B")

    @classmethod
    def fresh(cls, name, start, size, worker=None):
        """Memory to work in, of which nothing has been written."""
        every = bytearray(b"\1" * size)
        return cls(name, start, every, bytearray(size), every, worker)


class Memory:
    """The regions of one launch."""

    def __init__(self):
        self._starts, self._regions, self._rooms = [], [], []
        self.worker, self.workers = 0, 1
        self.next_worker = lambda: None  # lets the others go on, where there are some

    def add(self, region):
        place = bisect_right(self._starts, region.start)
        for other in self._regions[max(place - 1, 0) : place + 1]:
            if other.start < region.stop and region.start < other.stop:
                raise ValueError(f"{region.name} lies in {other.name}")
        self._starts.insert(place, region.start)
        self._regions.insert(place, region)

    def _find(self, address, size, verb):
        place = bisect_right(self._starts, address) - 1
        if place >= 0:
            region = self._regions[place]
            if address + size <= region.stop:
                if region.worker is not None and region.worker != self.worker:
                    raise Fault(f"worker {self.worker} {verb} {region.name}")
                return region
        raise Fault(f"{verb} {size} bytes out of bounds: {self._around(address)}")

    def _place(self, region, at, gap):
        return f"{at} of {region.name} ({len(region.owned)}): byte {gap} is of no element"

    def _around(self, address):
        place = bisect_right(self._starts, address) - 1
        told = []
        if place >= 0:
            region = self._regions[place]
            behind = address - region.start
            told.append(f"{behind} bytes into {region.name} of {len(region.owned)}")
        if place + 1 < len(self._regions):
            region = self._regions[place + 1]
            told.append(f"{region.start - address} bytes before {region.name}")
        return ", ".join(told) or "there is no memory"

    def read(self, address, size):
        """The bytes around an address, where in them it is, and a mask of those that are known.

        The mask is None where all are. What may be written and was not is unknown; what is nobody's
        may not be read.
        """
        region = self._find(address, size, "reads")
        at = address - region.start
        if self.workers > 1:
            self._meet(region, at, size, "reads")
        if region.readable.find(0, at, at + size) < 0:
            return region.data, at, None
        gap = region.owned.find(0, at, at + size)
        if gap >= 0:
            raise Fault(f"reads {size} bytes at {self._place(region, at, gap)}")
        return region.data, at, np.frombuffer(region.readable, np.bool_, size, at).copy()

    def write(self, address, data, known=None):
        """Write bytes, all of which may be written; `known` tells which have a meaning."""
        size = len(data)
        region = self._find(address, size, "writes")
        at = address - region.start
        if region.writable is None:
            raise Fault(f"writes {size} bytes at {at} of {region.name}, which is only read")
        gap = region.writable.find(0, at, at + size)
        if gap >= 0:
            raise Fault(f"writes {size} bytes at {self._place(region, at, gap)}")
        if self.workers > 1 and self._meet(region, at, size, "writes"):
            region.writers[at : at + size] = bytes([self.worker + 1]) * size
        if known is not None and region.is_result:
            raise Fault(f"what {region.name} gets at {at} was never written")
        region.data[at : at + size] = data
        region.readable[at : at + size] = b"\1" * size if known is None else known

    def _meet(self, region, at, size, verb):
        """See that no other worker wrote there; whether it is memory that workers share.

        Results, that is. The counter of tasks is there for all.
        """
        if region.worker is not None or region.writable is None or region.name == RECORD:
            return False
        if region.writers is None:
            region.writers = bytearray(len(region.owned))
        others = region.writers[at : at + size].strip(bytes([0, self.worker + 1]))
        if others:
            raise Fault(
                f"worker {self.worker} {verb} {size} bytes at {at} of {region.name}, which worker "
                f"{others[0] - 1} wrote"
            )
        return True

    def room(self, size):
        """Fresh bytes on the stack, in which nothing is to be read yet."""
        owner = np.empty(size + 64, np.uint8)
        start = owner.ctypes.data + -owner.ctypes.data % 64
        region = Region.fresh("the stack", start, size, self.worker)
        self.add(region)
        self._rooms.append((owner, region))
        if len(self._rooms) > _ROOMS:
            _, old = self._rooms.pop(0)
            place = self._regions.index(old)
            del self._regions[place], self._starts[place]
        return start


_current = []


def current():
    """The memory of the launch under way."""
    return _current[-1]


class use:
    """Make a memory the current one for the length of a block; they nest."""

    def __init__(self, memory):
        self.memory = memory

    def __enter__(self):
        _current.append(self.memory)
        return self.memory

    def __exit__(self, *error):
        _current.pop()

"""Arrays that touch unmapped memory: a read or write outside them ends the process."""

import atexit
import contextlib
import ctypes
import functools
import itertools
import json
import mmap
import os
import runpy
import subprocess
import sys
import tempfile

import numpy as np
import pytest

PAGE = mmap.PAGESIZE
SIZES = range(1, 66)
ROWS = (1, 2, 5, 6, 7, 13, 24, 25)
# At the ends of vectors (8, 16 lanes), of tiles and of groups of 32 and 64 of them.
EDGES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 23, 24, 31, 32, 33, 47, 48, 63, 64, 65)
# Parts of a sweep: pairs of edges with a tenth of all the others, or all.
PARTS = ["edges", pytest.param("small", marks=pytest.mark.long), "segment"]
VALUE_SIZES = (1, 3, 8, 15, 16, 17, 31, 33, 48, 64, 65)


def protect(address: int, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), 0):  # PROT_NONE
        raise OSError(ctypes.get_errno(), "mprotect")


class Pen:
    """Memory between two unreadable pages, in which one array at a time is laid flush to an end."""

    def __init__(self, size: int) -> None:
        self.inner = -(-size // PAGE) * PAGE
        self.memory = mmap.mmap(-1, self.inner + 2 * PAGE)
        self.bytes = np.frombuffer(self.memory, np.uint8)
        start = self.bytes.ctypes.data
        protect(start, PAGE)
        protect(start + PAGE + self.inner, PAGE)

    def hold(self, array: np.ndarray, at_end: bool, negative: bool = False) -> np.ndarray:
        """Copy an array here, its last (or first) byte beside the unreadable page."""
        first = PAGE + (self.inner - array.nbytes if at_end else 0)
        held = self.bytes[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
        if negative:
            held = held[(slice(None, None, -1),) * array.ndim]
        held[...] = array
        return held


def pairs(part):
    """Every (E, S) of "small", or those of "edges"."""
    every = itertools.product(SIZES, SIZES)
    if part == "small":
        return list(every)
    return [(a, b) for a, b in every if (a in EDGES and b in EDGES) or (3 * a + b) % 11 == 0]


def calls(sizes):
    """Every (E, S), with rows and value sizes taking turns."""
    turns = itertools.cycle(itertools.product(ROWS, VALUE_SIZES))
    for (features, keys), (rows, value_features) in zip(sizes, turns, strict=False):
        yield rows, features, keys, value_features


@functools.cache
def _server():
    """A process that has imported what sweeps need, and forks for each: that takes a second."""
    server = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        text=True,
    )
    atexit.register(server.communicate)  # which closes its input, and waits
    return server


def lines_of(file, *arguments):
    """Run a file's sweep in a child, which a stray read ends; return its lines, one a call."""
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        told, wrong = (os.path.join(folder, name) for name in ("lines", "errors"))
        print(json.dumps([told, wrong, file, *arguments]), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        with open(told, encoding="utf-8") as lines, open(wrong, encoding="utf-8") as errors:
            lines, errors = lines.read().splitlines(), errors.read()
    assert code == 0, f"died or failed at {lines[-1:]}:\n{errors[-3000:]}"
    return lines


def serve():
    """Do what `lines_of` asks for, each in a child of its own, and tell how that ended."""
    import strategies  # noqa: F401

    import fastattn  # noqa: F401

    with contextlib.suppress(ModuleNotFoundError):
        import numba  # noqa: F401
    for line in sys.stdin:
        told, wrong, file, *arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            for descriptor, path in ((1, told), (2, wrong)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
            sys.argv = [file, *arguments]
            runpy.run_path(file, run_name="__main__")
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()

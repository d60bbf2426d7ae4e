"""No read or write outside an array: operands that touch unmapped memory on one side or the other.

Sizes around whole vectors, tiles and segments, and every E and S from 1 to 65 (long). The sweep
runs in a child process, since a wrong offset ends it with a signal; its last line of output is the
call that did it.
"""

import ctypes
import itertools
import mmap
import os
import subprocess
import sys

import numpy as np
import pytest
import strategies

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


def sweep(backend: str, dtype: str, part: str) -> None:
    """Run all calls of one part, checking that each gives what unguarded arrays give."""
    import fastattn

    if part == "segment":
        sizes = itertools.product((1, 8, 16, 33), (*range(505, 521), 575, 576, 577, 1023, 1025))
    else:
        sizes = pairs(part)
    pens = [Pen(65 * 1100 * 8) for _ in range(6)]
    rng = np.random.default_rng(1)
    dtype = strategies.dtype_of(dtype)
    numbers = rng.standard_normal(1100 * 65).astype(dtype)
    count = 0
    with fastattn.use_backend(backend):
        for rows, features, keys, value_features in calls(sizes):
            count += 1
            at_end, negative = count % 2 == 0, count % 3 == 0
            print(dtype, rows, features, keys, value_features, at_end, negative, flush=True)
            shapes = ((rows, features), (keys, features), (keys, value_features))
            plain = [numbers[: np.prod(shape)].reshape(shape) for shape in shapes]
            query, key, value = (
                pen.hold(array, at_end, negative) for pen, array in zip(pens, plain, strict=False)
            )
            options = [{}, {"causal": "bottom_right"}][count % 2]
            held_options = dict(options)
            if count % 4 < 2:
                mask = rng.random((rows, keys)) < 0.7
                mask = mask if count % 8 < 4 else np.where(mask, 0, -np.inf).astype(dtype)
                held_options["mask"] = pens[3].hold(mask, at_end, negative)
                options["mask"] = mask
            similarity = ("scaled_dot", "cosine", "euclidean")[count % 5 % 3]
            out = pens[4].hold(np.zeros((rows, value_features), dtype), at_end, negative)
            fastattn.attention(
                query, key, value, similarity=similarity, out=out, threads=1, **held_options
            )
            expected = fastattn.attention(
                *plain, similarity=similarity, threads=1, return_lse=True, **options
            )[0]
            assert np.array_equal(out, expected)
            if count % 6 == 0:
                stages(fastattn, query, key, value, pens, at_end)


def stages(fastattn, query, key, value, pens, at_end) -> None:
    """The operations on their own, and the states, on guarded arrays."""
    rows, keys = len(query), len(key)
    for metric in ("dot", "cosine", "euclidean"):
        scores = pens[4].hold(np.empty((rows, keys), query.dtype), at_end)
        fastattn.similarity(query, key, metric=metric, out=scores)
    guarded = pens[5].hold(scores, at_end)
    for axis in (0, 1):
        out = pens[4].hold(np.empty_like(guarded), at_end)
        fastattn.softmax(guarded, axis, out=out)
        fastattn.log_softmax(guarded, axis)
        fastattn.logsumexp(guarded, axis)
    for row in guarded[-1:]:  # alone, its keys are on the lanes however few they are
        fastattn.softmax(row)
        fastattn.log_softmax(row)
        fastattn.logsumexp(row)
    weights = pens[5].hold(out, at_end)
    out = pens[4].hold(np.empty((rows, value.shape[1]), query.dtype), at_end)
    fastattn.fuse(weights, value, out=out)
    fastattn.fuse(weights, value, reduce=False)
    fastattn.attention_state(query, key, value).finish()
    fastattn.attention(query, key, value, return_weights=True)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_nothing_outside_the_arrays_is_touched(exact_backend, dtype, part):
    child = subprocess.run(
        [sys.executable, "-X", "faulthandler", __file__, exact_backend, dtype, part],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    last = child.stdout.strip().splitlines()[-1:]
    assert child.returncode == 0, f"died or failed at {last}:\n{child.stderr[-3000:]}"
    assert len(child.stdout.splitlines()) >= 76


def test_the_pen_does_catch_a_stray_read():
    """The harness can fail: one element beyond a held array ends the child with SIGSEGV."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import numpy as np, test_guard_pages as t\n"
        "held = t.Pen(100).hold(np.ones(4), at_end=True)\n"
        "print(held.sum(), flush=True)\n"
        "print(np.lib.stride_tricks.as_strided(held, (5,)).sum())\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, os.path.dirname(__file__)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.stdout == "4.0\n"
    assert child.returncode < 0


if __name__ == "__main__":
    sweep(*sys.argv[1:])

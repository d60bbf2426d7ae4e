"""No read outside the keys a cache holds: its pages end, or begin, beside unmapped memory.

Sizes around vectors, tiles, pages and segments, and every E and S from 1 to 65 (long). The memory
of the pages is laid so that what stands behind the last key, the unwritten rest of its page too,
cannot be read. The sweep runs in a child process; its last line of output is the call that killed
it.
"""

import itertools
import sys

import numpy as np
import pytest
import strategies
from kv import BORDERS, new_cache, tokens
from pens import PARTS, Pen, calls, lines_of, pairs

from fastattn._core.constants import PAGE_KEYS

FEATURES = (1, 8, 16, 33)
# What a call does besides: turns of this list, of another length than the other turns.
OPTIONS = (
    {},
    {"causal": False, "return_weights": True},
    {"similarity": "cosine"},
    {"window": (9, 0)},
    {"sinks": 0.5, "alibi_slopes": 0.1},
    {"causal": False, "similarity": "euclidean"},
)


def guard(cache, pens, at_end):
    """Move the pages of a cache of one sequence to the edges of the pens, with its keys alone."""
    table = cache._table
    (chunk,) = table._chunks
    (length,), pages, heads = table.lengths, *chunk.key.shape[:2]
    rows = (pages * heads - 1) * PAGE_KEYS + length - (pages - 1) * PAGE_KEYS
    moved = []
    for pen, part in zip(pens, chunk, strict=True):
        if part.size:
            held = pen.hold(part.reshape(-1, *part.shape[3:])[:rows], at_end)
            # As large as before: what is beyond the keys has addresses, and no memory.
            part = np.lib.stride_tricks.as_strided(held, part.shape, part.strides)
        moved.append(part)
    table._chunks[0] = type(chunk)(*moved)
    table._found = None


def sweep(backend: str, storage: str, part: str) -> None:
    """Run all calls of one part, checking that each gives what unguarded pages give."""
    import fastattn

    sizes = itertools.product(FEATURES, BORDERS) if part == "segment" else pairs(part)
    pens = [Pen(65 * 1100 * 8) for _ in range(4)]
    rng = np.random.default_rng(1)
    dtype = "float32" if storage == "int8" else storage
    with fastattn.use_backend(backend):
        for count, (rows, features, length, value_features) in enumerate(calls(sizes)):
            heads, at_end = 1 + count % 3 % 2, count % 5 != 0
            print(storage, heads, rows, features, length, value_features, at_end, flush=True)
            cache = new_cache((1,), storage, heads, features, value_features)
            cache.append(*tokens(rng, (1,), length, heads, features, value_features))
            query = strategies.draw(rng, (1, 2 * heads, rows, features), dtype)
            options = {**OPTIONS[count % len(OPTIONS)], "return_lse": True, "threads": 1}
            expected = cache.attend(query, **options)
            guard(cache, pens, at_end)
            for ours, theirs in zip(cache.attend(query, **options), expected, strict=True):
                assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16", "int8"])
def test_nothing_outside_the_keys_is_read(exact_backend, storage, part):
    strategies.dtype_of(storage)
    lines = lines_of(__file__, exact_backend, storage, part)
    expected = len(FEATURES) * len(BORDERS) if part == "segment" else len(pairs(part))
    assert len(lines) == expected


if __name__ == "__main__":
    sweep(*sys.argv[1:])

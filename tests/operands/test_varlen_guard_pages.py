"""No read or write outside tables, indices and packed arrays: unmapped memory beside each of them.

Sizes around vectors, tiles and segments, and every E and S from 1 to 65 (long), for each way to
find a key: packed, gathered by either index dtype, in small dtypes. The sweep runs in a child
process; its last line of output is the call that killed it.
"""

import itertools
import sys

import numpy as np
import pytest
import strategies
from pens import PARTS, Pen, calls, lines_of, pairs

TABLE_ROWS = 67
BORDERS = ((1, 8, 16, 33), (*range(509, 516), 575, 577, 1025))
# What a call does besides: turns of this list, of another length than the other turns.
OPTIONS = (
    {},
    {"causal": "bottom_right"},
    {"similarity": "cosine"},
    {"window": (9, 3)},
    {"sinks": 0.5, "alibi_slopes": 0.1},
    {"documents": True},
    {"similarity": "euclidean"},
)


def sweep(backend: str, dtype: str, source: str, part: str) -> None:
    """Run all calls of one part, checking that each gives what unguarded arrays give."""
    import fastattn

    sizes = itertools.product(*BORDERS) if part == "segment" else pairs(part)
    pens = [Pen(65 * 1100 * 8) for _ in range(9)]
    rng = np.random.default_rng(1)
    numbers = strategies.draw(rng, (1100 * 65,), dtype)
    with fastattn.use_backend(backend):
        for count, (rows, features, keys, value_features) in enumerate(calls(sizes)):
            at_end, negative = count % 2 == 0, count % 3 == 0
            print(dtype, source, rows, features, keys, value_features, at_end, flush=True)
            # An empty sequence, a part of the keys, the rest: the last row ends at the page.
            cut = [0, 0, int(rng.integers(0, keys + 1)), keys]
            own = [0, min(1, rows), rows // 2 + rows % 2, rows]
            options = dict(OPTIONS[count % len(OPTIONS)])
            stored = keys
            if source != "packed":
                stored = TABLE_ROWS
                options["key_indices"] = rng.integers(0, stored, keys).astype(source)
                options["key_indices"][-1:] = stored - 1
            if options.pop("documents", False):
                options["query_segments"] = np.sort(rng.integers(0, 3, rows))
                options["key_segments"] = np.sort(rng.integers(0, 3, keys))
            shapes = ((rows, features), (stored, features), (stored, value_features))
            plain = [numbers[: np.prod(shape)].reshape(shape) for shape in shapes]
            held = [pen.hold(x, at_end, negative) for pen, x in zip(pens, plain, strict=False)]
            splits = [
                pen.hold(np.array(x), at_end) for pen, x in zip(pens[3:], (own, cut), strict=False)
            ]
            held_options = {
                name: pen.hold(x, at_end) if isinstance(x, np.ndarray) else x
                for pen, (name, x) in zip(pens[5:8], options.items(), strict=False)
            }
            out = pens[8].hold(np.zeros((rows, value_features), numbers.dtype), at_end, negative)
            fastattn.attention_varlen(*held, *splits, **held_options, out=out, threads=1)
            expected = fastattn.attention_varlen(*plain, own, cut, **options, threads=1)
            assert np.array_equal(out, expected)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("source", ["packed", "int32", "int64"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_nothing_outside_the_arrays_is_touched(exact_backend, dtype, source, part):
    strategies.dtype_of(dtype)
    lines = lines_of(__file__, exact_backend, dtype, source, part)
    expected = len(BORDERS[0]) * len(BORDERS[1]) if part == "segment" else len(pairs(part))
    assert len(lines) == expected


if __name__ == "__main__":
    sweep(*sys.argv[1:])

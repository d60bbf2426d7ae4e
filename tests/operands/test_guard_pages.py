"""No read or write outside an array: operands that touch unmapped memory on one side or the other.

Sizes around whole vectors, tiles and segments, and every E and S from 1 to 65 (long). The sweep
runs in a child process, since a wrong offset ends it with a signal; its last line of output is the
call that did it.
"""

import itertools
import os
import subprocess
import sys

import numpy as np
import pens
import pytest
import strategies
from pens import PARTS, Pen, calls, lines_of, pairs


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
    from fastattn.linear import _of_panels

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
    bias = pens[5].hold(np.ones(keys, query.dtype), at_end)
    out = pens[4].hold(np.empty((rows, keys), query.dtype), at_end)
    packed = fastattn.pack_linear(key)
    beside = _of_panels(pens[3].hold(packed._panels, at_end), packed.shape)
    for weight in (key, packed, beside):
        for count in (rows, min(rows, 1)):
            fastattn.linear(query[:count], weight, bias, out=out[:count])
    fastattn.attention_state(query, key, value).finish()
    fastattn.attention(query, key, value, return_weights=True)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_nothing_outside_the_arrays_is_touched(exact_backend, dtype, part):
    lines = lines_of(__file__, exact_backend, dtype, part)
    assert len(lines) >= 76


def test_the_pen_does_catch_a_stray_read():
    """The harness can fail: one element beyond a held array ends the child with SIGSEGV."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import numpy as np, pens\n"
        "held = pens.Pen(100).hold(np.ones(4), at_end=True)\n"
        "print(held.sum(), flush=True)\n"
        "print(np.lib.stride_tricks.as_strided(held, (5,)).sum())\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, os.path.dirname(pens.__file__)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.stdout == "4.0\n"
    assert child.returncode < 0


if __name__ == "__main__":
    sweep(*sys.argv[1:])

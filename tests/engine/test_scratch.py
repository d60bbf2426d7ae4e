"""What a call finds in its scratch changes nothing, neither a bit nor the work; and it is small.

A block whose output holds a NaN is computed again from its scores, with its hidden keys left out.
What scratch holds at the end tells whether that happened: weights, or scores.
"""

import ctypes
import tracemalloc

import numpy as np
import pytest

import fastattn
from fastattn._core.constants import SCORE_STRIDE
from fastattn._engine import addresses, plan
from fastattn._engine.layouts import ATTENTION
from fastattn._engine.plan import RECORD_BYTES
from fastattn._numba.backend import backend
from fastattn._numba.operands import prefetch as ahead

WORD = ATTENTION.word

ROWS, KEYS, FEATURES = 5, 100, 8
WIDTHS = (1, 3, 8, 15, 16, 17, 31, 33)


def operands(dtype, value_features):
    """One block whose scores all lie far below 0, where no weight does."""
    rng = np.random.default_rng(value_features)
    query = rng.uniform(1, 2, (ROWS, FEATURES)).astype(dtype)
    value = rng.standard_normal((KEYS, value_features)).astype(dtype)
    return query, -rng.uniform(1, 2, (KEYS, FEATURES)).astype(dtype), value


@pytest.fixture
def attend(monkeypatch):
    """Run one block on scratch full of one byte; gives output and what is left of the scores."""
    launcher = backend.kernels.launcher
    run = launcher.run

    def attend(byte, *call, **options):
        left = []

        def on_full_scratch(entry, words, *plan):
            scratch, size = (int(words[WORD[name]]) for name in ("scratch", "scratch_stride"))
            ctypes.memset(scratch, byte, size)
            run(entry, words, *plan)
            place = scratch + int(words[WORD["at_scores"]])
            block = ctypes.string_at(place, ROWS * SCORE_STRIDE * output.itemsize)
            left.append(np.frombuffer(block, output.dtype).reshape(ROWS, SCORE_STRIDE)[:, :KEYS])

        monkeypatch.setattr(launcher, "run", on_full_scratch)
        execution = fastattn.explain(*call, **options, scale=1.0, backend="numba", threads=1)
        output = np.full(execution.problem.output_shape, 7, execution.problem.dtype)
        execution.run(output[None, None], None, None)
        assert len(left) == execution.plan.tasks == 1
        return output, left[0]

    return attend


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value_features", WIDTHS)
@pytest.mark.parametrize("layout", ["rows", "columns", "swapped"])
def test_nan_in_scratch_calls_for_no_repair(attend, dtype, value_features, layout):
    """Padding of packed values is scratch; taken for a NaN, it doubled the time of every block."""
    query, key, value = operands(dtype, value_features)
    if layout == "columns":
        value = np.asfortranarray(value)
    elif layout == "swapped":
        value = value.astype(value.dtype.newbyteorder())
    output, left = attend(0xFF, query, key, value)
    assert (left >= 0).all(), "the block was computed twice"
    assert (left.max(axis=1) == 1).all()
    assert np.array_equal(output, attend(0, query, key, value)[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value_features", WIDTHS)
def test_a_hidden_nan_does_call_for_one(attend, dtype, value_features):
    """What the test above looks for is there when it should be."""
    query, key, value = operands(dtype, value_features)
    mask = np.ones(KEYS, bool)
    mask[7] = False
    value[7] = np.nan
    output, left = attend(0xFF, query, key, value, mask=mask)
    assert (left < 0).all(), "the block was not computed again"
    assert np.isfinite(output).all()


def zeros(*shape):
    """Float32 zeros that take no memory."""
    return np.broadcast_to(np.float32(0), shape)


@pytest.mark.parametrize("heads", [1, 32])
@pytest.mark.parametrize("threads", [1, 8])
def test_scratch_of_long_sequences_is_small(heads, threads):
    """64 MiB a head in flight are promised; heads that wait their turn take nothing."""
    long = zeros(1, heads, 131072, 64)
    for options in ({}, {"causal": True}, {"similarity": "euclidean", "window": (100, 100)}):
        problem = fastattn.explain(long, long, long, **options, backend="numba").problem
        # Threads that this machine may not have.
        assert backend.prepare_attention(problem, threads).scratch_bytes <= threads * 2**20


@pytest.mark.parametrize(
    ("query", "keys", "value_features"),
    [
        ((1, 2, 500, 64), 3000, 64),
        ((1, 40, 1, 64), 60_000, 33),
        ((8, 1, 5, 16), 9000, 17),
        ((1, 1, 5, 64), 300, 64),  # one task: the second thread takes nothing
    ],
)
def test_a_call_takes_the_memory_that_explain_tells(monkeypatch, query, keys, value_features):
    monkeypatch.setattr(addresses, "_buffers", [])
    key, value = zeros(*query[:2], keys, query[-1]), zeros(*query[:2], keys, value_features)
    execution = fastattn.explain(zeros(*query), key, value, threads=2, backend="numba")
    output = np.empty((*query[:2], 1, query[2], value_features), np.float32)
    execution.run(output, None, None)  # compiles
    monkeypatch.setattr(addresses, "_buffers", [])
    tracemalloc.start()
    try:
        execution.run(output, None, None)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.9 * execution.scratch_bytes < taken < execution.scratch_bytes + 2**15


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 100])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_scratch_of_linear_maps_may_hold_anything(monkeypatch, exact_backend, dtype, rows, packed):
    rng = np.random.default_rng(rows)
    x, weight = (rng.standard_normal((n, 4200)).astype(dtype) for n in (rows, 70))
    held = fastattn.pack_linear(weight) if packed else weight
    results = []
    for byte in (0, 0xFF):
        scratch = np.full(2**24, byte, np.uint8)
        monkeypatch.setattr(
            addresses, "_buffers", [(scratch.nbytes, scratch.ctypes.data, scratch)] * 2
        )
        results.append(fastattn.linear(x, held, threads=1, backend=exact_backend))
    assert np.isfinite(results[1]).all()
    assert np.array_equal(*results)


@pytest.mark.parametrize("packed", [True, False])
def test_scratch_of_linear_maps_is_small(monkeypatch, exact_backend, packed):
    x, weight = zeros(4096, 3072), zeros(768, 3072)
    out = np.empty((4096, 768), np.float32)
    held = fastattn.pack_linear(np.ones((768, 3072), np.float32)) if packed else weight
    fastattn.linear(x, held, out=out, threads=2, backend=exact_backend)
    monkeypatch.setattr(addresses, "_buffers", [])
    tracemalloc.start()
    try:
        fastattn.linear(x, held, out=out[::-1], threads=2, backend=exact_backend)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken <= 2 * 2**21


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bool"])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_a_bias_shared_by_the_batch_is_read_where_it_lies(exact_backend, dtype, key_heads):
    """Expanded to the scores it would take four times its size; a copy, all of it once more."""
    rng = np.random.default_rng(key_heads)
    bias = rng.standard_normal((4, 512, 4096)).astype(dtype)
    query = rng.standard_normal((4, 4, 512, 8), dtype=np.float32)
    key = rng.standard_normal((4, key_heads, 4096, 8), dtype=np.float32)
    options = {"mask": bias, "enable_gqa": True, "threads": 2}

    def state():
        return fastattn.attention_state(query, key, key, **options).finish()

    for call in (lambda: fastattn.attention(query, key, key, **options), state):
        expected = call()  # compiles
        tracemalloc.start()
        try:
            output = call()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert np.array_equal(output, expected)
        assert peak < 7 << 20 < bias.nbytes


def test_a_record_fits_where_a_worker_keeps_its_own():
    """One more word too many would overrun what lies behind it without a sound."""
    assert 8 * len(ATTENTION.word) <= RECORD_BYTES


def test_a_cursor_fits_where_a_worker_keeps_it():
    """It is the last of a worker's scratch: behind it lies that of another, or nothing."""
    words = ahead._LIST + ahead._OPERANDS * ahead._WORDS
    assert 8 * words <= plan._AHEAD_BYTES
    assert plan.Scratch._fields[-2:] == ("at_ahead", "size")

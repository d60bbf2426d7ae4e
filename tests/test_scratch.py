"""What a call finds in its scratch changes nothing: neither a bit nor the work that is done.

A block whose output holds a NaN is computed again from its scores, with its hidden keys left out.
What scratch holds at the end tells whether that happened: weights, or scores.
"""

import numpy as np
import pytest

import fastattn
from fastattn._core.plan import SCORE_STRIDE
from fastattn._numba import backend as engine

ROWS, KEYS, FEATURES = 5, 100, 8
WIDTHS = (1, 3, 8, 15, 16, 17, 31, 33)


@pytest.fixture
def kept_scratch(monkeypatch):
    """A buffer that the engine has kept for its next call, full of NaN whatever the type."""
    buffer = np.full(engine._KEPT_BYTES, 0xFF, np.uint8)
    assert np.isnan(buffer.view(np.float32)).all()
    assert np.isnan(buffer.view(np.float64)).all()
    monkeypatch.setattr(engine, "_buffers", [buffer])
    return buffer


def operands(dtype, value_features):
    """One block whose scores all lie far below 0, where no weight does."""
    rng = np.random.default_rng(value_features)
    query = rng.uniform(1, 2, (ROWS, FEATURES)).astype(dtype)
    value = rng.standard_normal((KEYS, value_features)).astype(dtype)
    return query, -rng.uniform(1, 2, (KEYS, FEATURES)).astype(dtype), value


def scores_or_weights(buffer, dtype, *call, **options):
    """What the last block of a call on one thread left where its scores were."""
    execution = fastattn.explain(*call, **options, backend="numba", threads=1)
    output = fastattn.attention(*call, **options, backend="numba", threads=1)
    assert any(kept is buffer for kept in engine._buffers), "the call took another scratch"
    start = -buffer.ctypes.data % 64 + engine._layout(execution.problem, execution.plan).at_scores
    item = np.dtype(dtype).itemsize
    rows = buffer[start : start + ROWS * SCORE_STRIDE * item].view(dtype)
    return output, rows.reshape(ROWS, SCORE_STRIDE)[:, :KEYS]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value_features", WIDTHS)
@pytest.mark.parametrize("layout", ["rows", "columns", "swapped"])
def test_nan_in_scratch_calls_for_no_repair(kept_scratch, dtype, value_features, layout):
    """Padding of packed values is scratch; taken for a NaN, it doubled the time of every block."""
    query, key, value = operands(dtype, value_features)
    if layout == "columns":
        value = np.asfortranarray(value)
    elif layout == "swapped":
        value = value.astype(value.dtype.newbyteorder())
    output, left = scores_or_weights(kept_scratch, dtype, query, key, value, scale=1.0)
    assert (left >= 0).all(), "the block was computed twice"
    assert left.max() == 1
    kept_scratch[:] = 0
    assert np.array_equal(output, fastattn.attention(query, key, value, scale=1.0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value_features", WIDTHS)
def test_a_hidden_nan_does_call_for_one(kept_scratch, dtype, value_features):
    """What the test above looks for is there when it should be."""
    query, key, value = operands(dtype, value_features)
    mask = np.ones(KEYS, bool)
    mask[7] = False
    value[7] = np.nan
    output, left = scores_or_weights(kept_scratch, dtype, query, key, value, mask=mask, scale=1.0)
    assert (left < 0).all(), "the block was not computed again"
    assert np.isfinite(output).all()

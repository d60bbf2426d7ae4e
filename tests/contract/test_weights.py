"""Returned weights: as exact as outputs, with sinks, whatever the size of the scores."""

import numpy as np
import oracle
import pytest
import strategies
import tolerances

import fastattn

OPTIONS = {
    "plain": {},
    "softcap": {"softcap": 1e9},
    "alibi": {"alibi_slopes": [0.25, 0.5]},
    "mask": {"mask": np.linspace(-1, 1, 40)},
    "causal": {"causal": True, "query_offset": 30},
}


def operands(rng, dtype, size, keys=40):
    """Scores of about `size`, 1.7 times as scored, some spacings apart: neither equal nor alone."""
    wide = np.float64 if dtype == "float64" else np.float32
    apart = max(float(np.spacing(wide(size))) / 1.7, 0.1)
    query = np.stack([rng.choice([0.75, 1.0], (2, 5)) * size, np.ones((2, 5))], axis=-1)
    key = np.stack([np.ones((2, keys)), rng.integers(-3, 4, (2, keys)) * apart], axis=-1)
    value = rng.standard_normal((2, keys, 3))
    return [x.astype(strategies.dtype_of(dtype)) for x in (query, key, value)]


@pytest.mark.parametrize("size", [1e1, 1e4, 1e6, 1e8, 1e20])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sink", [-1.0, None, 1.0], ids=["below", "beside", "above"])
def test_weights_are_outputs_at_any_size_of_score(backend, dtype, size, sink, seed):
    """A sink far below, beside the largest score, or far above it."""
    arrays = operands(np.random.default_rng(seed), dtype, size)
    sinks = 1.7 * size if sink is None else 4 * size * sink
    for name, options in OPTIONS.items():
        options = {"similarity": "dot", "scale": 1.7, "sinks": sinks, **options}
        _, lse, weights = fastattn.attention(
            *arrays, **options, return_lse=True, return_weights=True
        )
        about = (name, size, sink)
        oracle.assert_weights_are_outputs(weights, *arrays[:2], about=about, **options)
        assert ((weights >= 0) & (weights <= 1)).all(), about
        if sink == -1.0:
            tolerance = tolerances.weight_beside_output(dtype)
            assert (abs(weights.sum(axis=-1, dtype=np.float64) - 1) <= 40 * tolerance).all(), about
        if sink == 1.0 and size >= 1e4:
            assert not weights.any(), about
            assert (lse == np.dtype(dtype).type(sinks)).all(), about


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1.7, 0.3, 1.0])
def test_the_weight_of_a_lone_key_is_one(backend, dtype, scale):
    """Though a sink is there too, far below. Its maximum was scaled, rounded and divided back."""
    query = (10.0 ** np.linspace(2, 20, 60)).astype(dtype)[:, None, None]
    one = np.ones((1, 1), dtype)
    output, weights = fastattn.attention(
        query, one, 2 * one, similarity="dot", scale=scale, sinks=-90.0, return_weights=True
    )
    assert (weights == 1).all()
    assert (output == 2).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_halves(backend, dtype, seed):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    arrays = operands(np.random.default_rng(seed), dtype, 256.0)
    for sinks in (-300.0, 1.7 * 256, 1e4):
        options = {"similarity": "dot", "scale": 1.7, "sinks": sinks}
        _, weights = fastattn.attention(*arrays, **options, return_weights=True)
        oracle.assert_weights_are_outputs(weights, *arrays[:2], about=sinks, **options)


def test_weights_where_the_power_of_two_stays_off_the_query(backend, seed):
    """A feature too small for the exact part of scale: such a row is scored in final units."""
    rng = np.random.default_rng(seed)
    query, key, value = operands(rng, "float32", 1e6)
    tiny = np.full((2, 5, 1), 1e-45, np.float32)
    tiny[:, ::2] = 0
    query = np.concatenate([query, tiny], axis=-1)
    key = np.concatenate([key, np.ones((2, 40, 1), np.float32)], axis=-1)
    for sinks in (-5.0, 1e6 * 0.212):
        options = {"similarity": "dot", "scale": 0.212, "sinks": sinks}
        _, weights = fastattn.attention(query, key, value, **options, return_weights=True)
        oracle.assert_weights_are_outputs(weights, query, key, **options)


def test_weights_over_segments_and_few_rows(backend, seed):
    """Many keys and one row; the largest score stands in the last segment, or in the first."""
    rng = np.random.default_rng(seed)
    query, key, value = operands(rng, "float32", 1e5, keys=1100)
    for place in (3, 1050):
        key[:, place, 1] = 40
        options = {"similarity": "dot", "scale": 1.7, "sinks": 1.7e5}
        _, weights = fastattn.attention(query[:, :1], key, value, **options, return_weights=True)
        oracle.assert_weights_are_outputs(weights, query[:, :1], key, **options)


def test_weights_of_a_cache(exact_backend, seed):
    rng = np.random.default_rng(seed)
    query, key, value = (x[None] for x in operands(rng, "float32", 1e6))
    cache = fastattn.KVCache(1, heads=2, head_dim=2, value_dim=3)
    cache.append(key, value)
    options = {"similarity": "dot", "scale": 1.7, "sinks": [-1.0, 1.7e6], "causal": False}
    _, weights = cache.attend(query, **options, return_weights=True)
    oracle.assert_weights_are_outputs(weights, query, key, **options)


@pytest.mark.parametrize("size", [1e3, 1e5, 1e7])
def test_a_sink_close_to_a_large_score_shares_by_their_distance(backend, size):
    """The maximum meets the sink unrounded: in float32 it would be off by up to a half at 1e7."""
    for query in np.float32(size) * (1 + np.arange(20, dtype=np.float32) / 37):
        score = float(query) * 1.7
        sink = np.float32(score)
        expected = 1 / (1 + np.exp(float(sink) - score))
        weights = fastattn.attention(
            np.float32([[query]]), np.ones((1, 1), np.float32), np.ones((1, 1), np.float32),
            similarity="dot", scale=1.7, sinks=sink, return_weights=True,
        )[1]  # fmt: skip
        assert abs(weights.item() - expected) <= tolerances.weight_beside_output(np.float32)

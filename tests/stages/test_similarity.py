"""The similarity kernel: attention's own scores, whatever the shape of a task."""

import numpy as np
import oracle
import pytest
import tolerances

import fastattn
from fastattn import reference
from fastattn._engine import stages

METRICS = ("dot", "scaled_dot", "cosine", "euclidean")
DTYPES = ("float32", "float64")
# Rows around the tile and a task, keys around a panel and a task.
SHAPES = [(1, 1), (5, 63), (6, 64), (7, 65), (13, 1000), (25, 1025), (485, 70), (1, 2100)]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_around_tiles_panels_and_tasks(metric, dtype, seed):
    rng = np.random.default_rng(seed)
    for rows, keys in SHAPES:
        for features in (1, 16, 33):
            query = rng.standard_normal((rows, features)).astype(dtype)
            key = rng.standard_normal((keys, features)).astype(dtype)
            for scale in (None, -1.7):
                size = oracle.score_size(
                    *map(oracle.as_float64, (query, key)), similarity=metric, scale=scale
                )
                actual = fastattn.similarity(query, key, metric=metric, scale=scale)
                expected = reference.similarity(query, key, metric=metric, scale=scale)
                # Difference, square, scale and its own rounding: up to five halves of an ulp.
                size = max(size, 2 * oracle.finite_max(expected))
                tolerance = tolerances.score_error(dtype, features, size)
                about = (rows, keys, features, scale)
                oracle.assert_close(actual, expected, tolerance, about=about)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.37, 0.5])
@pytest.mark.parametrize("features", [37, 128, 300])
def test_bits_depend_on_one_query_and_one_key(metric, dtype, scale, features, seed):
    """Also where the tile stores final scores: whole panels, and a scale that goes onto queries."""
    rng = np.random.default_rng(seed)
    query = rng.standard_normal((2, 491, features)).astype(dtype)
    key = rng.standard_normal((2, 1100, features)).astype(dtype)
    key[:, :491:2] = query[:, ::2]

    def scores(query, key, **options):
        return fastattn.similarity(query, key, metric=metric, scale=scale, **options)

    expected = scores(query, key, threads=1)
    oracle.assert_same_bits(scores(query, key, threads=2), expected)
    oracle.assert_same_bits(scores(query[:, 7:8], key), expected[:, 7:8])
    oracle.assert_same_bits(scores(query[1], key[1, 300:313]), expected[1, :, 300:313])
    oracle.assert_same_bits(
        scores(np.asfortranarray(query), np.asfortranarray(key)[:, ::-1]), expected[..., ::-1]
    )
    out = np.empty((1100, 2, 491), dtype).transpose(1, 2, 0)
    oracle.assert_same_bits(scores(query, key, out=out), expected)
    if metric in ("dot", "scaled_dot", "euclidean"):
        # (q, k) and (k, q) are the same chain of products.
        oracle.assert_same_bits(scores(key, query).swapaxes(-1, -2), expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_are_those_of_attention(metric, dtype, seed):
    """With one key a row's log-sum-exp is its score."""
    rng = np.random.default_rng(seed)
    query = rng.standard_normal((50, 1, 29)).astype(dtype)
    key = rng.standard_normal((50, 1, 29)).astype(dtype)
    for scale in (1.0, 0.25, -2.0):
        _, lse = fastattn.attention(
            query, key, key, similarity=metric, scale=scale, return_lse=True
        )
        scores = fastattn.similarity(query, key, metric=metric, scale=scale)
        oracle.assert_same_bits(scores[..., 0], lse, about=scale)


def test_nothing_between_the_rows_of_a_result_is_written(seed):
    rng = np.random.default_rng(seed)
    for rows, keys in SHAPES:
        query, key = rng.standard_normal((rows, 9)), rng.standard_normal((keys, 9))
        memory = np.full((rows + 2, keys + 20), 7.0)
        out = memory[1:-1, 3 : keys + 3]
        fastattn.similarity(query, key, out=out)
        out[...] = 7.0
        assert (memory == 7.0).all()


@pytest.mark.parametrize("metric", ["dot", "cosine", "euclidean"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1.3])
@pytest.mark.parametrize("features", [21, 150])
def test_a_result_stored_past_the_caches_has_the_same_bits(
    metric, dtype, scale, features, seed, monkeypatch
):
    """From any place of a cache line, and nothing beside it is written."""
    rng = np.random.default_rng(seed)
    line = 64 // np.dtype(dtype).itemsize
    query = rng.standard_normal((3, 491, features)).astype(dtype)
    key = rng.standard_normal((5 * line * 16 + 3, features)).astype(dtype)
    key[:200] = query[0, :200]
    expected = fastattn.similarity(query, key, metric=metric, scale=scale)
    monkeypatch.setattr(stages, "_STREAM_BYTES", 0)
    width = 6 * line * 16
    streamed = 0
    for start in (0, 1, line // 2, line - 1, line):
        memory = np.full((3, 491, width), 7.0, dtype)
        out = memory[:, :, start : start + len(key)]
        streamed += stages._is_streamed(out)
        fastattn.similarity(query, key, metric=metric, scale=scale, out=out)
        oracle.assert_same_bits(out, expected, about=start)
        out[...] = 7.0
        assert (memory == 7.0).all()
    assert streamed == 5

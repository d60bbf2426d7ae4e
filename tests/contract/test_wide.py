"""Sums over many features: right however many, the same bits on every way through the kernels."""

import accuracy
import numpy as np
import oracle
import pytest
import strategies
import tolerances

import fastattn

METRICS = ("dot", "scaled_dot", "cosine", "euclidean")
# Around the ends of chains (64 features) and of runs (1024).
WIDTHS = (63, 64, 65, 128, 129, 768, 1023, 1024, 1025, 2049, 4100)


def alike(rng, rows, features, dtype):
    """Vectors whose features are all one number: their roundings add up instead of cancelling."""
    column = rng.uniform(0.5, 2, (rows, 1)).astype(dtype)
    return np.ascontiguousarray(np.broadcast_to(column, (rows, features)))


@pytest.mark.parametrize("features", [768, 150_528, 1_000_000])
def test_squares_of_a_million_equal_differences(exact_backend, features):
    query, key = np.ones((1, features), np.float32), np.full((1, features), 1.1, np.float32)
    right = -features * (float(np.float32(1.1)) - 1) ** 2
    near = tolerances.wide_error(np.float32, "euclidean", -right)
    score = fastattn.similarity(query, key, metric="euclidean", backend=exact_backend)
    assert abs(score[0, 0] - right) <= near, (float(score[0, 0]), right)
    right = features * float(np.float32(1.1))
    near = tolerances.wide_error(np.float32, "dot", right)
    score = fastattn.similarity(query, key, metric="dot", backend=exact_backend)
    assert abs(score[0, 0] - right) <= near, (float(score[0, 0]), right)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_of_one_sign_keep_their_digits(exact_backend, metric, dtype, seed):
    rng = np.random.default_rng(seed)
    for features in (*WIDTHS, 40_000):
        for draw in (alike, lambda rng, *shape: rng.random(shape[:2]).astype(shape[2])):
            query, key = draw(rng, 7, features, dtype), draw(rng, 18, features, dtype)
            scores = fastattn.similarity(
                query, key, metric=metric, scale=1.0, backend=exact_backend
            )
            right = accuracy.compare_plainly(
                *(x.astype(np.longdouble) for x in (query, key)), metric
            ).astype(np.float64)
            error = tolerances.wide_error(dtype, metric, abs(right).max())
            oracle.assert_close(scores, right, error, about=(metric, dtype, features, draw))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_every_way_to_a_score_sums_alike(exact_backend, metric, dtype, seed):
    """Many rows and one, keys as they lie and transposed, gathered, cached: one score, one sum."""
    rng = np.random.default_rng(seed)
    run = {"similarity": metric, "return_lse": True, "backend": exact_backend}
    for features in (129, 272, 1032, 1040, 2064):
        query = rng.standard_normal((1, 30, features)).astype(strategies.dtype_of(dtype))
        key = rng.standard_normal((1, 77, features)).astype(query.dtype)
        value = rng.standard_normal((1, 77, 64)).astype(query.dtype)
        expected = fastattn.attention(query, key, value, **run)
        table = np.ascontiguousarray(key[0][::-1])
        for rows in (slice(0, 1), slice(3, 6), slice(7, 30)):
            some, about = query[:, rows], (features, rows)
            want = [part[:, rows] for part in expected]
            ways = {
                "as they lie": fastattn.attention(some, key, value, **run),
                "transposed": fastattn.attention(
                    some, strategies.lay_out(key, "transposed"), value, **run
                ),
                "gathered": gathered(some[0], table, value[0][::-1], **run),
                "cached": cached(some, key, value, **run),
            }
            for way, results in ways.items():
                for ours, theirs in zip(results, want, strict=True):
                    oracle.assert_same_bits(
                        np.reshape(ours, theirs.shape), theirs, about=(way, about)
                    )


def gathered(query, table, values, **run):
    count = len(table)
    return fastattn.attention_varlen(
        query,
        table,
        np.ascontiguousarray(values),
        [0, len(query)],
        [0, count],
        key_indices=np.arange(count)[::-1].copy(),
        **run,
    )


def cached(query, key, value, **run):
    cache = fastattn.KVCache((), 1, key.shape[-1], value_dim=value.shape[-1], dtype=key.dtype)
    cache.append(key, value)
    return cache.attend(query, causal=False, **run)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_overflows_is_infinite_and_nan_is_nan(exact_backend, dtype):
    huge = np.sqrt(np.finfo(dtype).max)
    for features in (200, 1100, 2500):
        key = np.ones((3, features), dtype)
        key[0], key[1, features // 2] = huge, np.nan
        query = np.full((2, features), 2 * huge, dtype)
        run = {"backend": exact_backend}
        scores = fastattn.similarity(query, key, metric="dot", scale=1.0, **run)
        assert (scores[:, 0] == np.inf).all()
        assert np.isnan(scores[:, 1]).all()
        assert np.isfinite(scores[:, 2]).all()
        scores = fastattn.similarity(query, key[::2] - key[::2], metric="euclidean", **run)
        assert (scores == -np.inf).all()
        # A score of minus infinity hides its key.
        query[0] = 1
        output, lse = fastattn.attention(
            query,
            key[[2, 2]],
            np.ones((2, 1), dtype),
            similarity="euclidean",
            return_lse=True,
            **run,
        )
        assert lse[0] == pytest.approx(np.log(2))
        assert lse[1] == -np.inf
        assert output[:, 0].tolist() == [1, 0]


# --- symmetry, and cosines that are some -------------------------------------------------------


def sets_of_vectors(rng, dtype):
    """Vectors of ordinary, tiny and huge length, among them zero, and some that are alike."""
    for features in (1, 2, 3, 17, 64, 130, 700, 1030, 2500):
        x = rng.standard_normal((23, features))
        x[7], x[8], x[9] = 0, x[10], -x[10]
        yield x.astype(dtype)
        yield np.abs(x).astype(dtype)
        if np.dtype(dtype).itemsize > 2:
            x *= 10.0 ** rng.integers(-30, 30, (23, 1))
            yield x.astype(dtype)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_similarity_of_a_set_with_itself_is_symmetric(exact_backend, metric, dtype, seed):
    rng = np.random.default_rng(seed)
    for x in sets_of_vectors(rng, strategies.dtype_of(dtype)):
        for scale in (None, 0.3, -5.0, 64.0):
            scores = fastattn.similarity(x, x, metric=metric, scale=scale, backend=exact_backend)
            same = (scores == scores.T) | (np.isnan(scores) & np.isnan(scores.T))
            assert same.all(), (x.shape, scale, np.argwhere(~same)[0])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_cosines_stay_within_one(backend, dtype, seed):
    """In whole panels of keys, whose scores the tile bounds, and beside them."""
    rng = np.random.default_rng(seed)
    for x in sets_of_vectors(rng, strategies.dtype_of(dtype)):
        many = np.concatenate([x] * 6)
        scores = fastattn.similarity(x, many, backend=backend)
        assert np.abs(scores.astype(np.float64)).max() <= 1, x.shape
        assert not np.isnan(np.arccos(scores.astype(np.float64))).any()
        for scale in (0.3, -0.25, 96.0):
            scaled = fastattn.similarity(x, many, scale=scale, backend=backend).astype(np.float64)
            most = abs(float(np.asarray(scale, oracle.compute_dtype(x)).astype(x.dtype)))
            assert np.abs(scaled).max() <= most, (x.shape, scale)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_scipy_takes_one_minus_the_similarity_of_a_set(exact_backend, dtype, seed):
    distance = pytest.importorskip("scipy.spatial.distance")
    x = np.random.default_rng(seed).standard_normal((60, 50)).astype(dtype)
    apart = 1 - fastattn.similarity(x, x, backend=exact_backend)
    assert distance.squareform(apart, checks=False).shape == (60 * 59 // 2,)
    np.fill_diagonal(apart, 0)
    assert distance.squareform(apart).shape == (60 * 59 // 2,)


@pytest.mark.parametrize("scale", [1.0, 0.7, 16.0, -3.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_operation_scores_a_cosine_above_its_scale(backend, dtype, scale, seed):
    """With one key each, the log-sum-exp is the score."""
    rng = np.random.default_rng(seed)
    run = {"similarity": "cosine", "scale": scale, "return_lse": True, "backend": backend}
    x = rng.standard_normal((300, 1, 3)).astype(dtype)
    y = x if scale > 0 else -x
    most = abs(float(np.dtype(dtype).type(scale)))
    splits = np.arange(301)
    cache = fastattn.KVCache((300,), 1, 3, dtype=dtype)
    cache.append(y[:, None], y[:, None])
    state = fastattn.attention_state(x, y, y, similarity="cosine", scale=scale, backend=backend)
    found = {
        "attention": fastattn.attention(x, y, y, **run),
        "varlen": fastattn.attention_varlen(x[:, 0], y[:, 0], y[:, 0], splits, splits, **run),
        "cache": cache.attend(x[:, None], **run),
        "state": state.finish(return_lse=True),
    }
    for name, (_, lse) in found.items():
        assert lse.max() <= most, name
        assert lse.min() >= most * (1 - 8 * np.finfo(dtype).eps), name


def test_a_nan_among_features_is_no_cosine_of_one(backend):
    x = np.ones((3, 5), np.float32)
    x[1, 2] = np.nan
    scores = fastattn.similarity(x, x, backend=backend)
    assert np.isnan(scores[1]).all()
    assert np.isnan(scores[:, 1]).all()
    assert (scores[::2, ::2] <= 1).all()

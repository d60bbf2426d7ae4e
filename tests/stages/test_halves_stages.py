"""float16 and bfloat16 through the stages on their own: in, out, rounded once."""

import itertools

import numpy as np
import oracle
import pytest
import strategies
import tolerances
from halves import ANY, SMALL, exact_backends_only, operands

import fastattn
from fastattn import reference
from fastattn._core import kept
from fastattn._engine import normalize


@pytest.mark.parametrize(
    "layout", ["contiguous", "transposed", "negative", "strided", "byteswapped"]
)
@pytest.mark.parametrize("dtype", SMALL)
def test_stages(backend, dtype, layout, seed):
    query, key, value = (strategies.lay_out(x, layout) for x in operands(dtype, "odd", seed))
    plain_dtype = strategies.dtype_of(dtype)
    for metric in ("dot", "scaled_dot", "cosine", "euclidean"):
        scores = fastattn.similarity(query, key, metric=metric)
        expected = reference.similarity(query, key, metric=metric)
        size = oracle.score_size(*map(oracle.as_float64, (query, key)), similarity=metric)
        error = tolerances.score_error("float32", query.shape[-1], size)
        assert scores.dtype == plain_dtype
        error = error + tolerances.small_error(dtype, expected)
        oracle.assert_close(scores, expected, error, about=metric)
    for name, axis in itertools.product(("softmax", "log_softmax", "logsumexp"), (-1, 1, (0, 2))):
        actual = getattr(fastattn, name)(key, axis)
        expected = np.asarray(getattr(reference, name)(key, axis))
        error = tolerances.softmax_error("float32", oracle.finite_max(key))
        assert actual.dtype == plain_dtype
        error = error + tolerances.small_error(dtype, expected)
        oracle.assert_close(actual, expected, error, about=(name, axis))
    weights = fastattn.softmax(fastattn.similarity(query, key))
    for reduce in (True, False):
        actual = fastattn.fuse(weights, value, reduce=reduce)
        expected = reference.fuse(weights, value, reduce=reduce)
        size = oracle.finite_max(reference.fuse(weights, abs(value.astype(float))))
        error = tolerances.fuse_error("float32", key.shape[-2], size)
        assert actual.dtype == plain_dtype
        error = error + tolerances.small_error(dtype, expected)
        oracle.assert_close(actual, expected, error, about=reduce)


@pytest.mark.parametrize("dtype", SMALL)
def test_what_overflows_is_infinite(backend, dtype):
    dtype = strategies.dtype_of(dtype)
    big = np.full((1, 4), 3e4 if dtype == np.float16 else 2e38).astype(dtype)
    assert (fastattn.fuse(np.ones((1, 1), dtype) * dtype.type(4), big) == np.inf).all()
    scores = fastattn.similarity(big, -big, metric="dot")
    assert scores.dtype == dtype
    assert (scores == -np.inf).all()


@pytest.mark.parametrize("dtype", SMALL)
def test_every_number_comes_back(backend, dtype):
    """Fused with the weight 1: every one of the 65536, NaN as NaN."""
    numbers = np.arange(2**16, dtype=np.uint16).view(strategies.dtype_of(dtype)).reshape(1, -1)
    oracle.assert_same_bits(fastattn.fuse(np.ones((1, 1), numbers.dtype), numbers), numbers)


# --- bits: those of float32, rounded --------------------------------------------------------------

FAMILY = ("softmax", "log_softmax", "logsumexp")
# Around the sixteen lanes, rows side by side and a segment.
LENGTHS = (1, 3, 7, 8, 15, 16, 17, 31, 32, 33, 50, 65, 513, 1100)


def assert_rounded(function, *arrays, **options):
    """A call on halves gives what it gives on the same numbers in float32, rounded."""
    wide = function(*(x.astype(np.float32) for x in arrays), **options)
    expected = np.asarray(wide).astype(arrays[0].dtype.newbyteorder("="))
    actual = np.asarray(function(*arrays, **options))
    oracle.assert_same_bits(actual, expected)
    if actual.ndim:
        out = np.full((*actual.shape, 2), 7, actual.dtype)
        function(*arrays, out=out[..., 0], **options)
        oracle.assert_same_bits(out[..., 0], expected)
        assert (out[..., 1] == 7).all()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("dtype", SMALL)
def test_softmax_is_that_of_float32_rounded(backend, dtype, chunked, monkeypatch, seed):
    exact_backends_only(backend)
    if chunked:  # as only huge rows are
        kept.clear()
        monkeypatch.setattr(normalize, "_BLOCK_BYTES", 1 << 11)
        monkeypatch.setattr(normalize, "_CHUNK_BYTES", 1 << 11)
    rng = np.random.default_rng(seed)
    for keys, rows in itertools.product(LENGTHS, (1, 5, 70)):
        x = (rng.standard_normal((rows, keys)) * 3).astype(strategies.dtype_of(dtype))
        x[0, ::3] = -np.inf
        x[-1, -1] = np.nan if keys % 2 else x[-1, -1]
        for name, axis in itertools.product(FAMILY, (0, 1)):
            function = getattr(fastattn, name)
            assert_rounded(function, x, axis=axis)
            assert_rounded(function, np.asfortranarray(x)[::-1], axis=axis, scale=0.3)


@pytest.mark.parametrize("mask_dtype", [*ANY, "bool"])
@pytest.mark.parametrize("dtype", SMALL)
def test_softmax_with_masks_is_that_of_float32_rounded(backend, dtype, mask_dtype, seed):
    exact_backends_only(backend)
    rng = np.random.default_rng(seed)
    for keys, axis in itertools.product((9, 50, 600), (0, 1)):
        x = rng.standard_normal((33, keys)).astype(strategies.dtype_of(dtype))
        mask = rng.standard_normal((33, keys))
        mask[rng.random(mask.shape) < 0.2] = -np.inf
        mask[4] = -np.inf
        mask = np.isfinite(mask) if mask_dtype == "bool" else mask
        for name in FAMILY:
            mask = mask.astype(strategies.dtype_of(mask_dtype))
            assert_rounded(getattr(fastattn, name), x, axis=axis, mask=mask)


@pytest.mark.parametrize("dtype", SMALL)
def test_softmax_in_place(backend, dtype, seed):
    for shape, axis in itertools.product([(70, 9), (70, 50), (3, 600)], (0, 1)):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal(shape).astype(strategies.dtype_of(dtype))
        expected = fastattn.softmax(x, axis)
        assert fastattn.softmax(x, axis, out=x) is x
        oracle.assert_same_bits(x, expected)


@pytest.mark.parametrize("dtype", SMALL)
def test_products_are_those_of_float32_rounded(backend, dtype, seed):
    exact_backends_only(backend)
    rng = np.random.default_rng(seed)
    dtype = strategies.dtype_of(dtype)
    for rows, keys, features in [(1, 1, 1), (7, 15, 7), (6, 80, 8), (50, 300, 33), (3, 700, 64)]:
        query, key, value = (
            rng.standard_normal((2, n, features)).astype(dtype) for n in (rows, keys, keys)
        )
        for metric in ("dot", "cosine", "euclidean"):
            assert_rounded(fastattn.similarity, query, key, metric=metric, scale=0.7)
        weights = rng.random((2, rows, keys)).astype(dtype)
        for reduce in (True, False):
            assert_rounded(fastattn.fuse, weights, value, reduce=reduce)


@pytest.mark.parametrize(("one", "other"), list(itertools.product(ANY, repeat=2)))
def test_stages_promote_as_numpy_says(backend, one, other, seed):
    query, key, _ = operands("float32", "odd", seed)
    query, key = query.astype(strategies.dtype_of(one)), key.astype(strategies.dtype_of(other))
    wide = "float64" if "float64" in (one, other) else "float32"
    expected = one if one == other else wide
    scores = fastattn.similarity(query, key)
    assert scores.dtype == expected
    assert fastattn.fuse(scores.astype(query.dtype), key).dtype == expected
    assert fastattn.similarity(query, key.astype(int)).dtype == np.float64


@pytest.mark.parametrize("lse_dtype", [*ANY, "int64"])
@pytest.mark.parametrize("dtype", SMALL)
def test_merged_results_have_the_dtype_of_the_parts(backend, dtype, lse_dtype, seed):
    rng = np.random.default_rng(seed)
    outputs = rng.standard_normal((3, 5, 40)).astype(strategies.dtype_of(dtype))
    lses = (rng.standard_normal((3, 5)) * 3).astype(strategies.dtype_of(lse_dtype))
    expected, expected_lse = reference.merge_states(outputs, lses)
    output, lse = fastattn.merge_states(outputs, lses)
    wide = lse_dtype in ("float64", "int64")
    assert output.dtype == ("float64" if wide else dtype)
    assert lse.dtype == ("float64" if wide else lse_dtype)
    error = tolerances.small_error(dtype, expected) + 1e-6
    oracle.assert_close(output, expected, error)
    error = tolerances.small_error(lse_dtype, expected_lse) if lse_dtype in SMALL else 0
    oracle.assert_close(lse, expected_lse, error + 1e-6)

"""Every edge that the contract names, one test each, on every backend."""

import warnings

import numpy as np
import oracle
import pytest
import strategies

import fastattn

DTYPES = ("float32", "float64")
# A lone row takes another path through the plan than many do, and a second segment is folded.
SIZES = [(1, 3), (7, 65), (26, 600)]


def arrays(dtype, rows, keys, features=8, value_features=5, seed=3):
    rng = np.random.default_rng(seed)
    shapes = ((2, rows, features), (2, keys, features), (2, keys, value_features))
    return tuple(strategies.draw(rng, shape, dtype) for shape in shapes)


def attend(*operands, **options):
    return fastattn.attention(*operands, **options, return_lse=True, return_weights=True)


def check(*operands, **options):
    oracle.attention(*operands, **options).check(*attend(*operands, **options), about=options)


# --- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "key", "value"),
    [
        ((5, 3), (9, 4), (9, 2)),
        ((5, 4), (9, 3), (9, 2)),
        ((5, 3), (9, 3), (8, 2)),
        ((5, 3), (8, 3), (9, 2)),
        ((2, 5, 3), (3, 9, 3), (3, 9, 2)),
        ((3, 5, 3), (3, 9, 3), (2, 9, 2)),
        ((5, 3), (9, 3), (9,)),
        ((5, 3), (3,), (3, 2)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(backend, query, key, value):
    """Whichever of the two is larger; the text shows all three shapes."""
    with pytest.raises(ValueError, match="query") as error:
        fastattn.attention(np.zeros(query), np.zeros(key), np.zeros(value))
    for shape in (query, key, value):
        assert str(shape) in str(error.value)


# --- nothing there -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_keys_give_zeros(backend, dtype):
    query, key, value = arrays(dtype, 7, 0)
    output, lse, weights = attend(query, key, value)
    assert output.shape == (2, 7, 5)
    assert not output.any()
    assert (lse == -np.inf).all()
    assert weights.shape == (2, 7, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("empty", ["rows", "batch", "values", "everything"])
def test_empty_results_have_the_right_shape(backend, dtype, empty):
    query, key, value = arrays(dtype, 7, 9)
    if empty == "rows":
        query = query[:, :0]
    elif empty == "batch":
        query, key, value = query[:0], key[:0], value[:0]
    elif empty == "values":
        value = value[..., :0]
    else:
        query, key, value = query[:0, :0], key[:0, :0], value[:0, :0, :0]
    output, lse, weights = attend(query, key, value)
    assert output.shape == (*query.shape[:-1], value.shape[-1])
    assert lse.shape == query.shape[:-1]
    assert weights.shape == (*query.shape[:-1], key.shape[-2])
    assert {output.dtype, lse.dtype, weights.dtype} == {np.dtype(dtype)}
    check(query, key, value)


@pytest.mark.parametrize("similarity", ["dot", "scaled_dot", "cosine", "euclidean"])
def test_no_features_give_the_mean_of_the_visible_values(backend, similarity):
    query, key, value = arrays("float32", 7, 65, features=0)
    output = fastattn.attention(query, key, value, similarity=similarity, key_lengths=33)
    np.testing.assert_allclose(
        output,
        np.broadcast_to(value[:, None, :33].mean(axis=2), output.shape),
        rtol=2e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "keys"), SIZES)
@pytest.mark.parametrize("how", ["bool", "float", "lengths", "causal", "window", "between"])
def test_empty_rows_are_zero_with_lse_minus_infinity(backend, dtype, rows, keys, how):
    """Decided from what is visible: NaN everywhere in keys and values changes nothing."""
    query, key, value = arrays(dtype, rows, keys)
    options = {
        "bool": {"mask": np.zeros((rows, keys), bool)},
        "float": {"mask": np.full((rows, keys), -np.inf, dtype)},
        "lengths": {"key_lengths": 0},
        "causal": {"causal": True, "query_offset": -rows},
        "window": {"window": (2, 2), "query_offset": keys + 5},
        "between": {"causal": True, "window": (None, 0), "query_offset": -(2**40)},
    }[how]
    for poison in (None, np.nan, np.inf):
        if poison is not None:
            key, value = np.full_like(key, poison), np.full_like(value, poison)
        output, lse, weights = attend(query, key, value, **options)
        assert not output.any()
        assert (lse == -np.inf).all()
        assert not weights.any()


def test_one_empty_row_among_others(backend):
    query, key, value = arrays("float32", 26, 600)
    mask = np.ones((26, 600), bool)
    mask[13] = False
    check(query, key, value, mask=mask)


@pytest.mark.parametrize("offset", [-30, -25, -3, 0, 1, 40, 599, 600, 700])
def test_causal_offsets_of_any_sign(backend, offset):
    check(*arrays("float32", 26, 600), causal=True, query_offset=offset)


@pytest.mark.parametrize("window", [(0, 0), (None, 0), (0, None), (1, 5), (2**40, 2**40), (64, 0)])
def test_windows_are_inclusive_on_both_sides(backend, window):
    check(*arrays("float32", 26, 600), window=window, query_offset=570)
    check(*arrays("float32", 26, 130), window=window)


def test_bottom_right_counts_from_each_length(backend):
    lengths = np.array([3, 65])
    check(*arrays("float32", 7, 65), causal="bottom_right", key_lengths=lengths)


# --- NaN and inf ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "keys"), SIZES)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["key", "value", "both"])
def test_hidden_contents_never_reach_the_result(backend, dtype, rows, keys, poison, where):
    query, key, value = arrays(dtype, rows, keys)
    rng = np.random.default_rng(11)
    mask = rng.random((rows, keys)) < 0.7
    hidden = rng.random(keys) < 0.3
    mask[:, hidden] = False
    expected = attend(query, key, value, mask=mask)
    for operand, name in ((key, "key"), (value, "value")):
        if where in (name, "both"):
            operand[:, hidden] = poison
    for actual, clean in zip(attend(query, key, value, mask=mask), expected, strict=True):
        assert np.array_equal(actual, clean)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "keys"), SIZES)
@pytest.mark.parametrize("operand", ["query", "key", "value"])
def test_nan_reaches_exactly_the_rows_that_see_it(backend, dtype, rows, keys, operand):
    query, key, value = arrays(dtype, rows, keys)
    mask = np.random.default_rng(5).random((2, rows, keys)) < 0.6
    mask[..., 0] = True
    place = {"query": rows // 2, "key": keys // 2, "value": keys - 1}[operand]
    {"query": query, "key": key, "value": value}[operand][0, place, 1] = np.nan
    output, lse, weights = attend(query, key, value, mask=mask)
    expected = np.zeros((2, rows), bool)
    expected[0] = np.arange(rows) == place if operand == "query" else mask[0, :, place]
    touched = np.isnan(output).any(axis=-1)
    assert np.array_equal(touched, expected)
    if operand == "value":  # one feature of one value: one feature of the output
        assert not np.isnan(np.delete(output, 1, axis=-1)).any()
        assert not np.isnan(lse).any()
    else:
        assert np.array_equal(np.isnan(lse), expected)
        assert np.array_equal(np.isnan(weights), expected[..., None] & mask)
    check(query, key, value, mask=mask)


@pytest.mark.parametrize("dtype", DTYPES)
def test_float_mask_hides_whatever_the_score_is(backend, dtype):
    query, key, value = arrays(dtype, 7, 65)
    mask = np.zeros((7, 65), dtype)
    mask[:, 40] = -np.inf
    expected = attend(query, key, value, mask=mask)
    key[:, 40, 0], value[:, 40] = np.nan, np.nan
    for actual, clean in zip(attend(query, key, value, mask=mask), expected, strict=True):
        assert np.array_equal(actual, clean)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "keys"), SIZES)
def test_score_of_minus_infinity_hides_its_key(backend, dtype, rows, keys):
    """Wherever it comes from: here from a key of −inf under a positive query."""
    query, key, value = arrays(dtype, rows, keys)
    query[..., 0] = abs(query[..., 0]) + 1
    key[:, keys // 2, 0] = -np.inf
    mask = np.ones(keys, bool)
    mask[keys // 2] = False
    for clean, actual in zip(
        attend(query, np.where(np.isinf(key), 0, key), value, mask=mask),
        attend(query, key, value),
        strict=True,
    ):
        np.testing.assert_array_equal(actual, clean)
    value[:, keys // 2] = np.nan
    assert not np.isnan(fastattn.attention(query, key, value)).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "keys"), SIZES)
@pytest.mark.parametrize("source", ["key", "mask"])
def test_score_of_plus_infinity_gives_nan(backend, dtype, rows, keys, source):
    query, key, value = arrays(dtype, rows, keys)
    options = {}
    if source == "key":
        query[..., 0] = 1
        key[:, keys // 2, 0] = np.inf
    else:
        options["mask"] = np.zeros((rows, keys), dtype)
        options["mask"][:, keys // 2] = np.inf
    output, lse, weights = attend(query, key, value, **options)
    assert np.isnan(output).all()
    assert np.isnan(weights).all()
    assert np.isnan(lse).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_visible_values_are_summed(backend, dtype):
    query, key, value = arrays(dtype, 7, 65)
    value[0, 3, 0], value[0, 60, 1], value[0, 61, 1] = np.inf, -np.inf, np.inf
    output = fastattn.attention(query, key, value)
    assert (output[0, :, 0] == np.inf).all()
    assert np.isnan(output[0, :, 1]).all()
    assert np.isfinite(output[0, :, 2:]).all()
    assert np.isfinite(output[1]).all()


def test_nothing_warns(backend):
    query, key, value = arrays("float32", 7, 65)
    query[0], key[0, 3], value[0, 4] = 1e30, 1e30, np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attend(query, key, value, causal=True, query_offset=-3)
        fastattn.softmax(np.array([-np.inf, -np.inf]))


# --- the ends of the number range ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"scale": 3.7}, {"softcap": 2.0}, {"scale": -0.3}])
def test_finite_mask_of_the_smallest_number_survives(backend, dtype, options):
    """A row masked by finfo.min alone is the uniform mean; beside an open key it counts nothing."""
    query, key, value = arrays(dtype, 26, 600)
    mask = np.full((26, 600), np.finfo(dtype).min, dtype)
    mask[5:, :] = np.finfo(dtype).min / 2
    mask[1, 7] = 0
    output = fastattn.attention(query, key, value, mask=mask, **options)
    tolerance = 40 * np.finfo(dtype).eps * np.abs(value).max()
    np.testing.assert_allclose(output[:, 1], value[:, 7], atol=tolerance)
    mean = np.broadcast_to(value.mean(axis=1, keepdims=True), (2, 21, 5))
    np.testing.assert_allclose(output[:, 5:], mean, atol=tolerance)
    np.testing.assert_allclose(output[:, 0], mean[:, 0], atol=tolerance)


def test_finite_float64_mask_stays_finite_in_float32(backend):
    """Beyond float32's range it becomes the smallest float32, not −inf: it does not hide."""
    query, key, value = arrays("float32", 26, 600)
    for masked in (np.full((26, 600), np.finfo(np.float64).min), np.full((600, 1), -1e300).T):
        output, lse = fastattn.attention(query, key, value, mask=masked, return_lse=True)
        mean = np.broadcast_to(value.mean(axis=1, keepdims=True), output.shape)
        np.testing.assert_allclose(output, mean, atol=1e-5)
        assert np.isfinite(lse).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("power", [-100, -60, 60, 100])
def test_scale_keeps_products_in_range(backend, dtype, power):
    """Tiny queries and huge scales, or the other way round, are the same attention."""
    power *= 1 if dtype == "float32" else 8
    query, key, value = arrays(dtype, 26, 130)
    expected = attend(query, key, value, scale=0.3)
    scaled = np.ldexp(query, -power)
    for actual, plain in zip(
        attend(scaled, key, value, scale=float(np.ldexp(0.3, power))), expected, strict=True
    ):
        np.testing.assert_array_equal(actual, plain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_beyond_the_range_are_scaled_back(backend, dtype):
    """q·k overflows, scale·(q·k) does not."""
    query, key, value = arrays(dtype, 7, 65)
    expected = attend(query, key, value, scale=10.0)
    query_size, key_size, scale = (
        (1e30, 1e30, 1e-59) if dtype == "float32" else (1e200, 1e108, 1e-307)
    )
    query, key = query * query.dtype.type(query_size), key * key.dtype.type(key_size)
    for actual, plain in zip(attend(query, key, value, scale=scale), expected, strict=True):
        np.testing.assert_allclose(actual, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_cosine_of_any_length(backend, dtype, size):
    query, key, value = arrays(dtype, 26, 130)
    key[:, 5] = query[:, 3] = 0
    expected = attend(query, key, value, similarity="cosine")
    assert not fastattn.similarity(query, key, metric="cosine")[:, :, 5].any()
    factor = np.dtype(dtype).type(size)
    for actual, plain in zip(
        attend(query * factor, key / factor, value, similarity="cosine"), expected, strict=True
    ):
        np.testing.assert_allclose(actual, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_euclidean_distances_come_from_differences(backend, dtype):
    """Far from the origin q·q − 2q·k + k·k would have no digit left."""
    query, key, value = arrays(dtype, 26, 130)
    far = np.dtype(dtype).type(2**12 if dtype == "float32" else 2**30)
    query, key = query.round(1) + far, key.round(1) + far
    check(query, key, value, similarity="euclidean")
    wide = [x.astype(np.float64) for x in (query, key)]
    distances = ((wide[0][:, :, None] - wide[1][:, None]) ** 2).sum(axis=-1)
    actual = fastattn.similarity(query, key, metric="euclidean")
    np.testing.assert_allclose(actual, -distances, rtol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, -1.0, -1e-3, 1e-40])
def test_scales_that_are_not_positive_or_tiny(backend, dtype, scale):
    check(*arrays(dtype, 26, 600), scale=scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_do_not_overflow(backend, dtype):
    query, key, value = arrays(dtype, 26, 600)
    query *= 1000
    output, lse, weights = attend(query, key, value)
    assert np.isfinite(output).all()
    assert np.isfinite(lse).all()
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    check(query, key, value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_values_are_kept(backend, dtype):
    query, key, value = arrays(dtype, 7, 65)
    tiny = np.finfo(dtype).tiny / 8
    value[...] = tiny
    np.testing.assert_allclose(fastattn.attention(query, key, value), tiny, rtol=0.05)


def test_zero_strides_beyond_two_to_the_31_elements(backend):
    """Offsets are 64 bits wide: a broadcast batch claims more elements than an int32 counts."""
    if backend == "reference":
        pytest.skip("the reference computes every element of the batch")
    query = np.ones((1, 1, 4), np.float32)
    key = np.broadcast_to(np.ones((1, 1), np.float32), (2**16, 4))
    value = np.broadcast_to(np.float32(3.0), (2**16, 2**15 + 16))[:, :5]
    np.testing.assert_array_equal(fastattn.attention(query, key, value), np.full((1, 1, 5), 3.0))


# --- merging and the stages ----------------------------------------------------------------------


def test_merging_skips_parts_that_saw_nothing(backend):
    outputs = np.array([[[1.0], [np.nan]], [[3.0], [np.nan]]])
    lses = np.array([[0.0, -np.inf], [0.0, -np.inf]])
    output, lse = fastattn.merge_states(outputs, lses)
    np.testing.assert_allclose(output, [[2.0], [0.0]])
    np.testing.assert_allclose(lse, [np.log(2), -np.inf])


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("size", [1, 5, 17, 600])
def test_softmax_of_special_numbers_is_scipys(backend, name, special, size):
    import scipy.special

    x = np.zeros((3, size))
    x[0, size // 2], x[1, :] = special, special
    with np.errstate(invalid="ignore"):
        expected = getattr(scipy.special, name)(x, axis=-1)
    oracle.assert_close(getattr(fastattn, name)(x), np.asarray(expected), 1e-12)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_softmax_under_a_mask_of_nothing(backend, name):
    """A slice that the mask leaves empty has weights 0, whatever it holds."""
    x = np.full((2, 600), np.nan, np.float32)
    x[1] = 0
    mask = np.zeros((2, 600), bool)
    mask[1, 100] = True
    result = getattr(fastattn, name)(x, mask=mask)
    empty = 0.0 if name == "softmax" else -np.inf
    assert (result[0] == empty).all()
    if name == "logsumexp":
        assert result[1] == 0
    else:
        assert result[1, 100] == (1.0 if name == "softmax" else 0.0)
        assert (np.delete(result[1], 100) == empty).all()

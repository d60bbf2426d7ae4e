"""Every edge that the contract names, one test each, on every backend."""

import warnings

import numpy as np
import oracle
import pytest
from edges import DTYPES, SIZES, arrays, attend, check

import fastattn

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

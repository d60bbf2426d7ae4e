"""Logarithms of sums: to a few units of themselves where they are near 0, in every operation."""

import decimal
from decimal import Decimal

import numpy as np
import oracle
import pytest
import scipy.special
import strategies
import tolerances

import fastattn
from fastattn._core import kept

DTYPES = ("float32", "float64")
decimal.getcontext().prec = 60


def exact_lse(row, factors=None):
    """The log-sum-exp of a few numbers, and what its terms add up to in size."""
    factors = np.ones(len(row)) if factors is None else factors
    row, factors = ([Decimal(float(x)) for x in some] for some in (row, factors))
    return sum(b * x.exp() for b, x in zip(factors, row, strict=True)).ln()


def relative_error(actual, exact):
    return float(abs((Decimal(float(actual)) - exact) / exact))


# --- logsumexp and log_softmax -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rest_below_the_last_place_of_one_counts(backend, dtype):
    """[0, -d]: the result is e^-d, whatever stands between, on the lanes or across them."""
    for distance in (0.5, 1, 10, 17, 40, 80):
        exact = exact_lse([0, -distance])
        for keys in (2, 40, 700):
            row = np.full(keys, -np.inf, dtype)
            row[[0, -1]] = 0, -distance
            sides = np.tile(row, (20, 1))
            results = [fastattn.logsumexp(row), *fastattn.logsumexp(sides[::7])]
            results += [*fastattn.logsumexp(np.ascontiguousarray(sides.T), 0)[::7]]
            results += [-fastattn.log_softmax(row)[0]]
            results += [-fastattn.log_softmax(row, mask=row > -np.inf, scale=1.0)[0]]
            for actual in results:
                about = (distance, keys, actual)
                assert relative_error(actual, exact) <= tolerances.near_zero_error(dtype), about


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 64])
def test_equal_maxima_that_cancel_their_number(exact_backend, dtype, count):
    """[-log n] * n, and a rest: determined by the maximum and the rest, hence exact."""
    largest = -np.log(count).astype(dtype)
    for distance in (None, 6.0, 30.0) if count < 8 else (None,):
        row = np.full(count + 1, largest, dtype)
        row[-1] = -np.inf if distance is None else largest - np.dtype(dtype).type(distance)
        exact = exact_lse(row[np.isfinite(row)])
        error = abs(float(Decimal(float(fastattn.logsumexp(row))) - exact))
        assert error <= tolerances.cancelled_error(dtype, float(exact)), (distance, error)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", [2, 10, 300, 3000])
def test_never_off_by_more_than_twice_what_scipy_is(exact_backend, dtype, keys, seed):
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((60, keys))
    distributions = {
        "normal": normal,
        "peaked": 30 * normal,
        "around zero": np.where(np.arange(keys) == keys // 2, 0, -rng.uniform(1, 80, (60, keys))),
        "far up": 1000 + normal,
        "with ties": np.round(2 * normal),
        "normalised": normal - scipy.special.logsumexp(normal, axis=-1, keepdims=True),
    }
    for name, drawn in distributions.items():
        x = drawn.astype(dtype)
        wide = x.astype(np.longdouble)
        row_max = wide.max(axis=-1, keepdims=True)
        weights = np.exp(wide - row_max)
        count = (wide == row_max).sum(axis=-1)
        rest = np.where(wide == row_max, 0, weights).sum(axis=-1)
        truth = row_max[:, 0] + np.log(count.astype(np.longdouble)) + np.log1p(rest / count)
        logarithm = truth - row_max[:, 0]
        errors = [
            np.sqrt(np.mean(((result - truth) / np.maximum(abs(truth), abs(logarithm))) ** 2))
            for result in (fastattn.logsumexp(x), scipy.special.logsumexp(x, axis=-1))
        ]
        floor = tolerances.epsilon(dtype)
        assert errors[0] <= tolerances.SCIPY_RATIO * errors[1] + floor, (name, errors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_peaked_rows_are_the_same_every_way(exact_backend, dtype, seed, monkeypatch):
    """Across the lanes, along them and in chunks; neighbours that are flat, peaked or tied."""
    rng = np.random.default_rng(seed)
    for keys in (2, 20, 33, 600, 1600):
        x = rng.standard_normal((37, keys)).astype(dtype)
        x[::2] *= 40
        x[::5, -1] = x[::5].max(axis=-1)
        x[::7, 0] += 90
        for function in (fastattn.logsumexp, fastattn.log_softmax):
            expected = function(x, threads=1)
            across = function(np.ascontiguousarray(x.T), 0)
            oracle.assert_same_bits(across.T, expected, about=keys)
            for r in (0, 5, 7, 14, 36):
                oracle.assert_same_bits(function(x[r]), expected[r], about=(keys, r))
            with monkeypatch.context() as patch:
                kept.clear()
                patch.setattr("fastattn._engine.normalize._BLOCK_BYTES", 1 << 11)
                patch.setattr("fastattn._engine.normalize._CHUNK_BYTES", 1 << 11)
                oracle.assert_same_bits(function(x, threads=2), expected, about=keys)
                across = function(np.ascontiguousarray(x.T), 0)
                oracle.assert_same_bits(across.T, expected, about=keys)


# --- the log-sum-exp of attention ----------------------------------------------------------------


def scored(distances, dtype, axis=0):
    """Query, keys and values whose scores with scale 1 are 0 and minus these distances."""
    key = -np.concatenate([[0.0], np.ravel(distances)])[:, None]
    return np.ones((1, 1), dtype), key.astype(dtype), np.ones((len(key), 1), dtype)


def check_near_zero(lse, exact, dtype, distance, about=""):
    assert np.asarray(lse).dtype == dtype
    error = relative_error(lse, exact)
    assert error <= tolerances.near_zero_error(dtype, distance), (error, about)


DISTANCES = (1.0, 10.0, 17.0, 40.0, 80.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lse_of_attention_near_zero(backend, dtype):
    for distance in DISTANCES:
        for scale in (1.0, 0.7):
            arrays = scored([distance / scale] * 2, dtype)
            spread = float(arrays[1][1, 0]) * scale
            exact = exact_lse([0, spread, spread])
            options = {"similarity": "dot", "scale": scale, "return_lse": True}
            for name, more in (
                ("", {}),
                ("mask", {"mask": np.zeros(3)}),
                ("cap", {"softcap": 1e12}),
            ):
                lse = fastattn.attention(*arrays, **options, **more)[1][0]
                # A cap rounds each score several times, and so its distance.
                roundings = 4 if name == "cap" else 1
                check_near_zero(
                    lse, exact, dtype, roundings * distance + 4, (name, distance, scale)
                )


@pytest.mark.parametrize("dtype", DTYPES)
def test_lse_near_zero_with_sinks(backend, dtype):
    """The sink is the maximum, the rest, or as large as the largest score."""
    query, key, value = scored([30.0], dtype)
    options = {"similarity": "dot", "scale": 1.0, "return_lse": True}
    lse = fastattn.attention(query, key, value, sinks=-20.0, **options)[1][0]
    check_near_zero(lse, exact_lse([0, -30, -20]), dtype, 30, "rest")
    lse = fastattn.attention(query, key[1:], value[1:], sinks=0.0, **options)[1][0]
    check_near_zero(lse, exact_lse([0, -30]), dtype, 30, "maximum")
    lse = fastattn.attention(query, key, value, sinks=0.0, **options)[1][0]
    check_near_zero(lse, exact_lse([0, 0, -30]), dtype, 30, "beside")
    lse = fastattn.attention(query, key, value, sinks=-0.0, key_lengths=0, **options)[1][0]
    assert lse == 0
    state = fastattn.attention_state(query, key, value, similarity="dot", scale=1.0)
    lse = state.finish(sinks=-20.0, return_lse=True)[1][0]
    check_near_zero(lse, exact_lse([0, -30, -20]), dtype, 30, "state")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 700, 1299])
def test_lse_near_zero_over_segments_states_and_splits(exact_backend, dtype, place, seed):
    """The maximum in the first, second or third segment; the same bits every way."""
    rng = np.random.default_rng(seed)
    key = -rng.uniform(25, 60, (1300, 1)).astype(dtype)
    key[place] = 0
    value, query = np.ones((1300, 2), dtype), np.ones((1, 1), dtype)
    options = {"similarity": "dot", "scale": 1.0}
    exact = exact_lse(key[:, 0])
    _, lse = fastattn.attention(query, key, value, **options, return_lse=True, threads=1)
    check_near_zero(lse[0], exact, dtype, 60)
    again = fastattn.attention(query, key, value, **options, return_lse=True, threads=2)[1]
    oracle.assert_same_bits(again, lse, about="split")
    many = np.repeat(query, 30, axis=0)
    rows = fastattn.attention(many, key, value, **options, return_lse=True)[1]
    oracle.assert_same_bits(rows, np.repeat(lse, 30), about="rows")
    parts = [
        fastattn.attention_state(query, key[a:b], value[a:b], key_start=a, **options)
        for a, b in ((0, 512), (512, 1024), (1024, 1300))
    ]
    for merged in (
        parts[0].merge(parts[1]).merge(parts[2]),
        parts[0].merge(parts[1].merge(parts[2])),
    ):
        oracle.assert_same_bits(merged.finish(return_lse=True)[1], lse, about="merged")
    single = [part.finish(return_lse=True) for part in parts]
    joined = fastattn.merge_states(*zip(*single, strict=True))[1]
    check_near_zero(joined[0], exact, dtype, 70, "merge_states")
    ragged = fastattn.attention_varlen(
        query, key, value, [0, 1], [0, 1300], **options, return_lse=True
    )[1]
    oracle.assert_same_bits(ragged, lse, about="varlen")
    cache = fastattn.KVCache(1, heads=1, head_dim=1, value_dim=2, dtype=dtype)
    cache.append(key[None, None], value[None, None])
    cached = cache.attend(query[None, None], **options, causal=False, return_lse=True)[1]
    oracle.assert_same_bits(cached.ravel(), lse, about="cache")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_lse_of_halves_near_zero(backend, dtype):
    """Halves are exact here, and in pairs the weights of the log-sum-exp are not rounded."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    arrays = [x.astype(strategies.dtype_of(dtype)) for x in scored([12.0, 20.0], "float32")]
    lse = fastattn.attention(*arrays, similarity="dot", scale=1.0, return_lse=True)[1][0]
    check_near_zero(lse, exact_lse([0, -12, -20]), np.float32, 20)


def test_merged_logarithms_near_zero(backend):
    lses = np.array([[0.0, -np.inf], [-40.0, -np.inf], [-np.inf, 0.0]])
    output, lse = fastattn.merge_states(np.ones((3, 2, 1)), lses)
    check_near_zero(lse[0], exact_lse([0, -40]), np.float64, 0)
    assert lse[1] == 0
    assert (output == 1).all()


# --- factors -------------------------------------------------------------------------------------

INF, NAN = np.inf, np.nan
FACTORS = [
    ([0, 0], [1, -1]),
    ([0, 0, -1], [1, -1, 1]),
    ([1, 2], [1, -1]),
    ([1, 2], [0, 0]),
    ([1, 2, 3], [2, 0, 5]),
    ([0, -40], [1, -1]),
    ([0, -0.5, -700], [1, -1, 1]),
    ([0, 0, 0], [2, -1, -1]),
    ([1e5, 1e5, 1], [1, -0.5, 7]),
    ([INF, 0], [1, 1]),
    ([INF, 0], [0, 1]),
    ([INF, 0], [-1, 1]),
    ([INF, INF], [1, -1]),
    ([NAN, 0], [1, 1]),
    ([NAN, 0], [0, 1]),
    ([-INF, -INF], [1, 2]),
    ([-INF, 1], [1, -1]),
    ([0, 1], [INF, 1]),
    ([0, 1], [-INF, 1]),
    ([0, 0], [INF, -INF]),
    ([0, 1], [NAN, 1]),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("x", "b"), FACTORS, ids=str)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_factors_of_every_sign_as_scipy_has_them(backend, dtype, x, b):
    x, b = np.array(x, dtype), np.array(b, dtype)
    lse, sign = fastattn.logsumexp(x, b=b, return_sign=True)
    expected, expected_sign = scipy.special.logsumexp(x, b=b, return_sign=True)
    assert lse.dtype == sign.dtype == dtype
    tolerance = tolerances.near_zero_error(dtype, np.float64(1.0))
    np.testing.assert_allclose(lse, expected, rtol=tolerance, atol=0)
    np.testing.assert_array_equal(sign, expected_sign)
    alone = fastattn.logsumexp(x, b=b)
    np.testing.assert_array_equal(alone, NAN if expected_sign < 0 else lse)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "factors", "axis"),
    [
        ((3, 700), (3, 700), 1),
        ((3, 700), (700,), 1),
        ((3, 700), (3, 1), 0),
        ((3, 1, 5), (1, 4, 1), (0, 2)),
        ((70, 1200), (70, 1200), None),
        ((40, 20), (40, 20), 0),
        ((), (7,), 0),
        ((5, 0), (5, 0), 1),
    ],
    ids=str,
)
def test_factors_broadcast_over_any_axes(backend, dtype, shape, factors, axis, seed):
    rng = np.random.default_rng(seed)
    x = (5 * rng.standard_normal(shape)).astype(dtype)
    b = rng.standard_normal(factors).astype(dtype)
    b[rng.random(factors) < 0.2] = 0
    if b.size:
        b.flat[0] = 1.5
    for keepdims in (False, True):
        lse, sign = fastattn.logsumexp(x, axis, b=b, return_sign=True, keepdims=keepdims)
        expected = scipy.special.logsumexp(
            x.astype(np.float64), b=b.astype(np.float64), axis=axis, return_sign=True,
            keepdims=keepdims,
        )  # fmt: skip
        size = scipy.special.logsumexp(x.astype(np.float64), b=abs(b), axis=axis, keepdims=keepdims)
        size = np.where(np.isfinite(size), size, 0.0)
        # Where factors of both signs cancel, an error of their terms remains.
        lost = np.exp(size - np.where(np.isfinite(expected[0]), expected[0], size))
        tolerance = tolerances.softmax_error(dtype, oracle.finite_max(x)) * (1 + lost)
        oracle.assert_close(lse, np.asarray(expected[0]), tolerance)
        if x.size:  # SciPy gives nothing the sign -1
            np.testing.assert_array_equal(sign, expected[1])
        else:
            assert not sign.any()
    out = np.empty(lse.shape, dtype)
    assert fastattn.logsumexp(x, axis, b=b, keepdims=True, return_sign=True, out=out)[0] is out
    np.testing.assert_array_equal(out, lse)


@pytest.mark.parametrize(
    "b",
    [2, 2.5, np.float64(2), [1, 2, 3], np.array([1, 2, 3], "i1"), np.array([1, 0, 1], bool),
     np.array([1, 2, 3], "f2"), np.array([1, 2, 3], "f8"), np.array(3, "i8")],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4"])
def test_factors_take_part_in_the_dtype_as_in_scipy(backend, dtype, b):
    x = np.array([0, 1, 2], dtype)
    expected = scipy.special.logsumexp(x, b=b)
    actual = fastattn.logsumexp(x, b=b)
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(
        actual, expected, rtol=tolerances.FACTOR_ROUNDINGS * tolerances.epsilon(expected.dtype)
    )


def test_factors_with_scale_and_mask(backend, seed):
    rng = np.random.default_rng(seed)
    x, b = rng.standard_normal((2, 6, 130))
    mask = rng.random((6, 130)) < 0.5
    mask[2] = False
    b[4, ~mask[4]] = NAN  # hidden: never seen
    lse, sign = fastattn.logsumexp(x, b=b, scale=-2.0, mask=mask, return_sign=True)
    hidden = np.where(mask, b, 0.0)
    expected = scipy.special.logsumexp(-2 * x, b=hidden, axis=-1, return_sign=True)
    np.testing.assert_allclose(lse, expected[0], rtol=tolerances.FACTORS)
    np.testing.assert_array_equal(sign, expected[1])


def test_far_factors_of_other_rows_change_no_bit(backend):
    """Nor what is right of a row near 0; a far one's own power of two is rounded with its entry."""
    scale = 1 / 3
    row = np.array([-3.0, -1.5])
    row -= np.log(np.exp(row * scale).sum()) / scale
    alone = fastattn.logsumexp(row, b=[1.0, 1.0], scale=scale)
    exact = sum((Decimal(x) * Decimal(scale)).exp() for x in row.tolist()).ln()
    assert relative_error(alone, exact) < tolerances.FACTORS
    x, b = np.tile(row, (3, 1)), np.ones((3, 2))
    b[1, 1], b[2] = 1e-300, -(2.0**-300)
    lse, sign = fastattn.logsumexp(x, b=b, scale=scale, return_sign=True)
    assert lse[0] == alone
    assert sign.tolist() == [1, 1, -1]
    for i in (1, 2):
        assert lse[i] == fastattn.logsumexp(x[i], b=b[i], scale=scale, return_sign=True)[0]
        expected = scipy.special.logsumexp(x[i] * scale, b=b[i], return_sign=True)[0]
        np.testing.assert_allclose(lse[i], expected, rtol=tolerances.FACTORS)
    hidden = fastattn.logsumexp(x, b=b, scale=scale, mask=[[True], [False], [True]])
    assert hidden[0] == alone
    assert hidden[1] == -np.inf
    assert np.isnan(hidden[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_factors_depend_on_the_row_alone(exact_backend, dtype, seed):
    rng = np.random.default_rng(seed)
    for keys in (3, 40, 1300):
        x, b = rng.standard_normal((2, 9, keys)).astype(dtype)
        expected = fastattn.logsumexp(x, b=b, return_sign=True, threads=1)
        ways = [
            fastattn.logsumexp(x, b=b, return_sign=True, threads=2),
            fastattn.logsumexp(x.T.copy(), 0, b=b.T.copy(), return_sign=True),
            fastattn.logsumexp(x[:, ::-1], b=np.flip(b, 1), return_sign=True),
        ]
        for r in (0, 8):
            alone = fastattn.logsumexp(x[r], b=b[r], return_sign=True)
            for one, other in zip(alone, expected, strict=True):
                oracle.assert_same_bits(one, other[r], about=(keys, r))
        for one, other in zip(ways[:2], [expected] * 2, strict=True):
            oracle.assert_same_bits(one[0], other[0], about=keys)
            oracle.assert_same_bits(one[1], other[1], about=keys)


def test_signs_without_factors(backend):
    x = np.array([[0.0, -40.0], [-INF, -INF], [-1e5, -1e5], [NAN, 0.0], [INF, 0.0]])
    lse, sign = fastattn.logsumexp(x, return_sign=True)
    np.testing.assert_array_equal(lse, fastattn.logsumexp(x))
    np.testing.assert_array_equal(sign, [1, 0, 1, NAN, 1])
    lse, sign = fastattn.logsumexp(np.zeros((3, 0)), return_sign=True)
    assert (lse == -INF).all()
    assert not sign.any()


@pytest.mark.parametrize(
    ("b", "error", "text"),
    [
        (np.ones(3), ValueError, r"b of shape \(3,\).*\(2, 4\).*b\[:, None\]"),
        (1j, TypeError, "b of shape"),
        (["a"], TypeError, "b of shape"),
        (np.ma.masked_array([1.0, 2, 3, 4]), TypeError, "b is a masked array"),
    ],
    ids=str,
)
def test_factors_that_cannot_work(backend, b, error, text):
    with pytest.raises(error, match=text):
        fastattn.logsumexp(np.ones((2, 4)), b=b)


FAR_APART = [  # what is largest has a factor so small that others count as much, or more
    ("float32", [0, 140], [1e30, 1e-35]),
    ("float32", [0, 120], [1e38, 1e-30]),
    ("float32", [0, 105], [100, 1e-45]),
    ("float32", [0, 1], [1e-45, -3e-45]),
    ("float64", [0, 1000], [1e200, 1e-250]),
    ("float64", [0, 0], [1e308, 1e308]),
    ("float64", [0, 0], [5e-324, -1e-323]),
    ("float32", [0, 1], 1e-300),  # a Python number takes no part in the dtype
    ("float32", [0, 1], -1e39),
]


@pytest.mark.parametrize(("dtype", "row", "factors"), FAR_APART)
def test_factors_far_from_one_another(backend, dtype, row, factors):
    row = np.array(row, dtype)
    b = factors if isinstance(factors, float) else np.array(factors, dtype)
    terms = [
        Decimal(float(y)) * Decimal(float(x)).exp()
        for x, y in zip(row, np.broadcast_to(b, 2), strict=True)
    ]
    exact = abs(sum(terms)).ln()
    for x in (row, np.stack([row, row, row])):
        lse, sign = fastattn.logsumexp(x, b=b, return_sign=True)
        assert (sign == (1 if sum(terms) > 0 else -1)).all()
        for actual in np.ravel(lse):
            assert relative_error(actual, exact) <= tolerances.near_zero_error(dtype), actual

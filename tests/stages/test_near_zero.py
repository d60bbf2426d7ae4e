"""Log-sum-exps near 0 where a maximum and the logarithm of a sum, or factors, cancel."""

import decimal
from decimal import Decimal

import numpy as np
import oracle
import pytest
import strategies
import tolerances

import fastattn
from fastattn._core import kept
from fastattn._engine import normalize
from fastattn._engine.layouts import FIND_MAX, FIND_SUM, FINISH, LOOK_AGAIN

DTYPES = ("float32", "float64")
KEYS = (2, 3, 17, 40, 700, 1500)


def exact_lse(row, scale=1.0, bias=None, factors=None):
    """The logarithm of the size of a sum in sixty digits, of the very numbers given."""
    bias = np.zeros(len(row)) if bias is None else bias
    factors = np.ones(len(row)) if factors is None else factors
    total = Decimal(0)
    with decimal.localcontext(prec=60):
        for x, more, factor in zip(row, bias, factors, strict=True):
            if factor and more > -np.inf:
                score = Decimal(float(x)) * Decimal(scale) + Decimal(float(more))
                total += Decimal(float(factor)) * score.exp()
        return abs(total).ln()


def check(actual, exact, dtype, about=""):
    error = abs(float(Decimal(float(actual)) - exact))
    assert error <= tolerances.cancelled_error(dtype, float(exact)), (float(actual), exact, about)


def normalised(rng, rows, keys, dtype):
    """Rows of logarithms that add up to 1 but for their rounding; one peaked, one of equal ones."""
    x = 3 * rng.standard_normal((rows, keys))
    x[-1], x[-2, 0] = 0, 25
    x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_log_probabilities(exact_backend, dtype, seed):
    rng = np.random.default_rng(seed)
    for keys in KEYS:
        x = normalised(rng, 5, keys, dtype)
        for row, actual in zip(x, fastattn.logsumexp(x), strict=True):
            check(actual, exact_lse(row), dtype, keys)
    for actual in (fastattn.logsumexp(np.log([dtype_half(dtype)] * 2)),):
        assert abs(float(actual)) > 0
        check(actual, exact_lse(np.log([dtype_half(dtype)] * 2)), dtype)


def dtype_half(dtype):
    return np.dtype(dtype).type(0.5)


def test_the_reference_is_right_there(seed):
    rng = np.random.default_rng(seed)
    x, b = normalised(rng, 6, 9, "float64").reshape(2, 3, 9), rng.standard_normal((3, 9))
    mask = np.where(rng.random((2, 1, 9)) < 0.2, -np.inf, rng.standard_normal((2, 1, 9)))
    found = fastattn.reference.logsumexp(x, (1, 2))
    for part, actual in zip(x - found[:, None, None], found, strict=True):
        check(actual, exact_lse(part.ravel() + actual), "float64")
        check(fastattn.reference.logsumexp(part, None), exact_lse(part.ravel()), "float64")
    found, sign = fastattn.reference.logsumexp(x, b=b, scale=-0.7, mask=mask, return_sign=True)
    moved = np.where(np.isfinite(mask), mask - found[..., None], mask)
    again = fastattn.reference.logsumexp(x, b=b, scale=-0.7, mask=moved, return_sign=True)
    np.testing.assert_array_equal(again[1], sign)
    for i, j in np.ndindex(2, 3):
        exact = exact_lse(x[i, j], -0.7, moved[i, j], b[j])
        check(again[0][i, j], exact, "float64")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_scaled_and_masked(exact_backend, dtype, seed):
    """Neither the product with a scale nor the sum with a mask is rounded on the way."""
    rng = np.random.default_rng(seed)
    computed = np.float64 if dtype == "float64" else np.float32
    for scale in (1.0, -0.3, 7.0):
        for keys in (3, 40, 700):
            x = rng.standard_normal((3, keys)).astype(strategies.dtype_of(dtype))
            bias = rng.standard_normal((3, keys))
            bias[1, ::3] = -np.inf
            wide = np.exp(x.astype(np.float64) * scale + bias)
            bias = (bias - np.log(wide.sum(axis=-1, keepdims=True))).astype(computed)
            x[1, ::3] = np.nan  # hidden: never seen
            actual = fastattn.logsumexp(x, scale=scale, mask=bias)
            for r in range(3):
                seen = bias[r] > -np.inf
                if (x[r, seen].astype(np.float64) * scale + bias[r, seen]).max() > -0.1:
                    continue  # one score is nearly all, and was rounded
                exact = exact_lse(x[r, seen], scale, bias[r, seen])
                error = tolerances.cancelled_error(computed, float(exact))
                if tolerances.is_small(dtype):
                    error = error + tolerances.small_error(dtype, float(exact))
                assert abs(float(Decimal(float(actual[r])) - exact)) <= error, (scale, keys, r)
            where = rng.random((3, keys)) < 0.7
            where[:, 0] = True
            shifted = x[0].astype(computed)
            where[0] |= shifted.argmax() == np.arange(keys)
            shifted = shifted / np.dtype(computed).type(abs(scale))
            shifted -= np.log(np.exp(shifted.astype(np.float64) * scale)[where[0]].sum()) / scale
            actual = fastattn.logsumexp(shifted, scale=scale, mask=where[0])
            check(actual, exact_lse(shifted[where[0]], scale), computed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_that_cancel(exact_backend, dtype, seed):
    """Against the logarithm, or one another, or both; with either sign."""
    rng = np.random.default_rng(seed)
    for keys in (2, 5, 40, 700):
        x, b = rng.standard_normal((2, keys)).astype(dtype)
        b = b * 2.0 ** -rng.integers(0, 200)
        total = float((b * np.exp(x.astype(np.float64))).sum())
        x = (x - np.log(abs(total))).astype(dtype)
        for sign in (1.0, -1.0):
            lse, found = fastattn.logsumexp(x, b=sign * b, return_sign=True)
            assert found == sign * np.sign(total)
            assert abs(lse) < 1e-3
            exact = exact_lse(x, factors=sign * b)
            error = float(tolerances.near_zero_error(lse.dtype)) * abs(float(exact))
            error += tolerances.lost_of_factors(lse.dtype)
            assert abs(float(Decimal(float(lse)) - exact)) <= error, (keys, sign)
    for distance in (1e-3, 1e-9, 1e-14):
        row = np.array([0, distance])
        lse = fastattn.logsumexp(row, b=[2, -1])
        check(lse, exact_lse(row, factors=[2, -1]), "float64", distance)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_bits_of_cancelled_rows_are_the_same_every_way(exact_backend, dtype, seed, monkeypatch):
    """Beside rows that do not cancel; strided, turned, swapped, in chunks, on threads, into out."""
    rng = np.random.default_rng(seed)
    for keys in (2, 17, 40, 700, 1600):
        x = normalised(rng, 37, keys, dtype)
        x[::3] += 5
        x[4], x[5, 0], x[6, -1], x[7] = -np.inf, np.nan, np.inf, 0
        expected = fastattn.logsumexp(x, threads=1)
        apart = np.empty((37, 2 * keys), x.dtype)[:, ::2]
        apart[...] = x
        ways = {
            "across": fastattn.logsumexp(np.ascontiguousarray(x.T), 0),
            "apart": fastattn.logsumexp(apart),
            "swapped": fastattn.logsumexp(x.astype(x.dtype.newbyteorder())),
            "masked": fastattn.logsumexp(x, mask=np.ones(keys, bool)),
            "out": fastattn.logsumexp(x, out=np.empty(74, x.dtype)[::2]),
            "alone": np.array([fastattn.logsumexp(row) for row in x]),
        }
        with monkeypatch.context() as patch:
            kept.clear()
            patch.setattr("fastattn._engine.normalize._BLOCK_BYTES", 1 << 11)
            patch.setattr("fastattn._engine.normalize._CHUNK_BYTES", 1 << 11)
            patch.setattr("fastattn._engine.normalize._AGAIN_NUMBERS", 1 << 9)
            ways["chunks"] = fastattn.logsumexp(x, threads=2)
            ways["chunks across"] = fastattn.logsumexp(np.ascontiguousarray(x.T), 0)
        for way, actual in ways.items():
            oracle.assert_same_bits(actual, expected, about=(way, keys))


@pytest.mark.parametrize("rows", [1, 20])
def test_long_rows_are_gone_through_in_pieces(exact_backend, rows, seed, monkeypatch):
    """Between two of them Ctrl-C is seen, however long a row is."""
    x = normalised(np.random.default_rng(seed), max(rows, 2), 400_000 // rows, "float32")[:rows]
    seen, phase = [], normalize._phase

    def watch(plan, record, which, blocks, numbers, workers):
        words = (record.words[record.layout.word[name]] for name in ("first_again", "stop_again"))
        seen.append((which, numbers, *map(int, words)))
        return phase(plan, record, which, blocks, numbers, workers)

    monkeypatch.setattr(normalize, "_phase", watch)
    monkeypatch.setattr(normalize, "_AGAIN_NUMBERS", 1 << 14)
    monkeypatch.setattr(normalize, "_BLOCK_BYTES", 1 << 16)
    columns = np.asfortranarray(x)
    expected = fastattn.logsumexp(x + 5)  # nothing to look at again
    assert {which for which, *_ in seen} == {FIND_MAX, FIND_SUM, FINISH}
    assert (expected > 4).all()
    for scores in (x, columns):
        seen.clear()
        fastattn.logsumexp(scores)
        pieces = [one for one in seen if one[0] == LOOK_AGAIN]
        borders = [0, *(stop for *_, stop in pieces)]
        assert [first for _, _, first, _ in pieces] == borders[:-1]
        assert borders[-1] == x.shape[1]
        assert len(pieces) > 1
        assert max(numbers for _, numbers, *_ in pieces) <= 4 << 14


@pytest.mark.parametrize("dtype", DTYPES)
def test_merged_states_that_cancel(backend, dtype):
    lses = np.log(np.array([[0.25, 0.1], [0.75, 0.9]])).astype(dtype)
    _, lse = fastattn.merge_states(np.ones((2, 2, 1), dtype), lses)
    for column, actual in zip(lses.T, lse, strict=True):
        check(actual, exact_lse(column), dtype)

"""Real amounts: the closest to the weights that spend the budget, exact, whatever lies around."""

import math
from fractions import Fraction

import hypothesis
import numpy as np
import pytest
import scipy.optimize
from allocations import draw_bounds, draw_budget, draw_weights
from hypothesis import strategies as st
from pens import Pen

import fastattn
from fastattn.reference import proportional

LENGTHS = (1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 129)


def off_by(amounts, budget, left=0.0):
    """By how many last places of the budget the exact sum of the amounts misses it."""
    total = sum(map(Fraction, amounts.tolist()), Fraction(float(left)))
    return float(abs(total - Fraction(budget)) / Fraction(math.ulp(budget)))


def cases(rng, count):
    for turn in range(count):
        n = LENGTHS[turn % len(LENGTHS)] if turn % 3 else int(rng.integers(1, 9))
        budget = draw_budget(rng)
        yield draw_weights(rng, n), budget, *draw_bounds(rng, n, budget)


def test_amounts_are_the_exact_fractions_rounded(exact_backend, seed):
    """Against exact arithmetic; the sum is within one last place of the budget."""
    rng = np.random.default_rng(seed)
    capped = inexact = 0
    for weights, budget, lower, upper in cases(rng, 300):
        amounts, left = fastattn.allocate(
            weights, budget, lower=lower, upper=upper, on_unspent="keep"
        )
        exact = proportional(weights.tolist(), budget, lower.tolist(), upper.tolist())
        expected = np.array([float(amount) for amount in exact])
        # A pair of floats carries 100 bits: few amounts are so near the middle of two floats.
        inexact += not np.array_equal(amounts, expected)
        assert (np.abs(amounts - expected) <= np.spacing(np.maximum(amounts, expected))).all()
        assert off_by(amounts, budget, left) <= 1
        assert ((lower <= amounts) & (amounts <= upper)).all()
        capped += (amounts == upper).any() and left == 0
    assert capped > 30
    assert inexact <= 3


def test_amounts_minimise_relative_entropy(backend, seed):
    """An independent optimiser finds nothing closer to the weights."""
    rng = np.random.default_rng(seed)
    for _ in range(12):
        n = int(rng.integers(2, 7))
        weights, budget = rng.random(n) + 0.05, 3.0
        upper = rng.random(n) * 2 + 0.7
        upper *= max(1.0, 1.05 * budget / upper.sum())
        lower = rng.random(n) * 0.2
        share = weights / weights.sum() * budget

        def entropy(x, share=share):
            return float(np.sum(x * np.log(x / share) - x + share))

        start = np.clip(np.full(n, budget / n), lower + 1e-6, upper)
        found = scipy.optimize.minimize(
            entropy,
            start,
            jac=lambda x, share=share: np.log(x / share),
            bounds=list(zip(np.maximum(lower, 1e-9), upper, strict=True)),
            constraints={"type": "eq", "fun": lambda x: x.sum() - 3.0, "jac": np.ones_like},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        amounts = fastattn.allocate(weights, budget, lower=lower, upper=upper)
        assert found.success
        np.testing.assert_allclose(amounts, found.x, rtol=2e-6, atol=2e-6)
        assert entropy(amounts) <= found.fun + 1e-12


@pytest.mark.parametrize("whole", [False, True])
def test_bits_depend_on_the_row_alone(exact_backend, seed, whole):
    """Not on other rows, the order of receivers, strides, dtype of storage, axis or threads."""
    rng = np.random.default_rng(seed)
    for n in LENGTHS:
        rows = 37
        weights = np.exp(rng.normal(0, 3, (rows, n))).astype(np.float32)
        budget = rng.integers(20, 60, rows).astype(float)
        upper = np.ceil(rng.random((rows, n)) * 120 / n) + 1
        lower = np.minimum(np.floor(rng.random((rows, n)) * 20 / n), upper)
        options = {"on_unspent": "keep"} | ({"unit": 1, "method": "dhondt"} if whole else {})
        amounts, left = fastattn.allocate(weights, budget, lower=lower, upper=upper, **options)

        def same(*arrays, amounts=amounts, left=left):
            return np.array_equal(arrays[0], amounts) and np.array_equal(arrays[1], left)

        for threads in (1, 2):
            again = fastattn.allocate(
                weights, budget, lower=lower, upper=upper, threads=threads, **options
            )
            assert same(*again)
        alone = [
            fastattn.allocate(w, b, lower=low, upper=cap, **options)
            for w, b, low, cap in zip(weights, budget, lower, upper, strict=True)
        ]
        assert same(*map(np.array, zip(*alone, strict=True)))
        turned, rest = fastattn.allocate(
            np.asfortranarray(weights.astype(">f8")).T,
            budget,
            lower=lower.T,
            upper=upper.T,
            axis=0,
            **options,
        )
        assert same(turned.T, rest)
        order = rng.permutation(n)
        moved, rest = fastattn.allocate(
            weights[:, ::-1][:, ::-1][:, order],
            budget,
            lower=lower[:, order],
            upper=upper[:, order],
            **options,
        )
        if not whole:
            assert same(moved[:, np.argsort(order)], rest)
        hidden = np.insert(weights, n // 2, np.nan, axis=1)
        where = np.insert(np.ones(n, bool), n // 2, False)
        bounds = {
            "lower": np.insert(lower, n // 2, np.nan, axis=1),
            "upper": np.insert(upper, n // 2, -1, axis=1),
        }
        kept, rest = fastattn.allocate(hidden, budget, where=where, **bounds, **options)
        assert same(np.delete(kept, n // 2, axis=1), rest)
        assert (kept[:, n // 2] == 0).all()


@pytest.mark.parametrize("whole", [False, True])
def test_backends_agree_bit_for_bit(seed, whole):
    from conftest import EXACT

    if len(EXACT) < 2:
        pytest.skip("one backend alone")
    rng = np.random.default_rng(seed)
    for weights, budget, lower, upper in cases(rng, 150):
        options = {"upper": upper, "lower": lower, "on_unspent": "keep"}
        if whole:
            budget = float(rng.integers(0, 99))
            options = {"unit": 1, "method": "huntington_hill", "on_unspent": "keep"}
        one, other = (fastattn.allocate(weights, budget, backend=name, **options) for name in EXACT)
        assert np.array_equal(one[0], other[0])
        assert one[1] == other[1]


def test_simple_cases(backend):
    allocate = fastattn.allocate
    assert np.array_equal(allocate([1, 3], 8), [2, 6])
    assert np.array_equal(allocate([1, 3], 8, upper=[9, 5]), [3, 5])
    assert np.array_equal(allocate([1, 3], 8, lower=[3, 0]), [3, 5])
    # Who has no weight has the lower bound, and nothing more.
    assert np.array_equal(allocate([0, 1, 1], 8, lower=[2, 0, 0]), [2, 3, 3])
    assert np.array_equal(allocate([0, 0], 4, lower=[1, 3]), [1, 3])
    assert np.array_equal(allocate([1, 2], 0), [0, 0])
    # Caps that spend the budget but for a rounding spend it.
    assert np.array_equal(allocate([1, 1, 1], 1.0, upper=[0.1, 0.2, 0.7]), [0.1, 0.2, 0.7])
    amounts, left = allocate([1, 1], 10, upper=[1, 2], on_unspent="keep")
    assert np.array_equal(amounts, [1, 2])
    assert left == 7
    assert allocate(np.ones((0, 3)), 1).shape == (0, 3)
    assert allocate(np.ones((3, 0)), 0).shape == (3, 0)
    assert (
        allocate(np.ones((2, 3, 4)), np.ones((2, 4)), axis=1).sum(axis=1).tolist() == [[1] * 4] * 2
    )
    weights, lower = np.ones((2, 3)), np.zeros((2, 3))
    weights.flags.writeable = lower.flags.writeable = False
    assert allocate(weights, [1, 2], lower=lower, upper=1).shape == (2, 3)


@pytest.mark.parametrize("options", [{}, {"unit": 1}, {"unit": 0.25}])
def test_out_has_the_amounts_and_may_be_an_operand(backend, options):
    dtype = np.int64 if options.get("unit") == 1 else np.float64
    weights = np.random.default_rng(0).integers(1, 9, (4, 5, 6)).astype(dtype)
    for axis in (-1, 0, np.int64(1)):
        shape = np.delete(weights.shape, axis)
        budget = np.arange(np.prod(shape)).reshape(shape)
        amounts = fastattn.allocate(weights, budget, axis=axis, **options)
        assert amounts.dtype == dtype
        assert amounts.flags.c_contiguous
        np.testing.assert_allclose(amounts.sum(axis=axis), budget)
        aside = np.full((4, 5, 13), 7, dtype)
        kept, left = fastattn.allocate(
            weights, budget, axis=axis, on_unspent="keep", out=aside[..., ::-2][..., :6], **options
        )
        assert kept.base is aside
        assert np.array_equal(kept, amounts)
        assert (aside[..., 1::2] == 7).all()
        assert left.shape == budget.shape
        own = weights.copy()
        assert fastattn.allocate(own, budget, axis=axis, out=own, **options) is own
        assert np.array_equal(own, amounts)
        swapped = np.empty(weights.shape, np.dtype(dtype).newbyteorder())
        fastattn.allocate(weights, budget, axis=axis, out=swapped, **options)
        assert np.array_equal(swapped, amounts)


# Weights below 1e-300 of the largest count as that much, which is all they share.
numbers = st.just(0.0) | st.floats(1e-100, 1e6)


@st.composite
def rows(draw):
    n = draw(st.integers(1, 12))
    column = st.lists(numbers, min_size=n, max_size=n).map(np.array)
    return draw(column), draw(numbers), draw(column)


@hypothesis.given(rows(), st.floats(1, 2))
def test_more_budget_or_weight_takes_nothing_away(row, growth):
    """Monotone in the budget, and in a receiver's own weight, to the last place."""
    weights, budget, upper = row
    options = {"upper": upper, "on_unspent": "keep"}
    amounts, left = fastattn.allocate(weights, budget, **options)
    assert off_by(amounts, budget, left) <= 1 or left > 0
    assert (amounts <= upper).all()
    more, _ = fastattn.allocate(weights, budget * growth, **options)
    assert (more >= amounts - np.spacing(amounts)).all()
    heavier = weights.copy()
    heavier[0] *= growth
    own, _ = fastattn.allocate(heavier, budget, **options)
    assert own[0] >= amounts[0] - np.spacing(amounts[0])
    assert (own[1:] <= amounts[1:] + np.spacing(amounts[1:])).all()


@hypothesis.given(rows(), rows(), st.randoms(use_true_random=False))
def test_neither_order_nor_batch_changes_a_bit(row, other, random):
    """Receivers in another order, beside another row, as a column of a matrix."""
    weights, budget, upper = row
    n = len(weights)
    alone, left = fastattn.allocate(weights, budget, upper=upper, on_unspent="keep")
    order = list(range(n))
    random.shuffle(order)
    beside = np.resize(other[0], n)
    both, rests = fastattn.allocate(
        np.stack([beside, weights[order]], axis=1),
        [other[1], budget],
        upper=np.stack([np.full(n, np.inf), upper[order]], axis=1),
        axis=0,
        on_unspent="keep",
    )
    assert np.array_equal(both[:, 1], alone[order])
    assert rests[1] == left


@pytest.mark.parametrize("whole", [False, True])
def test_nothing_outside_the_arrays_is_touched(exact_backend, whole):
    """Operands flush to memory that cannot be read; a stray read would end the process."""
    rng = np.random.default_rng(3)
    pens = [Pen(1 << 14) for _ in range(5)]
    options = {"unit": 1, "method": "sainte_lague"} if whole else {}
    for n in range(1, 40):
        at_end = n % 3 != 0
        plain = [rng.random((3, n)), np.full(3, 40.0), np.zeros((3, n)), np.full((3, n), 50.0)]
        weights, budget, lower, upper = (
            pen.hold(array, at_end) for pen, array in zip(pens, plain, strict=False)
        )
        where = pens[4].hold(rng.random((3, n)) < 0.9, at_end)
        where[:, 0] = True
        bounds = {"lower": lower, "upper": upper}
        for given in ({}, bounds, {**bounds, "where": where}):
            amounts = fastattn.allocate(weights, budget, **given, **options)
            assert np.allclose(amounts.sum(axis=1), 40)


def test_amounts_without_bounds_are_rounded_once(exact_backend, seed):
    """Against exact fractions, for rows that are handed out side by side."""
    rng = np.random.default_rng(seed)
    weights, budgets = rng.lognormal(size=(19, 37)), rng.uniform(1, 100, 19)
    amounts = fastattn.allocate(weights, budgets, backend=exact_backend)
    for row, budget, given in zip(weights, budgets, amounts, strict=True):
        share = Fraction(budget) / sum(map(Fraction, row))
        assert given.tolist() == [float(share * Fraction(weight)) for weight in row]

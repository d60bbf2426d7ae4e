"""Whole units: sums to the last unit, caps kept, equal claims by index, monotone methods."""

import itertools

import hypothesis
import numpy as np
import pytest
from allocations import DIVISOR_METHODS, METHODS, draw_bounds, draw_budget, draw_weights
from hypothesis import strategies as st

import fastattn
from fastattn.reference import apportion

by_method = pytest.mark.parametrize("method", METHODS)


@by_method
def test_units_are_those_of_exact_arithmetic(exact_backend, method, seed):
    """Handed out one by one in fractions, with bounds, ties and zeros: no difference."""
    rng = np.random.default_rng(seed)
    short = 0
    for turn in range(250):
        n = int(rng.integers(1, 9)) if turn % 4 else int(rng.integers(9, 40))
        weights, budget = draw_weights(rng, n), draw_budget(rng, whole=True)
        lower, upper = draw_bounds(rng, n, budget, whole=True)
        options = {"lower": lower, "upper": upper, "unit": 1, "method": method}
        given, left = fastattn.allocate(weights, budget, on_unspent="keep", **options)
        expected = apportion(
            weights.tolist(), int(budget), list(map(int, lower)), upper.tolist(), method
        )
        assert given.dtype == np.int64
        assert given.tolist() == expected, (weights, budget, lower, upper)
        assert given.sum() + left == budget
        assert ((lower <= given) & (given <= upper)).all()
        short += left > 0
    assert short > 5


@by_method
def test_no_other_whole_units_are_better(backend, method):
    """Brute force over every way to keep the caps, by what each method makes best."""
    rng = np.random.default_rng(7)
    for _ in range(40):
        n, units = int(rng.integers(2, 4)), int(rng.integers(1, 7))
        weights = rng.random(n) + 0.1
        upper = rng.integers(1, 6, n)
        if upper.sum() < units:
            continue
        real = fastattn.allocate(weights, units, upper=upper)
        given = fastattn.allocate(weights, units, upper=upper, unit=1, method=method)

        def cost(x, weights=weights, real=real):
            x = np.array(x, float)
            if method == "largest_remainder":
                return np.sum((x - real) ** 2)
            if method == "dhondt":  # the best off is as badly off as can be
                return sorted(x / weights, reverse=True)
            if method == "sainte_lague":  # Balinski and Young: the sum of squared deviations
                return np.sum(x**2 / weights)
            return np.sum(weights**2 / np.maximum(x, 1e-9))

        ways = [
            way
            for way in itertools.product(*(range(cap + 1) for cap in upper))
            if sum(way) == units
        ]
        best = min(ways, key=cost)
        assert np.allclose(cost(given), cost(best))


@by_method
def test_the_apportionment_package_agrees(backend, method):
    """Elections without caps, by an independent package."""
    package = pytest.importorskip("apportionment.methods")
    names = {"dhondt": "dhondt", "sainte_lague": "saintelague", "huntington_hill": "huntington"}
    rng = np.random.default_rng(11)
    for _ in range(60):
        n = int(rng.integers(2, 9))
        votes = rng.choice(100_000, n, replace=False) + 1
        seats = int(rng.integers(n, 60))
        given = fastattn.allocate(votes, seats, unit=1, method=method)
        assert given.tolist() == package.compute(names.get(method, method), votes.tolist(), seats)


def test_equal_claims_go_to_the_lower_index(backend):
    for method in METHODS:
        given = fastattn.allocate([1, 1, 1], 4, unit=1, method=method)
        assert given.tolist() == [2, 1, 1]
    # A third each: remainders that are equal as fractions and not as floats.
    assert fastattn.allocate([1, 1, 4], 2, unit=1).tolist() == [1, 0, 1]
    # As seen in reverse, where the tie goes to the other one.
    assert fastattn.allocate([4, 1, 1], 2, unit=1).tolist() == [2, 0, 0]
    # 1/3 against 2/6, and 3/7 against 6/14.
    assert fastattn.allocate([2, 6, 4], 4, unit=1, method="sainte_lague").tolist() == [1, 2, 1]


def test_units_of_any_size(backend):
    quarters = fastattn.allocate([3, 1, 1], 2.0, unit=0.25)
    assert quarters.dtype == np.float64
    assert quarters.tolist() == [1.25, 0.5, 0.25]
    # Divided in floats, 0.3 / 0.1 is below three, and 3 * 0.1 is above 0.3.
    assert fastattn.allocate([1, 1], 0.6, unit=0.1, upper=0.3).tolist() == [0.3, 0.3]
    assert fastattn.allocate([1, 2], 2.1, unit=0.7).tolist() == [0.7, 1.4]
    tens = fastattn.allocate([1, 2], 60, unit=10)
    assert tens.dtype == np.int64
    assert tens.tolist() == [20, 40]
    # Bounds between units are rounded inwards.
    assert fastattn.allocate([9, 1], 10, lower=[0, 1.5], upper=7.9, unit=1).tolist() == [7, 3]
    given, left = fastattn.allocate([[1, 1], [1, 1]], [5, 9.5], unit=2, upper=4, on_unspent="keep")
    assert given.tolist() == [[2, 2], [4, 4]]
    assert left.tolist() == [1, 1.5]


def test_amounts_are_the_floats_nearest_to_so_many_units(backend):
    """Cents are hundredths: 57 of them are 0.57, and not 57 * 0.01."""
    weights = np.arange(1, 400)
    cents = fastattn.allocate(weights, weights.sum(), unit=1)
    shares = fastattn.allocate(weights, weights.sum() / 100, unit=0.01)
    assert shares.tolist() == [cent / 100 for cent in cents.tolist()]
    assert (shares != cents * 0.01).any()
    _, left = fastattn.allocate([1, 1], 1.0, unit=0.01, upper=0.07, on_unspent="keep")
    assert left == 0.86


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_integers_are_counted_exactly(backend, dtype):
    """Where a float would have room for a few units between its neighbours, or for none."""
    for units, unit, more in ((6 * 10**14, 7, 4), (10**15, 1000, 3), (2, 2**53 + 1, 1)):
        budget = np.array([units * unit, units * unit + more], dtype)
        options = {"unit": unit, "upper": dtype(units * unit // 2), "on_unspent": "keep"}
        given, left = fastattn.allocate([[1, 1], [1, 1]], budget, **options)
        assert given.tolist() == [[units // 2 * unit] * 2] * 2
        assert left.tolist() == [0, more]
        assert left.dtype == np.int64
        with pytest.raises(ValueError, match=f"row 1 is {budget[1]}, which is no whole number"):
            fastattn.allocate([[1, 1], [1, 1]], budget, unit=unit)
        with pytest.raises(ValueError, match=f"take {units // 2 * unit} at most"):
            fastattn.allocate(
                [1, 0], budget[0], unit=unit, upper=dtype(units * unit - units // 2 * unit)
            )
    least = np.array([7 * 10**14 + 1, 0], dtype)
    assert fastattn.allocate([0, 1], 14 * 10**14, unit=7, lower=least).tolist() == [
        7 * 10**14 + 7,
        7 * 10**14 - 7,
    ]
    with pytest.raises(ValueError, match=r"is 600000000000000\.5, which is no whole number"):
        fastattn.allocate([1, 1], 6e14 + 0.5, unit=1)


PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23)
weights_ = st.lists(st.integers(1, 1000), min_size=2, max_size=8)


@pytest.mark.parametrize("method", DIVISOR_METHODS)
@hypothesis.given(weights_, st.integers(0, 80), st.integers(1, 9))
@hypothesis.settings(max_examples=60)
def test_divisor_methods_are_monotone(method, weights, budget, step):
    """House: a larger budget takes from nobody. Population: nor does a larger weight of one's own
    cost that receiver anything, or give any to the others."""
    caps = [1 + w % 30 for w in weights]
    options = {"unit": 1, "method": method, "upper": caps, "on_unspent": "keep"}
    given, left = fastattn.allocate(weights, budget, **options)
    assert given.sum() + left == budget
    assert left == max(0, budget - sum(caps))
    assert (given <= caps).all()
    more, _ = fastattn.allocate(weights, budget + step, **options)
    assert (more >= given).all()
    own, _ = fastattn.allocate([weights[0] + step, *weights[1:]], budget, **options)
    assert own[0] >= given[0]
    assert (own[1:] <= given[1:]).all()


@by_method
@hypothesis.given(st.lists(st.floats(0.01, 100), min_size=1, max_size=9), st.data())
@hypothesis.settings(max_examples=60)
def test_order_of_receivers_is_no_matter(method, weights, data):
    """But for equal claims, and weights that differ have none of those here."""
    order = data.draw(st.permutations(range(len(weights))))
    budget = data.draw(st.integers(0, 50))
    # Irrational multiples, so that no two claims are equal.
    weights = np.array(weights) * np.sqrt(np.array(PRIMES[: len(weights)]))
    given = fastattn.allocate(weights, budget, unit=1, method=method)
    moved = fastattn.allocate(weights[order], budget, unit=1, method=method)
    assert np.array_equal(moved, given[order])


@by_method
def test_quota_and_size(exact_backend, method, seed):
    """Budgets that no loop over units would end with; amounts stay near their share."""
    rng = np.random.default_rng(seed)
    weights = rng.random((50, 20)) + 0.01
    for budget in (10**3, 10**9, 10**15, 2**52):
        given = fastattn.allocate(weights, budget, unit=1, method=method)
        share = fastattn.allocate(weights, budget)
        assert (given.sum(axis=1) == budget).all()
        assert (np.abs(given - share) < (1 if method == "largest_remainder" else 20)).all()

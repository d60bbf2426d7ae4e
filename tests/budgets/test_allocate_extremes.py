"""Budgets, rows and weights of unusual size: sums, ties and claims stay exact."""

import math
from fractions import Fraction

import numpy as np
import pytest
from allocations import DIVISOR_METHODS, METHODS

import fastattn
from fastattn.reference import apportion


@pytest.mark.parametrize("tail", [2.0**-62, 0.9 * 2.0**-60, 2.0**-50])
def test_many_small_amounts_add_up(exact_backend, tail):
    """A million receivers below the last places of one: together they count."""
    n = 1 << 20
    weights = np.full(n, tail)
    weights[n // 3] = 1.0
    for bounds in ({}, {"upper": 0.75}):
        amounts = fastattn.allocate(weights, 1.0, **bounds)
        assert abs(math.fsum([*amounts, -1.0])) <= math.ulp(1.0)
        turned = fastattn.allocate(weights[::-1], 1.0, **bounds)
        assert np.array_equal(turned[::-1], amounts)


def test_equal_remainders_of_large_budgets_go_to_the_lower_index(exact_backend, seed):
    """Weights that are small integers have many ties, and theta is no float."""
    rng = np.random.default_rng(seed)
    ties = 0
    for _ in range(600):
        weights = rng.integers(1, 13, int(rng.integers(2, 9))).tolist()
        budget = int(rng.integers(2**30, 2 ** int(rng.integers(31, 53))))
        shares = [Fraction(budget * weight, sum(weights)) for weight in weights]
        expected = [math.floor(share) for share in shares]
        rests = [whole - share for whole, share in zip(expected, shares, strict=True)]
        for i in sorted(range(len(rests)), key=rests.__getitem__)[: budget - sum(expected)]:
            expected[i] += 1
        ties += len({*rests}) < len(rests)
        assert fastattn.allocate(weights, budget, unit=1).tolist() == expected
    assert ties > 100


@pytest.mark.parametrize("method", DIVISOR_METHODS)
@pytest.mark.parametrize("tail", [1e-150, 1e-162, 1e-250, 1e-290])
def test_claims_of_small_weights_are_told_apart(exact_backend, method, tail):
    """Caps leave the rest to weights whose squares are no floats."""
    for shares in ([1, 3], [3, 1, 2], [5, 4, 7, 6.5]):
        weights, upper = (
            [1.0, *(tail * share for share in shares)],
            [1.0] + [math.inf] * len(shares),
        )
        for budget in (8, 11, 12):
            given = fastattn.allocate(weights, budget, upper=upper, unit=1, method=method)
            expected = apportion(weights, budget, [0] * len(weights), upper, method)
            assert given.tolist() == expected


@pytest.mark.parametrize("budgets", [[5, 9], [5.0, 9.0], [5.0, 9.5]])
def test_dtype_of_what_is_left_is_that_of_the_budgets(backend, budgets):
    """Not a matter of the numbers themselves."""
    budgets = np.array(budgets)
    _, left = fastattn.allocate(np.ones((2, 2)), budgets, unit=1, upper=2, on_unspent="keep")
    assert left.dtype == budgets.dtype
    assert left.tolist() == (budgets - 4).tolist()


def test_budgets_of_more_units_than_floats_count(backend):
    for budget, unit in ((1e300, 1e-300), (2**53 + 1, 1), (2**60, 2)):
        with pytest.raises(ValueError, match="count in something larger"):
            fastattn.allocate([1.0, 2.0], budget, unit=unit)


@pytest.mark.parametrize("tail", [1e-30, 1e-100, 1e-250])
def test_one_receiver_of_nearly_all(exact_backend, tail, seed):
    """Its amount is its cap, or the budget, but for less than a last place."""
    rng = np.random.default_rng(seed)
    for n in (2, 3, 17):
        weights = tail * rng.random((100, n))
        weights[:, n // 2] = rng.random(100)
        budget = rng.random(100) * 10.0 ** rng.integers(-9, 9, 100)
        for options in ({"lower": 1e-30 * budget[:, None]}, {"upper": budget[:, None]}):
            for row, total in zip(
                fastattn.allocate(weights, budget, **options), budget, strict=True
            ):
                assert abs(math.fsum([*row, -total])) <= math.ulp(total)


def test_caps_and_least_amounts_next_to_shares(exact_backend, seed):
    """Who is at a bound may differ between two floats with none between them."""
    rng = np.random.default_rng(seed)
    spent = 0
    for n in (2, 3, 4, 6, 9, 17) * 4:
        share = 10 * rng.random((64, 1)) * rng.random((64, n)) ** rng.choice([1, 4, 40])
        lower, upper = (
            share
            * (rng.random(share.shape) < 0.6)
            * (1 + rng.integers(-2, 3, share.shape) * 2.0**-53)
            for _ in range(2)
        )
        upper[upper == 0] = math.inf
        lower = np.minimum(lower, upper)
        budget = share.sum(axis=1) * (1 + rng.integers(-2, 3, 64) * 2.0**-53)
        some = lower.sum(axis=1) <= budget
        bounds = {"lower": lower[some], "upper": upper[some]}
        amounts, left = fastattn.allocate(share[some], budget[some], **bounds, on_unspent="keep")
        assert ((bounds["lower"] <= amounts) & (amounts <= bounds["upper"])).all()
        for row, total in zip(amounts[left == 0], budget[some][left == 0], strict=True):
            assert abs(math.fsum([*row, -total])) <= math.ulp(total)
        spent += (left == 0).sum()
    assert spent > 1000


def test_theta_is_far_where_all_are_at_bounds(exact_backend):
    """The light one leaves its least amount many binary orders above the first guess."""
    for tail in (1e-9, 1e-120, 1e-290):
        amounts = fastattn.allocate([1, tail], 1.0, lower=[0, 0.25], upper=[0.5, 1])
        assert amounts.tolist() == [0.5, 0.5]


def test_the_last_unit_of_the_largest_budget_counts(backend):
    """As a part of the budget it is a last place, which real amounts may miss."""
    caps = [2**51, 2**51 - 1]
    given, left = fastattn.allocate([1, 1], 2**52, upper=caps, unit=1, on_unspent="keep")
    assert (given.tolist(), left) == (caps, 1)
    with pytest.raises(ValueError, match="below the sum of the lower bounds"):
        fastattn.allocate([1, 1], 2**52, lower=[2**51, 2**51 + 1], unit=1)


@pytest.mark.parametrize("method", [None, *METHODS])
def test_minus_zero_is_zero(backend, method, seed):
    """Wherever it stands: the bits of the same call with 0, and none of what comes out is -0.0."""
    rng = np.random.default_rng(seed)
    unit = {} if method is None else {"unit": 1, "method": method}
    rows, n = 48, 5
    numbers = {
        "weights": rng.integers(0, 3, (rows, n)).astype(float),
        "budget": rng.integers(0, 4, rows).astype(float),
        "lower": rng.integers(0, 2, (rows, n)) * (rng.random((rows, 1)) < 0.3),
        "upper": rng.integers(0, 5, (rows, n)).astype(float),
    }
    numbers["lower"] = np.minimum(numbers["lower"], numbers["upper"])
    numbers["budget"] = np.maximum(numbers["budget"], numbers["lower"].sum(axis=1))
    negative = {name: np.where(x == 0, -0.0, x) for name, x in numbers.items()}
    where = rng.random((rows, n)) < 0.8
    for names in (("budget",), ("lower",), ("upper",), ("weights",), tuple(numbers)):
        for layout in (np.asarray, np.float32, np.asfortranarray):
            # Without bounds too, which is another way through the kernels.
            for left_out in ((), ("lower", "upper")):
                for seen in ({}, {"where": where}):
                    kept = {name: x for name, x in numbers.items() if name not in left_out}
                    turned = {name: layout(negative[name]) for name in names if name in kept}
                    options = {**unit, **seen, "on_unspent": "keep", "backend": backend}
                    if "lower" in kept and seen:
                        kept["budget"] = kept["budget"] + n
                        turned.pop("budget", None)
                    expected = fastattn.allocate(**kept, **options)
                    found = fastattn.allocate(**(kept | turned), **options)
                    for one, other in zip(found, expected, strict=True):
                        assert np.array_equal(one, other)
                        assert not np.signbit(one).any()


def test_a_budget_of_minus_zero_spends_nothing(backend):
    options = {"upper": [1.9], "on_unspent": "keep", "backend": backend}
    given, left = fastattn.allocate([1.0], -0.0, **options)
    assert (given.tolist(), left) == ([0.0], 0.0)
    # One such row has no say in what becomes of the others.
    assert fastattn.allocate([[1.0, 3.0]] * 2, [8.0, -0.0], backend=backend).tolist() == [
        [2, 6],
        [0, 0],
    ]
    found = fastattn.attention_allocation(
        [[1.0], [2.0]], [[1.0], [1.0]], [[3.0], [-1.0]], budget=[-0.0, 2.0], upper=1.5,
        lower=-0.0, backend=backend,
    )  # fmt: skip
    assert found.allocation.tolist() == [[0, 0], [1, 1]]
    assert not np.signbit(found.allocation).any()
    assert found.output.tolist() == [[0], [2]]

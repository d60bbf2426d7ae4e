"""Shared allocation: within bounds, the most in total, fair, close to the weights; and its bits."""

import math

import children
import hypothesis
import numpy as np
import pytest
import scipy.optimize
import tolerances
from hypothesis import strategies as st
from interrupts import ANSWER_SECONDS, interrupt
from pens import Pen

import fastattn

# Rows around groups of four and blocks, columns around vectors.
SHAPES = ((1, 1), (1, 17), (3, 5), (4, 16), (5, 33), (17, 15), (70, 31), (513, 40))


def draw(rng, rows, columns, load=0.9, some=1.0, spread=1.0):
    """Weights, budgets and capacities; demand in all is `load` times what there is."""
    weights = np.exp(rng.normal(0, spread, (rows, columns))) * (rng.random((rows, columns)) < some)
    budgets, capacities = rng.random(rows), rng.random(columns)
    return weights, budgets, capacities * (budgets.sum() / capacities.sum() / load)


def assert_within(x, budgets, capacities):
    """No bound is exceeded by a sum that is rounded once."""
    assert (x >= 0).all()
    for amounts, bound in (*zip(x, budgets, strict=True), *zip(x.T, capacities, strict=True)):
        assert math.fsum(amounts) <= bound


def largest(weights, budgets, capacities, parts=None, row=None):
    """The largest total by linear programming.

    With `parts`: the largest part of its budget that every row whose entry is NaN can spend, the
    others spending theirs; with `row` too: the part that this row can spend beside all of them.
    """
    rows, columns = weights.shape
    of_rows = np.hstack([np.kron(np.eye(rows), np.ones(columns)), np.zeros((rows, 1))])
    of_columns = np.hstack([np.kron(np.ones(rows), np.eye(columns)), np.zeros((columns, 1))])
    gain = of_rows.sum(axis=0)
    sums, bounds = [of_rows, of_columns], [budgets, capacities]
    if parts is not None:
        same = -of_rows / budgets[:, None]
        same[:, -1] = np.isnan(parts) & (row is None)
        sums.append(same)
        bounds.append(-np.nan_to_num(parts) * (1 - 1e-7))
        gain = -same[row] if row is not None else np.eye(rows * columns + 1)[-1]
    sums, bounds = np.vstack(sums), np.concatenate(bounds)
    limited = np.isfinite(bounds)
    allowed = [(0, None if weight > 0 else 0) for weight in weights.ravel()]
    return -scipy.optimize.linprog(
        -gain, sums[limited], bounds[limited], bounds=[*allowed, (0, 1)]
    ).fun


def fairest(weights, budgets, capacities):
    """The parts of the budgets that are spent when the smallest is largest, then the next."""
    parts = np.full(len(budgets), np.nan)
    while np.isnan(parts).any():
        level = largest(weights, budgets, capacities, parts)
        beside = np.where(np.isnan(parts), level, parts)
        for row in np.flatnonzero(np.isnan(parts)):
            if largest(weights, budgets, capacities, beside, row) <= level + 1e-5:
                parts[row] = level
    return parts


def entropy(x, weights):
    """Relative entropy of an allocation to the weights."""
    used = x > 0
    return float((x[used] * np.log(x[used] / weights[used])).sum())


@pytest.mark.parametrize("load", [0.5, 0.95, 1.3])
def test_the_total_is_the_largest_there_is(backend, load, seed):
    rng = np.random.default_rng(seed)
    for some in (0.3, 0.6, 1.0):
        weights, budgets, capacities = draw(rng, 7, 6, load, some, 3.0)
        capacities[0] = np.inf if load < 1 else 0.0
        found = fastattn.allocate_shared(weights, budgets, capacities, backend=backend)
        assert found.converged
        assert found.violation <= 1e-9
        total = largest(weights, budgets, capacities)
        assert abs(found.allocation.sum() - total) <= tolerances.SHARED_TOTAL * total


def test_a_shortfall_is_shared_as_fairly_as_can_be(backend, seed):
    """Against linear programs, level by level; rows that spend all are the last level."""
    rng = np.random.default_rng(seed)
    levels = set()
    for load in (1.2, 2.0, 3.0):
        weights, budgets, capacities = draw(rng, 4, 3, load, 0.5)
        weights[:, 0] += rng.random(4) < 0.5
        weights[~weights.any(axis=1), 1] = 1.0
        found = fastattn.allocate_shared(weights, budgets, capacities, backend=backend)
        parts = found.allocation.sum(axis=1) / budgets
        assert np.abs(parts - fairest(weights, budgets, capacities)).max() <= 1e-6
        levels |= set(parts.round(6))
    assert len(levels) > 3


@pytest.mark.parametrize("load", [0.7, 0.95, 1.5])
def test_an_optimiser_finds_nothing_closer_to_the_weights(backend, load, seed):
    """Of all within the capacities in which each requester spends what it spends here."""
    rng = np.random.default_rng(seed)
    for _ in range(3):
        weights, budgets, capacities = draw(rng, 3, 4, load)
        x = fastattn.allocate_shared(weights, budgets, capacities, backend=backend).allocation
        spent = x.sum(axis=1)
        start = np.outer(spent, capacities / capacities.sum())
        best = scipy.optimize.minimize(
            lambda flat, weights=weights: entropy(flat.reshape(3, 4), weights),
            start.ravel(),
            jac=lambda flat, weights=weights: np.log(flat / weights.ravel()) + 1,
            bounds=[(1e-12, None)] * 12,
            constraints=[
                {"type": "eq", "fun": lambda flat, s=spent: flat.reshape(3, 4).sum(axis=1) - s},
                {"type": "ineq", "fun": lambda flat, c=capacities: c - flat.reshape(3, 4).sum(0)},
            ],
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert entropy(x, weights) <= best.fun + 1e-7
        assert np.abs(best.x.reshape(3, 4) - x).max() <= 1e-4


def test_closed_forms(backend):
    """No capacity used up: shares of the weights. One receiver: shares of the budgets."""
    free = fastattn.allocate_shared([[1, 3], [0, 2]], [8, 5], np.inf, backend=backend)
    assert free.allocation.tolist() == [[2, 6], [0, 5]]
    assert free.converged
    assert free.iterations <= 3
    short = fastattn.allocate_shared([[1.0], [7.0]], [10, 1], 5.5, backend=backend)
    np.testing.assert_allclose(short.allocation, [[5], [0.5]], rtol=1e-14)
    # The second can go elsewhere, so the first has all of the receiver.
    apart = fastattn.allocate_shared([[1, 0], [1, 1]], [6, 6], [5, 7], backend=backend)
    np.testing.assert_allclose(apart.allocation, [[5, 0], [0, 6]], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("weight", [1e-3, 1e-30, 1e-300])
def test_a_tiny_weight_grows_until_the_budget_is_spent(backend, weight):
    """What a round moves is next to nothing at first, which must not count as the end."""
    found = fastattn.allocate_shared([[1.0, weight]], 1.0, [0.25, np.inf], backend=backend)
    np.testing.assert_allclose(found.allocation, [[0.25, 0.75]], rtol=1e-8)
    assert found.converged
    assert 12 < found.iterations <= (1000 if backend == "reference" else 100)


def test_factors_that_would_overflow_go_into_the_weights(exact_backend):
    """Two rows' factors grow 60 orders a round, beside a tie."""
    weights = np.zeros((5, 4))
    weights[:2, 0] = 1, 2
    weights[2:, 1:] = np.triu(np.ones((3, 3)))
    found = fastattn.allocate_shared(
        weights, [2e60, 1e60, 1, 1, 1], [3, 1, 1, 1], tol=0, max_iter=11, backend=exact_backend
    )
    assert found.iterations == 11
    np.testing.assert_allclose(found.allocation[:2], [[2, 0, 0, 0], [1, 0, 0, 0]], rtol=1e-14)
    np.testing.assert_allclose(found.allocation[2:, 1:], np.eye(3), atol=0.4)


@pytest.mark.parametrize("size", [2.0**-1060, 1e-300, 1e300])
def test_budgets_of_any_size(exact_backend, size, seed):
    weights, budgets, capacities = draw(np.random.default_rng(seed), 5, 6)
    one = fastattn.allocate_shared(weights, budgets, capacities, backend=exact_backend)
    other = fastattn.allocate_shared(
        weights, budgets * size, capacities * size, backend=exact_backend
    )
    np.testing.assert_allclose(other.allocation / size, one.allocation, rtol=1e-6, atol=1e-3)
    assert other.allocation.sum() > 0.99 * budgets.sum() * size


def test_weights_of_any_size(exact_backend):
    weights = [[1e308, 1e308], [5e-324, 1.5e-323]]
    found = fastattn.allocate_shared(weights, [2, 4], [np.inf, np.inf], backend=exact_backend)
    assert found.allocation.tolist() == [[1, 1], [1, 3]]


@pytest.mark.parametrize("load", [0.4, 0.9, 1.6])
def test_one_requester_is_allocate_with_caps(exact_backend, load, seed):
    rng = np.random.default_rng(seed)
    for columns in (1, 5, 40):
        weights, budgets, capacities = draw(rng, 1, columns, load)
        alone, _ = fastattn.allocate(weights[0], budgets[0], upper=capacities, on_unspent="keep")
        shared = fastattn.allocate_shared(weights, budgets, capacities, backend=exact_backend)
        np.testing.assert_allclose(shared.allocation[0], alone, rtol=1e-7)


BOUNDS = st.sampled_from([0.0, 1.0, 2.0, 0.1]) | st.floats(0.01, 10)
WEIGHTS = st.sampled_from([0.0, 1.0, 2.0, 1e-9, 3e5]) | st.floats(1e-6, 10)


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=100)
def test_bounds_hold_whatever_comes(data):
    rows, columns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))

    def numbers(each, count):
        return np.array(data.draw(st.lists(each, min_size=count, max_size=count)))

    weights = numbers(WEIGHTS, rows * columns).reshape(rows, columns)
    budgets, capacities = numbers(BOUNDS, rows), numbers(BOUNDS | st.just(np.inf), columns)
    max_iter = data.draw(st.sampled_from([1, 2, 3, 2000]))
    found = fastattn.allocate_shared(weights, budgets, capacities, max_iter=max_iter)
    x = found.allocation
    assert_within(x, budgets, capacities)
    assert (x[(weights == 0) | (capacities == 0)] == 0).all()
    assert found.converged == (found.violation <= 1e-9)
    assert found.iterations <= max_iter
    assert found.converged or found.iterations == max_iter
    if found.converged:
        total = largest(weights, budgets, capacities)
        assert x.sum() >= total - 1e-7 * max(budgets.sum(), 1)  # which is the program's own


@pytest.mark.parametrize("load", [0.8, 1.5])
def test_bounds_hold_in_large_matrices(exact_backend, load, seed):
    weights, budgets, capacities = draw(np.random.default_rng(seed), 700, 90, load)
    for max_iter in (1, 7, 10_000):
        x = fastattn.allocate_shared(
            weights, budgets, capacities, max_iter=max_iter, backend=exact_backend
        ).allocation
        assert_within(x, budgets, capacities)
    full = x.sum(axis=1) / budgets if load < 1 else x.sum(axis=0) / capacities
    assert full.min() >= 1 - 1e-9


@pytest.mark.parametrize("load", [0.8, 1.5])
def test_scales_and_order_do_not_matter(exact_backend, load, seed):
    rng = np.random.default_rng(seed)
    weights, budgets, capacities = draw(rng, 37, 21, load)

    def share(weights, budgets=budgets, capacities=capacities):
        return fastattn.allocate_shared(weights, budgets, capacities, backend=exact_backend)

    found = share(weights).allocation
    powers = 2.0 ** rng.integers(-40, 40, (37, 1))
    assert np.array_equal(share(weights * powers).allocation, found)
    others = 10.0 ** rng.integers(-40, 40, (37, 1))
    np.testing.assert_allclose(share(weights * others).allocation, found, rtol=1e-10)
    rows, columns = rng.permutation(37), rng.permutation(21)
    mixed = share(weights[rows][:, columns], budgets[rows], capacities[columns]).allocation
    np.testing.assert_allclose(mixed, found[rows][:, columns], rtol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_bits_do_not_depend_on_threads_or_backend(exact_backend, shape, seed):
    rng = np.random.default_rng(seed)
    for load in (0.8, 1.5):
        operands = draw(rng, *shape, load, 0.8)
        expected = fastattn.allocate_shared(*operands, threads=1, max_iter=300)
        for threads in (1, 2):
            found = fastattn.allocate_shared(
                *operands, threads=threads, max_iter=300, backend=exact_backend
            )
            assert np.array_equal(found.allocation, expected.allocation)
            assert found.iterations == expected.iterations
            assert found.violation == expected.violation


def test_weights_are_read_as_they_are(exact_backend, seed):
    """Any layout and dtype gives the same bits, and nothing is written to or read beyond."""
    rng = np.random.default_rng(seed)
    pens = [[Pen(40 * 33 * 8), Pen(40 * 8), Pen(33 * 8)] for _ in range(2)]
    for rows, columns in SHAPES[:6]:
        operands = draw(rng, rows, columns)
        operands = tuple(x.astype(np.float32).astype(float) for x in operands)
        expected = fastattn.allocate_shared(*operands, backend=exact_backend).allocation
        layouts = (
            tuple(x.astype(np.float32) for x in operands),
            (np.asfortranarray(operands[0]), *operands[1:]),
            (operands[0][::-1].copy()[::-1], *operands[1:]),
            (operands[0].astype(">f8"), *operands[1:]),
            # Beside pages that cannot be read: one behind the last number, one before the first.
            *(
                tuple(pen.hold(x, at_end) for pen, x in zip(pens[at_end], operands, strict=True))
                for at_end in (True, False)
            ),
        )
        for weights, budgets, capacities in layouts:
            before = weights.copy()
            found = fastattn.allocate_shared(weights, budgets, capacities, backend=exact_backend)
            assert np.array_equal(found.allocation, expected)
            assert np.array_equal(weights, before)


def test_a_stop_before_the_end_is_reported(backend, seed):
    operands = draw(np.random.default_rng(seed), 20, 15, 0.99)
    for tol in (1e-9, 0.0):
        found = fastattn.allocate_shared(*operands, tol=tol, max_iter=3, backend=backend)
        assert (found.converged, found.iterations) == (False, 3)
        assert found.violation > 1e-9
    loose = fastattn.allocate_shared(*operands, tol=1.0, backend=backend)
    assert (loose.converged, loose.iterations) == (True, 1)


@pytest.mark.filterwarnings("error")
def test_budgets_and_capacities_of_any_size(exact_backend):
    """Capacities that overflow beside tiny budgets are as good as none."""
    for budget, capacities in ((3e-300, [1e300, 1e300]), (3e300, [1e301, np.inf]), (1e-310, 1.0)):
        found = fastattn.allocate_shared([[1, 2]], budget, capacities, backend=exact_backend)
        np.testing.assert_allclose(found.allocation, [[budget / 3, budget / 1.5]], rtol=1e-12)
        assert found.converged


def test_nothing_to_hand_out(backend):
    for shape in ((0, 0), (0, 3), (3, 0)):
        budgets, capacities = np.ones(shape[0]), np.ones(shape[1])
        found = fastattn.allocate_shared(np.ones(shape), budgets, capacities, backend=backend)
        assert found.allocation.shape == shape
        assert (found.converged, found.iterations, found.violation) == (True, 0, 0.0)
    for weights, budget, capacity in ((0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 0.0)):
        found = fastattn.allocate_shared(
            np.full((2, 3), weights), budget, capacity, backend=backend
        )
        assert found.allocation.tolist() == [[0, 0, 0], [0, 0, 0]]
        assert found.converged


@pytest.mark.parametrize(
    ("weights", "budgets", "capacities", "options", "words"),
    [
        ([[1, 2], [3, np.nan]], 1, 1, {}, "row 1, column 1 is nan"),
        ([[1, -2.5], [3, 1]], 1, 1, {}, "row 0, column 1 is -2.5"),
        ([[1, 1], [np.inf, 1]], 1, 1, {}, "row 1, column 0 is inf"),
        ([1.0, 2.0], 1, 1, {}, r"shape \(2,\).*`np.asarray\(weights\)\[None\]`"),
        ([[1.0, 2.0]], [1, 2], 1, {}, r"budgets have shape \(2,\).*one number for every requester"),
        ([[1.0, 2.0]], 1, [1, 2, 3], {}, r"capacities have shape \(3,\).*every receiver"),
        ([[1.0], [2.0]], [1, -1], 1, {}, "budgets for row 1 is -1.0"),
        ([[1.0], [2.0]], [1, np.inf], 1, {}, r"budgets for row 1 is inf.*`np.sum\(capacities\)`"),
        ([[1.0, 2.0]], 1, [1, np.nan], {}, "capacities for column 1 is nan"),
        ([[1.0]], 1, 1, {"tol": -1e-9}, "tol must not be negative"),
        ([[1.0]], 1, 1, {"tol": np.nan}, "tol must be a finite number"),
        ([[1.0]], 1, 1, {"max_iter": 0}, "max_iter must be an integer of at least 1, got 0"),
    ],
)
def test_errors_name_row_and_column(backend, weights, budgets, capacities, options, words):
    with pytest.raises(ValueError, match=words):
        fastattn.allocate_shared(weights, budgets, capacities, backend=backend, **options)


def test_complex_weights_and_parts_of_rounds_are_refused(backend):
    with pytest.raises(TypeError, match="complex"):
        fastattn.allocate_shared([[1j]], 1, 1, backend=backend)
    with pytest.raises(TypeError, match="max_iter must be an integer"):
        fastattn.allocate_shared([[1.0]], 1, 1, max_iter=2.5, backend=backend)


_LONG_SHARING = """
    import numpy as np
    import fastattn
    weights = {weights}
    expected = fastattn.allocate_shared(weights, 1, 2)
    print("started", flush=True)
    try:
        fastattn.allocate_shared(weights, 1, 1, tol=0, max_iter=10**9, threads={threads})
        print("never interrupted")
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    again = fastattn.allocate_shared(weights, 1, 2)
    assert np.array_equal(again.allocation, expected.allocation)
    print("works again")
"""


@pytest.mark.parametrize(
    ("threads", "weights"),
    [
        (1, "np.exp(np.random.default_rng(0).normal(size=(300, 300)))"),  # rounds never end
        (2, "np.exp(np.random.default_rng(0).normal(size=(300, 300)))"),
        (2, "np.triu(np.ones((300, 300)))"),  # seconds of searching
    ],
)
def test_ctrl_c_is_answered(exact_backend, threads, weights):
    code = _LONG_SHARING.format(threads=threads, weights=weights)
    child = children.start(code, FASTATTN_BACKEND=exact_backend, **children.WITH_KERNELS)
    seconds = interrupt(child)
    assert children.finish(child).strip() == "works again"
    assert seconds <= ANSWER_SECONDS, seconds

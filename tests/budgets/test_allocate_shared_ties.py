"""Shared allocation where supply just fits demand, or nearly: maximum flows in tens of rounds."""

import math
from collections import deque
from fractions import Fraction

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import tolerances
from test_allocate_shared import assert_within, fairest

import fastattn
from fastattn._engine import newton, saturation, shared
from fastattn.reference.shared_allocation import fair_parts

ROUNDS = 100


def whole_numbers(rng):
    """A small problem of whole numbers, full of ties; now and then no bound, nothing or nobody."""
    m, n = rng.integers(1, 7, 2)
    weights = rng.integers(0, 3, (m, n)) * (rng.random((m, n)) < 0.7)
    capacities = rng.integers(0, 7, n).astype(float)
    capacities[rng.random(n) < 0.15] = np.inf
    return weights.astype(float), rng.integers(0, 7, m).astype(float), capacities


def maximum_flow(weights, budgets, capacities):
    """The largest total of whole numbers, by SciPy."""
    m, n = weights.shape
    graph = np.zeros((m + n + 2, m + n + 2), np.int32)
    graph[0, 1 : m + 1] = budgets
    graph[1 : m + 1, m + 1 : -1] = (weights > 0) * budgets[:, None]
    graph[m + 1 : -1, -1] = np.minimum(capacities, budgets.sum())
    return scipy.sparse.csgraph.maximum_flow(
        scipy.sparse.csr_matrix(graph), 0, m + n + 1
    ).flow_value


def exact_flow(weights, budgets, capacities):
    """The largest total of any numbers, in fractions: Edmonds and Karp's way."""
    m, n = weights.shape
    supply = [Fraction(b) for b in budgets.tolist()]
    room = [sum(supply) if math.isinf(c) else Fraction(c) for c in capacities.tolist()]
    flow = {(i, j): Fraction(0) for i in range(m) for j in np.flatnonzero(weights[i])}
    while True:
        rows = {i: None for i in range(m) if supply[i] > 0}
        columns, queue, end = {}, deque(rows), None
        while queue and end is None:
            i = queue.popleft()
            for j in (j for j in range(n) if (i, j) in flow and j not in columns):
                columns[j] = i
                if room[j] > 0:
                    end = j
                    break
                for k in range(m):
                    if k not in rows and flow.get((k, j), 0) > 0:
                        rows[k] = j
                        queue.append(k)
        if end is None:
            return float(sum(flow.values()))
        forth, back, j = [], [], end
        while True:
            forth.append((columns[j], j))
            i, j = columns[j], rows[columns[j]]
            if j is None:
                break
            back.append((i, j))
        amount = min(supply[i], room[end], *(flow[cell] for cell in back))
        supply[i], room[end] = supply[i] - amount, room[end] - amount
        for cell in forth:
            flow[cell] += amount
        for cell in back:
            flow[cell] -= amount


def assert_closest(x, weights, capacities):
    """The logarithm of x / w is a number of the row and one of the column on what is used.

    That of the column is 0 where it has room, and no more where it is full.
    """
    m, n = x.shape
    used = x > tolerances.SHARED_USED
    rows, columns = np.nonzero(used)
    full = x.sum(axis=0) >= capacities * (1 - 1e-9)
    system = np.zeros((len(rows), m + n))
    system[np.arange(len(rows)), rows] = 1
    system[np.arange(len(rows)), m + columns] = full[columns]
    ratio = np.log(x[used] / weights[used])
    factors = np.linalg.lstsq(system, ratio)[0]
    assert np.abs(system @ factors - ratio).max(initial=0) <= tolerances.SHARED_FACTORS
    graph = scipy.sparse.csr_matrix(
        np.block([[np.zeros((m, m)), used], [used.T, np.zeros((n, n))]])
    )
    part = scipy.sparse.csgraph.connected_components(graph)[1]
    for j in np.flatnonzero(full & used.any(axis=0)):
        if (part[m:][~full] == part[m + j]).any():  # elsewhere only ratios count
            assert factors[m + j] <= tolerances.SHARED_FACTORS


def test_supply_that_just_fits(backend):
    found = fastattn.allocate_shared([[0, 1], [1, 1]], [4, 5], [np.inf, 4], backend=backend)
    assert found.converged
    assert found.iterations <= ROUNDS
    np.testing.assert_allclose(
        found.allocation,
        [[0, 4], [5, 0]],
        rtol=tolerances.SHARED_TOTAL,
        atol=tolerances.SHARED_TOTAL,
    )


def test_whole_numbers_reach_the_maximum_flow(backend, seed):
    """Total, fairness, closeness and bounds, in tens of rounds."""
    rng = np.random.default_rng(seed)
    for _ in range(100 if backend == "reference" else 600):
        weights, budgets, capacities = whole_numbers(rng)
        found = fastattn.allocate_shared(weights, budgets, capacities, backend=backend)
        x = found.allocation
        assert found.converged
        assert found.violation <= 1e-9
        assert found.iterations <= ROUNDS
        if backend != "reference":  # whose sums are rounded as they come
            assert_within(x, budgets, capacities)
        most = maximum_flow(weights, budgets, capacities)
        assert abs(x.sum() - most) <= tolerances.SHARED_TOTAL * most
        parts, usable = fair_parts(weights, budgets, capacities)
        some = weights[:, capacities > 0].any(axis=1)
        assert (
            np.abs(x.sum(axis=1) - parts * budgets)[some].max(initial=0) <= tolerances.SHARED_SUMS
        )
        assert x[~usable].max(initial=0) <= tolerances.SHARED_SUMS
        assert (x[usable & (weights > 0) & (budgets[:, None] > 0)] > tolerances.SHARED_SUMS).all()
        assert_closest(x, weights, capacities)


def test_cells_are_left_out_only_where_no_fair_flow_uses_them(seed):
    """And levels of whole numbers are those of linear programs."""
    rng = np.random.default_rng(seed)
    left_out = 0
    for _ in range(40):
        weights, budgets, capacities = whole_numbers(rng)
        budgets, capacities = budgets + 1, np.minimum(capacities, 40.0)
        weights[~weights.any(axis=1), 0] = 1
        x = fastattn.allocate_shared(weights, budgets, capacities).allocation
        sums = x.sum(axis=1)
        assert (
            np.abs(sums / budgets - fairest(weights, budgets, capacities)).max()
            <= tolerances.SHARED_PROGRAM
        )
        m, n = weights.shape
        for i, j in np.argwhere((weights > 0) & (x == 0) & (capacities > 0)):
            most = scipy.optimize.linprog(
                -np.eye(m * n)[i * n + j],
                np.vstack([np.kron(np.ones(m), np.eye(n)), -np.kron(np.eye(m), np.ones(n))]),
                np.concatenate([capacities, -sums * (1 - 1e-9)]),
                bounds=[(0, None if w > 0 else 0) for w in weights.ravel()],
            )
            assert -most.fun <= tolerances.SHARED_PROGRAM
            left_out += 1
    assert left_out > 5


def real_numbers(rng):
    """A small problem of any numbers: at random, in tenths, with planted ties, of many sizes."""
    m, n = rng.integers(1, 14, 2)
    weights = np.exp(rng.normal(0, rng.choice([0, 1, 5]), (m, n)))
    weights *= rng.random((m, n)) < rng.choice([0.15, 0.3, 0.6, 1])
    flow = rng.random((m, n)) * (weights > 0) * (rng.random((m, n)) < 0.5)
    budgets, capacities = (
        lambda: (rng.random(m), rng.random(n)),
        lambda: (rng.integers(0, 5, m) / 10, rng.integers(0, 9, n) / 10),
        lambda: (flow.sum(axis=1), flow.sum(axis=0)),
        lambda: ((flow.round(1)).sum(axis=1), (flow.round(1)).sum(axis=0)),
        lambda: (flow.sum(axis=1) * rng.choice([1, 0.5, 2], m), flow.sum(axis=0)),
        lambda: (10.0 ** rng.integers(-6, 6, m), 10.0 ** rng.integers(-6, 6, n)),
    )[rng.integers(6)]()
    capacities[rng.random(n) < rng.choice([0, 0.1])] = np.inf
    return weights, budgets, capacities


@pytest.mark.filterwarnings("error")
def test_real_numbers_reach_the_maximum_flow(exact_backend, seed):
    rng = np.random.default_rng(seed)
    for _ in range(300):
        weights, budgets, capacities = real_numbers(rng)
        with np.errstate(all="raise"):
            found = fastattn.allocate_shared(weights, budgets, capacities, backend=exact_backend)
        assert found.converged
        assert found.iterations <= ROUNDS
        assert_within(found.allocation, budgets, capacities)
        most = exact_flow(weights, budgets, capacities)
        assert abs(found.allocation.sum() - most) <= tolerances.SHARED_TOTAL * most


def chains(n, rng):
    """Long ways on which everything is tight, or next to it: name, weights, budgets, capacities."""
    one, up = np.eye(n), np.eye(n, k=1)
    yield "nested", np.triu(np.ones((n, n))), np.ones(n), np.ones(n)
    yield "chain", one + up, np.ones(n), np.ones(n)
    yield "chain of weak links", one + 1e-8 * up, np.ones(n), np.ones(n)
    yield "chain against the weights", 1e-6 * one + up, np.ones(n), np.ones(n)
    yield "ring", (one + np.roll(one, 1, axis=1)) * rng.random((n, n)), np.ones(n), np.ones(n)
    nearly = np.ones(n)
    nearly[-1] += 1e-6
    yield "chain with next to no room", one + up, np.ones(n), nearly
    yield "chain that lacks next to nothing", one + up, nearly, np.ones(n)
    yield "everything moves on", one + up + up.T, np.ones(n), np.r_[0.5, np.ones(n - 2), 1.5]
    yield "far away", one + up + up.T, np.ones(n), np.r_[n, np.full(n - 1, 0.5)]
    yield "one column in excess", one + up, np.ones(n), np.r_[np.inf, np.ones(n - 1)]


@pytest.mark.parametrize("n", [3, 10, 40])
def test_chains(exact_backend, n, seed):
    for name, weights, budgets, capacities in chains(n, np.random.default_rng(seed)):
        for turned in (False, True):
            if turned:
                weights, budgets, capacities = weights.T, np.minimum(capacities, n), budgets
            found = fastattn.allocate_shared(weights, budgets, capacities, backend=exact_backend)
            assert found.converged, name
            assert found.iterations <= ROUNDS, name
            assert_within(found.allocation, budgets, capacities)
            most = exact_flow(weights, budgets, capacities)
            assert abs(found.allocation.sum() - most) <= tolerances.SHARED_TOTAL * most, name
            parts, _ = fair_parts(weights, budgets, capacities)
            np.testing.assert_allclose(
                found.allocation.sum(axis=1),
                parts * budgets,
                rtol=tolerances.SHARED_SUMS,
                err_msg=name,
            )


def tight(rng, m, n):
    """Half of the rows want half of the columns alone, and just fill them; the others want all."""
    weights = np.exp(rng.normal(0, 1, (m, n)))
    weights[: m // 2, : n // 2] = 0
    budgets, capacities = rng.random(m) + 0.1, rng.random(n) + 0.1
    capacities[n // 2 :] *= budgets[: m // 2].sum() / capacities[n // 2 :].sum()
    capacities[: n // 2] *= 1.2 * budgets[m // 2 :].sum() / capacities[: n // 2].sum()
    return weights, budgets, capacities


@pytest.mark.parametrize(("m", "n"), [(900, 80), (60, 300)])
def test_bits_of_the_large_do_not_depend_on_threads_or_backend(exact_backend, m, n, seed):
    weights, budgets, capacities = tight(np.random.default_rng(seed), m, n)
    expected = fastattn.allocate_shared(weights, budgets, capacities, threads=1)
    assert expected.converged
    assert expected.iterations <= ROUNDS
    assert expected.allocation.sum() >= budgets.sum() * (1 - tolerances.SHARED_TOTAL)
    assert (expected.allocation[m // 2 :, n // 2 :] == 0).all()
    for given in (weights, np.asfortranarray(weights)):
        for threads in (1, 2):
            found = fastattn.allocate_shared(
                given, budgets, capacities, threads=threads, backend=exact_backend
            )
            assert np.array_equal(found.allocation, expected.allocation)
            assert (found.iterations, found.violation) == (expected.iterations, expected.violation)


def test_large_ties_do_not_wait_for_rounds(seed):
    """They are told from rounds that are merely slow, for which the finish would take too long."""
    found = fastattn.allocate_shared(*tight(np.random.default_rng(seed), 2000, 500))
    assert found.converged
    assert found.iterations <= 60
    pace = shared._Pace(1e-9)
    for iteration in range(1, 49):  # a change of 0.9 times the one before it is none
        further = pace.further(0.9**iteration, iteration)
    assert not pace.is_slow(0.9**48 * further, further, 48, 400)


def test_rows_and_columns_may_be_scaled_and_mixed(exact_backend, seed):
    """Only ratios within a row of weights matter, and no order."""
    rng = np.random.default_rng(seed)
    for _ in range(40):
        weights, budgets, capacities = whole_numbers(rng)
        m, n = weights.shape

        def share(weights, budgets, capacities):
            return fastattn.allocate_shared(
                weights, budgets, capacities, backend=exact_backend
            ).allocation

        found = share(weights, budgets, capacities)
        powers = 2.0 ** rng.integers(-40, 40, (m, 1))
        assert np.array_equal(share(weights * powers, budgets, capacities), found)
        assert np.array_equal(share(weights, budgets * 0.125, capacities * 0.125), found * 0.125)
        rows, columns = rng.permutation(m), rng.permutation(n)
        mixed = share(weights[rows][:, columns], budgets[rows], capacities[columns])
        np.testing.assert_allclose(
            mixed,
            found[rows][:, columns],
            rtol=tolerances.SHARED_ORDER,
            atol=tolerances.SHARED_SUMS,
        )


def test_a_stop_within_the_finish_is_reported(exact_backend):
    """Newton's steps are rounds too, and the last round is one that judges."""
    weights = np.array([[1, 1e-200, 1e-300], [1, 1, 1e-100]])
    for max_iter in (12, 13, 14, 17):
        found = fastattn.allocate_shared(
            weights, [1.0, 1.0], [0.3, 0.3, np.inf], max_iter=max_iter, backend=exact_backend
        )
        assert (found.converged, found.iterations) == (False, max_iter)
        assert_within(found.allocation, [1, 1], [0.3, 0.3, np.inf])
        assert found.violation > 1e-3
    whole = fastattn.allocate_shared(weights, [1.0, 1.0], [0.3, 0.3, np.inf], backend=exact_backend)
    assert whole.converged
    assert whole.iterations <= ROUNDS
    np.testing.assert_allclose(
        whole.allocation.sum(axis=0), [0.3, 0.3, 1.4], rtol=tolerances.SHARED_TOTAL
    )


@pytest.mark.parametrize(
    ("module", "name", "least"), [(saturation, "_MOST_CELLS", 0), (shared, "_WIDEST", 1)]
)
def test_rounds_go_on_without_a_finish(monkeypatch, module, name, least):
    """Where it would take too long; what is reported is true."""
    monkeypatch.setattr(module, name, least)
    found = fastattn.allocate_shared(np.triu(np.ones((4, 4))), 1, 1, max_iter=300, backend="numba")
    assert (found.converged, found.iterations) == (False, 300)
    lacking = 4 - found.allocation.sum()
    assert 1e-3 < lacking < 0.1
    assert_within(found.allocation, np.ones(4), np.ones(4))


def test_minus_zero_is_zero(backend, seed):
    rng = np.random.default_rng(seed)
    for _ in range(30):
        operands = whole_numbers(rng)
        expected = fastattn.allocate_shared(*operands, backend=backend)
        found = fastattn.allocate_shared(
            *(np.where(x == 0, -0.0, x) for x in operands), tol=1e-9, backend=backend
        )
        assert np.array_equal(found.allocation, expected.allocation)
        assert not np.signbit(found.allocation).any()
        assert (found.iterations, found.violation) == (expected.iterations, expected.violation)
    assert not np.signbit(found.violation)


def test_what_can_be_used_does_not_depend_on_where_the_search_begins(seed):
    """From no allocation at all, against the flows of the reference."""
    rng = np.random.default_rng(seed)
    for _ in range(200):
        weights, budgets, capacities = whole_numbers(rng)
        wanted = (weights > 0) & (capacities > 0)
        parts, usable = saturation.usable_cells(
            np.zeros(weights.shape), wanted, budgets, capacities, lambda a, b: a @ b.T
        )
        expected, cells = fair_parts(wanted, budgets, capacities)
        some = (budgets > 0) & wanted.any(axis=1)
        np.testing.assert_allclose(parts[some], expected[some], rtol=tolerances.SHARED_LEVELS)
        assert np.array_equal(usable[some], (cells & wanted)[some])


def test_elimination_keeps_the_digits_of_weak_links(seed):
    """More nodes than a panel, against a solver; then links that a solver would lose."""
    rng = np.random.default_rng(seed)

    def products(a, b):
        return a @ b.T

    links = rng.random((70, 70)) ** 4
    links += links.T
    ground, push = rng.random(70) / 10, rng.normal(size=70)
    matrix = np.diag(links.sum(axis=1) - np.diag(links) + ground) - links + np.diag(np.diag(links))
    expected = np.linalg.solve(matrix, push)
    found, cut = newton._eliminate(
        links.copy(), ground.copy(), push.copy(), np.ones(70), 1e9, products
    )
    np.testing.assert_allclose(
        found, expected, rtol=tolerances.SOLVED, atol=tolerances.SOLVED_BY_HAND
    )
    assert not cut
    links, ground = np.array([[0, 1, 0], [1, 0, 1e-30], [0, 1e-30, 0]]), np.array([0, 0, 1e-60])
    found, _ = newton._eliminate(links, ground, np.array([1.0, 0, 0]), np.ones(3), 1e99, products)
    np.testing.assert_allclose(found, [1e60, 1e60, 1e60], rtol=tolerances.SOLVED_BY_HAND)


def test_exponentials_and_logarithms_of_steps():
    steps = np.concatenate([np.linspace(-40, 40, 999), [1e-9, -1e-9, 0]])
    found = newton._logarithm(newton._grown(steps))
    np.testing.assert_allclose(
        found, steps, rtol=tolerances.STEP, atol=tolerances.epsilon(np.float64)
    )
    np.testing.assert_allclose(
        newton._grown(steps / 100), np.exp(steps / 100), rtol=tolerances.SMALL_STEP
    )
    numbers = np.exp(np.linspace(-600, 600, 999))
    np.testing.assert_allclose(
        newton._logarithm(numbers),
        np.log(numbers),
        rtol=tolerances.STEP_LOGARITHM,
        atol=tolerances.epsilon(np.float64),
    )

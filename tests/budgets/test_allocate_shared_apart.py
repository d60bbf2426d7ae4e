"""Shared allocation where weights are many orders apart: maximum flows in tens of rounds."""

import numpy as np
import pytest
import tolerances
from test_allocate_shared import assert_within
from test_allocate_shared_ties import ROUNDS, maximum_flow, whole_numbers

import fastattn

# What a column near its capacity turns to is far from what it is, or factors drift at one speed.
FAR_APART = {
    "full until the end of a step": (
        [
            [1.07e-6, 0, 2.35, 6.49e-3, 1.93e-4, 515],
            [4.61e-3, 2.72e5, 0, 1.13e-3, 0, 1.99e-5],
            [0, 1.05e-6, 0, 5.09e4, 0, 5.02e5],
        ],
        [5, 1, 4],
        [4, 4, 5, 1, 6, 0],
    ),
    "two of them": (
        [
            [2.5e-3, 0.417, 0, 6.3e-4, 5.49e7, 4.83e6, 0],
            [0, 0, 3.14, 0, 5.75e-2, 0, 0],
            [0, 0, 0, 0, 0, 1.41e-8, 1.39e-6],
            [8.05e-7, 650, 0, 1430, 0.229, 5.49e7, 9.17e5],
            [0, 66.2, 0, 1650, 0, 0.834, 3.24e-7],
            [7.47e-5, 8.47e5, 0, 1270, 4.01e-5, 0, 0],
        ],
        [4, 6, 5, 2, 2, 6],
        [0, 3, 6, np.inf, 1, 3, 6],
    ),
    "one drifts": (
        [
            [0.279, 0, 104, 0, 0, 0.133, 0],
            [0, 0, 5.31, 9.02e-5, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0],
            [0, 0, 2.96e5, 0, 1.84e7, 2.64e7, 0],
            [1480, 41.7, 0, 0, 0, 0, 0.018],
            [1.63e4, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 2.78e-4, 6510, 0, 0],
        ],
        [6, 1, 3, 1, 5, 3, 5],
        [np.inf, 2, np.inf, 5, 0, 1, np.inf],
    ),
}


def far_apart(rng):
    """A small problem of whole numbers whose weights are up to sixteen orders apart."""
    weights, budgets, capacities = whole_numbers(rng)
    return weights * 10.0 ** rng.uniform(-8, 8, weights.shape), budgets, capacities


def assert_maximum(weights, budgets, capacities, backend, rounds=ROUNDS):
    """Tens of rounds, no bound exceeded, the total of a maximum flow."""
    found = fastattn.allocate_shared(weights, budgets, capacities, backend=backend)
    assert found.converged
    assert found.iterations <= rounds
    assert_within(found.allocation, budgets, capacities)
    most = maximum_flow(weights, budgets, capacities)
    assert abs(found.allocation.sum() - most) <= tolerances.SHARED_TOTAL * most


@pytest.mark.parametrize("name", FAR_APART)
def test_weights_far_apart(exact_backend, name):
    assert_maximum(*map(np.array, FAR_APART[name]), exact_backend, rounds=60)


def test_any_weights_far_apart(exact_backend, seed):
    rng = np.random.default_rng(seed)
    for _ in range(300):
        assert_maximum(*far_apart(rng), exact_backend)


@pytest.mark.long
def test_very_many_weights_far_apart(seed):
    rng = np.random.default_rng(seed)
    for _ in range(10_000):
        assert_maximum(*far_apart(rng), "numba")

"""What `allocate` refuses: before anything is returned, with the row, the values, the way out."""

import numpy as np
import pytest

import fastattn

TWO = [[1.0, 2.0], [1.0, 2.0]]
REFUSED = [
    ([1, -1.0], 1, {}, ["weight 1 is -1.0", "option where"]),
    ([[1, 2], [np.nan, 2]], 1, {}, ["weight 0 of row 1 is nan"]),
    ([1, np.inf], 1, {}, ["weight 1 is inf"]),
    (np.ones((2, 2, 2)), -1.0, {}, ["budget is -1.0"]),
    (TWO, [1, np.nan], {}, ["budget[1] is nan"]),
    (TWO, [1, np.inf], {}, ["budget[1] is inf"]),
    (TWO, [1, 2], {"lower": [[0, 0], [1.5, 1]]}, ["row 1 is 2.0", "lower bounds, 2.5"]),
    (TWO, 1, {"lower": -1}, ["receiver 0 of row 0", "lower -1.0"]),
    (TWO, 1, {"lower": [0, 0.5], "upper": 0.2}, ["receiver 1 of row 0", "lower 0.5", "upper 0.2"]),
    (TWO, 1, {"upper": np.nan}, ["receiver 0 of row 0", "upper nan"]),
    (TWO, 1, {"lower": np.inf}, ["lower inf"]),
    (TWO, [1, 9], {"upper": 3}, ["row 1 is 9.0", "take 6.0 at most", "3.0 that are left"]),
    (TWO, [1, 9], {"upper": 3, "unit": 1}, ["is 9,", "take 6 at most", "the 3 that are left"]),
    ([0.0, 0.0], 1, {}, ["take 0.0 at most: give weight to those of weight 0"]),
    ([0.0, 1.0], 3, {"upper": 2}, ["take 2.0 at most: raise upper, give weight"]),
    ([1.0, 1.0], 1.5e308, {"lower": 1e308}, ["is 1.5e+308", "lower bounds, inf"]),
    ([1.0, 1.0], 1, {"where": False}, ["name receivers, of which this row has none"]),
    (np.ones((2, 2, 2)), 1, {"upper": 0.1}, ["row (0, 0)"]),
    (np.ones((2, 0)), 1, {}, ["row 0 is 1.0", "0.0 at most"]),
    ([1, 2], 2.5, {"unit": 1}, ["2.5", "no whole number of units of 1", "keep"]),
    ([1, 2], 3, {"unit": 1, "upper": 1.4}, ["take 2 at most"]),
    (
        [1, 2],
        3,
        {"unit": 1, "lower": 1.2, "upper": 1.8},
        ["lower 2 and upper 1, in whole units of 1"],
    ),
    ([1, 2], 2.0**60, {"unit": 1}, ["2**52"]),
    ([1, 2], 1, {"unit": 0}, ["unit must be positive"]),
    ([1, 2], 1, {"unit": np.inf}, ["unit must be positive and finite"]),
    ([1, 2], 1, {"unit": 2**63}, ["below 2**63 if it is an int"]),
    ([1, 2], 1, {"method": "dhondt"}, ["unit=1"]),
    ([1, 2], 1, {"unit": 1, "method": "adams"}, ["'adams'", "'dhondt'"]),
    ([1, 2], 1, {"on_unspent": "ignore"}, ["'ignore'", "'keep'"]),
    ([1, 2], 1, {"axis": 1}, ["axis 1", "(2,)"]),
    (TWO, 1, {"out": np.empty(2)}, ["out has shape (2,)", "(2, 2)"]),
    (1.0, 1, {}, ["need an axis"]),
    (TWO, [1, 2, 3], {}, ["(3,)", "(2,)"]),
    (TWO, 1, {"upper": [1, 2, 3]}, ["upper of shape (3,)", "(2, 2)"]),
    (TWO, 1, {"where": [True, False, True]}, ["where of shape (3,)"]),
]
WRONG_TYPES = [
    ([1j, 2], 1, {}, ["order to attend by"]),
    (["a", "b"], 1, {}, ["weights"]),
    ([1, 2], None, {}, ["budget"]),
    ([1, 2], 1, {"where": [1, 0]}, ["bool", "np.asarray(where, bool)"]),
    ([1, 2], 1, {"unit": "1"}, ["unit", "'1'"]),
    ([1, 2], 1, {"unit": True}, ["unit", "True"]),
    ([1, 2], 1, {"unit": [1, 2]}, ["unit"]),
    (TWO, 1, {"axis": (0, 1)}, ["axis (0, 1)", "from -2 to 1"]),
    (TWO, 1, {"axis": True}, ["axis True", "an int from -2 to 1"]),
    (np.ma.masked_array([1.0, 2.0]), 1, {}, ["masked", ".filled(0)"]),
    ([1, 2], 3, {"unit": 1, "out": np.empty(2)}, ["out has dtype float64", "int64"]),
]


def check(kind, weights, budget, options, words):
    with pytest.raises(kind) as caught:
        fastattn.allocate(weights, budget, **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize(("weights", "budget", "options", "words"), REFUSED)
def test_values_that_cannot_work(backend, weights, budget, options, words):
    check(ValueError, weights, budget, options, words)


@pytest.mark.parametrize(("weights", "budget", "options", "words"), WRONG_TYPES)
def test_types_that_cannot_work(weights, budget, options, words):
    check(TypeError, weights, budget, options, words)


def test_the_first_bad_row_is_named_among_many(exact_backend):
    weights = np.ones((5000, 7))
    weights[[1234, 4321], 3] = np.nan
    check(ValueError, weights, 1, {}, ["weight 3 of row 1234 is nan"])


def test_nothing_is_wrong_with_what_takes_no_part(backend):
    amounts = fastattn.allocate([1, np.nan, -3], 4, where=[True, False, False])
    assert amounts.tolist() == [4, 0, 0]

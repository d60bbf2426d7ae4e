"""The project's own exp, exp2 and logarithm: at most one unit in the last place from the truth.

A sample is always on; every float32 there is between -104 and 0 stands behind the marker `long`.
"""

import decimal
from decimal import Decimal

import numba
import numpy as np
import pytest

from fastattn._numba.machine import elementary
from fastattn._numba.machine.elementary import exp2_lowest, exp2_product, exp_nonpositive
from fastattn._numba.machine.emit import LANES
from fastattn._numba.machine.exponential import exp_pair
from fastattn._numba.machine.logarithm import log_of_sum
from fastattn._numba.machine.memory import load, store
from fastattn._numba.machine.simd import cast, splat

LARGEST_ERROR = 1.0
# Every float32 from -0.0 to -104.0 by its bits.
FIRST, LAST = 0x80000000, 0xC2D00000


@numba.njit
def exp_all(tag, item, source, target, count):
    for i in range(0, count, LANES):
        store(target + i * item, exp_nonpositive(load(tag, source + i * item)))


@numba.njit
def exp2_all(tag, item, factor, source, target, count):
    wide, lowest = splat(cast(tag, factor)), splat(exp2_lowest(cast(tag, factor)))
    for i in range(0, count, LANES):
        store(target + i * item, exp2_product(load(tag, source + i * item), wide, lowest))


def evaluate(function, x, *factor):
    """Run a kernel on an array whose size is a multiple of sixteen."""
    result = np.empty_like(x)
    tag = x.dtype.type(0)
    function(tag, x.itemsize, *factor, x.ctypes.data, result.ctypes.data, x.size)
    return result


def ulps(actual, truth, dtype):
    """Error in units in the last place that the dtype has at the truth."""
    rounded = truth.astype(dtype)
    spacing = np.spacing(np.maximum(np.abs(rounded), np.finfo(dtype).smallest_subnormal))
    return np.abs(actual.astype(truth.dtype) - truth) / spacing


def worst_exp(x):
    with np.errstate(under="ignore"):
        return float(ulps(evaluate(exp_all, x), np.exp(x.astype(np.float64)), np.float32).max())


def worst_exp2(x, factor):
    """Arguments whose result is normal: below, a weight may count as 0."""
    factor = np.float32(factor)
    argument = x.astype(np.float64) * np.float64(factor)
    with np.errstate(under="ignore"):
        truth = np.exp2(argument)
        actual = evaluate(exp2_all, x, factor)
    normal = argument >= -126
    assert (actual[argument < -127] == 0).all()
    return float(ulps(actual, truth, np.float32)[normal].max())


def sample(seed, count=1 << 20):
    """Floats evenly over all bit patterns, which favours the small, and evenly over the line."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(FIRST, LAST, count, endpoint=True).astype(np.uint32).view(np.float32)
    line = -rng.uniform(0, 104, count).astype(np.float32)
    ends = np.linspace(FIRST, LAST, 2 * LANES).astype(np.uint32).view(np.float32)
    return np.concatenate([patterns, line, ends])


@pytest.mark.skipif(not elementary.SCALES, reason="no instruction that scales")
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda kind: kind.__name__)
def test_exp_is_the_same_where_no_instruction_scales(seed, dtype, monkeypatch):
    """Down to the smallest subnormal numbers, and beyond."""
    x = sample(seed).astype(dtype)
    if dtype == np.float64:
        x = np.concatenate([x, -np.random.default_rng(seed).uniform(650, 750, 1 << 16)])
    x[:3] = 0.0, -np.inf, np.nan
    scaled = evaluate(exp_all, x)
    assert (scaled[np.abs(x) < 100] > 0).all()
    monkeypatch.setattr(elementary, "SCALES", False)
    multiplied = evaluate(numba.njit(exp_all.py_func), x)
    np.testing.assert_array_equal(scaled, multiplied)


def test_exp_of_a_sample(seed):
    assert worst_exp(sample(seed)) <= LARGEST_ERROR


@pytest.mark.parametrize("factor", [1.0, 1.4426950408889634, 2.0, 0.18033688, 37.5])
def test_exp2_of_a_sample(seed, factor):
    assert worst_exp2(sample(seed), factor) <= LARGEST_ERROR


def test_exp_in_float64(seed):
    x = -np.random.default_rng(seed).uniform(0, 700, 1 << 16)
    truth = np.exp(x.astype(np.longdouble))
    assert float(ulps(evaluate(exp_all, x), truth, np.float64).max()) <= LARGEST_ERROR


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ends_of_the_range(dtype):
    x = np.zeros(LANES, dtype)
    x[:6] = [0.0, -0.0, -np.inf, np.nan, -1e30, -np.finfo(dtype).tiny]
    for result in (evaluate(exp_all, x), evaluate(exp2_all, x, dtype(1.25))):
        np.testing.assert_array_equal(result[:6], [1, 1, 0, np.nan, 0, 1])


@numba.njit
def logarithm_of(base, large, small):
    return log_of_sum(base, 0.0, large, small)


def test_logarithm_of_a_sum_and_a_base(seed):
    """Within an ulp, near 0 too; where base and logarithm cancel, to 2^-58."""
    rng = np.random.default_rng(seed)
    context = decimal.Context(prec=400)
    for _ in range(400):
        large = float(rng.choice([1.0, 2.0, 3.0, 64.0, 0.7, 1e300, 2.0**-1060, rng.uniform(0, 9)]))
        small = (
            float(10.0 ** rng.uniform(-300, 3) * rng.choice([1, -1])) if rng.random() < 0.8 else 0.0
        )
        if large + small <= 0:
            continue
        logarithm = context.ln(context.add(Decimal(large), Decimal(small)))
        for base in (0.0, -float(logarithm), float(rng.standard_normal() * 10)):
            exact = context.add(Decimal(base), logarithm)
            error = abs(context.subtract(Decimal(logarithm_of(base, large, small)), exact))
            ulp = np.spacing(abs(float(exact)))
            assert error <= ulp + 2.0**-58 * (base != 0), (base, large, small)


@numba.njit
def exp_pairs(tag, item, source, target, count):
    for i in range(0, count, 2 * LANES):
        place, end = source + i * item, target + i * item
        number, rest = exp_pair(load(tag, place), load(tag, place + LANES * item))
        store(end, number)
        store(end + LANES * item, rest)


def test_exponentials_of_pairs(seed):
    """To 2^-103 of themselves near 0, whatever stands in the second number."""
    rng = np.random.default_rng(seed)
    x = np.empty((256, 2, LANES))
    x[:, 0] = -np.exp(rng.uniform(-40, np.log(700), x[:, 0].shape))
    x[::3, 0] = -x[::3, 0] / 3
    x[:, 1] = np.spacing(x[:, 0]) * rng.uniform(-0.5, 0.5, x[:, 0].shape)
    x[::2, 1], x[0, 0, 0] = 0, 0
    pairs = evaluate(exp_pairs, x)
    with decimal.localcontext(prec=60):
        for (number, rest), result in zip(
            np.moveaxis(x, 1, 0).reshape(2, -1).T, np.moveaxis(pairs, 1, 0).reshape(2, -1).T,
            strict=True,
        ):  # fmt: skip
            exact = (Decimal(number) + Decimal(rest)).exp()
            error = abs((Decimal(result[0]) + Decimal(result[1])) / exact - 1)
            # What underflows of the second number is lost.
            lost = Decimal(2.0**-1074) / exact
            assert error <= Decimal(2.0**-106 * (8 + abs(number))) + lost, (number, rest)


def test_logarithm_of_what_is_no_number():
    for base, large, small, expected in (
        (0.0, 0.0, 0.0, -np.inf),
        (1.0, 1.0, -1.0, -np.inf),
        (0.0, 1.0, -2.0, np.nan),
        (0.0, np.nan, 0.0, np.nan),
        (np.nan, 1.0, 0.0, np.nan),
        (np.inf, 1.0, 0.0, np.inf),
        (-np.inf, 1.0, 0.0, -np.inf),
        (2.0, np.inf, 0.0, np.inf),
    ):
        np.testing.assert_array_equal(logarithm_of(base, large, small), expected)


@pytest.mark.long
@pytest.mark.parametrize("quarter", range(4))
def test_exp_of_every_float32(quarter):
    """A milliard numbers; prints the largest error."""
    borders = np.linspace(FIRST, LAST + 1, 5).astype(np.int64)
    worst, step = 0.0, 1 << 22
    for first in range(borders[quarter], borders[quarter + 1], step):
        stop = min(first + step, borders[quarter + 1])
        x = np.arange(first, -(-(stop - first) // LANES) * LANES + first, dtype=np.int64)
        worst = max(worst, worst_exp(x.astype(np.uint32).view(np.float32)))
    print(f"\nexp of every float32, quarter {quarter + 1}: at most {worst:.4f} ULP")
    assert worst <= LARGEST_ERROR

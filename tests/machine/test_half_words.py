"""Halves converted in integer arithmetic, for CPUs that do not convert them: the same bits."""

import numba
import numpy as np
import pytest

from fastattn._numba.machine import emit
from fastattn._numba.machine.emit import LANES
from fastattn._numba.machine.memory import load, load_as, store, store_scalar
from fastattn._numba.machine.storage import HALF, load_widened, store_first_rounded, store_rounded

EVERY_HALF = np.arange(1 << 16, dtype=np.uint16)


def make():
    """Both conversions, by sixteens and one by one, compiled as `emit` is set now."""

    @numba.njit
    def widen(tag, source, target, count):
        for i in range(0, count, LANES):
            store(target + 4 * i, load_widened(tag, HALF, source + 2 * i))

    @numba.njit
    def widen_each(tag, source, target, count):
        for i in range(count):
            store_scalar(target + 4 * i, load_as(tag, HALF, source + 2 * i))

    @numba.njit
    def narrow(tag, source, target, count):
        for i in range(0, count, LANES):
            store_rounded(HALF, target + 2 * i, load(tag, source + 4 * i))

    @numba.njit
    def narrow_each(tag, source, target, count):
        for i in range(0, count, LANES):
            store_first_rounded(HALF, target + 2 * i, load(tag, source + 4 * i))

    return (widen, widen_each), (narrow, narrow_each)


@pytest.fixture(params=[False, True], ids=["integers", "converted"])
def conversions(request, monkeypatch):
    if request.param and not emit.CONVERTS_HALVES:
        pytest.skip("this CPU converts no halves")
    monkeypatch.setattr(emit, "CONVERTS_HALVES", request.param)
    return make()


def run(function, source, target):
    function(np.float32(0), source.ctypes.data, target.ctypes.data, source.size)
    return target


def test_every_half_is_widened_exactly(conversions):
    expected = EVERY_HALF.view(np.float16).astype(np.float32)
    nan = np.isnan(expected)
    for function in conversions[0]:
        found = run(function, EVERY_HALF, np.empty(EVERY_HALF.size, np.float32))
        assert (found.view(np.uint32)[~nan] == expected.view(np.uint32)[~nan]).all()
        # Quiet, with the sign and the other bits that it had.
        words = EVERY_HALF[nan].astype(np.uint32)
        quiet = (words & 0x8000) << 16 | 0x7FC00000 | (words & 0x3FF) << 13
        assert (found.view(np.uint32)[nan] == quiet).all()


def test_floats_are_rounded_to_the_nearest_half(conversions):
    """All exponents and signs with mantissas around every tie, subnormals, NaN of any payload."""
    high = np.arange(1 << 16, dtype=np.uint32)[:, None] << 16
    low = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x8000, 0xF000, 0xFFFF])
    bits = (high | low.astype(np.uint32)).reshape(-1)
    numbers = bits.view(np.float32)
    nan = np.isnan(numbers)
    with np.errstate(all="ignore"):
        expected = numbers.astype(np.float16).view(np.uint16)
    expected[nan] = (bits[nan] >> 16 & 0x8000) | 0x7E00 | (bits[nan] >> 13 & 0x3FF)
    whole, first = conversions[1]
    found = run(whole, numbers, np.empty(numbers.size, np.uint16))
    assert (found == expected).all()
    found = run(first, numbers, np.empty(numbers.size, np.uint16))[::LANES]
    assert (found == expected[::LANES]).all()

"""Plain twins of machine functions: what they get right, or plain kernels would prove nothing."""

from fractions import Fraction

import numpy as np
import pytest

from plain.elementary import alike, order_split
from plain.floats import Float32, Unknown, fma, larger_of, number
from plain.lanes import (
    Undecided,
    Vector,
    any_nan,
    chosen,
    keep_lanes,
    lane_sum,
    narrowed,
    splat,
    whole_products,
    widened,
)
from plain.loader import World
from plain.memory import Fault, Memory, Region, use
from plain.words import load, load_first, load_float64, store, store_first, wrapped

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)


def rounded_once(dtype, exact):
    """A fraction in a float type, rounded to nearest, ties to even, by integers alone."""
    bits, least = (24, -149) if dtype == F32 else (53, -1074)
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    place = Fraction(2) ** max(exponent - bits, least)
    while size / place >= 2**bits:
        place *= 2
    while size / place < 2 ** (bits - 1) and place > Fraction(2) ** least:
        place /= 2
    whole = round(size / place) * place  # of fractions: ties to even
    return float(whole) if exact > 0 else -float(whole)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_products_are_added_with_one_rounding(dtype, seed):
    """Where rounding twice, or losing the small part, gives something else."""
    rng = np.random.default_rng(seed)
    most, least = (30, -140) if dtype == F32 else (440, -1060)
    twice = 0
    for spread in (1, 8, most):
        a, b, c = (
            np.ldexp(rng.uniform(0.5, 2, 400), rng.integers(-spread, spread, 400)).astype(dtype)
            * rng.choice([-1, 1], 400).astype(dtype)
            for _ in range(3)
        )
        # Products that nearly cancel, that end in the middle of two floats, and subnormal ones.
        c[:100] = -(a[:100] * b[:100])
        c[100:200] = np.ldexp(a[100:200] * b[100:200], rng.integers(20, 56, 100)).astype(dtype)
        a[200:250] = np.ldexp(a[200:250], least // 2)
        b[200:250] = np.ldexp(b[200:250], least // 2)
        c[200:250] = rng.integers(-3, 4, 50) * np.finfo(dtype).smallest_subnormal
        with np.errstate(all="ignore"):
            found = fma(a, b, c)
        twice += (found != a * b + c).sum()
        for x, y, z, ours in zip(a, b, c, found, strict=True):
            exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
            assert float(ours) == (rounded_once(dtype, exact) if exact else 0.0), (x, y, z)
    assert twice > 50


def test_mixed_arithmetic_is_that_of_numba():
    one = Float32(0.1)
    assert isinstance(one + Float32(1), Float32)
    for other in (1.0, 1, np.float64(1)):
        for mixed in (one * other, other * one):
            assert type(mixed) is np.float64
            assert mixed == np.float64(np.float32(0.1))
    assert type(larger_of(one, 0.0)) is np.float64
    assert number(F32, 2**60 + 2**36 + 1).value == np.float32(2**60 + 2**37)
    assert wrapped(1 << 63) == -(1 << 63)
    with pytest.raises(TypeError, match="a kernel cannot compute this"):
        splat(1.0) + splat(one)


def test_numbers_are_split_into_order_and_mantissa(seed):
    World()  # whose coefficients the twins use
    rng = np.random.default_rng(seed)
    numbers = np.ldexp(rng.uniform(0.5, 1, 16), rng.integers(-1021, 1024, 16))
    border = np.sqrt(0.5)
    numbers[:4] = border, np.nextafter(border, 0), 1.0, 2.0**-1022
    orders, mantissas, powers = order_split(Vector(numbers))
    assert (np.ldexp(mantissas.lanes, orders.lanes.astype(int)) == numbers).all()
    assert ((mantissas.lanes >= border) & (mantissas.lanes < 2 * border)).all()
    for lane, number_of_lane in enumerate(numbers):
        parts = order_split(number_of_lane)
        expected = [part.lanes[lane] for part in (orders, mantissas, powers)]
        assert [*parts] == expected
        assert parts[2] == np.ldexp(1.0, -int(parts[0])) or parts[0] > 1022
    assert alike(np.float64(3), 2.0) == 2.0
    assert (alike(orders, 2.0).lanes == 2.0).all()


def test_vectors_change_their_type():
    x = Vector(np.arange(16) + 2.0**-30, np.arange(16) > 3)
    narrow = narrowed(np.float32(0), x)
    assert narrow.lanes.dtype == F32
    assert (narrow.lanes[1:] == np.arange(1, 16)).all()
    assert widened(narrow).lanes.dtype == F64
    assert widened(narrow).known is x.known
    wholes = whole_products(Vector(np.arange(16.0)), 10**15).lanes.view(np.int64)
    assert wholes.tolist() == [lane * 10**15 for lane in range(16)]
    with pytest.raises(TypeError, match="a kernel cannot round this"):
        narrowed(np.float32(0), narrow)


@pytest.fixture
def memory():
    """Scratch of 200 bytes, and 80 bytes of which every other eight are an element."""
    scratch, array = np.zeros(200, np.uint8), np.zeros(80, np.uint8)
    made = Memory()
    made.kept = scratch, array
    made.scratch, made.array = (x.ctypes.data for x in made.kept)
    made.add(Region.fresh("scratch", made.scratch, 200, worker=0))
    made.add(Region("array", made.array, bytearray((b"\1" * 8 + b"\0" * 8) * 5)))
    with use(made), np.errstate(all="ignore"):
        yield made


def test_what_is_no_element_is_not_read(memory):
    assert load_float64(memory.array, 2) == 0
    for wrong in (1, -1, 9, 10):
        with pytest.raises(Fault, match=r"out of bounds|of no element"):
            load_float64(memory.array, wrong)
    with pytest.raises(Fault, match="which is only read"):
        store_first(memory.array, splat(1.0), 1)
    memory.worker = 1
    with pytest.raises(Fault, match="worker 1 reads scratch"):
        load_float64(memory.scratch, 0)


def test_what_was_never_written_decides_nothing(memory):
    store_first(memory.scratch, splat(1.0), 3)
    loaded = load(np.float64(0), memory.scratch)
    assert loaded.known.tolist() == [True] * 3 + [False] * 13
    kept = keep_lanes(loaded + loaded, 0, 3, 0.0)
    assert lane_sum(kept) == 6
    store(memory.scratch, loaded * splat(np.nan))
    again = load(np.float64(0), memory.scratch)
    assert again.known.tolist() == loaded.known.tolist()
    assert any_nan(again)
    assert type(any_nan(loaded)) is Undecided
    assert type(lane_sum(loaded)) is Unknown
    assert load_first(memory.scratch, 2, 5.0).known is None
    assert type(chosen(np.arange(16) < 3, loaded, splat(0.0)).known) is np.ndarray
    for decide in (
        lambda: bool(any_nan(loaded)),
        lambda: lane_sum(loaded) > 0,
        lambda: float(load_float64(memory.scratch, 7) + 1.0),
    ):
        with pytest.raises(Fault, match="never written"):
            decide()


def test_stack_rooms_are_fresh(memory):
    rooms = [memory.room(64) for _ in range(6)]
    store_first(rooms[-1], Vector(np.ones(16)), 8)
    assert load_first(rooms[-1], 8, 0.0).known is None
    with pytest.raises(Fault, match="out of bounds"):
        load_float64(rooms[-1], 8)

"""Each vector operation against NumPy, lane by lane, at each width that registers may have.

A vector is sixteen lanes everywhere; how many of them a register holds is the CPU's: the operations
are compiled here as this machine has them, and in a child for AVX2.
"""

import platform

import children
import numba
import numpy as np
import pytest
from plain.floats import fma

from fastattn._engine.layouts import STORAGE_CODES, SWAPPED
from fastattn._numba.machine import memory, simd
from fastattn._numba.machine.emit import LANES
from fastattn._numba.machine.memory import load, load_first, load_scalar, store, store_first
from fastattn._numba.machine.simd import cast

IS_X86 = platform.machine().lower() in ("x86_64", "amd64")

# What is computed of vectors a, b, c and scalars begin and end, and what NumPy says it is.
VECTORS = {
    "a + b": lambda a, b, c: a + b,
    "a - b": lambda a, b, c: a - b,
    "a * b": lambda a, b, c: a * b,
    "a / b": lambda a, b, c: a / b,
    "-a": lambda a, b, c: -a,
    "simd.absolute(a)": lambda a, b, c: np.abs(a),
    "simd.square_root(a)": lambda a, b, c: np.sqrt(a),
    "simd.rounded_down(a)": lambda a, b, c: np.floor(a),
    "simd.fma(a, b, c)": lambda a, b, c: fma(a, b, c),
    "simd.larger(a, b)": lambda a, b, c: np.where(a > b, a, b),
    "simd.unless_nan(a, b)": lambda a, b, c: np.where(np.isnan(a), b, a),
    "simd.select_equal(a, b3, b, c)": lambda a, b, c: np.where(a == b[3], b, c),
    "simd.select_above(a, b, c, a)": lambda a, b, c: np.where(a > b, c, a),
    "simd.select_bytes(flags, a, b3)": lambda a, b, c: np.where(FLAGS, a, b[3]),
    "simd.select_same(numbers, 7, a, b3)": lambda a, b, c: np.where(NUMBERS == 7, a, b[3]),
    "simd.splat(b3)": lambda a, b, c: np.full(LANES, b[3]),
    "simd.lane_floats(tag)": lambda a, b, c: np.arange(LANES, dtype=a.dtype),
    "simd.narrowed(tag, simd.widened(a))": lambda a, b, c: a,
    "simd.narrowed(tag, simd.widened(a) / simd.widened(c))": lambda a, b, c: (
        a.astype(np.float64) / c.astype(np.float64)
    ).astype(a.dtype),
}  # fmt: skip
SCALARS = {
    "simd.lane_sum(a)": lambda a, b, c: tree(a, np.add),
    "simd.lane_max(a)": lambda a, b, c: tree(a, lambda x, y: np.where(x > y, x, y)),
    "simd.first_lane(b)": lambda a, b, c: b[0],
    "cast(tag, simd.any_nan(a))": lambda a, b, c: float(np.isnan(a).any()),
    "cast(tag, simd.same_lanes(a, b))": lambda a, b, c: float((a == b).all()),
    "cast(tag, simd.same_lanes(a, a))": lambda a, b, c: float((a == a).all()),
    "cast(tag, simd.item_size(tag))": lambda a, b, c: a.itemsize,
    "cast(tag, simd.largest_finite(tag))": lambda a, b, c: np.finfo(a.dtype).max,
    "cast(tag, memory.native_code(tag))": lambda a, b, c: STORAGE_CODES[a.dtype.name],
}
FLAGS = np.arange(LANES, dtype=np.uint8) * 100 % 3
NUMBERS = np.array([7, 8, -7, 7 + (1 << 32)] * 4)
BORDERS = (-(1 << 40), -1, 0, 1, 5, 8, 15, 16, 17, 1 << 40)


def tree(vector, combine):
    """Lane i with lane i + 8, then + 4, + 2, + 1."""
    while vector.size > 1:
        half = vector.size // 2
        vector = combine(vector[:half], vector[half:])
    return vector[0]


def compiled():
    """A function that stores every vector above, then a scalar each, from an address on."""
    lines = ["def every(tag, place, flags, numbers, target):"]
    lines += ["    item = simd.item_size(tag)"]
    lines += [f"    {x} = load(tag, place + {i * LANES} * item)" for i, x in enumerate("abc")]
    lines += [f"    b3 = load_scalar(tag, place + {LANES + 3} * item)"]
    lines += [f"    store(target + {i * LANES} * item, {x})" for i, x in enumerate(VECTORS)]
    first = len(VECTORS) * LANES
    lines += [
        f"    memory.store_scalar(target + {first + i} * item, {x})" for i, x in enumerate(SCALARS)
    ]
    names = {"simd": simd, "memory": memory, "load": load, "store": store}
    names |= {"cast": cast, "load_scalar": load_scalar}
    exec("\n".join(lines), names)
    return numba.njit(names["every"])


EVERY = compiled()


@numba.njit
def some_lanes(tag, place, begin, end, target):
    """Parts of a vector: kept, read and written."""
    item = simd.item_size(tag)
    a, other = load(tag, place), load_scalar(tag, place + LANES * item)
    store(target, simd.keep_lanes(a, begin, end, other))
    store(target + LANES * item, load_first(place, min(max(end, 0), LANES), other))
    store_first(target + 2 * LANES * item, a, min(max(end, 0), LANES))


@numba.njit
def stored(tag, code, size, place, count, target):
    for i in range(count):
        number = memory.load_as(tag, code, place + i * size)
        memory.store_scalar(target + i * simd.item_size(tag), number)


@numba.njit
def four_columns(tag, place, stride, last, target):
    memory.transpose_four(tag, 1, place, stride, 15, target, LANES * simd.item_size(tag))
    target += 4 * LANES * simd.item_size(tag)
    memory.transpose_four(tag, 0, place, stride, last, target, LANES * simd.item_size(tag))


def same(found, expected):
    """Whether numbers have the same bits; any NaN is a NaN."""
    both = np.isnan(found) & np.isnan(expected)
    bits = f"u{found.itemsize}"
    return (both | (found.view(bits) == expected.astype(found.dtype).view(bits))).all()


def vectors(dtype, rng):
    """Three of them: numbers of any size with ties between, and what is not one."""
    drawn = np.ldexp(rng.standard_normal((3, LANES)), rng.integers(-30, 30, (3, LANES)))
    drawn = drawn.astype(dtype)
    drawn[1] = np.where(rng.random(LANES) < 0.3, drawn[0], drawn[1])
    special = [0.0, -0.0, np.nan, np.inf, -np.inf, np.finfo(dtype).smallest_subnormal]
    chosen = rng.random((3, LANES)) < rng.choice([0, 0.1, 0.5])
    return np.where(chosen, rng.choice(np.array(special, dtype), (3, LANES)), drawn)


def check_arithmetic(dtype, rng):
    a, b, c = operands = np.ascontiguousarray(vectors(dtype, rng))
    result = np.empty(len(VECTORS) * LANES + len(SCALARS), dtype)
    EVERY(
        dtype.type(0), operands.ctypes.data, FLAGS.ctypes.data, NUMBERS.ctypes.data,
        result.ctypes.data,
    )  # fmt: skip
    with np.errstate(all="ignore"):
        for i, (text, meant) in enumerate(VECTORS.items()):
            found = result[i * LANES : (i + 1) * LANES]
            assert same(found, meant(a, b, c)), (text, operands, found)
        for found, (text, meant) in zip(result[-len(SCALARS) :], SCALARS.items(), strict=True):
            if "lane_max" not in text or not np.isnan(a).any():
                assert same(np.array([found]), np.array([meant(a, b, c)])), (text, operands)


def check_parts(dtype, rng):
    place = rng.standard_normal(LANES + 1).astype(dtype)
    a, other = place[:LANES], place[LANES]
    for begin in BORDERS:
        for end in BORDERS:
            result = np.full(3 * LANES, 9, dtype)
            some_lanes(dtype.type(0), place.ctypes.data, begin, end, result.ctypes.data)
            lane = np.arange(LANES)
            kept = np.where((lane >= begin) & (lane < end), a, other)
            assert (result[:LANES] == kept).all(), (begin, end)
            assert (result[LANES : 2 * LANES] == np.where(lane < end, a, other)).all(), end
            assert (result[2 * LANES :] == np.where(lane < end, a, 9)).all(), end


def check_storage(dtype, rng):
    """Every number of one or two bytes, and drawn ones of more, in either byte order."""
    for name, code in STORAGE_CODES.items():
        if name == "bfloat16":
            bits = np.arange(1 << 16, dtype=np.uint16)
            numbers, meant = bits, (bits.astype(np.uint32) << 16).view(np.float32)
        else:
            kind = np.dtype(name)
            numbers = np.frombuffer(rng.bytes(kind.itemsize * 4096), kind)
            if kind.itemsize < 3:
                numbers = np.arange(1 << 8 * kind.itemsize).astype(f"u{kind.itemsize}").view(kind)
            if name == "bool":
                numbers = np.arange(256).astype(np.uint8)
            meant = numbers != 0 if name == "bool" else numbers
        for swapped in (False, True):
            held = numbers.byteswap() if swapped else numbers.copy()
            result = np.empty(numbers.size, dtype)
            stored(
                dtype.type(0), code + SWAPPED * swapped, held.itemsize, held.ctypes.data,
                held.size, result.ctypes.data,
            )  # fmt: skip
            with np.errstate(all="ignore"):
                assert same(result, meant.astype(dtype)), (name, swapped)


def check_transpose(dtype, rng):
    rows = rng.standard_normal((LANES, 7)).astype(dtype)
    for last in (0, 3, 14, 15):
        result = np.empty((2, 4, LANES), dtype)
        four_columns(dtype.type(0), rows.ctypes.data, rows.strides[0], last, result.ctypes.data)
        assert (result[0] == rows[:, :4].T).all()
        assert (result[1] == rows[np.minimum(np.arange(LANES), last), :4].T).all(), last


def check_all(seed):
    rng = np.random.default_rng(seed)
    for dtype in map(np.dtype, ("float32", "float64")):
        for _ in range(200):
            check_arithmetic(dtype, rng)
        check_parts(dtype, rng)
        check_storage(dtype, rng)
        check_transpose(dtype, rng)


def test_on_this_machine(seed):
    check_all(seed)


def test_every_vector_operation_is_tried():
    """What a file of the machine offers for vectors is used above, or is tried elsewhere."""
    text = " ".join([*VECTORS, *SCALARS]) + " keep_lanes whole_products tile_width"
    offered = [name for name, one in vars(simd).items() if type(one).__name__ == "_Intrinsic"]
    assert len(offered) > 20
    assert [name for name in offered if name not in text] == []


@pytest.mark.skipif(not IS_X86, reason="the narrower registers of x86-64")
def test_in_registers_of_half_the_width(seed):
    code = f"""
import sys
sys.path.append({str(children.TESTS / "machine")!r})
import test_vectors
test_vectors.check_all({seed})
text = "".join(test_vectors.EVERY.inspect_asm().values())
print("zmm" in text, "ymm" in text)
"""
    narrow = {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": ""}
    assert children.run(code, **narrow).split() == ["False", "True"]

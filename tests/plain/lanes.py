"""Twins of `simd`: sixteen lanes as a NumPy array, whose arithmetic rounds as a vector's does.

Beside the lanes a vector has a mask of those that are known: what was loaded from memory that
nobody wrote is not, nor what is computed from it.
"""

import operator

import numpy as np

from .floats import F32, F64, Fault, Float32, Unknown, dtype_of, number, real
from .floats import fma as fma_of

LANES = 16
_NUMBERS = np.arange(LANES)
_ALL = np.ones(LANES, bool)
# Vectors of columns that a tile of six rows has. No bit depends on it; kernels branch on it.
WIDTHS = {"float32": 4, "float64": 2, "int32": 4}


class Vector:
    """Sixteen lanes of one float type; computes with its like alone, as in a kernel."""

    __slots__ = ("known", "lanes")

    def __init__(self, lanes, known=None):
        self.lanes = lanes
        self.known = known  # None: all of them

    def __repr__(self):
        return f"Vector({self.lanes}, {self.known})"

    def __neg__(self):
        return Vector(-self.lanes, self.known)


def both(one, other):
    """What is known of two masks together."""
    if one is None or other is None:
        return one if other is None else other
    return one & other


def _arithmetic(operation):
    def compute(self, other):
        if type(other) is not Vector or other.lanes.dtype != self.lanes.dtype:
            raise TypeError(f"a kernel cannot compute this: {self!r} and {other!r}")
        return Vector(operation(self.lanes, other.lanes), both(self.known, other.known))

    return compute


for _name in ("add", "sub", "mul", "truediv"):
    setattr(Vector, f"__{_name}__", _arithmetic(getattr(operator, _name)))


def element(vector, value):
    """A scalar in the type of a vector's elements."""
    return number(vector.lanes.dtype, value)


def raw(scalar):
    """A known scalar as NumPy has it."""
    return scalar.value if type(scalar) is Float32 else scalar


def item_size(tag):
    return dtype_of(tag).itemsize


def largest_finite(tag):
    return np.float64(np.finfo(dtype_of(tag)).max)


def cast(tag, value):
    return number(dtype_of(tag), value)


def tile_width(tag):
    return WIDTHS[dtype_of(tag).name]


def splat(scalar):
    if type(scalar) is Unknown:
        return Vector(np.zeros(LANES, scalar.dtype), ~_ALL)
    return Vector(np.full(LANES, raw(scalar), dtype_of(scalar)))


def _larger(a, b):
    return np.where(a > b, a, b)


def _tree(vector, combine):
    lanes = vector.lanes
    if vector.known is not None and not vector.known.all():
        return Unknown(lanes.dtype)
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = combine(lanes[:half], lanes[half:])
    return real(lanes.dtype, lanes[0])


def lane_sum(vector):
    return _tree(vector, operator.add)


def lane_max(vector):
    return _tree(vector, _larger)


def first_lane(vector):
    if vector.known is not None and not vector.known[0]:
        return Unknown(vector.lanes.dtype)
    return real(vector.lanes.dtype, vector.lanes[0])


class Undecided:
    """A test whose outcome depends on lanes that nobody wrote; whoever decides by it is wrong."""

    def __bool__(self):
        raise Fault("decides by lanes that were never written")

    def __and__(self, other):
        return self if type(other) is Undecided or other else False

    def __or__(self, other):
        return self if type(other) is Undecided or not other else True

    __rand__, __ror__ = __and__, __or__


def any_nan(vector):
    found, known = np.isnan(vector.lanes), vector.known
    if known is None:
        return bool(found.any())
    return bool((found & known).any()) or (Undecided() if not known.all() else False)


def same_lanes(a, b):
    same, known = a.lanes == b.lanes, both(a.known, b.known)
    if known is None:
        return bool(same.all())
    return bool((same | ~known).all()) and (Undecided() if not known.all() else True)


def chosen(mask, first, second, known=None):
    """Per lane the first or the second vector; `known` tells of which lanes the mask is."""
    lanes = np.where(mask, first.lanes, second.lanes)
    if first.known is not None or second.known is not None:
        of_either = np.where(
            mask,
            _ALL if first.known is None else first.known,
            _ALL if second.known is None else second.known,
        )
        known = both(known, of_either)
    return Vector(lanes, known)


def keep_lanes(vector, begin, end, other):
    inside = (begin <= _NUMBERS) & (end > _NUMBERS)
    return chosen(inside, vector, splat(element(vector, other)))


def select_equal(vector, probe, if_equal, otherwise):
    probe = splat(element(vector, probe))
    known = both(vector.known, probe.known)
    return chosen(vector.lanes == probe.lanes, if_equal, otherwise, known)


def select_above(a, b, if_above, otherwise):
    return chosen(a.lanes > b.lanes, if_above, otherwise, both(a.known, b.known))


def lane_floats(tag):
    return Vector(_NUMBERS.astype(dtype_of(tag)))


def fma(a, b, c):
    if type(a) is Vector:
        if not a.lanes.dtype == b.lanes.dtype == c.lanes.dtype:
            raise TypeError(f"a kernel cannot compute this: {a!r}, {b!r} and {c!r}")
        known = both(both(a.known, b.known), c.known)
        return Vector(fma_of(a.lanes, b.lanes, c.lanes), known)
    kind = F32 if dtype_of(a) is F32 else F64
    one = [number(kind, x) for x in (a, b, c)]
    for x in one:
        if type(x) is Unknown:
            return x
    return real(kind, fma_of(*(np.array([raw(x)], kind) for x in one))[0])


def larger(a, b):
    return Vector(_larger(a.lanes, b.lanes), both(a.known, b.known))


def unless_nan(vector, other):
    return chosen(np.isnan(vector.lanes), other, vector, vector.known)


def absolute(vector):
    return Vector(np.abs(vector.lanes), vector.known)


def square_root(vector):
    return Vector(np.sqrt(vector.lanes), vector.known)


def rounded_down(vector):
    return Vector(np.floor(vector.lanes), vector.known)


def widened(vector):
    return Vector(vector.lanes.astype(F64), vector.known)


def narrowed(tag, vector):
    if vector.lanes.dtype != F64:
        raise TypeError(f"a kernel cannot round this: {vector!r}")
    return Vector(vector.lanes.astype(dtype_of(tag)), vector.known)


def whole_products(vector, factor):
    whole = vector.lanes.astype(np.int64) * np.int64(factor)
    return Vector(whole.view(F64), vector.known)


TWINS = {
    function.__name__: function
    for function in (
        item_size, largest_finite, cast, tile_width, splat, lane_sum, lane_max, first_lane, any_nan,
        same_lanes, keep_lanes, select_equal, select_above, lane_floats, fma, larger, unless_nan,
        absolute, square_root, rounded_down, widened, narrowed, whole_products,
    )
}  # fmt: skip

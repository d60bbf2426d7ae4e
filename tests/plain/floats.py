"""Numbers as kernels have them: float32 beside float64, and a product added with one rounding.

Numba and NumPy type mixed arithmetic differently: float32 with a literal, or with an integer, is
float64 in a kernel and float32 in NumPy. So a float32 number of a kernel is a `Float32` here. A
float64 number is NumPy's, whose division by 0 gives inf as that of a kernel does.
"""

import operator
from fractions import Fraction

import numpy as np

__all__ = [
    "F64",
    "Fault",
    "Float32",
    "Unknown",
    "dtype_of",
    "fma",
    "larger_of",
    "number",
    "real",
    "smaller_of",
]

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
_INT64 = np.int64
_SMALLEST = 2.0**-126
_SPLITTER = 134217729.0
# Products and addends within these neither overflow nor lose bits of their errors.
_LOW, _HIGH = 2.0**-900, 2.0**900


class Fault(Exception):
    """A kernel accessed memory that is not its own, or made use of what nobody wrote."""


class Unknown:
    """A number read from memory that nobody wrote; so is what is computed from it.

    Padding may be such. Nobody may decide by it, or hand it out as a result.
    """

    __slots__ = ("dtype",)
    __array_ufunc__ = None

    def __init__(self, dtype):
        self.dtype = dtype

    def _still_unknown(self, *others):
        return self

    def _used(self, *others):
        raise Fault("decides by a number that was never written")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _still_unknown
    __truediv__ = __rtruediv__ = __neg__ = __abs__ = _still_unknown
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __float__ = __int__ = _used
    __hash__ = None


class Float32:
    """A float32 number; with anything but another one it computes in float64."""

    __slots__ = ("value",)
    __array_ufunc__ = None  # NumPy's float64 lets it answer

    def __init__(self, value):
        self.value = value if type(value) is np.float32 else np.float32(value)

    def __repr__(self):
        return f"Float32({self.value})"

    def __float__(self):
        return float(self.value)

    def __bool__(self):
        return bool(self.value)

    def __neg__(self):
        return Float32(-self.value)

    def __abs__(self):
        return Float32(abs(self.value))

    def __hash__(self):
        return hash(self.value)


def _arithmetic(operation):
    def forward(self, other):
        if type(other) is Float32:
            return Float32(operation(self.value, other.value))
        if type(other) is Unknown:
            return other
        return operation(np.float64(self.value), np.float64(other))

    def backward(self, other):
        return operation(np.float64(other), np.float64(self.value))

    return forward, backward


def _comparison(operation):
    def compare(self, other):
        return bool(operation(float(self.value), float(other)))

    return compare


for _name in ("add", "sub", "mul", "truediv"):
    _forward, _backward = _arithmetic(getattr(operator, _name))
    setattr(Float32, f"__{_name}__", _forward)
    setattr(Float32, f"__r{_name}__", _backward)
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Float32, f"__{_name}__", _comparison(getattr(operator, _name)))


_DTYPES = {
    Float32: F32,
    float: F64,
    **{kind: np.dtype(kind) for kind in (np.float32, np.float64)},
    **{kind: np.dtype(kind) for kind in (np.uint8, np.uint16, np.uint32, np.int32)},
}


def dtype_of(tag):
    """The type of a number, or of a tag that stands for it."""
    return tag.dtype if type(tag) is Unknown else _DTYPES[type(tag)]


def real(dtype, value):
    """A number of a dtype as a kernel has it."""
    return Float32(value) if dtype is F32 else np.float64(value)


def number(dtype, value):
    """Any number converted to a float type, rounded once."""
    if type(value) is Float32:
        return value if dtype is F32 else np.float64(value.value)
    if type(value) is Unknown:
        return Unknown(dtype)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        # Not by way of float64, which would round a first time.
        return real(dtype, np.int64(value).astype(dtype))
    return real(dtype, value)


def _unified(one, other):
    """Two numbers in the type that Numba gives a choice between them."""
    if type(one) is type(other):
        return one, other
    if isinstance(one, int | np.integer) and isinstance(other, int | np.integer):
        return one, other
    return np.float64(one), np.float64(other)


def smaller_of(first, *others):
    """`min` as a kernel has it."""
    for other in others:
        first, other = _unified(first, other)
        first = other if other < first else first
    return first


def larger_of(first, *others):
    """`max` as a kernel has it."""
    for other in others:
        first, other = _unified(first, other)
        first = other if other > first else first
    return first


# --- one rounding -------------------------------------------------------------------------------


def fma(a, b, c):
    """`a * b + c` of arrays of one float type, rounded once."""
    return _fma32(a, b, c) if c.dtype == F32 else _fma64(a, b, c)


def two_sum(a, b):
    """A sum, and what its rounding lost (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def to_odd(total, lost):
    """Of an inexact sum the neighbour with an odd last bit: rounded again, shorter, it is exact."""
    bits = total.view(_INT64)
    moved = (lost != 0) & (bits & 1 == 0) & np.isfinite(total) & np.isfinite(lost)
    step = np.where((lost > 0) == (total > 0), 1, -1)
    return np.where(moved, bits + step, bits).view(F64)


def wide_sum(a, b, c):
    """`a * b + c` of float32 in float64, rounded to odd where that is inexact."""
    product = a.astype(F64) * b
    wide = np.broadcast_to(c, product.shape).astype(F64)
    return to_odd(*two_sum(product, wide))


def _fma32(a, b, c):
    product = a.astype(F64) * b  # exact: 48 bits
    total = product + c
    # Rounding twice goes wrong only where the first rounding ends in the middle of two float32.
    middle = (total.view(_INT64) & 0x1FFFFFFF) == 0x10000000
    small = (np.abs(total) < _SMALLEST) & (total != 0)
    if (middle | small).any():
        return wide_sum(a, b, c).astype(F32)
    return total.astype(F32)


def _parts(a):
    scaled = _SPLITTER * a
    high = scaled - (scaled - a)
    return high, a - high


def _fma64(a, b, c):
    # Boldo and Melquiond, "Emulation of FMA and correctly rounded sums": the small parts are added
    # to odd before the large one is.
    product = a * b
    (a_high, a_low), (b_high, b_low) = _parts(a), _parts(b)
    lost = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    near, near_rest = two_sum(np.broadcast_to(c, lost.shape), lost)
    total, total_rest = two_sum(product, near)
    result = np.asarray(total + to_odd(*two_sum(near_rest, total_rest)))
    sizes = np.abs(product)
    safe = (sizes > _LOW) & (sizes < _HIGH) & (np.abs(c) < _HIGH)
    safe &= (np.abs(a) < _HIGH) & (np.abs(b) < _HIGH)
    if not safe.all():
        operands = np.broadcast_arrays(a, b, c)
        for place in zip(*np.nonzero(~safe), strict=True):
            result[place] = _exact_fma(*(float(one[place]) for one in operands))
    return result


def _exact_fma(a, b, c):
    if a == 0 or b == 0 or not np.isfinite([a, b, c]).all():
        return np.float64(a) * b + c
    total = Fraction(a) * Fraction(b) + Fraction(c)
    try:
        return total.numerator / total.denominator  # of integers: rounded once
    except OverflowError:
        return np.copysign(np.inf, float(total > 0) - 0.5)

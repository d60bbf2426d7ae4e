"""Twins of `memory`, `native` and `record`: loads and stores, and the named words of a record."""

import inspect

import numpy as np

from fastattn._engine.layouts import STORAGE_CODES, SWAPPED

from .arrays import poisoned
from .floats import F64, Fault, Float32, Unknown, dtype_of, number, real
from .lanes import LANES, Vector, chosen, element, raw, splat
from .memory import current

_I64 = np.dtype(np.int64)


# --- numbers and bytes at an address ------------------------------------------------------------


def read_array(dtype, address, count):
    """Consecutive elements, a copy; all of them are known."""
    values, known = read_known(dtype, address, count)
    if known is not None:
        raise Fault(f"decides by what was never written, {count} elements at {address}")
    return values


def read_known(dtype, address, count):
    """Consecutive elements, a copy, and a mask of those that are known, or None."""
    data, at, known = current().read(int(address), count * dtype.itemsize)
    if known is not None:
        known = known.reshape(count, dtype.itemsize).all(axis=1)
    return np.frombuffer(data, dtype, count, at).copy(), known


def write_array(address, lanes, known=None):
    """Write elements; those that are not known become as if nobody had written them."""
    if known is None or known.all():
        current().write(int(address), lanes.tobytes())
        return
    item = lanes.itemsize
    data = np.where(np.repeat(known, item), lanes.view(np.uint8), poisoned(lanes.nbytes))
    current().write(int(address), data.tobytes(), np.repeat(known, item).tobytes())


def read_rows(dtype, address, stride, rows, count):
    """So many elements of each of several rows, each row checked by itself; and what is known."""
    found = [read_known(dtype, address + row * stride, count) for row in range(rows)]
    values = np.array([row for row, _ in found])
    if all(known is None for _, known in found):
        return values, None
    every = np.ones(count, bool)
    return values, np.array([every if known is None else known for _, known in found])


def write_rows(address, stride, values, known=None):
    for row, lanes in enumerate(values):
        write_array(
            address + row * stride,
            np.ascontiguousarray(lanes),
            None if known is None else known[row],
        )


def wrapped(value):
    """An integer in the 64 bits that a kernel has for it."""
    return (int(value) + (1 << 63)) % (1 << 64) - (1 << 63)


def load_int64(address, index):
    return int(read_array(_I64, address + 8 * index, 1)[0])


def load_int32(address):
    return int(read_array(np.dtype(np.int32), address, 1)[0])


def store_int64(address, index, value):
    current().write(int(address + 8 * index), wrapped(value).to_bytes(8, "little", signed=True))


def load_float64(address, index):
    return _scalar(F64, address + 8 * index)


def _scalar(dtype, address):
    found, known = read_known(dtype, address, 1)
    if known is not None:
        return Unknown(dtype)
    return real(dtype, found[0]) if dtype.kind == "f" else found[0]


def store_float64(address, index, value):
    store_scalar(address + 8 * index, number(F64, value))


def bits_of(value):
    return int(np.float64(value).view(np.int64))


def float_of(bits):
    return np.int64(wrapped(bits)).view(np.float64)


def atomic_next(address):
    current().next_worker()
    task = load_int64(address, 0)
    store_int64(address, 0, task + 1)
    return task


# --- vectors ------------------------------------------------------------------------------------


def load(tag, address):
    return Vector(*read_known(dtype_of(tag), address, LANES))


def store(address, vector):
    write_array(address, vector.lanes, vector.known)


def stream(address, vector):
    if address % 64:
        raise AssertionError(f"streams to {address}, which is no multiple of 64")
    store(address, vector)


def load_first(address, count, other):
    made = splat(other)
    count = min(max(count, 0), LANES)
    if count:
        made.lanes[:count], known = read_known(made.lanes.dtype, address, count)
        if known is not None:
            made.known = np.concatenate([known, np.ones(LANES - count, bool)])
    return made


def store_first(address, vector, count):
    if count > 0:
        count = min(count, LANES)
        known = None if vector.known is None else vector.known[:count]
        write_array(address, vector.lanes[:count], known)


def load_scalar(tag, address):
    return _scalar(dtype_of(tag), address)


def store_scalar(address, scalar):
    if type(scalar) is Unknown:
        write_array(address, np.zeros(1, scalar.dtype), np.zeros(1, bool))
        return
    if not isinstance(scalar, Float32 | np.generic):
        scalar = np.float64(scalar) if isinstance(scalar, float) else np.int64(scalar)
    current().write(int(address), raw(scalar).tobytes())


def select_bytes(address, vector, other):
    seen = read_array(np.dtype(np.uint8), address, LANES) != 0
    return chosen(seen, vector, splat(element(vector, other)))


def nonzero_bytes(address):
    seen = read_array(np.dtype(np.uint8), address, LANES) != 0
    return int(seen @ (1 << np.arange(LANES)))


def trailing_zeros(word):
    word = int(word) % (1 << 64)
    return (word & -word).bit_length() - 1 if word else 64


def select_same(address, wanted, vector, other):
    same = read_array(_I64, address, LANES) == wanted
    return chosen(same, vector, splat(element(vector, other)))


def prefetch(address):
    """Nothing need be there."""


def native_code(tag):
    return STORAGE_CODES[dtype_of(tag).name]


_NAMES = {code: name for name, code in STORAGE_CODES.items()}


def load_as(tag, code, address):
    code = int(code)
    name, swapped = _NAMES[code % SWAPPED], code >= SWAPPED
    stored = np.dtype("uint16" if name == "bfloat16" else "uint8" if name == "bool" else name)
    found = read_array(stored.newbyteorder() if swapped else stored, address, 1).astype(stored)
    if name == "bool":
        found = (found != 0).astype(np.uint8)
    elif name == "bfloat16":
        found = (found.astype(np.uint32) << 16).view(np.float32)
    return real(dtype_of(tag), found.astype(dtype_of(tag))[0])


def transpose_four(tag, whole, source, row_stride, last_row, target, target_stride):
    rows = range(LANES) if whole else (min(row, last_row) for row in range(LANES))
    found = [read_rows(dtype_of(tag), source + row * row_stride, 0, 1, 4) for row in rows]
    values = np.concatenate([row for row, _ in found])
    known = [np.ones((1, 4), bool) if mask is None else mask for _, mask in found]
    write_rows(target, target_stride, values.T, np.concatenate(known).T)


def stack_room(size):
    return current().room(size)


# --- records ------------------------------------------------------------------------------------


class Record:
    """The record at an address; a word is read when its name is asked for."""

    __slots__ = ("address", "layout")

    def __init__(self, layout, address):
        self.layout, self.address = layout, address

    def __getattr__(self, field):
        load_word = load_float64 if field in self.layout.floats else load_int64
        return load_word(self.address, self.layout.word[field])


def record_address(record):
    return record.address


def read_record(function):
    """The twin of what `record.reader` makes for a layout, which that function holds."""
    layout = inspect.getclosurevars(function).nonlocals["layout"]
    return lambda address: Record(layout, address)


def read_record_of(function):
    """The twin of what `variant.reader_of` makes, whose records know the variant too."""
    names = inspect.getclosurevars(function)
    kind, table = names.globals["RecordType"], names.nonlocals["table"]
    return lambda variant, address: Record(kind(table, variant), address)


# Twins that are made of the function they stand for.
MADE = {"read_record": read_record, "read_record_of": read_record_of}


def step(name):
    """Stands for what `variant.step` makes, which chooses while Numba compiles; here each call."""

    def of_variant(*arguments):
        record = next(one for one in arguments if type(one) is Record)
        return getattr(record.layout.variant, name)(*arguments)

    return of_variant


def tag_of(variant):
    return variant.tag


TWINS = {
    function.__name__: function
    for function in (
        load_int64, load_int32, store_int64, load_float64, store_float64, bits_of, float_of,
        atomic_next, load, store, stream, load_first, store_first, load_scalar, store_scalar,
        select_bytes, select_same, nonzero_bytes, trailing_zeros, prefetch, native_code, load_as,
        transpose_four, stack_room, record_address, tag_of,
    )
}  # fmt: skip

"""Small storage types: vectors of halves and int8 widened when loaded, rounded when stored.

Arithmetic knows float32 and float64 alone. A half is widened exactly; a result is rounded to one
once, to nearest with ties to even.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .compile import device
from .emit import I32, LANES, VECTOR_OF, load_ir, splat_ir, store_ir, vector_ir
from .memory import load, load_as, load_scalar, native_code, store, store_scalar
from .simd import item_size, splat

HALF = 11  # codes of `memory.STORAGE_CODES`
BFLOAT = 12
INT8 = 3


def _shorts(builder, address):
    """Sixteen 16-bit words, zero-extended to 32."""
    words = load_ir(builder, address, ir.VectorType(ir.IntType(16), LANES))
    return builder.zext(words, ir.VectorType(I32, LANES))


def _widened(builder, address, kind):
    """Sixteen stored elements as floats."""
    floats = vector_ir(types.float32)
    if kind == HALF:
        halves = load_ir(builder, address, ir.VectorType(ir.HalfType(), LANES))
        return builder.fpext(halves, floats)
    if kind == BFLOAT:
        shifted = builder.shl(_shorts(builder, address), splat_ir(builder, I32(16)))
        return builder.bitcast(shifted, floats)
    small = load_ir(builder, address, ir.VectorType(ir.IntType(8), LANES))
    return builder.sitofp(small, floats)


@intrinsic(prefer_literal=True)
def load_widened(typing_context, tag, kind, address):
    """Sixteen consecutive elements of a small storage type (a literal code) as a vector."""
    sig = VECTOR_OF[tag](tag, kind, types.int64)
    code = kind.literal_value

    def codegen(context, builder, sig, args):
        floats = _widened(builder, args[2], code)
        target = vector_ir(tag)
        return floats if floats.type == target else builder.fpext(floats, target)

    return sig, codegen


def rounded_to_bfloat(builder, floats):
    """Floats (a vector or one) rounded to bfloat16, as 16-bit words; NaN stays NaN."""
    count = floats.type.count

    def wide(number):
        return splat_ir(builder, I32(number), count)

    bits = builder.bitcast(floats, ir.VectorType(I32, count))
    odd = builder.and_(builder.lshr(bits, wide(16)), wide(1))
    rounded = builder.add(builder.add(bits, wide(0x7FFF)), odd)
    quiet = builder.or_(bits, wide(0x400000))
    is_nan = builder.fcmp_unordered("uno", floats, floats)
    chosen = builder.select(is_nan, quiet, rounded)
    return builder.trunc(builder.lshr(chosen, wide(16)), ir.VectorType(ir.IntType(16), count))


def _rounded(builder, floats, code):
    """Sixteen floats as halves."""
    if floats.type.element != ir.FloatType():
        floats = builder.fptrunc(floats, vector_ir(types.float32))
    if code == HALF:
        return builder.fptrunc(floats, ir.VectorType(ir.HalfType(), LANES))
    return rounded_to_bfloat(builder, floats)


@intrinsic(prefer_literal=True)
def store_first_rounded(typing_context, kind, address, vector):
    """Write lane 0 rounded to a half storage type (a literal code)."""
    sig = types.void(kind, types.int64, vector)
    code = kind.literal_value

    def codegen(context, builder, sig, args):
        halves = _rounded(builder, args[2], code)
        store_ir(builder, args[1], builder.extract_element(halves, I32(0)))
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def store_rounded(typing_context, kind, address, vector):
    """Write sixteen elements rounded to a half storage type (a literal code)."""
    sig = types.void(kind, types.int64, vector)
    code = kind.literal_value

    def codegen(context, builder, sig, args):
        stored = _rounded(builder, args[2], code)
        store_ir(builder, args[1], stored)
        return context.get_dummy_value()

    return sig, codegen


@device
def widen_row(tag, code, source, stride, count, target):
    """Write `count` stored elements, `stride` bytes apart, as a contiguous row of the tag's type.

    Reads and writes nothing beyond.
    """
    item = item_size(tag)
    whole = count // LANES * LANES
    i = 0
    if code == native_code(tag) and stride == item:
        while i < whole:
            store(target + i * item, load(tag, source + i * item))
            i += LANES
    elif code == HALF and stride == 2:
        while i < whole:
            store(target + i * item, load_widened(tag, HALF, source + 2 * i))
            i += LANES
    elif code == BFLOAT and stride == 2:
        while i < whole:
            store(target + i * item, load_widened(tag, BFLOAT, source + 2 * i))
            i += LANES
    elif code == INT8 and stride == 1:
        while i < whole:
            store(target + i * item, load_widened(tag, INT8, source + i))
            i += LANES
    while i < count:
        store_scalar(target + i * item, load_as(tag, code, source + i * stride))
        i += 1


@device
def round_row(tag, code, source, count, target, stride):
    """Write a contiguous row as `count` elements of storage type `code`, `stride` bytes apart.

    The type is the tag's own or a half. `source` is readable up to the next multiple of sixteen;
    nothing is written beyond.
    """
    item = item_size(tag)
    whole = count // LANES * LANES
    i = 0
    if code == native_code(tag):
        if stride == item:
            while i < whole:
                store(target + i * item, load(tag, source + i * item))
                i += LANES
        while i < count:
            store_scalar(target + i * stride, load_scalar(tag, source + i * item))
            i += 1
        return
    if stride == 2:
        while i < whole:
            if code == HALF:
                store_rounded(HALF, target + 2 * i, load(tag, source + i * item))
            else:
                store_rounded(BFLOAT, target + 2 * i, load(tag, source + i * item))
            i += LANES
    while i < count:
        wide = splat(load_scalar(tag, source + i * item))
        if code == HALF:
            store_first_rounded(HALF, target + i * stride, wide)
        else:
            store_first_rounded(BFLOAT, target + i * stride, wide)
        i += 1

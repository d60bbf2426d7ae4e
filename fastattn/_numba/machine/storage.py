"""Small storage types: vectors of halves and int8 widened when loaded, rounded when stored.

Arithmetic knows float32 and float64 alone. A half is widened exactly; a result is rounded to one
once, to nearest with ties to even.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..compiler.compile import device
from .emit import (
    I32,
    I64,
    LANES,
    VECTOR_OF,
    halves_rounded,
    halves_widened,
    load_ir,
    shuffle_ir,
    splat_ir,
    store_ir,
    vector_ir,
)
from .memory import (
    load,
    load_as,
    load_first,
    load_scalar,
    native_code,
    prefetch,
    store,
    store_first,
    store_scalar,
    transposed,
)
from .simd import cast, item_size, splat

HALF = 11  # codes of `memory.STORAGE_CODES`
BFLOAT = 12
INT8 = 3

_I16 = ir.IntType(16)


def _shorts(builder, address):
    """Sixteen 16-bit words, zero-extended to 32."""
    words = load_ir(builder, address, ir.VectorType(_I16, LANES))
    return builder.zext(words, ir.VectorType(I32, LANES))


def widened(builder, address, kind):
    """Sixteen stored elements as floats."""
    floats = vector_ir(types.float32)
    if kind == HALF:
        return halves_widened(builder, load_ir(builder, address, ir.VectorType(_I16, LANES)))
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
        floats = widened(builder, args[2], code)
        target = vector_ir(tag)
        return floats if floats.type == target else builder.fpext(floats, target)

    return sig, codegen


def parts_of_words(builder, words, code):
    """The stored elements of sixteen 32-bit words: a vector of floats for each place in a word."""
    floats = vector_ir(types.float32)
    if code == BFLOAT:
        low = builder.shl(words, splat_ir(builder, I32(16)))
        high = builder.and_(words, splat_ir(builder, I32(-65536)))
        return [builder.bitcast(half, floats) for half in (low, high)]
    if code == HALF:
        halves = builder.bitcast(words, ir.VectorType(_I16, 2 * LANES))
        places = (range(first, 2 * LANES, 2) for first in range(2))
        chosen = [shuffle_ir(builder, halves, halves, place) for place in places]
        return [halves_widened(builder, half) for half in chosen]
    elements = []
    for first in range(24, -1, -8):
        byte = builder.shl(words, splat_ir(builder, I32(first)))
        byte = builder.ashr(byte, splat_ir(builder, I32(24)))
        elements.append(builder.sitofp(byte, floats))
    return elements


@intrinsic(prefer_literal=True)
def transpose_widened(typing_context, tag, kind, source, row_stride, scales, target, target_stride):
    """Columns of sixteen rows of a small storage type (a literal code), written as vectors.

    As `transpose_four`, but a step takes sixteen bytes of each row: eight halves, or sixteen int8,
    which are multiplied by their row's float32 at `scales`, in float32 whatever the tag.
    """
    sig = types.void(tag, kind, *[types.int64] * 5)
    code = kind.literal_value

    def codegen(context, builder, sig, args):
        _, _, source, row_stride, scales, target, target_stride = args
        quad = ir.VectorType(I32, 4)
        rows = [
            load_ir(builder, builder.add(source, builder.mul(row_stride, I64(r))), quad)
            for r in range(LANES)
        ]
        columns = []
        for words in transposed(builder, rows):
            columns += parts_of_words(builder, words, code)
        wide = vector_ir(tag)
        if code == INT8:
            scale = load_ir(builder, scales, vector_ir(types.float32))
            columns = [builder.fmul(column, scale) for column in columns]
        for i, column in enumerate(columns):
            column = column if column.type == wide else builder.fpext(column, wide)
            store_ir(builder, builder.add(target, builder.mul(target_stride, I64(i))), column)
        return context.get_dummy_value()

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
    return builder.trunc(builder.lshr(chosen, wide(16)), ir.VectorType(_I16, count))


def _rounded(builder, floats, code):
    """Sixteen floats rounded to halves, as 16-bit words."""
    if floats.type.element != ir.FloatType():
        floats = builder.fptrunc(floats, vector_ir(types.float32))
    if code == HALF:
        return halves_rounded(builder, floats)
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
        if whole < count:
            rest = load_first(source + whole * item, count - whole, cast(tag, 0.0))
            store_first(target + whole * item, rest, count - whole)
        return
    if code == HALF and stride == 2:
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


@intrinsic
def dequantised(typing_context, tag, address, scale):
    """Sixteen consecutive int8 times a float32, as a vector; in float32 whatever the tag."""
    sig = VECTOR_OF[tag](tag, types.int64, types.float32)

    def codegen(context, builder, sig, args):
        product = builder.fmul(widened(builder, args[1], INT8), splat_ir(builder, args[2]))
        target = vector_ir(tag)
        return product if product.type == target else builder.fpext(product, target)

    return sig, codegen


@device
def dequantise_row(tag, source, count, scale, target):
    """Write contiguous int8 times a float32 scale as a row of the tag's type.

    The products are float32, rounded once, whatever the tag: what is stored is one number for every
    query, that which `KVCache.dense` shows.
    """
    item = item_size(tag)
    whole = count // LANES * LANES
    for i in range(0, whole, LANES):
        store(target + i * item, dequantised(tag, source + i, scale))
    for i in range(whole, count):
        product = load_as(np.float32(0), INT8, source + i) * scale
        store_scalar(target + i * item, cast(tag, product))


@device
def pack_small(tag, code, source, row_stride, rows, features, scales, target, target_stride, ahead):
    """Write `target[feature][row]` of sixteens of rows of halves, or of int8 with its scales.

    Requires contiguous rows of 16 bytes at least. Asks for what lies `ahead` bytes beyond what it
    reads.
    """
    size = 1 if code == INT8 else 2
    step = 16 // size
    lines = (features * size + 63) // 64
    for first in range(0, rows, LANES):
        start = source + first * row_stride
        place = target + first * item_size(tag)
        scale = scales + 4 * first
        row = line = 0
        for feature in range(0, features, step):
            # The last step overlaps the one before when they do not come out even.
            feature = min(feature, features - step)
            # Four cache lines a step, as many as four steps read; in the order of addresses, which
            # is what the machine's own prefetching follows.
            for _ in range(4):
                prefetch(start + ahead + row * row_stride + line * 64)
                line += 1
                if line == lines:
                    row, line = row + 1, 0
            here, end = start + feature * size, place + feature * target_stride
            if code == BFLOAT:
                transpose_widened(tag, BFLOAT, here, row_stride, 0, end, target_stride)
            elif code == HALF:
                transpose_widened(tag, HALF, here, row_stride, 0, end, target_stride)
            else:
                transpose_widened(tag, INT8, here, row_stride, scale, end, target_stride)


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

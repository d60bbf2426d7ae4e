"""Loads and stores of vectors and scalars, any alignment and storage type; and transposing."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastattn._engine.layouts import STORAGE_CODES, SWAPPED

from .emit import (
    I32,
    I64,
    INTEGER_BITS,
    LANES,
    VECTOR_OF,
    element_ir,
    halves_widened,
    lane_numbers,
    load_ir,
    outlined,
    pointer_ir,
    prefetch_ir,
    shuffle_ir,
    splat_ir,
    store_ir,
    vector_ir,
)


@intrinsic
def load(typing_context, tag, address):
    """Sixteen consecutive elements from an address of any alignment."""
    element = tag
    sig = VECTOR_OF[element](tag, types.int64)

    def codegen(context, builder, sig, args):
        return load_ir(builder, args[1], vector_ir(element))

    return sig, codegen


@intrinsic
def store(typing_context, address, vector):
    """Write sixteen elements to an address of any alignment."""
    sig = types.void(types.int64, vector)

    def codegen(context, builder, sig, args):
        store_ir(builder, args[0], args[1])
        return context.get_dummy_value()

    return sig, codegen


def _first_lanes(builder, element, count):
    """A mask of the lanes below `count`."""
    bits = ir.IntType(INTEGER_BITS[element])
    if bits.width == 32:
        count = builder.trunc(count, bits)
    return builder.icmp_signed("<", lane_numbers(element), splat_ir(builder, count))


def _masked(builder, name, kind, result, kinds):
    bits = "f32" if isinstance(kind.element, ir.FloatType) else "f64"
    signature = ir.FunctionType(result, kinds)
    return cgutils.get_or_insert_function(
        builder.module, signature, f"llvm.masked.{name}.v{kind.count}{bits}.p0"
    )


@intrinsic
def load_first(typing_context, address, count, other):
    """Elements 0 to count, `other` in the lanes from there; reads nothing beyond."""
    sig = VECTOR_OF[other](types.int64, types.int64, other)

    def codegen(context, builder, sig, args):
        kind = vector_ir(other)
        lanes = _first_lanes(builder, other, args[1])
        pointer = pointer_ir(builder, args[0], kind)
        kinds = [pointer.type, I32, lanes.type, kind]
        function = _masked(builder, "load", kind, kind, kinds)
        return builder.call(function, [pointer, I32(1), lanes, splat_ir(builder, args[2])])

    return sig, codegen


@intrinsic
def store_first(typing_context, address, vector, count):
    """Write lanes 0 to count, and nothing beyond."""
    sig = types.void(types.int64, vector, types.int64)

    def codegen(context, builder, sig, args):
        kind = args[1].type
        lanes = _first_lanes(builder, vector.element, args[2])
        pointer = pointer_ir(builder, args[0], kind)
        kinds = [kind, pointer.type, I32, lanes.type]
        function = _masked(builder, "store", kind, ir.VoidType(), kinds)
        builder.call(function, [args[1], pointer, I32(1), lanes])
        return context.get_dummy_value()

    return sig, codegen


@intrinsic
def stream(typing_context, address, vector):
    """Write sixteen elements past the caches; the address is a multiple of 64.

    Such stores are ordered by the next atomic step, which every worker takes before it ends.
    """
    sig = types.void(types.int64, vector)

    def codegen(context, builder, sig, args):
        pointer = pointer_ir(builder, args[0], args[1].type)
        written = builder.store(args[1], pointer, align=64)
        written.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))
        return context.get_dummy_value()

    return sig, codegen


@intrinsic
def load_scalar(typing_context, tag, address):
    """One element of the tag's type."""
    sig = tag(tag, types.int64)

    def codegen(context, builder, sig, args):
        return load_ir(builder, args[1], context.get_value_type(tag))

    return sig, codegen


@intrinsic
def store_scalar(typing_context, address, scalar):
    """Write one scalar of any number type."""
    sig = types.void(types.int64, scalar)

    def codegen(context, builder, sig, args):
        store_ir(builder, args[0], args[1])
        return context.get_dummy_value()

    return sig, codegen


@intrinsic
def prefetch(typing_context, address):
    """Ask for the cache line at an address, into the second-level cache; never faults."""
    sig = types.void(types.int64)

    def codegen(context, builder, sig, args):
        prefetch_ir(builder, args[0])
        return context.get_dummy_value()

    return sig, codegen


@intrinsic
def native_code(typing_context, tag):
    """The storage code of the tag's own type, a constant."""
    sig = types.int64(tag)
    code = STORAGE_CODES[tag.name]

    def codegen(context, builder, sig, args):
        return ir.Constant(I64, code)

    return sig, codegen


def _convert_storage(builder, address, name, swapped, target):
    """Load one element of a storage type and convert it to the LLVM float `target`."""
    size = 2 if name == "bfloat16" else np.dtype(name).itemsize
    bits = load_ir(builder, address, ir.IntType(8 * size))
    if swapped and size > 1:
        bits = builder.bswap(bits)
    if name == "bool":
        return builder.uitofp(builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0)), target)
    if name.startswith("uint"):
        return builder.uitofp(bits, target)
    if name.startswith("int"):
        return builder.sitofp(bits, target)
    if name == "float16":
        value = halves_widened(builder, bits)
    elif name == "bfloat16":
        value = builder.bitcast(builder.shl(builder.zext(bits, I32), I32(16)), ir.FloatType())
    else:
        value = builder.bitcast(bits, {4: ir.FloatType(), 8: ir.DoubleType()}[size])
    if value.type == target:
        return value
    if size < 8:
        return builder.fpext(value, target)
    return builder.fptrunc(value, target)


@intrinsic
def load_as(typing_context, tag, code, address):
    """One stored element of any real type and byte order, converted to the tag's type."""
    sig = tag(tag, types.int64, types.int64)

    def emit(builder, args):
        code, address = args
        target = element_ir(tag)
        done = builder.append_basic_block("load_as.done")
        other = builder.append_basic_block("load_as.other")
        choice = builder.switch(code, other)
        arms = []
        for name, number in STORAGE_CODES.items():
            for swapped in (False, True):
                arm = builder.append_basic_block(f"load_as.{name}")
                choice.add_case(ir.Constant(I64, number + SWAPPED * swapped), arm)
                builder.position_at_end(arm)
                arms.append((_convert_storage(builder, address, name, swapped, target), arm))
                builder.branch(done)
        builder.position_at_end(other)
        builder.branch(done)
        builder.position_at_end(done)
        result = builder.phi(target)
        result.add_incoming(ir.Constant(target, 0.0), other)
        for value, arm in arms:
            result.add_incoming(value, arm)
        return result

    def codegen(context, builder, sig, args):
        name = f"fastattn.load_as.{tag}"
        return outlined(context, builder, name, [I64, I64], element_ir(tag), emit, args[1:])

    return sig, codegen


def transposed(builder, rows):
    """Four vectors, the columns of sixteen rows of four elements of 32 or 64 bits."""
    # wide[i] holds rows i, i+4, i+8, i+12, four columns each: what is left is a 4 x 4 transpose
    # inside each quarter, which needs no shuffle across 128-bit lanes in float32.
    wide = []
    for i in range(4):
        low = shuffle_ir(builder, rows[i], rows[i + 4], range(8))
        high = shuffle_ir(builder, rows[i + 8], rows[i + 12], range(8))
        wide.append(shuffle_ir(builder, low, high, range(16)))
    a, b, c, d = wide
    first = [q + k for q in range(0, 16, 4) for k in (0, 16, 1, 17)]
    second = [q + k for q in range(0, 16, 4) for k in (2, 18, 3, 19)]
    ab0, ab1 = shuffle_ir(builder, a, b, first), shuffle_ir(builder, a, b, second)
    cd0, cd1 = shuffle_ir(builder, c, d, first), shuffle_ir(builder, c, d, second)
    low = [q + k for q in range(0, 16, 4) for k in (0, 1, 16, 17)]
    high = [q + k for q in range(0, 16, 4) for k in (2, 3, 18, 19)]
    return [
        shuffle_ir(builder, ab0, cd0, low),
        shuffle_ir(builder, ab0, cd0, high),
        shuffle_ir(builder, ab1, cd1, low),
        shuffle_ir(builder, ab1, cd1, high),
    ]


def strides_of_four(builder, stride):
    """The stride of rows, twice and three times: what `fours_of_rows` needs.

    A function that loops over the columns of rows takes them as arguments of its own. LLVM, which
    otherwise knows how they belong together, would compute each row's address from the one before:
    a chain as long as there are rows, through every step.
    """
    return [stride, builder.shl(stride, I64(1)), builder.mul(stride, I64(3))]


def fours_of_rows(builder, address, strides, rows):
    """Addresses of every fourth row, and the distances of four rows from those.

    All the addresses would not fit into registers.
    """
    bases = [builder.add(address, builder.mul(strides[0], I64(r))) for r in range(0, rows, 4)]
    return bases, [I64(0), *strides]


@intrinsic(prefer_literal=True)
def transpose_four(typing_context, tag, whole, source, row_stride, last_row, target, target_stride):
    """Four columns of sixteen rows, written as four vectors.

    Reads elements `source + r * row_stride + (0..3) items` for r = 0..15 and writes vector i, which
    holds column i of the sixteen rows, to `target + i * target_stride` (bytes). Where the literal
    `whole` is 0, rows above `last_row` do not exist and are read as `last_row` again.
    """
    sig = types.void(tag, whole, *[types.int64] * 5)
    element = tag
    clamped = not whole.literal_value

    def codegen(context, builder, sig, args):
        _, _, source, row_stride, last_row, target, target_stride = args
        quad = vector_ir(element, 4)
        rows = []
        for r in range(LANES):
            row = ir.Constant(I64, r)
            if clamped:
                row = builder.select(builder.icmp_signed("<", row, last_row), row, last_row)
            offset = builder.mul(row_stride, row)
            rows.append(load_ir(builder, builder.add(source, offset), quad))
        columns = transposed(builder, rows)
        for i, column in enumerate(columns):
            offset = builder.mul(target_stride, ir.Constant(I64, i))
            store_ir(builder, builder.add(target, offset), column)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def stack_room(typing_context, size):
    """Address of `size` (a literal) bytes on the stack, the same ones in every round of a loop."""
    kind = ir.ArrayType(ir.IntType(8), size.literal_value)

    def codegen(context, builder, sig, args):
        # Not Numba's own `alloca_once`, which would clear them, byte by byte.
        with builder.goto_entry_block():
            place = builder.alloca(kind)
        place.align = 64
        return builder.ptrtoint(place, I64)

    return types.int64(size), codegen

"""SIMD vectors for Numba: sixteen virtual lanes, whatever the machine's width.

A `Vector` is an LLVM `<16 x float>` or `<16 x double>`. LLVM turns it into one 512-bit register or
several narrower ones, so the code above and its bits are the same on every machine. The first
argument `tag` of a function is a scalar (`np.float32(0)` or `np.float64(0)`) whose type alone
matters: it selects the element type.

Arithmetic never carries a fast-math flag. A fused multiply-add is written `fma`; `a * b + c` is two
roundings and stays two roundings.
"""

import operator

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config as numba_config
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES = 16


def _registers():
    """Number of vector registers and bytes in each that the compiler may use on this machine."""
    features = numba_config.CPU_FEATURES
    if features is None:
        features = llvm.get_host_cpu_features().flatten()
    wide = "+avx512f" in features.split(",")
    return (32, 64) if wide else (16, 32)


# Six rows of accumulators, the vectors of one step of the depth and one broadcast must fit.
_COUNT, _BYTES = _registers()
TILE_VECTORS = {
    name: max(1, (_COUNT - 2) // (7 * (LANES * size // _BYTES)))
    for name, size in (("float32", 4), ("float64", 8))
}


class VectorType(types.Type):
    """Sixteen lanes of one float type."""

    def __init__(self, element: types.Float) -> None:
        self.element = element
        super().__init__(name=f"Vector({element})")


FLOAT32_VECTOR = VectorType(types.float32)
FLOAT64_VECTOR = VectorType(types.float64)
VECTOR_OF = {types.float32: FLOAT32_VECTOR, types.float64: FLOAT64_VECTOR}

_INTEGER_BITS = {types.float32: 32, types.float64: 64}
I64 = ir.IntType(64)
_I32 = ir.IntType(32)


def element_ir(element):
    """The LLVM scalar of a Numba float."""
    return ir.FloatType() if element is types.float32 else ir.DoubleType()


def vector_ir(element, lanes=LANES):
    """The LLVM vector of a Numba float."""
    return ir.VectorType(element_ir(element), lanes)


def item_bytes(element):
    """Size of one element in bytes."""
    return _INTEGER_BITS[element] // 8


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, vector_ir(fe_type.element))


# --- building blocks of intrinsics (used by tile.py and elementary.py too) ---------------------


def constant(vector_type, value):
    """A vector constant with `value` in every lane."""
    return ir.Constant(vector_type, [float(value)] * vector_type.count)


def splat_ir(builder, scalar, lanes=LANES):
    """One scalar in every lane."""
    vector_type = ir.VectorType(scalar.type, lanes)
    undefined = ir.Constant(vector_type, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    order = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, undefined, order)


def fma_ir(builder, a, b, c):
    """`a * b + c` with one rounding, of scalars or vectors."""
    kind = a.type
    if isinstance(kind, ir.VectorType):
        bits = "f32" if isinstance(kind.element, ir.FloatType) else "f64"
        suffix = f"v{kind.count}{bits}"
    else:
        suffix = "f32" if isinstance(kind, ir.FloatType) else "f64"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind, kind, kind]), f"llvm.fma.{suffix}"
    )
    return builder.call(function, [a, b, c])


def pointer_ir(builder, address, kind):
    """An integer address as a pointer to `kind`."""
    return builder.inttoptr(address, kind.as_pointer())


def load_ir(builder, address, kind):
    """Load `kind` from an address of any alignment."""
    return builder.load(pointer_ir(builder, address, kind), align=1)


def store_ir(builder, address, value):
    """Store to an address of any alignment."""
    builder.store(value, pointer_ir(builder, address, value.type), align=1)


def prefetch_ir(builder, address):
    """Ask for the cache line at an address, into the second-level cache; never faults."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    read, second_level, data = (ir.Constant(_I32, n) for n in (0, 2, 1))
    builder.call(function, [builder.inttoptr(address, byte), read, second_level, data])


def shuffle_ir(builder, a, b, order):
    """`shufflevector` with a list of lane numbers."""
    mask = ir.Constant(ir.VectorType(_I32, len(order)), list(order))
    return builder.shuffle_vector(a, b, mask)


def outlined(context, builder, name, kinds, result, emit, args):
    """Call an LLVM function of its own, defined once a module by `emit(builder, args) -> value`.

    Never inlined: a long body then is optimised once, not again in every function that uses it,
    which is most of what compiling costs.
    """
    module = builder.module
    function = module.globals.get(name)
    if function is None:
        function = ir.Function(module, ir.FunctionType(result, kinds), name)
        function.linkage = "linkonce_odr"
        function.attributes.add("noinline")
        inner = ir.IRBuilder(function.append_basic_block("entry"))
        value = emit(inner, list(function.args))
        if isinstance(result, ir.VoidType):
            inner.ret_void()
        else:
            inner.ret(value)
    return builder.call(function, args)


# --- loads and stores -----------------------------------------------------------------------


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
    bits = ir.IntType(_INTEGER_BITS[element])
    if bits.width == 32:
        count = builder.trunc(count, bits)
    return builder.icmp_signed("<", _lane_numbers(element), splat_ir(builder, count))


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
        kinds = [pointer.type, _I32, lanes.type, kind]
        function = _masked(builder, "load", kind, kind, kinds)
        return builder.call(function, [pointer, _I32(1), lanes, splat_ir(builder, args[2])])

    return sig, codegen


@intrinsic
def store_first(typing_context, address, vector, count):
    """Write lanes 0 to count, and nothing beyond."""
    sig = types.void(types.int64, vector, types.int64)

    def codegen(context, builder, sig, args):
        kind = args[1].type
        lanes = _first_lanes(builder, vector.element, args[2])
        pointer = pointer_ir(builder, args[0], kind)
        kinds = [kind, pointer.type, _I32, lanes.type]
        function = _masked(builder, "store", kind, ir.VoidType(), kinds)
        builder.call(function, [args[1], pointer, _I32(1), lanes])
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
        written.set_metadata("nontemporal", builder.module.add_metadata([_I32(1)]))
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
def item_size(typing_context, tag):
    """Bytes of one element, a constant."""
    sig = types.int64(tag)
    size = tag.bitwidth // 8

    def codegen(context, builder, sig, args):
        return ir.Constant(I64, size)

    return sig, codegen


@intrinsic
def largest_finite(typing_context, tag):
    """The largest finite number of the tag's type, as float64."""
    sig = types.float64(tag)
    value = float(np.finfo(tag.name).max)

    def codegen(context, builder, sig, args):
        return ir.Constant(ir.DoubleType(), value)

    return sig, codegen


@intrinsic
def cast(typing_context, tag, number):
    """A number converted to the tag's float type, rounding once."""
    sig = tag(tag, number)

    def codegen(context, builder, sig, args):
        return context.cast(builder, args[1], number, tag)

    return sig, codegen


# Storage codes of the element types that kernels read in place; +16 for swapped byte order.
STORAGE_CODES = {
    name: code
    for code, name in enumerate(
        "float32 float64 bool int8 uint8 int16 uint16 int32 uint32 int64 uint64".split()
    )
}
SWAPPED = 16


def storage_code(dtype):
    """The code by which `load_as` reads a NumPy dtype."""
    dtype = np.dtype(dtype)
    return STORAGE_CODES[dtype.name] + (0 if dtype.isnative else SWAPPED)


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
    size = np.dtype(name).itemsize
    bits = load_ir(builder, address, ir.IntType(8 * size))
    if swapped and size > 1:
        bits = builder.bswap(bits)
    if name == "bool":
        return builder.uitofp(builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0)), target)
    if name.startswith("uint"):
        return builder.uitofp(bits, target)
    if name.startswith("int"):
        return builder.sitofp(bits, target)
    value = builder.bitcast(bits, ir.FloatType() if size == 4 else ir.DoubleType())
    if value.type == target:
        return value
    if size == 4:
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


@intrinsic
def tile_width(typing_context, tag):
    """Vectors of columns that the registers of this machine hold for a tile of six rows."""
    sig = types.int64(tag)
    width = TILE_VECTORS[tag.name]

    def codegen(context, builder, sig, args):
        return ir.Constant(I64, width)

    return sig, codegen


# --- lanes ------------------------------------------------------------------------------------


@intrinsic
def splat(typing_context, scalar):
    """A scalar in all sixteen lanes."""
    sig = VECTOR_OF[scalar](scalar)

    def codegen(context, builder, sig, args):
        return splat_ir(builder, args[0])

    return sig, codegen


def _tree(builder, vector, combine):
    """Lane i with lane i + 8, then + 4, + 2, + 1: the written-out lane tree."""
    half = vector.type.count // 2
    while half >= 1:
        low = shuffle_ir(builder, vector, vector, range(half))
        high = shuffle_ir(builder, vector, vector, range(half, 2 * half))
        vector = combine(builder, low, high)
        half //= 2
    return builder.extract_element(vector, ir.Constant(_I32, 0))


def _larger(builder, a, b):
    """The larger of two; where `b` is NaN, `b`."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@intrinsic
def lane_sum(typing_context, vector):
    """Sum of the lanes by the written-out tree."""
    sig = vector.element(vector)

    def codegen(context, builder, sig, args):
        return _tree(builder, args[0], lambda b, x, y: b.fadd(x, y))

    return sig, codegen


@intrinsic
def lane_max(typing_context, vector):
    """Largest lane; a NaN may be passed over."""
    sig = vector.element(vector)

    def codegen(context, builder, sig, args):
        return _tree(builder, args[0], _larger)

    return sig, codegen


@intrinsic
def first_lane(typing_context, vector):
    """Lane 0, NaN or not."""
    sig = vector.element(vector)

    def codegen(context, builder, sig, args):
        return builder.extract_element(args[0], ir.Constant(_I32, 0))

    return sig, codegen


@intrinsic
def any_nan(typing_context, vector):
    """Whether a lane is NaN."""
    sig = types.boolean(vector)

    def codegen(context, builder, sig, args):
        lanes = builder.fcmp_unordered("uno", args[0], args[0])
        bits = builder.bitcast(lanes, ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return sig, codegen


@intrinsic
def same_lanes(typing_context, a, b):
    """Whether all lanes of two vectors are equal (NaN equals nothing)."""
    sig = types.boolean(a, a)

    def codegen(context, builder, sig, args):
        lanes = builder.fcmp_ordered("==", *args)
        bits = builder.bitcast(lanes, ir.IntType(LANES))
        return builder.icmp_signed("==", bits, ir.Constant(bits.type, -1))

    return sig, codegen


def _lane_numbers(element):
    bits = ir.IntType(_INTEGER_BITS[element])
    return ir.Constant(ir.VectorType(bits, LANES), list(range(LANES)))


@intrinsic
def keep_lanes(typing_context, vector, begin, end, other):
    """Lanes begin to end (half-open, any integers) of `vector`, elsewhere the scalar `other`."""
    sig = vector(vector, types.int64, types.int64, vector.element)

    def codegen(context, builder, sig, args):
        value, begin, end, other = args
        bits = ir.IntType(_INTEGER_BITS[vector.element])
        low, high = ir.Constant(I64, 0), ir.Constant(I64, LANES)
        numbers = _lane_numbers(vector.element)

        def border(edge):
            edge = builder.select(builder.icmp_signed("<", edge, low), low, edge)
            edge = builder.select(builder.icmp_signed(">", edge, high), high, edge)
            return splat_ir(builder, edge if bits.width == 64 else builder.trunc(edge, bits))

        inside = builder.and_(
            builder.icmp_signed(">=", numbers, border(begin)),
            builder.icmp_signed("<", numbers, border(end)),
        )
        return builder.select(inside, value, splat_ir(builder, other))

    return sig, codegen


@intrinsic
def select_equal(typing_context, vector, probe, if_equal, otherwise):
    """Per lane: `if_equal` where `vector == probe` (a scalar), else `otherwise`."""
    sig = vector(vector, vector.element, vector, vector)

    def codegen(context, builder, sig, args):
        same = builder.fcmp_ordered("==", args[0], splat_ir(builder, args[1]))
        return builder.select(same, args[2], args[3])

    return sig, codegen


@intrinsic
def select_bytes(typing_context, address, vector, other):
    """Per lane: `vector` where the byte at `address + lane` is not zero, else the scalar `other`."""
    sig = vector(types.int64, vector, vector.element)

    def codegen(context, builder, sig, args):
        kind = ir.VectorType(ir.IntType(8), LANES)
        flags = load_ir(builder, args[0], kind)
        seen = builder.icmp_unsigned("!=", flags, ir.Constant(kind, [0] * LANES))
        return builder.select(seen, args[1], splat_ir(builder, args[2]))

    return sig, codegen


# --- arithmetic -------------------------------------------------------------------------------


@intrinsic
def fma(typing_context, a, b, c):
    """`a * b + c` with one rounding; vectors or scalars of one type."""
    sig = a(a, a, a)

    def codegen(context, builder, sig, args):
        return fma_ir(builder, *args)

    return sig, codegen


@intrinsic
def larger(typing_context, a, b):
    """Per lane the larger of two; NaN in `b` goes through, NaN in `a` does not."""
    sig = a(a, a)

    def codegen(context, builder, sig, args):
        return _larger(builder, *args)

    return sig, codegen


@intrinsic
def absolute(typing_context, vector):
    """Per lane the value without its sign."""
    sig = vector(vector)

    def codegen(context, builder, sig, args):
        kind = args[0].type
        suffix = "v16f32" if vector.element is types.float32 else "v16f64"
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind]), f"llvm.fabs.{suffix}"
        )
        return builder.call(function, [args[0]])

    return sig, codegen


@intrinsic
def square_root(typing_context, vector):
    """Per lane the correctly rounded square root."""
    sig = vector(vector)

    def codegen(context, builder, sig, args):
        kind = args[0].type
        suffix = "v16f32" if vector.element is types.float32 else "v16f64"
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind]), f"llvm.sqrt.{suffix}"
        )
        return builder.call(function, [args[0]])

    return sig, codegen


class _VectorOperator(AbstractTemplate):
    def generic(self, args, kws):
        if len(args) == 2 and isinstance(args[0], VectorType) and args[0] == args[1]:
            return signature(args[0], args[0], args[1])
        return None


def _lower_operator(symbol, method):
    infer_global(symbol)(type(f"_Vector_{symbol.__name__}", (_VectorOperator,), {"key": symbol}))

    @lower_builtin(symbol, VectorType, VectorType)
    def lower(context, builder, sig, args):
        return getattr(builder, method)(*args)


for _symbol, _method in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _lower_operator(_symbol, _method)


# --- transposing ------------------------------------------------------------------------------


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
        columns = [
            shuffle_ir(builder, ab0, cd0, low),
            shuffle_ir(builder, ab0, cd0, high),
            shuffle_ir(builder, ab1, cd1, low),
            shuffle_ir(builder, ab1, cd1, high),
        ]
        for i, column in enumerate(columns):
            offset = builder.mul(target_stride, ir.Constant(I64, i))
            store_ir(builder, builder.add(target, offset), column)
        return context.get_dummy_value()

    return sig, codegen


def tag_of(dtype):
    """The scalar that stands for a NumPy dtype in kernel calls."""
    return np.dtype(dtype).type(0)

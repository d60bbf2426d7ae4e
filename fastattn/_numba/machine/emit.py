"""The vector type, and the LLVM building blocks that intrinsics are made of."""

import platform

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config as numba_config
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

LANES = 16


def _features():
    """What the compiler may use on this machine."""
    features = numba_config.CPU_FEATURES
    if features is None:
        features = llvm.get_host_cpu_features().flatten()
    return features.split(",")


def _registers():
    """Number of vector registers and bytes in each that the compiler may use."""
    return (32, 64) if "+avx512f" in _features() else (16, 32)


def has(features):
    """Whether the compiler may use some features, given as LLVM names them."""
    return {f"+{feature}" for feature in features.split()} <= {*_features()}


# Whether it is known to convert halves itself. Where not, LLVM would call functions that are not
# there, which ends the process.
CONVERTS_HALVES = "+f16c" in _features() or platform.machine().lower() in ("aarch64", "arm64")

# Whether it multiplies by a power of two in one instruction.
SCALES = "+avx512f" in _features()

# Six rows of accumulators, the vectors of one step of the depth and one broadcast must fit.
_COUNT, _BYTES = _registers()
TILE_VECTORS = {
    name: max(1, (_COUNT - 2) // (7 * (LANES * size // _BYTES)))
    for name, size in (("float32", 4), ("float64", 8), ("int32", 4))
}


class VectorType(types.Type):
    """Sixteen lanes of one float type."""

    def __init__(self, element: types.Float) -> None:
        self.element = element
        super().__init__(name=f"Vector({element})")


FLOAT32_VECTOR = VectorType(types.float32)
FLOAT64_VECTOR = VectorType(types.float64)
VECTOR_OF = {types.float32: FLOAT32_VECTOR, types.float64: FLOAT64_VECTOR}

# An int32 as an element is a pair of bfloat16.
INTEGER_BITS = {types.float32: 32, types.float64: 64, types.int32: 32}
I64 = ir.IntType(64)
I32 = ir.IntType(32)


class BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, BFloat)

    def __hash__(self):
        return hash(BFloat)


def dot_ir(builder, a, b, total):
    """`total` and the products of sixteen pairs of bfloat16, each given as a 32-bit word.

    The odd elements first, then the even ones, each rounded; subnormal numbers count as 0.
    """
    halves = ir.VectorType(BFloat(), 2 * LANES)
    kind = ir.FunctionType(total.type, [total.type, halves, halves])
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    dot = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(dot, [total, builder.bitcast(a, halves), builder.bitcast(b, halves)])


def element_ir(element):
    """The LLVM scalar of a Numba float, or of a pair."""
    if element is types.int32:
        return I32
    return ir.FloatType() if element is types.float32 else ir.DoubleType()


def vector_ir(element, lanes=LANES):
    """The LLVM vector of a Numba float."""
    return ir.VectorType(element_ir(element), lanes)


def item_bytes(element):
    """Size of one element in bytes."""
    return INTEGER_BITS[element] // 8


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, vector_ir(fe_type.element))


def constant(vector_type, value):
    """A vector constant with `value` in every lane."""
    return ir.Constant(vector_type, [float(value)] * vector_type.count)


def lane_numbers(element):
    """Integers 0 to 15, as wide as the float."""
    bits = ir.IntType(INTEGER_BITS[element])
    return ir.Constant(ir.VectorType(bits, LANES), list(range(LANES)))


def splat_ir(builder, scalar, lanes=LANES):
    """One scalar in every lane."""
    vector_type = ir.VectorType(scalar.type, lanes)
    undefined = ir.Constant(vector_type, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    order = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
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


def scaled_ir(builder, x, power):
    """`x * 2^power`, rounded once; the power is a vector of whole numbers. Where `SCALES`."""
    count = 16 if isinstance(x.type.element, ir.FloatType) else 8
    name = f"llvm.x86.avx512.mask.scalef.p{'s' if count == 16 else 'd'}.512"
    part = ir.VectorType(x.type.element, count)
    kinds = [part, part, part, ir.IntType(count), I32]
    scale = cgutils.get_or_insert_function(builder.module, ir.FunctionType(part, kinds), name)
    every, nearest = ir.Constant(kinds[3], -1), I32(4)
    if count == LANES:
        return builder.call(scale, [x, power, x, every, nearest])
    halves = []
    for first in (0, count):
        a, b = (shuffle_ir(builder, v, v, range(first, first + count)) for v in (x, power))
        halves.append(builder.call(scale, [a, b, a, every, nearest]))
    return shuffle_ir(builder, *halves, range(LANES))


def _like(kind, element):
    """A scalar type, or a vector of as many as `kind` has."""
    return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element


def _number(kind, value):
    """A constant of a scalar type, or in every lane of a vector."""
    many = isinstance(kind, ir.VectorType)
    return ir.Constant(kind, [value] * kind.count if many else value)


def halves_widened(builder, bits):
    """Floats of the 16-bit words of float16, one or a vector, exactly; NaN becomes quiet."""
    floats, words = _like(bits.type, ir.FloatType()), _like(bits.type, I32)
    if CONVERTS_HALVES:
        return builder.fpext(builder.bitcast(bits, _like(bits.type, ir.HalfType())), floats)

    def number(value):
        return _number(words, value)

    wide = builder.zext(bits, words)
    sign = builder.shl(builder.and_(wide, number(0x8000)), number(16))
    magnitude = builder.and_(wide, number(0x7FFF))
    shifted = builder.shl(magnitude, number(13))
    normal = builder.add(shifted, number(112 << 23))
    # Below the normal numbers: so many times the smallest.
    small = builder.fmul(builder.sitofp(magnitude, floats), _number(floats, 2.0**-24))
    small = builder.bitcast(small, words)
    quiet = builder.select(
        builder.icmp_signed(">", magnitude, number(0x7C00)), number(0x400000), number(0)
    )
    beyond = builder.or_(builder.or_(shifted, number(0x7F800000)), quiet)
    found = builder.select(builder.icmp_signed("<", magnitude, number(0x400)), small, normal)
    found = builder.select(builder.icmp_signed("<", magnitude, number(0x7C00)), found, beyond)
    return builder.bitcast(builder.or_(found, sign), floats)


def halves_rounded(builder, numbers):
    """16-bit words of floats rounded to float16, one or a vector; NaN becomes quiet."""
    floats, narrow = numbers.type, _like(numbers.type, ir.IntType(16))
    if CONVERTS_HALVES:
        halves = builder.fptrunc(numbers, _like(floats, ir.HalfType()))
        return builder.bitcast(halves, narrow)
    words = _like(floats, I32)

    def number(value):
        return _number(words, value)

    bits = builder.bitcast(numbers, words)
    sign = builder.and_(builder.lshr(bits, number(16)), number(0x8000))
    magnitude = builder.and_(bits, number(0x7FFFFFFF))
    dropped = builder.lshr(magnitude, number(13))
    odd = builder.and_(dropped, number(1))
    normal = builder.add(builder.sub(magnitude, number(112 << 23)), builder.add(odd, number(0xFFF)))
    normal = builder.lshr(normal, number(13))
    # Adding 1/2 rounds to a multiple of the smallest subnormal half.
    small = builder.fadd(builder.bitcast(magnitude, floats), _number(floats, 0.5))
    small = builder.sub(builder.bitcast(small, words), number(0x3F000000))
    not_a_number = builder.or_(builder.and_(dropped, number(0x3FF)), number(0x7E00))
    found = builder.select(builder.icmp_signed("<", magnitude, number(0x38800000)), small, normal)
    found = builder.select(
        builder.icmp_signed("<", magnitude, number(0x477FF000)), found, number(0x7C00)
    )
    found = builder.select(
        builder.icmp_signed(">", magnitude, number(0x7F800000)), not_a_number, found
    )
    return builder.trunc(builder.or_(found, sign), narrow)


def opaque_ir(builder, number):
    """The same integer, without a word of how it came about.

    LLVM cannot then put together what loops add to it, and keep each sum on the stack.
    """
    return builder.asm(ir.FunctionType(number.type, [number.type]), "", "=r,0", [number], False)


def pointer_ir(builder, address, kind):
    """An integer address as a pointer to `kind`."""
    return builder.inttoptr(address, kind.as_pointer())


def load_ir(builder, address, kind):
    """Load `kind` from an address of any alignment."""
    return builder.load(pointer_ir(builder, address, kind), align=1)


def store_ir(builder, address, value):
    """Store to an address of any alignment."""
    builder.store(value, pointer_ir(builder, address, value.type), align=1)


def prefetch_ir(builder, address, nearest=False):
    """Ask for a cache line, into the second-level cache or the nearest one; never faults."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    read, level, data = (ir.Constant(I32, n) for n in (0, 3 if nearest else 2, 1))
    builder.call(function, [builder.inttoptr(address, byte), read, level, data])


def shuffle_ir(builder, a, b, order):
    """`shufflevector` with a list of lane numbers."""
    mask = ir.Constant(ir.VectorType(I32, len(order)), list(order))
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


class Loop:
    """A counted loop of at least one step, whose carried values circulate as phis."""

    def __init__(self, builder, carried):
        self.builder = builder
        head = builder.block
        self.body = builder.function.append_basic_block("loop.body")
        builder.branch(self.body)
        builder.position_at_end(self.body)
        self.values = []
        for start in carried:
            phi = builder.phi(start.type)
            phi.add_incoming(start, head)
            self.values.append(phi)

    def close(self, following, again):
        """Go on with the `following` values while `again`."""
        builder = self.builder
        for phi, value in zip(self.values, following, strict=True):
            phi.add_incoming(value, builder.block)
        done = builder.function.append_basic_block("loop.done")
        builder.cbranch(again, self.body, done)
        builder.position_at_end(done)

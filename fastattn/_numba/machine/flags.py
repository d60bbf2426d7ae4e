"""Flags: the bits of one word, of which sixteen may come from a mask of bytes."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..compiler.compile import device
from .emit import I64, LANES, load_ir


@intrinsic
def nonzero_bytes(typing_context, address):
    """Sixteen bits: which of the bytes from an address on are not 0."""
    sig = types.int64(types.int64)

    def codegen(context, builder, sig, args):
        kind = ir.VectorType(ir.IntType(8), LANES)
        some = builder.icmp_unsigned(
            "!=", load_ir(builder, args[0], kind), ir.Constant(kind, [0] * LANES)
        )
        return builder.zext(builder.bitcast(some, ir.IntType(LANES)), I64)

    return sig, codegen


@intrinsic
def trailing_zeros(typing_context, word):
    """How many bits of a word lie below the lowest one; 64 of 0."""
    sig = types.int64(types.int64)

    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(I64, [I64, ir.IntType(1)])
        count = cgutils.get_or_insert_function(builder.module, kind, "llvm.cttz.i64")
        return builder.call(count, [args[0], ir.Constant(ir.IntType(1), 0)])

    return sig, codegen


@device
def next_run(word, bit):
    """The next ones of a word in a row, from a bit on: the first, and where they stop.

    There must be some; the word is not negative.
    """
    first = bit + trailing_zeros(word >> bit)
    return first, first + trailing_zeros(~(word >> first))

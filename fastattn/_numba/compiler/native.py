"""The few machine operations that Numba has no word for: the task counter, a call by address, the
float environment, and 64-bit words at an address.

Nothing here knows an operation. Addresses are plain ``int64``; whoever passes one keeps the array
behind it alive for the length of the call.
"""

import platform
import sys

import llvmlite
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LLVMLITE_VERSION = llvmlite.__version__

_INT32 = ir.IntType(32)
_INT64 = ir.IntType(64)
_DOUBLE = ir.DoubleType()

# The control word of x86 SSE/AVX arithmetic exists in 64-bit x86 processes only; elsewhere the
# float environment is left alone (and bits are promised within one machine only).
_HAS_MXCSR = platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32
_MXCSR_DEFAULT = 0x1F80  # round to nearest, subnormals kept, every exception masked


def _pointer(builder, address, pointee):
    return builder.inttoptr(address, pointee.as_pointer())


def _word(builder, address, index, pointee):
    offset = builder.shl(index, ir.Constant(_INT64, 3))
    return _pointer(builder, builder.add(address, offset), pointee)


@intrinsic
def atomic_next(typingctx, counter_address):
    """Return the int64 at ``counter_address`` and add one to it, as one step for all threads."""

    def codegen(context, builder, signature, arguments):
        # "monotonic" is enough: tasks share no data, and the start and the end of a parallel
        # region order everything else.
        pointer = _pointer(builder, arguments[0], _INT64)
        return builder.atomic_rmw("add", pointer, ir.Constant(_INT64, 1), "monotonic")

    return types.int64(types.int64), codegen


@intrinsic
def call_entry(typingctx, entry_address, call_address, worker):
    """Call the native function ``void(int64, int64)`` at ``entry_address``."""

    def codegen(context, builder, signature, arguments):
        entry, call, worker_index = arguments
        function_type = ir.FunctionType(ir.VoidType(), [_INT64, _INT64])
        builder.call(_pointer(builder, entry, function_type), [call, worker_index])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


def _access_mxcsr(builder, name, slot):
    byte_pointer = ir.IntType(8).as_pointer()
    function_type = ir.FunctionType(ir.VoidType(), [byte_pointer])
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    builder.call(function, [builder.bitcast(slot, byte_pointer)])


@intrinsic
def default_float_environment(typingctx):
    """Set the default float environment on this thread and return what it was, for `restore`.

    Another library may have set flush-to-zero, denormals-are-zero or a rounding mode on the
    thread; with any of them the same call would give other bits.
    """

    def codegen(context, builder, signature, arguments):
        if not _HAS_MXCSR:
            return ir.Constant(_INT64, 0)
        slot = cgutils.alloca_once(builder, _INT32)
        _access_mxcsr(builder, "llvm.x86.sse.stmxcsr", slot)
        saved = builder.load(slot)
        builder.store(ir.Constant(_INT32, _MXCSR_DEFAULT), slot)
        _access_mxcsr(builder, "llvm.x86.sse.ldmxcsr", slot)
        return builder.zext(saved, _INT64)

    return types.int64(), codegen


@intrinsic
def restore_float_environment(typingctx, saved):
    """Set this thread's float environment back to what `default_float_environment` returned."""

    def codegen(context, builder, signature, arguments):
        if _HAS_MXCSR:
            slot = cgutils.alloca_once(builder, _INT32)
            builder.store(builder.trunc(arguments[0], _INT32), slot)
            _access_mxcsr(builder, "llvm.x86.sse.ldmxcsr", slot)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def load_int64(typingctx, address, index):
    """Return the int64 number ``index`` of those that begin at ``address``."""

    def codegen(context, builder, signature, arguments):
        return builder.load(_word(builder, *arguments, _INT64), align=8)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def load_int32(typingctx, address):
    """Return the int32 at ``address`` as int64."""

    def codegen(context, builder, signature, arguments):
        word = builder.load(_pointer(builder, arguments[0], _INT32), align=4)
        return builder.sext(word, _INT64)

    return types.int64(types.int64), codegen


@intrinsic
def store_int64(typingctx, address, index, value):
    """Set the int64 number ``index`` of those that begin at ``address``."""

    def codegen(context, builder, signature, arguments):
        address_value, index_value, value = arguments
        builder.store(value, _word(builder, address_value, index_value, _INT64), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def load_float64(typingctx, address, index):
    """Return the float64 number ``index`` of those that begin at ``address``."""

    def codegen(context, builder, signature, arguments):
        return builder.load(_word(builder, *arguments, _DOUBLE), align=8)

    return types.float64(types.int64, types.int64), codegen


@intrinsic
def store_float64(typingctx, address, index, value):
    """Set the float64 number ``index`` of those that begin at ``address``."""

    def codegen(context, builder, signature, arguments):
        address_value, index_value, value = arguments
        builder.store(value, _word(builder, address_value, index_value, _DOUBLE), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float64), codegen


@intrinsic
def bits_of(typingctx, number):
    """Return the bits of a float64 as int64."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], _INT64)

    return types.int64(types.float64), codegen


@intrinsic
def float_of(typingctx, bits):
    """Return the float64 that has these bits."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], _DOUBLE)

    return types.float64(types.int64), codegen

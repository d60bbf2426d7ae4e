"""What the machine can do at most: the yardsticks a share of the ceiling is taken against.

Four loops, written as explicit LLVM vectors so that no compiler decides their width: fused
multiply-adds in registers (no memory), bfloat16 dots in registers where the CPU has them, a pure
read, and a read-and-write copy. They run in the
process, on the threads and in the rounds of what is measured: a noisy neighbour slows them too.
The memory loops take their footprint from the case, so that a case which fits a large last-level
cache is held against that cache and not against main memory.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

ACCUMULATORS = 12  # two ports x four cycles of latency need 8; 12 still fit 16 registers
UNROLL = 4
STREAM_VECTORS = 2  # vectors per stream and step of the memory loops
STREAMS = 4  # separate streams per thread: one alone does not fill the memory queue
FMA_STEPS = 1_000_000
PASS_BYTES = 2**26  # what one call of a memory loop reads at least, about 2 ms
_INT64 = ir.IntType(64)


def vector_bytes() -> int:
    """Width of the widest fused multiply-add of this CPU: 64, 32 or (no AVX) 16 bytes."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 64
    return 32 if features.get("avx2") else 16


def _counted_loop(
    builder: ir.IRBuilder,
    steps: ir.Value,
    carried: list[ir.Value],
    body: Callable[[ir.Value, list[ir.Value]], list[ir.Value]],
) -> list[ir.Value]:
    """Emit ``for step in range(steps): carried = body(step, carried)`` (at least one step)."""
    entry = builder.block
    loop = builder.append_basic_block("loop")
    done = builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(_INT64)
    phis = [builder.phi(value.type) for value in carried]
    following = body(step, list(phis))
    next_step = builder.add(step, ir.Constant(_INT64, 1))
    step.add_incoming(ir.Constant(_INT64, 0), entry)
    step.add_incoming(next_step, builder.block)
    for phi, start, value in zip(phis, carried, following, strict=True):
        phi.add_incoming(start, entry)
        phi.add_incoming(value, builder.block)
    builder.cbranch(builder.icmp_signed("<", next_step, steps), loop, done)
    builder.position_at_end(done)
    return following


def has_bfloat16_dot() -> bool:
    """Whether this CPU multiplies pairs of bfloat16 (``vdpbf16ps``, 512 bits wide).

    Having it says nothing of its speed: Zen 4 does twice the FLOPs of float32's multiply-add with
    it, Sapphire and Emerald Rapids do half, and there a share of this ceiling may pass 100 %.
    """
    return bool(llvm.get_host_cpu_features().get("avx512bf16"))


class _BFloat16(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat16)

    def __hash__(self) -> int:
        return hash(_BFloat16)


def _splat(builder: ir.IRBuilder, vector: ir.VectorType, scalar: ir.Value) -> ir.Value:
    single = builder.insert_element(
        ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0)
    )
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
    return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), zeros)


@functools.cache
def _fma_loop(dtype: str) -> Callable[[int, float, float], float]:
    """Compile the register loop for one dtype; it does ``steps`` x ``fma_flops(dtype)`` FLOPs."""
    element = ir.FloatType() if dtype == "float32" else ir.DoubleType()
    itemsize = np.dtype(dtype).itemsize
    lanes = vector_bytes() // itemsize
    vector = ir.VectorType(element, lanes)

    @intrinsic
    def loop(typingctx: Any, steps: Any, factor: Any, term: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            scalars = args[1:]
            if dtype == "float32":
                scalars = [builder.fptrunc(scalar, element) for scalar in scalars]
            factor_vector, term_vector = (_splat(builder, vector, s) for s in scalars)
            signature = ir.FunctionType(vector, [vector] * 3)
            name = f"llvm.fma.v{lanes}f{8 * itemsize}"
            fma = cgutils.get_or_insert_function(builder.module, signature, name)

            def body(step: Any, sums: list[Any]) -> list[Any]:
                for _ in range(UNROLL):
                    sums = [builder.call(fma, [s, factor_vector, term_vector]) for s in sums]
                return sums

            sums = _counted_loop(builder, args[0], [term_vector] * ACCUMULATORS, body)
            total = functools.reduce(builder.fadd, sums)
            first = builder.extract_element(total, ir.Constant(ir.IntType(32), 0))
            return first if dtype == "float64" else builder.fpext(first, ir.DoubleType())

        return types.float64(types.int64, types.float64, types.float64), codegen

    @njit("float64(int64, float64, float64)", nogil=True)
    def run(steps: int, factor: float, term: float) -> float:
        return loop(steps, factor, term)

    return run


@functools.cache
def _bfloat16_loop() -> Callable[[int, float, float], float]:
    """Compile the register loop of bfloat16 dots; each lane of a sum takes a pair of products."""
    vector = ir.VectorType(ir.FloatType(), 16)
    words, halves = ir.VectorType(ir.IntType(32), 16), ir.VectorType(_BFloat16(), 32)

    @intrinsic
    def loop(typingctx: Any, steps: Any, factor: Any, term: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            narrow = [builder.fptrunc(scalar, ir.FloatType()) for scalar in args[1:]]
            factors, terms = (_splat(builder, vector, scalar) for scalar in narrow)
            pairs = builder.bitcast(builder.bitcast(factors, words), halves)
            signature = ir.FunctionType(vector, [vector, halves, halves])
            name = "llvm.x86.avx512bf16.dpbf16ps.512"
            dot = cgutils.get_or_insert_function(builder.module, signature, name)

            def body(step: Any, sums: list[Any]) -> list[Any]:
                for _ in range(UNROLL):
                    sums = [builder.call(dot, [s, pairs, pairs]) for s in sums]
                return sums

            sums = _counted_loop(builder, args[0], [terms] * ACCUMULATORS, body)
            total = functools.reduce(builder.fadd, sums)
            first = builder.extract_element(total, ir.Constant(ir.IntType(32), 0))
            return builder.fpext(first, ir.DoubleType())

        return types.float64(types.int64, types.float64, types.float64), codegen

    @njit("float64(int64, float64, float64)", nogil=True)
    def run(steps: int, factor: float, term: float) -> float:
        return loop(steps, factor, term)

    return run


def fma_flops(dtype: str) -> int:
    """FLOPs of one step of the register loop; a bfloat16 dot does two multiply-adds a lane."""
    if dtype == "bfloat16":
        return 2 * 2 * ACCUMULATORS * UNROLL * 16
    return 2 * ACCUMULATORS * UNROLL * (vector_bytes() // np.dtype(dtype).itemsize)


@functools.cache
def _memory_loop(write: bool) -> Callable[[int, int, int], int]:
    """Compile ``run(source, target, bytes)``: read ``source``, or copy it to ``target``."""
    width = vector_bytes()
    vector = ir.VectorType(_INT64, width // 8)
    block = width * STREAM_VECTORS

    @intrinsic
    def loop(typingctx: Any, source: Any, target: Any, steps: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            source, target, steps = args
            stream_bytes = builder.mul(steps, ir.Constant(_INT64, block))

            def body(step: Any, sums: list[Any]) -> list[Any]:
                sums = list(sums)
                offset = builder.mul(step, ir.Constant(_INT64, block))
                for stream in range(1 if write else STREAMS):
                    base = builder.add(
                        offset, builder.mul(stream_bytes, ir.Constant(_INT64, stream))
                    )
                    for index in range(STREAM_VECTORS):
                        at = builder.add(base, ir.Constant(_INT64, index * width))
                        load_at = builder.inttoptr(builder.add(source, at), vector.as_pointer())
                        loaded = builder.load(load_at, align=width)
                        sums[index] = builder.xor(sums[index], loaded)
                        if write:
                            store_at = builder.inttoptr(
                                builder.add(target, at), vector.as_pointer()
                            )
                            store = builder.store(loaded, store_at, align=width)
                            one = ir.Constant(ir.IntType(32), 1)
                            store.set_metadata("nontemporal", builder.module.add_metadata([one]))
                return sums

            zero = ir.Constant(vector, None)
            sums = _counted_loop(builder, steps, [zero] * STREAM_VECTORS, body)
            total = functools.reduce(builder.xor, sums)
            return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

        return types.int64(types.int64, types.int64, types.int64), codegen

    streams = 1 if write else STREAMS

    @njit("int64(int64, int64, int64)", nogil=True)
    def run(source: int, target: int, size: int) -> int:
        return loop(source, target, size // (block * streams))

    return run


class Team:
    """A fixed number of Python threads that start the same loop together."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._start = threading.Barrier(threads)

    def run(self, work: Callable[[int], object]) -> None:
        """Call ``work(worker)`` on every thread at once and wait for all."""

        def one(worker: int) -> None:
            self._start.wait()
            work(worker)

        if self.threads == 1:
            work(0)
        else:
            list(self._pool.map(one, range(self.threads)))


@functools.cache
def _team(threads: int) -> Team:
    return Team(threads)


def fma_turn(
    dtype: str, threads: int, steps: int = FMA_STEPS
) -> tuple[Callable[[], object], float]:
    """The register loop on ``threads`` threads: what to call, and the FLOPs of one call.

    For bfloat16 it is the loop of dots, which only some CPUs have; see ``has_bfloat16_dot``.
    """
    loop = _bfloat16_loop() if dtype == "bfloat16" else _fma_loop(dtype)

    def turn() -> None:
        _team(threads).run(lambda worker: loop(steps, 0.999, 1e-3))

    return turn, float(fma_flops(dtype)) * steps * threads


@functools.cache
def _buffer(name: str, size: int) -> np.ndarray:
    raw = np.ones(size + 4096, np.uint8)  # written: untouched pages would all be one zero page
    start = -raw.ctypes.data % 4096
    return raw[start : start + size]


def memory_turn(footprint: int, threads: int, write: bool) -> tuple[Callable[[], object], float]:
    """A read (or a copy) of ``footprint`` bytes: what to call, and the bytes one call moves.

    For a copy the footprint counts the bytes read and the bytes written. A small footprint is
    gone over several times, so that starting the threads takes no visible part.
    """
    step = threads * STREAMS * STREAM_VECTORS * vector_bytes()
    size = max(int(footprint) // (2 if write else 1) // step, 1) * step
    loop = _memory_loop(write)
    share = size // threads
    source = _buffer("source", size).ctypes.data
    target = _buffer("target", size).ctypes.data if write else source

    passes = max(1, PASS_BYTES // size)

    def work(worker: int) -> None:
        for _ in range(passes):
            loop(source + worker * share, target + worker * share, share)

    return functools.partial(_team(threads).run, work), float(passes * size * (2 if write else 1))


def release_buffers() -> None:
    """Give the memory of the read and copy loops back."""
    _buffer.cache_clear()

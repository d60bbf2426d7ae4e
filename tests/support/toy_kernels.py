"""Small kernel entries, so that launching, forking and caching are tested apart from attention."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastattn._engine.launcher import Launcher
from fastattn._numba.compiler import compile, launch, native

DONE, WORKER, STEPS, VALUE = 3, 4, 5, 6  # words of the call record


@compile.device
def busy(steps):
    total = 0.0
    for step in range(steps):
        total += 1.0 / (1.0 + total + step)
    return total


@compile.entry
def count(call, worker):
    """Per task: work, add one to its counter, note who did it."""
    while True:
        task = native.atomic_next(call)
        if task >= native.load_int64(call, 1):
            return
        value = busy(native.load_int64(call, STEPS))
        done = native.load_int64(call, DONE)
        native.store_int64(done, task, native.load_int64(done, task) + 1)
        native.store_int64(native.load_int64(call, WORKER), task, worker)
        native.store_float64(native.load_int64(call, VALUE), task, value)


@compile.entry
def arithmetic(call, worker):
    """Per task: a subnormal sum and a rounded quotient, which the float environment changes."""
    while True:
        task = native.atomic_next(call)
        if task >= native.load_int64(call, 1):
            return
        busy(native.load_int64(call, STEPS))
        value = native.load_int64(call, VALUE)
        small = native.load_float64(value, 0) * 0.5 + native.load_float64(value, 0)
        native.store_float64(value, 2 + 2 * task, small)
        native.store_float64(value, 3 + 2 * task, 1.0 / native.load_float64(value, 1))
        native.store_int64(native.load_int64(call, WORKER), task, worker)


class Call:
    """A call record of `count` with the arrays behind it."""

    def __init__(self, tasks, steps=0):
        self.tasks = tasks
        self.done = np.zeros(tasks, np.int64)
        self.worker = np.full(tasks, -1, np.int64)
        self.value = np.zeros(2 * tasks + 2)
        self.record = np.zeros(16, np.int64)
        self.record[DONE] = self.done.ctypes.data
        self.record[WORKER] = self.worker.ctypes.data
        self.record[STEPS] = steps
        self.record[VALUE] = self.value.ctypes.data

    def run(self, seconds_per_task, workers, entry=count):
        Launcher(launch.layer).run(entry, self.record, self.tasks, seconds_per_task, workers)
        return self

    def workers(self):
        """Who took tasks, lowest first."""
        return sorted(set(self.worker.tolist()))

    def assert_done(self, times=1):
        np.testing.assert_array_equal(self.done, times)


STEP_SECONDS = 5e-9  # roughly; estimates of the tests may be off by a factor of two, as others'


def long_call(seconds, tasks=40):
    """A call whose tasks together take about ``seconds`` on one thread."""
    return Call(tasks, int(seconds / tasks / STEP_SECONDS))


@intrinsic
def _swap_mxcsr(typingctx, new):
    """Set the control word of SSE arithmetic and return the one before (x86-64 only)."""

    def codegen(context, builder, signature, arguments):
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer])
        slots = [cgutils.alloca_once(builder, ir.IntType(32)) for _ in range(2)]
        builder.store(builder.trunc(arguments[0], ir.IntType(32)), slots[1])
        for name, slot in zip(("stmxcsr", "ldmxcsr"), slots, strict=True):
            function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.sse.{name}")
            builder.call(function, [builder.bitcast(slot, pointer)])
        return builder.zext(builder.load(slots[0]), ir.IntType(64))

    return types.int64(types.int64), codegen


@compile.driver("int64(int64)")
def swap_mxcsr(new):
    return _swap_mxcsr(new)

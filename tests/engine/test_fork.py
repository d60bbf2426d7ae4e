"""A forked child computes, whatever its parent and the other threads were doing.

GNU OpenMP does not survive a fork: Numba ends a child that enters it again. Each test forks in a
process of its own, so that the test run itself stays unforked.
"""

import os

import children
import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

_PREPARED = """
import os, sys, threading, time
import numba
import toy_kernels as toy
from fastattn._numba.compiler import compile, launch

def big():
    call = toy.long_call(0.1).run(0.1 / 40, 2)
    call.assert_done()
    return call.workers()

def expect_serial():
    assert launch.serial_reason() is not None
    assert big() == [0]
    toy.long_call(0.3).run(0.3 / 40, 2).assert_done()  # in slices

@numba.njit(parallel=True)
def of_somebody_else(n):
    total = 0
    for i in numba.prange(n):
        total += i
    return total
"""


def run_forking(code, **variables):
    return children.run(children.IN_CHILD + _PREPARED + code, **variables)


@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_child_after_parallel_use(layer):
    code = """
big()
assert in_child(expect_serial) == 0
assert in_child(lambda: in_child(expect_serial) == 0) == 0  # and its children
assert big() == [0, 1] or launch.serial_reason()
"""
    run_forking(code, NUMBA_THREADING_LAYER=layer)


def test_child_after_somebody_elses_parallel_use():
    run_forking("of_somebody_else(100)\nassert in_child(expect_serial) == 0\n")


def test_child_before_parallel_use_may_be_parallel():
    code = """
toy.Call(3).run(1e-9, 1)
def work():
    assert big() == [0, 1] or launch.serial_reason()
assert in_child(work) == 0
assert big() == [0, 1] or launch.serial_reason()
"""
    run_forking(code)


def test_child_forked_while_another_thread_computes():
    code = """
call = toy.long_call(2.0)
thread = threading.Thread(target=lambda: call.run(2.0 / 40, 2))
thread.start()
while not (launch._layer.owner or launch.serial_reason()):
    time.sleep(0.01)
time.sleep(0.2)
assert in_child(expect_serial) == 0
thread.join()
call.assert_done()
assert big() == [0, 1] or launch.serial_reason()
"""
    run_forking(code)


def test_child_forked_while_another_thread_compiles():
    code = """
thread = threading.Thread(target=toy.arithmetic.warm)
thread.start()
while compile._compile_lock.acquire(blocking=False):
    compile._compile_lock.release()
def work():
    toy.Call(3).run(1e-9, 1).assert_done()
assert in_child(work) == 0
thread.join()
work()
"""
    run_forking(code, FASTATTN_CACHE=0)


def test_child_forked_in_the_middle_of_a_call():
    """A signal handler may fork; the child then returns into the call its parent was in."""
    code = """
import signal
child = None
def handler(signum, frame):
    global child
    child = os.fork()
signal.signal(signal.SIGALRM, handler)
big()
signal.setitimer(signal.ITIMER_REAL, 0.3)
call = toy.long_call(1.0).run(1.0 / 40, 2)
assert child is not None
call.assert_done()
if child == 0:
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    run_forking(code)


def test_no_child_is_left_in_the_middle_of_an_import():
    """Files of operations are imported when they are needed, or before a fork."""
    code = """
import numpy as np
import fastattn
x = np.ones((2, 3))
fastattn.attention(x, x, x)
files = {f"fastattn._engine.{name}" for name in ("linear", "normalize", "shared", "stages")}
assert not files & set(sys.modules), "they come with others"
assert in_child(lambda: files <= set(sys.modules)) == 0
"""
    run_forking(code)


def test_multiprocessing_pool_of_forks():
    code = """
import multiprocessing
def work(_):
    return big()
if __name__ == "__main__":
    big()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(work, range(6)).get(timeout=300) == [[0]] * 6
"""
    run_forking(code)


def test_attention_gives_the_same_bits_in_a_child(exact_backend):
    code = """
import numpy as np
import fastattn
rng = np.random.default_rng(0)
inputs = rng.standard_normal((3, 2, 4, 700, 40), dtype=np.float32)
expected = fastattn.attention(*inputs, threads=2).tobytes()
def work():
    for threads in (1, 2, None):
        assert fastattn.attention(*inputs, threads=threads).tobytes() == expected
assert in_child(work) == 0
work()
"""
    run_forking(code, FASTATTN_BACKEND=exact_backend, **children.WITH_KERNELS)

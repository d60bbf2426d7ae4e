"""NumPy's BLAS on the threads of the compiled kernels: same bits, no deadlock, and back."""

import ctypes
import os

import children
import pytest
from conftest import available

import fastattn

pytestmark = [
    pytest.mark.skipif(not available("cython"), reason="the kernels were not built"),
    pytest.mark.skipif(
        len(os.sched_getaffinity(0)) < 2 or not os.path.isdir("/proc/self/task"),
        reason="needs two cores, and /proc to count threads",
    ),
]

_PREPARED = """
import os, sys, threading, time
import numpy as np
import fastattn
from fastattn._cython import backend

sharing = fastattn.share_threads()
if not sharing.shared:
    print("skip", sharing.reason)
    raise SystemExit
fastattn.share_threads(False)
rng = np.random.default_rng(0)
inputs = rng.standard_normal((3, 2, 4, 700, 40), dtype=np.float32)
small = rng.standard_normal((300, 300))
wide = rng.standard_normal((500, 700), dtype=np.float32)

def attend():
    return fastattn.attention(*inputs, threads=2).tobytes()

def solve():
    "Products, and factorisations, whose jobs are partly OpenBLAS's own still."
    parts = small @ small, wide @ wide.T, np.linalg.inv(small), np.linalg.solve(small, small[0])
    return b"".join(part.tobytes() for part in parts)

expected = attend(), solve()

def compute():
    assert (attend(), solve()) == expected

def threads_here():
    return len(os.listdir("/proc/self/task"))
"""


def run(code, **variables):
    said = children.run(
        children.IN_CHILD + _PREPARED + code, FASTATTN_BACKEND="cython", **variables
    )
    if said.startswith("skip"):
        pytest.skip(said)
    return said


def test_products_have_the_same_bits_on_shared_threads_and_after():
    code = """
before = threads_here()
assert fastattn.share_threads().shared
assert fastattn.share_threads().shared  # again
for _ in range(50):
    compute()
assert threads_here() == before
assert not fastattn.share_threads(False).shared
compute()
assert fastattn.share_threads().shared
compute()
"""
    run(code)


def test_whose_threads_serve_is_told():
    code = """
def whose():
    return fastattn.show_config(mode="dicts")["machine"]["whose threads"]
alone = whose()
assert "has others" in alone
assert "NumPy's BLAS runs its jobs on fastattn's threads: OpenBLAS" in str(fastattn.share_threads())
assert "BLAS runs too" in whose()
fastattn.share_threads(False)
assert whose() == alone
"""
    run(code)


def test_many_threads_multiply_and_attend_at_once():
    code = """
fastattn.share_threads()
failures = []
def work():
    try:
        for _ in range(20):
            compute()
    except BaseException as error:
        failures.append(error)
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failures, failures
"""
    run(code)


def test_jobs_that_wait_for_each_other_get_threads_while_a_call_has_the_pool():
    code = """
fastattn.share_threads()
long = rng.standard_normal((3, 1, 8, 5000, 64), dtype=np.float32)
stop = False
def work():
    while not stop:
        fastattn.attention(*long, threads=2)
thread = threading.Thread(target=work)
thread.start()
for _ in range(20):
    while not backend._pool.owner:
        pass
    assert solve() == expected[1]
stop = True
thread.join()
"""
    run(code)


def test_a_forked_child_has_a_blas_of_its_own_until_it_shares():
    code = """
def alone():
    assert "has others" in fastattn.show_config(mode="dicts")["machine"]["whose threads"]
    compute()
def sharing_again():
    assert fastattn.share_threads().shared
    compute()
fastattn.share_threads()
compute()
assert in_child(alone) == 0
assert in_child(sharing_again) == 0
assert in_child(lambda: in_child(sharing_again) == 0) == 0
compute()
"""
    run(code)


def test_a_job_has_the_float_environment_of_whoever_multiplies():
    code = """
import ctypes
library, saved = ctypes.CDLL("libm.so.6"), ctypes.create_string_buffer(64)
tiny = np.full((400, 400), 1e-200) * np.linspace(1e-110, 1e-108, 400)
ones = np.eye(400) * 0.5
fastattn.share_threads()
kept = tiny @ ones
assert (kept != 0).all()
library.fegetenv(saved)
strange = ctypes.create_string_buffer(saved.raw)
strange[28:32] = (0x1F80 | 0x8040).to_bytes(4, "little")
library.fesetenv(strange)
flushed = tiny @ ones
library.fesetenv(saved)
assert (flushed == 0).all(), "on every thread, or on none"
assert (tiny @ ones == kept).all()
"""
    run(code)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"config": ""}, None),
        ({"setter": None}, "its callback for threads came with OpenBLAS 0.3.27"),
        ({"parallel": 2}, "was built for OpenMP's threads"),
        ({"parallel": 0}, "was built for one thread"),
        ({"threads": 1}, "it uses one thread"),
        ({"callback": 1234}, "another library has set its callback"),
        ({"threads": 40}, "it uses 40 threads and has room for 64"),
        (None, "it is no OpenBLAS that tells its settings (NumPy was built with"),
    ],
)
def test_a_blas_that_cannot_is_told(monkeypatch, change, reason):
    from fastattn._cython import blas

    library = blas._Library("OpenBLAS", 2, 64, 1, 0, 1234)
    assert not blas.shared(), "another test left it shared"
    found = None if change is None else library._replace(**change)
    if reason is None:
        assert blas._refusal(found) is None
        return
    monkeypatch.setattr(blas, "_read", lambda _: found)
    sharing = fastattn.share_threads()
    assert not sharing.shared
    assert reason in sharing.reason
    assert reason in str(sharing)


def test_a_library_without_blas_is_none():
    from fastattn._cython import blas

    assert blas._read(ctypes.CDLL(None)) is None


def test_without_compiled_kernels_nothing_is_shared():
    code = """
import sys
sys.modules["fastattn._cython._native"] = None
import fastattn
print(fastattn.share_threads())
fastattn.share_threads(False)
"""
    said = children.run(code)
    assert said.startswith("NumPy's BLAS keeps its own threads: only compiled kernels")


def test_nobody_shares_unasked():
    assert "has others" in fastattn.show_config(mode="dicts")["machine"]["whose threads"]

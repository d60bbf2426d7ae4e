"""Calls on the threads of another library: here those of a team of the tests, or of GNU OpenMP."""

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor

import children
import numpy as np
import pytest

import fastattn
from fastattn._core.threads import Team, in_company
from fastattn._engine import company

ENTER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
PARALLEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)


class TeamOfTests:
    """Threads that enter what they are told to, as those of `GOMP_parallel` do."""

    def __init__(self, threads):
        self.entered = []  # the Python thread of each region
        self.others = ThreadPoolExecutor(threads - 1)
        self.size = threads
        self.parallel = PARALLEL(self._parallel)
        self.team = Team(threads, ctypes.cast(self.parallel, ctypes.c_void_p).value)

    def _parallel(self, enter, what, threads, flags):
        assert (threads, flags) == (0, 0), "a team that is told its size may change it"
        self.entered.append(threading.get_ident())
        jobs = [self.others.submit(ENTER(enter), what) for _ in range(self.size - 1)]
        ENTER(enter)(what)
        for job in jobs:
            job.result()


@pytest.fixture
def team():
    made = TeamOfTests(5)  # more than there are workers
    yield made
    made.others.shutdown()


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Whatever this machine has: four processors, and nobody else among the masters."""
    monkeypatch.setattr("fastattn._core.threads._affinity", lambda: 4)
    monkeypatch.setattr("fastattn._core.threads._machine", None)
    monkeypatch.setattr(company, "_masters", company.Masters())
    yield
    monkeypatch.undo()
    from fastattn._core import threads

    threads._forget()


def inputs(rows=500):
    return np.random.default_rng(0).standard_normal((3, 2, 4, rows, 40), dtype=np.float32)


@pytest.mark.parametrize("threads", [None, 2, 3])
def test_calls_run_on_the_team_and_have_the_same_bits(exact_backend, team, threads):
    expected = fastattn.attention(*inputs(), threads=1)
    for _ in range(5):  # planned, then kept
        with in_company(team.team):
            found = fastattn.attention(*inputs(), threads=threads)
        assert found.tobytes() == expected.tobytes()
    assert len(team.entered) == 5
    fastattn.attention(*inputs(), threads=threads)
    assert len(team.entered) == 5, "outside of the block"


def test_small_calls_and_those_on_one_thread_do_not_enter_it(exact_backend, team):
    with in_company(team.team):
        fastattn.attention(*inputs(3))
        fastattn.attention(*inputs(), threads=1)
        with fastattn.threads(1):
            fastattn.attention(*inputs())
    assert team.entered == []


@pytest.mark.parametrize("size", [1, 2])
def test_a_team_of_one_or_nobody_is_none(exact_backend, team, size):
    alone = team.team._replace(threads=1) if size == 1 else team.team._replace(parallel=0)
    with in_company(alone):
        fastattn.attention(*inputs(), threads=2)
    assert team.entered == []


def test_long_calls_enter_it_slice_by_slice(exact_backend, team, monkeypatch):
    monkeypatch.setattr("fastattn._engine.launcher._UNSLICED_SECONDS", 1e-4)
    monkeypatch.setattr("fastattn._engine.launcher._FIRST_SLICE_SECONDS", 1e-4)
    monkeypatch.setattr("fastattn._engine.launcher._SLICE_SECONDS", 1e-4)
    expected = fastattn.attention(*inputs(), threads=1)
    with in_company(team.team):
        assert fastattn.attention(*inputs()).tobytes() == expected.tobytes()
    assert len(team.entered) > 1


def test_few_threads_become_masters_of_a_team(exact_backend, team):
    """Each has threads of its own in OpenMP; the others take ours, which all of them share."""
    leave = threading.Event()

    def work():
        with fastattn.use_backend(exact_backend), in_company(team.team):
            result = fastattn.attention(*inputs(), threads=2).tobytes()
        return result, leave.wait(30)

    with ThreadPoolExecutor(12) as many:
        jobs = [many.submit(work) for _ in range(12)]
        while len(company._masters.others) < 4:
            pass
        leave.set()
        assert len({job.result()[0] for job in jobs}) == 1
        assert len(company._masters.others) == 4


_OPENMP = """
import ctypes
try:
    openmp = ctypes.CDLL("libgomp.so.1")
except OSError:
    print("no libgomp")
    raise SystemExit
import os, threading
import numpy as np
import fastattn
from fastattn._core.threads import Team, in_company
parallel = ctypes.cast(openmp.GOMP_parallel, ctypes.c_void_p).value
team = Team(2, parallel)
openmp.omp_set_num_threads(2)
inputs = np.random.default_rng(0).standard_normal((3, 2, 4, 700, 40), dtype=np.float32)
expected = fastattn.attention(*inputs, threads=1).tobytes()

def threads_here():
    return len(os.listdir("/proc/self/task"))

def compute():
    before = threads_here()
    with in_company(team):
        assert fastattn.attention(*inputs, threads=2).tobytes() == expected
    return threads_here() - before
"""


def run(backend, code):
    said = children.run(
        children.IN_CHILD + _OPENMP + code,
        FASTATTN_BACKEND=backend,
        OPENBLAS_NUM_THREADS="1",
        **children.WITH_KERNELS,
    )
    if said == "no libgomp\n":
        pytest.skip("no libgomp here")


def test_a_team_of_openmp(exact_backend):
    code = """
from fastattn._engine import company
assert compute() == 1, "its threads, and no others"
assert compute() == 0
for work in (threading.Thread(target=compute) for _ in range(8)):
    work.start()
    work.join()
"""
    run(exact_backend, code)


def test_a_forked_child_does_not_wait_for_its_parents_team(exact_backend):
    code = """
def work():
    assert in_child(compute) in (0, 1)  # and its children
    compute()
compute()
for _ in range(3):
    assert in_child(work) == 0
compute()
"""
    run(exact_backend, code)


def test_the_float_environment_of_a_team_changes_no_bit(exact_backend):
    """Its threads are made by one that flushes to zero, and copy that."""
    code = """
import platform
value = np.full((1, 400, 3000, 2), 5e-310)
rng = np.random.default_rng(0)
inputs = rng.standard_normal((1, 400, 1, 2)), rng.standard_normal((1, 400, 3000, 2)), value
expected = fastattn.attention(*inputs, threads=1).tobytes()
library, saved = ctypes.CDLL("libm.so.6"), ctypes.create_string_buffer(64)
library.fegetenv(saved)
if platform.machine() == "x86_64":
    strange = ctypes.create_string_buffer(saved.raw)
    strange[28:32] = (0x1F80 | 0x8040 | 0x4000).to_bytes(4, "little")
    library.fesetenv(strange)
compute()
library.fesetenv(saved)
compute()
"""
    run(exact_backend, code)

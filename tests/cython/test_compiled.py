"""The compiled backend as a citizen of its process: threads, forks, interrupts, levels, imports."""

import os
import platform
from pathlib import Path

import children
import numpy as np
import oracle
import pytest
from conftest import available

import fastattn

pytestmark = pytest.mark.skipif(not available("cython"), reason="the kernels were not built")

# One thread of NumPy's own, so that threads can be counted.
COMPILED = {"FASTATTN_BACKEND": "cython", "OPENBLAS_NUM_THREADS": "1"}
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")

_PREPARED = """
import os, sys, threading, time
import numpy as np
import fastattn
rng = np.random.default_rng(0)
inputs = rng.standard_normal((3, 2, 4, 1500, 40), dtype=np.float32)
expected = fastattn.attention(*inputs, threads=1).tobytes()

def threads_here():
    return len(os.listdir("/proc/self/task"))

def compute():
    "One call on this thread and another; whether there is another then."
    assert fastattn.attention(*inputs, threads=2).tobytes() == expected
    return threads_here() > 1

"""

needs_numba = pytest.mark.skipif(not available("numba"), reason="numba is not there")
needs_two = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2 or not os.path.isdir("/proc/self/task"),
    reason="needs two cores, and /proc to count threads",
)


def run(code, **variables):
    return children.run(children.IN_CHILD + _PREPARED + code, **COMPILED, **variables)


@needs_two
def test_one_thread_starts_none_and_sleeping_threads_wake():
    code = """
assert threads_here() == 1, "a call on one thread started others"
assert compute()
time.sleep(0.2)  # they sleep now
for _ in range(200):
    assert compute()
assert threads_here() == 2
"""
    run(code)


@needs_two
def test_threads_without_work_look_for_some_and_then_sleep():
    """Whoever sleeps at once comes too late for the next step of a decoder.

    Told by the system's count of how often a thread gave its core away, not by the clock: what a
    thread has used of its core is known at ticks alone, and a busy machine stretches any pause.
    """
    code = """
from pathlib import Path
compute()
me = str(threading.get_native_id())
other, = (task for task in Path("/proc/self/task").iterdir() if task.name != me)

def naps():
    lines = (other / "status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("voluntary_ctxt_switches"))

def sleeps():
    return (other / "stat").read_text().rpartition(") ")[2][0] == "S"

before, taken = naps(), []
for _ in range(200):
    compute()
    taken.append(naps() - before)
    before += taken[-1]
assert taken.count(0) > 20, "it slept between any two calls"
stop = time.monotonic() + 100
while not sleeps():
    assert time.monotonic() < stop, "it never sleeps"
    time.sleep(0.02)
"""
    run(code)


@needs_two
def test_a_forked_child_starts_threads_of_its_own():
    code = """
assert in_child(compute) == 0
assert compute()
assert in_child(lambda: threads_here() == 1) == 0
assert in_child(compute) == 0
assert in_child(lambda: in_child(compute) == 0) == 0  # and its children
assert compute()
"""
    run(code)


@needs_two
def test_a_child_forked_while_another_thread_computes():
    code = """
from fastattn._cython import backend
compute()
stop = False
def work():
    while not stop:
        compute()
thread = threading.Thread(target=work)
thread.start()
for _ in range(20):
    while not backend._pool.owner:
        pass
    assert in_child(compute) == 0
stop = True
thread.join()
assert compute()
"""
    run(code)


@needs_two
def test_a_child_forked_in_the_middle_of_a_call():
    """A signal handler may fork; the child then returns into the call its parent was in."""
    code = """
import signal
child = None
def handler(signum, frame):
    global child
    child = os.fork()
signal.signal(signal.SIGALRM, handler)
long = rng.standard_normal((3, 1, 12, 8000, 64), dtype=np.float32)
fastattn.attention(*inputs, threads=2)
signal.setitimer(signal.ITIMER_REAL, 0.3)
output = fastattn.attention(*long, threads=2)
assert child is not None, "the call was over before the signal"
row = fastattn.attention(long[0][:, :1, 17:18], *long[1:, :, :1])
assert output[0, 0, 17].tobytes() == row.tobytes()
if child == 0:
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    run(code)


def test_a_pool_of_forked_processes():
    code = """
import multiprocessing
def work(_):
    return compute()
compute()
with multiprocessing.get_context("fork").Pool(2) as pool:
    pool.map_async(work, range(6)).get(timeout=300)
"""
    run(code)


@needs_two
def test_one_call_at_a_time_has_the_threads():
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as many:
    list(many.map(lambda _: compute(), range(64)))
assert threads_here() <= 2 + 8, "each caller has threads of its own"
"""
    run(code)


def test_interrupts_at_any_moment_leave_everything_usable():
    code = """
import signal
from fastattn._cython import backend
few = inputs[..., :300, :]
expected_few = fastattn.attention(*few).tobytes()
interrupted = 0
for repeat in range(200):
    try:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 20e-6 + 5e-6 * repeat)
        while True:
            fastattn.attention(*few, threads=2)
    except KeyboardInterrupt:
        interrupted += 1
    assert not backend._pool.owner, repeat
assert interrupted == 200
assert fastattn.attention(*few, threads=2).tobytes() == expected_few
compute()
"""
    run(code)


@needs_numba
@pytest.mark.skipif(not IS_X86, reason="the control word is x86's")
@pytest.mark.parametrize("threads", [1, 2])
def test_the_float_environment_of_others_changes_no_bit(threads):
    """Flush to zero, denormals are zero, round up: set by somebody else, and left as it was."""
    code = f"""
import toy_kernels as toy
strange = 0x1F80 | 0x8040 | 0x4000
value = np.full((1, 400, 3000, 2), 5e-310)
query = rng.standard_normal((1, 400, 1, 2))
inputs = query, rng.standard_normal((1, 400, 3000, 2)), value
expected = fastattn.attention(*inputs, threads={threads})
assert (abs(expected / 5e-310 - 1) < 1e-9).all()
before = toy.swap_mxcsr.run(strange)
found = fastattn.attention(*inputs, threads={threads})
after = toy.swap_mxcsr.run(before)
assert found.tobytes() == expected.tobytes()
assert after & 0xFFC0 == strange & 0xFFC0
"""
    run(code, **children.WITH_KERNELS)


def test_nothing_of_numba_is_imported():
    code = """
fastattn.softmax(inputs[0])
fastattn.similarity(*inputs[:2])
fastattn.fuse(inputs[0], inputs[1, 0, 0, :40])
print(sorted(name for name in sys.modules if name.split(".")[0] in ("numba", "llvmlite")))
"""
    for variables in (COMPILED, {}):
        assert children.run(children.IN_CHILD + _PREPARED + code, **variables).strip() == "[]"


def test_every_level_of_this_cpu_has_the_same_bits():
    from fastattn._cython import _native

    levels = _native.supported_levels()
    assert levels, "the backend was imported, so some level runs here"
    assert set(levels) <= set(_native.built_levels())
    digests = {
        children.run(
            "import digests; print(digests.everything())", **COMPILED, FASTATTN_CYTHON_LEVEL=level
        )
        for level in levels
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    "change",
    [
        "from fastattn._engine import layouts; layouts.SWAPPED += 1",
        "from fastattn._cython import words; words.sources = lambda folder: 1",
        "from fastattn._cython import _native; del _native.built_from",
    ],
    ids=["tables", "sources", "older"],
)
def test_kernels_of_other_sources_are_refused(change):
    """A clone that changed since its kernels were built: other words, or other bits."""
    code = """
import fastattn
try:
    fastattn.attention([1.0], [[1.0]], [[1.0]])
except ImportError as error:
    print(error)
"""
    assert "built from other sources than these" in children.run(change + code, **COMPILED)


def test_kernels_installed_without_their_sources_are_not_refused(tmp_path):
    from fastattn._cython import _native, words

    assert words.sources(tmp_path) is None
    assert words.sources(Path(_native.__file__).parent) in (None, _native.built_from()[1])
    code = """
from fastattn._cython import words
words.sources = lambda folder: None
import fastattn
print(fastattn.attention([1.0], [[1.0]], [[2.0]]))
"""
    assert children.run(code, **COMPILED).strip() == "[2.]"


@needs_numba
def test_kernels_that_cannot_be_loaded_are_left_out_with_a_warning():
    """Kernels that were never built are left out without a word; these are there, and broken."""
    code = """
import sys, warnings
class Loader:
    def find_spec(self, name, path, target=None):
        if name == "fastattn._cython._native":
            raise {error}
sys.meta_path.insert(0, Loader())
import fastattn
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    backends = [fastattn.explain([1.0], [[1.0]], [[1.0]]).backend for _ in range(2)]
print(backends, [(warning.category.__name__, str(warning.message)) for warning in seen])
"""
    broken = "ImportError('_native.so: undefined symbol: nope', name=name)"
    said = children.run(code.format(error=broken))
    assert said.startswith("['numba', 'numba'] [('RuntimeWarning', ")
    assert said.count("RuntimeWarning") == 1
    assert "cannot be loaded: _native.so: undefined symbol: nope" in said
    absent = "ModuleNotFoundError('No module named ' + name, name=name)"
    assert children.run(code.format(error=absent)).strip() == "['numba', 'numba'] []"


@needs_numba
def test_a_level_that_is_not_there_is_refused():
    code = """
import fastattn
try:
    fastattn.attention([1.0], [[1.0]], [[1.0]])
except ImportError as error:
    print(error)
"""
    said = children.run(code, **COMPILED, FASTATTN_CYTHON_LEVEL="x86-64-v9")
    assert "FASTATTN_CYTHON_LEVEL is 'x86-64-v9'" in said
    # Unless it is named, another backend does the call, and explain says why.
    code = """
import fastattn
execution = fastattn.explain([1.0], [[1.0]], [[1.0]])
print(execution.backend, execution.refusals["cython"])
"""
    said = children.run(code, FASTATTN_CYTHON_LEVEL="x86-64-v9", **children.WITH_KERNELS)
    assert said.startswith("numba FASTATTN_CYTHON_LEVEL is 'x86-64-v9'")


def test_without_numba_everything_is_there_but_its_backend():
    """Neither the import nor a call looks for it; whoever asks for it is told what brings it."""
    code = """
import sys
class Watch:
    def find_spec(self, name, path, target=None):
        if name in ("numba", "llvmlite"):
            assert asked, "it was looked for"
            raise ModuleNotFoundError("No module named " + name, name=name)
sys.meta_path.insert(0, Watch())
asked = False
import fastattn
one = [1.0], [[1.0]], [[2.0]]
print(fastattn.attention(*one), fastattn.explain(*one).backend)
fastattn.warmup()
asked = True
print(fastattn.show_config(mode="dicts")["backends"]["numba"])
for call in (fastattn.attention, fastattn.explain):
    try:
        call(*one, backend="numba")
    except ModuleNotFoundError as error:
        print(error)
with fastattn.use_backend("numba"):
    try:
        fastattn.warmup()
    except ModuleNotFoundError as error:
        print(error)
"""
    first, *said = children.run(code).splitlines()
    assert first == "[2.] cython"
    assert len(said) == 4
    assert all("Numba, which is not installed: `pip install numba`" in line for line in said)


def test_without_any_backend_the_error_names_the_way_out():
    code = """
import sys
sys.modules["fastattn._cython._native"] = sys.modules["numba"] = None
import fastattn
for call in (lambda: fastattn.softmax([1.0]), lambda: fastattn.attention([1.0], [[1.0]], [[1.0]])):
    try:
        call()
    except (ImportError, ValueError) as error:
        print(error)
print(fastattn.attention([1.0], [[1.0]], [[2.0]], backend="reference"))
"""
    said = children.run(code).splitlines()
    assert len(said) == 3, said
    assert all("cython: " in line and "reference" in line for line in said[:2])
    assert all("numba: " in line and line.count("`pip install numba`") == 1 for line in said[:2])
    assert said[2] == "[2.]"


@needs_numba
def test_both_compilers_give_the_same_bits(seed):
    """What the suite holds by relations, once directly: the digest of many calls."""
    import digests

    with fastattn.use_backend("cython"):
        compiled = digests.everything(seed)
    with fastattn.use_backend("numba"):
        assert digests.everything(seed) == compiled


@needs_numba
def test_calls_of_both_backends_share_scratch_and_records(seed):
    """Repeated calls of changing sizes by turns: no backend trips over what another left."""
    rng = np.random.default_rng(seed)
    for shape in ((1, 8, 300, 64), (6, 12, 128, 64), (1, 1, 5, 8)):
        arrays = rng.standard_normal((3, *shape), dtype=np.float32)
        expected = fastattn.attention(*arrays, backend="cython")
        for _ in range(20):
            for backend in ("cython", "numba"):
                found = fastattn.attention(*arrays, backend=backend)
                oracle.assert_same_bits(found, expected, about=(shape, backend))

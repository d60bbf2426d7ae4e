"""One parallel driver: every task once, whoever runs it; nobody else's settings are touched."""

import importlib.util
import platform
import threading
from types import SimpleNamespace

import children
import numba
import numpy as np
import pytest
import toy_kernels as toy

from fastattn._engine import launcher
from fastattn._numba.compiler import compile, launch

needs_two_threads = pytest.mark.skipif(
    numba.config.NUMBA_NUM_THREADS < 2, reason="Numba has one thread here"
)
needs_mxcsr = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="the control word is of x86"
)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("tasks", [1, 2, 7, 10_000])
def test_every_task_is_done_once(tasks, workers):
    call = toy.Call(tasks).run(1e-3 / tasks, workers)
    call.assert_done()
    assert call.workers()[-1] < workers


def test_no_tasks():
    toy.Call(0).run(1e-6, 2)


def test_serial_and_parallel_give_the_same_bits():
    serial, parallel = (toy.Call(64, steps=1000).run(1e-4, workers) for workers in (1, 4))
    assert serial.value.tobytes() == parallel.value.tobytes()
    assert serial.value[0] > 0


@needs_two_threads
def test_large_work_is_shared():
    assert toy.long_call(0.1).run(0.1 / 40, 2).workers() == [0, 1]


def test_small_work_stays_on_this_thread():
    assert toy.Call(8).run(1e-9, 4).workers() == [0]


@needs_two_threads
def test_openmp_nesting_is_left_alone():
    """Numba allows nested regions when its threads start; PyTorch beside it would suffer."""
    code = """
        import ctypes
        import toy_kernels as toy
        try:
            levels = ctypes.CDLL("libgomp.so.1").omp_get_max_active_levels
        except OSError:
            print("no libgomp")
        else:
            before = levels()
            toy.long_call(0.1).run(0.1 / 40, 2)
            print("kept" if levels() == before else f"{before} became {levels()}")
    """
    assert children.run(code).strip() in ("kept", "no libgomp")


def test_small_work_does_not_compile_the_parallel_driver(tmp_path):
    code = """
        import toy_kernels as toy
        from fastattn._numba.compiler import launch
        toy.Call(8).run(1e-9, 4).assert_done()
        toy.long_call(0.3).run(0.3 / 40, 1).assert_done()
        assert launch._parallel.seconds is None
        assert launch._serial.seconds is not None
    """
    children.run(code, FASTATTN_CACHE_DIR=tmp_path)


class _FakeDrivers:
    """Drivers that only advance a clock, by what each task truly takes."""

    def __init__(self, monkeypatch, cost):
        self.now = 0.0
        self.slices = []
        self.cost = cost
        monkeypatch.setattr(launch, "_serial", SimpleNamespace(run=self._run))
        monkeypatch.setattr(launch, "_parallel", SimpleNamespace(run=self._run))
        monkeypatch.setattr(launcher, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def _run(self, address, call, first, stop, workers=1):
        seconds = sum(self.cost(task) for task in range(first, stop)) / workers
        self.slices.append((first, stop, seconds))
        self.now += seconds

    def assert_covers(self, tasks):
        borders = [0, *(stop for _, stop, _ in self.slices)]
        assert borders[:-1] == [first for first, _, _ in self.slices]
        assert borders[-1] == tasks


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("wrong", [0.5, 1.0, 2.0])
def test_slices_are_short_although_estimates_are_wrong(monkeypatch, workers, wrong):
    if workers == 2 and launch.serial_reason() is not None:
        pytest.skip(launch.serial_reason())
    fake = _FakeDrivers(monkeypatch, cost=lambda task: 0.004)
    toy.Call(1000).run(0.004 * wrong, workers)
    fake.assert_covers(1000)
    assert len(fake.slices) > 5
    assert max(seconds for _, _, seconds in fake.slices) <= 0.2501


def test_slices_shrink_when_tasks_turn_out_dear(monkeypatch):
    fake = _FakeDrivers(monkeypatch, cost=lambda task: 0.05)
    toy.Call(100).run(0.002, 1)
    fake.assert_covers(100)
    assert fake.slices[0][2] > 1.0  # the estimate was off by 25
    assert max(seconds for _, _, seconds in fake.slices[1:]) <= 0.2501


def test_slices_do_not_trust_early_light_tasks(monkeypatch):
    fake = _FakeDrivers(monkeypatch, cost=lambda task: 0.0 if task < 100 else 0.004)
    toy.Call(1000).run(0.004, 1)
    fake.assert_covers(1000)
    assert max(seconds for _, _, seconds in fake.slices) <= 0.4001


def test_short_calls_are_one_slice(monkeypatch):
    fake = _FakeDrivers(monkeypatch, cost=lambda task: 0.001)
    toy.Call(100).run(0.001, 1)
    assert len(fake.slices) == 1


@needs_two_threads
def test_while_another_call_holds_the_layer_this_one_is_serial():
    toy.long_call(0.1).run(0.1 / 40, 2)
    launch._layer.owner = held_by_another = [True]
    try:
        held = toy.long_call(0.1).run(0.1 / 40, 2)
    finally:
        held_by_another.clear()
    held.assert_done()
    assert held.workers() == [0]
    assert toy.long_call(0.1).run(0.1 / 40, 2).workers() == [0, 1]


@pytest.mark.parametrize("seconds", [0.05, 5.0])
def test_an_interrupted_call_lets_the_layer_go(monkeypatch, seconds):
    if launch.serial_reason() is not None:
        pytest.skip(launch.serial_reason())

    def interrupt(*arguments):
        assert launch._layer.owner
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(launch, "_parallel", SimpleNamespace(run=interrupt))
        with pytest.raises(KeyboardInterrupt):
            toy.Call(100).run(seconds / 100, 2)
    assert not launch._layer.owner
    toy.Call(100).run(1e-3, 2).assert_done()


def test_numbas_thread_mask_is_left_alone():
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        call = toy.long_call(0.05).run(0.05 / 40, 2)
        assert numba.get_num_threads() == 1
    finally:
        numba.set_num_threads(before)
    call.assert_done()


def test_few_threads_become_masters_of_parallel_regions():
    if launch.serial_reason() is not None:
        pytest.skip(launch.serial_reason())
    calls = [toy.Call(100) for _ in range(12)]
    finished, leave = threading.Semaphore(0), threading.Event()

    def work(call):
        call.run(1e-4, 2)
        finished.release()
        leave.wait(30)

    pool = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in pool:
        thread.start()
        assert finished.acquire(timeout=300)
    try:
        assert 0 < len(launch._layer.masters.others) <= 4
    finally:
        leave.set()
        for thread in pool:
            thread.join()
    for call in calls:
        call.assert_done()


_TWO_THREADS = """
    import threading
    import toy_kernels as toy
    from fastattn._numba.compiler import launch
    failures = []
    def work():
        try:
            for repeat in range(100):
                toy.Call(50, 200).run(1e-4, 2).assert_done()
            toy.long_call(0.6).run(0.6 / 40, 2).assert_done()
        except BaseException as error:
            failures.append(error)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads: thread.start()
    work()
    for thread in threads: thread.join()
    assert not failures, failures
    print(launch._layer.name, toy.long_call(0.1).run(0.1 / 40, 2).workers())
"""


@needs_two_threads
@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_many_python_threads_at_once(layer):
    output = children.run(_TWO_THREADS, NUMBA_THREADING_LAYER=layer)
    name, workers = output.split(" ", 1)
    assert name == "workqueue" or layer == "default"
    assert workers.strip() == "[0, 1]"  # alone again: parallel again


@needs_two_threads
def test_workqueue_is_never_entered_beside_somebody_elses_kernel():
    """Two threads inside this layer abort the process, and the other one need not be ours."""
    code = """
        import threading
        import numba
        import toy_kernels as toy
        @numba.njit(parallel=True, nogil=True)
        def of_somebody_else(n):
            total = 0.0
            for i in numba.prange(n):
                total += 1.0 / (1.0 + i)
            return total
        of_somebody_else(10)
        stop = threading.Event()
        def work():
            while not stop.is_set():
                of_somebody_else(1_000_000)
        thread = threading.Thread(target=work)
        thread.start()
        for repeat in range(200):
            toy.Call(40, 1000).run(1e-4, 2).assert_done()
        stop.set()
        thread.join()
    """
    children.run(code, NUMBA_THREADING_LAYER="workqueue")


def test_without_a_threading_layer_calls_are_serial():
    if importlib.util.find_spec("tbb"):
        pytest.skip("TBB is installed")
    code = """
        import toy_kernels as toy
        from fastattn._numba.compiler import launch
        print(toy.long_call(0.1).run(0.1 / 40, 2).workers(), launch.serial_reason())
    """
    output = children.run(code, NUMBA_THREADING_LAYER="tbb")
    assert output.startswith("[0] Numba found no threading layer")
    output = children.run(code, NUMBA_NUM_THREADS=1)
    assert output.startswith("[0] Numba has one thread")


_FLUSH_AND_ROUND_UP = 0x1F80 | 0x8040 | 0x4000  # flush to zero, denormals are zero, round up


@needs_mxcsr
@pytest.mark.parametrize("workers", [1, 2])
def test_the_float_environment_of_others_changes_no_bit(workers):
    def run():
        call = toy.Call(40, steps=10_000)
        call.value[:2] = 5e-310, 3.0
        return call.run(5e-5, workers, toy.arithmetic)

    expected = run().value
    assert expected[2] == 7.5e-310
    assert expected[3] == np.float64(1.0) / np.float64(3.0)
    before = toy.swap_mxcsr.run(_FLUSH_AND_ROUND_UP)
    try:
        found = run().value
    finally:
        after = toy.swap_mxcsr.run(before)
    assert found.tobytes() == expected.tobytes()
    assert after & 0xFFC0 == _FLUSH_AND_ROUND_UP & 0xFFC0  # theirs again


@needs_mxcsr
def test_threads_that_inherit_a_float_environment_keep_our_bits():
    """Numba's threads start during the first parallel call and copy the caller's control word."""
    code = f"""
        import toy_kernels as toy
        toy.swap_mxcsr.run({_FLUSH_AND_ROUND_UP})
        call = toy.Call(40, steps=200_000)
        call.value[:2] = 5e-310, 3.0
        call.run(1e-3, 2, toy.arithmetic)
        toy.swap_mxcsr.run(0x1F80)
        assert (call.value[2::2] == 7.5e-310).all(), call.value
        assert (call.value[3::2] == 1.0 / 3.0).all(), call.value
    """
    children.run(code)


def test_a_disabled_compiler_is_named():
    code = """
        import toy_kernels as toy
        from fastattn._numba.compiler import compile
        print(compile.refusal())
        try:
            toy.Call(3).run(1e-6, 1)
        except RuntimeError as error:
            print(error)
    """
    output = children.run(code, NUMBA_DISABLE_JIT=1)
    refusal, error = output.splitlines()
    assert "NUMBA_DISABLE_JIT" in refusal
    assert refusal in error


def test_the_options_keep_bits():
    assert compile.OPTIONS["fastmath"] is False
    assert compile.OPTIONS["error_model"] == "numpy"
    assert compile.OPTIONS["nogil"] is True

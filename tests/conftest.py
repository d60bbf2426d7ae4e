"""Shared by all tests: what they ran on, the backends under test, how to repeat a failure."""

import importlib
import importlib.util
import os
import signal

import hypothesis
import numpy as np
import pytest

# Every backend the suite knows; the tests run on those that are there. The reference goes through
# the same face and seam as the others, but promises no bits.
BACKENDS = ("numba", "cython", "reference")
BASE_SEED = int(os.environ.get("FASTATTN_TEST_SEED", "20261122"))

hypothesis.settings.register_profile(
    "fastattn",
    deadline=None,  # the first call compiles
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("fastattn")


# A shell starts what it runs in the background with SIGINT ignored, and children inherit that: the
# tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# What tests start is no worker, though they may run in one: pytest-benchmark would measure nothing.
os.environ.pop("PYTEST_XDIST_WORKER", None)


def available(backend: str) -> bool:
    """Tell whether a backend is here. One that is here and broken, or stale, is an error."""
    room = backend if backend == "reference" else f"_{backend}"
    try:
        importlib.import_module(f"fastattn.{room}.backend")
    except ModuleNotFoundError:
        return False
    return True


# FASTATTN_BACKEND leaves the others out: kernels compiled before a change of their sources, say.
ASKED = os.environ.get("FASTATTN_BACKEND", "")
HERE = tuple(
    backend
    for backend in BACKENDS
    if ASKED in ("", backend, "reference") or backend == "reference"
    if available(backend)
)
AUTOMATIC = "cython" if "cython" in HERE else "numba"
EXACT = tuple(backend for backend in HERE if backend != "reference")


def pytest_report_header() -> list[str]:
    numba = "absent"
    if importlib.util.find_spec("numba"):
        import numba as module

        numba = module.__version__
    return [
        f"fastattn: numpy {np.__version__}, numba {numba}, backends {', '.join(HERE)}, "
        f"FASTATTN_TEST_SEED={BASE_SEED}"
    ]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Say with each failure how to run it again on the same numbers."""
    report = yield
    if report.when == "call" and report.failed:
        again = f"FASTATTN_TEST_SEED={BASE_SEED} python -m pytest '{item.nodeid}'"
        report.sections.append(("run this again", again))
    return report


def pytest_generate_tests(metafunc):
    """`backend`: every backend here; `exact_backend`: those that promise bits."""
    for name, backends in (("backend", HERE), ("exact_backend", EXACT)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, backends, indirect=True)


@pytest.fixture
def backend(request):
    """A backend's name; everything the test calls runs on it."""
    import fastattn

    with fastattn.use_backend(request.param):
        yield request.param


@pytest.fixture
def exact_backend(request):
    """A backend that keeps the numerics contract; everything the test calls runs on it."""
    import fastattn

    with fastattn.use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def threads_are_forgotten():
    """A number of threads set by one test, or by the bench in it, is not that of the next."""
    yield
    import fastattn

    fastattn.set_threads(None)


@pytest.fixture
def seed() -> int:
    """Base of all random numbers of a run; printed in the header, set by FASTATTN_TEST_SEED."""
    return BASE_SEED

"""The threads of the compiled kernels, apart from Python: every task once, nobody too late."""

import shutil
import subprocess
from pathlib import Path

import pytest
from children import PACKAGES

HEADERS = PACKAGES / "fastattn" / "_cython"
COMPILER = shutil.which("cc") or shutil.which("gcc")

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C compiler here"),
    pytest.mark.skipif(not (HEADERS / "pool.h").exists(), reason="installed without its sources"),
]


def build(folder, *flags):
    """Compile the stress; returns it, or None where the compiler cannot."""
    program = folder / "stress"
    source = Path(__file__).with_name("pool_stress.c")
    command = [COMPILER, "-std=gnu11", "-O2", "-pthread", f"-I{HEADERS}", *flags, source]
    done = subprocess.run([*command, "-o", program], capture_output=True, text=True, check=False)
    return program if done.returncode == 0 else None


def run(program, *numbers):
    command = [program, *map(str, numbers)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize(("callers", "runs", "forks"), [(0, 4_000, 0), (4, 1_000, 10)])
def test_every_task_is_done_once_and_those_that_wait_meet(tmp_path, callers, runs, forks):
    program = build(tmp_path, "-Wall", "-Werror")
    assert program is not None
    done = run(program, callers, runs, forks)
    assert (done.returncode, done.stdout) == (0, "all done once\n"), done


def test_nothing_is_read_while_it_is_written(tmp_path):
    """By the thread sanitizer, which sees what only another machine would do wrong."""
    program = build(tmp_path, "-g", "-fsanitize=thread")
    if program is None or run(program, 0, 1, 0).returncode:
        pytest.skip("no thread sanitizer here")
    done = run(program, 3, 2_000, 0)
    assert (done.returncode, done.stdout) == (0, "all done once\n"), done.stderr


def test_a_run_waits_for_nobody_who_has_not_come(tmp_path):
    """Threads that never get a core: here they are never started."""
    program = build(tmp_path, "-DNOBODY_COMES")
    assert program is not None
    done = run(program, 0, 1_000, 0)
    assert (done.returncode, done.stdout) == (0, "all done once\n"), done

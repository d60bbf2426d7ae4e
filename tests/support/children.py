"""Run a piece of Python in a process of its own, with fastattn and the helpers of the tests."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from places import SUPPORT, TESTS

from fastattn._numba.compiler import store

# Seconds after which a child hangs: a guard and no measure, so that no busy machine reaches it.
PATIENCE = 300

PACKAGES = Path(store.__file__).resolve().parents[3]

# Attention takes seconds to compile: children that call it use what this process has compiled.
_place = store.root()
WITH_KERNELS = {"FASTATTN_CACHE_DIR": _place} if _place else {"FASTATTN_CACHE": "0"}

# The children of one test run compile each entry once, away from the user's own cache.
CACHE = tempfile.mkdtemp(prefix="fastattn-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)


def environment(**variables):
    """This process's environment, without its fastattn and Numba settings, plus ``variables``."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("NUMBA_", "FASTATTN_"))
    }
    kept["FASTATTN_CACHE_DIR"] = CACHE
    kept["PYTHONPATH"] = os.pathsep.join(map(str, (PACKAGES, TESTS, SUPPORT)))
    kept.update({name: str(value) for name, value in variables.items()})
    return kept


def start(code, **variables):
    """Start ``code`` in a child; its stdin, stdout and stderr are pipes of text.

    ``-P``: the folder it happens to start in must not hide the package under test.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-u", "-c", textwrap.dedent(code)],
        env=environment(**variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rest(child, timeout=PATIENCE):
    """Wait for a child; return what it printed and what it said of errors, from here on.

    `communicate` reads past these streams: a line that came together with one already read would
    be lost.
    """
    with child.stdout, child.stderr, ThreadPoolExecutor(2) as readers:
        streams = [readers.submit(stream.read) for stream in (child.stdout, child.stderr)]
        child.stdin.close()
        try:
            child.wait(timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            output, errors = (stream.result() for stream in streams)
            raise AssertionError(f"the child hangs\n{output}\n{errors}") from None
        return tuple(stream.result() for stream in streams)


def finish(child, timeout=PATIENCE):
    """Wait for a child, insist that it ended well, and return what it printed."""
    output, errors = rest(child, timeout)
    assert child.returncode == 0, f"exit code {child.returncode}\n{output}\n{errors}"
    return output


def run(code, timeout=PATIENCE, **variables):
    """Run ``code`` in a child and return what it printed."""
    return finish(start(code, **variables), timeout)


# In front of code that forks children of its own.
IN_CHILD = """
import os, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python's word on forking with threads

def in_child(work):
    "Run work in a forked child and return its exit code; negative: killed by that signal."
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = 0 if work() in (None, True) else 1
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(code)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "hangs"
"""

"""Whether calls multiply bfloat16 as it is, what that takes for 0, and processes that do it.

Decided by the CPU, or by FASTATTN_BFLOAT16_DOT: the suite passes with 0 and with 1.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import fastattn
from fastattn._engine.bfloat16 import VARIABLE as SWITCH

__all__ = ["SWITCH", "can_multiply", "in_pairs", "multiplies", "run", "run_tests", "taken"]

TESTS = Path(__file__).resolve().parent


def can_multiply(backend):
    """Whether a backend that is here has kernels for it that this CPU runs."""
    if backend == "numba":
        from fastattn._numba import emit

        return emit.DOTS_PAIRS
    module = importlib.import_module(f"fastattn._{backend}.backend")
    return module._native.pairs_address(module.level) is not None


def multiplies(backend):
    """Whether a backend multiplies bfloat16 as it is, in this process."""
    module = importlib.import_module(f"fastattn._{backend}.backend")
    return module.engine.kernels.attend_pairs is not None


def in_pairs(*arrays, **options):
    """Whether a call multiplies its bfloat16 operands as they are."""
    return fastattn.explain(*arrays, **options).problem.in_pairs


def taken(numbers):
    """The numbers as the dot of pairs takes them: subnormal ones are 0."""
    exponent = numbers.view(np.uint16) & 0x7F80
    return np.where(exponent == 0, np.zeros((), numbers.dtype), numbers)


def run(*arguments, timeout):
    """Run Python among the tests, where bfloat16 is multiplied as it is; return what it printed."""
    path = os.pathsep.join(filter(None, [str(TESTS.parent), *sys.path]))
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", *arguments],
        env={**os.environ, SWITCH: "1", "PYTHONPATH": path},
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


def run_tests(file, words, timeout):
    """Run those tests of a file that fit the words, where bfloat16 is multiplied as it is."""
    options = ("-q", "-x", "-p", "no:cacheprovider", "-m", "not long", "-k", words)
    assert " passed" in run("-m", "pytest", *options, file, timeout=timeout)

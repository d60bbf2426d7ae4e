"""Whether calls multiply bfloat16 as it is, what that takes for 0, and processes that do it.

Decided by the CPU, or by FASTATTN_BFLOAT16_DOT: the suite passes with 0 and with 1.

``python pairs.py BACKEND`` calls attention on arrays beside unmapped memory. As those of
`test_guard_pages`, with the sizes at which tiles of pairs read where keys and values lie.
"""

import importlib
import itertools
import os
import subprocess
import sys

import numpy as np
import strategies
from places import TESTS

import fastattn
from fastattn._engine.bfloat16 import VARIABLE as SWITCH

__all__ = [
    "SWITCH",
    "backend_of",
    "can_multiply",
    "multiplies",
    "run",
    "run_tests",
    "taken",
    "takes_pairs",
]


def backend_of(name):
    """The module of an exact backend."""
    return importlib.import_module(f"fastattn._{name}.backend")


def can_multiply(backend):
    """Whether a backend that is here has kernels for it that this CPU runs."""
    module = backend_of(backend)
    if backend == "numba":
        return "attend_pairs" in module.ENTRIES
    return "attend_pairs" in module._native.entry_addresses(module.backend.level)


def multiplies(backend):
    """Whether a backend multiplies bfloat16 as it is, in this process."""
    return "pairs" in backend_of(backend).backend.kernels.products


def takes_pairs(*arrays, **options):
    """Whether a call multiplies its bfloat16 operands as they are."""
    way = fastattn.explain(*arrays, **options).way  # None: the reference
    return way is not None and way.products == "pairs"


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


def sweep(backend):
    """Call attention on guarded arrays; each call gives what others give."""
    from pens import Pen

    pens = [Pen(600 * 80 * 2) for _ in range(4)]
    numbers = (
        np.random.default_rng(1).standard_normal(600 * 80).astype(strategies.dtype_of("bfloat16"))
    )
    keys = (1, 2, 15, 16, 17, 31, 32, 33, 63, 65, 127, 129, 513)
    sizes = itertools.product((1, 2, 4, 5, 30), keys, (7, 16, 24, 64), (5, 64, 80))
    for rows, keys, features, value_features in sizes:
        shapes = (rows, features), (keys, features), (keys, value_features), (rows, value_features)
        plain = [numbers[: np.prod(shape)].reshape(shape) for shape in shapes]
        assert takes_pairs(*plain[:3])
        expected = fastattn.attention(*plain[:3], backend=backend)
        for at_end in (False, True):
            print(backend, *shapes, at_end, flush=True)
            held = [pen.hold(x, at_end) for pen, x in zip(pens, plain, strict=True)]
            fastattn.attention(*held[:3], out=held[3], backend=backend, threads=1)
            assert np.array_equal(held[3], expected)


if __name__ == "__main__":
    sweep(*sys.argv[1:])

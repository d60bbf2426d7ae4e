"""What a user waits for before the first number: import, first call, and the memory beside it.

Import and first call are measured in child processes, NumPy imported before the clock starts. The
kernels of a first call are those that were compiled with the package, where they were, or Numba's
from a cache folder of the child's own: empty, or filled by a child before it.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

_IMPORT = "import time, numpy; start = time.perf_counter(); import {module}"
_FIRST_CALL = """
import time, numpy
query = numpy.ones((1, 4, 16, 32), numpy.float32)
start = time.perf_counter()
import fastattn
fastattn.attention(query, query, query)
"""
_REPORT = "\nprint(time.perf_counter() - start)"
CHILDREN = 5
LONG = 131_072
MANY_HEADS = 32


def _child_seconds(program: str, **environment: str) -> float:
    """Seconds that ``program`` counts from its ``start`` on, in a fresh interpreter."""
    package = importlib.util.find_spec("fastattn")
    root = str(Path(package.origin).parents[1]) if package and package.origin else ""
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    finished = subprocess.run(
        [sys.executable, "-c", program + _REPORT],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise RuntimeError(finished.stderr.strip().splitlines()[-1])
    return float(finished.stdout)


def import_seconds(module: str, children: int = CHILDREN) -> float:
    """Median time to import ``module`` when NumPy is already there."""
    program = _IMPORT.format(module=module)
    return statistics.median(_child_seconds(program) for _ in range(children))


def first_call_seconds(children: int = CHILDREN) -> tuple[float, float]:
    """Import and one tiny call on Numba: with an empty kernel cache, with a filled one (median)."""
    with tempfile.TemporaryDirectory() as folder:
        place = {"FASTATTN_BACKEND": "numba", "FASTATTN_CACHE_DIR": folder}
        cold = _child_seconds(_FIRST_CALL, **place)
        times = [_child_seconds(_FIRST_CALL, **place) for _ in range(children)]
    return cold, statistics.median(times)


def first_call_as_it_comes(children: int = CHILDREN) -> float:
    """Import and one tiny call on the backend that is chosen by itself (median)."""
    return statistics.median(_child_seconds(_FIRST_CALL) for _ in range(children))


def scratch_bytes(heads: int, threads: int) -> int:
    """Memory beside inputs and outputs of one call of 131072 queries on as many keys, E = 64."""
    import fastattn

    rows = np.broadcast_to(np.float32(0), (1, heads, LONG, 64))
    return int(fastattn.explain(rows, rows, rows, threads=threads).scratch_bytes)


def measure(threads: int) -> dict[str, Any]:
    """Everything above, as one record of the result file."""
    from bench.own import chosen_backend

    cold, warm = first_call_seconds()
    return {
        "import_seconds": import_seconds("fastattn"),
        "first_call_seconds": first_call_as_it_comes(),
        "backend": chosen_backend(),
        "first_call_cold_seconds": cold,
        "first_call_warm_seconds": warm,
        "scratch_bytes_one_thread": scratch_bytes(1, 1),
        "scratch_bytes_one_head": scratch_bytes(1, threads),
        "scratch_bytes_many_heads": scratch_bytes(MANY_HEADS, threads),
        "many_heads": MANY_HEADS,
        "threads": threads,
    }

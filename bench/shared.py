"""Shared allocation: rounds over a matrix, beside the same rounds in NumPy, two products each."""

from __future__ import annotations

import numpy as np

from bench.cases import Arrays, Case
from bench.contender import Variant


def operands(arrays: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, budgets and capacities; these hold a tenth more than the budgets."""
    budgets, capacities = arrays["budgets"], arrays["capacities"]
    return arrays["weights"], budgets, capacities * (1.1 * budgets.sum() / capacities.sum())


def own(case: Case, arrays: Arrays, threads: int, backend: str | None = None) -> dict[str, Variant]:
    """``fastattn.allocate_shared``, stopped after the rounds of the case."""
    import fastattn

    given, rounds = operands(arrays), case.options["rounds"]

    def run() -> np.ndarray:
        found = fastattn.allocate_shared(
            *given, tol=0.0, max_iter=rounds, threads=threads, backend=backend
        )
        return found.allocation

    return {"": Variant(run)}


def on_numba(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """The same call on the numba backend."""
    return own(case, arrays, threads, "numba")


def in_numpy(case: Case, arrays: Arrays) -> np.ndarray:
    """The same rounds: rows spend, columns shrink; the allocation at the end."""
    weights, budgets, capacities = operands(arrays)
    columns = np.ones(len(capacities))
    for _ in range(case.options["rounds"]):
        rows = budgets / (weights @ columns)
        columns = np.minimum(1.0, capacities / (rows @ weights))
    x = weights * rows[:, None]
    x *= columns
    return x


def numpy_allocate_shared(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """Products by BLAS; neither checks nor stops by itself."""
    return {"": Variant(lambda: in_numpy(case, arrays))}

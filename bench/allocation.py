"""Allocation: the calls, the judge, and what a careful NumPy program does for the same rows.

NumPy goes through blocks of rows that stay in the cache. Caps are met by fixing who is above and
sharing what is left among the others, until nobody is; largest remainders by sorting them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.cases import Arrays, Case
from bench.contender import Variant

BLOCK_ROWS = 2048


def options(case: Case) -> dict[str, Any]:
    """The options of `fastattn.allocate`."""
    _, receivers = case.shapes["weights"]
    given: dict[str, Any] = {}
    if case.options["capped"]:
        # Two thirds of a mean budget spread evenly: a third of the receivers reach their cap.
        given["upper"] = np.full(receivers, 220 * 2.0 / receivers)
        given["on_unspent"] = "keep"
    if case.options["units"]:
        given["unit"] = 1
    return given


def own(case: Case, arrays: Arrays, threads: int, backend: str | None = None) -> dict[str, Variant]:
    """``fastattn.allocate``."""
    import fastattn

    given = options(case) | {"threads": threads, "backend": backend}

    def run() -> np.ndarray:
        result = fastattn.allocate(arrays["weights"], arrays["budget"], **given)
        return result[0] if case.options["capped"] else result

    return {"": Variant(run)}


def on_numba(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """The same call on the numba backend."""
    return own(case, arrays, threads, "numba")


def _shares(weights: np.ndarray, budget: np.ndarray, upper: np.ndarray | None) -> np.ndarray:
    amounts = weights * (budget / weights.sum(axis=1))[:, None]
    if upper is None:
        return amounts
    budget = np.minimum(budget, upper.sum())
    full = amounts > upper
    while True:
        rest = budget - (full * upper).sum(axis=1)
        open_weights = np.where(full, 0.0, weights)
        total = open_weights.sum(axis=1)
        theta = np.divide(rest, total, out=np.zeros_like(rest), where=total > 0)
        amounts = np.where(full, upper, open_weights * theta[:, None])
        above = amounts > upper
        if not above.any():
            return amounts
        full |= above


def _whole(amounts: np.ndarray, budget: np.ndarray) -> np.ndarray:
    given = np.floor(amounts)
    missing = (budget - given.sum(axis=1)).astype(np.intp)
    order = np.argsort(given - amounts, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(order.shape[1])[None], axis=1)
    return (given + (ranks < missing[:, None])).astype(np.int64)


def numpy_allocate(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """Vectorised over blocks of rows."""
    weights, budget = arrays["weights"], arrays["budget"]
    upper = options(case).get("upper")
    units = case.options["units"]

    def run() -> np.ndarray:
        out = np.empty(weights.shape, np.int64 if units else np.float64)
        for first in range(0, len(weights), BLOCK_ROWS):
            rows = slice(first, first + BLOCK_ROWS)
            amounts = _shares(weights[rows], budget[rows], upper)
            out[rows] = _whole(amounts, budget[rows]) if units else amounts
        return out

    return {"": Variant(run)}


def exact(case: Case, arrays: Arrays, rows: np.ndarray) -> np.ndarray:
    """The exact amounts of some rows."""
    from fastattn.reference import apportion, proportional

    given = options(case)
    n = case.shapes["weights"][1]
    upper = given.get("upper", np.full(n, np.inf)).tolist()
    results = []
    for weights, budget in zip(arrays["weights"][rows], arrays["budget"][rows], strict=True):
        if case.options["units"]:
            amounts: list[Any] = apportion(
                weights.tolist(), int(budget), [0] * n, upper, "largest_remainder"
            )
        else:
            amounts = proportional(weights.tolist(), float(budget), [0.0] * n, upper)
        results.append([float(amount) for amount in amounts])
    return np.array(results)

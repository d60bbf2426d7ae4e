"""Allocation: from weights, budgets and bounds to a call record, scratch and a launch."""

from __future__ import annotations

import math

import numpy as np

from fastattn._core.constants import LANES, padded

from .addresses import storage_code
from .kernels import Kernels
from .layouts import (
    ALLOCATION,
    DHONDT,
    HUNTINGTON_HILL,
    LARGEST_REMAINDER,
    REAL_AMOUNTS,
    SAINTE_LAGUE,
)
from .record import Record, merge_dims
from .template import describe_entries, lay_out

__all__ = ["allocate"]

_METHODS = {
    None: REAL_AMOUNTS,
    "largest_remainder": LARGEST_REMAINDER,
    "sainte_lague": SAINTE_LAGUE,
    "dhondt": DHONDT,
    "huntington_hill": HUNTINGTON_HILL,
}
# A task of so many numbers takes long enough to hide what taking it costs, and less than a tenth
# of a second whatever the bounds and the method.
_TASK_NUMBERS = 1 << 14
# Rows done together: a vector of them, as far as a core's nearest cache holds their weights.
_BLOCK_BYTES = 1 << 14
_SECONDS_PER_NUMBER = 2e-8
_ITEM = 8


def allocate(
    kernels: Kernels,
    weights: np.ndarray,
    budget: np.ndarray,
    lower: np.ndarray | None,
    upper: np.ndarray | None,
    where: np.ndarray | None,
    out: np.ndarray,
    unspent: np.ndarray,
    method: str | None,
    unit: float,
    threads: int,
) -> None:
    """Fill out and unspent (*rows) from weights and bounds (*rows, n), budgets (*rows)."""
    operands = weights, budget, lower, upper, where, out, unspent
    outer, receivers = weights.shape[:-1], weights.shape[-1]
    rows = math.prod(outer)
    if rows == 0:
        return
    record = Record(ALLOCATION)
    steps = []
    for field, array in zip(
        ("weights", "budget", "lower", "upper", "allowed", "output", "unspent"),
        operands,
        strict=True,
    ):
        if array is not None:
            record.point(**{field: array})
        # Strides along the rows; what is not there moves nothing.
        steps.append((0,) * len(outer) if array is None else array.strides[: len(outer)])
        if array is not None and array.ndim > len(outer):
            record.set(**{f"{field}_step": array.strides[-1]})
    describe_entries(record, *merge_dims(outer, steps))
    line = padded(max(receivers, 1)) * _ITEM
    block_rows = min(LANES, max(1, _BLOCK_BYTES // line))
    task_rows = max(1, min(_TASK_NUMBERS // max(receivers, 1), -(-rows // (4 * threads))))
    tasks = -(-rows // task_rows)
    first, second, third = _levels(receivers)
    record.set(
        rows=rows,
        receivers=receivers,
        task_rows=task_rows,
        block_rows=block_rows,
        weights_line=line,
        method=_METHODS[method],
        bounded=lower is not None or upper is not None,
        whole_numbers=out.dtype == np.int64,
        unit_whole=unit if out.dtype == np.int64 else 0,
        weights_code=storage_code(weights.dtype),
        unit=unit,
        sum_first=first,
        sum_second=second,
        sum_third=third,
    )
    whole = method is not None
    free = not whole and lower is None and upper is None
    lay_out(
        record,
        at_weights=line * block_rows if free else line,
        at_lower=0 if free else line,
        at_upper=0 if free else line,
        at_amounts=0 if free else line,
        at_rests=line if whole else 0,
        at_errors=line if whole else 0,
        at_heap=line if whole else 0,
        at_spare=_ITEM,
        at_totals=4 * LANES * _ITEM if free else 0,
    )
    seconds = task_rows * (receivers * _SECONDS_PER_NUMBER + 1e-7)
    kernels.run(kernels.of("hand_out"), record, tasks, seconds, min(threads, tasks))


def _levels(receivers: int) -> tuple[float, float, float]:
    """Return the three numbers by which sums of numbers below 4 are split into exact parts.

    Adding 1.5 of a power of two and taking it away again leaves multiples of the last place of
    that power: so many bits that as many of them as there are receivers add up without rounding.
    What is cut off goes through the next level. What is cut off last adds up to less than a
    2**60th part for four million receivers; two levels lose the last places from 2**16 on.
    """
    bits = max(receivers, 1).bit_length() + 3
    return 1.5 * 2.0**bits, 1.5 * 2.0 ** (2 * bits - 53), 1.5 * 2.0 ** (3 * bits - 106)

"""Shared allocation: rounds of row and column steps, each a launch or two, until nothing moves.

The allocation is ``matrix * row_factors[:, None] * column_factors``. A round gives rows the factors
with which they spend their budgets, and columns those, of at most 1, with which they stay within
their capacities. What a kernel adds over rows is added block by block and then in the order of the
blocks, whose number the shape alone decides: no bit depends on threads.
"""

from __future__ import annotations

import numpy as np

from fastattn._core.plan import LANES, padded

from .addresses import address
from .kernels import Kernels
from .layouts import APPLY, CHANGE_STRIDE, FIT, JUDGE, MEASURE, SHARED, SPEND
from .record import Record

__all__ = ["allocate_shared"]

# Blocks of rows: enough for many threads, and few sums to fold.
_BLOCKS = 64
_LEAST_BLOCK_ROWS = 8
_GROUP_ROWS = 4  # the kernel takes rows in fours
_BLOCK_COLUMNS = 1024
# Factors beyond this go into the matrix, long before they overflow.
_LARGEST_FACTOR = 2.0**500
# Budgets are scaled by a power of two where their largest is beyond 2 to this power, or below.
_LARGEST_EXPONENT = 300
_LINE_NUMBERS = CHANGE_STRIDE // 8
_BYTES_PER_SECOND = 1e10
# A failed test of convergence is repeated after this part of the rounds so far: such a test costs
# more than a round.
_PATIENCE = 8


def allocate_shared(
    kernels: Kernels,
    weights: np.ndarray,
    budgets: np.ndarray,
    capacities: np.ndarray,
    tol: float,
    max_iter: int,
    threads: int,
) -> tuple[np.ndarray, int, float]:
    """Return the allocation (m, n), the rounds it took and what the last one still moved."""
    exponent = int(np.frexp(budgets.max())[1])
    far = abs(exponent) > _LARGEST_EXPONENT
    scale = 2.0 ** min(max(-exponent, -1000), 1000) if far else 1.0
    # A capacity that overflows is one that all budgets together never fill: none.
    rounds = _Rounds(kernels, weights, budgets * scale, capacities * scale, threads)
    violation, test_at = np.inf, 1
    for iteration in range(1, max_iter + 1):
        rounds.run(SPEND)
        rounds.run(FIT)
        change, factor = rounds.changes()
        if iteration == max_iter or (change <= tol and iteration >= test_at):
            violation = rounds.judge()
            test_at = iteration + max(1, iteration // _PATIENCE)
        rounds.advance()
        if violation <= tol:
            break
        if factor > _LARGEST_FACTOR:
            rounds.absorb()
    rounds.settle()
    if scale != 1.0:
        rounds.matrix /= scale
    return rounds.matrix, iteration, violation


def _whole_lines(blocks: int, width: int) -> np.ndarray:
    """Make an array of which no two rows share a cache line, for which threads would wait."""
    numbers = np.zeros(blocks * width + _LINE_NUMBERS)
    first = -address(numbers) % (8 * _LINE_NUMBERS) // 8
    return numbers[first : first + blocks * width].reshape(blocks, width)


class _Rounds:
    """The state of one call."""

    def __init__(
        self,
        kernels: Kernels,
        weights: np.ndarray,
        budgets: np.ndarray,
        capacities: np.ndarray,
        threads: int,
    ) -> None:
        rows, columns = weights.shape
        width = padded(columns, LANES)
        block_rows = -(-rows // min(_BLOCKS, max(1, rows // _LEAST_BLOCK_ROWS)))
        block_rows = padded(block_rows, _GROUP_ROWS)
        blocks = -(-rows // block_rows)
        self._kernels = kernels
        self._threads = threads
        source = np.ascontiguousarray(weights, dtype=np.float64)
        self.matrix = np.empty_like(source) if np.may_share_memory(source, weights) else source
        self._budgets = budgets
        self._capacities = capacities
        # For the kernel: a closed column has no weights, so any capacity does; and that of an
        # open one shall be divided by itself.
        fitting = np.ones(width)
        fitting[:columns] = np.where(capacities == 0, 1, capacities.clip(max=np.finfo(float).max))
        self._sums = _whole_lines(blocks, width)
        self._rests = _whole_lines(blocks, width)
        self._changes = _whole_lines(blocks, _LINE_NUMBERS)
        self._factors = [(np.empty(rows), np.ones(width)), (np.empty(rows), np.ones(width))]
        spent = np.empty(rows)
        record = self._record = Record(SHARED)
        record.set(
            rows=rows,
            columns=columns,
            width=width,
            block_rows=block_rows,
            blocks=blocks,
            block_columns=_BLOCK_COLUMNS,
            scratch_stride=2 * 8 * LANES,
        )
        record.point(
            source=source,
            matrix=self.matrix,
            budgets=budgets,
            capacities=fitting,
            spent=spent,
            sums=self._sums,
            rests=self._rests,
            changes=self._changes,
        )
        self._scale(spent)

    def _scale(self, largest: np.ndarray) -> None:
        """Fill the matrix: rows scaled exactly to a largest of about 1, closed columns 0."""
        rows, columns = self._factors[0]
        columns[: self._capacities.size] = self._capacities > 0
        self.run(MEASURE)
        rows[:] = np.ldexp(1.0, -np.frexp(largest)[1].clip(-1022, 1023))
        self.run(APPLY)
        self._record.point(source=self.matrix)
        largest.fill(0)
        rows.fill(0)
        columns.fill(1)

    def run(self, phase: int) -> None:
        """Do one step for all rows, or all columns."""
        record, word = self._record, self._record.layout.word
        (rows, columns), (next_rows, next_columns) = self._factors
        record.set(phase=phase)
        record.point(
            row_factors=rows,
            column_factors=columns,
            next_row_factors=next_rows,
            next_column_factors=next_columns,
        )
        del record.kept[-4:]  # kept here
        blocks, width = self._sums.shape
        if phase == FIT:
            tasks = -(-width // _BLOCK_COLUMNS)
            numbers = blocks * min(width, _BLOCK_COLUMNS)
        else:
            tasks = blocks
            numbers = int(record.words[word["block_rows"]]) * width
        seconds = 8 * numbers / _BYTES_PER_SECOND
        workers = min(self._threads, tasks)
        self._kernels.run(self._kernels.share, record, tasks, seconds, workers)

    def changes(self) -> tuple[float, float]:
        """Return the largest numbers that the blocks of the last step of rows report."""
        change, factor = self._changes[:, :2].max(axis=0)
        return float(change), float(factor)

    def judge(self) -> float:
        """Return the violation: how much the round still moved, or has left to move."""
        self.run(JUDGE)
        return self.changes()[0]

    def advance(self) -> None:
        """Take the new factors for the current ones."""
        self._factors.reverse()

    def absorb(self) -> None:
        """Multiply the factors into the matrix and start again from 1."""
        self.run(APPLY)
        for factors in self._factors[0]:
            factors.fill(1)

    def settle(self) -> None:
        """Make the matrix the allocation: factors applied, and no bound exceeded.

        Where rounding made a sum exceed its bound, all amounts of that row or column shrink by some
        units in the last place. Sums are in twice the precision of the amounts.
        """
        self.run(APPLY)
        above, below = self._sums[0].copy(), self._rests[0].copy()
        for more, rest in zip(self._sums[1:], self._rests[1:], strict=True):
            total = above + more
            part = total - above
            below += (above - (total - part)) + (more - part) + rest
            above = total
        total = above + below
        below -= total - above
        bound = np.full(total.shape, np.inf)
        bound[: self._capacities.size] = self._capacities
        exceeds = (total > bound) | ((total == bound) & (below > 0) & (bound > 0))
        # The kernel has done the same for rows.
        columns = np.ones(total.shape)
        columns[exceeds] = bound[exceeds] / total[exceeds] * (1 - 2.0**-50)
        rows = self._factors[1][0]
        if exceeds.any() or (rows < 1).any():
            self._factors[0] = (rows.copy(), columns)
            self.run(APPLY)

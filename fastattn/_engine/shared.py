"""Shared allocation: rounds of row and column steps, each a launch or two, until nothing moves.

The allocation is ``matrix * row_factors[:, None] * column_factors``. A round gives rows the factors
with which they spend their budgets, and columns those, of at most 1, with which they stay within
their capacities. What a kernel adds over rows is added block by block and then in the order of the
blocks, whose number the shape alone decides: no bit depends on threads.

What is left falls by a factor a round, which may be next to 1, or come ever nearer to 1 where some
rows want exactly what their columns hold. Where rounds would take too long, once a call, what
cannot be used is dropped (`saturation`) and Newton's method goes on (`newton`). That is NumPy's
elementwise arithmetic and its sums, with products by the kernel of `similarity`: the same bits on
any backend, machine and number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from fastattn._core.constants import LANES, padded

from .addresses import address
from .kernels import Kernels
from .layouts import APPLY, CHANGE_STRIDE, FIT, JUDGE, MEASURE, SHARED, SPEND
from .newton import Newton
from .record import Record
from .saturation import usable_cells
from .stages import similarity

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
# Rounds are left alone before this one, and where so few more will do, which are fast: for the
# large, more of them than the finish takes, whose steps multiply each cell with its whole row, or
# column. Also where rows and columns are more than _WIDEST.
_FIRST_ROUNDS = 12
_FEW_ROUNDS, _MANY_ROUNDS = 48, 400
_FEW_CELLS = 1 << 16
# A tie is told from rounds that are merely slow by the number that `further` gives, which is half
# of the rounds so far there.
_TIE = 0.45
_WIDEST = 2048
_MOST_STEPS = 100
# Where a round changes next to nothing and the solution is so many tolerances off, rounds are slow;
# or off at all, if the rounds do not change less and less.
_MUCH = 64
# Newton's steps go on to this part of the tolerance, or to what rounding leaves of a budget.
_MARGIN = 0.125
_ROUNDING, _ORDINARY = 2.0**-45, 2.0**-30
# Products are added up in pieces of so many terms.
_TERMS = 4096
_PIECE_CELLS = 1 << 16


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
    # A capacity that all budgets together never fill may overflow.
    rounds = _Rounds(kernels, weights, budgets * scale, capacities * scale, threads)
    violation, test_at, iteration, left = np.inf, 1, 0, 0.0
    pace, finished = _Pace(tol), min(weights.shape) > _WIDEST
    many = _FEW_ROUNDS if weights.size <= _FEW_CELLS else max(_MANY_ROUNDS, min(weights.shape))
    while violation > tol and iteration < max_iter:
        iteration += 1
        rounds.run(SPEND)
        rounds.run(FIT)
        change, factor = rounds.changes()
        further = pace.further(change, iteration)
        slow = pace.is_slow(change * further, further, iteration, many)
        judged = change * further <= tol and iteration >= test_at
        if iteration == max_iter or judged:
            violation = max(rounds.judge() * further, left)
            slow |= judged and violation > (tol if further >= iteration else _MUCH * tol)
            if violation <= tol:
                violation = max(violation, rounds.behind(max(tol, _ROUNDING)))
                slow |= violation > tol
            test_at = iteration + max(1, iteration // _PATIENCE)
        rounds.advance()
        if factor > _LARGEST_FACTOR:
            rounds.absorb()
        if slow and not finished and _FIRST_ROUNDS <= iteration < max_iter - 1:
            finished = True
            most = min(_MOST_STEPS, max_iter - 1 - iteration)
            steps, left = rounds.finish(max(_MARGIN * tol, _ROUNDING), most)
            iteration += steps
            pace, test_at = _Pace(tol), 1
    rounds.settle()
    if scale != 1.0:
        rounds.matrix /= scale
    return rounds.matrix, iteration, violation


def _pieces(matrix: np.ndarray) -> Iterator[slice]:
    """Cut the rows into pieces small enough for a cache."""
    rows = max(1, _PIECE_CELLS // matrix.shape[1])
    return (slice(first, first + rows) for first in range(0, len(matrix), rows))


def _whole_lines(blocks: int, width: int) -> np.ndarray:
    """Make an array of which no two rows share a cache line, for which threads would wait."""
    numbers = np.zeros(blocks * width + _LINE_NUMBERS)
    first = -address(numbers) % (8 * _LINE_NUMBERS) // 8
    return numbers[first : first + blocks * width].reshape(blocks, width)


class _Pace:
    """How fast rounds come nearer, from what each of them changed."""

    def __init__(self, tol: float) -> None:
        self._target = max(tol, _ORDINARY)
        self._change = self._ratio = 0.0

    def further(self, change: float, iteration: int) -> float:
        """Return how many times the last change all further ones come to, itself included.

        If each is the same part of the one before it: the larger of the last two such parts. They
        are 1 - 2 / k in round k where what is left falls like 1 / k, as at a tie, and no larger.
        """
        ratio = change / self._change if self._change > 0 else 0.0
        slower = max(ratio, self._ratio)
        self._change, self._ratio = change, ratio
        return min(1 / (1 - slower), iteration) if slower < 1 else float(iteration)

    def is_slow(self, left: float, further: float, iteration: int, rounds: int) -> bool:
        """Tell whether more than so many rounds are to come; by powers of two, which are exact."""
        if not left > self._target:
            return False
        if iteration >= _FEW_ROUNDS and further > _TIE * iteration:
            return iteration * left > rounds * self._target  # what falls like 1 / k
        halvings = math.frexp(left)[1] - math.frexp(self._target)[1]
        return 0.7 * halvings * further > rounds


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
        self._budgets = np.ascontiguousarray(budgets)
        self._capacities = capacities
        # For the kernel: a closed column has no weights, so any capacity does; and that of an
        # open one shall be divided by itself.
        fitting = np.ones(width)
        fitting[:columns] = np.where(capacities == 0, 1, capacities.clip(max=np.finfo(float).max))
        self._shrunk = np.ones(columns)  # the column factors that are in the matrix
        self._sums = _whole_lines(blocks, width)
        self._rests = _whole_lines(blocks, width)
        self._changes = _whole_lines(blocks, _LINE_NUMBERS)
        self._factors = [(np.empty(rows), np.ones(width)), (np.empty(rows), np.ones(width))]
        spent = self._spent = np.empty(rows)
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
            budgets=self._budgets,
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
        self._kernels.run(self._kernels.of("share"), record, tasks, seconds, workers)

    def changes(self) -> tuple[float, float]:
        """Return the largest numbers that the blocks of the last step of rows report."""
        change, factor = self._changes[:, :2].max(axis=0)
        return float(change), float(factor)

    def judge(self) -> float:
        """Return the violation: how much the round still moved, or has left to move."""
        self.run(JUDGE)
        return self.changes()[0]

    def behind(self, least: float) -> float:
        """Return how far rows are behind others that use a column they want, at most.

        Who has less than a part of `least` of its budget there, and of the column, does not count.
        The kernel looks at the mean of those that use it, and at columns with room.
        """
        rows, columns = (x[:n] for x, n in zip(self._factors[1], self.matrix.shape, strict=True))
        shares, spending = self._spent, rows > 0
        if not spending.any() or np.ptp(shares[spending]) <= least:
            return 0.0
        levels = np.zeros(len(columns))
        for place in _pieces(self.matrix):
            amounts = self.matrix[place] * rows[place, None] * columns
            bounds = np.minimum(self._budgets[place, None], self._capacities)
            used = np.where(amounts > least * bounds, shares[place, None], 0)
            levels = np.maximum(levels, used.max(axis=0))
        behind = 0.0
        for place in _pieces(self.matrix):
            best = np.where(self.matrix[place] > 0, levels, 0).max(axis=1)
            behind = max(behind, float((best - shares[place])[spending[place]].max(initial=0)))
        return behind

    def advance(self) -> None:
        """Take the new factors for the current ones."""
        self._factors.reverse()

    def absorb(self) -> None:
        """Multiply the factors into the matrix and start again from 1."""
        self.run(APPLY)
        self._shrunk *= self._factors[0][1][: self._shrunk.size]
        for factors in self._factors[0]:
            factors.fill(1)

    def finish(self, target: float, most: int) -> tuple[int, float]:
        """Drop what cannot be used, and take Newton's steps; returns how many and what is left.

        Nothing is done where the search for what can be used would take too long.
        """
        self.absorb()
        products = self._products
        found = usable_cells(
            self.matrix, self.matrix > 0, self._budgets, self._capacities, products
        )
        if found is None:
            return 0, 0.0
        parts, usable = found
        self._budgets *= parts
        self.matrix *= usable
        newton = Newton(
            self.matrix.copy(),
            self._shrunk,
            np.where(usable.any(axis=1), self._budgets, 0),
            self._capacities.clip(max=np.finfo(float).max),
            products,
        )
        steps = newton.run(target, most)
        if not np.isfinite(newton.left):
            return steps, 0.0
        # Columns may grow again to a factor of 1, which is what the kernels know as a bound.
        growth = newton.growth.clip(max=_LARGEST_FACTOR)
        np.multiply(newton.amounts, growth, out=self.matrix)
        self._factors[0][1][: growth.size] = 1 / growth
        self._shrunk = growth / newton.growth
        self._spent.fill(1)
        return steps, newton.left if newton.left <= target else 0.0

    def _products(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return ``a @ b.T``, added up in an order of its own."""
        total = np.zeros((len(a), len(b)), a.dtype)
        piece = np.empty_like(total)
        for first in range(0, a.shape[1], _TERMS):
            terms = slice(first, first + _TERMS)
            similarity(self._kernels, a[:, terms], b[:, terms], piece, "dot", 1.0, self._threads)
            total += piece
        return total

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

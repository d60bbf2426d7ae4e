"""The steps of shared allocation: measure rows, spend, fit columns, judge what moved, apply.

A row's product with the column factors is a chain of fused multiply-adds on each of sixteen virtual
lanes, added by the written tree; a column's is one chain over the rows of a block, whatever the
machine and the threads.
"""

import numpy as np

from fastattn._engine import layouts
from fastattn._engine.layouts import APPLY, CHANGE_STRIDE, FIT, JUDGE, MEASURE, SPEND

from ..compiler.compile import device, entry
from ..compiler.native import load_float64, store_float64
from ..machine.emit import LANES
from ..machine.memory import load, load_first, prefetch, store, store_first
from ..machine.simd import (
    absolute,
    fma,
    lane_max,
    lane_sum,
    larger,
    select_equal,
    splat,
    unless_nan,
)
from ..operands.record import reader
from ..operands.tasks import take_tasks

read_call = reader(layouts.SHARED)
VECTOR = 8 * LANES  # bytes
# A factor that would overflow, where what a row can still reach is next to nothing.
LARGEST = 2.0**900


@device
def matrix_line(matrix, column, columns):
    """Sixteen elements of a row from `column` on, 0 beyond the last."""
    if column + LANES <= columns:
        return load(np.float64(0), matrix + 8 * column)
    return load_first(matrix + 8 * column, columns - column, np.float64(0))


@device
def measure_row(call, row):
    """Step measure: the largest of a row, of columns whose factor is not 0."""
    source = call.source + row * 8 * call.columns
    most = splat(np.float64(0))
    for column in range(0, call.columns, LANES):
        open_columns = load(np.float64(0), call.column_factors + 8 * column)
        most = larger(matrix_line(source, column, call.columns) * open_columns, most)
    store_float64(call.spent, row, lane_max(most))


@device
def spend_budget(call, row, total, changes):
    """Return the factor with which a row spends its budget, `total` being what factor 1 spends."""
    budget = load_float64(call.budgets, row)
    spent, factor = 1.0, 0.0
    if total > 0.0 and budget > 0.0:
        spent = load_float64(call.row_factors, row) * total / budget
        factor = min(budget / total, LARGEST)
    change = abs(spent - load_float64(call.spent, row))
    store_float64(call.spent, row, spent)
    store_float64(call.next_row_factors, row, factor)
    store_float64(changes, 0, max(change, load_float64(changes, 0)))
    store_float64(changes, 1, max(factor, load_float64(changes, 1)))
    return factor


@device
def matrix_ahead(size):
    """How far ahead the matrix is asked for: four rows, unless that is too near, or too far."""
    return size if 4096 <= size <= 1 << 17 else 4096


@device
def spend_rows(call, row, rows, sums, changes):
    """Step spend for four rows, whose amounts are added to the columns while they are near.

    Rows that do not exist are the last one again, times 0.
    """
    columns, stride = call.columns, 8 * call.columns
    first = call.matrix + row * stride
    second = first + min(rows - 1, 1) * stride
    third = first + min(rows - 1, 2) * stride
    fourth = first + min(rows - 1, 3) * stride
    a = b = c = d = splat(np.float64(0))
    ahead = first + matrix_ahead(4 * stride)
    for column in range(0, columns, LANES):
        for place in range(ahead + 32 * column, ahead + 32 * (column + LANES), 64):
            prefetch(place)
        factors = load(np.float64(0), call.column_factors + 8 * column)
        a = fma(matrix_line(first, column, columns), factors, a)
        b = fma(matrix_line(second, column, columns), factors, b)
        c = fma(matrix_line(third, column, columns), factors, c)
        d = fma(matrix_line(fourth, column, columns), factors, d)
    a_factor = spend_budget(call, row, lane_sum(a), changes)
    b_factor = spend_budget(call, row + 1, lane_sum(b), changes) if rows > 1 else 0.0
    c_factor = spend_budget(call, row + 2, lane_sum(c), changes) if rows > 2 else 0.0
    d_factor = spend_budget(call, row + 3, lane_sum(d), changes) if rows > 3 else 0.0
    a, b, c, d = splat(a_factor), splat(b_factor), splat(c_factor), splat(d_factor)
    for column in range(0, columns, LANES):
        total = load(np.float64(0), sums + 8 * column)
        total = fma(matrix_line(first, column, columns), a, total)
        total = fma(matrix_line(second, column, columns), b, total)
        total = fma(matrix_line(third, column, columns), c, total)
        total = fma(matrix_line(fourth, column, columns), d, total)
        store(sums + 8 * column, total)


@device
def fit_columns(call, column):
    """Step fit for sixteen columns: factors of at most 1 that keep them within capacity."""
    total = splat(np.float64(0))
    for block in range(call.blocks):
        place = call.sums + 8 * (block * call.width + column)
        total = total + load(np.float64(0), place)
    capacities = load(np.float64(0), call.capacities + 8 * column)
    store(call.next_column_factors + 8 * column, capacities / larger(total, capacities))


@device
def judge_row(call, row):
    """Step judge: what one round moved in a row, or how far behind its receivers' others it is.

    Both are parts of the row's budget. A column's shrinking is the part that its users spend of
    their budgets, in the mean; a row that spends less although it wants that receiver could have
    more of it.
    """
    matrix = call.matrix + row * 8 * call.columns
    budget = load_float64(call.budgets, row)
    if budget == 0.0:
        return 0.0
    zero, one = splat(np.float64(0)), splat(np.float64(1))
    before = splat(load_float64(call.row_factors, row))
    after = splat(load_float64(call.next_row_factors, row))
    moved, best = zero, zero
    for column in range(0, call.columns, LANES):
        weights = matrix_line(matrix, column, call.columns)
        old = load(np.float64(0), call.column_factors + 8 * column)
        new = load(np.float64(0), call.next_column_factors + 8 * column)
        moved = moved + absolute(weights * after * new - weights * before * old)
        others = unless_nan(new / old, one)
        best = larger(best, select_equal(weights, 0.0, zero, others))
    behind = lane_max(best) - load_float64(call.spent, row)
    return max(lane_sum(moved) / budget, behind)


@device
def exact_sum(scratch, sums, rests):
    """Sum of thirty-two lanes as a rounded number and what rounding lost."""
    store(scratch, sums)
    store(scratch + VECTOR, rests)
    above, below = 0.0, 0.0
    for lane in range(LANES):
        more = load_float64(scratch, lane)
        total = above + more
        part = total - above
        below += (above - (total - part)) + (more - part) + load_float64(scratch, LANES + lane)
        above = total
    total = above + below
    return total, below - (total - above)


@device
def apply_row(call, row, sums, rests, scratch):
    """Step apply: multiply a row by its factors; say by how much it would have to shrink then.

    0 is added, which makes 0 of a weight of -0.0 and changes nothing else.
    """
    columns = call.columns
    source = call.source + row * 8 * columns
    matrix = call.matrix + row * 8 * columns
    factor = splat(load_float64(call.row_factors, row))
    zero = splat(np.float64(0))
    of_row = lost_of_row = zero
    for column in range(0, columns, LANES):
        amounts = matrix_line(source, column, columns) * factor
        amounts = amounts * load(np.float64(0), call.column_factors + 8 * column) + zero
        store_first(matrix + 8 * column, amounts, min(columns - column, LANES))
        # Each sum with what its rounding loses (Knuth's TwoSum).
        total = of_row + amounts
        part = total - of_row
        lost_of_row = lost_of_row + ((of_row - (total - part)) + (amounts - part))
        of_row = total
        of_columns = load(np.float64(0), sums + 8 * column)
        total = of_columns + amounts
        part = total - of_columns
        lost = (of_columns - (total - part)) + (amounts - part)
        store(sums + 8 * column, total)
        store(rests + 8 * column, load(np.float64(0), rests + 8 * column) + lost)
    spent, rest = exact_sum(scratch, of_row, lost_of_row)
    budget = load_float64(call.budgets, row)
    shrink = 1.0
    if spent > budget or (spent == budget and rest > 0.0):
        shrink = budget / spent * (1.0 - 2.0**-50)
    store_float64(call.next_row_factors, row, shrink)


@device
def share_rows(call, block, scratch):
    """One step for the rows of a block."""
    first = block * call.block_rows
    stop = min(first + call.block_rows, call.rows)
    sums = call.sums + block * 8 * call.width
    rests = call.rests + block * 8 * call.width
    changes = call.changes + block * CHANGE_STRIDE
    if call.phase == MEASURE:
        for row in range(first, stop):
            measure_row(call, row)
        return
    if call.phase == JUDGE:
        largest = 0.0
        for row in range(first, stop):
            largest = max(largest, judge_row(call, row))
        store_float64(changes, 0, largest)
        return
    zero = splat(np.float64(0))
    for column in range(0, call.columns, LANES):
        store(sums + 8 * column, zero)
        store(rests + 8 * column, zero)
    if call.phase == SPEND:
        store_float64(changes, 0, 0.0)
        store_float64(changes, 1, 0.0)
        for row in range(first, stop, 4):
            spend_rows(call, row, min(stop - row, 4), sums, changes)
    if call.phase == APPLY:
        for row in range(first, stop):
            apply_row(call, row, sums, rests, scratch)


@device(inlined=True)
def share_task(tag, call, task, scratch):
    """One step for a block of rows, or of columns."""
    if call.phase == FIT:
        first = task * call.block_columns
        for column in range(first, min(first + call.block_columns, call.width), LANES):
            fit_columns(call, column)
    else:
        share_rows(call, task, scratch)


@entry
def share(call_address, worker):
    """Take tasks until none is left."""
    take_tasks(np.float64(0), read_call(call_address), call_address, worker, share_task)

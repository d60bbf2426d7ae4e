/* The steps of shared allocation: measure rows, spend, fit columns, judge what moved, apply.

   A row's product with the column factors is a chain of fused multiply-adds on each of sixteen
   virtual lanes, added by the written tree; a column's is one chain over the rows of a block,
   whatever the machine and the threads. */

#ifndef FASTATTN_SHARED_H
#define FASTATTN_SHARED_H

#include "memory.h"
#include "words.h"

#define VECTOR_BYTES (LANES * ITEM)
/* A factor that would overflow, where what a row can still reach is next to nothing. */
#define LARGEST_FACTOR 0x1p900
#define GROUP_ROWS 4

INLINE real nth(int64_t address, int64_t index) { return load_real(address + index * ITEM); }
INLINE void set_nth(int64_t address, int64_t index, real number)
{
    store_real(address + index * ITEM, number);
}
INLINE real most_of(real a, real b) { return a > b ? a : b; }

/* Sixteen elements of a row from `column` on, 0 beyond the last. */
INLINE vector matrix_line(int64_t matrix, int64_t column, int64_t columns)
{
    const int64_t place = matrix + column * ITEM;
    return column + LANES <= columns ? load(place) : load_first(place, columns - column, 0);
}

/* Step measure: the largest of a row, of columns whose factor is not 0. */
static void measure_row(const shared_call *call, int64_t row)
{
    const int64_t source = call->source + row * call->columns * ITEM;
    vector most = splat(0);
    for (int64_t column = 0; column < call->columns; column += LANES) {
        const vector open_columns = load(call->column_factors + column * ITEM);
        most = larger(times(matrix_line(source, column, call->columns), open_columns), most);
    }
    set_nth(call->spent, row, lane_max(most));
}

/* Return the factor with which a row spends its budget, `total` being what factor 1 spends. */
static real spend_budget(const shared_call *call, int64_t row, real total, int64_t changes)
{
    const real budget = nth(call->budgets, row);
    real spent = 1, factor = 0;
    if (total > 0 && budget > 0) {
        spent = nth(call->row_factors, row) * total / budget;
        factor = budget / total;
        if (factor > LARGEST_FACTOR) factor = LARGEST_FACTOR;
    }
    const real change = spent - nth(call->spent, row);
    set_nth(call->spent, row, spent);
    set_nth(call->next_row_factors, row, factor);
    set_nth(changes, 0, most_of(change < 0 ? -change : change, nth(changes, 0)));
    set_nth(changes, 1, most_of(factor, nth(changes, 1)));
    return factor;
}

/* How far ahead the matrix is asked for: four rows, unless that is too near, or too far. */
INLINE int64_t matrix_ahead(int64_t size) { return 4096 <= size && size <= 1 << 17 ? size : 4096; }

/* Step spend for up to four rows, whose amounts are added to the columns while they are near.

   Rows that do not exist are the last one again, times 0. */
static void spend_rows(const shared_call *call, int64_t row, int64_t rows, int64_t sums,
                       int64_t changes)
{
    const int64_t columns = call->columns, stride = columns * ITEM;
    const int64_t matrix = call->matrix + row * stride;
    const int64_t ahead = matrix + matrix_ahead(GROUP_ROWS * stride);
    int64_t place[GROUP_ROWS];
    vector total[GROUP_ROWS], factor[GROUP_ROWS];
    UNROLL for (int r = 0; r < GROUP_ROWS; r++) {
        place[r] = matrix + smaller_of(rows - 1, r) * stride;
        total[r] = splat(0);
    }
    for (int64_t column = 0; column < columns; column += LANES) {
        UNROLL for (int64_t part = 0; part < GROUP_ROWS * VECTOR_BYTES; part += LINE)
            prefetch(ahead + GROUP_ROWS * column * ITEM + part);
        const vector factors = load(call->column_factors + column * ITEM);
        UNROLL for (int r = 0; r < GROUP_ROWS; r++)
            total[r] = fused(matrix_line(place[r], column, columns), factors, total[r]);
    }
    UNROLL for (int r = 0; r < GROUP_ROWS; r++) {
        const bool exists = r < rows;
        factor[r] = splat(exists ? spend_budget(call, row + r, lane_sum(total[r]), changes) : 0);
    }
    for (int64_t column = 0; column < columns; column += LANES) {
        vector sum = load(sums + column * ITEM);
        UNROLL for (int r = 0; r < GROUP_ROWS; r++)
            sum = fused(matrix_line(place[r], column, columns), factor[r], sum);
        store(sums + column * ITEM, sum);
    }
}

/* Step fit for sixteen columns: factors of at most 1 that keep them within capacity. */
static void fit_columns(const shared_call *call, int64_t column)
{
    vector total = splat(0);
    for (int64_t block = 0; block < call->blocks; block++)
        total = plus(total, load(call->sums + (block * call->width + column) * ITEM));
    const vector capacities = load(call->capacities + column * ITEM);
    store(call->next_column_factors + column * ITEM, over(capacities, larger(total, capacities)));
}

/* Step judge: what one round moved in a row, or how far behind its receivers' others it is.

   Both are parts of the row's budget. A column's shrinking is the part that its users spend of
   their budgets, in the mean; a row that spends less although it wants that receiver could have
   more of it. */
static real judge_row(const shared_call *call, int64_t row)
{
    const int64_t matrix = call->matrix + row * call->columns * ITEM;
    const real budget = nth(call->budgets, row);
    if (budget == 0) return 0;
    const vector zero = splat(0), one = splat(1);
    const vector before = splat(nth(call->row_factors, row));
    const vector after = splat(nth(call->next_row_factors, row));
    vector moved = zero, best = zero;
    for (int64_t column = 0; column < call->columns; column += LANES) {
        const vector weights = matrix_line(matrix, column, call->columns);
        const vector old = load(call->column_factors + column * ITEM);
        const vector next = load(call->next_column_factors + column * ITEM);
        const vector now = times(times(weights, after), next);
        const vector then = times(times(weights, before), old);
        moved = plus(moved, absolute(minus(now, then)));
        const vector others = unless_nan(over(next, old), one);
        best = larger(best, select_equal(weights, 0, zero, others));
    }
    const real behind = lane_max(best) - nth(call->spent, row);
    return most_of(lane_sum(moved) / budget, behind);
}

/* A sum and what rounding lost of it. */
typedef struct {
    vector sum, lost;
} exact_vector;

/* One more addend (Knuth's TwoSum). */
INLINE exact_vector exact_plus(exact_vector a, vector more)
{
    const vector total = plus(a.sum, more), part_of_more = minus(total, a.sum);
    const vector lost = plus(minus(a.sum, minus(total, part_of_more)), minus(more, part_of_more));
    return (exact_vector){total, plus(a.lost, lost)};
}

/* Sum of thirty-two lanes as a rounded number and what rounding lost. */
static real exact_sum(int64_t scratch, exact_vector lanes, real *lost)
{
    store(scratch, lanes.sum);
    store(scratch + VECTOR_BYTES, lanes.lost);
    real above = 0, below = 0;
    for (int lane = 0; lane < LANES; lane++) {
        const real more = nth(scratch, lane), total = above + more, of_more = total - above;
        below += (above - (total - of_more)) + (more - of_more) + nth(scratch, LANES + lane);
        above = total;
    }
    const real total = above + below;
    *lost = below - (total - above);
    return total;
}

/* Step apply: multiply a row by its factors; say by how much it would have to shrink then. */
static void apply_row(const shared_call *call, int64_t row, int64_t sums, int64_t rests,
                      int64_t scratch)
{
    const int64_t columns = call->columns;
    const int64_t source = call->source + row * columns * ITEM;
    const int64_t matrix = call->matrix + row * columns * ITEM;
    const vector factor = splat(nth(call->row_factors, row));
    exact_vector of_row = {splat(0), splat(0)};
    for (int64_t column = 0; column < columns; column += LANES) {
        const vector of_column = load(call->column_factors + column * ITEM);
        const vector amounts = times(times(matrix_line(source, column, columns), factor), of_column);
        store_first(matrix + column * ITEM, amounts, columns - column);
        of_row = exact_plus(of_row, amounts);
        exact_vector total = {load(sums + column * ITEM), load(rests + column * ITEM)};
        total = exact_plus(total, amounts);
        store(sums + column * ITEM, total.sum);
        store(rests + column * ITEM, total.lost);
    }
    real rest;
    const real spent = exact_sum(scratch, of_row, &rest), budget = nth(call->budgets, row);
    const bool exceeds = spent > budget || (spent == budget && rest > 0);
    set_nth(call->next_row_factors, row, exceeds ? budget / spent * (1 - 0x1p-50) : 1);
}

/* One step for the rows of a block. */
static void share_rows(const shared_call *call, int64_t block, int64_t scratch)
{
    const int64_t first = block * call->block_rows;
    const int64_t stop = smaller_of(first + call->block_rows, call->rows);
    const int64_t sums = call->sums + block * call->width * ITEM;
    const int64_t rests = call->rests + block * call->width * ITEM;
    const int64_t changes = call->changes + block * CHANGE_STRIDE;
    if (call->phase == MEASURE) {
        for (int64_t row = first; row < stop; row++) measure_row(call, row);
        return;
    }
    set_nth(changes, 0, 0);
    set_nth(changes, 1, 0);
    if (call->phase == JUDGE) {
        for (int64_t row = first; row < stop; row++)
            set_nth(changes, 0, most_of(judge_row(call, row), nth(changes, 0)));
        return;
    }
    for (int64_t column = 0; column < call->columns; column += LANES) {
        store(sums + column * ITEM, splat(0));
        store(rests + column * ITEM, splat(0));
    }
    if (call->phase == SPEND)
        for (int64_t row = first; row < stop; row += GROUP_ROWS)
            spend_rows(call, row, smaller_of(stop - row, GROUP_ROWS), sums, changes);
    if (call->phase == APPLY)
        for (int64_t row = first; row < stop; row++) apply_row(call, row, sums, rests, scratch);
}

/* One step for a block of columns. */
static void share_columns(const shared_call *call, int64_t block)
{
    const int64_t first = block * call->block_columns;
    const int64_t stop = smaller_of(first + call->block_columns, call->width);
    for (int64_t column = first; column < stop; column += LANES) fit_columns(call, column);
}

/* Take tasks until none is left. */
static void share(int64_t call_address, int64_t worker)
{
    const shared_call *const call = (const shared_call *)call_address;
    const int64_t scratch = call->scratch + worker * call->scratch_stride;
    for (int64_t task; (task = atomic_next(call_address)) < call->stop_task;) {
        if (call->phase == FIT)
            share_columns(call, task);
        else
            share_rows(call, task, scratch);
    }
}

#endif

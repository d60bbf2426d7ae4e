/* Normalise, fuse and fold: the arithmetic of softmax over one segment, row by row. */

#ifndef FASTATTN_ROWS_H
#define FASTATTN_ROWS_H

#include "ahead.h"
#include "scores.h"

/* Values are fetched this many keys before their turn where a task has few rows: they come straight
   from memory then. More rows find them in a cache, and lose 5 % by asking. */
#define AHEAD_KEYS 32

/* Largest score of columns low to high; NaN if nothing but hidden keys and NaN stands there. */
static real row_maximum(int64_t scores, int64_t low, int64_t high)
{
    vector first = splat(HIDDEN), second = first;
    int64_t column = low;
    for (; column + 2 * LANES <= high; column += 2 * LANES) {
        first = larger(first, load(scores + column * ITEM));
        second = larger(second, load(scores + (column + LANES) * ITEM));
    }
    if (column < high) first = larger(first, load(scores + column * ITEM));
    const real largest = lane_max(larger(first, second));
    if (largest == HIDDEN)
        for (column = low; column < high; column += LANES)
            if (any_nan(load(scores + column * ITEM))) return NOT_A_NUMBER;
    return largest;
}

/* Step normalise: scores become weights 2^((score - row_max) factor); returns their sum. `least` is
   `exp2_lowest(factor)`. */
static real normalise_row(int64_t scores, int64_t low, int64_t high, real row_max, real factor,
                          real least)
{
    const vector maximum = splat(row_max), wide = splat(factor), lowest = splat(least);
    vector total = splat(0);
    for (int64_t place = scores + low * ITEM; place < scores + high * ITEM; place += LANES * ITEM) {
        const vector weight = exp2_product(minus(load(place), maximum), wide, lowest);
        store(place, weight);
        total = plus(total, weight);
    }
    return lane_sum(total);
}

/* Weights of a row that sees no key of the segment. */
static void zero_columns(int64_t scores, int64_t low, int64_t high)
{
    for (int64_t place = scores + low * ITEM; place < scores + high * ITEM; place += LANES * ITEM)
        store(place, splat(0));
}

/* Where the values of a segment lie: the addresses of its value rows 0, 128, ... and of those
   behind it, and the distance between rows. */
typedef struct {
    int64_t chunks, stride;
} value_rows;

/* Fuse some vectors of columns of all rows of a block; `p` is that of the first rows, and moves. */
static void fuse_strip(const attention_call *call, int64_t rows, int64_t vectors, product *p,
                       int64_t scratch)
{
    const int group = rows_at_once(rows, vectors);
    for (int64_t row = 0; row < rows; row += group) {
        if (!p->whole) p->fetch = next_lines(call, scratch, &p->fetch_stride);
        product_columns(group, vectors, p);
        p->a += group * p->a_stride;
        p->c += group * p->c_stride;
    }
}

/* Step fuse: weights times values, columns low to high, into the output rows at `block`.

   Values that wait are staged where the first would lie, by strips of columns. Meanwhile the tiles
   ask for memory: few rows for their own values, which come straight from there; many rows, who
   find theirs in a cache, for what the next task needs. */
static void fuse_block(const attention_call *call, int64_t segment, int64_t rows, int64_t low,
                       int64_t high, value_rows values, int64_t block, int64_t scratch)
{
    const int64_t vectors = padded(call->value_features) / LANES, vector_bytes = LANES * ITEM;
    const bool waiting = values_wait(call);
    product p = {.a_stride = SCORE_ROW, .c_stride = vectors * vector_bytes,
                 .whole = call->value_in_place && call->task_rows <= BLOCK_ROWS};
    if (fuses_directly(call)) {
        fuse_few(call, segment, rows, low, high, block, scratch);
        return;
    }
    for (int64_t first = low; first < high; first += FACTORS * p.depth) {
        const int64_t chunk = first / FUSE_KEYS, begin = load_int64(values.chunks, chunk);
        /* Behind a page lies something else. */
        const int64_t ahead = call->entry_value_pages
                                  ? load_int64(values.chunks, chunk + 1) - begin
                                  : AHEAD_KEYS * values.stride;
        p.depth = words_of(smaller_of(high, (chunk + 1) * FUSE_KEYS) - first);
        p.accumulate = first > low;
        for (int64_t start = 0; start < vectors; start += 4) {
            const int64_t count = smaller_of(vectors - start, 4), offset = start * vector_bytes;
            p.a = scratch + call->at_scores + first * ITEM / FACTORS;
            p.b = begin + first % FUSE_KEYS * values.stride + offset;
            p.b_stride = values.stride * FACTORS;
            p.c = block + offset;
            if (waiting) {
                p.b = load_int64(values.chunks, 0);
                p.b_stride = count * vector_bytes;
                TWIN(stage_values, stage_pairs)
                (call, segment * SEGMENT_KEYS + first,
                 TWIN(p.depth, smaller_of(FACTORS * p.depth, high - first)), start * LANES,
                 count * LANES, p.b, p.b_stride / FACTORS);
            }
            p.fetch = p.b + ahead;
            p.fetch_stride = p.b_stride;
            fuse_strip(call, rows, count, &p, scratch);
        }
    }
}

/* Step fuse for one row whose plain product met a NaN: only visible keys take part.

   `scores` holds scores, not weights. The chains are those of `fuse_block` without the hidden keys,
   so that 0 * inf and 0 * NaN of a hidden key never happen. */
static void fuse_visible_row(int64_t scores, int64_t low, int64_t high, real row_max, real factor,
                             value_rows values, int64_t width, int64_t target)
{
    const vector wide = splat(factor), lowest = splat(exp2_lowest(factor));
    for (int64_t offset = 0; offset < width; offset += LANES * ITEM) {
        vector total = splat(0), chain = total;
        for (int64_t column = low; column < high; column++) {
            if (column % FUSE_KEYS == 0) total = plus(total, chain), chain = splat(0);
            const real score = load_real(scores + column * ITEM);
            if (score == HIDDEN) continue;
            const vector weight = exp2_product(splat(score - row_max), wide, lowest);
            const int64_t chunk = load_int64(values.chunks, column / FUSE_KEYS) + offset;
            chain = fused(weight, load(chunk + column % FUSE_KEYS * values.stride), chain);
        }
        store(target + offset, plus(total, chain));
    }
}

/* Whether a padded row of `width` bytes holds a NaN. */
static bool any_nan_in_row(int64_t row, int64_t width)
{
    integer_part found = {0};
    for (int64_t place = row; place < row + width; place += PART_BYTES) {
        const part a = *(const part_in_memory *)place;
        found |= a != a;
    }
    return any_lane(found);
}

/* 2^((row_max - new_max) factor), the weight of an older maximum under a newer one. */
static real correction(real row_max, real new_max, real factor)
{
    return first_lane(
        exp2_product(splat(row_max - new_max), splat(factor), splat(exp2_lowest(factor))));
}

/* A row's unfinished state: the addresses of its maximum, sum and output. */
typedef struct {
    int64_t max, sum, output;
} row_state;

/* Fold one segment's (maximum, sum, output) of a row into the running state, in order.

   An empty segment leaves the state as it is, bit for bit; the first one is copied. */
static void fold_row(row_state running, real segment_max, real segment_sum, int64_t row,
                     int64_t width, real factor)
{
    if (segment_max == HIDDEN) return;
    const real old_max = load_real(running.max), old_sum = load_real(running.sum);
    if (old_max == HIDDEN) {
        store_real(running.max, segment_max);
        store_real(running.sum, segment_sum);
        for (int64_t offset = 0; offset < width; offset += LANES * ITEM)
            store(running.output + offset, load(row + offset));
        return;
    }
    const real new_max = old_max > segment_max ? old_max : segment_max;
    const real keep = correction(old_max, new_max, factor);
    const real gain = correction(segment_max, new_max, factor);
    store_real(running.max, new_max);
    store_real(running.sum, first_lane(fused(splat(old_sum), splat(keep),
                                             splat(segment_sum * gain))));
    const vector wide_keep = splat(keep), wide_gain = splat(gain);
    for (int64_t offset = 0; offset < width; offset += LANES * ITEM) {
        const vector old = load(running.output + offset);
        store(running.output + offset, fused(old, wide_keep, times(load(row + offset), wide_gain)));
    }
}

#endif

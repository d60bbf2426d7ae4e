/* Attention in bfloat16 as it is: weights, and their products with values.

   Weights are rounded to bfloat16. A segment's output is a mean under the rounded weights, times
   the sum of the exact ones: so constant values stay what they are, and the log-sum-exp is as exact
   as in float32. */

#ifndef FASTATTN_PAIRED_ROWS_H
#define FASTATTN_PAIRED_ROWS_H

#include "paired.h"
#include "rows.h"

#if defined(IN_PAIRS)

/* A row of scores has room behind it. */
#define CORRECTION (SEGMENT_KEYS * ITEM)

/* As `normalise_row`; weight j goes, rounded, to the j-th half of the row.

   What the rounding took off the sum goes behind the row. */
static real normalise_pairs(int64_t scores, int64_t low, int64_t high, real row_max, real factor,
                            real least)
{
    const vector maximum = splat(row_max), wide = splat(factor), lowest = splat(least);
    vector exact = splat(0), total = exact;
    for (int64_t column = low; column < high; column += LANES) {
        const vector score = load(scores + column * ITEM);
        const vector weight = exp2_product(minus(score, maximum), wide, lowest);
        exact = plus(exact, weight);
        total = plus(total, store_narrow(scores + column * HALF_ITEM, weight));
    }
    const real row_sum = lane_sum(exact);
    store_real(scores + CORRECTION, row_sum / lane_sum(total));
    return row_sum;
}

/* Weights of a row that sees no key of the segment. */
static void zero_pairs(int64_t scores, int64_t low, int64_t high)
{
    for (int64_t column = low; column < high; column += LANES)
        store_narrow(scores + column * HALF_ITEM, splat(0));
    store_real(scores + CORRECTION, 1);
}

/* Bring the outputs of a block from the sums of rounded weights to those of the exact ones. */
static void correct_sums(const attention_call *call, int64_t rows, int64_t result, int64_t scratch)
{
    const int64_t width = padded(call->value_features) * ITEM;
    for (int64_t r = 0; r < rows; r++) {
        const int64_t scores = scratch + call->at_scores + r * SCORE_ROW;
        const vector factor = splat(load_real(scores + CORRECTION));
        for (int64_t place = result + r * width; place < result + (r + 1) * width;
             place += LANES * ITEM)
            store(place, times(load(place), factor));
    }
}

/* As `fuse_visible_row`, by the dots too: what is hidden is 0 there, weight and value. */
static void fuse_visible_pairs(int64_t scores, int64_t low, int64_t high, real row_max, real factor,
                               value_rows values, int64_t width, int64_t target)
{
    const vector wide = splat(factor), lowest = splat(exp2_lowest(factor));
    for (int64_t offset = 0; offset < width; offset += LANES * ITEM) {
        part total = {0}, chain = total;
        for (int64_t column = low; column < high; column += FACTORS) {
            if (column % FUSE_KEYS == 0) total += chain, chain = (part){0};
            const int64_t place = load_int64(values.chunks, column / FUSE_KEYS) + offset +
                                  column % FUSE_KEYS * values.stride;
            word_part weights = {0}, seen = {0};
            for (int i = 0; i < FACTORS && column + i < high; i++) {
                const real score = load_real(scores + (column + i) * ITEM);
                if (score == HIDDEN) continue;
                const vector weight =
                    rounded(exp2_product(splat(score - row_max), wide, lowest));
                weights |= (word_part)weight.part[0] >> (i ? 0 : 16);
                seen |= i ? 0xFFFF0000 : 0x0000FFFF;
            }
            const word_part pairs = (word_part)load(place).part[0] & seen;
            chain = dot_pairs((part)weights, (part)pairs, chain);
        }
        store(target + offset, (vector){{total + chain}});
    }
}

#endif

#endif

/* Few rows against keys and values of a small storage type, read where they lie.

   As `score_block` and `fuse_block`, with the bits of both, for what the tiles of `direct` can
   read. */

#ifndef FASTATTN_FEW_H
#define FASTATTN_FEW_H

#include "direct.h"
#include "places.h"

#if READS_DIRECTLY

/* Keys and values are asked for this many rows before their turn. */
#define AHEAD_FEW_KEYS 64
#define AHEAD_FEW_VALUES 128

/* Whether rows lie in storage as plain runs of halves, or of int8 with scales, for few rows. */
static bool few_and_small(const attention_call *call, const side *of)
{
    if (call->indices || call->task_rows > FEW_ROWS) return false;
    if (of->code == HALF || of->code == BFLOAT) return of->feature_stride == 2;
    return of->code == INT8_CODE && of->scales;
}

/* Whether `score_few` can score this task. */
static bool scores_directly(const attention_call *call)
{
    const side keys = keys_of(call);
    const int64_t size = call->features * keys.feature_stride;
    if (call->metric != DOT || call->key_factor != 1.0) return false;
    return few_and_small(call, &keys) && size > 0 && size % STEP_BYTES == 0;
}

/* Whether `fuse_few` can fuse this task. */
static bool fuses_directly(const attention_call *call)
{
    const side values = values_of(call);
    return call->value_features % (STRIP_VECTORS * LANES) == 0 && few_and_small(call, &values);
}

/* Copy the last keys of an entry, fewer than `GROUP_KEYS`, and the very last again to fill; and
   their scales, if they have some, to `scales`. */
static void copy_last_keys(const attention_call *call, const side *of, int64_t first, int64_t size,
                           int64_t target, int64_t scales)
{
    for (int64_t r = 0; r < GROUP_KEYS; r++) {
        const int64_t j = smaller_of(first + r, call->keys - 1);
        memcpy((void *)(target + r * size), (const void *)row_place(call, of, j), (size_t)size);
        if (of->scales)
            memcpy((void *)(scales + 4 * r), (const void *)scale_place(of->scales, j), 4);
    }
}

/* Where 32 keys lie, and later ones. */
static small_rows find_keys(const attention_call *call, const side *of, int64_t j, int64_t size,
                            int64_t scratch)
{
    small_rows keys = {.source = row_place(call, of, j), .stride = of->row_stride,
                       .scales = scale_place(of->scales, j)};
    keys.fetch = keys.source + AHEAD_FEW_KEYS * of->row_stride;
    if (of->pages) {
        /* Behind a page lies something else. */
        const int64_t later = smaller_of(j + AHEAD_FEW_KEYS, call->keys - 1);
        keys.fetch = row_place(call, of, later / GROUP_KEYS * GROUP_KEYS);
    }
    if (j + GROUP_KEYS > call->keys) {
        keys.source = scratch + call->at_stage;
        keys.stride = size;
        if (of->scales) keys.scales = keys.source + GROUP_KEYS * size;
        copy_last_keys(call, of, j, size, keys.source, keys.scales);
    }
    return keys;
}

/* Steps pack and score for a block of few rows, columns low to high and some around them. */
static void score_few(const attention_call *call, int64_t segment, int64_t queries, int64_t rows,
                      int64_t low, int64_t high, int64_t scratch)
{
    const side of = keys_of(call);
    const int64_t size = call->features * of.feature_stride;
    const int64_t query_row = padded(call->features) * ITEM, score_row = SCORE_STRIDE * ITEM;
    for (int64_t column = low / GROUP_KEYS * GROUP_KEYS; column < high; column += GROUP_KEYS) {
        const small_rows keys =
            find_keys(call, &of, segment * SEGMENT_KEYS + column, size, scratch);
        const int64_t c = scratch + call->at_scores + column * ITEM;
#if !defined(IN_PAIRS)
        if (of.code == HALF)
            (rows == 1 ? score_half_1 : score_half_4)(&keys, size, queries, query_row, c,
                                                      score_row);
        else if (of.code != BFLOAT)
            (rows == 1 ? score_int8_1 : score_int8_4)(&keys, size, queries, query_row, c,
                                                      score_row);
        else
#endif
            (rows == 1 ? score_bfloat_1 : score_bfloat_4)(&keys, size, queries, query_row, c,
                                                          score_row);
    }
}

/* Step fuse for a block of few rows, into the output rows at `block`. */
static void fuse_few(const attention_call *call, int64_t segment, int64_t rows, int64_t low,
                     int64_t high, int64_t block, int64_t scratch)
{
    const side of = values_of(call);
    const int64_t strip = STRIP_VECTORS * LANES, score_row = SCORE_STRIDE * ITEM;
    const int64_t c_stride = call->value_features * ITEM;
    const bool run = of.row_stride == call->value_features * of.feature_stride;
    int64_t stop;
    for (int64_t first = low; first < high; first = stop) {
        const int64_t j = segment * SEGMENT_KEYS + first;
        const int64_t a = scratch + call->at_scores + first * ITEM / FACTORS;
        const bool more = first > low;
        stop = smaller_of(high, (first / FUSE_KEYS + 1) * FUSE_KEYS);
        small_rows values = {.source = row_place(call, &of, j), .stride = of.row_stride,
                             .scales = scale_place(of.scales, j),
                             .fetch_stride = run ? strip * of.feature_stride : of.row_stride};
        int64_t later = values.source + AHEAD_FEW_VALUES * of.row_stride;
        if (of.pages) {
            /* Behind a page lies something else. */
            const int64_t key = smaller_of(j + FUSE_KEYS, call->keys - 1);
            later = row_place(call, &of, key / FUSE_KEYS * FUSE_KEYS);
        }
        for (int64_t column = 0; column < call->value_features; column += strip) {
            const int64_t c = block + column * ITEM;
            /* Rows without gaps are asked for in the order of memory, each strip's share of them:
               the machine then guesses what is next. */
            values.fetch = later + column * of.feature_stride * (run ? stop - first : 1);
#if !defined(IN_PAIRS)
            if (of.code == HALF)
                (rows == 1 ? fuse_half_1 : fuse_half_4)(&values, stop - first, more, a, score_row,
                                                        c, c_stride);
            else if (of.code != BFLOAT)
                (rows == 1 ? fuse_int8_1 : fuse_int8_4)(&values, stop - first, more, a, score_row,
                                                        c, c_stride);
            else
#endif
                (rows == 1 ? fuse_bfloat_1 : fuse_bfloat_4)(&values, stop - first, more, a,
                                                            score_row, c, c_stride);
            values.source += strip * of.feature_stride;
        }
    }
}

#else

/* Nothing is read directly here. */
static bool scores_directly(const attention_call *call) { return (void)call, false; }
static bool fuses_directly(const attention_call *call) { return (void)call, false; }
#define score_few(...) ((void)0)
#define fuse_few(...) ((void)0)

#endif

#endif

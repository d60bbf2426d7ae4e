/* Score, shape and reveal: one block of rows against the keys of one segment.

   A block holds at most 24 rows and the columns `low` to `high` of one segment (`low` a multiple of
   sixteen), in scratch rows `SCORE_STRIDE` apart. */

#ifndef FASTATTN_SCORES_H
#define FASTATTN_SCORES_H

#include "few.h"
#include "paired.h"
#include "places.h"
#include "tile.h"
#include "unpacked.h"

/* Score the rows of a block against one packed panel, columns first to first + 16 vectors. */
static void score_panel(const attention_call *call, int64_t queries, int64_t rows, int64_t panel,
                        int64_t scores, int64_t vectors)
{
    const bool euclidean = call->metric == EUCLIDEAN;
    const int64_t query_row = padded(call->features) * ITEM;
    const int group = euclidean ? TILE_ROWS : rows_at_once(rows, vectors);
    product p = {.a = queries, .a_stride = query_row, .b = panel, .b_stride = PANEL_KEYS * ITEM,
                 .c = scores, .c_stride = SCORE_ROW, .depth = words_of(call->features),
                 .fetch = queries};
    for (int64_t row = 0; row < rows; row += group) {
        if (euclidean)
            distance_columns((real)call->difference_factor, vectors, &p);
        else
            product_columns(group, vectors, &p);
        p.a += group * query_row;
        p.c += group * SCORE_ROW;
    }
}

/* Steps pack and score: similarities of a block, columns low to high, before any scale.

   Packs the panels it needs that no block of this task has packed before (a flag a panel tells); a
   task of one block has all its panels take turns in one place, which stays in the nearest cache.
   Requires scratch for whole groups of six rows. */
static void score_block(const attention_call *call, int64_t segment, int64_t queries, int64_t rows,
                        int64_t low, int64_t high, int64_t scratch)
{
    const int64_t scores = scratch + call->at_scores, packed = scratch + call->at_packed;
    const int64_t panel_bytes = PANEL_KEYS * call->features * ITEM;
    const bool several = call->task_rows > BLOCK_ROWS;
    if (scores_directly(call)) {
        score_few(call, segment, queries, rows, low, high, scratch);
        return;
    }
    if (reads_unpacked(call, segment, rows, low)) {
        score_unpacked(call, segment, queries, rows, low, high, scratch);
        return;
    }
    for (int64_t panel = low / PANEL_KEYS; panel * PANEL_KEYS < high; panel++) {
        const int64_t begin = panel * PANEL_KEYS, first = larger_of(low, begin);
        const int64_t stop = smaller_of(high, begin + PANEL_KEYS);
        const int64_t place = scratch + call->at_panels + (several ? panel * panel_bytes : 0);
        if (!several || !load_int64(packed, panel)) {
            TWIN(pack_entry_panel, pack_pairs)
            (call, segment * SEGMENT_KEYS + begin, place, scratch);
            store_int64(packed, panel, 1);
        }
        score_panel(call, queries, rows, place + (first - begin) * ITEM, scores + first * ITEM,
                    (stop - first + LANES - 1) / LANES);
    }
}

/* The factors of a score, as records have them; the power of two in two that stay in range. */
typedef struct {
    double first, second, rest, softcap;
} score_factors;

/* The factors in a record; without the power of two where it went onto the query (`exact`). */
#define factors_of(call, exact)                                               \
    (score_factors){(exact) ? 1.0 : (call)->query_first,                      \
                    (exact) ? 1.0 : (call)->query_second, (call)->rest, (call)->softcap}

/* Step shape: scale and softcap one row of scores, columns low to high. */
static void shape_row(score_factors factors, int64_t scores, int64_t low, int64_t high)
{
    const vector rest = splat((real)factors.rest), cap = splat((real)factors.softcap);
    const vector first = splat((real)factors.first), second = splat((real)factors.second);
    const bool capped = factors.softcap > 0.0;
    const vector slope = splat(capped ? (real)(2.8853900817779268 / factors.softcap) : 0);
    for (int64_t place = scores + low * ITEM; place < scores + high * ITEM; place += LANES * ITEM) {
        vector score = times(times(times(load(place), first), second), rest);
        if (capped) score = times(tanh_product(score, slope), cap);
        store(place, score);
    }
}

/* A mask as records have it: its kind, storage code, and how many bytes further a key's bias is. */
typedef struct {
    int64_t kind, code, key;
} mask_layout;

/* Hide one row's scores where a bool mask hides: a byte a column, at `mask` that of column 0. */
static void mask_bytes(int64_t mask, int64_t scores, int64_t low, int64_t high)
{
    const uint8_t *const seen = (const uint8_t *)mask;
    real_in_memory *const score = (real_in_memory *)scores;
    for (int64_t column = low; column < high; column++)
        score[column] = seen[column] ? score[column] : HIDDEN;
}

/* Steps shape and reveal by a mask of any type: one element after the other. */
static void mask_any(mask_layout layout, int64_t mask, int64_t scores, int64_t low, int64_t high)
{
    for (int64_t column = low; column < high; column++) {
        const int64_t place = scores + column * ITEM;
        double bias = load_as_double(layout.code, mask + column * layout.key);
        const bool hides = layout.kind == BOOL_MASK ? bias == 0 : bias == -__builtin_inf();
        if (hides) {
            store_real(place, HIDDEN);
        } else if (layout.kind != BOOL_MASK) {
            /* A finite float64 that float32 cannot hold stays finite: it must not hide its key. */
            if (bias > LARGEST && bias < __builtin_inf()) bias = LARGEST;
            if (bias < -LARGEST) bias = -LARGEST;
            store_real(place, load_real(place) + (real)bias);
        }
    }
}

/* Steps shape and reveal by an array: add a float mask, hide what a bool mask hides.

   `mask` is the address of the mask's element for column 0; only columns low to high are read. */
static void mask_row(mask_layout layout, int64_t mask, int64_t scores, int64_t low, int64_t high)
{
    if (layout.kind == BOOL_MASK && layout.key == 1) {
        mask_bytes(mask, scores, low, high);
        return;
    }
    if (layout.kind == FLOAT_MASK && layout.key == ITEM && layout.code == NATIVE_CODE)
        for (; low + LANES <= high; low += LANES) {
            const int64_t place = scores + low * ITEM;
            const vector bias = load(mask + low * ITEM);
            store(place, select_equal(bias, HIDDEN, bias, plus(load(place), bias)));
        }
    mask_any(layout, mask, scores, low, high);
}

/* Step shape by ALiBi: subtract slope times distance from the columns low to high.

   `distance` is the query's position less the key's of column 0. A hidden score stays hidden. */
static void bias_row(int64_t scores, int64_t low, int64_t high, int64_t distance, real slope)
{
    const vector steepness = splat(0 - slope);
    for (int64_t column = low; column < high; column += LANES) {
        const int64_t place = scores + column * ITEM;
        const vector score = load(place);
        const vector away = absolute(minus(splat((real)(distance - column)), lane_floats()));
        store(place, select_equal(score, HIDDEN, score, fused(steepness, away, score)));
    }
}

/* Step reveal by documents: hide columns low to high whose id differs from the query's. */
static void documents_row(int64_t scores, int64_t low, int64_t high, int64_t query_id,
                          int64_t key_ids)
{
    const int64_in_memory *const ids = (const int64_in_memory *)key_ids;
    real_in_memory *const score = (real_in_memory *)scores;
    for (int64_t column = low; column < high; column++)
        score[column] = ids[column] == query_id ? score[column] : HIDDEN;
}

/* Step reveal by range: hide columns of low to high that lie outside begin to end. */
static void reveal_row(int64_t scores, int64_t low, int64_t high, int64_t begin, int64_t end)
{
    for (int64_t column = low; column < smaller_of(begin, high); column += LANES) {
        const int64_t place = scores + column * ITEM;
        store(place, keep_lanes(load(place), begin - column, LANES, HIDDEN));
    }
    for (int64_t column = low + larger_of(0, end - low) / LANES * LANES; column < high;
         column += LANES) {
        const int64_t place = scores + column * ITEM;
        store(place, keep_lanes(load(place), 0, end - column, HIDDEN));
    }
}

#endif

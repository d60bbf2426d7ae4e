/* Pack: what the tiles read, whatever layout and storage type the caller has.

   Keys become panels `[features][64 keys]`, one vector load a feature for sixteen keys; queries
   become rows; values are used where they lie unless their layout forbids it. Conversion of storage
   types, cosine norms and the exact part of scale happen here, so that the tiles never see them. */

#ifndef FASTATTN_PACK_H
#define FASTATTN_PACK_H

#include "bfloat16.h"
#include "elementary.h"
#include "transpose.h"

/* How many rows ahead of packing keys are fetched. */
#define PREFETCH_KEYS 32

/* Transpose sixteen columns of `target[outer][inner]`, or fewer (`last` + 1), four rows at a time.

   Asks for four cache lines a step: those of sixteen rows, line by line. */
INLINE void pack_sixteen(int64_t source, int64_t inner_stride, int64_t outers, const int64_t last,
                         int64_t target, int64_t target_stride, int64_t ahead)
{
    for (int64_t step = 0; step < outers; step += 4) {
        /* The last four overlap the ones before when `outers` is no multiple of four. */
        const int64_t outer = smaller_of(step, outers - 4);
        const int64_t later = source + ahead + outer / 16 * 64 + outer % 16 * inner_stride;
        UNROLL for (int row = 0; row < 4; row++) prefetch(later + row * inner_stride);
        transpose_four(source + outer * ITEM, inner_stride, last, target + outer * target_stride,
                       target_stride);
    }
}

/* Write `target[outer][inner]` from strided storage; strides in bytes.

   What stands between `inners` and its next multiple of sixteen is left or filled with anything
   finite or not: the caller hides or clears it. Requires that `target` has room for it. Transposing
   asks for what lies `ahead` bytes beyond what it reads. */
static void pack_ahead(int64_t code, int64_t source, int64_t outer_stride, int64_t inner_stride,
                       int64_t outers, int64_t inners, int64_t target, int64_t target_stride,
                       int64_t ahead)
{
    const bool native = code == NATIVE_CODE;
    if (native && inner_stride != ITEM && outer_stride == ITEM && outers >= 4) {
        for (int64_t first = 0; first < inners; first += LANES) {
            const int64_t start = source + first * inner_stride, end = target + first * ITEM;
            const int64_t last = smaller_of(inners - first, LANES) - 1;
            if (last == LANES - 1)
                pack_sixteen(start, inner_stride, outers, LANES - 1, end, target_stride, ahead);
            else
                pack_sixteen(start, inner_stride, outers, last, end, target_stride, ahead);
        }
        return;
    }
    for (int64_t outer = 0; outer < outers; outer++)
        widen_row(code, source + outer * outer_stride, inner_stride, inners,
                  target + outer * target_stride);
}

static void pack_matrix(int64_t code, int64_t source, int64_t outer_stride, int64_t inner_stride,
                        int64_t outers, int64_t inners, int64_t target, int64_t target_stride)
{
    pack_ahead(code, source, outer_stride, inner_stride, outers, inners, target, target_stride,
               PREFETCH_KEYS * inner_stride);
}

/* One storage type of `pack_small`: `kind` is a constant. */
INLINE void pack_kind(const int kind, int64_t source, int64_t row_stride, int64_t rows,
                      int64_t features, int64_t scales, int64_t target, int64_t target_stride,
                      int64_t ahead)
{
    const int64_t size = kind == INT8_CODE ? 1 : 2, in_a_step = 16 / size;
    const int64_t lines = (features * size + 63) / 64;
    for (int64_t first = 0; first < rows; first += LANES) {
        const int64_t start = source + first * row_stride, place = target + first * ITEM;
        int64_t row = 0, line = 0;
        for (int64_t step = 0; step < features; step += in_a_step) {
            /* The last step overlaps the one before when they do not come out even. */
            const int64_t feature = smaller_of(step, features - in_a_step);
            /* Four cache lines a step, as many as four steps read; in the order of addresses,
               which is what the machine's own prefetching follows. */
            for (int i = 0; i < 4; i++) {
                prefetch(start + ahead + row * row_stride + line * 64);
                line++;
                if (line == lines) row++, line = 0;
            }
            transpose_widened(kind, start + feature * size, row_stride, scales + 4 * first,
                              place + feature * target_stride, target_stride);
        }
    }
}

/* Write `target[feature][row]` of sixteens of rows of halves, or of int8 with its scales.

   Requires contiguous rows of 16 bytes at least. Asks for what lies `ahead` bytes beyond what it
   reads. */
static void pack_small(int64_t code, int64_t source, int64_t row_stride, int64_t rows,
                       int64_t features, int64_t scales, int64_t target, int64_t target_stride,
                       int64_t ahead)
{
    if (code == BFLOAT)
        pack_kind(BFLOAT, source, row_stride, rows, features, 0, target, target_stride, ahead);
    else if (code == HALF)
        pack_kind(HALF, source, row_stride, rows, features, 0, target, target_stride, ahead);
    else
        pack_kind(INT8_CODE, source, row_stride, rows, features, scales, target, target_stride,
                  ahead);
}

/* Zeros at elements begin to end of a row. */
static void clear_row(int64_t target, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++) store_real(target + i * ITEM, 0);
}

/* Multiply a padded row by a power of two, given as two factors because one may lie beyond the
   range of the type: `query_first * query_second` of a record.

   Only if no element loses a bit, overflows or gets beyond `most`, or `always`; returns whether it
   was done. */
static bool scale_row(int64_t target, int64_t length, double query_first, double query_second,
                      bool always, double most)
{
    const vector first = splat((real)query_first), second = splat((real)query_second);
    const vector back_first = splat((real)(1.0 / query_first));
    const vector back_second = splat((real)(1.0 / query_second));
    vector largest = splat(0);
    bool exact = true;
    for (int64_t i = 0; i < length; i += LANES) {
        const vector value = load(target + i * ITEM);
        const vector scaled = times(times(value, first), second);
        exact &= same_lanes(times(times(scaled, back_second), back_first), value);
        TWIN((void)0, exact &= same_lanes(rounded(scaled), scaled));
        largest = larger(largest, absolute(scaled));
    }
    exact &= (double)lane_max(largest) <= most;
    if (exact || always)
        for (int64_t i = 0; i < length; i += LANES)
            store(target + i * ITEM, times(times(load(target + i * ITEM), first), second));
    return exact || always;
}

INLINE vector inverse_norm(vector squares)
{
    return select_equal(squares, 0, splat(0), over(splat(1), square_root(squares)));
}

/* Divide a padded row by its Euclidean norm; a zero row stays zero. No overflow on the way. */
static void normalise_query(int64_t row, int64_t length)
{
    vector largest = splat(0), total = splat(0);
    for (int64_t i = 0; i < length; i += LANES)
        largest = larger(largest, absolute(load(row + i * ITEM)));
    const vector exponent = inverse_exponent(splat(lane_max(largest)));
    for (int64_t i = 0; i < length; i += LANES) {
        const vector value = times(load(row + i * ITEM), exponent);
        total = fused(value, value, total);
    }
    const vector inverse = inverse_norm(splat(lane_sum(total)));
    for (int64_t i = 0; i < length; i += LANES)
        store(row + i * ITEM, times(times(load(row + i * ITEM), exponent), inverse));
}

/* Divide each key of a panel by its Euclidean norm: `normalise_query` across lanes. */
static void normalise_keys(int64_t panel, int64_t features)
{
    const int64_t stride = PANEL_KEYS * ITEM, end = features * stride;
    for (int64_t place = panel; place < panel + stride; place += LANES * ITEM) {
        vector largest = splat(0), total = splat(0);
        for (int64_t e = 0; e < end; e += stride)
            largest = larger(largest, absolute(load(place + e)));
        const vector exponent = inverse_exponent(largest);
        for (int64_t e = 0; e < end; e += stride) {
            const vector value = times(load(place + e), exponent);
            total = fused(value, value, total);
        }
        const vector inverse = inverse_norm(total);
        for (int64_t e = 0; e < end; e += stride)
            store(place + e, times(times(load(place + e), exponent), inverse));
    }
}

/* Cosine norms and the exact part of scale (`key_factor`) go onto a panel of packed keys. */
static void finish_panel(int64_t metric, double key_factor, int64_t features, int64_t target)
{
    if (metric == COSINE) {
        normalise_keys(target, features);
    } else if (key_factor != 1.0) {
        const vector factor = splat((real)key_factor);
        const int64_t end = target + features * PANEL_KEYS * ITEM;
        for (int64_t place = target; place < end; place += LANES * ITEM)
            store(place, times(load(place), factor));
    }
}

#endif

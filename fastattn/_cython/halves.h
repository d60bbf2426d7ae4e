/* Halves in the stages: lines widened on their way in, rounded on their way out, by sixteens.

   A line of at least sixteen has no slow end: its last sixteen elements overlap the ones before. */

#ifndef FASTATTN_HALVES_H
#define FASTATTN_HALVES_H

#include "storage.h"

/* Lines that are fetched before their turn. */
#define LINES_AHEAD 24

/* Whether a storage code is that of float16 or bfloat16 in the machine's byte order. */
INLINE bool is_half(int64_t code) { return code == HALF || code == BFLOAT; }

/* Write contiguous halves as reals; reads and writes nothing beyond. */
static void widen_line(int64_t code, int64_t source, int64_t count, int64_t target)
{
    const int64_t whole = count < LANES ? count : count / LANES * LANES;
    widen_row(code, source, 2, whole, target);
    if (whole < count) {
        const int64_t last = count - LANES;
        widen_row(code, source + 2 * last, 2, LANES, target + last * ITEM);
    }
}

/* Write lines of contiguous halves as reals; what follows on, as one line. */
static void widen_lines(int64_t code, int64_t source, int64_t source_stride, int64_t lines,
                        int64_t count, int64_t target, int64_t target_stride)
{
    if (source_stride == 2 * count && target_stride == count * ITEM) {
        count = lines * count;
        lines = 1;
    }
    for (int64_t line = 0; line < lines; line++) {
        const int64_t here = source + line * source_stride;
        for (int64_t offset = 0; offset < 2 * count; offset += 64)
            prefetch(here + LINES_AHEAD * source_stride + offset);
        widen_line(code, here, count, target + line * target_stride);
    }
}

/* As `round_row`, but reads nothing beyond. */
static void round_line(int64_t code, int64_t source, int64_t count, int64_t target, int64_t stride)
{
    const int64_t whole = stride == 2 && count > LANES ? count / LANES * LANES : count;
    round_row(code, source, whole, target, stride);
    if (whole < count) {
        const int64_t last = count - LANES;
        round_row(code, source + last * ITEM, LANES, target + 2 * last, 2);
    }
}

/* Write contiguous lines as halves; what follows on, as one line. */
static void round_lines(int64_t code, int64_t source, int64_t lines, int64_t count, int64_t target,
                        int64_t target_stride)
{
    const int64_t source_stride = count * ITEM;
    if (target_stride == 2 * count) {
        count = lines * count;
        lines = 1;
    }
    for (int64_t line = 0; line < lines; line++)
        round_line(code, source + line * source_stride, count, target + line * target_stride, 2);
}

/* Write one number as a real or a half. */
INLINE void store_number(int64_t code, int64_t place, real number)
{
    if (code == NATIVE_CODE)
        store_real(place, number);
    else
        store_one_rounded(code, place, number);
}

/* Add a mask of contiguous halves to a row of scores, whole sixteens only; returns how many.

   Where the mask is -inf the score is, whatever it was. */
static int64_t add_halves(int64_t code, int64_t mask, int64_t scores, int64_t count)
{
    const int64_t whole = count / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES) {
        const int64_t place = scores + i * ITEM;
        const vector bias = code == HALF ? load_widened(HALF, mask + 2 * i)
                                         : load_widened(BFLOAT, mask + 2 * i);
        store(place, select_equal(bias, HIDDEN, bias, plus(load(place), bias)));
    }
    return whole;
}

#endif

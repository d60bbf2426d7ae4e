/* Step finish of softmax and its relatives: divide or subtract, and store blocks in any layout. */

#ifndef FASTATTN_SOFTMAX_FINISH_H
#define FASTATTN_SOFTMAX_FINISH_H

#include "halves.h"
#include "record.h"
#include "transpose.h"

/* Step finish: the quotient, correctly rounded but for subnormals, or the logarithm. */
INLINE vector final(const bool divides, vector value, vector first, vector second)
{
    if (!divides) return minus(minus(value, first), second);
    const vector quotient = times(value, first);
    return fused(fused(quotient, second, value), first, quotient);
}

/* Whole vectors of `finish_line`. */
INLINE void finish_vectors(const bool divides, const bool streamed, int64_t source, int64_t begin,
                           int64_t stop, int64_t stats, int64_t stats_step, int64_t target)
{
    for (int64_t i = begin; i < stop; i += LANES) {
        const vector first = load(stats), second = load(stats + LANES * ITEM);
        const vector value = final(divides, load(source + i * ITEM), first, second);
        if (streamed)
            stream(target + i * ITEM, value);
        else
            store(target + i * ITEM, value);
        stats += stats_step;
    }
}

/* Lanes that do not fill a vector. */
INLINE void finish_few(const bool divides, int64_t source, int64_t count, int64_t stats,
                       int64_t target)
{
    const vector first = load(stats), second = load(stats + LANES * ITEM);
    store_first(target, final(divides, load_first(source, count, 0), first, second), count);
}

INLINE void finish_line_of(const bool divides, int64_t source, int64_t lanes, int64_t stats,
                           int64_t stats_step, int64_t target, bool streamed)
{
    int64_t begin = 0;
    if (streamed) {
        begin = smaller_of((-target & 63) / ITEM, lanes);
        streamed = (begin == 0 || stats_step == 0) && target % ITEM == 0;
        if (!streamed) begin = 0;
    }
    if (begin) finish_few(divides, source, begin, stats, target);
    const int64_t stop = begin + (lanes - begin) / LANES * LANES;
    if (streamed)
        finish_vectors(divides, true, source, begin, stop, stats, stats_step, target);
    else
        finish_vectors(divides, false, source, begin, stop, stats, stats_step, target);
    if (stop < lanes)
        finish_few(divides, source + stop * ITEM, lanes - stop,
                   stats + (stop - begin) / LANES * stats_step, target + stop * ITEM);
}

/* Step finish for one line of scratch; statistics are `stats_step` bytes apart a vector. */
static void finish_line(int64_t operation, int64_t source, int64_t lanes, int64_t stats,
                        int64_t stats_step, int64_t target, bool streamed)
{
    if (operation == SOFTMAX_RESULT)
        finish_line_of(true, source, lanes, stats, stats_step, target, streamed);
    else
        finish_line_of(false, source, lanes, stats, stats_step, target, streamed);
}

/* Write a finished block, whose lanes are rows, as rows of contiguous keys. */
static void turn_rows(int64_t block, int64_t block_stride, int64_t rows, int64_t keys,
                      int64_t strip, int64_t target, int64_t target_row)
{
    const int64_t step = LANES * ITEM;
    for (int64_t row = 0; row < rows; row += 4) {
        for (int64_t k = 0; k < keys; k += LANES) {
            const int64_t count = smaller_of(keys - k, LANES);
            const int64_t source = block + k * block_stride + row * ITEM;
            const int64_t place = target + row * target_row + k * ITEM;
            if (count == LANES && rows - row >= 4) {
                transpose_four(source, block_stride, LANES - 1, place, target_row);
                continue;
            }
            transpose_four(source, block_stride, count - 1, strip, step);
            for (int64_t r = 0; r < smaller_of(rows - row, 4); r++)
                store_first(place + r * target_row, load(strip + r * step), count);
        }
    }
}

/* Store a finished block into a result whose lanes do not lie side by side. */
static void turn_out(const softmax_call *call, int64_t block, int64_t rows, int64_t keys,
                     int64_t strip, int64_t output)
{
    if (call->sideways && call->output_key == ITEM) {
        turn_rows(block, call->block_stride, rows, keys, strip, output, call->output_row);
        return;
    }
    const int64_t block_key = call->sideways ? call->block_stride : ITEM;
    for (int64_t k = 0; k < keys; k++)
        for (int64_t r = 0; r < rows; r++)
            store_real(output + k * call->output_key + r * call->output_row,
                       load_real(block + k * block_key + r * ITEM));
}

/* Store a finished block into a result of halves, wherever they lie. */
static void round_out(const softmax_call *call, int64_t block, int64_t rows, int64_t keys,
                      int64_t scratch, int64_t output)
{
    const int64_t code = call->output_code;
    if (call->sideways && call->output_key == 2) {
        const int64_t turned = scratch + call->at_turned, row = keys * ITEM;
        turn_rows(block, call->block_stride, rows, keys, scratch + call->at_lanes, turned, row);
        round_lines(code, turned, rows, keys, output, call->output_row);
        return;
    }
    const int64_t lines = call->sideways ? keys : 1, lanes = call->sideways ? rows : keys;
    for (int64_t line = 0; line < lines; line++)
        round_line(code, block + line * call->block_stride, lanes,
                   output + line * call->output_line, call->output_lane);
}

#endif

/* Softmax, log_softmax and logsumexp along one axis, as a kernel of their own.

   Steps: gather (scores of a block, read in place where they can be), maximum, weigh (exponentials
   and their sum), settle (rows of inf and NaN), finish (divide or subtract, store). A block is one
   row with its keys on the lanes, or rows side by side on the lanes, key after key. Both add in the
   same order: sixteen virtual lanes over a segment of 512 keys, the written tree, segments from
   left to right.

   Rows too long for a core's cache, or too few for the cores, are cut into chunks of whole
   segments: each step then is a phase of its own over all chunks, with the same bits. */

#ifndef FASTATTN_SOFTMAX_H
#define FASTATTN_SOFTMAX_H

#include "pack.h"
#include "scores.h"
#include "softmax_finish.h"
#include "weigh.h"

enum { NORMALISED_X, NORMALISED_MASK, NORMALISED_OUTPUT };
/* Lines that are fetched before their turn. */
#define COPY_AHEAD 24
#define STEP (LANES * ITEM)

/* Some rows by one chunk of keys: where their scores, biases and results begin, and the rest. */
typedef struct {
    int64_t x, mask, output;
    int64_t rows, keys;
    int64_t lines, lanes; /* the same as the scratch has them */
    int64_t place;        /* where scores are read */
    int64_t state;        /* at which byte the first row stands among the statistics of phases */
    int64_t maxima, sums; /* of this chunk */
    int64_t block, stats;
} row_chunk;

/* --- gather -------------------------------------------------------------------------------- */

/* Copy lines that lie too far apart for the machine to fetch them ahead by itself. */
static void copy_lines(int64_t source, int64_t source_stride, int64_t lines, int64_t lanes,
                       int64_t target, int64_t target_stride)
{
    const int64_t whole = lanes / LANES * LANES;
    for (int64_t line = 0; line < lines; line++) {
        const int64_t ahead = source + COPY_AHEAD * source_stride;
        for (int64_t offset = 0; offset < lanes * ITEM; offset += 64) prefetch(ahead + offset);
        for (int64_t lane = 0; lane < whole; lane += LANES)
            store(target + lane * ITEM, load(source + lane * ITEM));
        if (whole < lanes)
            store(target + whole * ITEM, load_first(source + whole * ITEM, lanes - whole, 0));
        source += source_stride;
        target += target_stride;
    }
}

/* Step gather without scale and mask: the scores of a block into scratch rows.

   Halves whose keys lie side by side are widened into scratch `turned` before they are turned. */
static void gather_lines(const softmax_call *call, const row_chunk *c, int64_t turned)
{
    const int64_t target = c->block, stride = call->block_stride, code = call->x_code;
    const int64_t lines = c->lines, lanes = c->lanes, row = lines * ITEM;
    if (call->sideways && call->x_lane == ITEM && code == NATIVE_CODE) {
        copy_lines(c->x, call->x_line, lines, lanes, target, stride);
    } else if (call->x_lane == 2 && is_half(code)) {
        widen_lines(code, c->x, call->x_line, lines, lanes, target, stride);
    } else if (call->sideways && call->x_line == 2 && is_half(code)) {
        widen_lines(code, c->x, call->x_lane, lanes, lines, turned, row);
        pack_matrix(NATIVE_CODE, turned, ITEM, row, lines, lanes, target, stride);
    } else {
        pack_matrix(code, c->x, call->x_line, call->x_lane, lines, lanes, target, stride);
    }
}

/* Step gather: scale and mask the scores of a block in scratch rows. */
static void gather(const softmax_call *call, const row_chunk *c, int64_t turned)
{
    const int64_t lines = c->lines, lanes = c->lanes;
    const mask_layout layout = {call->mask_kind, call->mask_code, call->mask_key};
    const vector first = splat((real)call->power_first), second = splat((real)call->power_second);
    const vector rest = splat((real)call->rest);
    gather_lines(call, c, turned);
    for (int64_t line = 0; line < lines; line++) {
        const int64_t row = c->block + line * call->block_stride;
        if (call->scaled)
            for (int64_t place = row; place < row + lanes * ITEM; place += STEP)
                store(place, times(times(times(load(place), first), second), rest));
        if (layout.kind == NO_MASK) continue;
        const int64_t biases = c->mask + line * call->mask_line;
        int64_t done = 0;
        if (layout.kind == FLOAT_MASK && layout.key == 2 && is_half(layout.code))
            done = add_halves(layout.code, biases, row, lanes);
        mask_row(layout, biases, row, done, lanes);
    }
}

/* One score, with the arithmetic of `gather`. */
static real score_at(const softmax_call *call, int64_t x, int64_t mask)
{
    real score = load_as(call->x_code, x);
    if (call->scaled)
        score = score * (real)call->power_first * (real)call->power_second * (real)call->rest;
    if (call->mask_kind == NO_MASK) return score;
    const double bias = load_as_double(call->mask_code, mask);
    if (call->mask_kind == FLOAT_MASK)
        return bias == -__builtin_inf() ? HIDDEN : (real)((double)score + bias);
    return bias == 0.0 ? HIDDEN : score;
}

/* --- settle -------------------------------------------------------------------------------- */

/* What stands for the maximum of row `r` whose sum is NaN or whose maximum is not finite: -inf
   (empty), +inf, or NaN. */
static real settled_max(const softmax_call *call, const row_chunk *c, int64_t r, real row_max)
{
    const int64_t x = c->x + r * call->x_row, mask = c->mask + r * call->mask_row;
    for (int64_t k = 0; k < c->keys; k++) {
        const real score = score_at(call, x + k * call->x_key, mask + k * call->mask_step);
        if (score != score) row_max = score;
    }
    return row_max;
}

/* Write the final values of such a row. */
static void fill_settled(const softmax_call *call, const row_chunk *c, int64_t r, real row_max)
{
    const int64_t x = c->x + r * call->x_row, mask = c->mask + r * call->mask_row;
    const int64_t target = c->block + r * ITEM;
    const int64_t target_key = call->sideways ? call->block_stride : ITEM;
    const bool masked = call->mask_kind != NO_MASK;
    real shift = row_max, hidden = NOT_A_NUMBER;
    if (call->operation == SOFTMAX_RESULT) {
        shift = NOT_A_NUMBER;
        if (masked) hidden = 0;
    } else if (masked || row_max == -HIDDEN) {
        hidden = HIDDEN;
    }
    for (int64_t k = 0; k < c->keys; k++) {
        const real score = score_at(call, x + k * call->x_key, mask + k * call->mask_step);
        store_real(target + k * target_key, score == HIDDEN ? hidden : score - shift);
    }
}

/* Step settle for `count` rows of a group: their statistics become those of final values.

   Returns whether it settled any. */
static bool settle_rows(const softmax_call *call, const row_chunk *c, int64_t group, int64_t count,
                        int64_t own)
{
    const bool fills = call->operation != LOGSUMEXP_RESULT && call->phase != FIND_SUM;
    bool found = false;
    for (int64_t r = 0; r < count; r++) {
        const int64_t place = own + r * ITEM;
        real row_max = load_real(place);
        const real row_sum = load_real(place + STEP);
        if (row_sum == row_sum && row_max > HIDDEN && row_max < -HIDDEN) continue;
        if (call->phase != FINISH) row_max = settled_max(call, c, group + r, row_max);
        if (fills) fill_settled(call, c, group + r, row_max);
        found = true;
        /* log 1 and a shift of 0 leave final values as they are, and so does a division by 1. */
        store_real(place, fills ? 0 : row_max);
        store_real(place + STEP, 1);
    }
    return found;
}

/* --- a block ------------------------------------------------------------------------------- */

/* Steps maximum and weigh for up to sixteen rows of a block, or what earlier phases found; the
   exponentials of softmax go to the block. */
INLINE void weigh_group(const softmax_call *call, const row_chunk *c, int64_t group, int64_t count,
                        int64_t scratch, vector *maximum, vector *total)
{
    const int64_t phase = call->phase, here = c->state + group * ITEM;
    const int64_t place = c->place + (call->sideways ? group * ITEM : 0);
    if (phase != WHOLE && phase != FIND_MAX)
        *maximum = load_first(call->state_max + here, count, 0);
    else if (call->sideways)
        *maximum = find_max_sideways(place, c->keys, call->block_stride);
    else
        *maximum = splat(find_max(place, c->keys));
    *total = *maximum;
    if (phase != FIND_MAX && (phase != FINISH || call->operation == SOFTMAX_RESULT)) {
        const bool keep = call->operation == SOFTMAX_RESULT && phase != FIND_SUM;
        const weighed to = {keep ? c->block : 0, phase == FIND_SUM ? c->sums + here : 0,
                            call->sums_stride};
        if (call->sideways)
            *total = weigh_sideways(place, c->keys, call->block_stride, *maximum,
                                    scratch + call->at_lanes, to, count);
        else
            *total = splat(weigh(place, c->keys, first_lane(*maximum), to,
                                 phase == WHOLE ? call->x_row : 0));
    }
    if (phase == FINISH) *total = load_first(call->state_sum + here, count, 0);
}

/* Turn the statistics of a group into what `final` reads, or into results of logsumexp. */
static void settle_stats(const softmax_call *call, const row_chunk *c, int64_t group,
                         int64_t count, int64_t own, vector total)
{
    if (call->operation == SOFTMAX_RESULT) {
        store(own, over(splat(1), total));
        store(own + STEP, minus(splat(0), total));
    } else {
        for (int64_t r = 0; r < count; r++) {
            const int64_t place = own + r * ITEM;
            const double logarithm = natural_log((double)load_real(place + STEP));
            if (call->operation == LOGSUMEXP_RESULT)
                store_number(call->output_code, c->output + (group + r) * call->output_row,
                             (real)(logarithm + (double)load_real(place)));
            else
                store_real(place + STEP, (real)logarithm);
        }
    }
    if (!call->sideways) {
        store(own, splat(load_real(own)));
        store(own + STEP, splat(load_real(own + STEP)));
    }
}

/* All steps but finish for up to sixteen rows. Returns whether the block holds final values. */
static bool normalise_group(const softmax_call *call, const row_chunk *c, int64_t group,
                            int64_t scratch)
{
    const int64_t count = smaller_of(c->rows - group, LANES), own = c->stats + 2 * group * ITEM;
    const int64_t maxima = c->maxima + group * ITEM;
    bool settled = false;
    vector maximum, total;
    weigh_group(call, c, group, count, scratch, &maximum, &total);
    if (call->phase == FIND_MAX) {
        store_first(maxima, maximum, count);
        return false;
    }
    store(own, maximum);
    store(own + STEP, total);
    if (any_nan(plus(minus(maximum, maximum), minus(total, total)))) {
        settled = settle_rows(call, c, group, count, own);
        maximum = load(own);
        total = load(own + STEP);
    }
    if (call->phase == FIND_SUM) /* Now the maximum only tells whether the chunk holds a NaN. */
        store_first(maxima, maximum, count);
    else
        settle_stats(call, c, group, count, own, total);
    return settled;
}

/* Step finish for a block whose scores or exponentials stand at `source`. */
static void finish_block(const softmax_call *call, const row_chunk *c, int64_t source,
                         int64_t scratch)
{
    const bool rounded = call->output_code != NATIVE_CODE;
    const bool there = call->output_lane == ITEM && !rounded;
    const int64_t target = there ? c->output : c->block;
    const int64_t target_line = there ? call->output_line : call->block_stride;
    const int64_t stats_step = call->sideways ? 2 * STEP : 0;
    for (int64_t line = 0; line < c->lines; line++)
        finish_line(call->operation, source + line * call->block_stride, c->lanes, c->stats,
                    stats_step, target + line * target_line, there && call->streamed);
    if (rounded)
        round_out(call, c->block, c->rows, c->keys, scratch, c->output);
    else if (!there)
        turn_out(call, c->block, c->rows, c->keys, scratch + call->at_lanes, c->output);
}

/* All steps of one phase for one block: some rows by one chunk of keys. */
static void normalise_chunk(const softmax_call *call, int64_t entry, int64_t row, int64_t rows,
                            int64_t chunk, int64_t scratch)
{
    const int64_t first = chunk * call->chunk_keys;
    const int64_t keys = smaller_of(call->chunk_keys, call->keys - first);
    row_chunk c = {
        .x = call->x + operand_offset(call, NORMALISED_X, entry) + row * call->x_row +
             first * call->x_key,
        .mask = call->mask + operand_offset(call, NORMALISED_MASK, entry) + row * call->mask_row +
                first * call->mask_step,
        .output = call->output + operand_offset(call, NORMALISED_OUTPUT, entry) +
                  row * call->output_row + first * call->output_key,
        .rows = rows, .keys = keys,
        .lines = call->sideways ? keys : 1, .lanes = call->sideways ? rows : keys,
        .state = (entry * call->padded_rows + row) * ITEM,
        .sums = call->sums + first / SEGMENT_KEYS * call->sums_stride,
        .block = scratch + call->at_block, .stats = scratch + call->at_stats,
    };
    c.maxima = call->maxima + chunk * call->sums_stride + c.state;
    c.place = call->direct ? c.x : c.block;
    if (!call->direct) gather(call, &c, scratch + call->at_turned);
    int64_t source = call->operation == SOFTMAX_RESULT ? c.block : c.place;
    for (int64_t group = 0; group < rows; group += LANES)
        if (normalise_group(call, &c, group, scratch)) source = c.block;
    if (call->phase == FIND_MAX || call->phase == FIND_SUM || call->operation == LOGSUMEXP_RESULT)
        return;
    finish_block(call, &c, source, scratch);
}

/* All steps for one row, read in place, but its own finish: the row at `pending` has that.

   Returns where this row is to be stored. Nothing is pending where that is 0. */
static int64_t normalise_late(const softmax_call *call, int64_t entry, int64_t row,
                              int64_t pending, int64_t scratch)
{
    const row_chunk c = {
        .x = call->x + operand_offset(call, NORMALISED_X, entry) + row * call->x_row,
        .mask = call->mask, .rows = 1, .keys = call->keys,
        .block = scratch + call->at_block, .stats = scratch + call->at_stats,
    };
    const real row_max = find_max(c.x, c.keys);
    const weighed to = {.weights = c.block};
    const real row_sum = pending ? weigh_and_finish(c.x, c.keys, row_max, c.block, c.stats,
                                                    pending, call->x_row)
                                 : weigh(c.x, c.keys, row_max, to, call->x_row);
    store(c.stats, splat(row_max));
    store(c.stats + STEP, splat(row_sum));
    if (!(row_max - row_max == 0 && row_sum - row_sum == 0)) settle_rows(call, &c, 0, 1, c.stats);
    const vector total = splat(load_real(c.stats + STEP));
    store(c.stats, over(splat(1), total));
    store(c.stats + STEP, minus(splat(0), total));
    return call->output + operand_offset(call, NORMALISED_OUTPUT, entry) + row * call->output_row;
}

/* Some blocks of one phase. */
static void normalise_task(const softmax_call *call, int64_t task, int64_t scratch)
{
    int64_t pending = 0;
    const int64_t begin = task * call->task_blocks;
    const int64_t end = smaller_of(begin + call->task_blocks, call->blocks);
    for (int64_t index = begin; index < end; index++) {
        const int64_t all_rows = index / call->chunks, chunk = index % call->chunks;
        const int64_t entry = all_rows / call->row_blocks, block = all_rows % call->row_blocks;
        /* Blocks side by side begin where lines of the cache do. */
        const int64_t row = block * call->block_rows - call->row_shift;
        const int64_t stop = smaller_of(row + call->block_rows, call->rows);
        const int64_t first = larger_of(row, 0);
        if (call->late)
            pending = normalise_late(call, entry, first, pending, scratch);
        else
            normalise_chunk(call, entry, first, stop - first, chunk, scratch);
    }
    if (pending)
        finish_line(SOFTMAX_RESULT, scratch + call->at_block, call->keys, scratch + call->at_stats,
                    0, pending, true);
}

/* Take tasks until none is left: some blocks of rows each, or some rows between phases. */
static void normalise(int64_t call_address, int64_t worker)
{
    const softmax_call *const call = (const softmax_call *)call_address;
    const int64_t scratch = call->scratch + worker * call->scratch_stride;
    int64_t task;
    while ((task = atomic_next(call_address)) < call->stop_task)
        normalise_task(call, task, scratch);
}

#endif

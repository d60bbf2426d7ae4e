/* Weights times values, added up or kept apart, as a kernel of its own.

   An element of the sum is a sum of chains of fused multiply-adds, each over 128 keys and from
   zero: the chains of a segment of 512 keys are added from left to right, then the segments. A task
   is a block of rows and a block of value features. */

#ifndef FASTATTN_FUSE_H
#define FASTATTN_FUSE_H

#include "pack.h"
#include "record.h"
#include "tasks.h"
#include "tile.h"

enum { FUSED_WEIGHTS, FUSED_VALUE, FUSED_OUTPUT };
/* Weights of a task up to this size are asked for a task ahead: half a second-level cache. */
#define AHEAD_BYTES (1 << 20)

/* What meets in one step: some rows by the keys of one chain by some columns of values. */
typedef struct {
    int64_t weights, weights_row;
    int64_t values, value_row;
    int64_t output;
    int64_t rows, keys, columns;
    int64_t block, width; /* sums of the columns in scratch, and how far apart rows of them are */
    bool accumulate;
    bool fresh;    /* no strip of columns before has read these weights */
    int64_t ahead; /* which of the next task's weights to ask for beside the products; 0: none */
} weighted_block;

/* Step fuse without a sum: each weight times its value row, straight into the result. */
static void put_products(const fuse_call *call, const weighted_block *s)
{
    const bool plain = call->output_feature == ITEM && call->output_code == NATIVE_CODE;
    for (int64_t r = 0; r < s->rows; r++) {
        for (int64_t k = 0; k < s->keys; k++) {
            const vector weight = splat(load_real(s->weights + r * s->weights_row + k * ITEM));
            const int64_t value = s->values + k * s->value_row, columns = s->columns;
            const int64_t target = s->output + r * call->output_row + k * call->output_key;
            const int64_t place = plain ? target : s->block;
            for (int64_t e = 0; e < columns; e += LANES)
                store_first(place + e * ITEM, times(weight, load(value + e * ITEM)), columns - e);
            if (!plain)
                put_row(call->output_code, s->block, columns, target, call->output_feature, false);
        }
    }
}

/* How many bytes of weights one key of one row stands for, in the order of addresses. */
INLINE int64_t pace(const fuse_call *call) { return call->weights_row / call->keys; }

/* Step fuse for up to six rows of a strip. */
static void fuse_rows(const fuse_call *call, weighted_block s, int64_t scratch)
{
    if (!call->weights_in_place || s.rows < TILE_ROWS) {
        const int64_t source = s.weights;
        s.weights = scratch + call->at_weights;
        s.weights_row = FUSE_KEYS * ITEM;
        pack_matrix(call->weights_code, source, call->weights_row, call->weights_key, s.rows,
                    s.keys, s.weights, s.weights_row);
    } else if (s.fresh && !s.ahead) {
        /* Rows of weights lie far apart: without a word ahead each is a cache miss. */
        for (int64_t row = TILE_ROWS; row < 2 * TILE_ROWS; row++)
            for (int64_t offset = 0; offset < s.keys * ITEM; offset += 64)
                prefetch(s.weights + row * s.weights_row + offset);
    }
    if (!call->reduced) {
        put_products(call, &s);
        return;
    }
    clear_row(s.weights + s.rows * s.weights_row, 0, (TILE_ROWS - s.rows) * FUSE_KEYS);
    const product p = {.a = s.weights, .a_stride = s.weights_row,
                       .b = s.values, .b_stride = s.value_row,
                       .c = s.block, .c_stride = s.width,
                       .depth = s.keys, .accumulate = s.accumulate, .fetch = s.ahead,
                       .fetch_stride = s.fresh && s.ahead ? TILE_ROWS * pace(call) : 0};
    product_columns(TILE_ROWS, padded(s.columns) / LANES, &p);
}

/* Step fuse for all rows of a task over one chain of keys and one strip of columns. */
static void fuse_columns(const fuse_call *call, const weighted_block *strip, int64_t scratch)
{
    for (int64_t row = 0; row < strip->rows; row += TILE_ROWS) {
        weighted_block group = *strip;
        group.rows = smaller_of(strip->rows - row, TILE_ROWS);
        group.weights += row * strip->weights_row;
        group.output += row * call->output_row;
        group.ahead += strip->ahead ? row * strip->keys * pace(call) : 0;
        if (call->reduced) group.block += row * strip->width;
        fuse_rows(call, group, scratch);
    }
}

/* Step fuse for all rows of a task over one segment; `task` tells the task's part of each operand. */
static void fuse_segment(const fuse_call *call, int64_t segment, const weighted_block *task,
                         int64_t scratch)
{
    const int64_t start = segment * SEGMENT_KEYS, columns = task->columns;
    const int64_t keys = smaller_of(SEGMENT_KEYS, call->keys - start);
    /* Values of one strip and chain stay in the first-level cache while all rows meet them. Strips
       are of one width: a narrow one at the end would not fill the tile. */
    const int64_t strips = (columns + STRIP - 1) / STRIP;
    const int64_t width = (padded(columns) / LANES + strips - 1) / strips * LANES;
    for (int64_t first = 0; first < keys; first += FUSE_KEYS) {
        weighted_block chain = *task;
        chain.keys = smaller_of(keys - first, FUSE_KEYS);
        chain.accumulate = first > 0;
        chain.weights += (start + first) * call->weights_key;
        chain.values += (start + first) * call->value_row;
        chain.output += (start + first) * call->output_key;
        if (!call->value_in_place || columns % LANES) {
            const int64_t source = chain.values;
            chain.values = scratch + call->at_values;
            chain.value_row = task->width;
            pack_matrix(call->value_code, source, call->value_row, call->value_feature, chain.keys,
                        columns, chain.values, chain.value_row);
        }
        const int64_t task_bytes = task->rows * call->weights_row;
        if (task_bytes > 0 && task_bytes <= AHEAD_BYTES)
            /* In the order of addresses, which is what the machine's own prefetching follows. */
            chain.ahead = task->weights + call->workers * task_bytes +
                          (start + first) * task->rows * pace(call);
        for (int64_t column = 0; column < columns; column += width) {
            weighted_block strip = chain;
            strip.columns = smaller_of(columns - column, width);
            strip.fresh = column == 0;
            strip.values += column * ITEM;
            strip.output += column * call->output_feature;
            strip.block += column * ITEM;
            fuse_columns(call, &strip, scratch);
        }
    }
}

/* All segments of one task, added from left to right. */
static void add_segments(const fuse_call *call, const weighted_block *task, int64_t scratch)
{
    const int64_t running = scratch + call->at_running, sums = task->rows * task->width;
    clear_row(running, 0, sums / ITEM);
    if (task->columns % LANES) {
        /* Subnormal numbers that the scratch held before would slow the padding's products down. */
        const int64_t keys = smaller_of(FUSE_KEYS, call->keys);
        for (int64_t key = 0; key < keys; key++)
            clear_row(scratch + call->at_values + key * task->width, task->columns,
                      task->width / ITEM);
    }
    for (int64_t segment = 0; segment * SEGMENT_KEYS < call->keys; segment++) {
        fuse_segment(call, segment, task, scratch);
        if (!call->reduced) continue;
        for (int64_t place = 0; place < sums; place += LANES * ITEM)
            store(running + place, plus(load(running + place), load(task->block + place)));
    }
}

/* All steps of one task. */
static void fuse_task(const fuse_call *call, int64_t number, int64_t scratch)
{
    const int64_t block = number / call->column_tasks, column_task = number % call->column_tasks;
    const int64_t entry = block / call->row_tasks;
    const int64_t first_row = block % call->row_tasks * call->task_rows;
    const int64_t first_column = column_task * call->task_columns;
    const int64_t columns = smaller_of(call->task_columns, call->features - first_column);
    const weighted_block task = {
        .weights = call->weights + operand_offset(call, FUSED_WEIGHTS, entry) +
                   first_row * call->weights_row,
        .weights_row = call->weights_row,
        .values = call->value + operand_offset(call, FUSED_VALUE, entry) +
                  first_column * call->value_feature,
        .value_row = call->value_row,
        .output = call->output + operand_offset(call, FUSED_OUTPUT, entry) +
                  first_row * call->output_row + first_column * call->output_feature,
        .rows = smaller_of(call->task_rows, call->rows - first_row),
        .columns = columns,
        .block = scratch + call->at_block,
        .width = padded(columns) * ITEM,
    };
    add_segments(call, &task, scratch);
    if (!call->reduced) return;
    for (int64_t r = 0; r < task.rows; r++)
        put_row(call->output_code, scratch + call->at_running + r * task.width, columns,
                task.output + r * call->output_row, call->output_feature, false);
}

/* Take tasks until none is left. */
static void fuse(int64_t call_address, int64_t worker)
{
    const fuse_call *const call = (const fuse_call *)call_address;
    const int64_t scratch = call->scratch + worker * call->scratch_stride;
    int64_t task;
    while ((task = atomic_next(call_address)) < call->stop_task) fuse_task(call, task, scratch);
}

#endif

/* Similarity of every query with every key, as a kernel of its own.

   Steps: pack, score, shape, with the panels, tile and scaling of attention, so that each entry has
   the bits that attention scores with. A task is a block of rows and some panels of keys: its
   queries are packed once, then each panel is packed once and met by all of them. */

#ifndef FASTATTN_SIMILARITY_H
#define FASTATTN_SIMILARITY_H

#include "pack.h"
#include "record.h"
#include "scores.h"
#include "tasks.h"

enum { COMPARED_QUERY, COMPARED_KEY, COMPARED_OUTPUT };

/* Step pack for the queries of a task, up to whole groups of six. */
static void pack_compared_queries(const similarity_call *call, int64_t query, int64_t rows,
                                  int64_t scratch)
{
    const int64_t width = padded(call->features), stride = width * ITEM;
    const int64_t target = scratch + call->at_query;
    const double first = call->query_first, second = call->query_second;
    pack_matrix(call->query_code, query, call->query_row, call->query_feature, rows,
                call->features, target, stride);
    const int64_t whole = (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    for (int64_t r = 0; r < whole; r++) {
        const int64_t row = target + r * stride;
        bool exact = true;
        clear_row(row, r < rows ? call->features : 0, width);
        if (call->metric == COSINE) normalise_query(row, width);
        if (first * second != 1.0)
            exact = scale_row(row, width, first, second, call->metric == EUCLIDEAN,
                              __builtin_inf());
        store_int64(scratch + call->at_exact, r, exact);
    }
}

/* Step pack for up to 64 keys. */
static void pack_compared_panel(const similarity_call *call, int64_t key, int64_t keys,
                                int64_t panel)
{
    const int64_t stride = PANEL_KEYS * ITEM;
    int64_t whole = 0;
    if (is_half(call->key_code) && call->key_feature == 2 && call->features >= LANES / 2) {
        whole = keys / LANES * LANES;
        pack_small(call->key_code, key, call->key_row, whole, call->features, 0, panel, stride,
                   PREFETCH_KEYS * call->key_row);
    }
    pack_matrix(call->key_code, key + whole * call->key_row, call->key_feature, call->key_row,
                call->features, keys - whole, panel + whole * ITEM, stride);
    finish_panel(call->metric, call->key_factor, call->features, panel);
}

/* Steps score and shape for all rows of a task and one panel; `output` is of its first key. */
static void compare_panel(const similarity_call *call, int64_t panel, int64_t rows, int64_t keys,
                          int64_t scratch, int64_t output)
{
    const int64_t query_row = padded(call->features) * ITEM, vectors = padded(keys) / LANES;
    /* Whole groups of a plain result are written by the tile itself. */
    const bool plain_keys = call->output_key == ITEM && keys % LANES == 0 && !call->streamed &&
                            call->output_code == NATIVE_CODE;
    for (int64_t row = 0; row < rows; row += TILE_ROWS) {
        const int64_t count = smaller_of(rows - row, TILE_ROWS);
        const int64_t place = output + row * call->output_row;
        const bool plain = plain_keys && count == TILE_ROWS;
        const product p = {.a = scratch + call->at_query + row * query_row, .a_stride = query_row,
                           .b = panel, .b_stride = PANEL_KEYS * ITEM,
                           .c = plain ? place : scratch + call->at_tile,
                           .c_stride = plain ? call->output_row : PANEL_KEYS * ITEM,
                           .depth = call->features, .fetch = panel};
        if (call->metric == EUCLIDEAN)
            distance_columns((real)call->difference_factor, vectors, &p);
        else
            product_columns(TILE_ROWS, vectors, &p);
        for (int64_t r = 0; r < TILE_ROWS; r++) {
            const bool exact = load_int64(scratch + call->at_exact, row + r) != 0;
            if (call->rescaled || !exact)
                shape_row(factors_of(call, exact), p.c + r * p.c_stride, 0, vectors * LANES);
        }
        if (plain) continue;
        const bool streamed = call->streamed && place % 64 == 0;
        for (int64_t r = 0; r < count; r++)
            put_row(call->output_code, p.c + r * p.c_stride, keys, place + r * call->output_row,
                    call->output_key, streamed);
    }
}

/* All steps of one task. */
static void compare_task(const similarity_call *call, int64_t task, int64_t scratch)
{
    /* Threads are at work on tasks next to each other. Those lie in other rows, so in other pages: a
       fresh huge page that two threads touch at once is cleared by each of them. */
    const int64_t block = task / call->row_tasks, row_task = task % call->row_tasks;
    const int64_t entry = block / call->key_tasks, key_task = block % call->key_tasks;
    const int64_t first_row = row_task * call->task_rows;
    const int64_t rows = smaller_of(call->task_rows, call->queries - first_row);
    const int64_t query = call->query + operand_offset(call, COMPARED_QUERY, entry);
    const int64_t key = call->key + operand_offset(call, COMPARED_KEY, entry);
    const int64_t output = call->output + operand_offset(call, COMPARED_OUTPUT, entry) +
                           first_row * call->output_row;
    pack_compared_queries(call, query + first_row * call->query_row, rows, scratch);
    /* Panels of a streamed result begin where lines of the cache do. */
    const int64_t begin = key_task * call->task_keys - call->key_shift;
    const int64_t end = smaller_of(begin + call->task_keys, call->keys);
    const int64_t panel = scratch + call->at_panel;
    for (int64_t start = begin; start < end; start += PANEL_KEYS) {
        const int64_t first = larger_of(start, 0);
        const int64_t keys = smaller_of(start + PANEL_KEYS, call->keys) - first;
        pack_compared_panel(call, key + first * call->key_row, keys, panel);
        compare_panel(call, panel, rows, keys, scratch, output + first * call->output_key);
    }
}

/* Take tasks until none is left. */
static void compare(int64_t call_address, int64_t worker)
{
    const similarity_call *const call = (const similarity_call *)call_address;
    const int64_t scratch = call->scratch + worker * call->scratch_stride;
    int64_t task;
    while ((task = atomic_next(call_address)) < call->stop_task) compare_task(call, task, scratch);
}

#endif

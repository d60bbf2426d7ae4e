/* Read ahead: ask for what the next task needs, one cache line per step of this task's tiles.

   A task of a short sequence finds nothing of its own in a near cache, and would wait for its
   queries, keys, values and output as long as it computes with them. The tiles of the task before
   it have time to ask. Evenly: requests in a burst fill the core's few line buffers, and whoever
   sends them waits there as long as the loads would have.

   Nothing here changes a result: a wrong guess of the next task only moves memory in vain. */

#ifndef FASTATTN_AHEAD_H
#define FASTATTN_AHEAD_H

#include "entries.h"

/* What a task needs, operand by operand, and how far the tiles have come with asking for it. */
enum { AHEAD_OPERANDS = 4 };
typedef struct {
    int64_t operand, row, byte; /* byte within the row of the next column of lines */
    struct {
        int64_t address, stride, rows, width;
    } operands[AHEAD_OPERANDS];
} __attribute__((may_alias)) ahead_cursor;

INLINE ahead_cursor *cursor_of(const attention_call *call, int64_t scratch)
{
    return (ahead_cursor *)(scratch + call->at_ahead);
}

/* The entry a task belongs to, and its first row. */
static int64_t place_of_task(const attention_call *call, int64_t task, int64_t *first_row)
{
    if (call->split) task /= call->segment_tasks;
    *first_row = 0;
    if (call->row_tasks == 1) return call->first_entry + task;
    /* Under a causal mask the last rows see most: the long tasks go first. */
    *first_row = (call->row_tasks - 1 - task % call->row_tasks) * call->task_rows;
    return call->first_entry + task / call->row_tasks;
}

/* The task this worker will probably take after one in a bundle that ends before `stop`. */
static int64_t following_task(const attention_call *shared, int64_t task, int64_t stop)
{
    if (task + 1 < stop) return task + 1;
    /* While this task runs, every other worker is likely to take a bundle. */
    const int64_t next = __atomic_load_n(&shared->next_task, __ATOMIC_RELAXED);
    return (next + shared->workers - 1) * shared->bundle;
}

static void list_operand(ahead_cursor *cursor, int operand, int64_t address, int64_t stride,
                         int64_t rows, int64_t features)
{
    cursor->operands[operand].address = address;
    cursor->operands[operand].stride = stride;
    cursor->operands[operand].rows = rows;
    cursor->operands[operand].width = features * ITEM;
}

/* Set the cursor to what a task needs first; to nothing, if there is no such task.

   Tasks of few rows have too few steps for it, and read their own values ahead. Sequences of a
   ragged batch and keys in pages would have to be found first. */
static void look_ahead(const attention_call *call, int64_t task, int64_t scratch)
{
    ahead_cursor *const cursor = cursor_of(call, scratch);
    cursor->operand = AHEAD_OPERANDS;
    if (task >= call->tasks || call->split || call->task_rows <= BLOCK_ROWS) return;
    if (call->ragged || call->indices || call->key_pages) return;
    cursor->operand = cursor->row = cursor->byte = 0;
    int64_t first_row;
    const int64_t entry = place_of_task(call, task, &first_row);
    const int64_t head = first_row / call->queries, i = first_row % call->queries;
    const int64_t keys = smaller_of(call->keys, SEGMENT_KEYS), rows = call->task_rows;
    const int64_t key = call->key + operand_offset(call, KEY_OPERAND, entry);
    const int64_t value = call->value + operand_offset(call, VALUE_OPERAND, entry);
    const int64_t query = call->query + operand_offset(call, QUERY_OPERAND, entry) +
                          head * call->query_head + i * call->query_row;
    const int64_t output = call->output + operand_offset(call, OUTPUT_OPERAND, entry) +
                           head * call->output_head + i * call->output_row;
    list_operand(cursor, 0, key, call->key_row, keys, call->features);
    list_operand(cursor, 1, value, call->value_row, keys, call->value_features);
    list_operand(cursor, 2, query, call->query_row, rows, call->features);
    list_operand(cursor, 3, output, call->output_row, rows, call->value_features);
}

/* Address and stride of the lines that the next `FUSE_KEYS` steps of a tile ask for. */
static int64_t next_lines(const attention_call *call, int64_t scratch, int64_t *stride)
{
    ahead_cursor *const cursor = cursor_of(call, scratch);
    const int64_t operand = cursor->operand, row = cursor->row, byte = cursor->byte;
    *stride = 0;
    if (operand == AHEAD_OPERANDS) return (int64_t)cursor;
    *stride = cursor->operands[operand].stride;
    cursor->byte = byte + LINE;
    if (cursor->byte >= cursor->operands[operand].width) {
        cursor->byte = 0;
        cursor->row = row + FUSE_KEYS;
        if (cursor->row >= cursor->operands[operand].rows) {
            cursor->row = 0;
            cursor->operand = operand + 1;
        }
    }
    return cursor->operands[operand].address + row * *stride + byte;
}

#endif

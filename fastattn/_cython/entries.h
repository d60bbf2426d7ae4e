/* Where a task's operands begin: the worker's own copy of the record, rewritten as it goes.

   A worker copies the record of the call into its scratch. For each (batch, key head) entry, and in
   a ragged call for each sequence, it writes there what the steps below need, so that they read one
   record whatever kind of call it is. */

#ifndef FASTATTN_ENTRIES_H
#define FASTATTN_ENTRIES_H

#include "record.h"

/* Copy the record of a call, whose counter is never still, into the worker's scratch. */
static attention_call *own_record(const attention_call *shared, int64_t scratch)
{
    attention_call *const own = (attention_call *)(scratch + shared->at_record);
    const size_t counter = sizeof shared->next_task;
    memcpy((char *)own + counter, (const char *)shared + counter, sizeof *own - counter);
    return own;
}

/* Write where the operands of an entry begin. */
static void enter_entry(attention_call *call, int64_t entry)
{
    call->entry_key = call->key + operand_offset(call, KEY_OPERAND, entry);
    call->entry_value = call->value + operand_offset(call, VALUE_OPERAND, entry);
    call->entry_lengths = call->lengths + operand_offset(call, LENGTHS_OPERAND, entry);
    call->entry_offsets = call->offsets + operand_offset(call, OFFSETS_OPERAND, entry);
    if (call->mask_kind != NO_MASK)
        call->entry_mask = call->mask + operand_offset(call, MASK_OPERAND, entry);
    if (call->alibi) call->entry_alibi = call->alibi + operand_offset(call, ALIBI_OPERAND, entry);
    if (call->query_ids) {
        call->entry_query_ids = call->query_ids + operand_offset(call, QUERY_IDS_OPERAND, entry);
        call->entry_key_ids = call->key_ids + operand_offset(call, KEY_IDS_OPERAND, entry);
    }
    if (call->key_pages) {
        const int64_t offset = operand_offset(call, PAGES_OPERAND, entry);
        call->entry_key_pages = call->key_pages + offset;
        call->entry_value_pages = call->value_pages + offset;
        if (call->key_scales) {
            call->entry_key_scales = call->key_scales + offset;
            call->entry_value_scales = call->value_scales + offset;
        }
    }
}

/* Make the worker's record that of one sequence of a ragged call. */
static void enter_sequence(attention_call *own, const attention_call *shared, int64_t sequence)
{
    const int64_t first_query = load_int64(shared->query_splits, sequence);
    const int64_t first_key = load_int64(shared->key_splits, sequence);
    own->queries = load_int64(shared->query_splits, sequence + 1) - first_query;
    own->keys = load_int64(shared->key_splits, sequence + 1) - first_key;
    own->query = shared->query + first_query * shared->query_row;
    own->output = shared->output + first_query * shared->output_row;
    if (shared->lse) own->lse = shared->lse + first_query * shared->lse_row;
    if (shared->indices) {
        own->indices = shared->indices + first_key * shared->index_bytes;
    } else {
        own->key = shared->key + first_key * shared->key_row;
        own->value = shared->value + first_key * shared->value_row;
    }
    if (shared->query_ids) {
        own->query_ids = shared->query_ids + 8 * first_query;
        own->key_ids = shared->key_ids + 8 * first_key;
    }
    own->offsets = shared->offsets + 8 * sequence * shared->offsets_step;
    /* The length of a sequence is the word `keys` of this very record. */
    own->lengths = (int64_t)&own->keys;
    const int64_t rows = shared->groups_of_heads * own->queries;
    own->row_tasks = (rows + shared->task_rows - 1) / shared->task_rows;
    own->stop_segment = (own->keys + SEGMENT_KEYS - 1) / SEGMENT_KEYS;
}

/* Find the sequence of a task: the last one whose first task is not above it.

   Looks at `sequence` and the next one first, unless that is negative. */
static int64_t find_sequence(const attention_call *shared, int64_t sequence, int64_t task)
{
    const int64_t first_task = shared->first_task;
    int64_t low = 0, high = shared->sequences;
    if (sequence >= 0 && load_int64(first_task, sequence) <= task) {
        low = sequence;
        if (low + 1 < high && load_int64(first_task, low + 1) > task)
            high = low + 1;
        else if (low + 2 < high && load_int64(first_task, low + 2) > task)
            low++, high = low + 1;
    }
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (load_int64(first_task, middle) <= task)
            low = middle;
        else
            high = middle;
    }
    return low;
}

#endif

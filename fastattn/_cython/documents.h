/* Which stretch of a segment a block of rows sees: by key ranges, and by documents.

   Documents packed into one row see nothing of each other. The smallest and the largest id of each
   panel of 64 keys tell where a block's own documents can begin and end; what lies outside is
   skipped. */

#ifndef FASTATTN_DOCUMENTS_H
#define FASTATTN_DOCUMENTS_H

#include "blocks.h"

#define PANELS (SEGMENT_KEYS / PANEL_KEYS)

/* Write the smallest and largest id of each panel of a segment into scratch. */
static void find_documents(const attention_call *call, int64_t segment, int64_t scratch)
{
    const int64_t found = scratch + call->at_ids, ids = call->entry_key_ids;
    for (int64_t panel = 0; panel < PANELS; panel++) {
        const int64_t first = segment * SEGMENT_KEYS + panel * PANEL_KEYS;
        const int64_t stop = smaller_of(first + PANEL_KEYS, call->keys);
        if (first >= stop) break;
        int64_t smallest = load_int64(ids, first), largest = smallest;
        for (int64_t j = first + 1; j < stop; j++) {
            smallest = smaller_of(smallest, load_int64(ids, j));
            largest = larger_of(largest, load_int64(ids, j));
        }
        store_int64(found, panel, smallest);
        store_int64(found, PANELS + panel, largest);
    }
}

/* Whether no id of a panel lies between two ids. */
INLINE bool foreign(int64_t found, int64_t panel, int64_t smallest, int64_t largest)
{
    return load_int64(found, PANELS + panel) < smallest || load_int64(found, panel) > largest;
}

/* Columns low (a multiple of sixteen) to high of a segment that a block of rows may see. */
static void segment_span(const attention_call *call, int64_t segment, const row_block *block,
                         bool narrowing, int64_t scratch, int64_t *low, int64_t *high)
{
    const int64_t start = segment * SEGMENT_KEYS, found = scratch + call->at_ids;
    visible_span(call, block, scratch, low, high);
    *low = larger_of(*low - start, 0) / LANES * LANES;
    *high = smaller_of(smaller_of(*high - start, SEGMENT_KEYS), call->keys - start);
    if (!narrowing || *low >= *high) return;
    int64_t smallest = INT64_MAX, largest = INT64_MIN;
    for (int64_t r = block->first; r < block->first + block->rows; r++) {
        if (row_word(call, scratch, BEGIN, r) >= row_word(call, scratch, END, r)) continue;
        int64_t i;
        const int64_t head = place_of_row(call, block->task_row + r, &i);
        const int64_t id = load_int64(call->entry_query_ids + head * call->query_ids_head, i);
        smallest = smaller_of(smallest, id);
        largest = larger_of(largest, id);
    }
    while (*low < *high && foreign(found, *low / PANEL_KEYS, smallest, largest))
        *low = (*low / PANEL_KEYS + 1) * PANEL_KEYS;
    while (*low < *high && foreign(found, (*high - 1) / PANEL_KEYS, smallest, largest))
        *high = (*high - 1) / PANEL_KEYS * PANEL_KEYS;
}

#endif

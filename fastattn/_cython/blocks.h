/* What happens to one block of rows over one segment, in the words of the pipeline.

   A block holds at most 24 rows. Its scores stand in scratch rows `SCORE_STRIDE` apart and become
   weights in place. `low` (a multiple of sixteen) to `high` are the columns that some row sees. */

#ifndef FASTATTN_BLOCKS_H
#define FASTATTN_BLOCKS_H

#include "rows.h"
#include "paired_rows.h"

/* Words of eight bytes, one array a name over the rows of a task. */
enum { BEGIN, END, EXACT, RUNNING_MAX, RUNNING_SUM };

/* Some rows of a task: number `first` of the task's, which begins with `task_row` of its entry.

   The rows of a task are `alike` if they see the same keys, and the exact part of scale went onto
   each of them. Most rows are, and then need no look at each one's words. */
typedef struct {
    int64_t entry, task_row;
    int64_t first, rows;
    bool alike;
} row_block;

/* Address of a row's word in the scratch of one worker. */
INLINE int64_t slot(const attention_call *call, int64_t scratch, int name, int64_t row)
{
    return scratch + call->at_rows + 8 * (name * call->task_rows + row);
}

INLINE int64_t row_word(const attention_call *call, int64_t scratch, int name, int64_t row)
{
    return load_int64(slot(call, scratch, name, row), 0);
}

/* Scores of row `r` of a block, and the address of its segment's maximum, with the sum behind. */
INLINE int64_t score_row(const attention_call *call, int64_t scratch, int64_t r)
{
    return scratch + call->at_scores + r * SCORE_ROW;
}

INLINE int64_t segment_state(const attention_call *call, int64_t scratch, int64_t r)
{
    return scratch + call->at_state + 16 * r;
}

/* Query head (of those that read the entry's key head) of a row of an entry, and its query. */
INLINE int64_t place_of_row(const attention_call *call, int64_t row, int64_t *query)
{
    *query = row;
    if (row < call->queries) return 0;
    *query = row % call->queries;
    return row / call->queries;
}

/* What turns score differences into exponents of two. */
INLINE real row_factor(const attention_call *call, bool exact)
{
    return (real)(call->shaped || !exact ? LOG2_E : LOG2_E * call->rest);
}

/* Index of a row's partial state of one segment. */
static int64_t partial_row(const attention_call *call, int64_t entry, int64_t row, int64_t segment)
{
    const int64_t rows = call->groups_of_heads * call->queries;
    return ((entry - call->first_entry) * rows + row) * call->segment_tasks + segment -
           call->first_segment;
}

/* Smallest begin and largest end over rows that see any key; (0, 0) when none does. */
static void visible_span(const attention_call *call, const row_block *block, int64_t scratch,
                         int64_t *low, int64_t *high)
{
    const int64_t stop = block->first + (block->alike ? 1 : block->rows);
    *low = call->keys, *high = 0;
    for (int64_t r = block->first; r < stop; r++) {
        const int64_t begin = row_word(call, scratch, BEGIN, r);
        const int64_t end = row_word(call, scratch, END, r);
        if (begin < end) {
            *low = smaller_of(*low, begin);
            *high = larger_of(*high, end);
        }
    }
    *low = smaller_of(*low, *high);
}

/* Steps shape and reveal by what stands in arrays: masks, slopes and documents, of one row. */
static void reveal_by_arrays(const attention_call *call, int64_t segment, int64_t entry_row,
                             int64_t scores, int64_t low, int64_t high)
{
    int64_t i;
    const int64_t head = place_of_row(call, entry_row, &i), start = segment * SEGMENT_KEYS;
    if (call->mask_kind != NO_MASK) {
        const int64_t place = call->entry_mask + head * call->mask_head + i * call->mask_row;
        const mask_layout layout = {call->mask_kind, call->mask_code, call->mask_key};
        mask_row(layout, place + start * call->mask_key, scores, low, high);
    }
    if (call->alibi) {
        const real slope = load_real(call->entry_alibi + head * call->alibi_head);
        const int64_t position =
            i + load_int64(call->entry_offsets + head * call->offsets_head, 0);
        bias_row(scores, low, padded(high), position - start, slope);
    }
    if (call->query_ids) {
        const int64_t own = load_int64(call->entry_query_ids + head * call->query_ids_head, i);
        documents_row(scores, low, high, own,
                      call->entry_key_ids + head * call->key_ids_head + 8 * start);
    }
}

/* Steps shape and reveal. */
static void reveal_block(const attention_call *call, int64_t segment, const row_block *block,
                         int64_t low, int64_t high, int64_t scratch)
{
    const int64_t start = segment * SEGMENT_KEYS, high_padded = padded(high);
    const bool by_arrays = call->mask_kind != NO_MASK || call->alibi || call->query_ids;
    if (block->alike && !by_arrays && !call->rescaled && high == high_padded &&
        row_word(call, scratch, BEGIN, block->first) - start <= low)
        return;
    for (int64_t r = 0; r < block->rows; r++) {
        const int64_t row = block->first + r, scores = score_row(call, scratch, r);
        const bool exact = row_word(call, scratch, EXACT, row) != 0;
        if (call->rescaled || !exact) shape_row(factors_of(call, exact), scores, low, high_padded);
        if (by_arrays)
            reveal_by_arrays(call, segment, block->task_row + row, scores, low, high);
        const int64_t begin = row_word(call, scratch, BEGIN, row) - start;
        const int64_t end = row_word(call, scratch, END, row) - start;
        if (begin > low || end < high_padded) reveal_row(scores, low, high_padded, begin, end);
    }
}

/* Keep a row's scores in the caller's array until `finish_weights` knows its maximum and sum. */
static void keep_scores(const attention_call *call, int64_t segment, const row_block *block,
                        int64_t r, int64_t low, int64_t high, int64_t scores)
{
    const int64_t index = block->entry * call->groups_of_heads * call->queries + block->task_row +
                          block->first + r;
    const int64_t target = call->weights + (index * call->keys + segment * SEGMENT_KEYS) * ITEM;
    for (int64_t column = low; column < high; column += LANES)
        store_first(target + column * ITEM, load(scores + column * ITEM), high - column);
}

/* Step normalise: scores become weights; maxima and sums go to the state words. */
static void normalise_block(const attention_call *call, int64_t segment, const row_block *block,
                            int64_t low, int64_t high, int64_t scratch)
{
    const int64_t high_padded = padded(high);
    const real factor = row_factor(call, true), other = row_factor(call, false);
    const real least = exp2_lowest(factor), other_least = exp2_lowest(other);
    for (int64_t r = 0; r < block->rows; r++) {
        const int64_t scores = score_row(call, scratch, r);
        store_real(segment_state(call, scratch, r), row_maximum(scores, low, high_padded));
    }
    /* In a loop of its own: the maxima of all rows are known, so that no row waits for its own. */
    for (int64_t r = 0; r < block->rows; r++) {
        const int64_t scores = score_row(call, scratch, r);
        const int64_t state = segment_state(call, scratch, r);
        /* They reach memory while exponentials keep the core busy. */
        if (call->weights) keep_scores(call, segment, block, r, low, high, scores);
        const bool exact = row_word(call, scratch, EXACT, block->first + r) != 0;
        const real row_max = load_real(state);
        real row_sum = 0;
        if (row_max == HIDDEN)
            TWIN(zero_columns, zero_pairs)(scores, low, high_padded);
        else
            row_sum = TWIN(normalise_row, normalise_pairs)(scores, low, high_padded, row_max,
                                                           exact ? factor : other,
                                                           exact ? least : other_least);
        store_real(state + 8, row_sum);
    }
}

/* Fuse again, from scores, the rows whose output holds a NaN: only visible keys take part. */
static void fuse_visible_block(const attention_call *call, const row_block *block, int64_t low,
                               int64_t high, value_rows values, int64_t result, int64_t scratch)
{
    const int64_t width = padded(call->value_features) * ITEM;
    for (int64_t r = 0; r < block->rows; r++) {
        const int64_t target = result + r * width;
        const real row_max = load_real(segment_state(call, scratch, r));
        if (row_max == HIDDEN || !any_nan_in_row(target, width)) continue;
        const bool exact = row_word(call, scratch, EXACT, block->first + r) != 0;
        TWIN(fuse_visible_row, fuse_visible_pairs)
        (score_row(call, scratch, r), low, high, row_max, row_factor(call, exact), values, width,
         target);
    }
}

/* Fold the segment's state of each row into the running state, or store it as a partial one.

   Where it is `fresh`, the output is the running one already. */
static void settle_block(const attention_call *call, int64_t segment, const row_block *block,
                         int64_t result, bool fresh, int64_t scratch)
{
    const int64_t width = padded(call->value_features) * ITEM;
    for (int64_t r = 0; r < block->rows; r++) {
        const int64_t row = block->first + r, output = result + r * width;
        const int64_t state = segment_state(call, scratch, r);
        const real segment_max = load_real(state), segment_sum = load_real(state + 8);
        if (fresh) {
            store_real(slot(call, scratch, RUNNING_MAX, row), segment_max);
            store_real(slot(call, scratch, RUNNING_SUM, row), segment_sum);
            continue;
        }
        if (call->split) {
            const int64_t place = partial_row(call, block->entry, block->task_row + row, segment);
            store_real(call->partial_max + place * ITEM, segment_max);
            store_real(call->partial_sum + place * ITEM, segment_sum);
            for (int64_t offset = 0; offset < width; offset += LANES * ITEM)
                store(call->partial_output + place * width + offset, load(output + offset));
            continue;
        }
        const row_state running = {slot(call, scratch, RUNNING_MAX, row),
                                   slot(call, scratch, RUNNING_SUM, row),
                                   scratch + call->at_running + row * width};
        const bool exact = row_word(call, scratch, EXACT, row) != 0;
        fold_row(running, segment_max, segment_sum, output, width, row_factor(call, exact));
    }
}

#endif

/* The fused attention kernel: pack, score, shape, reveal, normalise, fuse, finish.

   A task is a block of rows of one (batch, key head) entry, and its segments of 512 keys. The rows
   of an entry are all queries of all query heads that read its key head, so grouped heads read each
   key once. For each segment the rows go by in blocks of 24: their scores, then weights, stay in
   the caches nearest to the core. Where rows are too few to keep every core busy, a task is a block
   of rows and one segment, and `fold` folds the segments afterwards, in the same order and with the
   same bits. */

#ifndef FASTATTN_ATTENTION_H
#define FASTATTN_ATTENTION_H

#include "documents.h"
#include "finish.h"

/* Step pack for one query; returns whether the exact part of scale went onto it. */
static bool prepare_query(const attention_call *call, int64_t source, int64_t target)
{
    const int64_t width = padded(call->features);
    widen_row(call->query_code, source, call->query_feature, call->features, target);
    clear_row(target, call->features, width);
    if (call->metric == COSINE) normalise_query(target, width);
    if (call->query_first * call->query_second == 1.0) return true;
    /* Under a cap any score is final: sums on the way to it must not overflow. */
    const double most = call->softcap > 0.0 ? __builtin_sqrt(LARGEST) : __builtin_inf();
    return scale_row(target, width, call->query_first, call->query_second,
                     call->metric == EUCLIDEAN, most);
}

/* Which keys a row sees by position and length. */
typedef struct {
    int64_t begin, end;
} visible_range;

INLINE visible_range find_range(const attention_call *call, int64_t head, int64_t i)
{
    const int64_t position = i + load_int64(call->entry_offsets + head * call->offsets_head, 0);
    const int64_t length = load_int64(call->entry_lengths + head * call->lengths_head, 0);
    const int64_t begin = smaller_of(larger_of(0, position - call->left), call->keys);
    const int64_t end = smaller_of(smaller_of(length, position + call->right + 1), call->keys);
    return (visible_range){begin, larger_of(end, begin)};
}

/* Copy `width` elements of a query times `power`, whose inverse is `back`; returns whether no
   element lost a bit. */
INLINE bool copy_scaled(int64_t source, int64_t width, real power, real back, int64_t target)
{
    const vector wide_power = splat(power), wide_back = splat(back);
    integer_part differing = {0};
    for (int64_t e = 0; e < width; e += LANES) {
        const vector value = load(source + e * ITEM), scaled = times(value, wide_power);
        const vector again = times(scaled, wide_back);
        EACH_PART(p) differing |= again.part[p] != value.part[p];
        store(target + e * ITEM, scaled);
    }
    return !any_lane(differing);
}

/* Step pack for queries, and each row's visible key range; finds out whether rows are alike. */
static void prepare_rows(const attention_call *call, row_block *task, int64_t scratch)
{
    const int64_t width = padded(call->features), target = scratch + call->at_query;
    const int64_t words = slot(call, scratch, BEGIN, 0), step = call->task_rows;
    const int64_t query = call->query + operand_offset(call, QUERY_OPERAND, task->entry);
    const real power = (real)(call->query_first * call->query_second);
    const real back = (real)(1.0 / (call->query_first * call->query_second));
    /* Both in range: one factor does what `scale_row` does with two. */
    const bool plain = call->query_code == NATIVE_CODE && call->query_feature == ITEM &&
                       call->metric != COSINE && call->softcap == 0.0 && width == call->features &&
                       power * back == 1;
    int64_t i, head = place_of_row(call, task->task_row, &i);
    visible_range range, first = {0, 0};
    task->alike = true;
    for (int64_t r = 0; r < task->rows; r++) {
        const int64_t source = query + head * call->query_head + i * call->query_row;
        const int64_t own = target + r * width * ITEM;
        const bool exact = (plain && copy_scaled(source, width, power, back, own)) ||
                           prepare_query(call, source, own);
        TWIN((void)0, narrow_row(own, width));
        range = find_range(call, head, i);
        if (r == 0) first = range;
        task->alike &= exact && range.begin == first.begin && range.end == first.end;
        store_int64(words, BEGIN * step + r, range.begin);
        store_int64(words, END * step + r, range.end);
        store_int64(words, EXACT * step + r, exact);
        store_real(words + 8 * (RUNNING_MAX * step + r), HIDDEN);
        store_real(words + 8 * (RUNNING_SUM * step + r), 0);
        if (++i == call->queries) head++, i = 0;
    }
    /* The tile reads whole groups of six rows, or a single one. */
    if (task->rows == 1 && call->metric != EUCLIDEAN) return;
    const int64_t whole = (task->rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    for (int64_t e = task->rows * width; e < whole * width; e += LANES)
        store(target + e * ITEM, splat(0));
}

/* Mark a segment's partial states as empty, which this task fills only where a row sees a key. */
static void forget_partials(const attention_call *call, const row_block *task, int64_t segment,
                            int64_t scratch)
{
    const int64_t first = (task->entry - call->first_entry) * call->groups_of_heads * call->queries;
    for (int64_t r = 0; r < task->rows; r++) {
        const int64_t row = task->task_row + r;
        const int64_t place = partial_row(call, task->entry, row, segment);
        store_real(call->partial_max + place * ITEM, HIDDEN);
        store_int64(call->state_exact, first + row, row_word(call, scratch, EXACT, r));
    }
}

/* One block of rows over one segment, from scores to the folded state.

   `fresh`: the segment is the first of a task that folds its own. */
static void attend_block(const attention_call *call, value_rows values, int64_t segment,
                         const row_block *block, int64_t low, int64_t high, bool fresh,
                         int64_t scratch)
{
    const int64_t queries =
        scratch + call->at_query + block->first * padded(call->features) * ITEM;
    const int64_t width = padded(call->value_features) * ITEM;
    /* The first segment's output is the running one: nothing is left to copy. */
    const int64_t result = fresh ? scratch + call->at_running + block->first * width
                                 : scratch + call->at_block;
    score_block(call, segment, queries, block->rows, low, high, scratch);
    reveal_block(call, segment, block, low, high, scratch);
    normalise_block(call, segment, block, low, high, scratch);
    fuse_block(call, segment, block->rows, low, high, values, result, scratch);
    /* 0 times inf or NaN of a hidden key may have come in. It shows as a NaN, and only then the
       block is done again with its hidden keys left out. */
    if (any_nan_in_row(result, block->rows * width)) {
        score_block(call, segment, queries, block->rows, low, high, scratch);
        reveal_block(call, segment, block, low, high, scratch);
        if (values_wait(call))
            TWIN(stage_values, stage_pairs)
            (call, segment * SEGMENT_KEYS + low, high - low, 0, call->value_features,
             load_int64(values.chunks, 0) + low * values.stride, values.stride);
        fuse_visible_block(call, block, low, high, values, result, scratch);
    }
    TWIN((void)0, correct_sums(call, block->rows, result, scratch));
    settle_block(call, segment, block, result, fresh, scratch);
}

/* The rows of a task over one segment. */
static void attend_segment(const attention_call *call, int64_t segment, const row_block *task,
                           bool fresh, int64_t scratch)
{
    const bool narrowing = call->query_ids && !call->key_ids_head && !call->weights;
    int64_t low, high;
    for (int64_t panel = 0; panel < PANELS; panel++)
        store_int64(scratch + call->at_packed, panel, 0);
    if (narrowing) find_documents(call, segment, scratch);
    segment_span(call, segment, task, narrowing, scratch, &low, &high);
    if (low >= high) return;
    const value_rows values = {
        .chunks = scratch + call->at_chunks,
        .stride = TWIN(place_values, place_pairs)(call, segment, low, high, scratch)};
    for (int64_t first = 0; first < task->rows; first += BLOCK_ROWS) {
        const int64_t stop = smaller_of(task->rows, first + BLOCK_ROWS);
        const row_block block = {.entry = task->entry, .task_row = task->task_row,
                                 .first = first, .rows = stop - first, .alike = task->alike};
        if (block.rows < task->rows)
            segment_span(call, segment, &block, narrowing, scratch, &low, &high);
        if (low < high) attend_block(call, values, segment, &block, low, high, fresh, scratch);
    }
}

/* Step finish for all rows of a task that asks for nothing but its output. */
static void finish_outputs(const attention_call *call, const row_block *task, int64_t scratch)
{
    const int64_t width = padded(call->value_features) * ITEM, running = scratch + call->at_running;
    const int64_t maxima = slot(call, scratch, RUNNING_MAX, 0);
    const int64_t sums = slot(call, scratch, RUNNING_SUM, 0);
    const int64_t output = call->output + operand_offset(call, OUTPUT_OPERAND, task->entry);
    int64_t i, head = place_of_row(call, task->task_row, &i);
    for (int64_t r = 0; r < task->rows; r++) {
        write_output(call, load_real(maxima + 8 * r), load_real(sums + 8 * r), running + r * width,
                     output + head * call->output_head + i * call->output_row);
        if (++i == call->queries) head++, i = 0;
    }
}

/* Step finish for all rows of a task. */
static void finish_rows(const attention_call *call, const row_block *task, int64_t scratch)
{
    const int64_t width = padded(call->value_features) * ITEM;
    int64_t i, head = place_of_row(call, task->task_row, &i);
    for (int64_t r = 0; r < task->rows; r++) {
        const bool exact = row_word(call, scratch, EXACT, r) != 0;
        const row_state state = {slot(call, scratch, RUNNING_MAX, r),
                                 slot(call, scratch, RUNNING_SUM, r),
                                 scratch + call->at_running + r * width};
        finish_row(call, task->entry, head, i, state, exact, scratch + call->at_block);
        if (call->weights) {
            const int64_t index =
                task->entry * call->groups_of_heads * call->queries + task->task_row + r;
            finish_weights(call, call->weights + index * call->keys * ITEM,
                           row_word(call, scratch, BEGIN, r), row_word(call, scratch, END, r),
                           load_real(state.max), load_real(state.sum), row_factor(call, exact));
        }
        if (++i == call->queries) head++, i = 0;
    }
}

/* One task: whole rows or, with `split`, one segment of a block of rows. */
static void attend_task(attention_call *call, int64_t number, int64_t scratch)
{
    row_block task = {.first = 0};
    int64_t low, high;
    task.entry = place_of_task(call, number, &task.task_row);
    task.rows = smaller_of(call->task_rows,
                           call->groups_of_heads * call->queries - task.task_row);
    enter_entry(call, task.entry);
    prepare_rows(call, &task, scratch);
    int64_t first = 0, stop = call->stop_segment;
    if (call->split) {
        first = call->first_segment + number % call->segment_tasks;
        stop = first + 1;
        forget_partials(call, &task, first, scratch);
    }
    visible_span(call, &task, scratch, &low, &high);
    first = larger_of(first, low / SEGMENT_KEYS);
    stop = smaller_of(stop, (high + SEGMENT_KEYS - 1) / SEGMENT_KEYS);
    for (int64_t segment = first; segment < stop; segment++)
        attend_segment(call, segment, &task, segment == first && !call->split, scratch);
    if (call->split) return;
    const bool plain = !call->lse && !call->sinks && !call->weights;
    (plain ? finish_outputs : finish_rows)(call, &task, scratch);
}

/* Take bundles of consecutive tasks until none is left.

   Neighbours on one worker read memory in order, which is what prefetching relies on. */
static void attend(int64_t call_address, int64_t worker)
{
    const attention_call *const shared = (const attention_call *)call_address;
    const int64_t scratch = shared->scratch + worker * shared->scratch_stride;
    attention_call *const call = own_record(shared, scratch);
    int64_t sequence = -1, bundle;
    while ((bundle = atomic_next(call_address)) < shared->stop_task) {
        int64_t first = bundle * call->bundle;
        int64_t stop = smaller_of((bundle + 1) * call->bundle, call->tasks);
        if (call->ragged) {
            first = load_int64(call->borders, bundle);
            stop = load_int64(call->borders, bundle + 1);
        }
        for (int64_t task = first; task < stop; task++) {
            int64_t number = task;
            look_ahead(call, following_task(shared, task, stop), scratch);
            if (call->ragged) {
                const int64_t here = find_sequence(shared, sequence, task);
                if (here != sequence) enter_sequence(call, shared, here);
                sequence = here;
                number -= load_int64(shared->first_task, here);
            }
            attend_task(call, number, scratch);
        }
    }
}

/* Step finish for row `index` of a fold; its state stays as it is. */
static void finish_folded(const attention_call *call, int64_t index, row_state state, bool exact,
                          int64_t scratch)
{
    const int64_t rows = call->groups_of_heads * call->queries;
    const int64_t width = padded(call->value_features) * ITEM;
    const int64_t number = call->first_entry * rows + index, row = number % rows;
    const row_state own = {slot(call, scratch, RUNNING_MAX, 0), slot(call, scratch, RUNNING_SUM, 0),
                           scratch + call->at_running};
    store_real(own.max, load_real(state.max));
    store_real(own.sum, load_real(state.sum));
    for (int64_t offset = 0; offset < width; offset += LANES * ITEM)
        store(own.output + offset, load(state.output + offset));
    finish_row(call, number / rows, row / call->queries, row % call->queries, own, exact,
               scratch + call->at_block);
}

/* Fold the partial states of row `index` into its running one, and finish unless suspended. */
static void fold_index(const attention_call *call, int64_t index, int64_t scratch)
{
    const int64_t width = padded(call->value_features) * ITEM, segments = call->segment_tasks;
    const row_state state = {call->state_max + index * ITEM, call->state_sum + index * ITEM,
                             call->state_output + index * width};
    const bool exact = load_int64(call->state_exact, index) != 0;
    if (!call->resume) {
        store_real(state.max, HIDDEN);
        store_real(state.sum, 0);
    }
    for (int64_t place = index * segments; place < (index + 1) * segments; place++)
        fold_row(state, load_real(call->partial_max + place * ITEM),
                 load_real(call->partial_sum + place * ITEM), call->partial_output + place * width,
                 width, row_factor(call, exact));
    if (!call->suspend) finish_folded(call, index, state, exact, scratch);
}

/* Take blocks of rows until none is left; fold what `attend` left with `split`, and finish. */
static void fold(int64_t call_address, int64_t worker)
{
    const attention_call *const call = (const attention_call *)call_address;
    const int64_t scratch = call->scratch + worker * call->scratch_stride;
    const int64_t rows = call->entries * call->groups_of_heads * call->queries;
    int64_t block;
    while ((block = atomic_next(call_address)) < call->stop_task) {
        const int64_t stop = smaller_of((block + 1) * BLOCK_ROWS, rows);
        for (int64_t index = block * BLOCK_ROWS; index < stop; index++)
            fold_index(call, index, scratch);
    }
}

#endif

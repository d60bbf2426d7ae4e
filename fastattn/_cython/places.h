/* Where the rows of keys and values lie: in one array, in a table by index, or in pages.

   What the tiles cannot read in place is staged: copied row by row into scratch, widened and
   dequantised on the way. Everything after that sees plain rows. */

#ifndef FASTATTN_PLACES_H
#define FASTATTN_PLACES_H

#include "pack.h"

/* Rows of a table are fetched this many rows before their turn: nobody else can guess them. */
#define AHEAD_ROWS 8

/* The keys of an entry, or its values. */
typedef struct {
    int64_t code, row_stride, feature_stride;
    int64_t base, pages, scales;
} side;

static side keys_of(const attention_call *call)
{
    return (side){.code = call->key_code, .row_stride = call->key_row,
                  .feature_stride = call->key_feature, .base = call->entry_key,
                  .pages = call->entry_key_pages, .scales = call->entry_key_scales};
}

static side values_of(const attention_call *call)
{
    return (side){.code = call->value_code, .row_stride = call->value_row,
                  .feature_stride = call->value_feature, .base = call->entry_value,
                  .pages = call->entry_value_pages, .scales = call->entry_value_scales};
}

/* Row of key j in its array: j, or what the list of indices says, kept within the table. */
INLINE int64_t row_index(const attention_call *call, int64_t j)
{
    if (!call->indices) return j;
    const int64_t index = call->index_bytes == 4 ? load_int32(call->indices + 4 * j)
                                                 : load_int64(call->indices, j);
    return smaller_of(larger_of(index, 0), call->table_rows - 1);
}

/* Address of the row of key j. */
INLINE int64_t row_place(const attention_call *call, const side *of, int64_t j)
{
    if (of->pages) return load_int64(of->pages, j / PAGE_KEYS) + j % PAGE_KEYS * of->row_stride;
    return of->base + row_index(call, j) * of->row_stride;
}

/* Address of the scale of key j in an entry's table of addresses of scales; 0 without one. */
INLINE int64_t scale_place(int64_t scales, int64_t j)
{
    return scales ? load_int64(scales, j / PAGE_KEYS) + j % PAGE_KEYS * 4 : 0;
}

INLINE float load_scale(int64_t address)
{
    float scale;
    memcpy(&scale, (const void *)address, sizeof scale);
    return scale;
}

/* Copy rows first to first + count of the entry's keys or values into scratch.

   Of each row only the features from `feature` on, and nothing is written beyond them. */
static void stage_rows(const attention_call *call, const side *of, int64_t first, int64_t count,
                       int64_t feature, int64_t features, int64_t target, int64_t target_stride)
{
    const int64_t base_feature = feature * of->feature_stride;
    const int64_t ahead = call->indices ? AHEAD_ROWS : PAGE_KEYS;
    /* In a table of columns every feature has a line of its own: fetching is work like loading. */
    const int64_t near = of->feature_stride <= 64 ? features * of->feature_stride : 0;
    int64_t source = 0, later = 0, scale = 0;
    for (int64_t r = 0; r < count; r++) {
        const int64_t j = first + r, place = target + r * target_stride;
        if (r == 0 || call->indices || j % PAGE_KEYS == 0) {
            source = row_place(call, of, j) + base_feature;
            scale = scale_place(of->scales, j);
            later = source;
            if (j + ahead < call->keys) later = row_place(call, of, j + ahead) + base_feature;
        }
        for (int64_t line = 0; line < near; line += 64) prefetch(later + line);
        if (scale) {
            dequantise_row(source, features, (real)load_scale(scale), place);
            scale += 4;
        } else {
            widen_row(of->code, source, of->feature_stride, features, place);
        }
        source += of->row_stride;
        later += of->row_stride;
    }
}

/* Whether keys are widened and transposed in one step, sixteen at a time, instead of staged. */
static bool packed_small(const attention_call *call, const side *keys)
{
    const bool small = keys->code == HALF || keys->code == BFLOAT ||
                       (keys->code == INT8_CODE && keys->scales);
    return small && !call->indices && call->features * keys->feature_stride >= 16;
}

/* Pack keys first to first + 64 (fewer at the end) of the entry at hand into a panel. */
static void pack_entry_panel(const attention_call *call, int64_t first, int64_t target,
                             int64_t scratch)
{
    const int64_t stride = PANEL_KEYS * ITEM, keys = smaller_of(call->keys - first, PANEL_KEYS);
    side of = keys_of(call);
    int64_t source = 0, whole = 0, ahead = PREFETCH_KEYS * of.row_stride;
    if (!call->indices) {
        source = row_place(call, &of, first);
        if (of.pages) {
            /* Behind a page lies something else. */
            const int64_t last = smaller_of(first + PANEL_KEYS, call->keys - 1);
            ahead = row_place(call, &of, last / PANEL_KEYS * PANEL_KEYS) - source;
        }
    }
    if (call->key_staged) {
        if (packed_small(call, &of)) {
            whole = keys / LANES * LANES;
            pack_small(of.code, source, of.row_stride, whole, call->features,
                       scale_place(of.scales, first), target, stride, ahead);
        }
        source = scratch + call->at_stage;
        stage_rows(call, &of, first + whole, keys - whole, 0, call->features, source,
                   call->features * ITEM);
        of.code = NATIVE_CODE, of.row_stride = call->features * ITEM, of.feature_stride = ITEM;
        ahead = 0;
    }
    if (whole < keys)
        pack_ahead(of.code, source, of.feature_stride, of.row_stride, call->features, keys - whole,
                   target + whole * ITEM, stride, ahead);
    finish_panel(call->metric, call->key_factor, call->features, target);
}

/* Whether values that need staging are staged when they are fused, 128 keys at a time.

   Then they stay in the nearest cache. A task of several blocks of rows stages a segment once. */
INLINE bool values_wait(const attention_call *call)
{
    return !call->value_in_place && call->task_rows <= BLOCK_ROWS;
}

/* Copy some columns of value rows of the entry at hand into scratch, zeros beside the last. */
static void stage_values(const attention_call *call, int64_t first, int64_t count, int64_t column,
                         int64_t columns, int64_t target, int64_t stride)
{
    const int64_t features = smaller_of(columns, call->value_features - column);
    const bool plain = !call->indices && !call->entry_value_pages;
    const side of = values_of(call);
    if (plain && of.feature_stride != ITEM && of.row_stride == ITEM)
        pack_matrix(of.code, of.base + first * of.row_stride + column * of.feature_stride,
                    of.row_stride, of.feature_stride, count, features, target, stride);
    else
        stage_rows(call, &of, first, count, column, features, target, stride);
    if (features % LANES)
        for (int64_t row = 0; row < count; row++)
            clear_row(target + row * stride, features, features / LANES * LANES + LANES);
}

/* List where the values of a segment lie, staging columns low to high if they must be.

   Returns the distance between rows. The list names the first row of each 128 keys, and of the
   128 keys behind the segment. */
static int64_t place_values(const attention_call *call, int64_t segment, int64_t low, int64_t high,
                            int64_t scratch)
{
    const int64_t start = segment * SEGMENT_KEYS, chunks = scratch + call->at_chunks;
    if (call->value_in_place) {
        const side of = values_of(call);
        for (int64_t chunk = 0; chunk <= SEGMENT_KEYS / FUSE_KEYS; chunk++) {
            const int64_t j = smaller_of(start + chunk * FUSE_KEYS, call->keys - 1);
            store_int64(chunks, chunk, row_place(call, &of, j / FUSE_KEYS * FUSE_KEYS));
        }
        return of.row_stride;
    }
    const int64_t stride = padded(call->value_features) * ITEM, packed = scratch + call->at_values;
    for (int64_t chunk = 0; chunk <= SEGMENT_KEYS / FUSE_KEYS; chunk++)
        store_int64(chunks, chunk, packed + chunk * FUSE_KEYS * stride);
    if (!values_wait(call))
        stage_values(call, start + low, high - low, 0, call->value_features, packed + low * stride,
                     stride);
    return stride;
}

#endif

/* Attention in bfloat16 as it is: what the tiles read, in pairs.

   Twins of the steps that touch operands (see `TWIN`), for CPUs that multiply pairs of bfloat16
   faster than floats. Queries, keys and values stay bfloat16, two neighbours of the sum in one
   32-bit word: pairs of features for scores, pairs of keys for the output. */

#ifndef FASTATTN_PAIRED_H
#define FASTATTN_PAIRED_H

#include "bfloat16.h"
#include "places.h"

#if defined(IN_PAIRS)

/* Bytes of a bfloat16. */
#define HALF_ITEM ((int64_t)2)

/* Turn a padded row of floats, each a bfloat16, into one of bfloat16 where it begins. */
static void narrow_row(int64_t row, int64_t width)
{
    for (int64_t i = 0; i < width; i += LANES) store_narrow(row + i * HALF_ITEM, load(row + i * ITEM));
}

/* Copy rows of keys, pairs without gaps, with a zero behind an odd number of features. */
static void copy_keys(const attention_call *call, const side *of, int64_t first, int64_t count,
                      int64_t target)
{
    const int64_t width = words_of(call->features) * FACTORS;
    for (int64_t r = 0; r < count; r++) {
        const int64_t source = row_place(call, of, first + r);
        uint16_t *const row = (uint16_t *)(target + r * width * HALF_ITEM);
        if (of->feature_stride == HALF_ITEM && of->code == BFLOAT)
            memcpy(row, (const void *)source, (size_t)(call->features * HALF_ITEM));
        else
            for (int64_t i = 0; i < call->features; i++)
                row[i] = load_stored(of->code, source + i * of->feature_stride).uint16;
        if (width > call->features) row[call->features] = 0;
    }
}

/* As `pack_entry_panel`: a panel `[pairs][64 keys]`. */
static void pack_pairs(const attention_call *call, int64_t first, int64_t target, int64_t scratch)
{
    const int64_t keys = smaller_of(call->keys - first, PANEL_KEYS);
    const int64_t pairs = words_of(call->features);
    const side of = keys_of(call);
    const bool plain = of.feature_stride == HALF_ITEM && of.code == BFLOAT && !call->indices;
    int64_t source = scratch + call->at_stage, row_stride = pairs * ITEM, ahead = 0;
    if (plain && call->features % FACTORS == 0) {
        source = row_place(call, &of, first);
        row_stride = of.row_stride;
        ahead = PREFETCH_KEYS * row_stride;
        if (of.pages) {
            /* Behind a page lies something else. */
            const int64_t last = smaller_of(first + PANEL_KEYS, call->keys - 1);
            ahead = row_place(call, &of, last / PANEL_KEYS * PANEL_KEYS) - source;
        }
    } else {
        copy_keys(call, &of, first, keys, source);
    }
    /* A pair is moved as a float, with which nobody computes. */
    pack_ahead(NATIVE_CODE, source, ITEM, row_stride, pairs, keys, target, PANEL_KEYS * ITEM,
               ahead);
}

/* Pairs of two rows of values of any layout and byte order; see `store_interleaved`. */
static void interleave_any(const side *of, int64_t first, int64_t second, int64_t features,
                           int64_t target)
{
    uint16_t low[LANES] = {0}, high[LANES] = {0};
    for (int64_t i = 0; i < features; i++) {
        const int64_t offset = i * of->feature_stride;
        low[i] = load_stored(of->code, first + offset).uint16;
        if (second) high[i] = load_stored(of->code, second + offset).uint16;
    }
    store_interleaved(target, (int64_t)low, (int64_t)high, LANES);
}

/* As `stage_values`: pairs of keys, the first one even; `stride` is that of one key. */
static void stage_pairs(const attention_call *call, int64_t first, int64_t count, int64_t column,
                        int64_t columns, int64_t target, int64_t stride)
{
    const int64_t features = smaller_of(columns, call->value_features - column);
    const side of = values_of(call);
    const bool plain = of.feature_stride == HALF_ITEM && of.code == BFLOAT;
    for (int64_t r = 0; r < count; r += 2) {
        const int64_t offset = column * of.feature_stride, place = target + r * stride;
        const int64_t low = row_place(call, &of, first + r) + offset;
        const int64_t high = r + 1 < count ? row_place(call, &of, first + r + 1) + offset : 0;
        for (int64_t e = 0; e < features; e += LANES) {
            const int64_t number = smaller_of(features - e, LANES), skip = e * of.feature_stride;
            const int64_t a = low + skip, b = high ? high + skip : 0;
            if (plain)
                store_interleaved(place + e * ITEM, a, b, number);
            else
                interleave_any(&of, a, b, number, place + e * ITEM);
        }
    }
}

/* As `place_values`. */
static int64_t place_pairs(const attention_call *call, int64_t segment, int64_t low, int64_t high,
                           int64_t scratch)
{
    const int64_t stride = padded(call->value_features) * HALF_ITEM;
    const int64_t packed = scratch + call->at_values;
    for (int64_t chunk = 0; chunk <= SEGMENT_KEYS / FUSE_KEYS; chunk++)
        store_int64(scratch + call->at_chunks, chunk, packed + chunk * FUSE_KEYS * stride);
    if (!values_wait(call))
        stage_pairs(call, segment * SEGMENT_KEYS + low, high - low, 0, call->value_features,
                    packed + low * stride, stride);
    return stride;
}

#endif

#endif

/* Maximum and sum of exponentials of scores, keys on the lanes or rows on the lanes.

   Both ways add a row in the same order: sixteen virtual lanes over a segment of 512 keys, the
   written tree of lanes, segments from left to right. */

#ifndef FASTATTN_WEIGH_H
#define FASTATTN_WEIGH_H

#include "elementary.h"
#include "softmax_finish.h"

/* Where sums of exponentials go besides the result: the exponentials to `weights`, if not 0; each
   segment's own sum to `sums`, if not 0, one segment `sums_stride` bytes after the other. */
typedef struct {
    int64_t weights, sums, sums_stride;
} weighed;

/* Step maximum, keys on the lanes; a NaN may be passed over. */
static real find_max(int64_t place, int64_t keys)
{
    const int64_t whole = keys / LANES * LANES;
    vector first = splat(HIDDEN), second = first, third = first, fourth = first;
    int64_t k = 0;
    for (; k + 4 * LANES <= whole; k += 4 * LANES) {
        first = larger(load(place + k * ITEM), first);
        second = larger(load(place + (k + LANES) * ITEM), second);
        third = larger(load(place + (k + 2 * LANES) * ITEM), third);
        fourth = larger(load(place + (k + 3 * LANES) * ITEM), fourth);
    }
    for (; k < whole; k += LANES) first = larger(load(place + k * ITEM), first);
    if (whole < keys)
        second = larger(load_first(place + whole * ITEM, keys - whole, HIDDEN), second);
    return lane_max(larger(larger(first, second), larger(third, fourth)));
}

/* Lanes of the exponentials of keys begin to end, which are in one segment; `keep` is a constant.
   `ahead` bytes further lies what is read next. */
INLINE vector weigh_segment(const bool keep, int64_t place, int64_t begin, int64_t end,
                            real row_max, int64_t weights, int64_t ahead)
{
    const vector maximum = splat(row_max);
    const int64_t whole = end / LANES * LANES;
    vector lanes = splat(0);
    for (int64_t k = begin; k < whole; k += LANES) {
        const vector weight = exp_nonpositive(minus(load(place + k * ITEM), maximum));
        prefetch(place + k * ITEM + ahead);
        lanes = plus(lanes, weight);
        if (keep) store(weights + k * ITEM, weight);
    }
    if (whole < end) {
        const vector scores = load_first(place + whole * ITEM, end - whole, HIDDEN);
        const vector weight = exp_nonpositive(minus(scores, maximum));
        lanes = plus(lanes, weight);
        if (keep) store(weights + whole * ITEM, weight);
    }
    return lanes;
}

/* Step weigh, keys on the lanes: the sum of exponentials. `ahead` bytes further lies what is read
   next. */
static real weigh(int64_t place, int64_t keys, real row_max, weighed to, int64_t ahead)
{
    real total = 0;
    for (int64_t begin = 0; begin < keys; begin += SEGMENT_KEYS) {
        const int64_t end = smaller_of(begin + SEGMENT_KEYS, keys);
        const real sum = lane_sum(
            to.weights ? weigh_segment(true, place, begin, end, row_max, to.weights, ahead)
                       : weigh_segment(false, place, begin, end, row_max, 0, ahead));
        total += sum;
        if (to.sums) store_real(to.sums + begin / SEGMENT_KEYS * to.sums_stride, sum);
    }
    return total;
}

/* Exponentials of one segment, stored to `block`, and as many vectors of the row before finished:
   its weights at `old`, which no vector is behind where it is overwritten, go to `pending` as far as
   `late` says. */
INLINE vector weigh_beside(int64_t place, int64_t begin, int64_t end, vector maximum, int64_t block,
                           int64_t stats, int64_t old, int64_t pending, int64_t late, int64_t ahead)
{
    const int64_t both = larger_of(begin, smaller_of(end, late));
    const vector first = load(stats), second = load(stats + LANES * ITEM);
    vector lanes = splat(0);
    for (int64_t k = begin; k < both; k += LANES) {
        const vector weight = exp_nonpositive(minus(load(place + k * ITEM), maximum));
        prefetch(place + k * ITEM + ahead);
        stream(pending + k * ITEM, final(true, load(old + k * ITEM), first, second));
        store(block + k * ITEM, weight);
        lanes = plus(lanes, weight);
    }
    for (int64_t k = both; k < end; k += LANES) {
        const vector scores = load_first(place + k * ITEM, end - k, HIDDEN);
        const vector weight = exp_nonpositive(minus(scores, maximum));
        store(block + k * ITEM, weight);
        lanes = plus(lanes, weight);
    }
    return lanes;
}

/* Step weigh, and step finish of the row before, whose weights `block` still holds.

   That row's statistics stand at `stats`; it goes to `pending`, past the caches. Exponentials wait
   for arithmetic, stores for memory: side by side they take the time of the slower alone. */
static real weigh_and_finish(int64_t place, int64_t keys, real row_max, int64_t block,
                             int64_t stats, int64_t pending, int64_t ahead)
{
    const int64_t few = (-pending & 63) / ITEM, late = (keys - few) / LANES * LANES;
    const vector maximum = splat(row_max);
    if (few) finish_few(true, block, few, stats, pending);
    /* What comes next reads a vector of old weights at or behind where it writes a new one. */
    const int64_t old = block + few * ITEM, rest = keys - few - late;
    pending += few * ITEM;
    if (rest) finish_few(true, old + late * ITEM, rest, stats, pending + late * ITEM);
    real total = 0;
    for (int64_t begin = 0; begin < keys; begin += SEGMENT_KEYS) {
        const int64_t end = smaller_of(begin + SEGMENT_KEYS, keys);
        total += lane_sum(weigh_beside(place, begin, end, maximum, block, stats, old, pending,
                                       late, ahead));
    }
    return total;
}

/* Step maximum for sixteen rows on the lanes. */
static vector find_max_sideways(int64_t place, int64_t keys, int64_t stride)
{
    vector first = splat(HIDDEN), second = first;
    for (int64_t k = 0; k < keys - 1; k += 2) {
        first = larger(load(place + k * stride), first);
        second = larger(load(place + (k + 1) * stride), second);
    }
    if (keys % 2) first = larger(load(place + (keys - 1) * stride), first);
    return larger(first, second);
}

/* The virtual lanes of one segment of sixteen rows, keys begin to end, added into `lanes`. */
INLINE void weigh_lanes(const bool keep, int64_t place, int64_t begin, int64_t end, int64_t stride,
                        vector maximum, int64_t lanes)
{
    for (int64_t k = begin; k < end; k++) {
        const int64_t score = place + k * stride, lane = lanes + k % LANES * LANES * ITEM;
        const vector weight = exp_nonpositive(minus(load(score), maximum));
        store(lane, plus(load(lane), weight));
        if (keep) store(score, weight);
    }
}

/* Step weigh for `count` rows on the lanes; scratch `lanes` holds the virtual lanes of each.
   Exponentials that are kept (`to.weights` is not 0) take the scores' place. */
static vector weigh_sideways(int64_t place, int64_t keys, int64_t stride, vector maximum,
                             int64_t lanes, weighed to, int64_t count)
{
    const int64_t step = LANES * ITEM;
    vector total = splat(0);
    for (int64_t begin = 0; begin < keys; begin += SEGMENT_KEYS) {
        const int64_t end = smaller_of(begin + SEGMENT_KEYS, keys);
        for (int64_t lane = 0; lane < LANES; lane++) store(lanes + lane * step, splat(0));
        if (to.weights)
            weigh_lanes(true, place, begin, end, stride, maximum, lanes);
        else
            weigh_lanes(false, place, begin, end, stride, maximum, lanes);
        for (int64_t half = LANES / 2; half; half /= 2)
            for (int64_t lane = lanes; lane < lanes + half * step; lane += step)
                store(lane, plus(load(lane), load(lane + half * step)));
        const vector sum = load(lanes);
        total = plus(total, sum);
        if (to.sums) store_first(to.sums + begin / SEGMENT_KEYS * to.sums_stride, sum, count);
    }
    return total;
}

#endif

/* Scores of few rows against keys read where they lie, transposed in registers and never packed.

   A panel of packed keys pays where many rows read it. One row spends as long on storing and
   loading the panel as on its scores. Here four columns of sixteen keys become four vectors, meet
   the rows at once and are forgotten. Each score is the same chain of fused multiply-adds as that
   of the tile. */

#ifndef FASTATTN_UNPACKED_H
#define FASTATTN_UNPACKED_H

#include "places.h"

#define SCORE_ROW (SCORE_STRIDE * ITEM)

/* A task of so many rows reads its keys unpacked. */
#define UNPACKED_ROWS 4
/* How far ahead keys are asked for, in bytes: they then wait in the nearest cache. */
#define AHEAD_KEY_BYTES 8192

/* C = A times the transpose of B, of sixteen rows; strides in bytes.

   `depth` is a multiple of four and not 0. Each four of its steps ask for four cache lines,
   `line_stride` apart, from `fetch` on, to the nearest cache, and for those `beyond` further to the
   second: asked for in two steps they come a fifth faster from memory. Nothing need be there. */
typedef struct {
    int64_t a, a_stride;
    int64_t b, b_stride;
    int64_t c, c_stride;
    int64_t depth;
    int64_t fetch, beyond, line_stride, step_stride;
} sixteen_keys;

INLINE void score_sixteen(const int rows, const sixteen_keys *p)
{
    const int64_t width = p->depth * ITEM, line = p->line_stride, step = p->step_stride;
    const int64_t b = p->b, b_stride = p->b_stride, a = p->a, a_stride = p->a_stride;
    /* Lines are asked for in columns of sixteen: where four steps of the depth end, the next
       begins. */
    const int64_t turn = line == LINE ? step : LINE - 3 * step;
    int64_t near = p->fetch, far = near + p->beyond;
    vector sum[UNPACKED_ROWS];
    UNROLL for (int row = 0; row < rows; row++) sum[row] = splat(0);
    for (int64_t place = 0; place < width;) {
        vector column[4];
        UNROLL for (int i = 0; i < 4; i++)
        {
            prefetch_near(near + i * line);
            prefetch(far + i * line);
        }
        real_columns(b + place, b_stride, LANES - 1, column);
        UNROLL for (int i = 0; i < 4; i++)
            UNROLL for (int row = 0; row < rows; row++)
                sum[row] = fused(splat(load_real(a + row * a_stride + place + i * ITEM)),
                                 column[i], sum[row]);
        place += 4 * ITEM;
        const int64_t moved = place % (LANES * ITEM) ? step : turn;
        near += moved;
        far += moved;
    }
    UNROLL for (int row = 0; row < rows; row++) store(p->c + row * p->c_stride, sum[row]);
}

NOINLINE void score_sixteen_1(const sixteen_keys *p) { score_sixteen(1, p); }
NOINLINE void score_sixteen_4(const sixteen_keys *p) { score_sixteen(4, p); }

/* Whether `score_unpacked` can take a block: rows are few and keys lie as it needs them.

   Sixteen keys must exist from `low` on and in the last page, so that the last ones can be read
   together with some before them: what lies behind the last key belongs to somebody else. */
static bool reads_unpacked(const attention_call *call, int64_t segment, int64_t rows, int64_t low)
{
    if (rows > UNPACKED_ROWS || call->task_rows > UNPACKED_ROWS) return false;
    if (call->metric != DOT || call->key_factor != 1.0) return false;
    if (call->key_code != NATIVE_CODE || call->key_feature != ITEM) return false;
    if (call->indices || call->query_ids) return false;
    if (call->features <= 0 || call->features % 4) return false;
    if (segment * SEGMENT_KEYS + low + LANES > call->keys) return false;
    /* Keys of the last page, if this segment reaches into it. */
    const bool last = (segment + 1) * SEGMENT_KEYS > call->keys;
    const int64_t behind = last ? call->keys % PAGE_KEYS : 0;
    return !call->entry_key_pages || behind == 0 || behind >= LANES;
}

/* Steps pack and score in one, see `score_block`; columns behind the last key stay as they are.

   They are hidden before anybody reads them. */
static void score_unpacked(const attention_call *call, int64_t segment, int64_t queries,
                           int64_t rows, int64_t low, int64_t high, int64_t scratch)
{
    const side of = keys_of(call);
    const int64_t start = segment * SEGMENT_KEYS, width = call->features * ITEM;
    const int64_t ahead = larger_of(AHEAD_KEY_BYTES / width / LANES, 1) * LANES;
    const bool gaps = of.row_stride != width;
    sixteen_keys p = {.a = queries, .a_stride = padded(call->features) * ITEM,
                      .b_stride = of.row_stride, .c_stride = SCORE_ROW, .depth = call->features,
                      .line_stride = gaps ? of.row_stride : LINE,
                      .step_stride = gaps ? 4 * of.row_stride : 4 * LINE,
                      .beyond = ahead * of.row_stride};
    for (int64_t column = low; column < high; column += LANES) {
        const int64_t j = smaller_of(start + column, call->keys - LANES);
        p.b = row_place(call, &of, j);
        p.fetch = p.b + ahead * of.row_stride;
        if (of.pages) {
            /* Behind a page lies something else. */
            const int64_t later = smaller_of(j + ahead, call->keys - 1);
            const int64_t latest = smaller_of(j + 2 * ahead, call->keys - 1);
            p.fetch = row_place(call, &of, later / LANES * LANES);
            p.beyond = row_place(call, &of, latest / LANES * LANES) - p.fetch;
        }
        p.c = scratch + call->at_scores + (j - start) * ITEM;
        (rows == 1 ? score_sixteen_1 : score_sixteen_4)(&p);
    }
}

#endif

/* Tiles for few rows that read keys and values of a small storage type where they lie.

   Many rows share the work of staging: keys widened and transposed once, then read by all. With few
   rows that work is most of the time, and storing its result and loading it again the rest of it.
   Here sixteen keys are transposed in registers, as 32-bit words that hold two halves or four int8
   each, taken apart into features and multiplied at once; values are widened as they are loaded.
   Each element of a result is the same chain of fused multiply-adds as in `tile`.

   For float32 on machines whose registers hold sixteen of them; narrower ones have too few. */

#ifndef FASTATTN_DIRECT_H
#define FASTATTN_DIRECT_H

#include "transpose.h"

#define READS_DIRECTLY (REAL_BITS == 32 && PART_LANES == LANES)
#if READS_DIRECTLY

#define FEW_ROWS 4
/* Keys of a score tile, and vectors of a row of values that a fuse tile takes. */
#define GROUP_KEYS (2 * LANES)
#define STRIP_VECTORS 4
/* Bytes of a key that one step of a score tile takes, and the cache lines of its keys for that. */
#define STEP_BYTES 16
#define STEP_LINES (GROUP_KEYS * STEP_BYTES / 64)

/* Rows of a small storage type: 32 keys, or the values that a weight each goes with. */
typedef struct {
    int64_t source, stride, scales;
    /* Which cache lines to ask for meanwhile; of keys runs of lines, `jump` bytes between them. */
    int64_t fetch, run, jump;
} small_rows;

/* C = scores of `rows` queries at `a` and of two sixteens of keys, which have `size` bytes, a
   multiple of sixteen, of the storage type `kind`, and int8 a scale each. `kind` and `rows` are
   constants. For each sixteen bytes of a key eight cache lines are asked for. */
INLINE void score_group(const int kind, const int rows, const small_rows *keys, int64_t size,
                        int64_t a, int64_t a_stride, int64_t c, int64_t c_stride)
{
    const int in_a_word = kind == INT8_CODE ? 4 : 2;
    const int64_t stride = keys->stride, jump = keys->jump, run = keys->run;
    int64_t fetch = keys->fetch, left = run;
    vector sum[FEW_ROWS][2], scale[2] = {splat(1), splat(1)};
    UNROLL for (int row = 0; row < rows; row++) sum[row][0] = sum[row][1] = splat(0);
    if (kind == INT8_CODE)
        UNROLL for (int half = 0; half < 2; half++)
            scale[half] = load(keys->scales + half * LANES * ITEM);
    for (int64_t byte = 0; byte < size; byte += STEP_BYTES) {
        words column[2][4];
        UNROLL for (int half = 0; half < 2; half++)
            four_columns(keys->source + byte + half * LANES * stride, stride, LANES - 1,
                         column[half]);
        for (int line = 0; line < STEP_LINES; line++) {
            prefetch(fetch);
            fetch += 64;
            if (--left == 0) fetch += jump, left = run;
        }
        UNROLL for (int i = 0; i < 4 * in_a_word; i++)
        {
            UNROLL for (int half = 0; half < 2; half++)
            {
                vector feature = vector_of_floats(
                    elements(kind, column[half][i / in_a_word], i % in_a_word));
                if (kind == INT8_CODE) feature = times(feature, scale[half]);
                UNROLL for (int row = 0; row < rows; row++)
                {
                    const vector wide = splat(load_real(a + row * a_stride + i * ITEM));
                    sum[row][half] = fused(wide, feature, sum[row][half]);
                }
            }
        }
        a += 4 * in_a_word * ITEM;
    }
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int half = 0; half < 2; half++)
            store(c + row * c_stride + half * LANES * ITEM, sum[row][half]);
}

/* A strip of a row of values as vectors, in the order of `put_strip`. */
INLINE void load_strip(const int kind, int64_t address, vector scale, vector *value)
{
    UNROLL for (int i = 0; i < STRIP_VECTORS; i++)
    {
        if (kind == BFLOAT) {
            words pairs;
            memcpy(&pairs, (const void *)(address + i / 2 * 64), sizeof pairs);
            value[i] = vector_of_floats(elements(BFLOAT, pairs, i % 2));
        } else if (kind == HALF) {
            value[i] = load_widened(HALF, address + i * 2 * LANES);
        } else {
            value[i] = times(load_widened(INT8_CODE, address + i * LANES), scale);
        }
    }
}

/* Write a row of sums, or add them to what is there. Of bfloat16 the even columns stand in one
   vector, the odd ones in the next. */
INLINE void put_strip(const int kind, int64_t place, const bool accumulate, vector *sum)
{
    if (kind == BFLOAT) {
        UNROLL for (int i = 0; i < STRIP_VECTORS; i += 2)
        {
            const part even = sum[i].part[0], odd = sum[i + 1].part[0];
            sum[i].part[0] =
                MERGE(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            sum[i + 1].part[0] =
                MERGE(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
    }
    UNROLL for (int i = 0; i < STRIP_VECTORS; i++)
    {
        const int64_t here = place + i * LANES * ITEM;
        store(here, accumulate ? plus(load(here), sum[i]) : sum[i]);
    }
}

/* C (+)= weights times a strip of values over `depth` rows, int8 with a scale a row, as a product
   has it. `kind` and `rows` are constants. Each step asks for the lines of a row of values at
   `fetch`. */
INLINE void fuse_group(const int kind, const int rows, const small_rows *values, int64_t depth,
                       bool accumulate, int64_t a, int64_t a_stride, int64_t c, int64_t c_stride)
{
    const int bytes = STRIP_VECTORS * LANES * (kind == INT8_CODE ? 1 : 2);
    int64_t source = values->source, fetch = values->fetch;
    vector sum[FEW_ROWS][STRIP_VECTORS];
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int i = 0; i < STRIP_VECTORS; i++) sum[row][i] = splat(0);
    for (int64_t k = 0; k < depth; k++) {
        vector value[STRIP_VECTORS], scale = splat(1);
        if (kind == INT8_CODE) scale = splat(load_real(values->scales + k * ITEM));
        load_strip(kind, source, scale, value);
        UNROLL for (int line = 0; line < bytes; line += 64) prefetch(fetch + line);
        UNROLL for (int row = 0; row < rows; row++)
        {
            const vector wide = splat(load_real(a + row * a_stride + k * ITEM));
            UNROLL for (int i = 0; i < STRIP_VECTORS; i++)
                sum[row][i] = fused(wide, value[i], sum[row][i]);
        }
        source += values->stride;
        fetch += values->stride;
    }
    UNROLL for (int row = 0; row < rows; row++)
        put_strip(kind, c + row * c_stride, accumulate, sum[row]);
}

#define DIRECT_TILES(type, kind, rows)                                                           \
    NOINLINE void score_##type##_##rows(const small_rows *keys, int64_t size, int64_t a,         \
                                        int64_t a_stride, int64_t c, int64_t c_stride)           \
    {                                                                                            \
        score_group(kind, rows, keys, size, a, a_stride, c, c_stride);                           \
    }                                                                                            \
    NOINLINE void fuse_##type##_##rows(const small_rows *values, int64_t depth, bool accumulate, \
                                       int64_t a, int64_t a_stride, int64_t c, int64_t c_stride) \
    {                                                                                            \
        fuse_group(kind, rows, values, depth, accumulate, a, a_stride, c, c_stride);             \
    }
DIRECT_TILES(half, HALF, 1)
DIRECT_TILES(half, HALF, 4)
DIRECT_TILES(bfloat, BFLOAT, 1)
DIRECT_TILES(bfloat, BFLOAT, 4)
DIRECT_TILES(int8, INT8_CODE, 1)
DIRECT_TILES(int8, INT8_CODE, 4)

#endif

#endif

/* Tiles for few rows that read keys and values of a small storage type where they lie.

   Many rows share the work of staging: keys widened and transposed once, then read by all. With few
   rows that work is most of the time, and storing its result and loading it again the rest of it.
   Here sixteen keys are transposed in registers, as 32-bit words that hold two halves or four int8
   each, taken apart into features and multiplied at once; values are widened as they are loaded.
   Each element of a result is the same chain of fused multiply-adds as in `tile`.

   For float32 on machines whose registers hold sixteen of them; narrower ones have too few. */

#ifndef FASTATTN_DIRECT_H
#define FASTATTN_DIRECT_H

#include "bfloat16.h"
#include "transpose.h"

#define READS_DIRECTLY (REAL_BITS == 32 && PART_LANES == LANES)
#if READS_DIRECTLY

#define FEW_ROWS 4
/* Keys of a score tile, and vectors of a row of values that a fuse tile takes. */
#define GROUP_KEYS (2 * LANES)
#define STRIP_VECTORS 4
/* Bytes of a key that one step of a score tile takes, and the cache lines of its keys for that;
   and how many steps make a line. */
#define STEP_BYTES 16
#define STEP_LINES (GROUP_KEYS * STEP_BYTES / 64)
#define LINE_STEPS (64 / STEP_BYTES)

/* Rows of a small storage type: 32 keys, or the values that a weight each goes with. */
typedef struct {
    int64_t source, stride, scales;
    /* What to ask for meanwhile: from where on, and of values how far apart row by row. */
    int64_t fetch, fetch_stride;
} small_rows;

/* The elements number `place` of sixteen words as floats, int8 times its row's scale.

   `scale` is that over 2^24 unless `tiny`: an int8 on top of its word is so much larger, and needs
   no shift to spread its sign. */
INLINE vector feature_of_words(const int kind, const bool tiny, words column, const int place,
                               vector scale)
{
    if (kind != INT8_CODE) return vector_of_floats(elements(kind, column, place));
    if (tiny) return times(vector_of_floats(elements(kind, column, place)), scale);
    vector feature;
    EACH_WORD_PART(p)
    {
        const word_part word = column.part[p];
        /* By turns a shift, shuffles and a mask, which the machine has different units for. */
        const signed_part top = (signed_part)(place == 0   ? word << 24
                                              : place == 3 ? word & 0xFF000000
                                                           : byte_on_top(word, place));
        feature.part[p] = (part)__builtin_convertvector(top, float_part);
    }
    return times(feature, scale);
}

/* C = scores of `rows` queries at `a` and of two sixteens of keys, which have `size` bytes, a
   multiple of sixteen, of the storage type `kind`, and int8 a scale each. `kind`, `tiny` and `rows`
   are constants. Meanwhile the keys at `fetch` are asked for. */
INLINE void score_group(const int kind, const bool tiny, const int rows, const small_rows *keys,
                        int64_t size, int64_t a, int64_t a_stride, int64_t c, int64_t c_stride)
{
    /* How many times a word of each key is multiplied. */
    const int in_a_word = TWIN(kind == INT8_CODE ? 4 : 2, 1);
    const int64_t stride = keys->stride;
    row_addresses near = addresses_of(keys->source, stride);
    row_addresses far = addresses_of(keys->source + LANES * stride, stride);
    /* Keys without gaps are asked for line by line, in the order of memory: the machine then guesses
       what is next. Else a line of every fourth key, the next keys in the next steps. */
    const bool run = stride == size;
    const int64_t gap = run ? 64 : LINE_STEPS * stride, move = run ? STEP_LINES * 64 : stride;
    const int64_t back = run ? 0 : 64 - LINE_STEPS * stride;
    int64_t fetch = keys->fetch, line = 0;
    vector sum[FEW_ROWS][2], scale[2] = {splat(1), splat(1)};
    UNROLL for (int row = 0; row < rows; row++) sum[row][0] = sum[row][1] = splat(0);
    if (kind == INT8_CODE)
        UNROLL for (int half = 0; half < 2; half++)
        {
            scale[half] = load(keys->scales + half * LANES * ITEM);
            if (!tiny) scale[half] = times(scale[half], splat(0x1p-24f));
        }
    for (int64_t byte = 0; byte < size; byte += STEP_BYTES) {
        words column[2][4];
        columns_of_rows(near, near.quad[0], stride, LANES - 1, column[0]);
        columns_of_rows(far, far.quad[0], stride, LANES - 1, column[1]);
        UNROLL for (int i = 0; i < 4; i++) near.quad[i] += STEP_BYTES, far.quad[i] += STEP_BYTES;
        UNROLL for (int i = 0; i < STEP_LINES; i++) prefetch(fetch + i * gap);
        fetch += move;
        if (++line == LINE_STEPS) fetch += back, line = 0;
        UNROLL for (int i = 0; i < 4 * in_a_word; i++)
        {
            UNROLL for (int half = 0; half < 2; half++)
            {
                const vector feature =
                    TWIN(feature_of_words(kind, tiny, column[half][i / in_a_word], i % in_a_word,
                                          scale[half]),
                         pairs_of(column[half][i]));
                UNROLL for (int row = 0; row < rows; row++)
                {
                    const vector wide = TWIN(splat(load_real(a + row * a_stride + i * ITEM)),
                                             splat_pairs(a + row * a_stride + i * ITEM));
                    sum[row][half] = TWIN(fused, dots)(wide, feature, sum[row][half]);
                }
            }
        }
        a += 4 * in_a_word * ITEM;
    }
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int half = 0; half < 2; half++)
            store(c + row * c_stride + half * LANES * ITEM, sum[row][half]);
}

/* Whether a scale of 32 keys is so small, yet not 0, that a 2^24th of it may lose bits. */
INLINE bool tiny_scales(int64_t scales)
{
    integer_part found = {0};
    for (int half = 0; half < 2; half++) {
        const part scale = load(scales + half * LANES * ITEM).part[0];
        found |= (scale < splat_part(0x1p-102f)) & (scale != splat_part(0));
    }
    return any_lane(found);
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

#if defined(IN_PAIRS)

/* A strip of two rows of values as vectors of pairs, in the order of `put_strip`. */
INLINE void load_strip_of_pairs(int64_t first, int64_t second, vector *pairs)
{
    UNROLL for (int i = 0; i < STRIP_VECTORS; i += 2)
    {
        const word_part low = (word_part)load(first + i * LANES * 2).part[0];
        const word_part high = (word_part)load(second + i * LANES * 2).part[0];
        pairs[i].part[0] = (part)((low & 0xFFFF) | high << 16);
        pairs[i + 1].part[0] = (part)(low >> 16 | (high & 0xFFFF0000));
    }
}

/* C (+)= weights times a strip of values over `depth` rows, two rows and weights a step. */
INLINE void fuse_group(const int kind, const int rows, const small_rows *values, int64_t depth,
                       bool accumulate, int64_t a, int64_t a_stride, int64_t c, int64_t c_stride)
{
    static const uint16_t zeros[STRIP_VECTORS * LANES];
    int64_t source = values->source, fetch = values->fetch;
    vector sum[FEW_ROWS][STRIP_VECTORS];
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int i = 0; i < STRIP_VECTORS; i++) sum[row][i] = splat(0);
    for (int64_t k = 0; k < depth; k += FACTORS) {
        vector pairs[STRIP_VECTORS];
        const int64_t second = k + 1 < depth ? source + values->stride : (int64_t)zeros;
        load_strip_of_pairs(source, second, pairs);
        UNROLL for (int line = 0; line < STRIP_VECTORS * LANES * 2; line += 64)
        {
            prefetch(fetch + line);
            prefetch(fetch + values->fetch_stride + line);
        }
        UNROLL for (int row = 0; row < rows; row++)
        {
            const vector wide = splat_pairs(a + row * a_stride + k * ITEM / FACTORS);
            UNROLL for (int i = 0; i < STRIP_VECTORS; i++)
                sum[row][i] = dots(wide, pairs[i], sum[row][i]);
        }
        source += FACTORS * values->stride;
        fetch += FACTORS * values->fetch_stride;
    }
    UNROLL for (int row = 0; row < rows; row++)
        put_strip(kind, c + row * c_stride, accumulate, sum[row]);
}

#else

/* C (+)= weights times a strip of values over `depth` rows, int8 with a scale a row, as a product
   has it. `kind` and `rows` are constants. Each step asks for the lines of a strip at `fetch`. */
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
        fetch += values->fetch_stride;
    }
    UNROLL for (int row = 0; row < rows; row++)
        put_strip(kind, c + row * c_stride, accumulate, sum[row]);
}

#endif

#define DIRECT_TILES(type, kind, rows)                                                           \
    NOINLINE void score_##type##_##rows(const small_rows *keys, int64_t size, int64_t a,         \
                                        int64_t a_stride, int64_t c, int64_t c_stride)           \
    {                                                                                            \
        if (kind == INT8_CODE && tiny_scales(keys->scales))                                      \
            score_group(kind, true, rows, keys, size, a, a_stride, c, c_stride);                 \
        else                                                                                     \
            score_group(kind, false, rows, keys, size, a, a_stride, c, c_stride);                \
    }                                                                                            \
    NOINLINE void fuse_##type##_##rows(const small_rows *values, int64_t depth, bool accumulate, \
                                       int64_t a, int64_t a_stride, int64_t c, int64_t c_stride) \
    {                                                                                            \
        fuse_group(kind, rows, values, depth, accumulate, a, a_stride, c, c_stride);             \
    }
#if !defined(IN_PAIRS)
DIRECT_TILES(half, HALF, 1)
DIRECT_TILES(half, HALF, 4)
DIRECT_TILES(int8, INT8_CODE, 1)
DIRECT_TILES(int8, INT8_CODE, 4)
#endif
DIRECT_TILES(bfloat, BFLOAT, 1)
DIRECT_TILES(bfloat, BFLOAT, 4)

#endif

#endif

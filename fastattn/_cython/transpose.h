/* Transposing: columns of sixteen rows, written as vectors; of reals and small storage types. */

#ifndef FASTATTN_TRANSPOSE_H
#define FASTATTN_TRANSPOSE_H

#include "storage.h"

/* Sixteen words of 32 bits in native registers, and sixteen floats. */
#define WORD_LANES (PART_BYTES / 4)
#define WORD_PARTS (LANES / WORD_LANES)
typedef uint32_t word_part __attribute__((vector_size(PART_BYTES)));
typedef int32_t signed_part __attribute__((vector_size(PART_BYTES)));
typedef float float_part __attribute__((vector_size(PART_BYTES)));
typedef uint32_t word_quad __attribute__((vector_size(16), aligned(1), may_alias));
typedef struct {
    word_part part[WORD_PARTS];
} words;
typedef struct {
    float_part part[WORD_PARTS];
} sixteen_floats;

#define EACH_WORD_PART(p) UNROLL for (int p = 0; p < WORD_PARTS; p++)

/* Four rows hang on each of four addresses. A compiler that sees through it keeps sixteen distances
   from the first instead, which do not fit into the registers. */
typedef struct {
    int64_t quad[4];
} row_addresses;

INLINE row_addresses addresses_of(int64_t source, int64_t row_stride)
{
    row_addresses rows;
    UNROLL for (int i = 0; i < 4; i++)
    {
        rows.quad[i] = source + 4 * i * row_stride;
        __asm__("" : "+r"(rows.quad[i]));
    }
    return rows;
}

/* Sixteen bytes of row `r`, and of the rows `gap`, twice and thrice that further on where a
   register holds them. */
#define PLACE_OF_ROW(r)                                                   \
    (last_row == LANES - 1 ? rows.quad[(r) / 4] + (r) % 4 * row_stride    \
                           : source + smaller_of(r, last_row) * row_stride)
#define ROW(r) (*(const word_quad *)PLACE_OF_ROW(r))
#if PART_BYTES == 64
#define QUARTERS(r, gap)                                                                     \
    (word_part)_mm512_inserti64x4(                                                           \
        _mm512_castsi256_si512(_mm256_inserti128_si256(                                      \
            _mm256_castsi128_si256((__m128i)ROW(r)), (__m128i)ROW(r + gap), 1)),             \
        _mm256_inserti128_si256(_mm256_castsi128_si256((__m128i)ROW(r + 2 * gap)),           \
                                (__m128i)ROW(r + 3 * gap), 1),                               \
        1)
#define IN_QUADS(a, b, i, j, k, l)                                                           \
    MERGE(a, b, PLACE(0, i), PLACE(0, j), PLACE(0, k), PLACE(0, l), PLACE(1, i), PLACE(1, j), \
          PLACE(1, k), PLACE(1, l), PLACE(2, i), PLACE(2, j), PLACE(2, k), PLACE(2, l),      \
          PLACE(3, i), PLACE(3, j), PLACE(3, k), PLACE(3, l))
#elif PART_BYTES == 32
#define QUARTERS(r, gap)                                                                     \
    (word_part)_mm256_inserti128_si256(_mm256_castsi128_si256((__m128i)ROW(r)),              \
                                       (__m128i)ROW(r + gap), 1)
#define IN_QUADS(a, b, i, j, k, l)                                                           \
    MERGE(a, b, PLACE(0, i), PLACE(0, j), PLACE(0, k), PLACE(0, l), PLACE(1, i), PLACE(1, j), \
          PLACE(1, k), PLACE(1, l))
#else
#define QUARTERS(r, gap) (word_part) ROW(r)
#define IN_QUADS(a, b, i, j, k, l)                                                           \
    MERGE(a, b, PLACE(0, i), PLACE(0, j), PLACE(0, k), PLACE(0, l))
#endif
/* Where word i of quad q stands, 0 to 3 those of the first register, 4 to 7 of the second. */
#define PLACE(q, i) ((i) < 4 ? 4 * (q) + (i) : WORD_LANES + 4 * (q) + (i) - 4)
#if defined(__clang__) || __GNUC__ >= 12
#define MERGE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MERGE(a, b, ...) __builtin_shuffle(a, b, (word_part){__VA_ARGS__})
#endif

/* Words 0 and 1 of each quad of `a`, then of `b`; and words 2 and 3. */
#if PART_BYTES == 64 /* GCC would take a shuffle that needs a register of places */
#define LOW_PAIRS(a, b) (word_part) _mm512_unpacklo_epi64((__m512i)(a), (__m512i)(b))
#define HIGH_PAIRS(a, b) (word_part) _mm512_unpackhi_epi64((__m512i)(a), (__m512i)(b))
#else
#define LOW_PAIRS(a, b) IN_QUADS(a, b, 0, 1, 4, 5)
#define HIGH_PAIRS(a, b) IN_QUADS(a, b, 2, 3, 6, 7)
#endif

/* Four columns of words of sixteen rows, which begin at `source` and hang on `rows`; those above
   `last_row` are read as `last_row` again. */
INLINE void columns_of_rows(const row_addresses rows, int64_t source, int64_t row_stride,
                            const int64_t last_row, words *column)
{
    EACH_WORD_PART(p)
    {
        /* Each quarter of a register holds one row: what is left is a 4 x 4 transpose inside each
           quarter, which needs no shuffle across quarters. */
        const int64_t first = p * WORD_LANES;
        const word_part a = QUARTERS(first, 4), b = QUARTERS(first + 1, 4);
        const word_part c = QUARTERS(first + 2, 4), d = QUARTERS(first + 3, 4);
        const word_part ab0 = IN_QUADS(a, b, 0, 4, 1, 5), ab1 = IN_QUADS(a, b, 2, 6, 3, 7);
        const word_part cd0 = IN_QUADS(c, d, 0, 4, 1, 5), cd1 = IN_QUADS(c, d, 2, 6, 3, 7);
        column[0].part[p] = LOW_PAIRS(ab0, cd0);
        column[1].part[p] = HIGH_PAIRS(ab0, cd0);
        column[2].part[p] = LOW_PAIRS(ab1, cd1);
        column[3].part[p] = HIGH_PAIRS(ab1, cd1);
    }
}

/* Four columns of words of sixteen rows; rows above `last_row` are read as `last_row` again. */
INLINE void four_columns(int64_t source, int64_t row_stride, const int64_t last_row, words *column)
{
    columns_of_rows(addresses_of(source, row_stride), source, row_stride, last_row, column);
}

/* Elements 0 to 3 of sixteen rows, as four vectors: vector i holds column i. Rows above `last_row`
   do not exist and are read as `last_row` again. */
INLINE void real_columns(int64_t source, int64_t row_stride, const int64_t last_row,
                         vector *column)
{
#if REAL_BITS == 32
    words found[4];
    four_columns(source, row_stride, last_row, found);
    UNROLL for (int i = 0; i < 4; i++)
        EACH_PART(p) column[i].part[p] = (part)found[i].part[p];
#else
    UNROLL for (int i = 0; i < 4; i += 2)
    {
        const row_addresses rows = addresses_of(source, row_stride);
        EACH_PART(p)
        {
            /* Two columns of even rows, and of odd ones. */
            const word_part even = QUARTERS(p * PART_LANES, 2);
            const word_part odd = QUARTERS(p * PART_LANES + 1, 2);
            column[i].part[p] = (part)IN_QUADS(even, odd, 0, 1, 4, 5);
            column[i + 1].part[p] = (part)IN_QUADS(even, odd, 2, 3, 6, 7);
        }
        source += 16;
    }
#endif
}

/* Four columns of sixteen rows (see `real_columns`): column i goes to `target + i * target_stride`
   (bytes). */
INLINE void transpose_four(int64_t source, int64_t row_stride, const int64_t last_row,
                           int64_t target, int64_t target_stride)
{
    vector column[4];
    real_columns(source, row_stride, last_row, column);
    UNROLL for (int i = 0; i < 4; i++) store(target + i * target_stride, column[i]);
}

/* --- small storage types ------------------------------------------------------------------- */

typedef uint16_t half_part __attribute__((vector_size(PART_BYTES / 2)));

INLINE float_part floats_of_half_words(word_part low_halves)
{
    const half_part halves = __builtin_convertvector(low_halves, half_part);
#if defined(__F16C__) && PART_BYTES == 64
    return _mm512_cvtph_ps((__m256i)halves);
#elif defined(__F16C__)
    return _mm256_cvtph_ps((__m128i)halves);
#else
    float_part result;
    UNROLL for (int i = 0; i < WORD_LANES; i++) result[i] = float_of_half(halves[i]);
    return result;
#endif
}

/* The stored elements number `place` of sixteen words, as floats. */
INLINE sixteen_floats elements(const int kind, words column, const int place)
{
    sixteen_floats result;
    EACH_WORD_PART(p)
    {
        const word_part word = column.part[p];
        if (kind == INT8_CODE) {
            const signed_part byte = (signed_part)(word << (24 - 8 * place)) >> 24;
            result.part[p] = __builtin_convertvector(byte, float_part);
        } else if (kind == HALF) {
            result.part[p] = floats_of_half_words(word >> 16 * place & 0xFFFF);
        } else {
            result.part[p] = (float_part)(place ? word & 0xFFFF0000 : word << 16);
        }
    }
    return result;
}

#if PART_BYTES == 64
/* Byte `place` of each word as its highest, zeros below. */
INLINE word_part byte_on_top(word_part word, const int place)
{
    const int first = place * 0x1000000 + 0x808080, step = 0x4000000;
    return (word_part)_mm512_shuffle_epi8(
        (__m512i)word,
        _mm512_set4_epi32(first + 3 * step, first + 2 * step, first + step, first));
}
#endif

INLINE vector vector_of_floats(sixteen_floats a)
{
    vector result;
#if REAL_BITS == 32
    EACH_PART(p) result.part[p] = (part)a.part[p];
#else
    float numbers[LANES];
    memcpy(numbers, &a, sizeof numbers);
    EACH_PART(p)
    {
        floats narrow;
        memcpy(&narrow, numbers + p * PART_LANES, sizeof narrow);
        result.part[p] = part_of_floats(narrow);
    }
#endif
    return result;
}

/* Columns of sixteen rows of a small storage type (`kind` a constant), written as vectors.

   As `transpose_four`, but a step takes sixteen bytes of each row: eight halves, or sixteen int8,
   which are multiplied by their row's float32 at `scales`. */
INLINE void transpose_widened(const int kind, int64_t source, int64_t row_stride, int64_t scales,
                              int64_t target, int64_t target_stride)
{
    const int in_a_word = kind == INT8_CODE ? 4 : 2;
    words column[4];
    four_columns(source, row_stride, LANES - 1, column);
    vector scale = splat(1);
    if (kind == INT8_CODE) {
        sixteen_floats numbers;
        memcpy(&numbers, (const void *)scales, sizeof numbers);
        scale = vector_of_floats(numbers);
    }
    UNROLL for (int i = 0; i < 4; i++)
    {
        UNROLL for (int place = 0; place < in_a_word; place++)
        {
            vector result = vector_of_floats(elements(kind, column[i], place));
            if (kind == INT8_CODE) result = times(result, scale);
            store(target, result);
            target += target_stride;
        }
    }
}

#endif

/* The register tile: a few rows times a few registers of columns, accumulated in registers.

   Both products of attention are this tile. Scores are query rows times a panel of packed keys; the
   fused output is weight rows times value rows. Each element of the result is one chain of fused
   multiply-adds over the depth, in order: how many rows and columns a tile has changes no bit. */

#ifndef FASTATTN_TILE_H
#define FASTATTN_TILE_H

#include "bfloat16.h"
#include "memory.h"

/* C (+)= A times B over `depth`; strides in bytes.

   Requires A readable for rows x depth, B for depth x columns, C for rows x columns; C overlaps
   neither. The chain starts from zero; where `accumulate` is true it is added to C. The depth is
   counted in words of `FACTORS` factors. Each step of the depth also asks for the cache line at `fetch`, or for as many as a row of B has (`whole`),
   and moves on by `fetch_stride`; nothing need be there. */
typedef struct {
    int64_t a, a_stride;
    int64_t b, b_stride;
    int64_t c, c_stride;
    int64_t depth;
    bool accumulate, whole;
    int64_t fetch, fetch_stride;
} product;

/* Six rows of accumulators, the columns of one step and one broadcast must fit into the registers.
   A row alone waits for its own sums: more of them are under way at once. */
#define TILE_PARTS (REGISTERS == 32 ? 4 : 2)
#define MOST_ROWS 8
#define MOST_PARTS 8

/* Write the accumulators of a tile, or add them to what stands in C. They live in registers as long
   as every loop over them is unrolled. */
INLINE void put_sums(const int rows, const int parts, const product *p, int64_t offset,
                     part sum[MOST_ROWS][MOST_PARTS])
{
    const int64_t c = p->c + offset, c_stride = p->c_stride;
    if (p->accumulate) {
        UNROLL for (int row = 0; row < rows; row++)
            UNROLL for (int i = 0; i < parts; i++)
                sum[row][i] += *(part_in_memory *)(c + row * c_stride + i * PART_BYTES);
    }
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int i = 0; i < parts; i++)
            *(part_in_memory *)(c + row * c_stride + i * PART_BYTES) = sum[row][i];
}

/* The columns of a product from `offset` (bytes) on. */
INLINE void multiply(const int rows, const int parts, const bool whole, const product *p,
                     int64_t offset)
{
    const int bytes_asked = whole ? parts * PART_BYTES : 1;
    const int64_t depth = p->depth, b_stride = p->b_stride, fetch_stride = p->fetch_stride;
    part sum[MOST_ROWS][MOST_PARTS];
    int64_t a[MOST_ROWS], b = p->b + offset, fetch = p->fetch + (whole ? offset : 0);
    UNROLL for (int row = 0; row < rows; row++)
    {
        a[row] = p->a + row * p->a_stride;
        UNROLL for (int i = 0; i < parts; i++) sum[row][i] = (part){0};
    }
    for (int64_t k = 0; k < depth; k++) {
        part column[MOST_PARTS];
        UNROLL for (int i = 0; i < parts; i++)
            column[i] = *(const part_in_memory *)(b + i * PART_BYTES);
        UNROLL for (int line = 0; line < bytes_asked; line += 64)
            prefetch(fetch + line);
        UNROLL for (int row = 0; row < rows; row++)
        {
            const part wide =
                TWIN(splat_part(load_real(a[row] + k * ITEM)), splat_pair(a[row] + k * ITEM));
            UNROLL for (int i = 0; i < parts; i++)
                sum[row][i] = TWIN(fused_part, dot_pairs)(wide, column[i], sum[row][i]);
        }
        b += b_stride;
        fetch += fetch_stride;
    }
    put_sums(rows, parts, p, offset, sum);
}

/* C = sum over `depth` of ((A - B) factor) squared, negated; one register of columns. */
NOINLINE void distance_tile(const product *p, int64_t offset, real factor)
{
    const part wide_factor = splat_part(factor);
    part sum[MOST_ROWS][MOST_PARTS];
    UNROLL for (int row = 0; row < TILE_ROWS; row++) sum[row][0] = (part){0};
    for (int64_t k = 0; k < p->depth; k++) {
        const part column = *(const part_in_memory *)(p->b + offset + k * p->b_stride);
        UNROLL for (int row = 0; row < TILE_ROWS; row++)
        {
            const part wide = splat_part(load_real(p->a + row * p->a_stride + k * ITEM));
            const part difference = (wide - column) * wide_factor;
            sum[row][0] = fused_part(difference, difference, sum[row][0]);
        }
    }
    UNROLL for (int row = 0; row < TILE_ROWS; row++) sum[row][0] = (part){0} - sum[row][0];
    put_sums(TILE_ROWS, 1, p, offset, sum);
}

#define TILE(rows, parts, whole)                                                    \
    NOINLINE void tile_##rows##_##parts##_##whole(const product *p, int64_t offset) \
    {                                                                               \
        multiply(rows, parts, whole, p, offset);                                    \
    }
TILE(1, 8, 1)
TILE(1, 4, 1)
TILE(1, 1, 1)
#if REGISTERS == 32
TILE(4, 4, 0)
TILE(4, 4, 1)
TILE(6, 4, 0)
TILE(6, 4, 1)
TILE(6, 3, 0)
TILE(8, 2, 0)
TILE(8, 1, 0)
#endif
TILE(6, 2, 0)
TILE(6, 2, 1)
TILE(6, 1, 0)
TILE(6, 1, 1)

/* Six rows of distances, any number of vectors wide. */
static void distance_columns(real factor, int64_t vectors, const product *p)
{
    for (int64_t offset = 0; offset < vectors * LANES * ITEM; offset += PART_BYTES)
        distance_tile(p, offset, factor);
}

/* How many rows `product_columns` takes of `rows`: one, four, six or eight.

   Four where that leaves fewer idle, if it takes all columns four registers at a time. Eight where
   one or two registers of columns leave others and steps of the multipliers free, if that saves a
   tile. */
INLINE int rows_at_once(int64_t rows, int64_t vectors)
{
    const int64_t fours = (rows + 3) / 4 * 4, sixes = (rows + 5) / 6 * 6;
    if (rows == 1) return 1;
    if (TILE_PARTS < 4) return 6;
    if (vectors * PARTS <= 2 && (rows + 7) / 8 < (rows + 5) / 6) return 8;
    return fours < sixes && vectors * PARTS % 4 == 0 ? 4 : 6;
}

/* `rows` (see `rows_at_once`) of a product, any number of vectors wide, in the widest tiles. */
static void product_columns(int rows, int64_t vectors, const product *p)
{
    int64_t offset = 0, parts = vectors * PARTS;
    while (parts > 0) {
        int wide = 1;
        if (rows == 1) {
            wide = parts >= 8 ? 8 : parts >= 4 ? 4 : 1;
            (wide == 8 ? tile_1_8_1 : wide == 4 ? tile_1_4_1 : tile_1_1_1)(p, offset);
#if REGISTERS == 32
        } else if (rows == 4) {
            wide = 4;
            (p->whole ? tile_4_4_1 : tile_4_4_0)(p, offset);
        } else if (rows == 8) {
            wide = parts >= 2 ? 2 : 1;
            (parts >= 2 ? tile_8_2_0 : tile_8_1_0)(p, offset);
        } else if (parts >= 4) {
            wide = 4;
            (p->whole ? tile_6_4_1 : tile_6_4_0)(p, offset);
        } else if (parts == 3) {
            wide = 3;
            tile_6_3_0(p, offset);
#endif
        } else if (parts >= 2) {
            wide = 2;
            (p->whole ? tile_6_2_1 : tile_6_2_0)(p, offset);
        } else {
            (p->whole ? tile_6_1_1 : tile_6_1_0)(p, offset);
        }
        parts -= wide;
        offset += wide * PART_BYTES;
    }
}

#endif

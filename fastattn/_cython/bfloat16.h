/* Pairs of bfloat16, two in a 32-bit word, and the instruction that multiplies them as they are.

   A vector of words goes by as a vector of floats, with which nobody computes. */

#ifndef FASTATTN_BFLOAT16_H
#define FASTATTN_BFLOAT16_H

#include "transpose.h"

#if defined(IN_PAIRS)

/* `c` and the products of sixteen pairs: that of the second elements first, each rounded.

   Subnormal numbers count as 0: factors, products and sums. */
INLINE part dot_pairs(part a, part b, part c)
{
    return (part)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
}

/* The pair at an address, in all lanes. */
INLINE part splat_pair(int64_t address)
{
    part pair = (part)((natural_part){0} + (natural)load_int32(address));
#if defined(__clang__) /* which otherwise, in version 16, compiles for ever */
    __asm__("" : "+v"(pair));
#endif
    return pair;
}

/* The same of vectors. */
INLINE vector dots(vector a, vector b, vector c)
{
    return (vector){{dot_pairs(a.part[0], b.part[0], c.part[0])}};
}

INLINE vector splat_pairs(int64_t address) { return (vector){{splat_pair(address)}}; }
INLINE vector pairs_of(words a) { return (vector){{(part)a.part[0]}}; }

/* Write sixteen floats rounded to bfloat16; subnormal ones are 0 then. Returns what they became. */
INLINE vector store_narrow(int64_t address, vector a)
{
    const uint16s narrow = (uint16s)_mm512_cvtneps_pbh((__m512)a.part[0]);
    *(uint16s_in_memory *)address = narrow;
    return (vector){{(part)floats_of_bfloats(narrow)}};
}

/* Sixteen floats rounded to bfloat16; subnormal ones are 0 then. */
INLINE vector rounded(vector a)
{
    return (vector){{(part)floats_of_bfloats((uint16s)_mm512_cvtneps_pbh((__m512)a.part[0]))}};
}

/* Write pairs of an element of the row at `first` and one of the row at `second`, as many as
   `count` says, at most sixteen, and zeros behind them; zeros too for a row that is not there (0). */
INLINE void store_interleaved(int64_t target, int64_t first, int64_t second, int64_t count)
{
    const __mmask16 lanes = (__mmask16)((1u << count) - 1u);
    const __mmask16 others = second ? lanes : 0;
    const __m256i low = _mm256_maskz_loadu_epi16(lanes, (const void *)first);
    const __m256i high = _mm256_maskz_loadu_epi16(others, (const void *)second);
    const word_part pairs = (word_part)_mm512_cvtepu16_epi32(low) |
                            (word_part)_mm512_cvtepu16_epi32(high) << 16;
    *(part_in_memory *)target = (part)pairs;
}

#endif

#endif

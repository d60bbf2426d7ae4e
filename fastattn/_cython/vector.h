/* Vectors: sixteen virtual lanes of one float type, whatever the machine's width.

   A `vector` is as many native registers (`part`) as sixteen lanes need. A type wider than the
   machine's registers would live in memory under GCC; parts in a struct, walked by loops that are
   unrolled whole, live in registers. The code above and its bits are the same on every machine.

   The kernels are compiled once for each element type: REAL_BITS is 32 or 64, and `real` is that
   type everywhere. Arithmetic is never contracted: a fused multiply-add is written `fused`, and
   `a * b + c` is two roundings and stays two roundings.

   Addresses are plain int64, as in the record: arithmetic on them is defined whatever they mean,
   and a prefetch may point anywhere. */

#ifndef FASTATTN_VECTOR_H
#define FASTATTN_VECTOR_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))

#define LANES 16

/* Attention is compiled once more, for float32, with steps that multiply bfloat16 as it is: then a
   word that a tile reads, as wide as a real, holds two factors. */
#if defined(IN_PAIRS)
#define FACTORS 2
#define TWIN(plain, in_pairs) in_pairs
#else
#define FACTORS 1
#define TWIN(plain, in_pairs) plain
#endif

#if REAL_BITS == 32
typedef float real;
typedef int32_t integer; /* as wide as a real */
typedef uint32_t natural;
#define FUSED(a, b, c) __builtin_fmaf(a, b, c)
#define SQUARE_ROOT(a) __builtin_sqrtf(a)
#define ROUNDED_DOWN(a) __builtin_floorf(a)
#else
typedef double real;
typedef int64_t integer;
typedef uint64_t natural;
#define FUSED(a, b, c) __builtin_fma(a, b, c)
#define SQUARE_ROOT(a) __builtin_sqrt(a)
#define ROUNDED_DOWN(a) __builtin_floor(a)
#endif
#define ITEM ((int64_t)sizeof(real))

#if defined(__AVX512F__)
#define PART_BYTES 64
#define REGISTERS 32
#elif defined(__AVX__)
#define PART_BYTES 32
#define REGISTERS 16
#elif defined(__aarch64__)
#define PART_BYTES 16
#define REGISTERS 32
#else
#define PART_BYTES 16
#define REGISTERS 16
#endif
#define PART_LANES (PART_BYTES * 8 / REAL_BITS)
#define PARTS (LANES / PART_LANES)

typedef real part __attribute__((vector_size(PART_BYTES)));
typedef integer integer_part __attribute__((vector_size(PART_BYTES)));
typedef natural natural_part __attribute__((vector_size(PART_BYTES)));
/* The same in memory, at an address of any alignment, over objects of any type. */
typedef real part_in_memory __attribute__((vector_size(PART_BYTES), aligned(1), may_alias));

typedef struct {
    part part[PARTS];
} vector;

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define EACH_PART(p) UNROLL for (int p = 0; p < PARTS; p++)

#define LARGEST (REAL_BITS == 32 ? (double)__FLT_MAX__ : __DBL_MAX__) /* finite number */
#define HIDDEN ((real)-__builtin_inf())
#define NOT_A_NUMBER ((real)__builtin_nan(""))

INLINE int64_t smaller_of(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }
/* The next multiple of sixteen. */
INLINE int64_t padded(int64_t length) { return (length + LANES - 1) / LANES * LANES; }

/* How many words of a tile hold so many factors. */
INLINE int64_t words_of(int64_t factors) { return (factors + FACTORS - 1) / FACTORS; }

/* --- parts --------------------------------------------------------------------------------- */

INLINE part splat_part(real scalar) { return scalar - (part){0}; }

/* `a * b + c` with one rounding. */
INLINE part fused_part(part a, part b, part c)
{
#if defined(__AVX512F__) && REAL_BITS == 32
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX512F__)
    return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__) && REAL_BITS == 32
    return _mm256_fmadd_ps(a, b, c);
#elif defined(__FMA__)
    return _mm256_fmadd_pd(a, b, c);
#elif defined(__aarch64__) && REAL_BITS == 32
    return (part)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#elif defined(__aarch64__)
    return (part)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
    part result;
    for (int lane = 0; lane < PART_LANES; lane++) result[lane] = FUSED(a[lane], b[lane], c[lane]);
    return result;
#endif
}

/* Per lane `a` where the mask is set (all bits of a lane alike), else `b`. */
INLINE part select_part(integer_part mask, part a, part b)
{
    return (part)((mask & (integer_part)a) | (~mask & (integer_part)b));
}

/* Per lane `if_above` where `a > b`, else `otherwise`; GCC 12 finds no blend it is not told of. */
INLINE part select_above_part(part a, part b, part if_above, part otherwise)
{
#if defined(__AVX512F__) && REAL_BITS == 32
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OS), otherwise, if_above);
#elif defined(__AVX512F__)
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_GT_OS), otherwise, if_above);
#else
    return select_part(a > b, if_above, otherwise);
#endif
}

/* Per lane the larger of two; where `b` is NaN, `b`. This is the machine's own maximum on x86. */
INLINE part larger_part(part a, part b)
{
#if defined(__AVX512F__) && REAL_BITS == 32
    return _mm512_max_ps(a, b);
#elif defined(__AVX512F__)
    return _mm512_max_pd(a, b);
#elif defined(__AVX__) && REAL_BITS == 32
    return _mm256_max_ps(a, b);
#elif defined(__AVX__)
    return _mm256_max_pd(a, b);
#else
    return select_part(a > b, a, b);
#endif
}

/* Per lane the correctly rounded square root. */
INLINE part square_root_part(part a)
{
#if defined(__AVX512F__) && REAL_BITS == 32
    return _mm512_sqrt_ps(a);
#elif defined(__AVX512F__)
    return _mm512_sqrt_pd(a);
#elif defined(__AVX__) && REAL_BITS == 32
    return _mm256_sqrt_ps(a);
#elif defined(__AVX__)
    return _mm256_sqrt_pd(a);
#else
    part result;
    for (int lane = 0; lane < PART_LANES; lane++) result[lane] = SQUARE_ROOT(a[lane]);
    return result;
#endif
}

/* Per lane the largest whole number that is not above. */
INLINE part rounded_down_part(part a)
{
#if defined(__AVX512F__) && REAL_BITS == 32
    return _mm512_floor_ps(a);
#elif defined(__AVX512F__)
    return _mm512_floor_pd(a);
#elif defined(__AVX__) && REAL_BITS == 32
    return _mm256_floor_ps(a);
#elif defined(__AVX__)
    return _mm256_floor_pd(a);
#else
    part result;
    for (int lane = 0; lane < PART_LANES; lane++) result[lane] = ROUNDED_DOWN(a[lane]);
    return result;
#endif
}

/* --- arithmetic ---------------------------------------------------------------------------- */

INLINE vector splat(real scalar)
{
    vector result;
    EACH_PART(p) result.part[p] = splat_part(scalar);
    return result;
}

INLINE vector plus(vector a, vector b)
{
    EACH_PART(p) a.part[p] += b.part[p];
    return a;
}

INLINE vector minus(vector a, vector b)
{
    EACH_PART(p) a.part[p] -= b.part[p];
    return a;
}

INLINE vector times(vector a, vector b)
{
    EACH_PART(p) a.part[p] *= b.part[p];
    return a;
}

INLINE vector over(vector a, vector b)
{
    EACH_PART(p) a.part[p] /= b.part[p];
    return a;
}

/* `a * b + c` with one rounding. */
INLINE vector fused(vector a, vector b, vector c)
{
    EACH_PART(p) a.part[p] = fused_part(a.part[p], b.part[p], c.part[p]);
    return a;
}

/* Per lane the larger of two; NaN in `b` goes through, NaN in `a` does not. */
INLINE vector larger(vector a, vector b)
{
    EACH_PART(p) a.part[p] = larger_part(a.part[p], b.part[p]);
    return a;
}

/* Per lane the value without its sign. */
INLINE vector absolute(vector a)
{
    const integer_part no_sign = (integer_part)((natural_part){0} + (~(natural)0 >> 1));
    EACH_PART(p) a.part[p] = (part)((integer_part)a.part[p] & no_sign);
    return a;
}

INLINE vector square_root(vector a)
{
    EACH_PART(p) a.part[p] = square_root_part(a.part[p]);
    return a;
}

/* Per lane the largest whole number that is not above. */
INLINE vector rounded_down(vector a)
{
    EACH_PART(p) a.part[p] = rounded_down_part(a.part[p]);
    return a;
}

/* Per lane: `if_above` where `a > b`, else `otherwise`. */
INLINE vector select_above(vector a, vector b, vector if_above, vector otherwise)
{
    EACH_PART(p)
        a.part[p] =
            select_above_part(a.part[p], b.part[p], if_above.part[p], otherwise.part[p]);
    return a;
}

/* Per lane: `a` where that is a number, else `other`. */
INLINE vector unless_nan(vector a, vector other)
{
    EACH_PART(p) a.part[p] = select_part(a.part[p] == a.part[p], a.part[p], other.part[p]);
    return a;
}

/* Per lane: `if_equal` where `a == probe` (a scalar), else `otherwise`. */
INLINE vector select_equal(vector a, real probe, vector if_equal, vector otherwise)
{
    const part wide = splat_part(probe);
    EACH_PART(p) a.part[p] = select_part(a.part[p] == wide, if_equal.part[p], otherwise.part[p]);
    return a;
}

/* --- lanes --------------------------------------------------------------------------------- */

/* The numbers 0 to 15. */
INLINE vector lane_floats(void)
{
    vector result;
    EACH_PART(p)
    {
        UNROLL for (int lane = 0; lane < PART_LANES; lane++)
            result.part[p][lane] = (real)(p * PART_LANES + lane);
    }
    return result;
}

/* Lanes begin to end (half-open, any integers) of `a`, elsewhere the scalar `other`. */
INLINE vector keep_lanes(vector a, int64_t begin, int64_t end, real other)
{
    const vector numbers = lane_floats();
    const part first = splat_part((real)smaller_of(larger_of(begin, 0), LANES));
    const part stop = splat_part((real)smaller_of(larger_of(end, 0), LANES));
    EACH_PART(p)
    {
        const integer_part inside = (numbers.part[p] >= first) & (numbers.part[p] < stop);
        a.part[p] = select_part(inside, a.part[p], splat_part(other));
    }
    return a;
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, ...) __builtin_shufflevector(a, a, __VA_ARGS__)
#else
#define SHUFFLE(a, ...) __builtin_shuffle(a, (integer_part){__VA_ARGS__})
#endif

/* The written-out lane tree: lane i with lane i + 8, then + 4, + 2, + 1, by
   `total = STEP(total, lanes further on)`. Only lane 0 of the result means something. */
#if PART_LANES == 16
#define TREE_IN_PART(t, STEP)                                                            \
    t = STEP(t, SHUFFLE(t, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));       \
    t = STEP(t, SHUFFLE(t, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));       \
    t = STEP(t, SHUFFLE(t, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));       \
    t = STEP(t, SHUFFLE(t, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14))
#elif PART_LANES == 8
#define TREE_IN_PART(t, STEP)                            \
    t = STEP(t, SHUFFLE(t, 4, 5, 6, 7, 0, 1, 2, 3));     \
    t = STEP(t, SHUFFLE(t, 2, 3, 0, 1, 6, 7, 4, 5));     \
    t = STEP(t, SHUFFLE(t, 1, 0, 3, 2, 5, 4, 7, 6))
#elif PART_LANES == 4
#define TREE_IN_PART(t, STEP)                \
    t = STEP(t, SHUFFLE(t, 2, 3, 0, 1));     \
    t = STEP(t, SHUFFLE(t, 1, 0, 3, 2))
#else
#define TREE_IN_PART(t, STEP) t = STEP(t, SHUFFLE(t, 1, 0))
#endif
#define TREE(a, STEP)                                                       \
    UNROLL for (int half = PARTS / 2; half >= 1; half /= 2)                 \
        UNROLL for (int p = 0; p < half; p++)                               \
            (a).part[p] = STEP((a).part[p], (a).part[p + half]);            \
    TREE_IN_PART((a).part[0], STEP)
#define SUM_STEP(low, high) ((low) + (high))

/* Sum of the lanes by the written-out tree. */
INLINE real lane_sum(vector a)
{
    TREE(a, SUM_STEP);
    return a.part[0][0];
}

/* Largest lane; a NaN may be passed over. */
INLINE real lane_max(vector a)
{
    TREE(a, larger_part);
    return a.part[0][0];
}

/* Lane 0, NaN or not. */
INLINE real first_lane(vector a) { return a.part[0][0]; }

INLINE bool any_lane(integer_part mask)
{
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX__)
    return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
    integer any = 0;
    for (int lane = 0; lane < PART_LANES; lane++) any |= mask[lane];
    return any != 0;
#endif
}

/* Whether a lane is NaN. */
INLINE bool any_nan(vector a)
{
    integer_part found = {0};
    EACH_PART(p) found |= a.part[p] != a.part[p];
    return any_lane(found);
}

/* Whether all lanes of two vectors are equal (NaN equals nothing). */
INLINE bool same_lanes(vector a, vector b)
{
    integer_part differing = {0};
    EACH_PART(p) differing |= ~(a.part[p] == b.part[p]);
    return !any_lane(differing);
}

#endif

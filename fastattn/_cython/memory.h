/* Loads and stores of vectors and scalars at any alignment; words and prefetches. */

#ifndef FASTATTN_MEMORY_H
#define FASTATTN_MEMORY_H

#include "vector.h"

typedef real real_in_memory __attribute__((aligned(1), may_alias));
typedef int64_t int64_in_memory __attribute__((may_alias));
typedef int32_t int32_in_memory __attribute__((may_alias));

/* Bytes of a cache line. */
#define LINE 64

/* --- scalars ------------------------------------------------------------------------------- */

INLINE real load_real(int64_t address) { return *(const real_in_memory *)address; }
INLINE void store_real(int64_t address, real number) { *(real_in_memory *)address = number; }

/* The int64 number `index` of those that begin at an address. */
INLINE int64_t load_int64(int64_t address, int64_t index)
{
    return ((const int64_in_memory *)address)[index];
}

INLINE void store_int64(int64_t address, int64_t index, int64_t number)
{
    ((int64_in_memory *)address)[index] = number;
}

INLINE int64_t load_int32(int64_t address) { return *(const int32_in_memory *)address; }

/* The number at an address, to which one is added as one step for all threads. Relaxed is enough:
   tasks share no data, and the start and the end of a call order everything else. */
INLINE int64_t atomic_next(int64_t address)
{
    return __atomic_fetch_add((int64_t *)address, 1, __ATOMIC_RELAXED);
}

/* Ask for the cache line at an address, into the second-level cache; never faults. */
INLINE void prefetch(int64_t address) { __builtin_prefetch((const void *)address, 0, 2); }
/* The same, into the nearest cache. */
INLINE void prefetch_near(int64_t address) { __builtin_prefetch((const void *)address, 0, 3); }

/* --- vectors ------------------------------------------------------------------------------- */

/* Sixteen consecutive elements from an address of any alignment. */
INLINE vector load(int64_t address)
{
    vector result;
    EACH_PART(p) result.part[p] = *(const part_in_memory *)(address + p * PART_BYTES);
    return result;
}

/* Write sixteen elements to an address of any alignment. */
INLINE void store(int64_t address, vector a)
{
    EACH_PART(p) *(part_in_memory *)(address + p * PART_BYTES) = a.part[p];
}

/* Which lanes of part `p` are below `count`, which is 0 to 16, as the machine's loads and stores of
   some lanes want it; they touch no other. */
#if defined(__AVX512F__)
#if REAL_BITS == 32
#define FIRST_OF_PART(count, p) ((__mmask16)((1u << (count)) - 1u))
#define LOAD_FIRST(other, lanes, place) _mm512_mask_loadu_ps(other, lanes, place)
#define STORE_FIRST(place, lanes, values) _mm512_mask_storeu_ps(place, lanes, values)
#else
#define FIRST_OF_PART(count, p) ((__mmask8)(((1u << (count)) - 1u) >> ((p) * PART_LANES)))
#define LOAD_FIRST(other, lanes, place) _mm512_mask_loadu_pd(other, lanes, place)
#define STORE_FIRST(place, lanes, values) _mm512_mask_storeu_pd(place, lanes, values)
#endif
#elif defined(__AVX__)
INLINE integer_part first_of_part(int64_t count, int p)
{
    integer_part numbers;
    UNROLL for (int lane = 0; lane < PART_LANES; lane++) numbers[lane] = p * PART_LANES + lane;
    return numbers < (integer)count;
}

#define FIRST_OF_PART(count, p) first_of_part(count, p)
#if REAL_BITS == 32
#define LOAD_FIRST(other, lanes, place) \
    select_part(lanes, _mm256_maskload_ps((const float *)(place), (__m256i)(lanes)), other)
#define STORE_FIRST(place, lanes, values) \
    _mm256_maskstore_ps((float *)(place), (__m256i)(lanes), values)
#else
#define LOAD_FIRST(other, lanes, place) \
    select_part(lanes, _mm256_maskload_pd((const double *)(place), (__m256i)(lanes)), other)
#define STORE_FIRST(place, lanes, values) \
    _mm256_maskstore_pd((double *)(place), (__m256i)(lanes), values)
#endif
#endif

/* Elements 0 to count, `other` in the lanes from there; reads nothing beyond. */
INLINE vector load_first(int64_t address, int64_t count, real other)
{
    vector result = splat(other);
#if defined(LOAD_FIRST)
    count = smaller_of(count, LANES);
    EACH_PART(p)
        result.part[p] = LOAD_FIRST(result.part[p], FIRST_OF_PART(count, p),
                                    (const void *)(address + p * PART_BYTES));
#else
    if (count >= LANES) return load(address);
    memcpy(&result, (const void *)address, (size_t)(count * ITEM));
#endif
    return result;
}

/* Write lanes 0 to count, and nothing beyond. */
INLINE void store_first(int64_t address, vector a, int64_t count)
{
    if (count >= LANES) {
        store(address, a);
        return;
    }
#if defined(STORE_FIRST)
    EACH_PART(p)
        STORE_FIRST((void *)(address + p * PART_BYTES), FIRST_OF_PART(count, p), a.part[p]);
#else
    memcpy((void *)address, &a, (size_t)(count * ITEM));
#endif
}

/* Write sixteen elements past the caches; the address is a multiple of 64.

   Such stores are ordered by the next atomic step, which every worker takes before it ends. */
INLINE void stream(int64_t address, vector a)
{
    EACH_PART(p)
    {
        const int64_t place = address + p * PART_BYTES;
#if defined(__AVX512F__) && REAL_BITS == 32
        _mm512_stream_ps((void *)place, a.part[p]);
#elif defined(__AVX512F__)
        _mm512_stream_pd((void *)place, a.part[p]);
#elif defined(__AVX__) && REAL_BITS == 32
        _mm256_stream_ps((void *)place, a.part[p]);
#elif defined(__AVX__)
        _mm256_stream_pd((void *)place, a.part[p]);
#else
        *(part_in_memory *)place = a.part[p];
#endif
    }
}

#endif

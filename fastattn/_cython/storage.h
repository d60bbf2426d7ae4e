/* Storage types: elements of any real type and byte order; vectors of halves and int8 widened when
   loaded, rounded when stored.

   Arithmetic knows float32 and float64 alone. A half is widened exactly; a result is rounded to one
   once, to nearest with ties to even. */

#ifndef FASTATTN_STORAGE_H
#define FASTATTN_STORAGE_H

#include "memory.h"
#include "words.h"

#if REAL_BITS == 32
#define NATIVE_CODE FLOAT32_CODE
#else
#define NATIVE_CODE FLOAT64_CODE
#endif
#define HALF FLOAT16_CODE
#define BFLOAT BFLOAT16_CODE

/* --- one element --------------------------------------------------------------------------- */

INLINE float float_of_bits(uint32_t bits)
{
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

INLINE uint32_t bits_of_float(float number)
{
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

/* A float16, given by its bits, as a float; NaN becomes quiet. */
INLINE float float_of_half(uint16_t half)
{
#if defined(__F16C__)
    return _cvtsh_ss(half);
#else
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7FFF;
    if (magnitude >= 0x7C00)
        return float_of_bits(sign | 0x7F800000 | (magnitude & 0x3FF) << 13 |
                             (magnitude > 0x7C00 ? 0x400000 : 0));
    /* A float whose exponent is too small by 112; multiplying mends it, subnormals included. */
    return float_of_bits(sign | bits_of_float(float_of_bits(magnitude << 13) * 0x1p112f));
#endif
}

/* A float rounded to float16, as bits; NaN becomes quiet. */
INLINE uint16_t half_of_float(float number)
{
#if defined(__F16C__)
    return _cvtss_sh(number, _MM_FROUND_TO_NEAREST_INT);
#else
    const uint32_t bits = bits_of_float(number), sign = bits >> 16 & 0x8000;
    const uint32_t magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return (uint16_t)(sign | 0x7E00 | (magnitude >> 13 & 0x1FF));
    if (magnitude >= 0x477FF000) return (uint16_t)(sign | 0x7C00);
    if (magnitude < 0x38800000) /* Adding 1/2 rounds to a multiple of the smallest subnormal. */
        return (uint16_t)(sign | (bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3F000000));
    const uint32_t odd = magnitude >> 13 & 1;
    return (uint16_t)(sign | (magnitude - 0x38000000 + 0xFFF + odd) >> 13);
#endif
}

/* A float rounded to bfloat16, as bits; NaN stays NaN. */
INLINE uint16_t bfloat_of_float(float number)
{
    const uint32_t bits = bits_of_float(number), odd = bits >> 16 & 1;
    return (uint16_t)((number != number ? bits | 0x400000 : bits + 0x7FFF + odd) >> 16);
}

/* One stored element of any type, in the machine's byte order. */
typedef union {
    int8_t int8;
    int16_t int16;
    int32_t int32;
    int64_t int64;
    uint8_t uint8;
    uint16_t uint16;
    uint32_t uint32;
    uint64_t uint64;
    float float32;
    double float64;
} stored;

static stored load_stored(int64_t code, int64_t address)
{
    static const uint8_t SIZES[] = {4, 8, 1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 2};
    const bool swapped = code & SWAPPED;
    stored element;
    switch (SIZES[code & (SWAPPED - 1)]) {
    case 1:
        memcpy(&element, (const void *)address, 1);
        break;
    case 2:
        memcpy(&element, (const void *)address, 2);
        if (swapped) element.uint16 = __builtin_bswap16(element.uint16);
        break;
    case 4:
        memcpy(&element, (const void *)address, 4);
        if (swapped) element.uint32 = __builtin_bswap32(element.uint32);
        break;
    default:
        memcpy(&element, (const void *)address, 8);
        if (swapped) element.uint64 = __builtin_bswap64(element.uint64);
    }
    return element;
}

/* One stored element of any real type and byte order, converted to `target` with one rounding. */
#define LOAD_AS(target, code, address)                                                        \
    const stored element = load_stored(code, address);                                        \
    switch (code & (SWAPPED - 1)) {                                                           \
    case FLOAT32_CODE: return (target)element.float32;                                        \
    case FLOAT64_CODE: return (target)element.float64;                                        \
    case BOOL_CODE: return (target)(element.uint8 != 0);                                      \
    case INT8_CODE: return (target)element.int8;                                              \
    case UINT8_CODE: return (target)element.uint8;                                            \
    case INT16_CODE: return (target)element.int16;                                            \
    case UINT16_CODE: return (target)element.uint16;                                          \
    case INT32_CODE: return (target)element.int32;                                            \
    case UINT32_CODE: return (target)element.uint32;                                          \
    case INT64_CODE: return (target)element.int64;                                            \
    case UINT64_CODE: return (target)element.uint64;                                          \
    case HALF: return (target)float_of_half(element.uint16);                                  \
    default: return (target)float_of_bits((uint32_t)element.uint16 << 16);                    \
    }

NOINLINE real load_as(int64_t code, int64_t address) { LOAD_AS(real, code, address) }
NOINLINE double load_as_double(int64_t code, int64_t address) { LOAD_AS(double, code, address) }

/* --- sixteen elements ---------------------------------------------------------------------- */

/* As many elements of each small type as a part has lanes. */
typedef float floats __attribute__((vector_size(4 * PART_LANES)));
typedef int32_t int32s __attribute__((vector_size(4 * PART_LANES)));
typedef uint32_t uint32s __attribute__((vector_size(4 * PART_LANES)));
typedef uint16_t uint16s __attribute__((vector_size(2 * PART_LANES)));
#define IN_MEMORY(bytes) __attribute__((vector_size(bytes), aligned(1), may_alias))
typedef uint16_t uint16s_in_memory IN_MEMORY(2 * PART_LANES);
typedef int8_t int8s_in_memory IN_MEMORY(PART_LANES);

INLINE floats floats_of_halves(uint16s halves)
{
#if defined(__F16C__) && PART_LANES == 16
    return _mm512_cvtph_ps((__m256i)halves);
#elif defined(__F16C__) && PART_LANES == 8
    return _mm256_cvtph_ps((__m128i)halves);
#else
    floats result;
    for (int lane = 0; lane < PART_LANES; lane++) result[lane] = float_of_half(halves[lane]);
    return result;
#endif
}

INLINE uint16s halves_of_floats(floats numbers)
{
#if defined(__F16C__) && PART_LANES == 16
    return (uint16s)_mm512_cvtps_ph(numbers, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__) && PART_LANES == 8
    return (uint16s)_mm256_cvtps_ph(numbers, _MM_FROUND_TO_NEAREST_INT);
#else
    uint16s result;
    for (int lane = 0; lane < PART_LANES; lane++) result[lane] = half_of_float(numbers[lane]);
    return result;
#endif
}

INLINE floats floats_of_bfloats(uint16s bfloats)
{
#if defined(__AVX512F__) && PART_LANES == 16 /* GCC would take halves of registers */
    return (floats)((uint32s)_mm512_cvtepu16_epi32((__m256i)bfloats) << 16);
#else
    return (floats)(__builtin_convertvector(bfloats, uint32s) << 16);
#endif
}

INLINE int32s int32s_of_int8s(int64_t address)
{
    const int8s_in_memory small = *(const int8s_in_memory *)address;
#if defined(__AVX512F__) && PART_LANES == 16
    return (int32s)_mm512_cvtepi8_epi32((__m128i)small);
#else
    return __builtin_convertvector(small, int32s);
#endif
}

/* Floats rounded to bfloat16; NaN stays NaN. */
INLINE uint16s bfloats_of_floats(floats numbers)
{
    const uint32s bits = (uint32s)numbers, is_nan = (uint32s)(numbers != numbers);
    const uint32s rounded = bits + 0x7FFF + (bits >> 16 & 1), quiet = bits | 0x400000;
    return __builtin_convertvector(((is_nan & quiet) | (~is_nan & rounded)) >> 16, uint16s);
}

INLINE part part_of_floats(floats numbers) { return __builtin_convertvector(numbers, part); }

/* Sixteen consecutive elements of a small storage type (`kind` a constant) as a vector. */
INLINE vector load_widened(const int kind, int64_t address)
{
    vector result;
    EACH_PART(p)
    {
        floats wide;
        if (kind == INT8_CODE) {
            wide = __builtin_convertvector(int32s_of_int8s(address + p * PART_LANES), floats);
        } else {
            const uint16s small = *(const uint16s_in_memory *)(address + 2 * p * PART_LANES);
            wide = kind == HALF ? floats_of_halves(small) : floats_of_bfloats(small);
        }
        result.part[p] = part_of_floats(wide);
    }
    return result;
}

/* Write sixteen elements rounded to a half storage type (`kind` a constant). */
INLINE void store_rounded(const int kind, int64_t address, vector a)
{
    EACH_PART(p)
    {
        const floats narrow = __builtin_convertvector(a.part[p], floats);
        const uint16s halves = kind == HALF ? halves_of_floats(narrow) : bfloats_of_floats(narrow);
        *(uint16s_in_memory *)(address + 2 * p * PART_LANES) = halves;
    }
}

/* Write one number rounded to a half storage type. */
INLINE void store_one_rounded(int64_t code, int64_t address, real number)
{
    const float narrow = (float)number;
    const uint16_t half = code == HALF ? half_of_float(narrow) : bfloat_of_float(narrow);
    memcpy((void *)address, &half, sizeof half);
}

/* --- rows ---------------------------------------------------------------------------------- */

#define WIDEN_SIXTEENS(kind, size)                                    \
    for (; i < whole; i += LANES)                                     \
        store(target + i * ITEM, load_widened(kind, source + size * i))

/* Write `count` stored elements, `stride` bytes apart, as a contiguous row of reals.

   Reads and writes nothing beyond. */
static void widen_row(int64_t code, int64_t source, int64_t stride, int64_t count, int64_t target)
{
    const int64_t whole = count / LANES * LANES;
    int64_t i = 0;
    if (code == NATIVE_CODE && stride == ITEM) {
        for (; i < whole; i += LANES) store(target + i * ITEM, load(source + i * ITEM));
        for (; i < count; i++) store_real(target + i * ITEM, load_real(source + i * ITEM));
    } else if (code == HALF && stride == 2) {
        WIDEN_SIXTEENS(HALF, 2);
    } else if (code == BFLOAT && stride == 2) {
        WIDEN_SIXTEENS(BFLOAT, 2);
    } else if (code == INT8_CODE && stride == 1) {
        WIDEN_SIXTEENS(INT8_CODE, 1);
    }
    for (; i < count; i++) store_real(target + i * ITEM, load_as(code, source + i * stride));
}

/* Write contiguous int8 times a scale as a row of reals, rounded once. */
static void dequantise_row(int64_t source, int64_t count, real scale, int64_t target)
{
    const int64_t whole = count / LANES * LANES;
    const vector wide = splat(scale);
    for (int64_t i = 0; i < whole; i += LANES)
        store(target + i * ITEM, times(load_widened(INT8_CODE, source + i), wide));
    for (int64_t i = whole; i < count; i++)
        store_real(target + i * ITEM, load_as(INT8_CODE, source + i) * scale);
}

/* Write a contiguous row as `count` elements of storage type `code`, `stride` bytes apart.

   The type is `real` or a half. `source` is readable up to the next multiple of sixteen; nothing is
   written beyond. */
static void round_row(int64_t code, int64_t source, int64_t count, int64_t target, int64_t stride)
{
    const int64_t whole = count / LANES * LANES;
    int64_t i = 0;
    if (code == NATIVE_CODE) {
        if (stride == ITEM)
            for (; i < whole; i += LANES) store(target + i * ITEM, load(source + i * ITEM));
        for (; i < count; i++) store_real(target + i * stride, load_real(source + i * ITEM));
        return;
    }
    if (stride == 2 && code == HALF)
        for (; i < whole; i += LANES)
            store_rounded(HALF, target + 2 * i, load(source + i * ITEM));
    else if (stride == 2)
        for (; i < whole; i += LANES)
            store_rounded(BFLOAT, target + 2 * i, load(source + i * ITEM));
    for (; i < count; i++)
        store_one_rounded(code, target + i * stride, load_real(source + i * ITEM));
}

#endif

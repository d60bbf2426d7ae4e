/* What kernels are compiled for, and whether this CPU has it. */

#ifndef FASTATTN_LEVELS_H
#define FASTATTN_LEVELS_H

#include <stdint.h>

/* Take tasks of the call, whose record begins at the address, until none is left. */
typedef void kernel_entry(int64_t call_address, int64_t worker);

typedef struct {
    const char *level, *name;
    kernel_entry *entry;
    uint64_t needs; /* features, made by words.py from what `_numba.objects` let LLVM use */
} compiled_kernel;

#if defined(__x86_64__)

#include <cpuid.h>

enum { BASIC_C, BASIC_D, MORE_B, MORE_1_A, EXTENDED_C, EXTENDED_D };

/* Every feature by LLVM's name (a dot is an underscore here): the register of CPUID and the bit.
 * One that is missing here does not compile where a kernel needs it. */
#define EACH_FEATURE(X)                                                                            \
    X(sse3, BASIC_C, 0) X(ssse3, BASIC_C, 9) X(fma, BASIC_C, 12) X(cx16, BASIC_C, 13)              \
    X(sse4_1, BASIC_C, 19) X(sse4_2, BASIC_C, 20) X(crc32, BASIC_C, 20) X(movbe, BASIC_C, 22)      \
    X(popcnt, BASIC_C, 23) X(xsave, BASIC_C, 26) X(avx, BASIC_C, 28) X(f16c, BASIC_C, 29)          \
    X(cx8, BASIC_D, 8) X(cmov, BASIC_D, 15) X(mmx, BASIC_D, 23) X(fxsr, BASIC_D, 24)               \
    X(sse, BASIC_D, 25) X(sse2, BASIC_D, 26)                                                       \
    X(bmi, MORE_B, 3) X(avx2, MORE_B, 5) X(bmi2, MORE_B, 8) X(avx512f, MORE_B, 16)                 \
    X(avx512dq, MORE_B, 17) X(avx512cd, MORE_B, 28) X(avx512bw, MORE_B, 30)                        \
    X(avx512vl, MORE_B, 31) X(avx512bf16, MORE_1_A, 5)                                             \
    X(sahf, EXTENDED_C, 0) X(lzcnt, EXTENDED_C, 5) X(64bit, EXTENDED_D, 29)

#define NUMBER(name, word, bit) NUMBER_##name,
enum { EACH_FEATURE(NUMBER) };
#undef NUMBER

#define HAS(name) (UINT64_C(1) << NUMBER_##name)

static inline uint64_t features_here(void)
{
    unsigned words[6] = {0}, other[4];
    __get_cpuid(1, &other[0], &other[1], &words[BASIC_C], &words[BASIC_D]);
    __get_cpuid_count(7, 0, &other[0], &words[MORE_B], &other[2], &other[3]);
    __get_cpuid_count(7, 1, &words[MORE_1_A], &other[1], &other[2], &other[3]);
    __get_cpuid(0x80000001, &other[0], &other[1], &words[EXTENDED_C], &words[EXTENDED_D]);
    uint64_t features = 0;
#define ADD(name, word, bit) features |= (words[word] >> (bit) & 1) ? HAS(name) : 0;
    EACH_FEATURE(ADD)
#undef ADD
    /* The compiler's own tests know too whether the operating system keeps the registers. */
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx"))
        features &= ~(HAS(avx) | HAS(avx2) | HAS(fma) | HAS(f16c));
    if (!__builtin_cpu_supports("avx512f"))
        features &= ~(HAS(avx512f) | HAS(avx512bw) | HAS(avx512cd) | HAS(avx512dq) |
                      HAS(avx512vl) | HAS(avx512bf16));
    return features;
}

#else

static inline uint64_t features_here(void) { return 0; }

#endif

static inline int runs_with(uint64_t features, const compiled_kernel *kernel)
{
    return (kernel->needs & ~features) == 0;
}

#endif

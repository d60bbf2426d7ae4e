/* The kinds of machine that kernels are compiled for, and whether this CPU is one. */

#ifndef FASTATTN_LEVELS_H
#define FASTATTN_LEVELS_H

#include <stdint.h>

/* Take tasks of the call, whose record begins at the address, until none is left. */
typedef void kernel_entry(int64_t call_address, int64_t worker);

typedef struct {
    const char *level, *name;
    kernel_entry *entry;
    int (*runs_here)(void);
} compiled_kernel;

#if defined(__x86_64__)

static inline int runs_v3(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

static inline int runs_v4(void)
{
    return runs_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

static inline int multiplies_pairs(void)
{
    return runs_v4() && __builtin_cpu_supports("avx512bf16");
}

#else

static inline int runs_base(void) { return 1; }

#endif
#endif

/* The kinds of machine that the kernels were compiled for, best first.

   Two where the machine is x86-64, one elsewhere. PAIRS says that the build has the kernels that
   multiply bfloat16 as it is, which not every compiler can. */

#ifndef FASTATTN_LEVELS_H
#define FASTATTN_LEVELS_H

#include "table.h"

/* Tables of entries (kernels.c), for float32 and for float64. */
#define DECLARE(level) extern const entry_table fastattn_##level##_32, fastattn_##level##_64;
#define TABLES(level) (const entry_table *[]){&fastattn_##level##_32, &fastattn_##level##_64}

typedef struct {
    const char *name;
    const entry_table **tables;
    int (*runs_here)(void);
    /* Attention that multiplies bfloat16 as it is, if any, and whether this CPU does. */
    const entry_table *pairs;
    int (*multiplies_pairs)(void);
} level;

#if defined(__x86_64__)

DECLARE(v4)
DECLARE(v3)

static int runs_v3(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

static int runs_v4(void)
{
    return runs_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

#if defined(PAIRS)
extern const entry_table fastattn_v4_pairs;

static int multiplies_pairs(void)
{
    return runs_v4() && __builtin_cpu_supports("avx512bf16");
}

#define PAIRS_OF_V4 &fastattn_v4_pairs, multiplies_pairs
#else
#define PAIRS_OF_V4 0, 0
#endif

static const level levels[] = {
    {"x86-64-v4", TABLES(v4), runs_v4, PAIRS_OF_V4},
    {"x86-64-v3", TABLES(v3), runs_v3, 0, 0},
};

#else

DECLARE(base)

static int runs_base(void) { return 1; }

static const level levels[] = {{"base", TABLES(base), runs_base, 0, 0}};

#endif

static const int level_count = sizeof levels / sizeof *levels;

#endif

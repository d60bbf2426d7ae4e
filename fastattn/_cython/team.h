/* Runs on the threads of another library: of the OpenMP that it has loaded, which is not linked. */

#ifndef FASTATTN_TEAM_H
#define FASTATTN_TEAM_H

#include "pool.h"

/* GOMP_parallel of GNU's OpenMP; LLVM's and Intel's have it too. No number of threads: as many as
   the library has told it for its own regions. */
typedef void enter_team(void (*enter)(void *), void *what, unsigned threads, unsigned flags);

typedef struct {
    kernel_entry *kernel;
    int64_t call, workers;
    _Atomic int64_t next; /* worker */
} team_run;

static void take_part_in_team(void *what)
{
    team_run *const run = what;
    const int64_t worker = atomic_fetch_add_explicit(&run->next, 1, memory_order_relaxed);
    if (worker < run->workers) enter_kernel(run->kernel, run->call, worker);
}

/* Run tasks `first` to `stop` on the team that `parallel` enters, on `workers` of it at most. It
   returns when all of the team have left. */
static void run_on_team(
    int64_t parallel, int64_t kernel, int64_t call, int64_t first, int64_t stop, int64_t workers)
{
    team_run run = {(kernel_entry *)(intptr_t)kernel, call, workers, 0};
    assign_tasks(call, first, stop, workers);
    ((enter_team *)(intptr_t)parallel)(take_part_in_team, &run, 0, 0);
}

#endif

/* Runs of the pool from many threads and forked children, checked task by task.

   pool_stress CALLERS RUNS FORKS. With NOBODY_COMES the threads of the pool never get a core. */

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(NOBODY_COMES)
#include <pthread.h>
static int start_nobody(void) { return 0; }
#define pthread_create(thread, attributes, work, argument)                                         \
    ((void)(thread), (void)(work), start_nobody())
#endif

#include "pool.h"

/* A record: next task, stop, workers, and how often each task was done. */
enum { HEAD = 3, MOST_TASKS = 64, PAGE = 4096, RECORD = (HEAD + MOST_TASKS) * 8 };

static void count(int64_t call, int64_t worker)
{
    int64_t *const words = (int64_t *)(intptr_t)call;
    if (worker >= words[2]) abort();
    for (;;) {
        const int64_t task = __atomic_fetch_add(words, 1, __ATOMIC_RELAXED);
        if (task >= words[1]) return;
        for (volatile int64_t step = 0; step < task * 20; step++)
            ;
        words[HEAD + task]++;
    }
}

/* Tasks that wait for each other: each needs a thread of its own. */
static void meet(int64_t call, int64_t worker)
{
    int64_t *const words = (int64_t *)(intptr_t)call;
    if (worker >= words[2]) abort();
    if (__atomic_fetch_add(words, 1, __ATOMIC_RELAXED) >= words[1]) return;
    __atomic_fetch_add(&words[HEAD], 1, __ATOMIC_RELAXED);
    while (__atomic_load_n(&words[HEAD], __ATOMIC_RELAXED) < words[1]) sched_yield();
}

static void meet_once(unsigned *seed)
{
    int64_t *const words = calloc(1, RECORD);
    const int64_t workers = 2 + rand_r(seed) % 3;
    run_on_threads((int64_t)(intptr_t)meet, (int64_t)(intptr_t)words, 0, workers, workers);
    if (words[HEAD] != workers) abort();
    free(words);
    if (rand_r(seed) % 4 == 0) usleep(900 + rand_r(seed) % 200); /* just when they fall asleep */
}

/* One run. Its record is filled with nonsense as soon as it ends: whoever comes later does harm. */
static void run_once(unsigned *seed)
{
    const int64_t tasks = rand_r(seed) % MOST_TASKS, workers = 2 + rand_r(seed) % 7;
    int64_t *const words = calloc(1, RECORD);
    run_on_threads((int64_t)(intptr_t)count, (int64_t)(intptr_t)words, 0, tasks, workers);
    for (int64_t task = 0; task < MOST_TASKS; task++)
        if (words[HEAD + task] != (task < tasks)) abort();
    memset(words, 0xA5, RECORD);
    for (int64_t task = 0; task < MOST_TASKS; task++)
        if (words[HEAD + task] != (int64_t)0xA5A5A5A5A5A5A5A5) abort();
    free(words);
    if (rand_r(seed) % 500 == 0) usleep(1500); /* threads fall asleep */
}

static int runs, forks;

static void *call_often(void *number)
{
    unsigned seed = (unsigned)(intptr_t)number + 1;
    for (int run = 0; run < runs; run++) {
        run_once(&seed);
#if !defined(NOBODY_COMES)
        if (run % 20 == 0) meet_once(&seed);
#endif
        if (forks == 0 || run % (runs / forks) != 0) continue;
        const pid_t child = fork();
        if (child == 0) {
            for (int again = 0; again < 50; again++) run_once(&seed);
            _exit(7);
        }
        int status;
        if (waitpid(child, &status, 0) != child || !WIFEXITED(status)) abort();
        if (WEXITSTATUS(status) != 7) abort();
    }
    return NULL;
}

int main(int count_of_words, char **words)
{
    if (count_of_words != 4) return 2;
    alarm(120);
    const int callers = atoi(words[1]);
    runs = atoi(words[2]);
    forks = atoi(words[3]);
    unsigned seed = 0;
    run_on_this_thread(
        (int64_t)(intptr_t)count, (int64_t)(intptr_t)calloc(1, RECORD), 0, rand_r(&seed) % 9);
    if (callers == 0) {
        call_often(NULL);
    } else {
        pthread_t threads[callers];
        for (intptr_t i = 0; i < callers; i++)
            if (pthread_create(&threads[i], NULL, call_often, (void *)i) != 0) abort();
        for (int i = 0; i < callers; i++) pthread_join(threads[i], NULL);
    }
    puts("all done once");
    return 0;
}
